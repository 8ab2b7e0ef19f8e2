//! The past, as the etcd's own history tells it.
//!
//! What lies before the entries in memory is found again: the log key's history says which etcd
//! revision made which of ours, and a watch that starts there yields the changes themselves.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use prost::Message as _;

use super::{
    history::{Entry, Overlay, View},
    layout::{EtcdRevision, LOG, LogRecord, is_reserved, marked},
    observer::{Group, Grouping, open},
    snapshot::{Marked, Numbers, Row, Snapshot, mark},
    wire::{Purpose, Watching, Wire, WireError, WireResult},
};
use crate::{
    model::{Commit, Event, Key, KeyValue, Revision},
    proto::{etcdserverpb as pb, mvccpb},
    store::PAGE_BYTES_MAX,
};

/// A record of the log and the etcd revision that wrote it.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub etcd: EtcdRevision,
    pub record: LogRecord,
}

/// The records around a revision of ours.
#[derive(Debug)]
pub(super) struct Around {
    /// The last whose state holds nothing above it; `None` before the first.
    pub before: Option<Logged>,
    /// The next.
    pub after: Logged,
}

/// The newest record at an etcd revision (0: now).
pub(super) async fn record_at(wire: &Wire, at: EtcdRevision) -> WireResult<Option<Logged>> {
    let key = Key::from_static(LOG);
    let found = wire.range(pb::RangeRequest { key, revision: at, ..Default::default() }).await?;
    let Some(kv) = found.kvs.first() else { return Ok(None) };
    let record = LogRecord::decode(kv.value.clone());
    let record = record.map_err(|error| WireError::Failed(format!("its log: {error}")))?;
    Ok(Some(Logged { etcd: kv.mod_revision, record }))
}

/// Finds the records around a revision between the state at `low`, which holds nothing above it, and a
/// record at `high` that does. Costs a logarithm of what lies between.
///
/// # Errors
/// `Compacted` where the record before it is.
pub(super) async fn around(
    wire: &Wire,
    revision: Revision,
    low: EtcdRevision,
    high: EtcdRevision,
) -> WireResult<Around> {
    let (mut low, mut high) = (low, high);
    let (mut before, mut after) = (None, None);
    let mut is_cut = false;
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        match record_at(wire, middle).await {
            Err(WireError::Compacted) => (low, before, is_cut) = (middle, None, true),
            Ok(Some(logged)) if logged.record.last > revision => {
                high = logged.etcd;
                after = Some(logged);
            }
            found => (low, before, is_cut) = (middle, found?, false),
        }
    }
    if is_cut {
        return Err(WireError::Compacted);
    }
    let after = match after {
        Some(after) => after,
        None => record_at(wire, high).await?.ok_or_else(no_log)?,
    };
    Ok(Around { before, after })
}

fn no_log() -> WireError {
    WireError::Failed("its log key was deleted by somebody else".to_owned())
}

/// The view of a revision that lies before what is in memory.
pub(super) async fn view(
    wire: &Wire,
    numbers: &Numbers,
    revision: Revision,
    oldest: EtcdRevision,
) -> WireResult<View> {
    if revision <= numbers.attached {
        return Ok(View { at: revision, ..View::default() });
    }
    let Around { before, after } = around(wire, revision, numbers.attached, oldest).await?;
    let Some(before) = before else {
        return Ok(View { at: numbers.attached, ..View::default() });
    };
    let (base, last) = (before.record.base, before.record.last);
    if revision == last && before.etcd == base + 1 {
        return Ok(View { at: before.etcd, ..View::default() });
    }
    let mut replay = Replay::open(wire, Arc::new(numbers.clone()), base, after.etcd).await?;
    let (mut undo, mut hidden) = (Overlay::new(), Vec::new());
    let mut commits = Vec::new();
    while let Some(replayed) = replay.next().await? {
        if replayed.etcd == before.etcd {
            let theirs = replay.foreign.values().cloned().collect::<Vec<_>>();
            undo = undone(wire, &replay.numbers, &theirs, before.etcd).await?;
            hidden = replay.foreign.keys().copied().collect();
        } else {
            commits.extend(replayed.commits);
        }
    }
    let before = Entry { etcd: before.etcd, base, last, commits: Vec::new(), undo, hidden };
    let after = Entry { commits, ..Entry::default() };
    Ok(View::between(&before, Some(&after), revision))
}

/// What keys were before others changed them.
pub(super) async fn undone(
    wire: &Wire,
    numbers: &Numbers,
    theirs: &[Group],
    marks_at: EtcdRevision,
) -> WireResult<Overlay> {
    let mut undo = Overlay::new();
    for group in theirs {
        // What a second change replaced is a first one.
        let mut keys = keys_of(group);
        keys.retain(|key| !undo.contains_key(key));
        let befores = befores(wire, numbers, group.etcd, &keys, marks_at).await?;
        // What is compacted may have been anything.
        let mut befores = befores.ok_or(WireError::Compacted)?;
        for key in keys {
            let before = befores.remove(&key).map(|row| row.kv);
            undo.insert(key, before);
        }
    }
    Ok(undo)
}

fn keys_of(group: &Group) -> Vec<Key> {
    group.visible().filter_map(|event| event.kv.as_ref()).map(|kv| kv.key.clone()).collect()
}

/// Keys as they were before a change; `None` where compaction has passed that. Their marks are those at
/// `marks_at`, an owner's record behind which they are unchanged: what others did gets its marks late.
async fn befores(
    wire: &Wire,
    numbers: &Numbers,
    change: EtcdRevision,
    keys: &[Key],
    marks_at: EtcdRevision,
) -> WireResult<Option<HashMap<Key, Row>>> {
    let at = change - 1;
    match (Snapshot { wire, at, marks_at: marks_at.max(at), numbers }).rows_of(keys).await {
        Ok(rows) => Ok(Some(rows.into_iter().map(|row| (row.kv.key.clone(), row)).collect())),
        Err(WireError::Compacted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What somebody else did at one etcd revision, as a commit at `revision`. May have no events.
pub(super) async fn foreign_commit(
    wire: &Wire,
    numbers: &Numbers,
    group: &Group,
    revision: Revision,
    marks_at: EtcdRevision,
) -> WireResult<Commit> {
    let befores = befores(wire, numbers, group.etcd, &keys_of(group), marks_at).await?;
    let mut befores = befores.unwrap_or_default();
    let mut events = Vec::new();
    for event in group.visible() {
        let Some(kv) = &event.kv else { continue };
        let prev = befores.remove(&kv.key).map(|row| row.kv);
        if event.r#type == mvccpb::event::EventType::Delete as i32 {
            events.push(Event { kv: KeyValue::tombstone(kv.key.clone(), revision), prev });
            continue;
        }
        let prev = prev.filter(|_| kv.create_revision != kv.mod_revision);
        let kv = KeyValue {
            key: kv.key.clone(),
            create_revision: prev.as_ref().map_or(revision, |prev| prev.create_revision),
            mod_revision: revision,
            version: prev.as_ref().map_or(kv.version, |prev| prev.version + 1),
            lease: kv.lease,
            value: kv.value.clone(),
        };
        events.push(Event { kv, prev });
    }
    Ok(Commit { revision, events })
}

/// The same commit at another revision.
pub(super) fn at_revision(mut commit: Commit, revision: Revision) -> Commit {
    let was = std::mem::replace(&mut commit.revision, revision);
    for Event { kv, .. } in &mut commit.events {
        kv.mod_revision = revision;
        if kv.create_revision == was && !kv.is_tombstone() {
            kv.create_revision = revision;
        }
    }
    commit
}

/// What happened before the store was attached, in `after < etcd <= through`, as far as a page goes.
/// Returns how far that is.
pub(super) async fn before_attached(
    wire: &Wire,
    numbers: &Numbers,
    after: EtcdRevision,
    through: EtcdRevision,
    commits: &mut Vec<Arc<Commit>>,
) -> WireResult<Revision> {
    let mut watching = open(wire, Purpose::Replay, after + 1, true).await?;
    let (mut grouping, mut bytes) = (Grouping::default(), 0);
    let marks = Marks { now: HashMap::new(), before: HashMap::new() };
    loop {
        for group in grouping.take(watching.due().await?) {
            if group.etcd > through {
                return Ok(through);
            }
            let events = group.visible();
            let events = events.filter_map(|event| own_event(numbers, &marks, event, group.etcd));
            let commit = Commit { revision: group.etcd, events: events.collect() };
            if !commit.events.is_empty() {
                bytes += commit.size();
                commits.push(Arc::new(commit));
            }
            if group.etcd == through || bytes >= PAGE_BYTES_MAX {
                return Ok(group.etcd);
            }
        }
    }
}

/// A transaction of an owner, found again.
#[derive(Debug)]
pub(super) struct Replayed {
    pub etcd: EtcdRevision,
    pub record: LogRecord,
    pub commits: Vec<Arc<Commit>>,
}

/// The etcd's history from one revision through another, which an owner has written.
#[derive(Debug)]
pub(super) struct Replay<'a> {
    wire: &'a Wire,
    numbers: Arc<Numbers>,
    /// The last record that was replayed.
    record_at: EtcdRevision,
    watching: Watching,
    grouping: Grouping,
    groups: VecDeque<Group>,
    /// Changes of others that no record has named yet.
    foreign: BTreeMap<EtcdRevision, Group>,
    through: EtcdRevision,
    is_done: bool,
}

// === impl Replay ===

impl<'a> Replay<'a> {
    /// Replays `after < etcd <= through`.
    pub(super) async fn open(
        wire: &'a Wire,
        numbers: Arc<Numbers>,
        after: EtcdRevision,
        through: EtcdRevision,
    ) -> WireResult<Self> {
        Ok(Self {
            wire,
            numbers,
            record_at: after,
            watching: open(wire, Purpose::Replay, after + 1, true).await?,
            grouping: Grouping::default(),
            groups: VecDeque::new(),
            foreign: BTreeMap::new(),
            through,
            is_done: after >= through,
        })
    }

    /// The next transaction of an owner; `None` behind the last.
    pub(super) async fn next(&mut self) -> WireResult<Option<Replayed>> {
        while !self.is_done {
            let Some(group) = self.groups.pop_front() else {
                self.groups.extend(self.grouping.take(self.watching.due().await?));
                continue;
            };
            self.is_done = group.etcd >= self.through;
            match group.record() {
                Some(record) => return self.replayed(group, record).await.map(Some),
                None => drop(self.foreign.insert(group.etcd, group)),
            }
        }
        Ok(None)
    }

    async fn replayed(&mut self, group: Group, record: LogRecord) -> WireResult<Replayed> {
        let marks = Marks::of(&group);
        let mut own = group.visible();
        let mut commits = Vec::new();
        for made in &record.commits {
            if made.etcd == 0 {
                let is_all = made.count == 0 && made.events.is_empty();
                let count = if is_all { usize::MAX } else { made.count as usize };
                let events = own.by_ref().take(count);
                let events = events
                    .filter_map(|event| own_event(&self.numbers, &marks, event, made.revision));
                let mut events: Vec<Event> = events.collect();
                if !made.events.is_empty() {
                    events = made.events.iter().filter_map(told_event).collect();
                }
                commits.push(Arc::new(Commit { revision: made.revision, events }));
            } else {
                if let Some(theirs) = self.foreign.remove(&made.etcd) {
                    let commit = foreign_commit(
                        self.wire,
                        &self.numbers,
                        &theirs,
                        made.revision,
                        self.record_at,
                    )
                    .await?;
                    commits.push(Arc::new(commit));
                }
                Arc::make_mut(&mut self.numbers).adopted.insert(made.etcd, made.revision);
            }
        }
        commits.retain(|commit| !commit.events.is_empty());
        self.record_at = group.etcd;
        Ok(Replayed { etcd: group.etcd, record, commits })
    }
}

/// The marks that a transaction wrote, and those that it replaced.
struct Marks {
    now: HashMap<Key, Marked>,
    before: HashMap<Key, Marked>,
}

// === impl Marks ===

impl Marks {
    fn of(group: &Group) -> Self {
        let (mut now, mut before) = (HashMap::new(), HashMap::new());
        for event in &group.events {
            let Some(kv) = event.kv.as_ref().filter(|kv| is_reserved(&kv.key)) else { continue };
            let Some(key) = marked(&kv.key) else { continue };
            before.extend(event.prev_kv.as_ref().and_then(mark).map(|mark| (key.clone(), mark)));
            now.extend(mark(kv).filter(|_| kv.version > 0).map(|mark| (key, mark)));
        }
        Self { now, before }
    }
}

fn own_event(
    numbers: &Numbers,
    marks: &Marks,
    event: &mvccpb::Event,
    revision: Revision,
) -> Option<Event> {
    let kv = event.kv.clone()?;
    let key = kv.key.clone();
    let prev = event.prev_kv.clone().and_then(|prev| numbers.revise(prev, marks.before.get(&key)));
    if event.r#type == mvccpb::event::EventType::Delete as i32 {
        return Some(Event { kv: KeyValue::tombstone(key, revision), prev });
    }
    let kv = numbers.revise(kv, marks.now.get(&key))?;
    let prev = prev.filter(|_| kv.version != 1);
    Some(Event { kv, prev })
}

/// An event that a record tells by itself.
fn told_event(event: &mvccpb::Event) -> Option<Event> {
    let kv = |kv: mvccpb::KeyValue| KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
        value: kv.value,
    };
    Some(Event { kv: kv(event.kv.clone()?), prev: event.prev_kv.clone().map(kv) })
}

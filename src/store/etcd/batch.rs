//! Writes on their way into one transaction of the etcd.
//!
//! All are checked against the state at one etcd revision, as the writes before them leave it. Whatever
//! they looked at must be unchanged when the transaction is applied, which the etcd compares by itself:
//! others may write to it too.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;

use super::{
    layout::{CommitMark, EtcdRevision, Mark, is_reserved, lease_key, mark_of, marks_of},
    observer::Group,
    owner::{put, unchanged},
    recent::Latest,
    snapshot::{Numbers, Row, range_request},
};
use crate::{
    model::{
        Commit, Event, Key, KeyRange, KeyValue, LeaseId, Revision,
        key::successor,
        txn::{Op, Past, Rows, Txn},
    },
    proto::{etcdserverpb as pb, mvccpb},
};

/// Keys that the transaction compares one by one.
pub(super) const GUARDS_MAX: usize = 96;

/// A batch.
#[derive(Debug)]
pub(super) struct Batch {
    /// The state that it starts from.
    pub base: EtcdRevision,
    pub numbers: Arc<Numbers>,
    pub rows: Rows,
    pub past: Past,
    /// What was read of keys, and their etcd revisions; 0 for those that were not there.
    known: HashMap<Key, Known>,
    /// Those of them that were asked for by name.
    named: HashSet<Key>,
    /// Whether some of them were not read, but taken not to exist.
    has_guessed: bool,
    /// Ranges in which no key may have appeared or changed.
    ranges: Vec<KeyRange>,
    /// Keys that were put or deleted by a write of this batch.
    touched: HashSet<Key>,
    /// What others did, with the etcd revisions of that.
    pub adopted: Vec<(EtcdRevision, Arc<Commit>)>,
    pub commits: Vec<Arc<Commit>>,
    /// Ranges that a single write deletes whole, where there are too many keys to name each.
    swept: Vec<KeyRange>,
    /// Records of the node, and other keys of the store itself.
    pub own: Vec<pb::RequestOp>,
    /// The revision of the state in `rows`.
    pub before: Revision,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    etcd: EtcdRevision,
    etcd_lease: i64,
}

// === impl Batch ===

impl Batch {
    pub(super) fn new(base: EtcdRevision, numbers: Arc<Numbers>, before: Revision) -> Self {
        Self {
            base,
            numbers,
            rows: Rows::new(),
            past: Past::new(),
            known: HashMap::new(),
            named: HashSet::new(),
            has_guessed: false,
            ranges: Vec::new(),
            touched: HashSet::new(),
            adopted: Vec::new(),
            commits: Vec::new(),
            swept: Vec::new(),
            own: Vec::new(),
            before,
        }
    }

    /// Takes what somebody else did as the next commit.
    pub(super) fn adopt(&mut self, etcd: EtcdRevision, commit: Commit) {
        Arc::make_mut(&mut self.numbers).adopted.insert(etcd, commit.revision);
        self.before = commit.revision;
        self.adopted.push((etcd, Arc::new(commit)));
    }

    /// Those of some keys that must still be read.
    pub(super) fn unknown<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) -> Vec<Key> {
        let mut keys: Vec<Key> =
            keys.into_iter().filter(|key| !self.known.contains_key(*key)).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Takes rows that were read; of `asked`, those that are not among them do not exist.
    pub(super) fn learn(&mut self, asked: Vec<Key>, found: Vec<Row>) {
        for key in asked {
            self.named.insert(key.clone());
            self.known.entry(key).or_default();
        }
        for Row { kv, etcd, etcd_lease } in found {
            // What a write of this batch made of it is newer.
            if !self.touched.contains(&kv.key) {
                self.known.insert(kv.key.clone(), Known { etcd, etcd_lease });
                self.rows.insert(kv.key.clone(), kv);
            }
        }
    }

    /// Takes a key not to exist, which the etcd compares with the rest.
    pub(super) fn guess_absent(&mut self, key: Key) {
        self.learn(vec![key], Vec::new());
        self.has_guessed = true;
    }

    pub(super) fn has_guessed(&self) -> bool {
        self.has_guessed
    }

    /// Whether the etcd would not be asked to compare what was guessed.
    pub(super) fn is_unsure(&self) -> bool {
        self.has_guessed && (self.is_empty() || !self.is_exact())
    }

    /// Takes all rows of a range.
    pub(super) fn learn_range(&mut self, range: KeyRange, found: Vec<Row>) {
        self.learn(Vec::new(), found);
        self.ranges.push(range);
    }

    /// Takes rows that were found by their lease. Where they are many, nothing between them may change.
    pub(super) fn learn_leased(&mut self, found: Vec<Row>) {
        if found.len() > GUARDS_MAX {
            self.ranges.extend(covering(found.iter().map(|row| &row.kv.key)));
        }
        self.learn(Vec::new(), found);
    }

    /// Takes what a write did.
    pub(super) fn add(&mut self, commit: Option<Commit>) {
        let Some(commit) = commit else { return };
        self.touched.extend(commit.events.iter().map(|event| event.kv.key.clone()));
        self.before = commit.revision;
        self.commits.push(Arc::new(commit));
    }

    /// Takes note where a plain deletion has more keys than can be named.
    pub(super) fn note_sweep(&mut self, txn: &Txn) {
        let is_plain = txn.compares.is_empty() && txn.failure.is_empty();
        if self.is_exact() || !is_plain {
            return;
        }
        let ranges = txn.success.iter().map(|op| match op {
            Op::Delete(delete) => Some(delete.range.clone()),
            _ => None,
        });
        self.swept = ranges.collect::<Option<_>>().unwrap_or_default();
    }

    /// The last of its revisions.
    pub(super) fn last(&self) -> Option<Revision> {
        let own = self.commits.last();
        let last = own.or(self.adopted.last().map(|(_, commit)| commit));
        last.map(|commit| commit.revision)
    }

    pub(super) fn has_touched(&self, keys: &[Key]) -> bool {
        keys.iter().any(|key| self.touched.contains(key))
    }

    pub(super) fn has_touched_in(&self, range: &KeyRange) -> bool {
        self.touched.iter().any(|key| range.contains(key))
    }

    /// How many keys it has looked at.
    pub(super) fn guards(&self) -> usize {
        self.known.len() + self.ranges.len()
    }

    /// Whether others' deletions of what it looked at would be noticed.
    pub(super) fn is_exact(&self) -> bool {
        self.guards() <= GUARDS_MAX
    }

    /// Whether a deletion by others would change what it did, where that was not compared.
    pub(super) fn depends_on_deleted(&self, theirs: &[Group]) -> bool {
        let deleted = theirs.iter().flat_map(Group::visible).filter_map(|event| {
            let is_delete = event.r#type == mvccpb::event::EventType::Delete as i32;
            event.kv.as_ref().filter(|_| is_delete)
        });
        let mut deleted = deleted.map(|kv| &kv.key);
        !self.is_exact() && deleted.any(|key| self.named.contains(key))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.adopted.is_empty() && self.commits.is_empty() && self.own.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        let events = self.commits.iter().flat_map(|commit| &commit.events);
        events.map(|event| event.kv.value.len() + 3 * event.kv.key.len() + 128).sum()
    }

    /// All its commits, in order.
    pub(super) fn all(&self) -> Vec<Arc<Commit>> {
        self.adopted.iter().map(|(_, commit)| commit).chain(&self.commits).cloned().collect()
    }

    /// Their revisions.
    pub(super) fn revisions(&self) -> VecDeque<Revision> {
        self.all().iter().map(|commit| commit.revision).collect()
    }

    /// What the record says of its commits.
    pub(super) fn marks(&self) -> Vec<CommitMark> {
        let adopted = self.adopted.iter().map(|(etcd, commit)| CommitMark {
            revision: commit.revision,
            etcd: *etcd,
            ..CommitMark::default()
        });
        let is_alone = self.commits.len() == 1;
        let own = self.commits.iter().map(|commit| CommitMark {
            revision: commit.revision,
            etcd: 0,
            count: if is_alone { 0 } else { nets(commit).len() as i64 },
            events: if is_twice(commit) { events(commit) } else { Vec::new() },
        });
        adopted.chain(own).collect()
    }

    /// What must be unchanged.
    pub(super) fn compares(&self) -> Vec<pb::Compare> {
        let mut ranges: Vec<KeyRange> = self.ranges.clone();
        let one_by_one: Vec<&Key> = if self.is_exact() {
            self.known.keys().collect()
        } else if self.named.len() + ranges.len() <= GUARDS_MAX {
            self.named.iter().collect()
        } else {
            ranges.extend(covering(self.named.iter()));
            Vec::new()
        };
        // Nobody sees the store's own keys, and so nothing depends on them.
        let one_by_one = one_by_one.into_iter().filter(|key| !is_reserved(key));
        let mut compares: Vec<pb::Compare> =
            one_by_one.map(|key| unchanged(key.clone(), self.known[key].etcd)).collect();
        let ranges = ranges.iter().flat_map(super::layout::without_reserved);
        compares.extend(ranges.map(|range| not_changed_since(&range, self.base)));
        // A key that others deleted a moment ago is absent too, and that would be told behind what was written
        // there. Until it is told, as it is in this batch where it was seen, the key has its mark. Only where
        // keys were not read: a mark may be left over of what nobody saw, and then the next batch reads.
        let room = match self.has_guessed {
            true => GUARDS_MAX.saturating_sub(compares.len()),
            false => 0,
        };
        let adopted: HashSet<&Key> = self.adopted_keys().collect();
        let absent = self.absent().filter(|key| !is_reserved(key) && !adopted.contains(key));
        let unmarked: Vec<pb::Compare> =
            absent.take(room).map(|key| unchanged(mark_of(key), 0)).collect();
        compares.extend(unmarked);
        compares
    }

    /// Keys that it takes not to exist.
    fn absent(&self) -> impl Iterator<Item = &Key> {
        self.known.iter().filter(|(_, known)| known.etcd == 0).map(|(key, _)| key)
    }

    /// The keys that it has looked at.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.known.keys()
    }

    /// The keys that others have changed.
    pub(super) fn adopted_keys(&self) -> impl Iterator<Item = &Key> {
        let events = self.adopted.iter().flat_map(|(_, commit)| &commit.events);
        events.map(|event| &event.kv.key)
    }

    /// What its writes have made of their keys at an etcd revision.
    pub(super) fn latest(&self, etcd: EtcdRevision) -> impl Iterator<Item = Latest> {
        self.commits.iter().flat_map(move |commit| {
            nets(commit).into_iter().map(move |net| {
                let row = |kv: &KeyValue| Row {
                    kv: kv.clone(),
                    etcd,
                    etcd_lease: self.etcd_lease(net.key, kv.lease),
                };
                let row = net.now.map(row);
                Latest { key: net.key.clone(), row, since: commit.revision }
            })
        })
    }

    /// The operations that apply it.
    pub(super) fn ops(&self) -> Vec<pb::RequestOp> {
        let mut ops = Vec::new();
        let mut marks: BTreeMap<&Key, Option<Mark>> = BTreeMap::new();
        for (etcd, commit) in &self.adopted {
            for event in &commit.events {
                // Whoever wrote the key has taken it from its lease.
                if let Some(prev) = event.prev.as_ref().filter(|prev| prev.lease != 0) {
                    ops.push(delete(lease_key(prev.lease, &prev.key)));
                }
                let is_put = !event.is_delete();
                marks.insert(&event.kv.key, is_put.then(|| mark(&event.kv, *etcd)));
            }
        }
        for (key, mark) in marks.into_iter().filter(|(key, _)| !self.touched.contains(*key)) {
            ops.push(match mark {
                Some(mark) => put(mark_of(key), mark.encode_to_vec(), 0),
                None => delete(mark_of(key)),
            });
        }
        for range in &self.swept {
            let keys = super::layout::without_reserved(range);
            ops.extend(keys.iter().chain([&marks_of(range)]).map(delete_range));
        }
        for net in self.commits.iter().flat_map(|commit| nets(commit)) {
            self.write(&net, &mut ops);
        }
        ops.extend(self.own.iter().cloned());
        ops
    }

    fn write(&self, net: &Net<'_>, ops: &mut Vec<pb::RequestOp>) {
        let key = net.key;
        let lease = |kv: Option<&KeyValue>| kv.map_or(0, |kv| kv.lease);
        let (left, joined) = (lease(net.before), lease(net.now));
        match net.now {
            Some(kv) => {
                ops.push(put(key.clone(), kv.value.clone(), self.etcd_lease(key, joined)));
                ops.push(put(mark_of(key), mark(kv, 0).encode_to_vec(), 0));
            }
            None if self.swept.is_empty() => {
                ops.push(delete(key.clone()));
                ops.push(delete(mark_of(key)));
            }
            None => {}
        }
        if left != joined {
            if left != 0 {
                ops.push(delete(lease_key(left, key)));
            }
            if joined != 0 {
                ops.push(put(lease_key(joined, key), Bytes::new(), 0));
            }
        }
    }

    /// A lease that only the etcd knows is kept where the key keeps it.
    fn etcd_lease(&self, key: &Key, lease: LeaseId) -> i64 {
        let known = self.known.get(key).copied().unwrap_or_default();
        if lease == known.etcd_lease { lease } else { 0 }
    }
}

/// The smallest range that holds all of some keys.
fn covering<'k>(keys: impl Iterator<Item = &'k Key> + Clone) -> Option<KeyRange> {
    let (first, last) = (keys.clone().min()?, keys.max()?);
    Some(KeyRange { start: first.clone(), end: Some(successor(last)) })
}

/// What a commit makes of a key, however often it changed it.
struct Net<'a> {
    key: &'a Key,
    before: Option<&'a KeyValue>,
    now: Option<&'a KeyValue>,
}

/// One for each key that is not as it was, in the order of the operations.
fn nets(commit: &Commit) -> Vec<Net<'_>> {
    let mut nets: Vec<Net<'_>> = Vec::with_capacity(commit.events.len());
    let is_twice = is_twice(commit);
    for event in &commit.events {
        let kv = (!event.is_delete()).then_some(&event.kv);
        let earlier = nets.iter_mut().find(|net| is_twice && *net.key == event.kv.key);
        match earlier {
            Some(net) => net.now = kv,
            None => nets.push(Net { key: &event.kv.key, before: event.prev.as_ref(), now: kv }),
        }
    }
    nets.retain(|net| net.before.is_some() || net.now.is_some());
    nets
}

fn is_twice(commit: &Commit) -> bool {
    let mut seen = HashSet::with_capacity(commit.events.len());
    commit.events.len() > 1 && !commit.events.iter().all(|event| seen.insert(&event.kv.key))
}

fn events(commit: &Commit) -> Vec<mvccpb::Event> {
    use mvccpb::event::EventType;
    let wire = |kv: &KeyValue| mvccpb::KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.clone(),
        lease: kv.lease,
    };
    let event = |event: &Event| mvccpb::Event {
        r#type: if event.is_delete() { EventType::Delete } else { EventType::Put } as i32,
        kv: Some(wire(&event.kv)),
        prev_kv: event.prev.as_ref().map(wire),
    };
    commit.events.iter().map(event).collect()
}

fn mark(kv: &KeyValue, etcd: EtcdRevision) -> Mark {
    Mark {
        revision: kv.mod_revision,
        create_revision: kv.create_revision,
        version: kv.version,
        lease: kv.lease,
        etcd,
    }
}

pub(super) fn delete(key: Key) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key, range_end: Bytes::new(), prev_kv: false };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) }
}

fn delete_range(range: &KeyRange) -> pb::RequestOp {
    let pb::RangeRequest { key, range_end, .. } = range_request(range);
    let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: false };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) }
}

/// The condition that no key of a range was put since an etcd revision.
fn not_changed_since(range: &KeyRange, etcd: EtcdRevision) -> pb::Compare {
    let pb::RangeRequest { key, range_end, .. } = range_request(range);
    pb::Compare {
        result: pb::compare::CompareResult::Less as i32,
        target: pb::compare::CompareTarget::Mod as i32,
        key,
        range_end,
        target_union: Some(pb::compare::TargetUnion::ModRevision(etcd + 1)),
    }
}

//! The watch on the whole etcd, which tells what others change.
//!
//! What the owner changes it knows by itself: such revisions carry its record in the log key, and are
//! only counted. All others wait here until the writer gives them revisions of ours.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message as _;
use tokio::sync::Notify;

use super::{
    layout::{EtcdRevision, LOG, LogRecord, is_reserved},
    wire::{Purpose, Watching, Wire, WireError, WireResult},
};
use crate::proto::{etcdserverpb as pb, mvccpb};

/// How long to wait before a watch that broke off is opened again.
const RESUME_AFTER: Duration = Duration::from_millis(100);

/// Bytes of changes that wait for the writer; then the etcd is not listened to until there is room.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// All changes of one etcd revision.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub etcd: EtcdRevision,
    pub events: Vec<mvccpb::Event>,
}

/// Why what others did can no longer be told one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Blind {
    /// Somebody compacted the etcd further than was seen.
    Compacted,
    /// Another owner has written.
    Fenced,
    /// Others changed more than can wait here.
    Overrun,
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Seen {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Everything up to here was seen.
    revision: EtcdRevision,
    /// Changes of others, in order.
    waiting: VecDeque<Group>,
    bytes: usize,
    blind: Option<Blind>,
    /// Counts the restarts.
    generation: u64,
}

// === impl Group ===

impl Group {
    /// The record that its maker left, where that was an owner.
    pub(super) fn record(&self) -> Option<LogRecord> {
        let kvs = self.events.iter().filter_map(|event| event.kv.as_ref());
        let log = kvs.filter(|kv| kv.key == LOG && kv.version > 0).last()?;
        LogRecord::decode(log.value.clone()).ok()
    }

    /// Changes of keys that clients see.
    pub(super) fn visible(&self) -> impl Iterator<Item = &mvccpb::Event> {
        let is_visible =
            |event: &&mvccpb::Event| event.kv.as_ref().is_some_and(|kv| !is_reserved(&kv.key));
        self.events.iter().filter(is_visible)
    }

    fn bytes(&self) -> usize {
        let sizes = self.events.iter().filter_map(|event| event.kv.as_ref());
        sizes.map(|kv| kv.key.len() + kv.value.len() + 64).sum()
    }
}

/// Puts the events of a watch together by their etcd revision, also where a message was cut in pieces.
#[derive(Debug, Default)]
pub(super) struct Grouping {
    open: Option<Group>,
}

// === impl Grouping ===

impl Grouping {
    /// The revisions that are complete with this message.
    pub(super) fn take(&mut self, message: pb::WatchResponse) -> Vec<Group> {
        let mut complete = Vec::new();
        for event in message.events {
            let etcd = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            match &mut self.open {
                Some(open) if open.etcd == etcd => open.events.push(event),
                open => complete.extend(open.replace(Group { etcd, events: vec![event] })),
            }
        }
        if !message.fragment {
            complete.extend(self.open.take());
        }
        complete
    }
}

// === impl Seen ===

impl Seen {
    pub(super) fn new(revision: EtcdRevision) -> Arc<Self> {
        let waiting = VecDeque::new();
        let state = State { revision, waiting, bytes: 0, blind: None, generation: 0 };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it changes what is behind the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn revision(&self) -> EtcdRevision {
        self.lock().revision
    }

    /// Where a watch begins, and after how many restarts.
    fn from(&self) -> (EtcdRevision, u64) {
        let state = self.lock();
        (state.revision, state.generation)
    }

    /// The changes of others in `above < etcd <= through` that have no revision of ours yet.
    pub(super) fn waiting(&self, above: EtcdRevision, through: EtcdRevision) -> Vec<Group> {
        let state = self.lock();
        let inside = |group: &&Group| group.etcd > above && group.etcd <= through;
        state.waiting.iter().filter(inside).cloned().collect()
    }

    /// Changes up to here have revisions now.
    pub(super) fn adopted(&self, through: EtcdRevision) {
        {
            let mut state = self.lock();
            while let Some(group) = state.waiting.pop_front_if(|group| group.etcd <= through) {
                state.bytes -= group.bytes();
            }
        }
        self.changed.notify_waiters();
    }

    /// Takes note of a revision of the owner's own, right behind what was seen.
    pub(super) fn note_own(&self, revision: EtcdRevision) {
        let mut state = self.lock();
        state.revision = state.revision.max(revision);
    }

    /// Goes on at a revision, whatever was missed before.
    pub(super) fn restart(&self, revision: EtcdRevision) {
        let mut state = self.lock();
        let generation = state.generation + 1;
        let waiting = VecDeque::new();
        *state = State { revision, waiting, bytes: 0, blind: None, generation };
        drop(state);
        self.changed.notify_waiters();
    }

    /// Has the watch opened anew, since it does not say what it should.
    pub(super) fn reopen(&self) {
        self.lock().generation += 1;
        self.changed.notify_waiters();
    }

    async fn reopens(&self, generation: u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.from().1 != generation {
                return;
            }
            changed.await;
        }
    }

    /// Waits until everything up to a revision was seen.
    pub(super) async fn reach(&self, revision: EtcdRevision) -> Result<(), Blind> {
        // Nobody makes room for what is to come while somebody waits for it.
        self.wait(|state| state.revision >= revision || state.bytes >= WAITING_BYTES_MAX).await?;
        if self.revision() >= revision { Ok(()) } else { Err(Blind::Overrun) }
    }

    /// Waits until something was changed by others.
    pub(super) async fn has_waiting(&self) -> Result<(), Blind> {
        self.wait(|state| !state.waiting.is_empty()).await
    }

    async fn has_room(&self) {
        // What makes it blind ends the wait as well: the watch is opened anew then.
        let _ = self.wait(|state| state.bytes < WAITING_BYTES_MAX).await;
    }

    async fn wait(&self, is_done: impl Fn(&State) -> bool) -> Result<(), Blind> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.lock();
                if let Some(blind) = &state.blind {
                    return Err(blind.clone());
                }
                if is_done(&state) {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    fn see(&self, group: Group, epoch: i64) {
        {
            let mut state = self.lock();
            if group.etcd <= state.revision {
                return;
            }
            state.revision = group.etcd;
            match group.record() {
                Some(record) if record.epoch > epoch => state.blind = Some(Blind::Fenced),
                Some(_) => {}
                None if group.visible().next().is_some() => {
                    state.bytes += group.bytes();
                    state.waiting.push_back(group);
                }
                None => {}
            }
        }
        self.changed.notify_waiters();
    }

    fn turn_blind(&self, why: Blind) {
        self.lock().blind = Some(why);
        self.changed.notify_waiters();
    }

    async fn sees_again(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().blind.is_none() {
                return;
            }
            changed.await;
        }
    }
}

/// Watches for ever, on behalf of the owner of `epoch`.
pub(super) async fn observe(wire: Arc<Wire>, seen: Arc<Seen>, epoch: i64) {
    loop {
        let before = seen.from();
        let error = match watch(&wire, &seen, epoch).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        match error {
            // What is compacted since it was asked for may all be the owner's own, which it need not see.
            WireError::Compacted if seen.from() != before => continue,
            WireError::Compacted => seen.turn_blind(Blind::Compacted),
            error => tracing::warn!(%error, "the watch on an etcd broke off, and resumes"),
        }
        tokio::time::sleep(RESUME_AFTER).await;
        seen.sees_again().await;
    }
}

/// One watch, until it breaks off or what was seen is restarted.
async fn watch(wire: &Wire, seen: &Seen, epoch: i64) -> WireResult<()> {
    let (from, generation) = seen.from();
    let mut watching = open(wire, Purpose::Live, from + 1, false).await?;
    let mut grouping = Grouping::default();
    loop {
        let message = tokio::select! {
            message = watching.next() => message?,
            () = seen.reopens(generation) => return Ok(()),
        };
        let groups = grouping.take(message);
        if seen.from().1 != generation {
            return Ok(());
        }
        groups.into_iter().for_each(|group| seen.see(group, epoch));
        seen.has_room().await;
    }
}

/// A watch on everything.
pub(super) async fn open(
    wire: &Wire,
    lane: Purpose,
    start: EtcdRevision,
    prev_kv: bool,
) -> WireResult<Watching> {
    let everything = bytes::Bytes::from_static(b"\0");
    let create = pb::WatchCreateRequest {
        key: everything.clone(),
        range_end: everything,
        start_revision: start,
        prev_kv,
        fragment: true,
        ..pb::WatchCreateRequest::default()
    };
    wire.watch(lane, create).await
}

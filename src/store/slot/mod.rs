//! A route's place for a store: waiting for it, holding it, or without it since another node took it.
//!
//! ```text
//!   open ──> there in time, as it was left ──> Open ── another node takes it ──> Fenced
//!        ──> refused, or silent ─────────────> Waiting ──> tried until it is the store ──> Open
//!        ──> not as it was left ─────────────> Waiting ──> broken off first ──> Open
//! ```
//!
//! While it waits its keys are refused at once with the reason, and all that spans stores goes on: nobody
//! but this node writes to a store that it owns, and the clock begins above all that the store can hold.
//! So whatever the clock has shown since is closed here, and empty. A store that holds more than the node
//! began with, less than it held, or is another, breaks what was promised: nothing from before a revision
//! above all that was shown can be read or followed any more.
//!
//! A store that another node took is written by that node, so nothing is closed for it: what spans it waits
//! until this node has it again, and then starts afresh.
//!
//! What is below the beginning only the store knows: a tail that starts there waits for it.
//!
//! A store that others write too, or of which it is not known whether they do, has a state of attachment.
//! Nothing is closed for it: its tails wait, and who merges them goes on without it as for any that is away.

mod opening;
mod record;

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use self::{
    opening::{Attempt, Occupant, Opened, Opener, Refusal, break_off, open},
    record::SlotRecord,
};
use super::{
    Coverage, Described, Head, LogBatch, Page, Query, RecordStore, Size, Store, Tail, Written,
    attach::AttachState,
    journal::{Journal, Log},
    meter::{Lasting, Meters},
};
use crate::{
    clock::SharedClock,
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
};

/// A place for a store; see the module.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    /// The task that has a store in it.
    keeper: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    clock: SharedClock,
    /// What is closed, and who waits for it. It never has a commit.
    journal: Arc<Journal>,
    /// There where nothing may be closed for it.
    attach_state: Option<Arc<AttachState>>,
    record: Arc<SlotRecord>,
    state: watch::Sender<State>,
    /// Whether there is no store in it.
    is_empty: Lasting,
}

#[derive(Clone, Debug)]
enum State {
    /// Why it is not there yet.
    Waiting(Arc<str>),
    /// It is there.
    Open {
        store: Arc<dyn Store>,
        /// The same where it can keep records.
        records: Option<Arc<dyn RecordStore>>,
        /// What was before this revision was broken off, with all that was promised meanwhile.
        broken_at: Option<Revision>,
    },
    /// Another node took it.
    Fenced {
        /// Why this node does not have it again.
        reason: Arc<str>,
        /// What was closed when it was taken.
        closed: Revision,
    },
}

// === impl Slot ===

impl Slot {
    fn new(
        name: &str,
        clock: SharedClock,
        attach_state: Option<Arc<AttachState>>,
        record: Arc<SlotRecord>,
        state: State,
    ) -> Arc<Self> {
        let journal = Journal::new(name, clock.clone(), clock.add_store(), 0);
        let shared = Arc::new(Shared {
            name: name.into(),
            clock,
            journal: Arc::new(journal),
            attach_state,
            record,
            is_empty: Lasting::default(),
            state: watch::Sender::new(state),
        });
        shared.note_state();
        Arc::new(Self { shared, keeper: Mutex::new(None) })
    }

    /// The store that is in it now, where that can keep records.
    pub fn records(&self) -> Option<Arc<dyn RecordStore>> {
        match &*self.shared.state.borrow() {
            State::Open { records, .. } => records.clone(),
            State::Waiting(_) | State::Fenced { .. } => None,
        }
    }

    /// Waits until a store is in it.
    pub async fn filled(&self) {
        self.shared.opened().await;
    }

    /// Waits until there is none any more.
    pub async fn left(&self) {
        let mut state = self.shared.state.subscribe();
        // It can't fail: the sender is here.
        let _ = state.wait_for(|state| !matches!(state, State::Open { .. })).await;
    }

    /// Spawns the task that has a store in the slot.
    fn hold<T: Future<Output = ()> + Send + 'static>(&self, keeper: impl FnOnce(Arc<Shared>) -> T) {
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper(self.shared.clone())));
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
    }
}

#[async_trait]
impl Store for Slot {
    fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        self.shared.store()?.apply(txn, dead_leases).await
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        self.shared.store()?.end_lease(lease).await
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        self.shared.store()?.leases().await
    }

    async fn read(&self, read: &Query) -> Result<Page> {
        self.shared.store()?.read(read).await
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        self.shared.store()?.count(query).await
    }

    fn tail(&self, after: Revision) -> Tail {
        if let Ok(store) = self.shared.store() {
            return store.tail(after);
        }
        let begun = self.shared.clock.begun().filter(|_| self.shared.stands_in());
        let is_above = begun.is_some_and(|begun| after >= begun);
        let source = if is_above {
            TailState::StandIn(self.shared.journal.clone().tail(after, Arc::new(Empty)))
        } else {
            TailState::Awaited
        };
        let cursor = Cursor { shared: self.shared.clone(), after, source };
        stream::try_unfold(cursor, |mut cursor| async move {
            let batch = cursor.next().await?;
            Ok(batch.map(|batch| (batch, cursor)))
        })
        .boxed()
    }

    fn announce_closed(&self) -> Revision {
        // First what holds while the store is not open, then whether it still is not.
        let closed = match (self.shared.clock.begun(), &self.shared.attach_state) {
            (None, _) => 0,
            (Some(begun), Some(_)) => begun,
            (Some(_), None) => self.shared.journal.closed(),
        };
        match &*self.shared.state.borrow() {
            State::Waiting(_) => closed,
            State::Open { store, .. } => store.announce_closed(),
            State::Fenced { closed, .. } => *closed,
        }
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        let store = match self.shared.store() {
            Err(error) if !self.shared.stands_in() => return Err(error),
            Err(_) => {
                let closed = self.shared.journal.advance_closed(revision, ahead).await?;
                match self.shared.store() {
                    Err(_) => return Ok(closed),
                    Ok(store) => store,
                }
            }
            Ok(store) => store,
        };
        store.advance_closed(revision, ahead).await
    }

    async fn read_index(&self, range: &KeyRange, coverage: Coverage) -> Result<Revision> {
        self.shared.store()?.read_index(range, coverage).await
    }

    fn covers(&self, after: Revision) -> bool {
        self.shared.store().is_ok_and(|store| store.covers(after))
    }

    fn check_resume(&self, after: Revision) -> Result<()> {
        match (self.shared.store(), &self.shared.attach_state) {
            (Ok(store), _) => store.check_resume(after),
            (Err(_), Some(attach_state)) => attach_state.check_resume(after),
            (Err(_), None) => Ok(()),
        }
    }

    fn attach_states(&self) -> &[Arc<AttachState>] {
        self.shared.attach_state.as_slice()
    }

    fn head(&self) -> Head {
        match self.shared.store() {
            Ok(store) => store.head(),
            Err(_) => {
                let known = self.shared.record.get();
                let (incarnation, newest) = (known.incarnation, known.newest);
                Head { incarnation, newest, ..Head::default() }
            }
        }
    }

    async fn defragment(&self) -> Result<bool> {
        match self.shared.store() {
            Ok(store) => store.defragment().await,
            Err(_) => Ok(false),
        }
    }

    async fn close(&self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.abort();
            // Either it was aborted or it had ended.
            let _ = keeper.await;
        }
        match self.shared.store() {
            Ok(store) => store.close().await,
            Err(_) => {
                let stopping = State::Waiting("this node is stopping".into());
                self.shared.enter(stopping);
            }
        }
    }

    async fn describe(&self) -> Vec<Described> {
        match self.shared.store() {
            Ok(store) => store.describe().await,
            Err(error) => {
                let (name, trouble) = (self.shared.name.to_string(), error.to_string());
                let trouble_s = self.shared.is_empty.age().as_secs_f64();
                vec![Described { name, trouble, trouble_s, ..Described::default() }]
            }
        }
    }

    fn meters(&self) -> Vec<Meters> {
        match self.shared.store() {
            Ok(store) => store.meters(),
            Err(error) => {
                let (name, trouble) = (self.shared.name.clone(), Some(error.to_string()));
                vec![Meters::new(name, trouble)]
            }
        }
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        self.shared.store()?.compact(revision, wait).await
    }

    fn compacted(&self) -> Revision {
        self.shared.store().map_or(-1, |store| store.compacted())
    }

    async fn size(&self) -> Result<Size> {
        match self.shared.store() {
            Ok(store) => store.size().await,
            Err(_) => Ok(Size::default()),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn enter(&self, state: State) {
        drop(self.state.send_replace(state));
        self.note_state();
    }

    fn note_state(&self) {
        match &*self.state.borrow() {
            State::Open { .. } => self.is_empty.end(),
            State::Waiting(_) | State::Fenced { .. } => self.is_empty.begin(),
        }
    }

    /// Whether it closes for the store what the clock has shown.
    fn stands_in(&self) -> bool {
        let is_fenced = matches!(&*self.state.borrow(), State::Fenced { .. });
        self.attach_state.is_none() && self.clock.begun().is_some() && !is_fenced
    }

    /// The store, or why it is not there.
    fn store(&self) -> Result<Arc<dyn Store>> {
        match &*self.state.borrow() {
            State::Open { store, .. } => Ok(store.clone()),
            State::Waiting(reason) | State::Fenced { reason, .. } => {
                let (store, reason) = (self.name.clone(), reason.clone());
                Err(StoreError::Unavailable { store, reason })
            }
        }
    }

    /// The store, once it is there, and where it was broken off.
    async fn opened(&self) -> (Arc<dyn Store>, Option<Revision>) {
        let mut state = self.state.subscribe();
        loop {
            if let State::Open { store, broken_at, .. } = &*state.borrow_and_update() {
                return (store.clone(), *broken_at);
            }
            // It can't fail: the sender is here.
            let _ = state.changed().await;
        }
    }
}

/// A tail that goes on in the store once that is there.
struct Cursor {
    shared: Arc<Shared>,
    after: Revision,
    source: TailState,
}

enum TailState {
    /// Only the store knows what comes next.
    Awaited,
    /// Nothing comes but what is closed.
    StandIn(Tail),
    Store(Tail),
}

// === impl Cursor ===

impl Cursor {
    async fn next(&mut self) -> Result<Option<LogBatch>> {
        loop {
            let batch = match &mut self.source {
                TailState::Store(tail) => return tail.next().await.transpose(),
                TailState::Awaited => None,
                TailState::StandIn(tail) => tokio::select! {
                    biased;
                    _ = self.shared.opened() => None,
                    batch = tail.next() => batch.transpose()?,
                },
            };
            // What was closed while the store was not open holds. What was closed since may not: the
            // store may have commits there, which the stand-in does not know.
            if let Some(batch) = batch.filter(|_| self.shared.store().is_err()) {
                self.after = self.after.max(batch.closed);
                return Ok(Some(batch));
            }
            let (store, broken_at) = self.shared.opened().await;
            if let (TailState::StandIn(_), Some(compacted)) = (&self.source, broken_at) {
                // It was told that nothing came, and something may have.
                return Err(StoreError::Compacted { compacted });
            }
            self.source = TailState::Store(store.tail(self.after));
        }
    }
}

/// The log of the stand-in.
#[derive(Debug)]
struct Empty;

#[async_trait]
impl Log for Empty {
    async fn page(&self, _after: Revision, through: Revision) -> Result<LogBatch> {
        Ok(LogBatch::new(Vec::new(), through))
    }

    fn compacted(&self) -> Revision {
        -1
    }
}

#[cfg(test)]
mod tests;

//! How a slot gets its store: it is tried until it is there, looked at before anyone reads it, and tried
//! again where another node took it.

use std::{collections::HashSet, error::Error, sync::Arc, time::Duration};

use futures::{
    FutureExt as _,
    future::{BoxFuture, pending, ready},
};
use tokio::time::timeout;

use super::{Shared, Slot, SlotRecord, State};
use crate::{
    clock::SharedClock,
    model::{Revision, StoreError, error::Result},
    store::{Expected, RecordStore, Store, attach::AttachState},
};

/// How long a start waits for a store that does not say whether it can be opened.
const START_WAIT_MAX: Duration = Duration::from_secs(5);

/// The pauses between attempts.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(100);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The reasons that are remembered, so that each is logged once. They may hold what changes each time.
const REASONS_MAX: usize = 16;

/// Opens the store that is expected, as often as it takes.
pub type Opener = Box<dyn FnMut(Expected) -> Attempt + Send>;

/// One attempt, which must end in bounded time.
pub type Attempt = BoxFuture<'static, Result<Occupant, Refusal>>;

/// A store that was opened for a slot.
pub struct Occupant {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same where this node owns it, so that it can keep records.
    pub records: Option<Arc<dyn RecordStore>>,
    /// Ends when another node has taken it.
    pub fenced: BoxFuture<'static, ()>,
}

/// Why a store could not be opened.
#[derive(Debug)]
pub struct Refusal {
    /// What happened, without secrets.
    pub reason: Box<dyn Error + Send + Sync>,
    /// Whether it may be another thing later, with no change here.
    pub may_pass: bool,
}

/// A slot, as its first attempt left it.
#[derive(Debug)]
pub struct Opened {
    /// The slot.
    pub slot: Arc<Slot>,
    /// Whether its store is not there yet.
    pub is_late: bool,
}

/// Opens the store of the slot `record`, or has it opened later: what is in the way of a route's store is
/// its own trouble, whatever it is. Where the slot `adopts`, the first one that is there will do.
///
/// # Errors
/// Those of the default store.
pub async fn open(
    name: &str,
    clock: &SharedClock,
    attach_state: Option<Arc<AttachState>>,
    record: Arc<SlotRecord>,
    adopts: bool,
    mut opener: Opener,
) -> Result<Opened> {
    let mut first = opener(expected(&record, adopts));
    let (attempt, reason) = match timeout(START_WAIT_MAX, &mut first).await {
        Ok(Ok(occupant)) if is_broken(&*occupant.store, &record) => {
            let reason = "it is not as it was left, which is put right first".to_owned();
            (ready(Ok(occupant)).boxed(), reason)
        }
        Ok(Ok(occupant)) => {
            let store = occupant.store.clone();
            note(&*store, &record).await?;
            reachable(&*store, attach_state.as_ref());
            // What is this node's alone needs no state of attachment.
            let attach_state = attach_state.filter(|_| !store.attach_states().is_empty());
            let records = occupant.records.clone();
            let state = State::Open { store, records, broken_at: None };
            let slot = Slot::new(name, clock.clone(), attach_state, record, state);
            slot.hold(|shared| shared.keep(First::Open(occupant), opener));
            return Ok(Opened { slot, is_late: false });
        }
        Ok(Err(refusal)) => {
            let reason = refusal.reason.to_string();
            (ready(Err(refusal)).boxed(), reason)
        }
        Err(_) => {
            let waited = START_WAIT_MAX.as_secs();
            (first, format!("it could not be opened within {waited} s, and is waited for"))
        }
    };
    let state = State::Waiting(reason.into());
    let slot = Slot::new(name, clock.clone(), attach_state, record, state);
    slot.hold(|shared| shared.keep(First::Attempt(attempt, adopts), opener));
    Ok(Opened { slot, is_late: true })
}

/// What a slot begins with.
pub(super) enum First {
    /// A store that is open and looked at.
    Open(Occupant),
    /// An attempt that goes on, and whether any store will do.
    Attempt(Attempt, bool),
}

/// The store that the next attempt must find.
fn expected(record: &SlotRecord, adopts: bool) -> Expected {
    let incarnation = Some(record.get().incarnation).filter(|known| *known != 0);
    Expected { incarnation, adopts }
}

/// Whether others wrote a store that this node owns, while the node went on without it.
fn has_others_writes(store: &dyn Store, clock: &SharedClock) -> bool {
    let newest = store.head().newest;
    let begun = clock.begun().filter(|begun| store.attach_states().is_empty() && newest > *begun);
    if let Some(begun) = begun {
        tracing::warn!(
            store = %store.name(), begun, newest,
            "others wrote the store while this node went on without it: clients list afresh"
        );
    }
    begun.is_some()
}

/// Whether a store that this node owns is not as the slot's record says it was left.
fn is_broken(store: &dyn Store, record: &SlotRecord) -> bool {
    if !store.attach_states().is_empty() {
        // A child is looked at whenever it is attached.
        return false;
    }
    let (head, known) = (store.head(), record.get());
    let name = store.name();
    if known.incarnation != 0 && known.incarnation != head.incarnation {
        tracing::warn!(
            store = %name, before = format!("{:x}", known.incarnation), now = format!("{:x}", head.incarnation),
            "another store than before is adopted: clients list afresh"
        );
        return true;
    }
    // Where it is known how far it had come, that says whether anything is lost.
    let is_suspect = head.is_suspect && known.newest == 0 && head.newest > 0;
    let held = known.newest.max(head.witnessed).max(if is_suspect { head.newest + 1 } else { 0 });
    if head.newest < held {
        tracing::error!(
            store = %name, held, newest = head.newest,
            "the store went back: what it did between these revisions is lost; clients list afresh"
        );
        return true;
    }
    false
}

/// Notes which store the slot holds, and how far that has come.
async fn note(store: &dyn Store, record: &SlotRecord) -> Result<()> {
    if !store.attach_states().is_empty() {
        return Ok(());
    }
    let head = store.head();
    let noted = record.update(|slot| {
        slot.incarnation = head.incarnation;
        slot.newest = slot.newest.max(head.newest);
    });
    noted.await
}

/// Ends what was shown of a store from before: nothing below a revision above all of it can be read or
/// followed any more, and nothing is allocated there. `record` is that of the store's slot; the default
/// store has none. Returns that revision.
///
/// # Errors
/// Those of the store and of the default store.
pub async fn break_off(
    store: &dyn Store,
    record: Option<&SlotRecord>,
    clock: &SharedClock,
) -> Result<Revision> {
    let head = store.head();
    // Whoever has got as far as that goes on behind it, which must be refused too.
    let floor = clock.now().max(head.newest).max(head.witnessed) + 2;
    let advanced = clock.advance_to(floor).await;
    advanced.map_err(|full| StoreError::Unavailable {
        store: store.name().clone(),
        reason: full.to_string().into(),
    })?;
    store.compact(floor, false).await?;
    tracing::warn!(store = %store.name(), revision = floor, "what was before this revision is refused as compacted");
    let Some(record) = record else { return Ok(floor) };
    let noted = record.update(|slot| {
        slot.incarnation = head.incarnation;
        slot.newest = floor;
    });
    noted.await?;
    Ok(floor)
}

/// Says that a store is there, but for one that says so itself.
fn reachable(store: &dyn Store, attach_state: Option<&Arc<AttachState>>) {
    if let Some(attach_state) = attach_state.filter(|_| store.attach_states().is_empty()) {
        attach_state.set_reachable(true);
    }
}

// === impl Occupant ===

impl Occupant {
    /// A store that this node owns, until another takes it.
    pub fn owned(store: Arc<dyn RecordStore>) -> Self {
        Self { fenced: store.fenced(), records: Some(store.clone()), store }
    }

    /// A store that has no owner.
    pub fn child(store: Arc<dyn Store>) -> Self {
        Self { store, records: None, fenced: pending().boxed() }
    }
}

impl std::fmt::Debug for Occupant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Occupant").field("store", &self.store).finish_non_exhaustive()
    }
}

// === impl Refusal ===

impl Refusal {
    /// A refusal for `reason`.
    pub fn of(may_pass: bool, reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { reason: reason.into(), may_pass }
    }
}

// === impl Shared ===

impl Shared {
    /// Has a store in the slot for as long as the node runs: opens it, and opens it anew where another node
    /// took it.
    pub(super) async fn keep(self: Arc<Self>, first: First, mut opener: Opener) {
        let mut occupant = match first {
            First::Open(occupant) => occupant,
            First::Attempt(attempt, adopts) => self.open(attempt, &mut opener, adopts, None).await,
        };
        loop {
            occupant.fenced.await;
            let closed = occupant.store.announce_closed();
            tracing::warn!(
                store = %self.name, closed,
                "another node has taken the store: nothing is closed for it until this node has it again"
            );
            let reason = "another node has taken it".into();
            self.enter(State::Fenced { reason, closed });
            if let Some(attach_state) = &self.attach_state {
                attach_state.set_reachable(false);
            }
            occupant.store.close().await;
            drop((occupant.store, occupant.records));
            // The store that it had: whoever adopted another one meant that.
            let again = opener(expected(&self.record, false));
            occupant = self.open(again, &mut opener, false, Some(closed)).await;
        }
    }

    /// Opens the store. Ends when that is done. `fenced_at` is what was closed when another node took it.
    async fn open(
        &self,
        mut attempt: Attempt,
        opener: &mut Opener,
        adopts: bool,
        fenced_at: Option<Revision>,
    ) -> Occupant {
        let mut pause = PAUSE_MIN;
        let mut logged = HashSet::new();
        loop {
            let refusal = match attempt.await {
                Ok(occupant) => match self.admit(&occupant.store, fenced_at.is_some()).await {
                    Ok(broken_at) => {
                        tracing::info!(store = %self.name, "the store is open");
                        let (store, records) = (occupant.store.clone(), occupant.records.clone());
                        reachable(&*store, self.attach_state.as_ref());
                        self.enter(State::Open { store, records, broken_at });
                        return occupant;
                    }
                    Err(error) => {
                        occupant.store.close().await;
                        Refusal { reason: error.into(), may_pass: true }
                    }
                },
                Err(refusal) => refusal,
            };
            let reason: Arc<str> = refusal.reason.to_string().into();
            if logged.len() == REASONS_MAX {
                logged.clear();
            }
            if logged.insert(reason.clone()) {
                tracing::warn!(store = %self.name, %reason, "the store can't be opened yet");
            }
            self.enter(match fenced_at {
                Some(closed) => State::Fenced { reason, closed },
                None => State::Waiting(reason),
            });
            // What needs an operator is tried seldom, and all the same: he may have been there.
            tokio::time::sleep(if refusal.may_pass { pause } else { PAUSE_MAX }).await;
            pause = (pause * 2).min(PAUSE_MAX);
            attempt = opener(expected(&self.record, adopts));
        }
    }

    /// Makes sure that what the store has breaks no promise, before anyone reads it. Returns where it was
    /// broken off.
    async fn admit(&self, store: &Arc<dyn Store>, was_fenced: bool) -> Result<Option<Revision>> {
        if self.attach_state.is_none() && !store.attach_states().is_empty() {
            let (store, reason) = (self.name.clone(), IS_A_NODE_NOW.into());
            return Err(StoreError::Unavailable { store, reason });
        }
        let is_broken = is_broken(&**store, &self.record);
        if !is_broken && !was_fenced && !has_others_writes(&**store, &self.clock) {
            note(&**store, &self.record).await?;
            return Ok(None);
        }
        // Until then it is not known what is shown.
        self.clock.has_begun().await;
        break_off(&**store, Some(&self.record), &self.clock).await.map(Some)
    }
}

const IS_A_NODE_NOW: &str = "it was an etcd, and another node answers there now; start this node anew if that \
     is meant";

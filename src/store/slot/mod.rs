//! A store that could not be opened when its node started, and what stands in for it until it can be.
//!
//! ```text
//!   open ──> there in time, as it was left ──────> the store itself
//!        ──> refused, or silent ───────────> Slot ─> tried again and again, until it is the store
//!        ──> not as it was left ───────────> Slot ─> broken off first
//! ```
//!
//! Until then its keys are refused at once with the reason, and all that spans stores goes on: nobody
//! but this node writes to a store that it owns, and the clock begins above all that the store can hold.
//! So whatever the clock has shown since is closed here, and empty. A store that holds more than the node
//! began with, less than it held, or is another, breaks what was promised: nothing from before a revision
//! above all that was shown can be read or followed any more.
//!
//! What is below the beginning only the store knows: a tail that starts there waits for it.
//!
//! A store that others write too, or of which it is not known whether they do, has a state of attachment.
//! Nothing is closed for it: its tails wait, and who merges them goes on without it as for any that is away.

mod record;

use std::{
    collections::{BTreeSet, HashSet},
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, ready},
    stream,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;

pub use self::record::SlotRecord;
use super::{
    Coverage, Described, Head, LogBatch, Page, Query, Size, Store, Tail, Written,
    attach::AttachState,
    journal::{Journal, Log},
};
use crate::{
    clock::SharedClock,
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
};

/// How long a start waits for a store that does not say whether it can be opened.
const START_WAIT_MAX: Duration = Duration::from_secs(5);

/// The pauses between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The reasons that are remembered, so that each is logged once. They may hold what changes each time.
const REASONS_MAX: usize = 16;

/// Opens a store, as often as it takes.
pub type Opener = Box<dyn FnMut() -> Attempt + Send>;

/// One attempt, which must end in bounded time.
pub type Attempt = BoxFuture<'static, Result<Arc<dyn Store>, Refusal>>;

/// Why a store could not be opened.
#[derive(Debug)]
pub struct Refusal {
    /// What happened, without secrets.
    pub reason: Box<dyn Error + Send + Sync>,
    /// Whether it may be another thing later, with no change here.
    pub may_pass: bool,
}

// === impl Refusal ===

impl Refusal {
    /// A refusal for `reason`.
    pub fn of(may_pass: bool, reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { reason: reason.into(), may_pass }
    }
}

/// A store, or what stands in for it.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Whether it is not there yet.
    pub is_late: bool,
}

/// A store that is not there yet; see the module.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    opening: Mutex<Option<AbortOnDropHandle<()>>>,
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
}

#[derive(Clone, Debug)]
enum State {
    /// Why it is not there.
    Waiting(Arc<str>),
    /// It is there, and stays.
    Open {
        store: Arc<dyn Store>,
        /// What was before this revision was broken off, with all that was promised meanwhile.
        broken_at: Option<Revision>,
    },
}

/// Opens the store of the slot `record`, or has it opened later: what is in the way of a route's store is
/// its own trouble, whatever it is.
///
/// # Errors
/// Those of the default store.
pub async fn open(
    name: &str,
    clock: &SharedClock,
    attach_state: Option<Arc<AttachState>>,
    record: Arc<SlotRecord>,
    mut opener: Opener,
) -> Result<Opened> {
    let mut first = opener();
    let (attempt, reason) = match timeout(START_WAIT_MAX, &mut first).await {
        Ok(Ok(store)) => {
            if !is_broken(&*store, &record) {
                note(&*store, &record).await?;
                let store = reachable(store, attach_state.as_ref());
                return Ok(Opened { store, is_late: false });
            }
            (
                ready(Ok(store)).boxed(),
                "it is not as it was left, which is put right first".to_owned(),
            )
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
    let store = Slot::new(name, clock.clone(), attach_state, record, reason, attempt, opener);
    Ok(Opened { store, is_late: true })
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
    let held = known.newest.max(head.witnessed);
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
    let floor = clock.now().max(head.newest).max(head.witnessed) + 1;
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

// === impl Slot ===

impl Slot {
    /// The stand-in for a store that `attempt`, or an attempt after it, opens.
    fn new(
        name: &str,
        clock: SharedClock,
        attach_state: Option<Arc<AttachState>>,
        record: Arc<SlotRecord>,
        reason: String,
        attempt: Attempt,
        opener: Opener,
    ) -> Arc<Self> {
        let journal = Journal::new(name, clock.clone(), clock.add_store(), 0);
        let shared = Arc::new(Shared {
            name: name.into(),
            clock,
            journal: Arc::new(journal),
            attach_state,
            record,
            state: watch::Sender::new(State::Waiting(reason.into())),
        });
        let opening = AbortOnDropHandle::new(tokio::spawn(shared.clone().open(attempt, opener)));
        Arc::new(Self { shared, opening: Mutex::new(Some(opening)) })
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

    async fn end_lease(&self, lease: LeaseId) -> Result<Revision> {
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
        let begun = self.shared.clock.begun().filter(|_| self.shared.attach_state.is_none());
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
        self.shared.store().map_or(closed, |store| store.announce_closed())
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

    async fn close(&self) {
        let opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(opening) = opening {
            opening.abort();
            // Either it was aborted or it had ended.
            let _ = opening.await;
        }
        match self.shared.store() {
            Ok(store) => store.close().await,
            Err(_) => {
                let stopping = State::Waiting("this node is stopping".into());
                drop(self.shared.state.send_replace(stopping));
            }
        }
    }

    async fn describe(&self) -> Vec<Described> {
        match self.shared.store() {
            Ok(store) => store.describe().await,
            Err(error) => {
                let (name, trouble) = (self.shared.name.to_string(), error.to_string());
                vec![Described { name, trouble, node: None }]
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

/// Says that a store is there, but for one that says so itself.
fn reachable(store: Arc<dyn Store>, attach_state: Option<&Arc<AttachState>>) -> Arc<dyn Store> {
    match attach_state {
        Some(attach_state) if store.attach_states().is_empty() => {
            attach_state.set_reachable(true);
            store
        }
        _ => store,
    }
}

// === impl Shared ===

impl Shared {
    /// Whether it closes for the store what the clock has shown.
    fn stands_in(&self) -> bool {
        self.attach_state.is_none() && self.clock.begun().is_some()
    }

    /// The store, or why it is not there.
    fn store(&self) -> Result<Arc<dyn Store>> {
        match &*self.state.borrow() {
            State::Open { store, .. } => Ok(store.clone()),
            State::Waiting(reason) => {
                let (store, reason) = (self.name.clone(), reason.clone());
                Err(StoreError::Unavailable { store, reason })
            }
        }
    }

    /// The store, once it is there, and where it was broken off.
    async fn opened(&self) -> (Arc<dyn Store>, Option<Revision>) {
        let mut state = self.state.subscribe();
        loop {
            if let State::Open { store, broken_at } = &*state.borrow_and_update() {
                return (store.clone(), *broken_at);
            }
            // It can't fail: the sender is here.
            let _ = state.changed().await;
        }
    }

    /// Opens the store. Ends when that is done, or can't be done.
    async fn open(self: Arc<Self>, mut attempt: Attempt, mut opener: Opener) {
        let mut pause = PAUSE_MIN;
        let mut said = HashSet::new();
        loop {
            let refusal = match attempt.await {
                Ok(store) => match self.admit(&store).await {
                    Ok(broken_at) => {
                        tracing::info!(store = %self.name, "the store is open");
                        self.state.send_replace(State::Open { store: store.clone(), broken_at });
                        reachable(store, self.attach_state.as_ref());
                        return;
                    }
                    Err(error) => {
                        store.close().await;
                        Refusal { reason: error.into(), may_pass: true }
                    }
                },
                Err(refusal) => refusal,
            };
            let reason: Arc<str> = refusal.reason.to_string().into();
            if said.len() == REASONS_MAX {
                said.clear();
            }
            if said.insert(reason.clone()) {
                tracing::warn!(store = %self.name, %reason, "the store can't be opened yet");
            }
            self.state.send_replace(State::Waiting(reason));
            // What needs an operator is tried seldom, and all the same: he may have been there.
            tokio::time::sleep(if refusal.may_pass { pause } else { PAUSE_MAX }).await;
            pause = (pause * 2).min(PAUSE_MAX);
            attempt = opener();
        }
    }

    /// Makes sure that what the store has breaks no promise, before anyone reads it. Returns where it was
    /// broken off.
    async fn admit(&self, store: &Arc<dyn Store>) -> Result<Option<Revision>> {
        if !is_broken(&**store, &self.record) && !has_others_writes(&**store, &self.clock) {
            note(&**store, &self.record).await?;
            return Ok(None);
        }
        // Until then it is not known what is shown.
        self.clock.has_begun().await;
        break_off(&**store, Some(&self.record), &self.clock).await.map(Some)
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
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        clock::{Clock, Lane, REVISION_MAX},
        model::txn::{Op, PutOp, Txn},
        store::{
            memory::{Kept, Memory},
            records::Records,
        },
    };

    /// What opens `store` once it may, and is in its way until then.
    struct Gate {
        is_open: watch::Sender<bool>,
        clock: SharedClock,
        late: Arc<dyn Store>,
        /// Another store of the node.
        other: Arc<Memory>,
    }

    impl Gate {
        /// A node that begins while `store` is late.
        async fn before(store: Arc<Memory>, clock: SharedClock) -> Self {
            let is_open = watch::Sender::new(false);
            let passing = is_open.subscribe();
            let opener: Opener = Box::new(move || {
                let is_open = *passing.borrow();
                let store: Arc<dyn Store> = store.clone();
                Box::pin(async move { if is_open { Ok(store) } else { Err(refusal(true)) } })
            });
            let other = Memory::new("other", clock.clone());
            let opened = opened("pods", &clock, opener).await;
            assert!(opened.is_late);
            clock.begin();
            Self { is_open, clock, late: opened.store, other }
        }

        async fn let_open(&self) {
            self.is_open.send_replace(true);
            while self.late.count(&Query::new(KeyRange::all(), 1)).await.is_err() {
                tokio::time::advance(PAUSE_MIN).await;
            }
        }
    }

    /// A slot whose record lies in a default store of its own.
    async fn opened(name: &str, clock: &SharedClock, opener: Opener) -> Opened {
        let kept =
            Memory::new("kept", SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL)));
        let records = Records::open(kept).await.expect("memory answers");
        let record = SlotRecord::open(&records, name, 1).await.expect("memory answers");
        open(name, clock, None, Arc::new(record), opener).await.expect("memory answers")
    }

    fn refusal(may_pass: bool) -> Refusal {
        Refusal { reason: "nobody is there".into(), may_pass }
    }

    fn clock() -> SharedClock {
        SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL))
    }

    async fn put(store: &dyn Store, key: &'static str) -> Result<Revision> {
        let put = PutOp {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(b"value"),
            lease: 0,
            prev_kv: false,
            keep_value: false,
            keep_lease: false,
        };
        let txn = Txn { success: vec![Op::Put(put)], ..Txn::default() };
        Ok(store.apply(txn, Vec::new()).await?.revision)
    }

    /// The revisions of what a tail says until it has closed `through`.
    async fn follow(tail: &mut Tail, through: Revision) -> Vec<Revision> {
        let mut revisions = Vec::new();
        while let Some(batch) = tail.next().await {
            let batch = batch.expect("nothing is compacted");
            revisions.extend(batch.commits.iter().map(|commit| commit.revision));
            if batch.closed >= through {
                break;
            }
        }
        revisions
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_refused_with_the_reason_until_the_store_is_there() {
        let clock = clock();
        let gate = Gate::before(Memory::new("pods", clock.clone()), clock).await;
        tokio::task::yield_now().await;
        let late = &*gate.late;
        let all = Query::new(KeyRange::all(), 1);
        let refused = [
            put(late, "a").await.expect_err("it is not there"),
            late.read(&all).await.expect_err("it is not there"),
            late.count(&all).await.expect_err("it is not there"),
            late.compact(1, true).await.expect_err("it is not there"),
            late.end_lease(7).await.expect_err("it is not there"),
        ];
        for error in refused {
            assert_eq!(error.to_string(), "store `pods` is unavailable: nobody is there");
        }
        assert_eq!(late.size().await.expect("it is known"), Size::default());
        assert_eq!(late.compacted(), -1);
        gate.let_open().await;
        assert_eq!(put(late, "a").await.expect("it is there"), 2);
        assert_eq!(late.count(&Query { revision: 2, ..all }).await.expect("it is there"), 1);
        late.compact(2, true).await.expect("it is there");
        assert_eq!(late.compacted(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_write_is_closed_and_a_tail_goes_on_in_the_store_without_a_gap() {
        let clock = clock();
        let gate = Gate::before(Memory::new("pods", clock.clone()), clock).await;
        let mut tail = gate.late.tail(1);
        for revision in 2..5 {
            assert_eq!(put(&*gate.other, "b").await.expect("it is there"), revision);
            assert_eq!(gate.late.announce_closed(), revision);
            assert_eq!(
                gate.late.advance_closed(revision, 0).await.expect("it can be closed"),
                revision
            );
            assert!(follow(&mut tail, revision).await.is_empty());
        }
        // Closed by the stand-in, and not yet told, when the store opens and has commits above.
        put(&*gate.other, "b").await.expect("it is there");
        gate.let_open().await;
        assert_eq!(put(&*gate.late, "a").await.expect("it is there"), 6);
        put(&*gate.other, "b").await.expect("it is there");
        assert_eq!(put(&*gate.late, "a").await.expect("it is there"), 8);
        assert_eq!(gate.late.advance_closed(8, 0).await.expect("it can be closed"), 8);
        assert_eq!(follow(&mut tail, 8).await, [6, 8]);
        assert_eq!(gate.clock.shown(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tail_from_before_the_beginning_waits_for_what_the_store_has_there() {
        let clock = clock();
        let store = Memory::new("pods", clock.clone());
        put(&*store, "a").await.expect("it is there");
        put(&*store, "a").await.expect("it is there");
        let gate = Gate::before(store, clock).await;
        let mut tail = gate.late.tail(2);
        put(&*gate.other, "b").await.expect("it is there");
        gate.late.advance_closed(4, 0).await.expect("it can be closed");
        let early = timeout(PAUSE_MAX, tail.next()).await;
        assert!(early.is_err(), "it said {early:?} without the store");
        gate.let_open().await;
        put(&*gate.late, "a").await.expect("it is there");
        assert_eq!(follow(&mut tail, 5).await, [3, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_silent_is_late_and_its_first_attempt_goes_on() {
        let clock = clock();
        let (attempt, mut attempts) = tokio::sync::mpsc::channel(1);
        let opener: Opener = Box::new(move || {
            let (answer, answered) = tokio::sync::oneshot::channel();
            assert!(attempt.try_send(answer).is_ok(), "another attempt while the first goes on");
            Box::pin(async move { answered.await.expect("the test answers") })
        });
        let opened = opened("pods", &clock, opener).await;
        assert!(opened.is_late);
        let error = put(&*opened.store, "a").await.expect_err("it is not there").to_string();
        assert!(error.contains("could not be opened within"), "{error}");
        let answer = attempts.recv().await.expect("there was an attempt");
        let store: Arc<dyn Store> = Memory::new("pods", clock);
        assert!(answer.send(Ok(store)).is_ok(), "the first attempt was given up");
        while put(&*opened.store, "a").await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_needs_an_operator_is_tried_again_too() {
        let clock = clock();
        let store = Memory::new("pods", clock.clone());
        let mut attempts = 0;
        let opener: Opener = Box::new(move || {
            attempts += 1;
            let store: Arc<dyn Store> = store.clone();
            let attempt = if attempts < 3 { Err(refusal(false)) } else { Ok(store) };
            ready(attempt).boxed()
        });
        let opened = opened("pods", &clock, opener).await;
        assert!(opened.is_late);
        clock.begin();
        tokio::task::yield_now().await;
        let error = put(&*opened.store, "a").await.expect_err("it is not there").to_string();
        assert!(error.contains("nobody is there"), "{error}");
        while put(&*opened.store, "a").await.is_err() {
            tokio::time::advance(PAUSE_MIN).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_others_wrote_meanwhile_ends_what_was_shown_and_goes_on() {
        let clock = clock();
        let main = Memory::new("main", clock.clone());
        let kept = Kept::default();
        let theirs = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let other = Memory::reopen("pods", theirs, kept.clone()).expect("it is fresh");
        for _ in 0..9 {
            put(&*other, "a").await.expect("it is there");
        }
        let (gate, mut passing) = watch::channel(false);
        let joining = clock.clone();
        let opener: Opener = Box::new(move || {
            let (is_open, clock, kept) =
                (*passing.borrow_and_update(), joining.clone(), kept.clone());
            Box::pin(async move {
                if !is_open {
                    return Err(refusal(true));
                }
                let store = Memory::reopen_apart("pods", clock, kept).await;
                Ok(store.expect("it holds revisions") as Arc<dyn Store>)
            })
        });
        let opened = opened("pods", &clock, opener).await;
        clock.begin();
        let mut tail = opened.store.tail(1);
        assert_eq!(put(&*main, "b").await.expect("it is there"), 2);
        opened.store.advance_closed(2, 0).await.expect("it stands in");
        assert!(follow(&mut tail, 2).await.is_empty());
        gate.send_replace(true);
        while opened.store.size().await.is_ok_and(|size| size == Size::default()) {
            tokio::time::advance(PAUSE_MIN).await;
        }
        let ended =
            tail.next().await.expect("it ends with an error").expect_err("it lacks something");
        let StoreError::Compacted { compacted } = ended else { panic!("{ended}") };
        let written = put(&*opened.store, "a").await.expect("it is there");
        assert!(compacted > 10 && written > compacted, "{written} and {compacted}");
        assert!(opened.store.read(&Query::new(KeyRange::all(), 10)).await.is_err());
    }
}

//! A store that could not be opened when its node started, and what stands in for it until it can be.
//!
//! ```text
//!   open ──> there in time ──────────────────────> the store itself
//!        ──> refused for good ───────────────────> an error: the node does not start
//!        ──> refused for now, or silent ─> Late ─> tried again and again, until it is the store
//! ```
//!
//! Until then its keys are refused at once with the reason, and all that spans stores goes on: nobody
//! but this node writes to a store that it owns, and the clock begins above all that the store can hold.
//! So whatever the clock has shown since is closed here, and empty. What was promised holds when the
//! store is open: one that holds more than the node began with does not join the clock.
//!
//! What is below the beginning only the store knows: a tail that starts there waits for it.
//!
//! A store that others write too, or of which it is not known whether they do, has a presence. Nothing is
//! closed for it: its tails wait, and who merges them goes on without it as for any that is away.

use std::{collections::HashSet, error::Error, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, ready},
    stream,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Batch, Described, Page, Read, Size, Store, Tail, Whose, Write, Written,
    journal::{Journal, Log},
    presence::Presence,
};
use crate::{
    clock::SharedClock,
    model::{KeyRange, Revision, StoreError, error::Result},
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
pub struct Late {
    shared: Arc<Shared>,
    _opening: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    clock: SharedClock,
    /// What is closed, and who waits for it. It never has a commit.
    journal: Arc<Journal>,
    /// There where nothing may be closed for it.
    presence: Option<Arc<Presence>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Debug)]
enum State {
    /// Why it is not there.
    Waiting(Arc<str>),
    /// It is there, and stays.
    Open(Arc<dyn Store>),
}

/// Opens the store of this name, or has it opened later where what is in the way may pass.
///
/// # Errors
/// What does not pass by itself.
pub async fn open(
    name: &str,
    clock: &SharedClock,
    presence: Option<Arc<Presence>>,
    mut opener: Opener,
) -> Result<Opened, Box<dyn Error + Send + Sync>> {
    let mut first = opener();
    let attempt = match timeout(START_WAIT_MAX, &mut first).await {
        Ok(Ok(store)) => {
            return Ok(Opened { store: present(store, presence.as_ref()), is_late: false });
        }
        Ok(Err(refusal)) if !refusal.may_pass => return Err(refusal.reason),
        Ok(Err(refusal)) => ready(Err(refusal)).boxed(),
        Err(_) => first,
    };
    let store = Late::new(name, clock.clone(), presence, attempt, opener);
    Ok(Opened { store, is_late: true })
}

// === impl Late ===

impl Late {
    /// The stand-in for a store that `attempt`, or an attempt after it, opens.
    fn new(
        name: &str,
        clock: SharedClock,
        presence: Option<Arc<Presence>>,
        attempt: Attempt,
        opener: Opener,
    ) -> Arc<Self> {
        let waited = START_WAIT_MAX.as_secs();
        let silent = format!("it could not be opened within {waited} s, and is waited for");
        let journal = Journal::new(name, clock.clone(), clock.add_store(), 0);
        let shared = Arc::new(Shared {
            name: name.into(),
            clock,
            journal: Arc::new(journal),
            presence,
            state: watch::Sender::new(State::Waiting(silent.into())),
        });
        let opening = AbortOnDropHandle::new(tokio::spawn(shared.clone().open(attempt, opener)));
        Arc::new(Self { shared, _opening: opening })
    }
}

#[async_trait]
impl Store for Late {
    async fn apply(&self, write: Write) -> Result<Written> {
        self.shared.store()?.apply(write).await
    }

    async fn read(&self, read: &Read) -> Result<Page> {
        self.shared.store()?.read(read).await
    }

    async fn count(&self, range: &KeyRange, revision: Revision) -> Result<u64> {
        self.shared.store()?.count(range, revision).await
    }

    fn tail(&self, after: Revision) -> Tail {
        if let Ok(store) = self.shared.store() {
            return store.tail(after);
        }
        let begun = self.shared.clock.begun().filter(|_| self.shared.presence.is_none());
        let is_above = begun.is_some_and(|begun| after >= begun);
        let source = if is_above {
            Source::StandIn(self.shared.journal.clone().tail(after, Arc::new(Empty)))
        } else {
            Source::Awaited
        };
        let cursor = Cursor { shared: self.shared.clone(), after, source };
        stream::try_unfold(cursor, |mut cursor| async move {
            let batch = cursor.next().await?;
            Ok(batch.map(|batch| (batch, cursor)))
        })
        .boxed()
    }

    fn closed(&self) -> Revision {
        // First what holds while the store is not open, then whether it still is not.
        let closed = match (self.shared.clock.begun(), &self.shared.presence) {
            (None, _) => 0,
            (Some(begun), Some(_)) => begun,
            (Some(_), None) => self.shared.journal.closed(),
        };
        self.shared.store().map_or(closed, |store| store.closed())
    }

    async fn sync(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        let store = match self.shared.store() {
            Err(error) if !self.shared.stands_in() => return Err(error),
            Err(_) => {
                let closed = self.shared.journal.sync(revision, ahead).await?;
                match self.shared.store() {
                    Err(_) => return Ok(closed),
                    Ok(store) => store,
                }
            }
            Ok(store) => store,
        };
        store.sync(revision, ahead).await
    }

    async fn present(&self, range: &KeyRange, whose: Whose) -> Result<Revision> {
        self.shared.store()?.present(range, whose).await
    }

    fn is_here(&self, after: Revision) -> bool {
        self.shared.store().is_ok_and(|store| store.is_here(after))
    }

    fn presence(&self) -> Option<&Arc<Presence>> {
        self.shared.presence.as_ref()
    }

    /// Taken to have some until it is there.
    fn has_other_writers(&self) -> bool {
        self.shared.store().map_or(true, |store| store.has_other_writers())
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

    async fn remember(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        self.shared.store()?.remember(name, value).await
    }

    async fn recall(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.shared.store()?.recall(prefix).await
    }

    async fn size(&self) -> Result<Size> {
        match self.shared.store() {
            Ok(store) => store.size().await,
            Err(_) => Ok(Size::default()),
        }
    }

    fn narrow(self: Arc<Self>, _range: &KeyRange) -> Arc<dyn Store> {
        self
    }

    fn name(&self) -> &Arc<str> {
        &self.shared.name
    }
}

/// Says that a store is there, but for one that says so itself.
fn present(store: Arc<dyn Store>, presence: Option<&Arc<Presence>>) -> Arc<dyn Store> {
    match presence {
        Some(presence) if store.presence().is_none() => {
            presence.set_there(true);
            store
        }
        _ => store,
    }
}

// === impl Shared ===

impl Shared {
    /// Whether it closes for the store what the clock has shown.
    fn stands_in(&self) -> bool {
        self.presence.is_none() && self.clock.begun().is_some()
    }

    /// The store, or why it is not there.
    fn store(&self) -> Result<Arc<dyn Store>> {
        match &*self.state.borrow() {
            State::Open(store) => Ok(store.clone()),
            State::Waiting(reason) => {
                let (store, reason) = (self.name.clone(), reason.clone());
                Err(StoreError::Unavailable { store, reason })
            }
        }
    }

    /// The store, once it is there.
    async fn opened(&self) -> Arc<dyn Store> {
        let mut state = self.state.subscribe();
        loop {
            if let State::Open(store) = &*state.borrow_and_update() {
                return store.clone();
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
                Ok(store) => {
                    tracing::info!(store = %self.name, "the store is open");
                    self.state.send_replace(State::Open(store.clone()));
                    present(store, self.presence.as_ref());
                    return;
                }
                Err(refusal) => refusal,
            };
            let reason: Arc<str> = refusal.reason.to_string().into();
            if !refusal.may_pass {
                let error = format!("{reason}; once that is put right, start this node again");
                tracing::error!(store = %self.name, %error, "the store can't be opened");
                self.state.send_replace(State::Waiting(error.into()));
                return;
            }
            if said.len() == REASONS_MAX {
                said.clear();
            }
            if said.insert(reason.clone()) {
                tracing::warn!(store = %self.name, %reason, "the store can't be opened yet");
            }
            self.state.send_replace(State::Waiting(reason));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            attempt = opener();
        }
    }
}

/// A tail that goes on in the store once that is there.
struct Cursor {
    shared: Arc<Shared>,
    after: Revision,
    source: Source,
}

enum Source {
    /// Only the store knows what comes next.
    Awaited,
    /// Nothing comes but what is closed.
    StandIn(Tail),
    Store(Tail),
}

// === impl Cursor ===

impl Cursor {
    async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            let batch = match &mut self.source {
                Source::Store(tail) => return tail.next().await.transpose(),
                Source::Awaited => None,
                Source::StandIn(tail) => tokio::select! {
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
            let store = self.shared.opened().await;
            self.source = Source::Store(store.tail(self.after));
        }
    }
}

/// The log of the stand-in.
#[derive(Debug)]
struct Empty;

#[async_trait]
impl Log for Empty {
    async fn page(&self, _after: Revision, through: Revision) -> Result<Batch> {
        Ok(Batch::new(Vec::new(), through))
    }

    fn compacted(&self) -> Revision {
        -1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, Lane, REVISION_MAX},
        model::txn::{Op, PutOp, Txn},
        store::memory::Memory,
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
            let opened = open("pods", &clock, None, opener).await.expect("it is waited for");
            assert!(opened.is_late);
            clock.begin();
            Self { is_open, clock, late: opened.store, other }
        }

        async fn let_open(&self) {
            self.is_open.send_replace(true);
            while self.late.recall("").await.is_err() {
                tokio::time::advance(PAUSE_MIN).await;
            }
        }
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
        Ok(store.apply(Write::Txn { txn, dead_leases: Vec::new() }).await?.revision)
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
        let all = Read::new(KeyRange::all(), 1);
        let refused = [
            put(late, "a").await.expect_err("it is not there"),
            late.read(&all).await.expect_err("it is not there"),
            late.count(&all.range, 1).await.expect_err("it is not there"),
            late.compact(1, true).await.expect_err("it is not there"),
            late.remember("a", None).await.expect_err("it is not there"),
            late.recall("a").await.expect_err("it is not there"),
        ];
        for error in refused {
            assert_eq!(error.to_string(), "store `pods` is unavailable: nobody is there");
        }
        assert_eq!(late.size().await.expect("it is known"), Size::default());
        assert_eq!(late.compacted(), -1);
        gate.let_open().await;
        assert_eq!(put(late, "a").await.expect("it is there"), 2);
        assert_eq!(late.count(&all.range, 2).await.expect("it is there"), 1);
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
            assert_eq!(gate.late.closed(), revision);
            assert_eq!(gate.late.sync(revision, 0).await.expect("it can be closed"), revision);
            assert!(follow(&mut tail, revision).await.is_empty());
        }
        // Closed by the stand-in, and not yet told, when the store opens and has commits above.
        put(&*gate.other, "b").await.expect("it is there");
        gate.let_open().await;
        assert_eq!(put(&*gate.late, "a").await.expect("it is there"), 6);
        put(&*gate.other, "b").await.expect("it is there");
        assert_eq!(put(&*gate.late, "a").await.expect("it is there"), 8);
        assert_eq!(gate.late.sync(8, 0).await.expect("it can be closed"), 8);
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
        gate.late.sync(4, 0).await.expect("it can be closed");
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
        let opened = open("pods", &clock, None, opener).await.expect("it is waited for");
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
    async fn what_does_not_pass_ends_the_start_and_later_ends_the_attempts() {
        let clock = clock();
        let error =
            open("pods", &clock, None, Box::new(|| ready(Err(refusal(false))).boxed())).await;
        assert_eq!(error.expect_err("it does not pass").to_string(), "nobody is there");
        // A store that another node wrote meanwhile, as this node's clock can't have it.
        let mut attempts = 0;
        let joining = clock.clone();
        let opener: Opener = Box::new(move || {
            attempts += 1;
            assert!(attempts <= 2, "it was tried again");
            let clock = joining.clone();
            let refused = match attempts {
                1 => refusal(true),
                _ => {
                    let ahead = clock.join(9).expect_err("it holds more than the node began with");
                    Refusal { reason: Box::new(ahead), may_pass: false }
                }
            };
            ready(Err(refused)).boxed()
        });
        let opened = open("pods", &clock, None, opener).await.expect("it is waited for");
        clock.begin();
        tokio::time::sleep(PAUSE_MAX * 10).await;
        let error = put(&*opened.store, "a").await.expect_err("it is not there").to_string();
        assert!(error.contains("holds revision 9, above 1"), "{error}");
        assert!(error.contains("start this node again"), "{error}");
    }
}

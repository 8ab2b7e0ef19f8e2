//! Whether a store that has a life of its own is there, and what was given out without it.
//!
//! ```text
//!            away for the grace            back                    closed up to all that was said
//!   Attached ──────────────────> Detached ──────────> Returning ──────────────────────> Attached
//!            noted in the default store                           floor noted, clock moved up to it
//! ```
//!
//! Merged watches wait for an attached store, and pass over a detached one. Whoever was told of a
//! revision without the store may lack what it did meanwhile. So, when it is back with changes there,
//! its open watches are told (as [`super::Late`]), and a watch that comes back later from a revision
//! between where the store was left and the floor is refused as compacted: its client lists afresh. No
//! list can be as low as the floor, so nobody is refused twice.
//!
//! Both are durable in the default store before anyone relies on them: a client may come back after this
//! node has been restarted.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::Store;
use crate::{
    clock::SharedClock,
    model::{Revision, StoreError, error::Result},
};

/// How long merged watches wait for a store that is away.
pub const GRACE: Duration = Duration::from_secs(2);

/// How long merged watches wait for a store that is back to close what was said without it.
const RETURN_WITHIN: Duration = Duration::from_secs(2);

const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The gaps that are told apart; older ones are joined.
const GAPS_MAX: usize = 16;

/// Whether a store is there; see the module.
#[derive(Debug)]
pub struct Presence {
    /// The route's name.
    name: Arc<str>,
    clock: SharedClock,
    /// Keeps what must not be forgotten.
    memory: Arc<dyn Store>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// Held while the record is written.
    writing: tokio::sync::Mutex<()>,
}

/// How a store stands to those who merge its log with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How often it was detached.
    pub absences: u64,
    /// See [`Presence::left_at`].
    pub left: Option<Revision>,
}

#[derive(Debug)]
struct State {
    is_there: bool,
    phase: Phase,
    absences: u64,
    /// The greatest revision that was said without the store.
    said: Revision,
    gaps: Vec<Gap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Attached,
    /// With where the store was left.
    Detached(Revision),
    Returning(Revision),
}

/// Who was told of a revision above `after` and below `floor` may lack changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    after: Revision,
    floor: Revision,
}

// === impl Standing ===

impl Standing {
    /// The absences that someone has gone through who `goes_on` without the store, or waits for it. Who has
    /// gone through fewer has slept: what was said without the store meanwhile, by whomever, the gaps tell.
    pub fn gone_through(self, goes_on: bool) -> u64 {
        self.absences - u64::from(self.left.is_some() && !goes_on)
    }
}

// === impl Presence ===

impl Presence {
    /// What `memory` remembers of the store of this name, which is not there yet.
    ///
    /// # Errors
    /// Where it can't be read.
    pub async fn recall(
        name: &str,
        memory: Arc<dyn Store>,
        clock: SharedClock,
    ) -> Result<Arc<Self>> {
        let record = record(name);
        let found = memory.recall(&record).await?.into_iter().find(|(name, _)| *name == record);
        let (left, gaps) = found.map(|(_, bytes)| decode(&bytes)).unwrap_or_default();
        let phase = left.map_or(Phase::Attached, Phase::Detached);
        let absences = u64::from(left.is_some());
        let state = Mutex::new(State { is_there: false, phase, absences, said: 0, gaps });
        let (changed, writing) = (watch::Sender::new(()), tokio::sync::Mutex::default());
        Ok(Arc::new(Self { name: name.into(), clock, memory, state, changed, writing }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it changes what is behind the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store can be reached.
    pub fn is_there(&self) -> bool {
        self.lock().is_there
    }

    /// Says whether the store can be reached.
    pub fn set_there(&self, is_there: bool) {
        self.lock().is_there = is_there;
        self.changed.send_replace(());
    }

    /// Where the store was left by those who go on without it; `None` where it is waited for.
    pub fn left_at(&self) -> Option<Revision> {
        self.lock().phase.left()
    }

    /// How the store stands now.
    pub fn standing(&self) -> Standing {
        let state = self.lock();
        Standing { absences: state.absences, left: state.phase.left() }
    }

    /// Whether all up to `revision` may be said without the store, as it then counts to have been, by who has
    /// gone through so many of its absences, with this one.
    pub fn pass(&self, revision: Revision, absences: u64) -> bool {
        let mut state = self.lock();
        let may_pass = matches!(state.phase, Phase::Detached(_)) && state.absences == absences;
        if may_pass {
            state.said = state.said.max(revision);
        }
        may_pass
    }

    /// See [`Store::check_resumed`].
    ///
    /// # Errors
    /// `Compacted`, with the floor.
    pub fn check_resumed(&self, after: Revision) -> Result<()> {
        let state = self.lock();
        let gap = state.gaps.iter().find(|gap| after > gap.after && after < gap.floor);
        gap.map_or(Ok(()), |gap| Err(StoreError::Compacted { compacted: gap.floor }))
    }

    /// Where the gaps begin that reach above `revision`, at most there, and their greatest floor.
    pub fn gaps_above(&self, revision: Revision) -> (Revision, Revision) {
        let state = self.lock();
        let above = state.gaps.iter().filter(|gap| gap.floor > revision);
        above
            .fold((revision, 0), |(after, floor), gap| (after.min(gap.after), floor.max(gap.floor)))
    }

    /// Notes that someone goes on who knows nothing of the store above `revision`.
    ///
    /// # Errors
    /// Where the store is not detached, or the default store did not keep it.
    pub async fn leave_at(&self, revision: Revision) -> Result<()> {
        let is_earlier = |state: &State| match state.phase {
            Phase::Detached(left) => Some(revision < left),
            Phase::Attached | Phase::Returning(_) => None,
        };
        match is_earlier(&self.lock()) {
            None => return Err(self.unavailable("it is being attached")),
            Some(false) => return Ok(()),
            Some(true) => {}
        }
        self.keep(|state| {
            if is_earlier(state) == Some(true) {
                state.phase = Phase::Detached(revision);
            }
        })
        .await?;
        // It may be on its way back by now, to which this came too late.
        is_earlier(&self.lock()).map(drop).ok_or_else(|| self.unavailable("it is being attached"))
    }

    /// Tells when something is otherwise.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    async fn wait_for(&self, is_so: impl Fn(&State) -> bool) {
        let mut changes = self.changes();
        while !is_so(&self.lock()) {
            // It can't fail: the sender is here.
            let _ = changes.changed().await;
        }
    }

    /// Waits until the store can be reached.
    pub async fn there(&self) {
        self.wait_for(|state| state.is_there).await;
    }

    /// Notes that what was said above `after`, of a store that has said `closed`, was said without changes
    /// that come now, and moves the clock above it. Returns the floor, once it is durable. Who goes on without
    /// the store meanwhile says more without the changes than that: it was left at `after`.
    ///
    /// # Errors
    /// Where the default store did not keep it, and then nothing may be told of the changes.
    pub async fn note_late(&self, after: Revision, closed: Revision) -> Result<Revision> {
        // Above all that a client or a parent can hear of meanwhile.
        let floor = self.clock.now().max(closed) + 1;
        self.clock.take_up(floor).await.map_err(|full| self.unavailable(&full.to_string()))?;
        self.keep(|state| {
            state.add_gap(Gap { after, floor });
            match &mut state.phase {
                Phase::Attached => {}
                Phase::Detached(left) | Phase::Returning(left) => *left = after.min(*left),
            }
        })
        .await?;
        Ok(floor)
    }

    /// Changes what is remembered: durable first, then true.
    async fn keep(&self, change: impl Fn(&mut State)) -> Result<()> {
        let _writing = self.writing.lock().await;
        let mut after = self.lock().copy();
        change(&mut after);
        self.memory.remember(&record(&self.name), Some(after.encode())).await?;
        change(&mut self.lock());
        self.changed.send_replace(());
        Ok(())
    }

    fn unavailable(&self, reason: &str) -> StoreError {
        StoreError::Unavailable { store: self.name.clone(), reason: reason.into() }
    }

    /// Detaches the store of this presence when it is away, and attaches it again, for ever.
    pub async fn keep_watch(self: Arc<Self>, store: Arc<dyn Store>, grace: Duration) {
        loop {
            if self.left_at().is_none() {
                self.wait_for(|state| !state.is_there).await;
                if timeout(grace, self.wait_for(|state| state.is_there)).await.is_ok() {
                    continue;
                }
                // Everyone has got, or can still get, what is closed here.
                let left = store.closed();
                let kept = self.keep(|state| {
                    state.phase = Phase::Detached(left);
                    state.absences += 1;
                });
                let kept = kept.await;
                if let Err(error) = kept {
                    tracing::warn!(store = %self.name, %error, "the store can't be detached");
                    sleep(RETRY_AFTER).await;
                    continue;
                }
                tracing::warn!(store = %self.name, revision = left, "watches go on without the store");
            }
            self.wait_for(|state| state.is_there).await;
            match self.take_back(&*store).await {
                Ok(late) => {
                    tracing::info!(store = %self.name, late, "the store is attached again")
                }
                Err(error) => {
                    tracing::warn!(store = %self.name, %error, "the store can't be attached yet");
                    self.turn_back();
                    sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// Has the store close all that was said without it. Returns whether it has changes there.
    async fn take_back(&self, store: &dyn Store) -> Result<bool> {
        let (left, said) = {
            let mut state = self.lock();
            let Phase::Detached(left) = state.phase else { return Ok(false) };
            state.phase = Phase::Returning(left);
            (left, state.said.max(self.clock.begun().unwrap_or(0)))
        };
        // Merged watches hold still from here on, and the store allocates above what it closes.
        let is_late = timeout(RETURN_WITHIN, async {
            store.sync(said, 0).await?;
            has_changes(store, left, said).await
        });
        let in_time = is_late.await;
        let is_late =
            in_time.unwrap_or_else(|_| Err(self.unavailable("it does not say what it did")))?;
        let floor = said.max(self.clock.now()) + 1;
        if is_late {
            self.clock.take_up(floor).await.map_err(|full| self.unavailable(&full.to_string()))?;
        }
        // Nobody can come back from below where both are compacted.
        let compacted = self.memory.compacted().min(store.compacted());
        self.keep(|state| {
            if state.phase != Phase::Returning(left) {
                return;
            }
            state.phase = Phase::Attached;
            state.said = 0;
            if is_late {
                state.add_gap(Gap { after: left, floor });
            }
            state.forget(compacted);
        })
        .await?;
        match self.left_at() {
            None => Ok(is_late),
            Some(_) => Err(self.unavailable("it said more of what it did before")),
        }
    }

    fn turn_back(&self) {
        {
            let mut state = self.lock();
            if let Phase::Returning(left) = state.phase {
                state.phase = Phase::Detached(left);
            }
        }
        self.changed.send_replace(());
    }
}

// === impl Phase ===

impl Phase {
    fn left(self) -> Option<Revision> {
        match self {
            Self::Attached => None,
            Self::Detached(left) | Self::Returning(left) => Some(left),
        }
    }
}

// === impl State ===

impl State {
    fn copy(&self) -> Self {
        Self {
            is_there: self.is_there,
            phase: self.phase,
            absences: self.absences,
            said: self.said,
            gaps: self.gaps.clone(),
        }
    }

    fn add_gap(&mut self, gap: Gap) {
        self.gaps.push(gap);
        if self.gaps.len() > GAPS_MAX {
            let first = self.gaps.remove(0);
            self.gaps[0].after = self.gaps[0].after.min(first.after);
        }
    }

    /// Forgets the gaps from which nobody can come back any more.
    fn forget(&mut self, compacted: Revision) {
        self.gaps.retain(|gap| gap.floor >= compacted);
    }

    fn encode(&self) -> Bytes {
        let left = self.phase.left();
        let gaps: Vec<Value> = self.gaps.iter().map(|gap| json!([gap.after, gap.floor])).collect();
        json!({ "left": left, "gaps": gaps }).to_string().into()
    }
}

/// Whether a store has changes above `left` and up to `said`. Of what it does not say any more nobody
/// knows better.
async fn has_changes(store: &dyn Store, left: Revision, said: Revision) -> Result<bool> {
    if said <= left {
        return Ok(false);
    }
    let mut tail = store.tail(left);
    while let Some(batch) = tail.next().await {
        let batch = match batch {
            Err(StoreError::Compacted { .. }) => return Ok(true),
            batch => batch?,
        };
        let is_late = !batch.late.commits.is_empty();
        if is_late || batch.commits.iter().any(|commit| commit.revision <= said) {
            return Ok(true);
        }
        if batch.closed >= said {
            break;
        }
    }
    Ok(false)
}

fn record(name: &str) -> String {
    format!("presence/{name}")
}

fn decode(bytes: &[u8]) -> (Option<Revision>, Vec<Gap>) {
    let Ok(record) = serde_json::from_slice::<Value>(bytes) else {
        // Whatever it was: all that was said before may lack something.
        return (Some(0), Vec::new());
    };
    let gaps = record["gaps"].as_array().into_iter().flatten();
    let gaps =
        gaps.filter_map(|gap| Some(Gap { after: gap[0].as_i64()?, floor: gap[1].as_i64()? }));
    (record["left"].as_i64(), gaps.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, Lane, REVISION_MAX},
        model::txn::{Op, PutOp, Txn},
        store::{Write, memory::Memory},
    };

    /// A node's default store, and a store that comes and goes, with a clock of its own.
    struct Bed {
        clock: SharedClock,
        memory: Arc<Memory>,
        presence: Arc<Presence>,
        store: Arc<Memory>,
    }

    fn clock() -> SharedClock {
        SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL))
    }

    async fn put(store: &dyn Store) -> Revision {
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let (prev_kv, keep_value, keep_lease) = (false, false, false);
        let put = PutOp { key, value, lease: 0, prev_kv, keep_value, keep_lease };
        let txn = Txn { success: vec![Op::Put(put)], ..Txn::default() };
        let written = store.apply(Write::Txn { txn, dead_leases: Vec::new() }).await;
        written.expect("memory takes it").revision
    }

    impl Bed {
        /// One whose store is there and has revisions to 5, as has the node.
        async fn new() -> Self {
            let clock = clock();
            let memory = Memory::new("main", clock.clone());
            let store = Memory::new("child", self::clock());
            for _ in 2..=5 {
                put(&*store).await;
            }
            clock.observe(5).expect("there is no limit");
            let presence = Self::recalled(&memory, &clock).await;
            presence.set_there(true);
            tokio::spawn(presence.clone().keep_watch(store.clone(), GRACE));
            Self { clock, memory, presence, store }
        }

        async fn recalled(memory: &Arc<Memory>, clock: &SharedClock) -> Arc<Presence> {
            let recalled = Presence::recall("child", memory.clone(), clock.clone()).await;
            recalled.expect("memory answers")
        }

        /// The store is away for longer than the grace, and all up to `said` is said meanwhile.
        async fn without_it(&self, said: Revision) {
            self.presence.set_there(false);
            self.presence.wait_for(|state| state.phase != Phase::Attached).await;
            self.clock.observe(said).expect("there is no limit");
            assert!(self.presence.pass(said, self.presence.standing().absences));
        }

        async fn back(&self) {
            self.presence.set_there(true);
            self.presence.wait_for(|state| state.phase == Phase::Attached).await;
        }

        fn refuses(&self, after: Revision) -> bool {
            self.presence.check_resumed(after).is_err()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_for_a_moment_is_waited_for() {
        let bed = Bed::new().await;
        bed.presence.set_there(false);
        sleep(GRACE / 2).await;
        assert_eq!((bed.presence.left_at(), bed.presence.pass(6, 0)), (None, false));
        bed.presence.set_there(true);
        sleep(GRACE * 2).await;
        assert_eq!(bed.presence.left_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_back_with_nothing_new_was_missed_by_nobody() {
        let bed = Bed::new().await;
        bed.without_it(9).await;
        assert_eq!(bed.presence.left_at(), Some(5));
        bed.back().await;
        assert!((1..20).all(|after| !bed.refuses(after)));
        assert!(put(&*bed.store).await > 9, "it counts on above what was said without it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_slept_through_a_return_may_not_go_on_in_the_next_absence() {
        let bed = Bed::new().await;
        bed.without_it(9).await;
        let first = bed.presence.standing();
        assert_eq!((first.absences, first.left), (1, Some(5)));
        bed.back().await;
        bed.without_it(12).await;
        assert!(!bed.presence.pass(13, first.absences));
        assert!(bed.presence.pass(13, first.absences + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_told_of_more_than_it_had_starts_afresh_and_nobody_else() {
        let bed = Bed::new().await;
        bed.without_it(9).await;
        assert_eq!(put(&*bed.store).await, 6);
        bed.back().await;
        let refused: Vec<_> = (1..20).filter(|after| bed.refuses(*after)).collect();
        assert_eq!(refused, [6, 7, 8, 9]);
        assert!(bed.clock.shown() >= 10, "a list is above all that is refused");
        let recalled = Bed::recalled(&bed.memory, &bed.clock).await;
        assert!(recalled.check_resumed(9).is_err(), "the next life forgot it");
        assert!(recalled.check_resumed(10).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn where_it_was_left_outlives_the_process_and_is_moved_by_who_knows_less() {
        let bed = Bed::new().await;
        assert!(bed.presence.leave_at(3).await.is_err(), "it is attached");
        bed.without_it(9).await;
        bed.presence.leave_at(7).await.expect("it is detached");
        assert_eq!(bed.presence.left_at(), Some(5));
        bed.presence.leave_at(3).await.expect("it is detached");
        assert_eq!(bed.presence.left_at(), Some(3));
        let recalled = Bed::recalled(&bed.memory, &bed.clock).await;
        assert_eq!(recalled.left_at(), Some(3));
        bed.back().await;
        let refused: Vec<_> = (1..20).filter(|after| bed.refuses(*after)).collect();
        assert_eq!(refused, [4, 5, 6, 7, 8, 9]);
        assert_eq!(bed.presence.gaps_above(5), (3, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_closed_more_than_was_said_is_attached_at_once() {
        let bed = Bed::new().await;
        bed.store.sync(5, 100).await.expect("memory closes");
        let before = tokio::time::Instant::now();
        bed.without_it(9).await;
        bed.back().await;
        assert!(before.elapsed() < GRACE + RETURN_WITHIN / 2, "{:?}", before.elapsed());
        assert!((1..20).all(|after| !bed.refuses(after)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_late_while_others_go_on_is_lacking_in_all_they_say() {
        let bed = Bed::new().await;
        put(&*bed.store).await;
        bed.without_it(9).await;
        assert_eq!(bed.presence.left_at(), Some(6));
        // Of what was before, and from below: its own child was away.
        let floor = bed.presence.note_late(3, 6).await.expect("it is kept");
        let more = floor + 10;
        bed.clock.observe(more).expect("there is no limit");
        assert!(bed.presence.pass(more, bed.presence.standing().absences));
        bed.back().await;
        assert!(bed.refuses(more), "who was told of {more} lacks what came late");
        assert!(!bed.refuses(3) && !bed.refuses(more + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn gaps_that_are_many_or_compacted_are_joined_or_forgotten() {
        let bed = Bed::new().await;
        for _ in 0..=GAPS_MAX {
            let after = bed.clock.shown();
            bed.clock.observe(after + 1).expect("there is no limit");
            assert_eq!(bed.presence.note_late(after, 0).await.expect("it is kept"), after + 2);
        }
        assert_eq!(bed.presence.lock().gaps.len(), GAPS_MAX);
        assert!(bed.refuses(6), "the first is joined with the second");
        let shown = bed.clock.shown();
        bed.memory.compact(shown, true).await.expect("memory compacts");
        bed.without_it(shown + 1).await;
        bed.back().await;
        assert_eq!(bed.presence.lock().gaps.len(), GAPS_MAX, "the store itself is not compacted");
        bed.store.compact(shown, true).await.expect("memory compacts");
        bed.without_it(shown + 2).await;
        bed.back().await;
        // One reaches up to what is compacted: who is there can come back.
        assert_eq!(bed.presence.lock().gaps.len(), 1);
        assert!(bed.refuses(shown - 1));
    }
}

//! Whether a store that has a life of its own is there, and what was given out without it.
//!
//! ```text
//!   reachable, or not ──> AttachState ──> durable in the slot's record ──> merged logs wait or pass over
//! ```
//!
//! Merged watches wait for an attached store, and pass over a detached one. Whoever was told of a
//! revision without the store may lack what it did meanwhile. So, when it is back with changes there,
//! its open watches are told (as [`super::Backfill`]), and a watch that comes back later from a revision
//! between where the store was left and the floor is refused as compacted: its client lists afresh. No
//! list can be as low as the floor, so nobody is refused twice.
//!
//! Both are durable in the default store before anyone relies on them: a client may come back after this
//! node has been restarted. The states themselves are pure: [`crate::clock::Attachment`].

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Store, slot::SlotRecord};
use crate::{
    clock::{Attachment, Gap, SharedClock, Standing},
    model::{Revision, StoreError, error::Result},
    proto::records as pb,
};

/// How long merged watches wait for a store that is away.
pub const GRACE: Duration = Duration::from_secs(2);

/// How long merged watches wait for a store that is back to close what was said without it.
const RETURN_WITHIN: Duration = Duration::from_secs(2);

const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Whether a store is there; see the module.
#[derive(Debug)]
pub struct AttachState {
    /// The route's name.
    name: Arc<str>,
    clock: SharedClock,
    record: Arc<SlotRecord>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// Held while the state is made durable.
    writing: tokio::sync::Mutex<()>,
    detachments: AtomicU64,
    backfills: AtomicU64,
}

#[derive(Debug)]
struct State {
    is_reachable: bool,
    attachment: Attachment,
}

// === impl AttachState ===

impl AttachState {
    /// The state that the slot's record holds, of a store that is not reached yet.
    pub fn restored(name: &str, record: Arc<SlotRecord>, clock: SharedClock) -> Arc<Self> {
        let known = record.get();
        let gaps = known.gaps.iter().map(|gap| Gap { after: gap.after, floor: gap.floor });
        let detached_at = known.is_detached.then_some(known.detached_at);
        let attachment = Attachment::restored(detached_at, gaps.collect());
        let state = Mutex::new(State { is_reachable: false, attachment });
        Arc::new(Self {
            name: name.into(),
            clock,
            record,
            state,
            changed: watch::Sender::new(()),
            writing: tokio::sync::Mutex::default(),
            detachments: AtomicU64::new(0),
            backfills: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it changes what is behind the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of the slot.
    pub fn record(&self) -> &Arc<SlotRecord> {
        &self.record
    }

    /// Whether the store can be reached.
    pub fn is_reachable(&self) -> bool {
        self.lock().is_reachable
    }

    /// Says whether the store can be reached.
    pub fn set_reachable(&self, is_reachable: bool) {
        self.lock().is_reachable = is_reachable;
        self.changed.send_replace(());
    }

    /// Where the store was left by those who go on without it; `None` where it is waited for.
    pub fn detached_at(&self) -> Option<Revision> {
        self.lock().attachment.detached_at()
    }

    /// How often watches went on without the store, since the process began.
    pub fn detachments(&self) -> u64 {
        self.detachments.load(Ordering::Relaxed)
    }

    /// How often what it had done meanwhile came late, likewise.
    pub fn backfills(&self) -> u64 {
        self.backfills.load(Ordering::Relaxed)
    }

    /// How the store stands now.
    pub fn standing(&self) -> Standing {
        self.lock().attachment.standing()
    }

    /// See [`Attachment::pass`].
    pub fn pass(&self, revision: Revision, detach_epoch: u64) -> bool {
        self.lock().attachment.pass(revision, detach_epoch)
    }

    /// See [`Store::check_resume`].
    ///
    /// # Errors
    /// `Compacted`, with the floor.
    pub fn check_resume(&self, after: Revision) -> Result<()> {
        let floor = self.lock().attachment.floor_of(after);
        floor.map_or(Ok(()), |compacted| Err(StoreError::Compacted { compacted }))
    }

    /// See [`Attachment::gaps_above`].
    pub fn gaps_above(&self, revision: Revision) -> Gap {
        self.lock().attachment.gaps_above(revision)
    }

    /// Notes that someone goes on who knows nothing of the store above `revision`.
    ///
    /// # Errors
    /// Where the store is not detached, or the default store did not keep it.
    pub async fn detach_at(&self, revision: Revision) -> Result<()> {
        let is_earlier = || self.lock().attachment.is_left_earlier(revision);
        match is_earlier() {
            None => return Err(self.unavailable("it is being attached")),
            Some(false) => return Ok(()),
            Some(true) => {}
        }
        self.keep(|state| state.leave_at(revision)).await?;
        // It may be on its way back by now, to which this came too late.
        is_earlier().map(drop).ok_or_else(|| self.unavailable("it is being attached"))
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
    pub async fn reachable(&self) {
        self.wait_for(|state| state.is_reachable).await;
    }

    /// Waits until the store can't be reached.
    pub async fn away(&self) {
        self.wait_for(|state| !state.is_reachable).await;
    }

    /// Notes that what was said above `after`, of a store that has said `closed`, was said without changes
    /// that come now, and moves the clock above it. Returns the floor, once it is durable. Who goes on without
    /// the store meanwhile says more without the changes than that: it was left at `after`.
    ///
    /// # Errors
    /// Where the default store did not keep it, and then nothing may be told of the changes.
    pub async fn record_backfill(&self, after: Revision, closed: Revision) -> Result<Revision> {
        // Above all that a client or a parent can hear of meanwhile.
        let floor = self.clock.now().max(closed) + 1;
        self.clock.advance_to(floor).await.map_err(|full| self.unavailable(&full.to_string()))?;
        self.keep(|state| state.backfill(Gap { after, floor })).await?;
        self.backfills.fetch_add(1, Ordering::Relaxed);
        Ok(floor)
    }

    /// Changes what is remembered: durable first, then true.
    async fn keep(&self, change: impl Fn(&mut Attachment)) -> Result<()> {
        let _writing = self.writing.lock().await;
        let mut next = self.lock().attachment.clone();
        change(&mut next);
        let gaps: Vec<_> =
            next.gaps().iter().map(|it| pb::Gap { after: it.after, floor: it.floor }).collect();
        let detached_at = next.detached_at();
        let kept = self.record.update(|slot| {
            slot.is_detached = detached_at.is_some();
            slot.detached_at = detached_at.unwrap_or(0);
            slot.gaps.clone_from(&gaps);
        });
        kept.await?;
        change(&mut self.lock().attachment);
        self.changed.send_replace(());
        Ok(())
    }

    fn unavailable(&self, reason: &str) -> StoreError {
        StoreError::Unavailable { store: self.name.clone(), reason: reason.into() }
    }

    /// Detaches the store of this state when it is away, and attaches it again, for ever.
    pub async fn supervise(self: Arc<Self>, store: Arc<dyn Store>, grace: Duration) {
        loop {
            if self.detached_at().is_none() {
                self.wait_for(|state| !state.is_reachable).await;
                if timeout(grace, self.reachable()).await.is_ok() {
                    continue;
                }
                // Everyone has got, or can still get, what is closed here.
                let left = store.announce_closed();
                let kept = self.keep(|state| state.detach(left)).await;
                if let Err(error) = kept {
                    tracing::warn!(store = %self.name, %error, "the store can't be detached");
                    sleep(RETRY_AFTER).await;
                    continue;
                }
                self.detachments.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(store = %self.name, revision = left, "watches go on without the store");
            }
            self.reachable().await;
            match self.reattach(&*store).await {
                Ok(late) => {
                    tracing::info!(store = %self.name, late, "the store is attached again");
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
    async fn reattach(&self, store: &dyn Store) -> Result<bool> {
        let Some((left, passed)) = self.lock().attachment.begin_return() else { return Ok(false) };
        let said = passed.max(self.clock.begun().unwrap_or(0));
        // Merged watches hold still from here on, and the store allocates above what it closes.
        let is_late = timeout(RETURN_WITHIN, async {
            store.advance_closed(said, 0).await?;
            has_changes(store, left, said).await
        });
        let in_time = is_late.await;
        let is_late =
            in_time.unwrap_or_else(|_| Err(self.unavailable("it does not say what it did")))?;
        let floor = is_late.then(|| said.max(self.clock.now()) + 1);
        if let Some(floor) = floor {
            let advanced = self.clock.advance_to(floor).await;
            advanced.map_err(|full| self.unavailable(&full.to_string()))?;
        }
        let compacted = self.record.records().store().compacted().min(store.compacted());
        self.keep(|state| state.attach(left, floor, compacted)).await?;
        match self.detached_at() {
            None => Ok(is_late),
            Some(_) => Err(self.unavailable("it said more of what it did before")),
        }
    }

    fn turn_back(&self) {
        self.lock().attachment.turn_back();
        self.changed.send_replace(());
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
        let is_late = !batch.backfill.commits.is_empty();
        if is_late || batch.commits.iter().any(|commit| commit.revision <= said) {
            return Ok(true);
        }
        if batch.closed >= said {
            break;
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        clock::{Clock, GAPS_MAX, Lane, REVISION_MAX},
        model::txn::{Op, PutOp, Txn},
        store::{memory::Memory, records::Records},
    };

    /// A node's default store, and a store that comes and goes, with a clock of its own.
    struct Bed {
        clock: SharedClock,
        memory: Arc<Memory>,
        attach_state: Arc<AttachState>,
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
        let written = store.apply(txn, Vec::new()).await;
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
            let attach_state = Self::recalled(&memory, &clock).await;
            attach_state.set_reachable(true);
            tokio::spawn(attach_state.clone().supervise(store.clone(), GRACE));
            Self { clock, memory, attach_state, store }
        }

        async fn recalled(memory: &Arc<Memory>, clock: &SharedClock) -> Arc<AttachState> {
            let records = Records::open(memory.clone()).await.expect("memory answers");
            let record = SlotRecord::open(&records, "child", 1).await.expect("memory answers");
            AttachState::restored("child", Arc::new(record), clock.clone())
        }

        /// The store is away for longer than the grace, and all up to `said` is said meanwhile.
        async fn without_it(&self, said: Revision) {
            self.attach_state.set_reachable(false);
            self.attach_state.wait_for(|state| state.attachment.detached_at().is_some()).await;
            self.clock.observe(said).expect("there is no limit");
            assert!(self.attach_state.pass(said, self.attach_state.standing().detach_epoch));
        }

        async fn back(&self) {
            self.attach_state.set_reachable(true);
            self.attach_state.wait_for(|state| state.attachment.detached_at().is_none()).await;
        }

        fn refuses(&self, after: Revision) -> bool {
            self.attach_state.check_resume(after).is_err()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_for_a_moment_is_waited_for() {
        let bed = Bed::new().await;
        bed.attach_state.set_reachable(false);
        sleep(GRACE / 2).await;
        assert_eq!((bed.attach_state.detached_at(), bed.attach_state.pass(6, 0)), (None, false));
        bed.attach_state.set_reachable(true);
        sleep(GRACE * 2).await;
        assert_eq!(bed.attach_state.detached_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_back_with_nothing_new_was_missed_by_nobody() {
        let bed = Bed::new().await;
        bed.without_it(9).await;
        assert_eq!(bed.attach_state.detached_at(), Some(5));
        bed.back().await;
        assert!((1..20).all(|after| !bed.refuses(after)));
        assert!(put(&*bed.store).await > 9, "it counts on above what was said without it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_slept_through_a_return_may_not_go_on_in_the_next_absence() {
        let bed = Bed::new().await;
        bed.without_it(9).await;
        let first = bed.attach_state.standing();
        assert_eq!((first.detach_epoch, first.detached_at), (1, Some(5)));
        bed.back().await;
        bed.without_it(12).await;
        assert!(!bed.attach_state.pass(13, first.detach_epoch));
        assert!(bed.attach_state.pass(13, first.detach_epoch + 1));
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
        assert!(recalled.check_resume(9).is_err(), "the next life forgot it");
        assert!(recalled.check_resume(10).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn where_it_was_left_outlives_the_process_and_is_moved_by_who_knows_less() {
        let bed = Bed::new().await;
        assert!(bed.attach_state.detach_at(3).await.is_err(), "it is attached");
        bed.without_it(9).await;
        bed.attach_state.detach_at(7).await.expect("it is detached");
        assert_eq!(bed.attach_state.detached_at(), Some(5));
        bed.attach_state.detach_at(3).await.expect("it is detached");
        assert_eq!(bed.attach_state.detached_at(), Some(3));
        let recalled = Bed::recalled(&bed.memory, &bed.clock).await;
        assert_eq!(recalled.detached_at(), Some(3));
        bed.back().await;
        let refused: Vec<_> = (1..20).filter(|after| bed.refuses(*after)).collect();
        assert_eq!(refused, [4, 5, 6, 7, 8, 9]);
        assert_eq!(bed.attach_state.gaps_above(5), Gap { after: 3, floor: 10 });
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_closed_more_than_was_said_is_attached_at_once() {
        let bed = Bed::new().await;
        bed.store.advance_closed(5, 100).await.expect("memory closes");
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
        assert_eq!(bed.attach_state.detached_at(), Some(6));
        // Of what was before, and from below: its own child was away.
        let floor = bed.attach_state.record_backfill(3, 6).await.expect("it is kept");
        let more = floor + 10;
        bed.clock.observe(more).expect("there is no limit");
        assert!(bed.attach_state.pass(more, bed.attach_state.standing().detach_epoch));
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
            assert_eq!(
                bed.attach_state.record_backfill(after, 0).await.expect("it is kept"),
                after + 2
            );
        }
        assert_eq!(bed.attach_state.lock().attachment.gaps().len(), GAPS_MAX);
        assert!(bed.refuses(6), "the first is joined with the second");
        let shown = bed.clock.shown();
        bed.memory.compact(shown, true).await.expect("memory compacts");
        bed.without_it(shown + 1).await;
        bed.back().await;
        assert_eq!(
            bed.attach_state.lock().attachment.gaps().len(),
            GAPS_MAX,
            "the store itself is not compacted"
        );
        bed.store.compact(shown, true).await.expect("memory compacts");
        bed.without_it(shown + 2).await;
        bed.back().await;
        // One reaches up to what is compacted: who is there can come back.
        assert_eq!(bed.attach_state.lock().attachment.gaps().len(), 1);
        assert!(bed.refuses(shown - 1));
    }
}

//! The clock as the stores of one process share it: the pure clock behind a lock, and waiting.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{Clock, ClockSeat, JoinError, Lane, LimitReached, REVISION_MAX};
use crate::model::Revision;

/// The numbers left below the limit at which more should be reserved.
pub const LOW_WATER: Revision = 1 << 19;

/// How many times more numbers a node of a tree needs ahead, since each write skips the other lanes.
const SHARED_LANE_FACTOR: Revision = 64;

/// How often a promise that was used up is given anew. Each costs the numbers that it jumps.
const PROMISE_EVERY: Duration = Duration::from_secs(1);

/// A clock that many tasks and threads use. Each call takes a short lock, none waits inside it.
#[derive(Clone, Debug)]
pub struct SharedClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Mutex<Clock>,
    closed_more: Notify,
    ran_low: Notify,
    /// The limit that someone waits for.
    wanted: Mutex<Revision>,
    /// When a promise was last given.
    promised: Mutex<Option<Instant>>,
}

fn low_water(lane: Lane) -> Revision {
    if lane.is_shared() { LOW_WATER * SHARED_LANE_FACTOR } else { LOW_WATER }
}

// === impl SharedClock ===

impl SharedClock {
    /// Shares `clock`.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            clock: Mutex::new(clock),
            closed_more: Notify::new(),
            ran_low: Notify::new(),
            wanted: Mutex::new(0),
            promised: Mutex::new(None),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Clock> {
        // The clock's methods do not leave it half-changed, so a panic elsewhere does not matter.
        self.0.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Clock::add_store`].
    pub fn add_store(&self) -> ClockSeat {
        self.lock().add_store()
    }

    /// See [`Clock::join`]; wakes who waits in [`SharedClock::wait_closed`].
    ///
    /// # Errors
    /// Where the store holds what it may not.
    pub fn join(&self, newest: Revision) -> Result<ClockSeat, JoinError> {
        let joined = self.lock().join(newest);
        self.0.closed_more.notify_waiters();
        joined
    }

    /// See [`Clock::join_apart`]; moves up to what the store holds, once that is reserved, and wakes who
    /// waits in [`SharedClock::wait_closed`].
    ///
    /// # Errors
    /// For what is no revision.
    pub async fn join_apart(&self, newest: Revision) -> Result<ClockSeat, JoinError> {
        if self.begun().is_some() {
            self.advance_to(newest).await?;
        }
        let joined = self.lock().join_apart(newest);
        self.0.closed_more.notify_waiters();
        joined
    }

    /// See [`Clock::begin`].
    pub fn begin(&self) -> Revision {
        let begun = self.lock().begin();
        self.0.closed_more.notify_waiters();
        begun
    }

    /// Waits until the node has begun.
    pub async fn has_begun(&self) {
        loop {
            let more = self.0.closed_more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if self.begun().is_some() {
                return;
            }
            more.await;
        }
    }

    /// See [`Clock::begun`].
    pub fn begun(&self) -> Option<Revision> {
        self.lock().begun()
    }

    /// See [`Clock::now`].
    pub fn now(&self) -> Revision {
        self.lock().now()
    }

    /// See [`Clock::shown`].
    pub fn shown(&self) -> Revision {
        self.lock().shown()
    }

    /// See [`Clock::observe`]; wakes who waits in [`SharedClock::wait_closed`].
    ///
    /// # Errors
    /// Where the limit is reached.
    pub fn observe(&self, revision: Revision) -> Result<(), LimitReached> {
        self.lock().observe(revision)?;
        self.0.closed_more.notify_waiters();
        Ok(())
    }

    /// Waits until more was shown than `revision`. Returns what was shown then.
    pub async fn shown_above(&self, revision: Revision) -> Revision {
        loop {
            let moved = self.0.closed_more.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let shown = self.shown();
            if shown > revision {
                return shown;
            }
            moved.await;
        }
    }

    /// See [`Clock::allocate`].
    ///
    /// # Errors
    /// Where the limit is reached.
    pub fn allocate(&self, store: ClockSeat) -> Result<Revision, LimitReached> {
        let (allocated, is_low) = {
            let mut clock = self.lock();
            (clock.allocate(store), clock.limit() - clock.now() < low_water(clock.lane()))
        };
        if is_low {
            self.0.ran_low.notify_one();
        }
        allocated
    }

    /// See [`Clock::bound`].
    pub fn bound(&self, limit: Revision) -> bool {
        self.lock().bound(limit)
    }

    /// See [`Clock::reserve`]; wakes who waits in [`SharedClock::advance_to`].
    pub fn reserve(&self, limit: Revision) {
        self.lock().reserve(limit);
        self.0.closed_more.notify_waiters();
    }

    /// How many numbers are reserved at once, as the lane needs.
    pub fn reserve_size(&self) -> Revision {
        2 * low_water(self.lane())
    }

    /// Up to where to reserve: as far as the lane needs, above what someone waits for.
    pub fn to_reserve(&self) -> Revision {
        let wanted = *self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = self.lock();
        clock.limit().max(wanted) + 2 * low_water(clock.lane())
    }

    /// [`SharedClock::observe`] that waits until enough is reserved for it and for the writes that
    /// follow, which do not wait. Call it where somebody reserves.
    ///
    /// # Errors
    /// For what is no revision.
    pub async fn advance_to(&self, revision: Revision) -> Result<(), LimitReached> {
        loop {
            let reserved = self.0.closed_more.notified();
            tokio::pin!(reserved);
            reserved.as_mut().enable();
            if revision >= REVISION_MAX - 1 || self.has_room_above(revision) {
                return self.observe(revision);
            }
            self.want(revision);
            reserved.await;
        }
    }

    /// Whether writes find numbers between there and the limit, which others' numbers come near
    /// without a write.
    fn has_room_above(&self, revision: Revision) -> bool {
        let clock = self.lock();
        let left = clock.limit() - clock.now().max(revision);
        let low = low_water(clock.lane());
        if left < low {
            self.0.ran_low.notify_one();
        }
        left >= low / 2 || clock.limit() == REVISION_MAX - 1
    }

    fn want(&self, limit: Revision) {
        {
            let mut wanted = self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            *wanted = limit.max(*wanted);
        }
        self.0.ran_low.notify_one();
    }

    /// Allocates in `lane` from now on, for which more is reserved ahead.
    pub fn set_lane(&self, lane: Lane) {
        self.lock().set_lane(lane);
        self.0.ran_low.notify_one();
    }

    /// The lane in which numbers are allocated.
    pub fn lane(&self) -> Lane {
        self.lock().lane()
    }

    /// See [`Clock::limit`].
    pub fn limit(&self) -> Revision {
        self.lock().limit()
    }

    /// Waits until few numbers are left below the limit, time enough to reserve more. For one task.
    pub async fn runs_low(&self) {
        self.0.ran_low.notified().await;
    }

    /// See [`Clock::commit`]; wakes who waits in [`SharedClock::wait_closed`].
    pub fn commit(&self, store: ClockSeat, last: Revision) {
        self.lock().commit(store, last);
        self.0.closed_more.notify_waiters();
    }

    /// See [`Clock::abort`]; wakes who waits in [`SharedClock::wait_closed`].
    pub fn abort(&self, store: ClockSeat) {
        self.lock().abort(store);
        self.0.closed_more.notify_waiters();
    }

    /// See [`Clock::closed`].
    pub fn closed(&self, store: ClockSeat) -> Revision {
        self.lock().closed(store)
    }

    /// See [`Clock::close_ahead`]. A promise that writes use up again and again is given seldom.
    pub fn close_ahead(&self, by: Revision) -> Option<Revision> {
        let mut given = self.0.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let mut clock = self.lock();
        if clock.has_passed_promise() {
            let now = Instant::now();
            if given.is_some_and(|given| now - given < PROMISE_EVERY) {
                return None;
            }
            *given = Some(now);
        }
        clock.close_ahead(by)
    }

    /// Waits until `store` has closed at least `revision`, moving the clock up to it where nothing
    /// has reached it yet. Returns what is closed then.
    ///
    /// # Errors
    /// Where the limit is reached.
    pub async fn wait_closed(
        &self,
        store: ClockSeat,
        revision: Revision,
    ) -> Result<Revision, LimitReached> {
        loop {
            let notified = self.0.closed_more.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let closed = {
                let mut clock = self.lock();
                if revision > clock.closed(store) && revision > clock.shown() {
                    clock.observe(revision)?;
                }
                clock.closed(store)
            };
            if closed >= revision {
                return Ok(closed);
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_up_leaves_room_for_the_writes_that_follow() {
        let clock = SharedClock::new(Clock::new(0, 1_000, Lane::ALL));
        let store = clock.add_store();
        let reserving = clock.clone();
        tokio::spawn(async move {
            loop {
                reserving.runs_low().await;
                reserving.reserve(reserving.to_reserve());
            }
        });
        clock.advance_to(1_000).await.expect("more is reserved");
        assert_eq!(clock.allocate(store), Ok(1_001));
    }
}

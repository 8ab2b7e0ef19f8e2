//! The clock as the stores of one process share it: the pure clock behind a lock, and waiting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Clock, JoinError, LimitReached, Slot};
use crate::model::Revision;

/// The numbers left below the limit at which more should be reserved.
pub const LOW_WATER: Revision = 1 << 19;

/// A clock that many tasks and threads use. Each call takes a short lock, none waits inside it.
#[derive(Clone, Debug)]
pub struct SharedClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Mutex<Clock>,
    closed_more: Notify,
    ran_low: Notify,
}

// === impl SharedClock ===

impl SharedClock {
    /// Shares `clock`.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            clock: Mutex::new(clock),
            closed_more: Notify::new(),
            ran_low: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Clock> {
        // The clock's methods do not leave it half-changed, so a panic elsewhere does not matter.
        self.0.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Clock::add_store`].
    pub fn add_store(&self) -> Slot {
        self.lock().add_store()
    }

    /// See [`Clock::join`]; wakes who waits in [`SharedClock::wait_closed`].
    ///
    /// # Errors
    /// Where the store holds what it may not.
    pub fn join(&self, newest: Revision) -> Result<Slot, JoinError> {
        let joined = self.lock().join(newest);
        self.0.closed_more.notify_waiters();
        joined
    }

    /// See [`Clock::begin`].
    pub fn begin(&self) -> Revision {
        self.lock().begin()
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

    /// See [`Clock::allocate`].
    ///
    /// # Errors
    /// Where the limit is reached.
    pub fn allocate(&self, store: Slot) -> Result<Revision, LimitReached> {
        let (allocated, is_low) = {
            let mut clock = self.lock();
            (clock.allocate(store), clock.limit() - clock.now() < LOW_WATER)
        };
        if is_low {
            self.0.ran_low.notify_one();
        }
        allocated
    }

    /// See [`Clock::bound`].
    pub fn bound(&self, limit: Revision) {
        self.lock().bound(limit);
    }

    /// See [`Clock::reserve`].
    pub fn reserve(&self, limit: Revision) {
        self.lock().reserve(limit);
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
    pub fn commit(&self, store: Slot, last: Revision) {
        self.lock().commit(store, last);
        self.0.closed_more.notify_waiters();
    }

    /// See [`Clock::abort`]; wakes who waits in [`SharedClock::wait_closed`].
    pub fn abort(&self, store: Slot) {
        self.lock().abort(store);
        self.0.closed_more.notify_waiters();
    }

    /// See [`Clock::closed`].
    pub fn closed(&self, store: Slot) -> Revision {
        self.lock().closed(store)
    }

    /// See [`Clock::close_ahead`].
    pub fn close_ahead(&self, by: Revision) -> Option<Revision> {
        self.lock().close_ahead(by)
    }

    /// Waits until `store` has closed at least `revision`, moving the clock up to it where nothing
    /// has reached it yet. Returns what is closed then.
    ///
    /// # Errors
    /// Where the limit is reached.
    pub async fn wait_closed(
        &self,
        store: Slot,
        revision: Revision,
    ) -> Result<Revision, LimitReached> {
        loop {
            let notified = self.0.closed_more.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let closed = {
                let mut clock = self.lock();
                if revision > clock.shown() {
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

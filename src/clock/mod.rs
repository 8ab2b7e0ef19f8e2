//! Revisions: who allocates them, what has been promised about them, and how logs are merged by them.
//!
//! ```text
//!   writer of a store ── allocate ──> Clock <── observe ── parent's number, restart
//!         │ commit / abort              │
//!         v                             ├── shown: what a read must be at least as new as
//!   the store's log                     └── closed(store): nothing at or below is still to come
//! ```
//!
//! The clock is one number. It never goes back, it hands out each number once, and it knows which
//! numbers are still in flight in which store. From that follow the two promises that all reads and
//! watches rest on: [`Clock::shown`] and [`Clock::closed`]. [`Clock`] and [`Merge`] are pure, and the
//! simulator in `tests/simulator` drives these very types; [`SharedClock`] adds the waiting.

mod lane;
mod merge;
mod shared;

pub use lane::{LANES, Lane, LaneBlock, OverlappingLanes};
pub use merge::{Late, Merge};
pub use shared::SharedClock;

use crate::model::Revision;

/// The revision of a fresh tree. Nothing internal may take one: the first write is at 2.
pub const FIRST_REVISION: Revision = 1;

/// Revisions stay below this, since some clients read them as doubles.
pub const REVISION_MAX: Revision = 1 << 53;

/// A store's place in the clock, given by [`Clock::add_store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(usize);

/// The node's counter, and what is in flight.
#[derive(Clone, Debug)]
pub struct Clock {
    /// The greatest number that was allocated or observed.
    now: Revision,
    /// The greatest number that was shown to anyone: answered, sent to a watcher, or observed.
    shown: Revision,
    /// No number above is handed out, since a restart may begin there.
    limit: Revision,
    lane: Lane,
    /// For each store the numbers allocated and neither committed nor given up: the first of them.
    in_flight: Vec<Option<Revision>>,
}

/// The numbers reserved so far are used up: a greater limit must be made durable first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all revisions up to the reserved limit {limit} are used")]
pub struct LimitReached {
    /// The limit.
    pub limit: Revision,
}

// === impl Clock ===

impl Clock {
    /// A clock that has reached `start` and may allocate up to and including `limit`.
    pub fn new(start: Revision, limit: Revision, lane: Lane) -> Self {
        let start = start.max(FIRST_REVISION);
        Self { now: start, shown: start, limit, lane, in_flight: Vec::new() }
    }

    /// A place for one more store, with nothing in flight.
    pub fn add_store(&mut self) -> Slot {
        self.in_flight.push(None);
        Slot(self.in_flight.len() - 1)
    }

    /// The greatest number that was allocated or observed.
    pub fn now(&self) -> Revision {
        self.now
    }

    /// The greatest number that anyone has seen. A read at this revision is linearizable: whatever
    /// was answered before it was asked lies at or below.
    pub fn shown(&self) -> Revision {
        self.shown
    }

    /// Takes note of a number that was allocated elsewhere: all allocated from now on is above it.
    pub fn observe(&mut self, revision: Revision) {
        self.now = self.now.max(revision);
        self.shown = self.shown.max(revision);
    }

    /// The next number, in flight in `store` until [`Clock::commit`] or [`Clock::abort`].
    ///
    /// # Errors
    /// Where the limit is reached; [`Clock::reserve`] raises it.
    pub fn allocate(&mut self, store: Slot) -> Result<Revision, LimitReached> {
        let next = self.lane.next(self.now);
        if next > self.limit {
            return Err(LimitReached { limit: self.limit });
        }
        self.now = next;
        self.in_flight[store.0].get_or_insert(next);
        Ok(next)
    }

    /// All that is in flight in `store` is durable and visible there, up to `last`.
    pub fn commit(&mut self, store: Slot, last: Revision) {
        self.in_flight[store.0] = None;
        self.shown = self.shown.max(last);
    }

    /// All that is in flight in `store` will never be: the numbers stay unused.
    pub fn abort(&mut self, store: Slot) {
        self.in_flight[store.0] = None;
    }

    /// The promise that `store` holds all it will ever hold up to and including this revision.
    pub fn closed(&self, store: Slot) -> Revision {
        self.in_flight[store.0].map_or(self.now, |first| first - 1)
    }

    /// Allows numbers up to `limit`, which the caller has made durable.
    pub fn reserve(&mut self, limit: Revision) {
        self.limit = self.limit.max(limit.min(REVISION_MAX - 1));
    }

    /// The limit that is reserved.
    pub fn limit(&self) -> Revision {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> (Clock, Slot, Slot) {
        let mut clock = Clock::new(0, 100, Lane::ALL);
        let (a, b) = (clock.add_store(), clock.add_store());
        (clock, a, b)
    }

    #[test]
    fn a_fresh_clock_stands_at_one_and_counts_on_by_one() {
        let (mut clock, a, b) = clock();
        assert_eq!(clock.now(), 1);
        assert_eq!(clock.allocate(a), Ok(2));
        assert_eq!(clock.allocate(b), Ok(3));
    }

    #[test]
    fn what_is_in_flight_in_one_store_keeps_only_that_store_open() {
        let (mut clock, a, b) = clock();
        clock.allocate(a).expect("below the limit");
        clock.allocate(b).expect("below the limit");
        clock.commit(b, 3);
        assert_eq!((clock.closed(a), clock.closed(b), clock.shown()), (1, 3, 3));
        clock.commit(a, 2);
        assert_eq!((clock.closed(a), clock.shown()), (3, 3));
    }

    #[test]
    fn a_number_given_up_is_not_shown_and_not_used_again() {
        let (mut clock, a, _) = clock();
        clock.allocate(a).expect("below the limit");
        clock.abort(a);
        assert_eq!((clock.shown(), clock.closed(a)), (1, 2));
        assert_eq!(clock.allocate(a), Ok(3));
    }

    #[test]
    fn what_was_observed_lies_below_all_that_is_allocated_later() {
        let (mut clock, a, _) = clock();
        clock.observe(50);
        assert_eq!(clock.allocate(a), Ok(51));
        clock.observe(20);
        assert_eq!(clock.allocate(a), Ok(52));
    }

    #[test]
    fn no_number_above_the_reserved_limit_is_handed_out() {
        let (mut clock, a, _) = clock();
        clock.observe(100);
        assert_eq!(clock.allocate(a), Err(LimitReached { limit: 100 }));
        clock.reserve(101);
        assert_eq!(clock.allocate(a), Ok(101));
    }
}

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
//! simulator in `tests/simulator` drives these very types; [`SharedClock`] adds the waiting,
//! and [`Attachment`] is how a store that has a life of its own stands to those who merge its log.

mod attach;
mod entropy;
mod lane;
mod merge;
mod shared;

pub use attach::{Attachment, GAPS_MAX, Gap, Standing};
pub use entropy::Entropy;
pub use lane::{LANES, Lane, LaneBlock, OverlappingLanes};
pub use merge::{Merge, PassedOver};
pub use shared::{LOW_WATER, SharedClock};

use crate::model::Revision;

/// The revision of a fresh tree. Nothing internal may take one: the first write is at 2.
pub const FIRST_REVISION: Revision = 1;

/// Revisions stay below this, since some clients read them as doubles.
pub const REVISION_MAX: Revision = 1 << 53;

/// A store's place in the clock, given by [`Clock::add_store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClockSeat(usize);

/// The node's counter, and what is in flight.
#[derive(Clone, Debug)]
pub struct Clock {
    /// The greatest number that was allocated, observed or promised.
    now: Revision,
    /// The greatest number that was shown to anyone: answered, sent to a watcher, or observed.
    shown: Revision,
    /// No number above is handed out, since a restart may begin there.
    limit: Revision,
    lane: Lane,
    /// Closed in every store, ahead of what was shown; see [`Clock::close_ahead`].
    promised: Revision,
    /// For each store the numbers allocated and neither committed nor given up: the first of them.
    in_flight: Vec<Option<Revision>>,
    /// Where the node went on from, once it has.
    begun: Option<Revision>,
}

/// The numbers reserved so far are used up: a greater limit must be made durable first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all revisions up to the reserved limit {limit} are used")]
pub struct LimitReached {
    /// The limit.
    pub limit: Revision,
}

/// A store can't join a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It holds what was promised never to be.
    #[error(
        "it holds revision {newest}, above {begun} from which this node went on without it; \
         if that is right, start the node again while the store can be reached"
    )]
    Ahead {
        /// The greatest revision in the store.
        newest: Revision,
        /// Where the node went on from.
        begun: Revision,
    },
    /// It holds a number above all that there may be.
    #[error(transparent)]
    Full(#[from] LimitReached),
}

// === impl Clock ===

impl Clock {
    /// A clock that has reached `start` and may allocate up to and including `limit`.
    pub fn new(start: Revision, limit: Revision, lane: Lane) -> Self {
        let start = start.max(FIRST_REVISION);
        let (in_flight, begun, promised) = (Vec::new(), None, 0);
        Self { now: start, shown: start, limit, lane, promised, in_flight, begun }
    }

    /// A place for one more store, with nothing in flight.
    pub fn add_store(&mut self) -> ClockSeat {
        self.in_flight.push(None);
        ClockSeat(self.in_flight.len() - 1)
    }

    /// A place for a store that holds numbers up to `newest`. Before [`Clock::begin`] the clock moves
    /// up to it.
    ///
    /// # Errors
    /// After that a store that holds more is refused: all its numbers above were promised not to be.
    pub fn join(&mut self, newest: Revision) -> Result<ClockSeat, JoinError> {
        match self.begun {
            Some(begun) if newest > begun => return Err(JoinError::Ahead { newest, begun }),
            Some(_) => {}
            None => self.observe(newest)?,
        }
        Ok(self.add_store())
    }

    /// A place for a store that holds numbers up to `newest`, also those that were promised not to be: what
    /// was shown without them must be ended before anyone reads it.
    ///
    /// # Errors
    /// Where it holds more than the clock has reached, which must move up first.
    pub fn join_apart(&mut self, newest: Revision) -> Result<ClockSeat, JoinError> {
        match self.begun {
            Some(begun) if newest > self.now => Err(JoinError::Ahead { newest, begun }),
            Some(_) => Ok(self.add_store()),
            None => self.join(newest),
        }
    }

    /// The node goes on from here, whatever stores are not there yet. Returns from where.
    pub fn begin(&mut self) -> Revision {
        *self.begun.insert(self.now)
    }

    /// Where the node went on from, once it has.
    pub fn begun(&self) -> Option<Revision> {
        self.begun
    }

    /// The greatest number that was allocated, observed or promised.
    pub fn now(&self) -> Revision {
        self.now
    }

    /// The greatest number that anyone has seen. A read at this revision is linearizable: whatever
    /// was answered before it was asked lies at or below.
    pub fn shown(&self) -> Revision {
        self.shown
    }

    /// Takes note of a number that was allocated elsewhere: all allocated from now on is above it.
    ///
    /// # Errors
    /// Where it lies above the limit: a restart that begins there would go back behind a number
    /// that was shown. [`Clock::reserve`] raises it.
    pub fn observe(&mut self, revision: Revision) -> Result<(), LimitReached> {
        if revision > self.limit {
            return Err(LimitReached { limit: self.limit });
        }
        self.now = self.now.max(revision);
        self.shown = self.shown.max(revision);
        Ok(())
    }

    /// The next number, in flight in `store` until [`Clock::commit`] or [`Clock::abort`].
    ///
    /// # Errors
    /// Where the limit is reached; [`Clock::reserve`] raises it.
    pub fn allocate(&mut self, store: ClockSeat) -> Result<Revision, LimitReached> {
        let next = self.lane.next(self.now);
        if next > self.limit {
            return Err(LimitReached { limit: self.limit });
        }
        self.now = next;
        self.in_flight[store.0].get_or_insert(next);
        Ok(next)
    }

    /// All that is in flight in `store` is durable and visible there, up to `last`.
    pub fn commit(&mut self, store: ClockSeat, last: Revision) {
        self.in_flight[store.0] = None;
        self.shown = self.shown.max(last);
    }

    /// All that is in flight in `store` will never be: the numbers stay unused.
    pub fn abort(&mut self, store: ClockSeat) {
        self.in_flight[store.0] = None;
    }

    /// The promise that `store` holds all it will ever hold up to and including this revision.
    ///
    /// It is above what was shown only where that was promised to a parent: a number that is only in
    /// flight, or was given up, is in no store, so a restart may hand it out again. Nodes that promise
    /// ahead begin above their limit instead.
    pub fn closed(&self, store: ClockSeat) -> Revision {
        let closed = self.in_flight[store.0].map_or(self.shown, |first| self.shown.min(first - 1));
        closed.max(self.promised)
    }

    /// Closes every store of this node at once up to `by` above what was shown, within the limit,
    /// and returns that promise: the next number allocated jumps past it. A promise of which half is
    /// left is not renewed. `None` while anything is in flight. For a parent only: to clients it would
    /// be a revision that no read has reached.
    pub fn close_ahead(&mut self, by: Revision) -> Option<Revision> {
        if self.promised < self.shown + by / 2 {
            if self.in_flight.iter().any(Option::is_some) {
                return None;
            }
            self.promised = self.promised.max(self.limit.min(self.shown + by));
            self.now = self.now.max(self.promised);
        }
        Some(self.promised)
    }

    /// Whether a number was allocated above all that was promised, so that the promise is used up.
    pub fn has_passed_promise(&self) -> bool {
        self.now > self.promised
    }

    /// Allocates in `lane` from now on.
    pub fn set_lane(&mut self, lane: Lane) {
        self.lane = lane;
    }

    /// The lane in which numbers are allocated.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Allows numbers up to `limit`, which the caller has made durable.
    pub fn reserve(&mut self, limit: Revision) {
        self.limit = self.limit.max(limit.min(REVISION_MAX - 1));
    }

    /// Allows numbers up to `limit` and none above, from now on. Returns whether it does: not where the
    /// clock has reached more.
    pub fn bound(&mut self, limit: Revision) -> bool {
        let may_be = self.now <= limit;
        if may_be {
            self.limit = limit.min(REVISION_MAX - 1);
        }
        may_be
    }

    /// The limit that is reserved.
    pub fn limit(&self) -> Revision {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> (Clock, ClockSeat, ClockSeat) {
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
        assert_eq!((clock.shown(), clock.closed(a)), (1, 1));
        assert_eq!(clock.allocate(a), Ok(3));
    }

    #[test]
    fn what_was_observed_lies_below_all_that_is_allocated_later() {
        let (mut clock, a, _) = clock();
        assert_eq!(clock.observe(50), Ok(()));
        assert_eq!(clock.allocate(a), Ok(51));
        assert_eq!(clock.observe(20), Ok(()));
        assert_eq!(clock.allocate(a), Ok(52));
    }

    #[test]
    fn nothing_is_promised_about_a_number_that_is_only_in_flight() {
        let (mut clock, a, b) = clock();
        clock.allocate(a).expect("below the limit");
        assert_eq!((clock.closed(b), clock.shown()), (1, 1));
    }

    #[test]
    fn the_next_number_jumps_past_what_was_closed_ahead_and_no_client_sees_the_promise() {
        let (mut clock, a, b) = clock();
        assert_eq!(clock.close_ahead(20), Some(21));
        assert_eq!((clock.shown(), clock.closed(b)), (1, 21));
        assert_eq!(clock.close_ahead(20), Some(21));
        assert!(!clock.has_passed_promise());
        assert_eq!(clock.allocate(a), Ok(22));
        assert!(clock.has_passed_promise());
        assert_eq!((clock.close_ahead(200), clock.closed(a)), (None, 21));
        clock.commit(a, 22);
        assert_eq!(clock.close_ahead(1 << 20), Some(100));
    }

    #[test]
    fn a_store_that_joins_late_may_hold_nothing_above_where_the_node_went_on_from() {
        let (mut clock, a, _) = clock();
        assert!(clock.join(7).is_ok());
        assert_eq!((clock.begin(), clock.begun()), (7, Some(7)));
        clock.allocate(a).expect("below the limit");
        clock.commit(a, 8);
        assert_eq!(clock.join(8), Err(JoinError::Ahead { newest: 8, begun: 7 }));
        assert!(clock.join(7).is_ok());
        assert!(clock.join_apart(8).is_ok(), "what was shown is ended");
        assert_eq!(clock.join_apart(9), Err(JoinError::Ahead { newest: 9, begun: 7 }));
        assert_eq!(clock.shown(), 8);
    }

    #[test]
    fn no_number_above_the_reserved_limit_is_handed_out() {
        let (mut clock, a, _) = clock();
        assert_eq!(clock.observe(101), Err(LimitReached { limit: 100 }));
        assert_eq!(clock.observe(100), Ok(()));
        assert_eq!(clock.allocate(a), Err(LimitReached { limit: 100 }));
        clock.reserve(101);
        assert_eq!(clock.allocate(a), Ok(101));
    }
}

//! What can be planted, to see that the simulator would notice.

/// One rule of the algorithm left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Merged watches take what is in flight for closed.
    EmittingWithoutClosing,
    /// A restart begins at the greatest revision of the stores that can be reached.
    NoReservedLimit,
    /// A spanning list reads each log as it stands, not as of one closed revision.
    ListingEachLogAtItsOwnRevision,
    /// A store that was detached returns, and whoever missed its changes is not told.
    ReattachingWithoutEnding,
    /// Both nodes count on by one.
    NoLanes,
    /// A store counts as closed up to all that was allocated, shown or not: a restart hands the
    /// numbers out again that were in flight.
    ClosingAboveShown,
    /// A child begins again at the greatest revision of its stores, as a root may: below what its
    /// parent told it, and below what it closed ahead.
    ChildRestartingAtGreatest,
    /// Numbers above the limit are observed and promised before a greater one is durable.
    ReservingInMemoryOnly,
    /// A restart that can reach every store forgets that the last one began at the limit.
    ForgettingTheStart,
    /// That a store is detached dies with the node, and the next life takes it for one that never
    /// was.
    ForgettingTheDetached,
    /// A client that comes back after a store was attached with late changes goes on from where it
    /// was cut off, though it may lack them.
    ForgettingTheFloor,
    /// A watch that is opened while a store is detached is taken to know all of it so far.
    TrustingResumedWatches,
    /// A store is attached with late changes, and the clock stays: a list at that revision can't
    /// be told from a watch that has reached it and lacks them.
    AttachingWithoutMovingOn,
    /// A store is attached while something at or below what was shown may still be committed.
    AttachingBeforeClosed,
    /// A node tells its clients what its child closed ahead, which it has not shown itself.
    TellingThePromise,
    /// A child stays at its clock when its parent has something to list: it closes nothing.
    NotObservingTheParent,
}

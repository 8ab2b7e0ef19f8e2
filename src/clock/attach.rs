//! How a store that has a life of its own stands to those who merge its log with others.
//!
//! ```text
//!            away for the grace            back                    closed up to all that was said
//!   Attached ──────────────────> Detached ──────────> Returning ──────────────────────> Attached
//! ```
//!
//! Merged logs wait for an attached store, and pass over a detached one. What was given out without it is
//! a [`Gap`]: whoever was told of a revision inside may lack changes, and starts afresh. These are the
//! pure states; `store::attach` makes them durable and drives them.

use crate::model::Revision;

/// The gaps that are told apart; older ones are joined.
pub const GAPS_MAX: usize = 16;

/// Who was told of a revision above `after` and below `floor` may lack changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// All at or below was given out with the store there.
    pub after: Revision,
    /// The resume floor: at and above it nothing is lacking.
    pub floor: Revision,
}

/// How a store stands now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How often it was detached.
    pub detach_epoch: u64,
    /// Where it was left by those who go on without it; `None` where it is waited for.
    pub detached_at: Option<Revision>,
}

/// The state of attachment of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    phase: Phase,
    detach_epoch: u64,
    /// The greatest revision that was said without the store.
    passed: Revision,
    gaps: Vec<Gap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Attached,
    /// With where the store was left.
    Detached(Revision),
    Returning(Revision),
}

// === impl Standing ===

impl Standing {
    /// The detachments that someone has gone through who `goes_on` without the store, or waits for it. Who
    /// has gone through fewer has slept: what was said without the store meanwhile, by whomever, the gaps
    /// tell.
    pub fn gone_through(self, goes_on: bool) -> u64 {
        self.detach_epoch - u64::from(self.detached_at.is_some() && !goes_on)
    }
}

// === impl Phase ===

impl Phase {
    fn detached_at(self) -> Option<Revision> {
        match self {
            Self::Attached => None,
            Self::Detached(left) | Self::Returning(left) => Some(left),
        }
    }
}

// === impl Attachment ===

impl Attachment {
    /// The state as it was kept: where the store was left, if it was, and the gaps.
    pub fn restored(detached_at: Option<Revision>, gaps: Vec<Gap>) -> Self {
        let phase = detached_at.map_or(Phase::Attached, Phase::Detached);
        Self { phase, detach_epoch: u64::from(detached_at.is_some()), passed: 0, gaps }
    }

    /// Where the store was left by those who go on without it.
    pub fn detached_at(&self) -> Option<Revision> {
        self.phase.detached_at()
    }

    /// Whether it is on its way back.
    pub fn is_returning(&self) -> bool {
        matches!(self.phase, Phase::Returning(_))
    }

    /// What was given out without it.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// How the store stands now.
    pub fn standing(&self) -> Standing {
        Standing { detach_epoch: self.detach_epoch, detached_at: self.detached_at() }
    }

    /// Goes on without the store above `left`.
    pub fn detach(&mut self, left: Revision) {
        self.phase = Phase::Detached(left);
        self.detach_epoch += 1;
    }

    /// Whether somebody who knows nothing of the store above `revision` knows less than was noted; `None`
    /// where nobody goes on without it.
    pub fn is_left_earlier(&self, revision: Revision) -> Option<bool> {
        match self.phase {
            Phase::Detached(left) => Some(revision < left),
            Phase::Attached | Phase::Returning(_) => None,
        }
    }

    /// Notes that somebody goes on who knows nothing of the store above `revision`.
    pub fn leave_at(&mut self, revision: Revision) {
        if self.is_left_earlier(revision) == Some(true) {
            self.phase = Phase::Detached(revision);
        }
    }

    /// Whether all up to `revision` may be said without the store, as it then counts to have been, by who
    /// has gone through so many of its detachments, with this one.
    pub fn pass(&mut self, revision: Revision, detach_epoch: u64) -> bool {
        let may_pass =
            matches!(self.phase, Phase::Detached(_)) && self.detach_epoch == detach_epoch;
        if may_pass {
            self.passed = self.passed.max(revision);
        }
        may_pass
    }

    /// The store is back, and nobody passes over it from here on. Returns where it was left and the
    /// greatest revision that was said without it; `None` where it was not detached.
    pub fn begin_return(&mut self) -> Option<(Revision, Revision)> {
        let Phase::Detached(left) = self.phase else { return None };
        self.phase = Phase::Returning(left);
        Some((left, self.passed))
    }

    /// The store is attached that was left at `left`, with changes below `floor` where there is one.
    /// Changes nothing where more has come to light meanwhile.
    pub fn attach(&mut self, left: Revision, floor: Option<Revision>, compacted: Revision) {
        if self.phase != Phase::Returning(left) {
            return;
        }
        self.phase = Phase::Attached;
        self.passed = 0;
        if let Some(floor) = floor {
            self.add_gap(Gap { after: left, floor });
        }
        // From below where all is compacted nobody can come back.
        self.gaps.retain(|gap| gap.floor >= compacted);
    }

    /// The store went away again before it was attached.
    pub fn turn_back(&mut self) {
        if let Phase::Returning(left) = self.phase {
            self.phase = Phase::Detached(left);
        }
    }

    /// What was said above `gap.after` was said without changes that come now. Who goes on without the
    /// store meanwhile says more without them than that.
    pub fn backfill(&mut self, gap: Gap) {
        self.add_gap(gap);
        match &mut self.phase {
            Phase::Attached => {}
            Phase::Detached(left) | Phase::Returning(left) => *left = gap.after.min(*left),
        }
    }

    /// The resume floor of who has got to `after`, where it lies in a gap.
    pub fn floor_of(&self, after: Revision) -> Option<Revision> {
        let gap = self.gaps.iter().find(|gap| after > gap.after && after < gap.floor);
        gap.map(|gap| gap.floor)
    }

    /// Where the gaps begin that reach above `revision`, at most there, and their greatest floor.
    pub fn gaps_above(&self, revision: Revision) -> Gap {
        let above = self.gaps.iter().filter(|gap| gap.floor > revision);
        above.fold(Gap { after: revision, floor: 0 }, |all, gap| Gap {
            after: all.after.min(gap.after),
            floor: all.floor.max(gap.floor),
        })
    }

    fn add_gap(&mut self, gap: Gap) {
        self.gaps.push(gap);
        if self.gaps.len() > GAPS_MAX {
            let first = self.gaps.remove(0);
            self.gaps[0].after = self.gaps[0].after.min(first.after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_that_are_many_are_joined_and_lose_nobody() {
        let mut state = Attachment::restored(None, Vec::new());
        for at in 0..40 {
            state.backfill(Gap { after: at * 10, floor: at * 10 + 5 });
        }
        assert_eq!(state.gaps().len(), GAPS_MAX);
        assert!((0..40).all(|at| state.floor_of(at * 10 + 1).is_some()));
        assert!(state.floor_of(395).is_none() && state.floor_of(390).is_none());
    }

    #[test]
    fn a_return_that_is_overtaken_changes_nothing() {
        let mut state = Attachment::restored(Some(7), Vec::new());
        assert_eq!(state.begin_return(), Some((7, 0)));
        assert!(!state.pass(9, 1), "nobody passes over one that is on its way back");
        state.backfill(Gap { after: 4, floor: 12 });
        state.attach(7, None, 0);
        assert!(state.is_returning() && state.detached_at() == Some(4));
        state.turn_back();
        assert!(state.pass(9, 1));
    }
}

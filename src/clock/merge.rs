//! Merging the logs of several sources into one, in the order of revisions.

use std::collections::VecDeque;

use crate::model::Revision;

/// Logs of several sources on their way into one.
///
/// What comes out is ordered by revision, and nothing comes out before every attached source has
/// closed its revision. A merge of merges is a merge: what [`Merge::drain`] returns can be pushed
/// into another.
#[derive(Clone, Debug)]
pub struct Merge<T> {
    sources: Vec<Source<T>>,
    /// All up to and including this revision was drained.
    drained: Revision,
}

#[derive(Clone, Debug)]
struct Source<T> {
    pending: VecDeque<(Revision, T)>,
    closed: Revision,
    attached: bool,
}

/// An entry that came below what was already drained, since its source was detached or says it late: whoever
/// got that may have missed it, and must start afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassedOver<T> {
    /// The entry's revision.
    pub revision: Revision,
    /// The entry.
    pub entry: T,
}

// === impl Merge ===

impl<T: PartialEq> Merge<T> {
    /// A merge of `sources` logs, of which all up to and including `after` was seen before.
    pub fn new(sources: usize, after: Revision) -> Self {
        let source = || Source { pending: VecDeque::new(), closed: after, attached: true };
        Self { sources: (0..sources).map(|_| source()).collect(), drained: after }
    }

    /// Takes the next entries of a source, and what it has closed now. What it says again, or says to come
    /// late, may be early enough here, where others hold things up: that is put in its place, once. Entries of
    /// one revision that differ are all kept.
    ///
    /// Returns the entries that come too late: of a source that was detached, or one that itself says so.
    pub fn push(
        &mut self,
        source: usize,
        entries: impl IntoIterator<Item = (Revision, T)>,
        closed: Revision,
    ) -> Vec<PassedOver<T>> {
        let drained = self.drained;
        let source = &mut self.sources[source];
        let mut late = Vec::new();
        for (revision, entry) in entries {
            if revision <= drained {
                late.push(PassedOver { revision, entry });
                continue;
            }
            let place = source.pending.partition_point(|(other, _)| *other <= revision);
            let before = source.pending.range(..place).rev();
            let mut equals = before.take_while(|(other, _)| *other == revision);
            if !equals.any(|(_, other)| *other == entry) {
                source.pending.insert(place, (revision, entry));
            }
        }
        source.closed = source.closed.max(closed);
        late
    }

    /// The revision up to which all attached sources have closed.
    pub fn closed(&self) -> Revision {
        let closed =
            self.sources.iter().filter(|source| source.attached).map(|source| source.closed);
        closed.min().unwrap_or(self.drained).max(self.drained)
    }

    /// The greatest revision that waits for some source to close.
    pub fn waiting(&self) -> Option<Revision> {
        let last = |source: &Source<T>| source.pending.back().map(|(revision, _)| *revision);
        self.sources.iter().filter_map(last).max()
    }

    /// The attached sources that have not closed `revision`.
    pub fn open_below(&self, revision: Revision) -> impl Iterator<Item = usize> + '_ {
        let is_open = move |source: &Source<T>| source.attached && source.closed < revision;
        self.sources.iter().enumerate().filter(move |(_, source)| is_open(source)).map(|(i, _)| i)
    }

    /// Goes on without a source; what it had sent and not closed is kept for its return.
    pub fn detach(&mut self, source: usize) {
        self.sources[source].attached = false;
    }

    /// Waits for a source again, which goes on from behind `after`: what it says again is known here.
    pub fn attach(&mut self, source: usize, after: Revision) {
        self.sources[source].closed = after;
        self.sources[source].attached = true;
    }

    /// All that can be given out, in order, with the revision up to which it is complete.
    pub fn drain(&mut self) -> (Vec<(Revision, T)>, Revision) {
        let closed = self.closed();
        let mut ready = Vec::new();
        for source in &mut self.sources {
            let count = source.pending.partition_point(|(revision, _)| *revision <= closed);
            ready.extend(source.pending.drain(..count));
        }
        ready.sort_by_key(|(revision, _)| *revision);
        self.drained = closed;
        (ready, closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_out_before_every_source_has_closed_it() {
        let mut merge = Merge::new(2, 1);
        assert!(merge.push(0, [(3, 'c')], 3).is_empty());
        assert_eq!(merge.drain(), (vec![], 1));
        assert!(merge.push(1, [(2, 'b')], 2).is_empty());
        assert_eq!(merge.drain(), (vec![(2, 'b')], 2));
        assert_eq!(merge.open_below(3).collect::<Vec<_>>(), [1]);
        assert!(merge.push(1, [], 9).is_empty());
        assert_eq!(merge.drain(), (vec![(3, 'c')], 3));
    }

    #[test]
    fn a_detached_source_holds_up_nobody_and_its_late_entries_are_told() {
        let mut merge = Merge::new(2, 1);
        merge.detach(1);
        assert!(merge.push(0, [(5, 'x')], 5).is_empty());
        assert_eq!(merge.drain(), (vec![(5, 'x')], 5));
        let late = merge.push(1, [(4, 'y'), (6, 'z')], 6);
        assert_eq!(late, [PassedOver { revision: 4, entry: 'y' }]);
        merge.attach(1, 4);
        assert!(merge.push(0, [], 6).is_empty());
        assert_eq!(merge.drain(), (vec![], 5));
        assert!(merge.push(1, [(6, 'z')], 6).is_empty());
        assert_eq!(merge.drain(), (vec![(6, 'z')], 6));
    }

    #[test]
    fn what_a_source_says_again_or_late_is_put_in_its_place_where_it_is_early_enough() {
        let mut merge = Merge::new(2, 1);
        assert!(merge.push(0, [(3, 'a'), (5, 'c')], 6).is_empty());
        let late = merge.push(0, [(1, 'x'), (5, 'c'), (4, 'b'), (5, 'd'), (5, 'c')], 6);
        assert_eq!(late, [PassedOver { revision: 1, entry: 'x' }]);
        assert!(merge.push(1, [], 6).is_empty());
        assert_eq!(merge.drain(), (vec![(3, 'a'), (4, 'b'), (5, 'c'), (5, 'd')], 6));
    }
}

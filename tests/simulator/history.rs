//! What the clients saw, and whether they could have seen it.

use pleach::model::Revision;

use crate::{Mask, STORES, Snapshot, StoreId, store::Store};

/// A client that lists a range, watches it from there, resumes where it was cut off, and lists
/// again when it is told to.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) node: usize,
    pub(crate) mask: Mask,
    pub(crate) stage: Stage,
    /// What it listed, or began to watch at.
    pub(crate) base: Revision,
    /// The last revision it was told of, by an event or by a progress notification.
    pub(crate) told: Revision,
    pub(crate) events: Vec<Revision>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It knows nothing, and must list.
    Fresh,
    Listing,
    /// It knows all up to `told`, and has no watch open.
    Cut,
    Watching,
}

/// What a client was answered.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) node: usize,
    pub(crate) mask: Mask,
    pub(crate) at: Revision,
    pub(crate) state: Snapshot,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) lists: Vec<Listed>,
    pub(crate) acknowledged: Vec<(Revision, StoreId)>,
    pub(crate) seen: Seen,
}

/// How often the schedules went where it is interesting: a simulator that goes nowhere proves
/// nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) lists: u64,
    pub(crate) spanning_lists: u64,
    pub(crate) writes: u64,
    pub(crate) events: u64,
    pub(crate) progress: u64,
    pub(crate) resumed: u64,
    pub(crate) restarts_at_greatest: u64,
    pub(crate) restarts_at_limit: u64,
    pub(crate) detached: u64,
    pub(crate) attached_unnoticed: u64,
    pub(crate) attached_late: u64,
    pub(crate) ended: u64,
    pub(crate) refused: u64,
    pub(crate) closed_ahead: u64,
}

// === impl Client ===

impl Client {
    /// Takes an event: above all that it was told of before, or the order is broken.
    pub(crate) fn event(&mut self, revision: Revision) -> Result<(), String> {
        if revision <= self.told {
            return Err(format!("event {revision} comes after {} was told", self.told));
        }
        self.told = revision;
        self.events.push(revision);
        Ok(())
    }

    /// The changes of its range that it must have been given by now.
    pub(crate) fn expected(&self, stores: &[Store; STORES]) -> Vec<Revision> {
        let mut expected = Vec::new();
        for (id, store) in stores.iter().enumerate() {
            if self.mask & (1 << id) != 0 {
                let known = |revision: &Revision| *revision <= self.told;
                expected.extend(store.since(self.base).iter().map(|(r, _)| *r).filter(known));
            }
        }
        expected.sort_unstable();
        expected
    }

    /// Reliable, resumable and bookmarkable in one: from its list to the last revision it was told
    /// of it has every change, across all the watches that it opened.
    pub(crate) fn check(&self, stores: &[Store; STORES]) -> Result<(), String> {
        let expected = self.expected(stores);
        if self.events == expected {
            return Ok(());
        }
        let Self { node, mask, base, told, events, .. } = self;
        Err(format!(
            "the client of node {node} that watches {mask:04b} from {base} and was told of {told} \
             has {events:?}, not {expected:?}"
        ))
    }
}

// === impl Listed ===

impl Listed {
    /// The answer is the state as of its revision, in every store, for ever.
    pub(crate) fn check(&self, stores: &[Store; STORES]) -> Result<(), String> {
        for (id, store) in stores.iter().enumerate() {
            let truth = store.state(self.at);
            if self.mask & (1 << id) != 0 && self.state[id] != truth {
                return Err(format!(
                    "the list of {:04b} at {} by node {} shows {:?} in store {id}, not {truth:?}",
                    self.mask, self.at, self.node, self.state[id],
                ));
            }
        }
        Ok(())
    }
}

// === impl History ===

impl History {
    /// Every acknowledged write is there, and no revision twice.
    pub(crate) fn check(&self, stores: &[Store; STORES]) -> Result<(), String> {
        let mut all: Vec<Revision> = Vec::new();
        for store in stores {
            if !store.log.is_sorted() {
                return Err(format!("a log is out of order: {:?}", store.log));
            }
            all.extend(store.log.iter().map(|(revision, _)| *revision));
        }
        all.sort_unstable();
        if let Some(pair) = all.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("revision {} was allocated twice", pair[0]));
        }
        for (revision, store) in &self.acknowledged {
            if stores[*store].log.binary_search_by_key(revision, |(r, _)| *r).is_err() {
                return Err(format!("the acknowledged write {revision} is not in store {store}"));
            }
        }
        self.lists.iter().try_for_each(|list| list.check(stores))
    }
}

// === impl Seen ===

impl Seen {
    fn fields(&mut self) -> [(&'static str, &mut u64); 14] {
        [
            ("lists", &mut self.lists),
            ("spanning lists", &mut self.spanning_lists),
            ("writes", &mut self.writes),
            ("events", &mut self.events),
            ("progress notifications", &mut self.progress),
            ("resumed watches", &mut self.resumed),
            ("restarts at the greatest revision", &mut self.restarts_at_greatest),
            ("restarts at the limit", &mut self.restarts_at_limit),
            ("detached", &mut self.detached),
            ("attached with nothing late", &mut self.attached_unnoticed),
            ("attached with late changes", &mut self.attached_late),
            ("watches ended", &mut self.ended),
            ("watches refused", &mut self.refused),
            ("closed ahead", &mut self.closed_ahead),
        ]
    }

    pub(crate) fn add(&mut self, mut other: Self) {
        for ((_, mine), (_, theirs)) in self.fields().into_iter().zip(other.fields()) {
            *mine += *theirs;
        }
    }

    /// Names and counts, for the test's output and its check that none is 0.
    pub(crate) fn counts(mut self) -> Vec<(&'static str, u64)> {
        self.fields().into_iter().map(|(name, count)| (name, *count)).collect()
    }
}

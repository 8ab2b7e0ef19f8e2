//! A store: an ordered log, a writer with one batch in flight, and whether it can be reached.

use pleach::{clock::ClockSeat, model::Revision};

use crate::{KEYS, Rpc, StoreId};

/// Whom a write is answered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client of the node that owns the store.
    Client,
    /// Nobody: the connection of who asked is gone.
    Nobody,
    /// The parent, which asked by this call for a client of its own.
    Parent(Rpc),
}

/// A write with a number, not yet durable or not yet answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) revision: Revision,
    pub(crate) store: StoreId,
    pub(crate) key: usize,
    pub(crate) origin: Origin,
    /// What its node had told anyone when the client asked.
    pub(crate) told_before: Revision,
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// Its place in the clock of the node as it lives now.
    pub(crate) slot: ClockSeat,
    /// What is durable: revision and key, ascending.
    pub(crate) log: Vec<(Revision, usize)>,
    /// The batch whose numbers are allocated.
    pub(crate) in_flight: Vec<Write>,
    /// What was in flight when its node died while the store was out of reach: whether it became
    /// durable shows when the store is back.
    pub(crate) unknown: Vec<Write>,
    pub(crate) reachable: bool,
}

// === impl Store ===

impl Store {
    pub(crate) fn new(slot: ClockSeat) -> Self {
        let (log, in_flight, unknown) = (Vec::new(), Vec::new(), Vec::new());
        Self { slot, log, in_flight, unknown, reachable: true }
    }

    pub(crate) fn greatest(&self) -> Revision {
        self.log.last().map_or(0, |(revision, _)| *revision)
    }

    /// All that lies above `after`.
    pub(crate) fn since(&self, after: Revision) -> &[(Revision, usize)] {
        &self.log[self.log.partition_point(|(revision, _)| *revision <= after)..]
    }

    /// The last change of each key as of `at`; 0 for a key that never was.
    pub(crate) fn state(&self, at: Revision) -> [Revision; KEYS] {
        let mut state = [0; KEYS];
        for (revision, key) in &self.log[..self.log.partition_point(|(r, _)| *r <= at)] {
            state[*key] = *revision;
        }
        state
    }

    /// What was in flight becomes durable as a whole, or not at all.
    pub(crate) fn settle(&mut self, writes: &[Write], durable: bool) {
        if durable {
            self.log.extend(writes.iter().map(|write| (write.revision, write.key)));
        }
    }
}

//! What the clients asked and were answered, and when.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, time::Duration};

use bytes::Bytes;
use pleach::{
    model::{Key, KeyRange, KeyValue, Revision},
    proto::mvccpb,
};

use crate::tree::NodeId;

/// A request and its answer.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Whom it asked.
    pub(crate) node: NodeId,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) outcome: Outcome,
}

/// What an operation has to show.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// What a range held as of a revision.
    Read(Read),
    /// The write was done, at `at`.
    Written { at: Revision, write: Write },
    /// The write was refused, and not done.
    Refused(Write),
    /// Nobody said whether the write was done.
    Unknown(Write),
    /// A watcher heard of these changes, and of progress up to `at`. It may lack what a store did that
    /// was away: then it will be told to begin anew.
    Told { changes: Vec<(Key, Revision)>, at: Revision },
}

/// The first `limit` keys of a range, out of `count`.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) range: KeyRange,
    pub(crate) at: Revision,
    /// It was asked for as of that revision, not at present.
    pub(crate) is_past: bool,
    pub(crate) limit: usize,
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) count: usize,
}

/// What a client wanted to change.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// Keys of one store, with values that are written once; `None` deletes.
    pub(crate) changes: Vec<(Key, Option<Bytes>)>,
    /// The revision that the first of them must be of.
    pub(crate) guard: Option<Revision>,
}

/// A client that lists a range, watches it from there, resumes where it was cut off, and lists again
/// when it is told to.
#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    pub(crate) node: NodeId,
    pub(crate) range: KeyRange,
    /// It wants no deletions.
    pub(crate) no_delete: bool,
    /// One for each list that it began with.
    pub(crate) stretches: Vec<Stretch>,
}

/// What a watcher was told between two lists.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    /// What it listed.
    pub(crate) base: Revision,
    /// The last revision it was told of, by an event or by a progress notification.
    pub(crate) told: Revision,
    pub(crate) events: Vec<mvccpb::Event>,
    /// It was told that it may lack something, or comes back too late.
    pub(crate) is_over: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) operations: Vec<Operation>,
    pub(crate) watchers: Vec<Watcher>,
    /// What can't be, whatever else happened.
    pub(crate) broken: Vec<String>,
    pub(crate) seen: Seen,
    /// Where it may be compacted: a watch that begins there has no previous values.
    pub(crate) compacted: BTreeSet<Revision>,
    /// Clients only look on from here.
    pub(crate) is_settling: bool,
}

/// All clients share it.
pub(crate) type SharedHistory = Rc<RefCell<History>>;

/// How often the schedules went where it is interesting.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) reads: u64,
    pub(crate) lists: u64,
    pub(crate) writes: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) unknown_and_done: u64,
    pub(crate) lost_races: u64,
    pub(crate) compactions: u64,
    pub(crate) events: u64,
    pub(crate) progress: u64,
    pub(crate) resumed: u64,
    pub(crate) relisted: u64,
    pub(crate) crashes: u64,
    pub(crate) partitions: u64,
    pub(crate) holds: u64,
    pub(crate) slow_links: u64,
    pub(crate) detached: u64,
    pub(crate) gaps: u64,
}

// === impl Seen ===

impl Seen {
    fn fields(&mut self) -> [(&'static str, &mut u64); 18] {
        [
            ("reads of a key", &mut self.reads),
            ("lists", &mut self.lists),
            ("writes", &mut self.writes),
            ("writes refused", &mut self.refused),
            ("writes of unknown outcome", &mut self.unknown),
            ("of these done", &mut self.unknown_and_done),
            ("writes that lost a race", &mut self.lost_races),
            ("compactions", &mut self.compactions),
            ("events", &mut self.events),
            ("progress notifications", &mut self.progress),
            ("resumed watches", &mut self.resumed),
            ("watches ended as compacted", &mut self.relisted),
            ("crashes", &mut self.crashes),
            ("partitions", &mut self.partitions),
            ("holds", &mut self.holds),
            ("slow links", &mut self.slow_links),
            ("children detached", &mut self.detached),
            ("children attached with late changes", &mut self.gaps),
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

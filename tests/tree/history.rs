//! What clients did, and what they were told: one history of a whole tree.

use std::time::Duration;

use crate::support::changes::{Event, Row};

/// A node, by its place in the world's list.
pub(crate) type NodeId = usize;

/// When a request was sent and when its answer was there, from the beginning of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) asked: Duration,
    pub(crate) answered: Duration,
}

/// Keys from one to before another; one key where there is no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) from: String,
    pub(crate) end: String,
}

/// A change of one key that is guarded by what it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: String,
    /// The revision at which it was last changed; 0 where it must not be there.
    pub(crate) before: i64,
    /// `None` to delete it.
    pub(crate) value: Option<String>,
}

/// What a writer knows of a transaction of its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was applied, at this revision.
    Applied(i64),
    /// A guard did not hold as of this revision.
    Refused(i64),
    /// It was not applied, and never will be.
    Failed,
    /// It may be applied, or will be, or not.
    Unknown,
}

/// A guarded transaction. At least one of its changes has a value, and no two have the same.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) node: NodeId,
    pub(crate) span: Span,
    pub(crate) changes: Vec<Change>,
    pub(crate) outcome: Outcome,
}

/// A read that was answered, of one key or of many.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) node: NodeId,
    pub(crate) span: Span,
    pub(crate) keys: Keys,
    /// As of which revision, as its header says.
    pub(crate) revision: i64,
    pub(crate) rows: Vec<(String, Row)>,
}

/// What a watch was told at once.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// The header.
    pub(crate) revision: i64,
    /// None where it is progress.
    pub(crate) events: Vec<Event>,
}

/// A watch, from its creation until it broke off.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// The first revision that it asked for; 0 for what comes.
    pub(crate) start: i64,
    /// The revision of its creation.
    pub(crate) created: i64,
    pub(crate) told: Vec<Told>,
}

/// A list and the watches after it, each of which takes up where the one before broke off.
#[derive(Clone, Debug)]
pub(crate) struct Generation {
    /// As of which revision the list was; 0 where there was none.
    pub(crate) listed: i64,
    pub(crate) lives: Vec<Life>,
    /// It was ended as compacted, and all begins anew.
    pub(crate) is_compacted: bool,
}

/// A client that watches.
#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    pub(crate) node: NodeId,
    pub(crate) keys: Keys,
    /// Whether it watches nothing but stores that its node alone writes: it can't lack anything.
    pub(crate) is_of_own_stores: bool,
    pub(crate) generations: Vec<Generation>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) writes: Vec<Write>,
    pub(crate) reads: Vec<Read>,
    pub(crate) watchers: Vec<Watcher>,
}

// === impl Keys ===

impl Keys {
    pub(crate) fn one(key: &str) -> Self {
        Self { from: key.to_owned(), end: String::new() }
    }

    /// All that is below a path, which ends in a slash.
    pub(crate) fn below(path: &str) -> Self {
        let end = format!("{}0", path.trim_end_matches('/'));
        Self { from: path.to_owned(), end }
    }

    pub(crate) fn contain(&self, key: &str) -> bool {
        let (from, end) = (self.from.as_str(), self.end.as_str());
        if end.is_empty() { key == from } else { key >= from && key < end }
    }
}

// === impl Generation ===

impl Generation {
    /// It was told all up to here.
    pub(crate) fn told(&self) -> i64 {
        self.lives.iter().fold(self.listed, |told, life| life.told_after(told))
    }
}

// === impl Life ===

impl Life {
    /// All up to here was told, where it was up to `before` when this began.
    pub(crate) fn told_after(&self, before: i64) -> i64 {
        let begin = if self.start == 0 { self.created } else { self.start - 1 };
        let last = |told: &Told| told.events.last().map_or(told.revision, |event| event.revision);
        self.told.iter().map(last).fold(before.max(begin), i64::max)
    }
}

impl History {
    pub(crate) fn absorb(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
        self.watchers.extend(other.watchers);
    }
}

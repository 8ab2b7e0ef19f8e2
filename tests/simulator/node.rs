//! A node: its clock, what it keeps in its default store, and whom it is serving.

use std::collections::VecDeque;

use pleach::{
    clock::{Clock, ClockSeat, Lane, Merge},
    model::Revision,
};

use crate::{Mask, Rpc, Snapshot, StoreId, store::Write};

/// The two own stores of a node, and behind the root its child.
pub(crate) const SOURCES: usize = 3;
/// The source that is a child.
pub(crate) const CHILD_SOURCE: usize = 2;

/// What a node keeps in its default store. All else is lost in a crash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Durable {
    /// Where the last life began: it may have shown that, with no store holding it.
    pub(crate) start: Revision,
    /// No number above was ever allocated, observed or promised.
    pub(crate) limit: Revision,
    /// Whether the merge goes on without this source.
    pub(crate) detached: [bool; SOURCES],
    /// Below this, someone may have been told of a revision without this source's part of it.
    pub(crate) floor: [Revision; SOURCES],
}

/// Who gets what a watcher merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    Client(usize),
    /// The parent's watcher of that number, by a stream of its own.
    Parent(u64),
}

/// One message of a child's stream.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub(crate) entries: Vec<(Revision, StoreId)>,
    pub(crate) promise: Revision,
}

/// One source of a watcher.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    pub(crate) source: usize,
    /// All of the source up to here was pushed into the merge.
    pub(crate) cursor: Revision,
    /// A child's promise, which may be far above what this node has shown.
    pub(crate) promise: Revision,
    pub(crate) detached: bool,
    /// What the child has sent and the parent not yet taken; `None` where no stream is open.
    pub(crate) stream: Option<VecDeque<Tail>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    pub(crate) id: u64,
    pub(crate) sink: Sink,
    pub(crate) mask: Mask,
    pub(crate) merge: Merge<StoreId>,
    pub(crate) feeds: Vec<Feed>,
    /// Whether all of its sources were attached when it was opened: then it is ended for what it
    /// has missed itself, and for nothing else.
    pub(crate) exact: bool,
    /// All up to here was given out, or could have been.
    pub(crate) drained: Revision,
    /// The last promise that went to the parent.
    pub(crate) sent: Revision,
}

/// Who asked for a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Client(usize),
    Parent(Rpc),
}

/// A list that waits for its stores.
#[derive(Clone, Debug)]
pub(crate) struct List {
    pub(crate) id: Rpc,
    pub(crate) reader: Reader,
    pub(crate) mask: Mask,
    pub(crate) at: Revision,
    pub(crate) told_before: Revision,
    /// The stores that were not read yet.
    pub(crate) missing: Mask,
    pub(crate) state: Snapshot,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) clock: Clock,
    pub(crate) durable: Durable,
    /// For a detached source: all of it up to here is known to everyone who goes on without it.
    pub(crate) complete: [Option<Revision>; SOURCES],
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) lists: Vec<List>,
    /// Durable, and not yet answered.
    pub(crate) unanswered: Vec<Write>,
    /// The greatest revision that anyone was told by this node, in any of its lives.
    pub(crate) told: Revision,
}

// === impl Node ===

impl Node {
    pub(crate) fn new(limit: Revision, lane: Lane) -> (Self, [ClockSeat; 2]) {
        let mut clock = Clock::new(0, limit, lane);
        let slots = [clock.add_store(), clock.add_store()];
        let (detached, floor) = ([false; SOURCES], [0; SOURCES]);
        let node = Self {
            up: true,
            clock,
            durable: Durable { start: 0, limit, detached, floor },
            complete: [None; SOURCES],
            watchers: Vec::new(),
            lists: Vec::new(),
            unanswered: Vec::new(),
            told: 0,
        };
        (node, slots)
    }
}

// === impl Watcher ===

impl Watcher {
    /// Whether it merges more than one source: only then can it go on without one.
    pub(crate) fn spans(&self) -> bool {
        self.feeds.len() > 1
    }

    /// Whether it goes on without a detached source. A stream to the parent does not: the parent
    /// decides for itself, and for its own watchers, how long it waits.
    pub(crate) fn may_go_without(&self) -> bool {
        self.spans() && matches!(self.sink, Sink::Client(_))
    }

    pub(crate) fn feed_of(&self, source: usize) -> Option<usize> {
        self.feeds.iter().position(|feed| feed.source == source)
    }
}

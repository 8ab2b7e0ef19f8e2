//! What shares one transaction: the rows that its writes see, and what they make of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::super::{index::Index, reader::Live};
use crate::{
    model::{
        Commit, Key, Revision,
        error::Result,
        txn::{Past, Rows},
    },
    store::{Written, led::mailbox::Task},
};

/// What is done at once, from its tasks to their answers.
pub(super) struct WriteBatch {
    pub tasks: Vec<Task>,
    pub run: Run,
    /// What the writes among the tasks get, in order.
    pub written: Vec<Result<Written>>,
    /// How far the past is given up.
    pub compact: Option<Revision>,
    /// The indexes, where they are others from it on.
    pub index: Option<Index>,
    /// What follows the last row that it adds to the log.
    pub next_seq: i64,
}

/// The rows of a batch on its way.
pub(super) struct Run {
    pub rows: Rows,
    /// Keys whose row in `rows`, or absence there, is the truth.
    pub known: HashSet<Key>,
    /// The newest row in the log of each known key that has one.
    pub seqs: HashMap<Key, i64>,
    pub past: Past,
    pub commits: Vec<Arc<Commit>>,
    /// The revision of the state in `rows`.
    pub before: Revision,
}

// === impl WriteBatch ===

impl WriteBatch {
    pub(super) fn new(tasks: Vec<Task>, before: Revision, next_seq: i64) -> Self {
        let (run, written) = (Run::new(before), Vec::new());
        Self { tasks, run, written, compact: None, index: None, next_seq }
    }

    /// Whether it changes nothing in the tables.
    pub(super) fn is_empty(&self) -> bool {
        let has_records = self.tasks.iter().any(|task| matches!(task, Task::Records(..)));
        self.run.commits.is_empty() && self.compact.is_none() && !has_records
    }

    /// Whether it makes what a disk must have room for.
    pub(super) fn has_puts(&self) -> bool {
        let mut events = self.run.commits.iter().flat_map(|commit| &commit.events);
        events.any(|event| !event.is_delete())
    }
}

// === impl Run ===

impl Run {
    pub(super) fn new(before: Revision) -> Self {
        Self {
            rows: Rows::new(),
            known: HashSet::new(),
            seqs: HashMap::new(),
            past: Past::new(),
            commits: Vec::new(),
            before,
        }
    }

    pub(super) fn learn(&mut self, live: impl IntoIterator<Item = Live>) {
        for live in live {
            self.seqs.insert(live.kv.key.clone(), live.seq);
            if !live.kv.is_tombstone() {
                self.rows.insert(live.kv.key.clone(), live.kv);
            }
        }
    }

    /// Takes rows from the tables, unless the batch knows better.
    pub(super) fn learn_new(&mut self, live: Vec<Live>) {
        let new = live.into_iter().filter(|live| self.known.insert(live.kv.key.clone()));
        let new: Vec<_> = new.collect();
        self.learn(new);
    }

    pub(super) fn add(&mut self, commit: Option<Commit>) {
        if let Some(commit) = commit {
            // Every key that was changed is known from now on, also one that a range put here.
            self.known.extend(commit.events.iter().map(|event| event.kv.key.clone()));
            self.before = self.before.max(commit.revision);
            self.commits.push(Arc::new(commit));
        }
    }
}

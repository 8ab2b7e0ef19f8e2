//! Linearizability, and that lists are snapshots.
//!
//! Every write is guarded by the version before it, and every answer says as of which revision it is. So
//! the order of the operations on a key is known: that of revisions. What is left to check is that it
//! never contradicts the order in which clients saw them begin and end.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::Log;
use crate::history::{History, Keys, NodeId, Outcome, Read, Span};

/// An operation that took place.
struct Done<'h> {
    span: Span,
    node: NodeId,
    revision: i64,
    what: What<'h>,
}

#[derive(Clone, Copy)]
enum What<'h> {
    Write(&'h [crate::history::Change]),
    Read(&'h Read),
}

pub(super) fn violations(history: &History, log: &Log) -> Vec<String> {
    let mut found: Vec<String> =
        history.reads.iter().filter_map(|read| not_a_snapshot(read, log)).collect();
    found.extend(from_the_future(history));
    found.extend(against_time(history, log));
    found
}

/// What a read answered must be all that is there as of its revision, and nothing else.
fn not_a_snapshot(read: &Read, log: &Log) -> Option<String> {
    let expected = log.rows(&read.keys, read.revision);
    if read.rows == expected {
        return None;
    }
    let missing: Vec<_> = expected.iter().filter(|row| !read.rows.contains(row)).collect();
    let strange: Vec<_> = read.rows.iter().filter(|row| !expected.contains(row)).collect();
    let Read { node, span, keys, revision, .. } = read;
    Some(format!(
        "no snapshot: node {node}, {span:?}, {keys:?} as of {revision} lacks {missing:?} and has \
         {strange:?}"
    ))
}

/// Nothing is read before it was written.
fn from_the_future(history: &History) -> Vec<String> {
    let mut asked: HashMap<&str, Duration> = HashMap::new();
    for write in &history.writes {
        for value in write.changes.iter().filter_map(|change| change.value.as_deref()) {
            asked.insert(value, write.span.asked);
        }
    }
    let mut found = Vec::new();
    for read in &history.reads {
        for (key, row) in &read.rows {
            if asked.get(&*row.value).is_some_and(|asked| *asked > read.span.answered) {
                found.push(format!("{key} was read before {row:?} was written: {:?}", read.span));
            }
        }
    }
    found
}

/// An operation is not before one in revisions that ended before it began: not on a key that both
/// touch, and not at a node that both were answered by.
fn against_time(history: &History, log: &Log) -> Vec<String> {
    let mut done: Vec<Done<'_>> = Vec::new();
    for write in &history.writes {
        let (Outcome::Applied(revision) | Outcome::Refused(revision)) = write.outcome else {
            continue;
        };
        let is_applied = matches!(write.outcome, Outcome::Applied(_));
        let changes = if is_applied { &write.changes[..] } else { &[] };
        let what = What::Write(changes);
        done.push(Done { span: write.span, node: write.node, revision, what });
    }
    for read in &history.reads {
        let (span, node, revision) = (read.span, read.node, read.revision);
        done.push(Done { span, node, revision, what: What::Read(read) });
    }
    let mut by_end: Vec<usize> = (0..done.len()).collect();
    by_end.sort_by_key(|at| done[*at].span.answered);
    let mut by_begin: Vec<usize> = (0..done.len()).collect();
    by_begin.sort_by_key(|at| done[*at].span.asked);

    let mut found = Vec::new();
    let mut ended = by_end.into_iter().map(|at| &done[at]).peekable();
    // The newest change of each key, and the greatest revision of each node, that anyone knows of.
    let mut known: BTreeMap<&str, i64> = BTreeMap::new();
    let mut shown: HashMap<NodeId, i64> = HashMap::new();
    for at in by_begin {
        let now = &done[at];
        while let Some(before) = ended.next_if(|before| before.span.answered < now.span.asked) {
            let node = shown.entry(before.node).or_default();
            *node = (*node).max(before.revision);
            before.note(log, &mut known);
        }
        let floor = shown.get(&now.node).copied().unwrap_or(0);
        let is_write = matches!(now.what, What::Write(changes) if !changes.is_empty());
        if now.revision < floor + i64::from(is_write) {
            let (node, revision) = (now.node, now.revision);
            found.push(format!("node {node} went back from {floor} to {revision}, {:?}", now.span));
        }
        found.extend(now.behind(&known));
    }
    found
}

// === impl Done ===

impl<'h> Done<'h> {
    /// What is known once this has ended.
    fn note(&self, log: &'h Log, known: &mut BTreeMap<&'h str, i64>) {
        let mut see = |key: &'h str, revision: i64| {
            let newest = known.entry(key).or_default();
            *newest = (*newest).max(revision);
        };
        match self.what {
            What::Write(changes) => {
                changes.iter().for_each(|change| see(&change.key, self.revision));
            }
            What::Read(read) => {
                for key in log.keys_in(&read.keys) {
                    see(key, log.last_change(key, read.revision).0);
                }
            }
        }
    }

    /// What this should have seen, or come after.
    fn behind(&self, known: &BTreeMap<&str, i64>) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |key: &str, newest: i64, is_write: bool| {
            if self.revision < newest + i64::from(is_write) {
                let (revision, node) = (self.revision, self.node);
                found.push(format!(
                    "stale: {key} at node {node} as of {revision}, though {newest} was known, {:?}",
                    self.span
                ));
            }
        };
        match self.what {
            What::Write(changes) => {
                for change in changes {
                    let newest = known.get(&*change.key).copied().unwrap_or(0);
                    check(&change.key, newest, true);
                }
            }
            What::Read(Read { keys: Keys { from, end }, .. }) if end.is_empty() => {
                check(from, known.get(&**from).copied().unwrap_or(0), false);
            }
            What::Read(read) => {
                let from = known.range(read.keys.from.as_str()..);
                for (key, newest) in from.take_while(|(key, _)| read.keys.contain(key)) {
                    check(key, *newest, false);
                }
            }
        }
        found
    }
}

//! What a child has done of late, and the tails that follow it here: one log over the wire for all of them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    model::{Commit, Key, Revision},
    store::{Backfill, LogBatch},
};

/// Bytes of commits that are kept for tails that are not far behind.
const RECORD_BYTES_MAX: usize = 8 << 20;

/// Late changes that are kept; a tail that has missed one is too far behind.
const LATE_MAX: usize = 64;

/// The most commits that a tail is given at once.
const BATCH_COMMITS_MAX: usize = 1_000;

/// The puts that are remembered to tell whether the child has gone back since.
const PUTS_MAX: usize = 8;

/// The newest commits of a child.
#[derive(Debug, Default)]
pub(super) struct ChildLog {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    commits: VecDeque<Arc<Commit>>,
    bytes: usize,
    /// Every commit above is in `commits`.
    complete_above: Revision,
    /// What the child has closed.
    closed: Revision,
    /// The greatest revision of a commit.
    newest: Revision,
    late: VecDeque<Backfill>,
    /// How many late changes there were before those in `late`.
    late_before: u64,
    /// The last keys that were put, with their revisions, the newest last.
    put: VecDeque<(Key, Revision)>,
}

/// Where a tail stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub after: Revision,
    /// How many late changes it has seen.
    pub late: u64,
}

/// What comes next for a tail.
#[derive(Debug)]
pub(super) enum Next {
    Batch(LogBatch),
    /// Nothing yet.
    Wait,
    /// What it needs is no longer here, or not yet.
    Past,
    /// It is so far behind that late changes passed it by.
    Missed,
}

// === impl State ===

impl State {
    fn remember_put(&mut self, commit: &Commit) {
        // Of a key that is changed twice the last change counts.
        let Some(last) = commit.events.last().filter(|event| !event.is_delete()) else { return };
        if self.put.len() == PUTS_MAX {
            self.put.pop_front();
        }
        self.put.push_back((last.kv.key.clone(), commit.revision));
    }

    fn has_all_behind(&self, after: Revision) -> bool {
        (self.complete_above..=self.closed).contains(&after)
    }

    /// Puts in a commit that comes late, for who begins to follow from before it.
    fn insert(&mut self, commit: &Arc<Commit>) {
        if commit.revision <= self.complete_above {
            return;
        }
        match self.commits.binary_search_by_key(&commit.revision, |commit| commit.revision) {
            // Said already, or another's: stores that were no part of a tree may have counted alike.
            Ok(place) => {
                let before = &mut self.commits[place];
                self.bytes -= before.size();
                Arc::make_mut(before).join(commit);
                self.bytes += before.size();
            }
            Err(place) => {
                self.bytes += commit.size();
                self.commits.insert(place, commit.clone());
            }
        }
    }
}

// === impl ChildLog ===

impl ChildLog {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No method panics while it changes what is behind the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the child was ever there.
    pub(super) fn has_begun(&self) -> bool {
        self.lock().closed > 0
    }

    /// All above is here, as far as the child has said it.
    pub(super) fn complete_above(&self) -> Revision {
        self.lock().complete_above
    }

    /// Waits until the child has closed `revision`.
    pub(super) async fn reach(&self, revision: Revision) {
        loop {
            let changed = self.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.closed() >= revision {
                return;
            }
            changed.await;
        }
    }

    /// The greatest revision of a commit that the child has told.
    pub(super) fn newest(&self) -> Revision {
        self.lock().newest
    }

    /// What the child has closed, as far as it has said.
    pub(super) fn closed(&self) -> Revision {
        self.lock().closed
    }

    /// The last keys that the child has put, with their revisions.
    pub(super) fn last_puts(&self) -> Vec<(Key, Revision)> {
        self.lock().put.iter().cloned().collect()
    }

    /// Forgets what the child has put: it is another, or has gone back, to `newest`.
    pub(super) fn forget(&self, newest: Revision) {
        let mut state = self.lock();
        state.put.clear();
        state.newest = newest;
    }

    /// Notes the greatest revision of the child, as it says.
    pub(super) fn note_newest(&self, newest: Revision) {
        let mut state = self.lock();
        state.newest = state.newest.max(newest);
    }

    /// A tail that begins now behind `after`.
    pub(super) fn position(&self, after: Revision) -> Position {
        let state = self.lock();
        Position { after, late: state.late_before + state.late.len() as u64 }
    }

    /// Begins anew at `closed`: what was before must be asked for.
    pub(super) fn begin(&self, closed: Revision) {
        {
            let mut state = self.lock();
            state.commits.clear();
            state.bytes = 0;
            state.complete_above = closed;
            state.closed = closed;
        }
        self.changed.notify_waiters();
    }

    /// Begins anew at `closed`, since the child does not say all that was before: who follows from
    /// there has missed something, whatever he has got to.
    pub(super) fn begin_anew(&self, closed: Revision) {
        {
            let mut state = self.lock();
            state.late_before += state.late.len() as u64 + 1;
            state.late.clear();
        }
        self.begin(closed);
    }

    /// Takes what the child says next.
    pub(super) fn take(&self, batch: LogBatch) {
        {
            let mut state = self.lock();
            let count = batch.commits.len();
            for commit in batch.commits {
                state.newest = state.newest.max(commit.revision);
                state.remember_put(&commit);
                state.bytes += commit.size();
                state.commits.push_back(commit);
            }
            while state.bytes > RECORD_BYTES_MAX && state.commits.len() > count {
                let Some(old) = state.commits.pop_front() else { break };
                state.bytes -= old.size();
                state.complete_above = old.revision;
            }
            state.closed = state.closed.max(batch.closed);
            if !batch.backfill.commits.is_empty() {
                for commit in &batch.backfill.commits {
                    state.insert(commit);
                }
                state.late.push_back(batch.backfill);
            }
            while state.late.len() > LATE_MAX {
                state.late.pop_front();
                state.late_before += 1;
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits until something was taken since this was called.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Whether a tail that has got to `after` finds the rest here.
    pub(super) fn has_all_behind(&self, after: Revision) -> bool {
        self.lock().has_all_behind(after)
    }

    /// What is next behind a position.
    pub(super) fn next(&self, position: Position) -> Next {
        let state = self.lock();
        if position.late < state.late_before {
            return Next::Missed;
        }
        if !state.has_all_behind(position.after) {
            return Next::Past;
        }
        let seen = usize::try_from(position.late - state.late_before).unwrap_or(usize::MAX);
        if let Some(late) = state.late.get(seen) {
            let closed = position.after;
            return Next::Batch(LogBatch { commits: Vec::new(), closed, backfill: late.clone() });
        }
        if state.closed == position.after {
            return Next::Wait;
        }
        let from = state.commits.partition_point(|commit| commit.revision <= position.after);
        let ready = state.commits.range(from..);
        let commits: Vec<_> = ready.take(BATCH_COMMITS_MAX).cloned().collect();
        let is_cut = commits.len() == BATCH_COMMITS_MAX;
        let last = commits.last().map_or(state.closed, |commit| commit.revision);
        Next::Batch(LogBatch::new(commits, if is_cut { last } else { state.closed }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Event, KeyValue};

    fn commit(revision: Revision) -> Arc<Commit> {
        commit_of("key", revision)
    }

    fn commit_of(key: &'static str, revision: Revision) -> Arc<Commit> {
        let kv = KeyValue::tombstone(Key::from_static(key.as_bytes()), revision);
        Arc::new(Commit { revision, events: vec![Event { kv, prev: None }] })
    }

    /// The revisions that come next behind a position, and whether they come late.
    fn next(record: &ChildLog, position: Position) -> (Vec<Revision>, bool) {
        let Next::Batch(batch) = record.next(position) else { panic!("there is more") };
        let is_late = !batch.backfill.commits.is_empty();
        let commits = if is_late { batch.backfill.commits } else { batch.commits };
        (commits.iter().map(|commit| commit.revision).collect(), is_late)
    }

    #[test]
    fn what_came_late_is_in_its_place_for_who_follows_from_before_it() {
        let record = ChildLog::default();
        record.begin(10);
        let before = record.position(14);
        record.take(LogBatch::new(vec![commit(12), commit(16)], 20));
        let commits = vec![commit(14), commit(9)];
        let late = Backfill { commits, after: 12, floor: 21 };
        record.take(LogBatch { commits: Vec::new(), closed: 20, backfill: late });
        assert_eq!(next(&record, record.position(12)), (vec![14, 16], false));
        assert_eq!(next(&record, before), (vec![14, 9], true));
    }

    #[test]
    fn of_two_commits_of_one_revision_none_is_left_out() {
        let record = ChildLog::default();
        record.begin(10);
        record.take(LogBatch::new(vec![commit_of("a", 12)], 20));
        let commits = vec![commit_of("b", 12), commit_of("a", 12)];
        let late = Backfill { commits, after: 11, floor: 21 };
        record.take(LogBatch { commits: Vec::new(), closed: 20, backfill: late });
        let Next::Batch(batch) = record.next(record.position(11)) else { panic!("there is more") };
        let keys = batch.commits.iter().flat_map(|commit| &commit.events);
        assert_eq!(keys.map(|event| &event.kv.key[..]).collect::<Vec<_>>(), [b"a", b"b"]);
    }

    #[test]
    fn who_followed_before_it_began_anew_has_missed_something_wherever_he_is() {
        let record = ChildLog::default();
        record.begin(10);
        let before = record.position(10);
        record.begin_anew(10);
        assert!(matches!(record.next(before), Next::Missed));
        assert!(matches!(record.next(record.position(10)), Next::Wait));
    }
}

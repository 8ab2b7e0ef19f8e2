//! Which state of the etcd is the one at a revision of ours.
//!
//! Every transaction of the owner leaves an [`Entry`]. The state right after it is the etcd's at that
//! moment, but for changes that others made just before it and that nobody had seen: those get later
//! revisions, and are undone in the view. Within an entry the state is that of the entry before, with
//! the first of its commits applied.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::layout::EtcdRevision;
use crate::model::{Commit, Key, KeyValue, Revision};

/// Keys that are not as the etcd has them; `None` where they do not exist.
pub(super) type Overlay = BTreeMap<Key, Option<KeyValue>>;

/// Entries kept, and the bytes of their commits, which the journal holds as well.
const ENTRIES_MAX: usize = 16 << 10;
const BYTES_MAX: usize = 8 << 20;

/// What one transaction of the owner did.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// Its etcd revision.
    pub etcd: EtcdRevision,
    /// All changes of others up to here have a revision at or below `last`.
    pub base: EtcdRevision,
    /// Our last revision.
    pub last: Revision,
    pub commits: Vec<Arc<Commit>>,
    /// What the keys were that others changed between `base` and `etcd`.
    pub undo: Overlay,
    /// The etcd revisions of those changes.
    pub hidden: Vec<EtcdRevision>,
}

/// Where the state at a revision of ours is found.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub at: EtcdRevision,
    pub overlay: Overlay,
    /// Changes that are there in the etcd, and not in the view: the overlay covers their keys.
    pub hidden: Vec<EtcdRevision>,
}

/// The newest entries.
#[derive(Debug)]
pub(super) struct History {
    entries: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Never empty.
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// Whether an etcd that was compacted at `line` still has the state of an entry, and all changes behind.
pub(super) fn is_kept(base: EtcdRevision, etcd: EtcdRevision, line: EtcdRevision) -> bool {
    base >= line || (base + 1 == line && etcd == line)
}

// === impl Entry ===

impl Entry {
    fn bytes(&self) -> usize {
        self.commits.iter().map(|commit| commit.size()).sum()
    }
}

// === impl View ===

impl View {
    /// The state after `before`, with what `after` did up to `revision`.
    pub(super) fn between(before: &Entry, after: Option<&Entry>, revision: Revision) -> Self {
        let mut overlay = before.undo.clone();
        let commits = after.into_iter().flat_map(|entry| &entry.commits);
        for commit in commits.take_while(|commit| commit.revision <= revision) {
            for event in &commit.events {
                let now = (!event.is_delete()).then(|| event.kv.clone());
                overlay.insert(event.kv.key.clone(), now);
            }
        }
        Self { at: before.etcd, overlay, hidden: before.hidden.clone() }
    }
}

// === impl History ===

impl History {
    pub(super) fn new(first: Entry) -> Self {
        let bytes = first.bytes();
        Self { entries: Mutex::new(Kept { entries: VecDeque::from([first]), bytes }) }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // No method panics while it changes what is behind the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the base of the oldest entry that is kept.
    pub(super) fn push(&self, entry: Entry) -> EtcdRevision {
        let mut kept = self.lock();
        kept.bytes += entry.bytes();
        kept.entries.push_back(entry);
        while kept.entries.len() > 1 && (kept.bytes > BYTES_MAX || kept.entries.len() > ENTRIES_MAX)
        {
            kept.bytes -= kept.entries.pop_front().map_or(0, |entry| entry.bytes());
        }
        kept.oldest().base
    }

    /// The view of a revision; `None` where it lies before what is kept.
    pub(super) fn view(&self, revision: Revision) -> Option<View> {
        let kept = self.lock();
        let after = kept.entries.partition_point(|entry| entry.last <= revision);
        let before = kept.entries.get(after.checked_sub(1)?)?;
        Some(View::between(before, kept.entries.get(after), revision))
    }

    /// The newest entry whose state holds nothing above `revision`: its base and etcd revision.
    pub(super) fn below(&self, revision: Revision) -> Option<(EtcdRevision, EtcdRevision)> {
        let kept = self.lock();
        let after = kept.entries.partition_point(|entry| entry.last <= revision);
        kept.entries.get(after.checked_sub(1)?).map(|entry| (entry.base, entry.etcd))
    }

    /// Our last revision of the first entry that an etcd compacted at `line` still has; see
    /// [`is_kept`].
    pub(super) fn first_kept(&self, line: EtcdRevision) -> Option<Revision> {
        let kept = self.lock();
        kept.entries.iter().find(|entry| is_kept(entry.base, entry.etcd, line)).map(|it| it.last)
    }

    /// Etcd revision, base and our last revision of the oldest entry.
    pub(super) fn oldest(&self) -> (EtcdRevision, EtcdRevision, Revision) {
        let kept = self.lock();
        let entry = kept.oldest();
        (entry.etcd, entry.base, entry.last)
    }

    /// The same of the newest.
    pub(super) fn newest(&self) -> (EtcdRevision, EtcdRevision, Revision) {
        let kept = self.lock();
        let entry = kept.entries.back().expect("it is never empty");
        (entry.etcd, entry.base, entry.last)
    }
}

// === impl Kept ===

impl Kept {
    fn oldest(&self) -> &Entry {
        self.entries.front().expect("it is never empty")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Event;

    fn put(revision: Revision, key: &'static str) -> Arc<Commit> {
        let key = Key::from_static(key.as_bytes());
        let kv = KeyValue { key, mod_revision: revision, version: 1, ..KeyValue::default() };
        Arc::new(Commit { revision, events: vec![Event { kv, prev: None }] })
    }

    fn entry(etcd: EtcdRevision, commits: Vec<Arc<Commit>>) -> Entry {
        let last = commits.last().map_or(1, |commit| commit.revision);
        Entry { etcd, base: etcd - 1, last, commits, ..Entry::default() }
    }

    #[test]
    fn a_revision_in_the_midst_of_a_transaction_is_the_state_before_with_the_first_of_it() {
        let history = History::new(entry(10, vec![]));
        history.push(entry(11, vec![put(2, "a"), put(3, "b"), put(4, "c")]));
        history.push(entry(12, vec![put(5, "d")]));
        let view = |revision| history.view(revision).expect("it is kept");
        assert_eq!((view(1).at, view(1).overlay.len()), (10, 0));
        assert_eq!((view(3).at, view(3).overlay.len()), (10, 2));
        assert_eq!((view(4).at, view(4).overlay.len()), (11, 0));
        assert_eq!((view(9).at, view(9).overlay.len()), (12, 0));
        assert!(history.view(0).is_none());
    }

    #[test]
    fn what_nobody_had_seen_yet_is_undone() {
        let undo = Overlay::from([(Key::from_static(b"theirs"), None)]);
        let history = History::new(Entry { base: 8, undo, ..entry(10, vec![]) });
        history.push(entry(11, vec![put(2, "theirs"), put(3, "ours")]));
        let at_first = history.view(1).expect("it is kept").overlay;
        assert_eq!(at_first.get(&b"theirs"[..]), Some(&None));
        let seen = history.view(2).expect("it is kept").overlay;
        assert!(seen.get(&b"theirs"[..]).is_some_and(Option::is_some));
    }
}

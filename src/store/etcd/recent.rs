//! Keys whose newest state is known without asking the etcd, since they were written or read lately.
//!
//! The writer compares what it takes from here in its transactions, so nothing is written on a state
//! that others have changed. A read may take it at any revision since which the key is as it is here:
//! a change gets here before its revision is closed, so what a closed revision shows can't be older.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::snapshot::Row;
use crate::model::{Key, KeyValue, Revision};

/// The bytes of rows kept, and what each takes beside its key and value.
const BYTES_MAX: usize = 8 << 20;
const ENTRY_BYTES: usize = 160;

/// The most that is remembered of the order in which rows came; a row that came often is there as often.
const ORDER_MAX: usize = 32 << 10;

/// The newest state of a key.
#[derive(Clone, Debug)]
pub(super) struct Latest {
    pub key: Key,
    /// `None` where there is no such key.
    pub row: Option<Row>,
    /// It was the same at this revision.
    pub since: Revision,
}

/// The newest states of some keys.
#[derive(Debug, Default)]
pub(super) struct Recent {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    rows: HashMap<Key, (Latest, u64)>,
    /// What came first goes first.
    order: VecDeque<(Key, u64)>,
    bytes: usize,
    /// Counts what came.
    count: u64,
    /// Counts the transactions of the writer.
    changes: u64,
}

// === impl Latest ===

impl Latest {
    fn bytes(&self) -> usize {
        self.key.len() + self.row.as_ref().map_or(0, |row| row.kv.value.len()) + ENTRY_BYTES
    }
}

// === impl Recent ===

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it changes what is behind the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest state of a key.
    pub(super) fn latest(&self, key: &Key) -> Option<Latest> {
        self.lock().rows.get(key).map(|(latest, _)| latest.clone())
    }

    /// A key as of a revision; the outer `None` where that is not known here.
    pub(super) fn at(&self, key: &Key, revision: Revision) -> Option<Option<KeyValue>> {
        let kept = self.lock();
        let (latest, _) = kept.rows.get(key).filter(|(latest, _)| latest.since <= revision)?;
        Some(latest.row.as_ref().map(|row| row.kv.clone()))
    }

    /// Counts the transactions of the writer; see [`Recent::learn`].
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Takes what was read of a key at the newest revision, unless something was written since
    /// `changes` was counted.
    pub(super) fn learn(&self, latest: Latest, changes: u64) {
        let mut kept = self.lock();
        if kept.changes == changes {
            kept.insert(latest);
        }
    }

    /// Takes what a transaction made of its keys, before anybody may read at its revisions.
    pub(super) fn write(&self, written: impl IntoIterator<Item = Latest>) {
        let mut kept = self.lock();
        kept.changes += 1;
        written.into_iter().for_each(|latest| kept.insert(latest));
    }

    /// Gives up what is known of some keys.
    pub(super) fn forget<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) {
        let mut kept = self.lock();
        kept.changes += 1;
        keys.into_iter().for_each(|key| kept.remove(key));
    }

    /// Gives up everything.
    pub(super) fn clear(&self) {
        let mut kept = self.lock();
        *kept = Kept { changes: kept.changes + 1, ..Kept::default() };
    }
}

// === impl Kept ===

impl Kept {
    fn insert(&mut self, latest: Latest) {
        self.remove(&latest.key);
        self.count += 1;
        self.bytes += latest.bytes();
        self.order.push_back((latest.key.clone(), self.count));
        self.rows.insert(latest.key.clone(), (latest, self.count));
        while self.bytes > BYTES_MAX || self.order.len() > ORDER_MAX {
            let Some((key, count)) = self.order.pop_front() else { break };
            if self.rows.get(&key).is_some_and(|(_, newest)| *newest == count) {
                self.remove(&key);
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some((latest, _)) = self.rows.remove(key) {
            self.bytes -= latest.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put(key: &'static str, revision: Revision, bytes: usize) -> Latest {
        let key = Key::from_static(key.as_bytes());
        let value = Bytes::from(vec![b'v'; bytes]);
        let kv = KeyValue { key: key.clone(), value, mod_revision: revision, ..Default::default() };
        let row = Some(Row { kv, etcd: revision, etcd_lease: 0 });
        Latest { key, row, since: revision }
    }

    fn found(recent: &Recent, key: &'static str, revision: Revision) -> Option<Option<Revision>> {
        let found = recent.at(&Key::from_static(key.as_bytes()), revision)?;
        Some(found.map(|kv| kv.mod_revision))
    }

    #[test]
    fn a_key_is_known_from_its_last_change_on() {
        let recent = Recent::default();
        recent.write([put("a", 5, 1), Latest { row: None, ..put("b", 5, 1) }]);
        assert_eq!(found(&recent, "a", 4), None);
        assert_eq!(found(&recent, "a", 5), Some(Some(5)));
        assert_eq!(found(&recent, "b", 9), Some(None));
        recent.write([put("a", 7, 1)]);
        assert_eq!(found(&recent, "a", 6), None);
        recent.forget([&Key::from_static(b"b")]);
        assert_eq!(found(&recent, "b", 9), None);
    }

    #[test]
    fn what_was_read_before_a_write_is_not_taken_after_it() {
        let recent = Recent::default();
        let changes = recent.changes();
        recent.write([put("a", 7, 1)]);
        recent.learn(put("a", 5, 1), changes);
        assert_eq!(found(&recent, "a", 7), Some(Some(7)));
        recent.learn(put("b", 5, 1), recent.changes());
        assert_eq!(found(&recent, "b", 7), Some(Some(5)));
    }

    #[test]
    fn what_came_first_goes_first_and_the_bytes_are_bounded() {
        let recent = Recent::default();
        recent.write([put("a", 1, BYTES_MAX / 2), put("b", 2, 1), put("a", 3, BYTES_MAX / 2)]);
        assert_eq!(found(&recent, "a", 3), Some(Some(3)));
        recent.write([put("c", 4, BYTES_MAX / 2)]);
        assert_eq!((found(&recent, "a", 9), found(&recent, "b", 9)), (None, None));
        assert_eq!(found(&recent, "c", 9), Some(Some(4)));
        let kept = recent.lock();
        assert!(kept.bytes <= BYTES_MAX);
        assert_eq!(kept.bytes, kept.rows.values().map(|(latest, _)| latest.bytes()).sum::<usize>());
    }
}

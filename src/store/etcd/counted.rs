//! Counts that the etcd gave with the first keys of a range, since it counts the whole range for them
//! anyway. Whoever reads the first keys mostly wants to know next how many there are.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::layout::EtcdRevision;
use crate::model::KeyRange;

/// Counts that are kept: for as many lists as are read at once.
const KEPT_MAX: usize = 32;

/// The bytes of a range that is kept.
const RANGE_BYTES_MAX: usize = 4 << 10;

/// The newest of them. A count at a revision never changes.
#[derive(Debug, Default)]
pub(super) struct Counted {
    kept: Mutex<VecDeque<Count>>,
}

#[derive(Debug)]
struct Count {
    range: KeyRange,
    at: EtcdRevision,
    keys: u64,
}

// === impl Counted ===

impl Counted {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Count>> {
        // Nothing panics while it changes what is behind the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, range: &KeyRange, at: EtcdRevision, keys: u64) {
        if range.start.len() + range.end.as_ref().map_or(0, Bytes::len) > RANGE_BYTES_MAX {
            return;
        }
        let mut kept = self.lock();
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(Count { range: range.clone(), at, keys });
    }

    /// How many keys a range had, where that is known.
    pub(super) fn keys(&self, range: &KeyRange, at: EtcdRevision) -> Option<u64> {
        let kept = self.lock();
        let count = kept.iter().rev().find(|count| count.at == at && count.range == *range)?;
        Some(count.keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_of_its_range_and_revision_and_the_oldest_go() {
        let counted = Counted::default();
        let range = |start| KeyRange { start: Bytes::from_static(start), end: None };
        counted.note(&range(b"a"), 5, 7);
        assert_eq!(counted.keys(&range(b"a"), 5), Some(7));
        assert_eq!(counted.keys(&range(b"a"), 6), None);
        assert_eq!(counted.keys(&range(b"b"), 5), None);
        let long = KeyRange { start: vec![b'k'; RANGE_BYTES_MAX + 1].into(), end: None };
        counted.note(&long, 5, 7);
        assert_eq!(counted.keys(&long, 5), None);
        for at in 0..KEPT_MAX as i64 {
            counted.note(&range(b"b"), at, 1);
        }
        assert_eq!(counted.keys(&range(b"a"), 5), None);
        assert_eq!(counted.lock().len(), KEPT_MAX);
    }
}

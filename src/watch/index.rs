//! Who watches a key: found by hashing, not by asking every watcher.

use std::collections::{BTreeMap, HashMap};

use crate::model::{Key, KeyRange, key::prefix_end};

/// Watchers by the ranges that they watch.
///
/// Nearly all ranges are one key or one prefix: a lookup costs one hash for the key and one for each
/// length of prefix in use. Other ranges are looked through one by one.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<Key, Vec<u64>>,
    prefixes: HashMap<Key, Vec<u64>>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
    others: Vec<(KeyRange, u64)>,
}

// === impl Index ===

impl Index {
    pub(super) fn insert(&mut self, range: &KeyRange, watcher: u64) {
        if let Some(key) = range.as_single() {
            self.keys.entry(key.clone()).or_default().push(watcher);
        } else if is_prefix(range) {
            let watchers = self.prefixes.entry(range.start.clone()).or_default();
            if watchers.is_empty() {
                *self.lengths.entry(range.start.len()).or_default() += 1;
            }
            watchers.push(watcher);
        } else {
            self.others.push((range.clone(), watcher));
        }
    }

    pub(super) fn remove(&mut self, range: &KeyRange, watcher: u64) {
        if let Some(key) = range.as_single() {
            remove_from(&mut self.keys, key, watcher);
        } else if is_prefix(range) {
            if remove_from(&mut self.prefixes, &range.start, watcher) {
                let length = range.start.len();
                let count = self.lengths.entry(length).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        } else {
            self.others.retain(|(_, other)| *other != watcher);
        }
    }

    /// Calls `found` for each watcher of `key`.
    pub(super) fn watching(&self, key: &[u8], found: &mut impl FnMut(u64)) {
        if let Some(watchers) = self.keys.get(key) {
            watchers.iter().copied().for_each(&mut *found);
        }
        for length in self.lengths.keys().copied().take_while(|length| *length <= key.len()) {
            if let Some(watchers) = self.prefixes.get(&key[..length]) {
                watchers.iter().copied().for_each(&mut *found);
            }
        }
        for (range, watcher) in &self.others {
            if range.contains(key) {
                found(*watcher);
            }
        }
    }

    /// The watchers of exactly this prefix.
    pub(super) fn watching_prefix(&self, prefix: &[u8]) -> &[u64] {
        self.prefixes.get(prefix).map_or(&[], |watchers| &watchers[..])
    }
}

fn is_prefix(range: &KeyRange) -> bool {
    range.end == prefix_end(&range.start)
}

/// Returns whether that was the last of its key.
fn remove_from(map: &mut HashMap<Key, Vec<u64>>, key: &Key, watcher: u64) -> bool {
    let Some(watchers) = map.get_mut(key) else { return false };
    if let Some(at) = watchers.iter().position(|other| *other == watcher) {
        watchers.swap_remove(at);
    }
    let is_last = watchers.is_empty();
    if is_last {
        map.remove(key);
    }
    is_last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        prop::collection::vec(prop_oneof![Just(b'a'), Just(b'/'), Just(0xff), Just(0)], 0..4)
            .prop_map(Key::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        prop_oneof![
            key().prop_map(KeyRange::prefix),
            key().prop_map(KeyRange::single),
            (key(), key()).prop_map(|(start, end)| KeyRange::from_wire(start, end)),
        ]
    }

    proptest! {
        #[test]
        fn the_index_finds_exactly_those_whose_range_holds_the_key(
            ranges in prop::collection::vec((range(), any::<bool>()), 0..20),
            key in key(),
        ) {
            let mut index = Index::default();
            for (watcher, (range, _)) in ranges.iter().enumerate() {
                index.insert(range, watcher as u64);
            }
            for (watcher, (range, _)) in ranges.iter().enumerate().filter(|(_, (_, gone))| *gone) {
                index.remove(range, watcher as u64);
            }
            let mut found = Vec::new();
            index.watching(&key, &mut |watcher| found.push(watcher));
            found.sort_unstable();
            let expected: Vec<u64> = ranges.iter().enumerate()
                .filter(|(_, (range, gone))| !gone && range.contains(&key))
                .map(|(watcher, _)| watcher as u64)
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}

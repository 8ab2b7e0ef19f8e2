//! Key ranges, as requests write them, against sets of keys.
//!
//! The input is a few keys; its first byte stands between them. Every range that they can make is
//! taken for a set of keys: those that etcd's documentation puts into it, of all that bound a range.
//! What is wrong somewhere is wrong at a bound.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use pleach::model::{
    Key, KeyRange, KeyValue,
    key::{prefix_end, successor},
    txn::{Rows, in_range},
};

/// Two ranges have four bounds.
const KEYS_MAX: usize = 4;

/// For each of the keys that bound a range whether it is in the set.
type Set = Vec<bool>;

fuzz_target!(|input: &[u8]| {
    let Some((separator, rest)) = input.split_first() else { return };
    let keys = rest.split(|byte| byte == separator).take(KEYS_MAX);
    let keys: Vec<Key> = keys.map(Key::copy_from_slice).collect();
    let bounds = bounds(&keys);
    let rows = bounds.iter().map(|key| KeyValue { key: key.clone(), ..KeyValue::default() });
    let rows: Rows = rows.map(|kv| (kv.key.clone(), kv)).collect();
    let ranges = ranges(&keys, &bounds);
    for (range, set) in &ranges {
        check_one(range, set, &bounds);
        let members = bounds.iter().zip(set).filter_map(|(key, is_in)| is_in.then_some(key));
        assert!(in_range(&rows, range).map(|kv| &kv.key).eq(members), "rows of {range:?}");
    }
    for (a, in_a) in &ranges {
        for (b, in_b) in &ranges {
            let both: Set = in_a.iter().zip(in_b).map(|(in_a, in_b)| *in_a && *in_b).collect();
            assert_eq!(set(&a.intersect(b), &bounds), both, "{a:?} and {b:?}");
            assert_eq!(a.overlaps(b), both.contains(&true), "{a:?} overlaps {b:?}");
            assert_eq!(a.covers(b), both == *in_b, "{a:?} covers {b:?}");
        }
    }
});

fn bounds(keys: &[Key]) -> Vec<Key> {
    let bounds = |key: &Key| [Some(key.clone()), Some(successor(key)), prefix_end(key)];
    let bounds: BTreeSet<Key> =
        keys.iter().flat_map(bounds).flatten().chain([Key::new()]).collect();
    bounds.into_iter().collect()
}

fn set(range: &KeyRange, bounds: &[Key]) -> Set {
    bounds.iter().map(|key| range.contains(key)).collect()
}

/// Every range that the keys can make, and the set that is meant by it.
fn ranges(keys: &[Key], bounds: &[Key]) -> Vec<(KeyRange, Set)> {
    let meant = |is_meant: &dyn Fn(&Key) -> bool| bounds.iter().map(is_meant).collect();
    let mut ranges = vec![(KeyRange::all(), meant(&|_| true))];
    for key in keys {
        ranges.push((KeyRange::single(key.clone()), meant(&|other| other == key)));
        ranges.push((KeyRange::prefix(key.clone()), meant(&|other| other.starts_with(key))));
        for end in keys {
            let is_meant = |other: &Key| match &end[..] {
                b"" => other == key,
                b"\0" => other >= key,
                _ => other >= key && other < end,
            };
            ranges.push((KeyRange::from_wire(key.clone(), end.clone()), meant(&is_meant)));
        }
    }
    ranges
}

fn check_one(range: &KeyRange, members: &Set, bounds: &[Key]) {
    assert_eq!(&set(range, bounds), members, "{range:?}");
    assert_eq!(range.is_empty(), !members.contains(&true), "{range:?} is empty");
    // Between a key and its successor there is none.
    let is_single = !range.is_empty() && !range.contains(&successor(&range.start));
    assert_eq!(range.as_single(), is_single.then_some(&range.start), "{range:?}");
    for (at, key) in bounds.iter().enumerate() {
        let mut behind = members.clone();
        behind[..=at].fill(false);
        assert_eq!(set(&range.after(key), bounds), behind, "{range:?} after {key:?}");
    }
}

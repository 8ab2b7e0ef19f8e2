//! Paths, each with everything below it: the rules that are key ranges.

use bytes::Bytes;

use super::{Reach, reach_of_ranges};
use crate::model::key::{Key, KeyRange};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Paths {
    paths: Vec<Key>,
    /// What the paths own, as ranges; computed once because pruning happens on every request.
    ranges: Vec<KeyRange>,
    /// Whether the paths themselves can be keys, and not only what is below them.
    paths_are_keys: bool,
}

// === impl Paths ===

impl Paths {
    pub(super) fn new(paths: Vec<String>, paths_are_keys: bool) -> Self {
        let paths: Vec<Key> = paths.into_iter().map(Bytes::from).collect();
        let ranges = paths.iter().flat_map(|path| [KeyRange::single(path.clone()), below(path)]);
        Self { ranges: ranges.collect(), paths, paths_are_keys }
    }

    pub(super) fn matches(&self, key: &[u8]) -> bool {
        let holds = |path: &Key| {
            key.strip_prefix(&path[..]).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        self.paths.iter().any(holds)
    }

    pub(super) fn reach(&self, range: &KeyRange) -> Reach {
        reach_of_ranges(&self.ranges, range)
    }

    pub(super) fn extent(&self) -> Vec<KeyRange> {
        self.ranges.clone()
    }

    /// Kubernetes never stores a key `/registry/pods/<namespace>`, so a rule that owns everything
    /// below the paths of a namespace leaves nothing to a later one.
    pub(super) fn extent_in_kubernetes(&self) -> Vec<KeyRange> {
        match self.paths_are_keys {
            true => self.ranges.clone(),
            false => self.paths.iter().map(below).collect(),
        }
    }

    /// Whether `key` is one of the paths of a namespace, which is matched but never stored.
    #[cfg(test)]
    pub(super) fn is_never_stored(&self, key: &Key) -> bool {
        !self.paths_are_keys && self.paths.contains(key)
    }
}

/// The keys below `path`, without `path` itself: between the two lie `/registry/pods-old` and
/// `/registry/pods.example.com`, which are others' keys.
fn below(path: &Key) -> KeyRange {
    KeyRange::prefix([&path[..], b"/"].concat().into())
}

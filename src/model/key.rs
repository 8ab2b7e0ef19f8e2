//! Keys and half-open ranges of keys. Keys are bytes and compare as bytes.

use bytes::Bytes;

/// A key: any bytes, of any length that the store takes. Never empty in a store.
pub type Key = Bytes;

/// The keys `start <= key < end`; without `end`, all from `start` on.
///
/// One key is the range that ends at its successor, so single keys and ranges need no two paths.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Key,
    /// The first key after the range; `None` where the range has no upper bound.
    pub end: Option<Key>,
}

// === impl KeyRange ===

impl KeyRange {
    /// Every key there is.
    pub fn all() -> Self {
        Self { start: Key::new(), end: None }
    }

    /// The range that holds just `key`.
    pub fn single(key: Key) -> Self {
        let end = Some(successor(&key));
        Self { start: key, end }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: Key) -> Self {
        let end = prefix_end(&prefix);
        Self { start: prefix, end }
    }

    /// As etcd's requests write it: an empty `range_end` means one key, a zero byte all keys from
    /// `key` on, anything else the first key that is not meant.
    pub fn from_wire(key: Key, range_end: Key) -> Self {
        match &range_end[..] {
            b"" => Self::single(key),
            b"\0" => Self { start: key, end: None },
            _ => Self { start: key, end: Some(range_end) },
        }
    }

    /// Whether no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// The key, where the range holds just one.
    pub fn as_single(&self) -> Option<&Key> {
        let end = self.end.as_ref()?;
        let is_single = end.len() == self.start.len() + 1
            && end.last() == Some(&0)
            && end.starts_with(&self.start);
        is_single.then_some(&self.start)
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// Whether every key of `other` lies in this range.
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty()
            || (self.start <= other.start
                && match (&self.end, &other.end) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(end), Some(other_end)) => other_end <= end,
                })
    }

    /// The keys in both ranges; may be empty.
    pub fn intersect(&self, other: &Self) -> Self {
        let start = self.start.clone().max(other.start.clone());
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.min(b).clone()),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        Self { start, end }
    }

    /// Whether some key could lie in both ranges.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The part of the range behind `key`.
    pub fn after(&self, key: &[u8]) -> Self {
        Self { start: successor(key).max(self.start.clone()), end: self.end.clone() }
    }
}

/// The smallest key greater than `key`.
pub fn successor(key: &[u8]) -> Key {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The first key behind all that begin with `prefix`; `None` where there is none (all bytes 0xff).
pub fn prefix_end(prefix: &[u8]) -> Option<Key> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// The prefix of the keys of the one kind that a range lies in, as API servers lay them out below `/registry`:
/// `/registry/pods/`, `/registry/stable.example.com/shirts/`. `None` for a range that reaches beyond one.
pub fn kind_prefix(range: &KeyRange) -> Option<Key> {
    const REGISTRY: &[u8] = b"registry";
    let start = &range.start;
    let slashes = || start.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let segment =
        |at: usize| start[at + 1..].split(|byte| *byte == b'/').next().unwrap_or_default();
    let root = slashes().find(|at| segment(*at) == REGISTRY).or_else(|| slashes().next())?;
    // `/registry/pods/`, and `/registry/GROUP/shirts/`, whose group has a dot.
    let mut ends = slashes().filter(|at| *at > root);
    let kind = ends.next()?;
    let last = match segment(kind).contains(&b'.') {
        true => {
            ends.next()?;
            ends.next()?
        }
        false => ends.next()?,
    };
    let prefix = start.slice(..=last);
    let scope = KeyRange { end: prefix_end(&prefix), start: prefix };
    (scope.end.is_some() && scope.covers(range)).then_some(scope.start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), Just(b'a'), any::<u8>()], 0..4)
            .prop_map(Key::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), key()).prop_map(|(start, end)| KeyRange::from_wire(start, end))
    }

    proptest! {
        #[test]
        fn a_prefix_range_holds_exactly_the_keys_with_that_prefix(prefix in key(), other in key()) {
            let range = KeyRange::prefix(prefix.clone());
            prop_assert_eq!(range.contains(&other), other.starts_with(&prefix));
        }

        #[test]
        fn a_single_range_holds_exactly_its_key(one in key(), other in key()) {
            let range = KeyRange::single(one.clone());
            prop_assert_eq!(range.contains(&other), one == other);
            prop_assert_eq!(range.as_single(), Some(&one));
        }

        #[test]
        fn an_intersection_holds_what_both_hold(a in range(), b in range(), k in key()) {
            let both = a.intersect(&b);
            prop_assert_eq!(both.contains(&k), a.contains(&k) && b.contains(&k));
            prop_assert!(!(both.is_empty() && both.contains(&k)));
            prop_assert!(a.covers(&both) && b.covers(&both));
        }

        #[test]
        fn a_covering_range_holds_all_of_the_covered(a in range(), b in range(), k in key()) {
            if a.covers(&b) && b.contains(&k) {
                prop_assert!(a.contains(&k));
            }
        }
    }

    #[test]
    fn a_kind_has_one_prefix_over_its_namespaces() {
        for (start, expected) in [
            ("/registry/pods/", Some("/registry/pods/")),
            ("/registry/pods/team-a/", Some("/registry/pods/")),
            ("/registry/pods/team-a/web-1", Some("/registry/pods/")),
            ("/registry/services/specs/team-a/", Some("/registry/services/")),
            ("/registry/stable.example.com/shirts/", Some("/registry/stable.example.com/shirts/")),
            (
                "/registry/stable.example.com/shirts/a/",
                Some("/registry/stable.example.com/shirts/"),
            ),
            ("/registry/stable.example.com/", None),
            ("/tenants/one/registry/pods/", Some("/tenants/one/registry/pods/")),
            ("/other/pods/", Some("/other/pods/")),
            ("/registry/", None),
            ("/registry", None),
            ("registry/pods/", None),
            ("", None),
        ] {
            let range = KeyRange::prefix(Key::from_static(start.as_bytes()));
            assert_eq!(
                kind_prefix(&range),
                expected.map(|prefix| Key::from_static(prefix.as_bytes())),
                "{start}"
            );
        }
        let beyond = KeyRange {
            start: Key::from_static(b"/registry/pods/"),
            end: Some(Key::from_static(b"/registry/zzz")),
        };
        assert_eq!(kind_prefix(&beyond), None);
        assert_eq!(
            kind_prefix(&KeyRange { start: Key::from_static(b"/registry/pods/"), end: None }),
            None
        );
    }
}

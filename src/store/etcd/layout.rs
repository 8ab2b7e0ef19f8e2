//! What lies in the etcd beside the keys of clients, which stay as they are.
//!
//! ```text
//!   pleach.store/about           what all the rest means; rarely written
//!   pleach.store/owner           who has the store, for as long as its etcd lease lives
//!   pleach.store/log             what the last transaction of the owner did, written by each of them
//!   pleach.store/key/KEY         the revisions of a key, written together with it
//!   pleach.store/lease/ID/KEY    the keys of a lease
//!   pleach.store/record/NAME     records of the node
//! ```
//!
//! Two kinds of revisions meet here. `revision` means ours, `etcd` the etcd's own. The history that the
//! etcd keeps of `log` is the map between them: it says which changes of an etcd revision make which
//! of our revisions.

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::{
    model::{Key, KeyRange, LeaseId, Revision, key::prefix_end},
    proto::mvccpb,
};

/// A revision of the etcd.
pub(super) type EtcdRevision = i64;

/// What every reserved key begins with.
pub(super) const RESERVED_TEXT: &str = "pleach.store/";
pub(super) const RESERVED: &[u8] = RESERVED_TEXT.as_bytes();

pub(super) const ABOUT: &[u8] = b"pleach.store/about";
pub(super) const OWNER: &[u8] = b"pleach.store/owner";
pub(super) const LOG: &[u8] = b"pleach.store/log";
const MARKS: &[u8] = b"pleach.store/key/";
const LEASES: &[u8] = b"pleach.store/lease/";
pub(super) const RECORDS_PREFIX: &[u8] = b"pleach.store/record/";

/// The layout that this version reads and writes.
pub(super) const LAYOUT_VERSION: i64 = 2;

/// What the store is.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct About {
    /// [`LAYOUT_VERSION`] of who wrote it.
    #[prost(int64, tag = "1")]
    pub version: i64,
    /// The etcd cluster that it lies in: a snapshot that was restored is another.
    #[prost(uint64, tag = "2")]
    pub cluster: u64,
    /// Keys that were there before keep the etcd's revisions up to this one.
    #[prost(int64, tag = "3")]
    pub attached: EtcdRevision,
    /// Where changes of others could not be followed one by one.
    #[prost(message, repeated, tag = "4")]
    pub gaps: Vec<Gap>,
    /// Our revision below which nothing is readable; 0 before the first compaction.
    #[prost(int64, tag = "5")]
    pub compacted: Revision,
    /// Made with the store: an empty etcd at the same address is another. Since version 2.
    #[prost(uint64, tag = "6")]
    pub incarnation: u64,
}

/// All changes of others up to an etcd revision that nothing else explains were seen at one of ours.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Gap {
    #[prost(int64, tag = "1")]
    pub etcd: EtcdRevision,
    #[prost(int64, tag = "2")]
    pub revision: Revision,
}

/// Who has the store.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Owner {
    /// For people.
    #[prost(string, tag = "1")]
    pub note: String,
    /// The process, so that another on the same machine can tell that it is dead.
    #[prost(string, tag = "2")]
    pub process: String,
}

/// What a transaction of the owner did.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LogRecord {
    /// Counts the owners.
    #[prost(int64, tag = "1")]
    pub epoch: i64,
    /// All changes of others up to this etcd revision have a revision of ours by now.
    #[prost(int64, tag = "2")]
    pub base: EtcdRevision,
    /// Our last revision.
    #[prost(int64, tag = "3")]
    pub last: Revision,
    /// Our revisions that it adds, in order.
    #[prost(message, repeated, tag = "4")]
    pub commits: Vec<CommitMark>,
}

/// One of our revisions, as a record knows it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct CommitMark {
    #[prost(int64, tag = "1")]
    pub revision: Revision,
    /// The change of somebody else that it stands for; 0 for one of the transaction itself.
    #[prost(int64, tag = "2")]
    pub etcd: EtcdRevision,
    /// How many of the transaction's changes are its; 0 where all are.
    #[prost(int64, tag = "3")]
    pub count: i64,
    /// Where it changed a key twice, which no transaction of an etcd can: its events, in our revisions.
    #[prost(message, repeated, tag = "4")]
    pub events: Vec<mvccpb::Event>,
}

/// The revisions of a key.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Mark {
    #[prost(int64, tag = "1")]
    pub revision: Revision,
    #[prost(int64, tag = "2")]
    pub create_revision: Revision,
    #[prost(int64, tag = "3")]
    pub version: i64,
    #[prost(int64, tag = "4")]
    pub lease: LeaseId,
    /// The etcd revision of the key that it describes; 0 for its own.
    #[prost(int64, tag = "5")]
    pub etcd: EtcdRevision,
}

fn joined(prefix: &[u8], rest: &[u8]) -> Key {
    let mut key = BytesMut::with_capacity(prefix.len() + rest.len());
    key.extend_from_slice(prefix);
    key.extend_from_slice(rest);
    key.freeze()
}

/// Where the mark of a key lies.
pub(super) fn mark_of(key: &[u8]) -> Key {
    joined(MARKS, key)
}

/// The key that a mark describes; `None` where it is no mark.
pub(super) fn marked(key: &Bytes) -> Option<Key> {
    key.starts_with(MARKS).then(|| key.slice(MARKS.len()..))
}

/// Where the marks of a range lie.
pub(super) fn marks_of(range: &KeyRange) -> KeyRange {
    let end = match &range.end {
        Some(end) => Some(mark_of(end)),
        None => prefix_end(MARKS),
    };
    KeyRange { start: mark_of(&range.start), end }
}

pub(super) fn lease_prefix(lease: LeaseId) -> Key {
    joined(LEASES, format!("{lease:016x}/").as_bytes())
}

/// Where the keys of all leases are noted.
pub(super) fn all_leases() -> KeyRange {
    KeyRange::prefix(Bytes::from_static(LEASES))
}

/// The lease whose key is noted at `key`.
pub(super) fn lease_of(key: &[u8]) -> Option<LeaseId> {
    let id = key.strip_prefix(LEASES)?.get(..16)?;
    // Written as the bits of an `i64`, which may be negative.
    u64::from_str_radix(std::str::from_utf8(id).ok()?, 16).ok().map(|id| id as LeaseId)
}

/// Where it is noted that a key belongs to a lease.
pub(super) fn lease_key(lease: LeaseId, key: &[u8]) -> Key {
    joined(&lease_prefix(lease), key)
}

pub(super) fn record_key(name: &str) -> Key {
    joined(RECORDS_PREFIX, name.as_bytes())
}

pub(super) fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(RESERVED)
}

/// A range without the reserved keys: what lies before them, and what lies behind.
pub(super) fn without_reserved(range: &KeyRange) -> Vec<KeyRange> {
    let reserved = KeyRange::prefix(Bytes::from_static(RESERVED));
    if !range.overlaps(&reserved) {
        return if range.is_empty() { Vec::new() } else { vec![range.clone()] };
    }
    let before = KeyRange { start: range.start.clone(), end: Some(reserved.start.clone()) };
    let behind = reserved.end.map(|end| KeyRange { start: end, end: range.end.clone() });
    let parts = std::iter::once(before).chain(behind);
    let parts = parts.map(|part| part.intersect(range));
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        prop_oneof![
            Just(Bytes::from_static(RESERVED)),
            Just(Bytes::from_static(LOG)),
            Just(Bytes::from_static(b"pleach.store0")),
            prop::collection::vec(prop_oneof![Just(b'p'), any::<u8>()], 0..3).prop_map(Key::from),
        ]
    }

    proptest! {
        #[test]
        fn a_range_without_the_reserved_keys_holds_all_others(a in key(), b in key(), k in key()) {
            let range = KeyRange::from_wire(a, b);
            let parts = without_reserved(&range);
            let holding = parts.iter().filter(|part| part.contains(&k)).count();
            let is_expected = range.contains(&k) && !is_reserved(&k);
            prop_assert_eq!(holding, usize::from(is_expected));
        }

        #[test]
        fn the_marks_of_a_range_are_those_of_its_keys(a in key(), b in key(), k in key()) {
            let range = KeyRange::from_wire(a, b);
            prop_assert_eq!(marks_of(&range).contains(&mark_of(&k)), range.contains(&k));
        }
    }

    #[test]
    fn a_mark_names_its_key() {
        assert_eq!(
            marked(&mark_of(b"/registry/pods/a")),
            Some(Key::from_static(b"/registry/pods/a"))
        );
        assert_eq!(marked(&Key::from_static(LOG)), None);
    }
}

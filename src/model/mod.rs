//! The words of Pleach: keys, revisions, what is kept, what changes, and what is asked.
//!
//! Values only: nothing here does I/O, waits, or knows gRPC or SQL. The one algorithm is
//! [`txn::execute`], the meaning of a transaction, which every store shares.

pub mod changes;
pub mod error;
pub mod key;
pub mod nearest;

pub mod txn;

use bytes::Bytes;

pub use error::StoreError;
pub use key::{Key, KeyRange};

/// A point in the one order of a tree: 1 is the empty store, every mutating transaction takes a
/// greater one. Stays below 2^53, since some clients read it as a double. 0 means "none given".
pub type Revision = i64;

/// Names a lease; 0 means none.
pub type LeaseId = i64;

/// A key as it stands at some revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Key,
    /// The revision that created the key in its present life.
    pub create_revision: Revision,
    /// The revision that changed it last.
    pub mod_revision: Revision,
    /// Changes in its present life, from 1. 0 marks a deletion.
    pub version: i64,
    /// The lease that it is attached to; 0 for none.
    pub lease: LeaseId,
    /// The value; empty where a read asked for keys only.
    pub value: Bytes,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key after the change. A deletion has version 0 and no more than key and `mod_revision`.
    pub kv: KeyValue,
    /// The key before the change; `None` where it did not exist, or was compacted away.
    pub prev: Option<KeyValue>,
}

/// All changes of one revision, in the order of the operations that made them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The revision, shared by all its events.
    pub revision: Revision,
    /// At least one event; each key at most once.
    pub events: Vec<Event>,
}

// === impl KeyValue ===

impl KeyValue {
    /// The mark that a key was deleted at `revision`.
    pub fn tombstone(key: Key, revision: Revision) -> Self {
        Self { key, mod_revision: revision, ..Self::default() }
    }

    /// Whether this marks a deletion.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// The bytes it takes in memory and on the wire, about.
    pub fn size(&self) -> usize {
        self.key.len() + self.value.len() + 40
    }
}

// === impl Event ===

impl Event {
    /// Whether the key did not exist before.
    pub fn is_create(&self) -> bool {
        self.kv.version == 1
    }

    /// The revision of what was there before; 0 where nothing was.
    pub fn prev_revision(&self) -> Revision {
        self.prev.as_ref().map_or(0, |prev| prev.mod_revision)
    }

    /// Whether the key no longer exists.
    pub fn is_delete(&self) -> bool {
        self.kv.is_tombstone()
    }

    /// The bytes it takes in memory and on the wire, about.
    pub fn size(&self) -> usize {
        self.kv.size() + self.prev.as_ref().map_or(0, KeyValue::size)
    }
}

// === impl Commit ===

impl Commit {
    /// The bytes it takes in memory and on the wire, about.
    pub fn size(&self) -> usize {
        self.events.iter().map(Event::size).sum()
    }

    /// Takes in the events of another commit of its revision, but for keys that it has.
    pub fn join(&mut self, other: &Self) {
        let has = |key: &Key| self.events.iter().any(|event| event.kv.key == *key);
        let lacking = other.events.iter().filter(|event| !has(&event.kv.key));
        let lacking: Vec<Event> = lacking.cloned().collect();
        self.events.extend(lacking);
    }
}

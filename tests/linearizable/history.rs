//! What clients asked, what they were told, and what truly happened.

use std::{collections::BTreeSet, time::Duration};

use pleach::proto::mvccpb;

/// A key as it is, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    pub key: String,
    pub value: String,
    pub create: i64,
    pub modified: i64,
    pub version: i64,
    pub lease: i64,
}

/// What happened to a key at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: i64,
    pub key: String,
    /// `None` for a deletion.
    pub now: Option<Kv>,
    pub before: Option<Kv>,
}

/// One key, or all from one up to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    pub from: String,
    /// Empty for one key.
    pub end: String,
}

/// What a client asks.
#[derive(Clone, Debug)]
pub enum Asked {
    /// No two calls put the same value.
    Put {
        key: String,
        value: String,
        lease: i64,
    },
    Delete(Keys),
    /// Puts two keys in one transaction.
    PutBoth {
        keys: [String; 2],
        value: String,
    },
    /// Puts the key where it was last changed then, else reads it.
    Guarded {
        key: String,
        value: String,
        expected: i64,
    },
    /// As of a revision; 0 for the present.
    Read {
        keys: Keys,
        revision: i64,
    },
    Grant(i64),
    Revoke(i64),
    TimeToLive(i64),
    KeepAlive(i64),
    Compact(i64),
    /// Waits for the head of a line: for a lock, or for an election with a value.
    Enter {
        name: String,
        lease: i64,
        value: Option<String>,
    },
    Unlock(String),
    Proclaim(Place, String),
    Resign(Place),
    Leader(String),
    /// What only has a header: status, alarms, hashes of all, all leases.
    Look(&'static str),
}

/// A place in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub key: String,
    /// The revision at which it was entered; 0 where that was not told.
    pub created: i64,
    pub lease: i64,
}

/// What it is told beside the revision.
#[derive(Clone, Debug)]
pub enum Said {
    Done,
    Deleted(Vec<Kv>),
    Guarded {
        is_put: bool,
        found: Option<Kv>,
    },
    Read(Vec<Kv>),
    Head(Place),
    /// The keys, where it lives.
    Lease(Option<Vec<String>>),
    /// All that live.
    Leases(BTreeSet<i64>),
}

/// How a call ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// With the revision of the header.
    Said(i64, Said),
    /// Nothing was done, for good.
    Refused,
    /// It may have been done.
    Unknown,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which node was asked.
    pub node: usize,
    pub begin: Duration,
    pub end: Duration,
    pub asked: Asked,
    pub outcome: Outcome,
}

// === impl Kv ===

impl From<&mvccpb::KeyValue> for Kv {
    fn from(kv: &mvccpb::KeyValue) -> Self {
        Self {
            key: String::from_utf8_lossy(&kv.key).into(),
            value: String::from_utf8_lossy(&kv.value).into(),
            create: kv.create_revision,
            modified: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

// === impl Keys ===

impl Keys {
    pub fn one(key: &str) -> Self {
        Self { from: key.to_owned(), end: String::new() }
    }

    /// All below a prefix that ends with a slash.
    pub fn below(prefix: &str) -> Self {
        let end = format!("{}0", prefix.trim_end_matches('/'));
        Self { from: prefix.to_owned(), end }
    }

    pub fn contain(&self, key: &str) -> bool {
        if self.end.is_empty() { key == self.from } else { *key >= *self.from && *key < *self.end }
    }
}

// === impl Call ===

impl Call {
    /// The revision that it was answered with, where it was.
    pub fn revision(&self) -> Option<i64> {
        match self.outcome {
            Outcome::Said(revision, _) => Some(revision),
            Outcome::Refused | Outcome::Unknown => None,
        }
    }

    pub fn is_said(&self) -> bool {
        self.revision().is_some()
    }
}

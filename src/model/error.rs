//! What can go wrong in a store, as the layers above must tell it apart.

use std::sync::Arc;

use super::Revision;

/// Why a store did not do what it was asked.
///
/// One table (`server/status`) turns these into gRPC codes and etcd's exact texts. Whether a caller
/// may try again is part of the variant's meaning, decided where the error is born.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision asked for is older than what compaction left. Final.
    #[error("revision is compacted; the oldest that can be read is {compacted}")]
    Compacted {
        /// The oldest revision that can still be read.
        compacted: Revision,
    },
    /// The revision asked for has not been reached. Final for this request.
    #[error("revision is in the future; the present one is {current}")]
    FutureRevision {
        /// The revision that has been reached.
        current: Revision,
    },
    /// A put wants to keep the value or lease of a key that does not exist. Final.
    #[error("the key to keep the value or lease of does not exist")]
    KeyNotFound,
    /// The lease is not known (any more). Final.
    #[error("lease {0} does not exist")]
    LeaseNotFound(i64),
    /// The key is longer than what the database can keep. Final.
    #[error("a key of {bytes} bytes is too long for store `{store}`, which keeps keys up to {max}")]
    KeyTooLong {
        /// The route's name.
        store: Arc<str>,
        /// The key's length.
        bytes: usize,
        /// The longest that it keeps.
        max: usize,
    },
    /// The key is one of those that the store keeps for itself. Final.
    #[error("store `{store}` keeps keys that begin with `{prefix}` for itself")]
    KeyReserved {
        /// The route's name.
        store: Arc<str>,
        /// What its own keys begin with.
        prefix: Arc<str>,
    },
    /// A write is larger than what the store takes. Final.
    #[error("the write is larger than what store `{0}` takes")]
    TooLarge(Arc<str>),
    /// The database has no room, or the quota is used up. Final until an operator makes room.
    #[error("no space: {0}")]
    NoSpace(Arc<str>),
    /// An operator was told that members differ (the CORRUPT alarm): nothing is changed until it is disarmed.
    #[error("the CORRUPT alarm is raised; disarm it once the data was looked at")]
    Corrupt,
    /// A mutating transaction names keys of two stores. Final.
    #[error(
        "a transaction that changes keys must lie in one store, but this one names keys of \
         `{first}` and `{second}`; split it, or route both to one store"
    )]
    TwoStores {
        /// The route of the first key.
        first: Arc<str>,
        /// The route of the first key that lies elsewhere.
        second: Arc<str>,
    },
    /// The store can't be used now; nothing of the request was applied. May be tried again.
    #[error("store `{store}` is unavailable: {reason}")]
    Unavailable {
        /// The route's name.
        store: Arc<str>,
        /// What happened, without secrets.
        reason: Arc<str>,
    },
    /// The connection broke or the disk failed while a write was being committed: it may or may
    /// not be applied. Never to be tried again by itself.
    #[error("store `{store}` did not say whether it committed: {reason}")]
    UnknownOutcome {
        /// The route's name.
        store: Arc<str>,
        /// What happened, without secrets.
        reason: Arc<str>,
    },
    /// A lease ended since the request was sent, so that what it says of leases may be wrong. Nothing of
    /// it was applied; the node that granted the leases sends it again.
    #[error("leases have ended since the request was sent")]
    StaleLeases,
    /// What a node keeps beside its keys can't be read. Final until an operator has looked at it.
    #[error(
        "the record `{record}` in store `{store}` can't be read: {reason}; restore the store from a \
         backup, or run the version of Pleach that wrote it"
    )]
    Damaged {
        /// The default store's name.
        store: Arc<str>,
        /// The record's name.
        record: Arc<str>,
        /// What is wrong with it.
        reason: Arc<str>,
    },
    /// Another node owns the store now; this one must not touch it. Final for this process.
    #[error("store `{store}` is owned by {owner}")]
    Fenced {
        /// The route's name.
        store: Arc<str>,
        /// Who owns it.
        owner: Arc<str>,
    },
}

// === impl StoreError ===

impl StoreError {
    /// The route whose store it is about, where it is about one.
    pub fn route(&self) -> Option<&Arc<str>> {
        match self {
            Self::KeyTooLong { store, .. }
            | Self::KeyReserved { store, .. }
            | Self::TooLarge(store)
            | Self::Unavailable { store, .. }
            | Self::UnknownOutcome { store, .. }
            | Self::Damaged { store, .. }
            | Self::Fenced { store, .. } => Some(store),
            Self::TwoStores { first, .. } => Some(first),
            Self::Compacted { .. }
            | Self::FutureRevision { .. }
            | Self::KeyNotFound
            | Self::LeaseNotFound(_)
            | Self::NoSpace(_)
            | Self::Corrupt
            | Self::StaleLeases => None,
        }
    }

    /// The variant's name, as metrics have it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Compacted { .. } => "compacted",
            Self::FutureRevision { .. } => "future_revision",
            Self::KeyNotFound => "key_not_found",
            Self::LeaseNotFound(_) => "lease_not_found",
            Self::KeyTooLong { .. } => "key_too_long",
            Self::KeyReserved { .. } => "key_reserved",
            Self::TooLarge(_) => "too_large",
            Self::NoSpace(_) => "no_space",
            Self::Corrupt => "corrupt",
            Self::TwoStores { .. } => "two_stores",
            Self::Unavailable { .. } => "unavailable",
            Self::UnknownOutcome { .. } => "unknown_outcome",
            Self::StaleLeases => "stale_leases",
            Self::Damaged { .. } => "damaged",
            Self::Fenced { .. } => "fenced",
        }
    }

    /// Whether the store is to blame, and not what it was asked.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::NoSpace(_)
            | Self::Corrupt
            | Self::Unavailable { .. }
            | Self::UnknownOutcome { .. }
            | Self::Damaged { .. }
            | Self::Fenced { .. } => true,
            Self::Compacted { .. }
            | Self::FutureRevision { .. }
            | Self::KeyNotFound
            | Self::LeaseNotFound(_)
            | Self::KeyTooLong { .. }
            | Self::KeyReserved { .. }
            | Self::TooLarge(_)
            | Self::TwoStores { .. }
            | Self::StaleLeases => false,
        }
    }

    /// Whether the same request may be made again, of the same node, and may then succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::StaleLeases => true,
            Self::Compacted { .. }
            | Self::FutureRevision { .. }
            | Self::KeyNotFound
            | Self::LeaseNotFound(_)
            | Self::KeyTooLong { .. }
            | Self::KeyReserved { .. }
            | Self::TooLarge(_)
            | Self::NoSpace(_)
            | Self::Corrupt
            | Self::TwoStores { .. }
            | Self::UnknownOutcome { .. }
            | Self::Damaged { .. }
            | Self::Fenced { .. } => false,
        }
    }
}

/// The result of what a store does.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

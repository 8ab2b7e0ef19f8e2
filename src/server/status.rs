//! The one table from what went wrong to gRPC's codes and etcd's exact texts.
//!
//! Clients compare the texts, letter by letter; the codes decide what they retry. A write that may have
//! happened is answered UNAVAILABLE, which no client retries for writes; CANCELLED and
//! DEADLINE_EXCEEDED, which clients retry for everything, are never answered.

use std::sync::Arc;

use tonic::{Code, Status};

use crate::{model::StoreError, node::GrantError, select::SelectorError};

/// An error that etcd has: its code and its text.
pub type Text = (Code, &'static str);

macro_rules! texts {
    ($($name:ident = $code:ident, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: Text = (Code::$code, $text);)*
    };
}

texts! {
    COMPACTED = OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FUTURE_REVISION = OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    EMPTY_KEY = InvalidArgument, "etcdserver: key is not provided";
    KEY_NOT_FOUND = InvalidArgument, "etcdserver: key not found";
    VALUE_PROVIDED = InvalidArgument, "etcdserver: value is provided";
    LEASE_PROVIDED = InvalidArgument, "etcdserver: lease is provided";
    TOO_MANY_OPS = InvalidArgument, "etcdserver: too many operations in txn request";
    DUPLICATE_KEY = InvalidArgument, "etcdserver: duplicate key given in txn request";
    INVALID_SORT = InvalidArgument, "etcdserver: invalid sort option";
    TOO_LARGE = InvalidArgument, "etcdserver: request is too large";
    NO_SPACE = ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    CORRUPT = DataLoss, "etcdserver: corrupt cluster";
    LEASE_NOT_FOUND = NotFound, "etcdserver: requested lease not found";
    MEMBER_NOT_FOUND = NotFound, "etcdserver: member not found";
    LEASE_EXISTS = FailedPrecondition, "etcdserver: lease already exists";
    LEASE_TTL_TOO_LARGE = OutOfRange, "etcdserver: too large lease TTL";
    AUTH_NOT_ENABLED = FailedPrecondition, "etcdserver: authentication is not enabled";
    ROOT_USER_MISSING = FailedPrecondition, "etcdserver: root user does not exist";
    USER_NOT_FOUND = FailedPrecondition, "etcdserver: user name not found";
    ROLE_NOT_FOUND = FailedPrecondition, "etcdserver: role name not found";
    USER_EMPTY = InvalidArgument, "etcdserver: user name is empty";
    ROLE_EMPTY = InvalidArgument, "etcdserver: role name is empty";
    TIMED_OUT = Unavailable, "etcdserver: request timed out";
    STOPPED = Unavailable, "etcdserver: server stopped";
}

/// An error of etcd's as an answer.
pub fn status((code, text): Text) -> Status {
    Status::new(code, text)
}

/// What a request is answered that has a selector which is none.
pub(super) fn of_selector(error: SelectorError) -> Status {
    Status::invalid_argument(format!("pleach: {error}"))
}

/// What etcd's gRPC library says of messages that are larger than it takes.
pub(super) fn beyond_all(bytes: usize, max: usize) -> Status {
    Status::resource_exhausted(format!(
        "grpc: received message larger than max ({bytes} vs. {max})"
    ))
}

/// What a lock or an election answers where what it is made of is refused: etcd's are clients of its own, and
/// what those are told goes on without its code. What may be tried again keeps it.
pub fn of_line(error: StoreError) -> Status {
    let source = Arc::new(error.clone());
    let status = Status::from(error);
    match status.code() {
        Code::Unavailable => status,
        _ => {
            let mut unknown = Status::unknown(status.message());
            unknown.set_source(source);
            unknown
        }
    }
}

impl From<StoreError> for Status {
    /// The error goes along as the source, for the log.
    fn from(error: StoreError) -> Self {
        let mut status = match &error {
            StoreError::Compacted { .. } => status(COMPACTED),
            StoreError::FutureRevision { .. } => status(FUTURE_REVISION),
            StoreError::KeyNotFound => status(KEY_NOT_FOUND),
            StoreError::LeaseNotFound(_) => status(LEASE_NOT_FOUND),
            StoreError::TooLarge(_) => status(TOO_LARGE),
            StoreError::NoSpace(_) => status(NO_SPACE),
            StoreError::Corrupt => status(CORRUPT),
            StoreError::UnknownOutcome { .. } => status(TIMED_OUT),
            StoreError::TwoStores { .. }
            | StoreError::KeyTooLong { .. }
            | StoreError::KeyReserved { .. } => {
                Status::invalid_argument(format!("pleach: {error}"))
            }
            StoreError::Unavailable { .. }
            | StoreError::Fenced { .. }
            | StoreError::StaleLeases
            | StoreError::Damaged { .. } => Status::unavailable(format!("pleach: {error}")),
        };
        status.set_source(Arc::new(error));
        status
    }
}

impl From<GrantError> for Status {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::TooLong => status(LEASE_TTL_TOO_LARGE),
            GrantError::Exists => status(LEASE_EXISTS),
            GrantError::Store(error) => error.into(),
        }
    }
}

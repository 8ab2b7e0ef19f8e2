//! What the one writer of a store is asked for, and what it answers.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Write, Written};
use crate::model::{Revision, StoreError, error::Result};

/// Something to do. It is answered when it is durable.
#[derive(Debug)]
pub(super) enum Task<E = StoreError> {
    /// Change keys.
    Write(Write, oneshot::Sender<Result<Written>>),
    /// Keep or forget a record.
    Remember(String, Option<Bytes>, oneshot::Sender<Result<()>>),
    /// Give up the past below a revision; the second channel hears when the work is done.
    Compact(Revision, oneshot::Sender<Result<()>>, oneshot::Sender<Result<(), E>>),
}

// === impl Task ===

impl<E> Task<E> {
    /// Answers that it was not done, or may not have been.
    pub(super) fn refuse(self, error: StoreError) {
        // Whoever asked may have gone.
        match self {
            Self::Write(_, answer) => drop(answer.send(Err(error))),
            Self::Remember(_, _, answer) | Self::Compact(_, answer, _) => {
                drop(answer.send(Err(error)));
            }
        }
    }

    /// The bytes that it carries, about.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Write(Write::Txn { txn, .. }, _) => txn.size(),
            Self::Remember(name, value, _) => name.len() + value.as_ref().map_or(0, Bytes::len),
            Self::Write(Write::DeleteLeased(_), _) | Self::Compact(..) => 64,
        }
    }

    /// Whether it reads in the past, where the writes before it must be.
    pub(super) fn reads_past(&self) -> bool {
        let Self::Write(Write::Txn { txn, .. }, _) = self else { return false };
        !txn.needs().past.is_empty()
    }
}

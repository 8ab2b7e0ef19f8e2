//! What the one writer of a store is asked for, and what it answers.

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::Span;

use crate::{
    model::{Key, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    select::Attribute,
    store::Written,
};

/// Something to apply.
#[derive(Debug)]
pub(in crate::store) enum Write {
    /// A transaction that may change keys.
    Txn {
        /// What to do.
        txn: Txn,
        /// The leases it names that do not exist: putting a key under one is refused.
        dead_leases: Vec<LeaseId>,
    },
    /// Deletes all keys of a lease, in key order, at one revision. It has succeeded where there was one.
    EndLease(LeaseId),
}

/// Something to do. It is answered when it is durable.
#[derive(Debug)]
pub(in crate::store) enum Task {
    /// Change keys.
    Write(Write, Ticket<Result<Written>>),
    /// Keep or forget records.
    Records(Vec<(String, Option<Bytes>)>, oneshot::Sender<Result<()>>),
    /// Give what is free in its files back to the disk; says whether it has such files.
    Defragment(oneshot::Sender<Result<bool>>),
    /// Let the store go. Whoever asks is told when that is done.
    Close(oneshot::Sender<()>),
    /// Have an index of an attribute of the keys with a prefix, from when it is built.
    Index(Key, Attribute),
    /// Give up the past below a revision; the second channel hears when the work is done.
    Compact(Revision, oneshot::Sender<Result<()>>, oneshot::Sender<Result<()>>),
}

/// Whoever waits for an answer, and the span that it is waited for in.
#[derive(Debug)]
pub(in crate::store) struct Ticket<T> {
    answer: oneshot::Sender<T>,
    span: Span,
}

/// The span of what is done at once for several requests: a child of the first that is traced, and
/// linked with those of the others, both ways.
pub(in crate::store) fn shared_span<'t>(
    tasks: impl IntoIterator<Item = &'t Task>,
    make: impl FnOnce() -> Span,
) -> Span {
    let spans = tasks.into_iter().filter_map(Task::span);
    let mut traced = spans.filter(|span| !span.is_disabled());
    let Some(first) = traced.next() else { return Span::none() };
    let span = first.in_scope(make);
    for other in traced {
        span.follows_from(other);
        other.follows_from(&span);
    }
    span
}

// === impl Ticket ===

impl<T> Ticket<T> {
    /// Who asks now, and where the answer comes.
    pub(in crate::store) fn new() -> (Self, oneshot::Receiver<T>) {
        let (answer, answered) = oneshot::channel();
        (Self { answer, span: Span::current() }, answered)
    }

    /// Answers. Gives the answer back where nobody waits for it any more.
    pub(in crate::store) fn send(self, answer: T) -> Result<(), T> {
        self.answer.send(answer)
    }
}

// === impl Task ===

impl Task {
    /// Answers that it was not done, or may not have been.
    pub(in crate::store) fn refuse(self, error: StoreError) {
        // Whoever asked may have gone.
        match self {
            Self::Write(_, answer) => drop(answer.send(Err(error))),
            Self::Records(_, answer) | Self::Compact(_, answer, _) => {
                drop(answer.send(Err(error)));
            }
            Self::Defragment(answer) => drop(answer.send(Err(error))),
            // Nobody waits for it.
            Self::Index(..) => {}
            // What can't be used is let go by what keeps it from being used.
            Self::Close(done) => drop(done.send(())),
        }
    }

    fn span(&self) -> Option<&Span> {
        match self {
            Self::Write(_, asker) => Some(&asker.span),
            Self::Records(..)
            | Self::Compact(..)
            | Self::Defragment(_)
            | Self::Index(..)
            | Self::Close(_) => None,
        }
    }

    /// The bytes that it carries, about.
    pub(in crate::store) fn size(&self) -> usize {
        match self {
            Self::Write(Write::Txn { txn, .. }, _) => txn.size(),
            Self::Records(changes, _) => changes
                .iter()
                .map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len))
                .sum(),
            Self::Write(Write::EndLease(_), _)
            | Self::Compact(..)
            | Self::Defragment(_)
            | Self::Index(..)
            | Self::Close(_) => 64,
        }
    }

    /// Whether it may make a store larger.
    pub(in crate::store) fn has_puts(&self) -> bool {
        matches!(self, Self::Write(Write::Txn { txn, .. }, _) if txn.longest_put() > 0)
    }

    /// Whether it reads in the past, where the writes before it must be.
    pub(in crate::store) fn reads_past(&self) -> bool {
        let Self::Write(Write::Txn { txn, .. }, _) = self else { return false };
        !txn.needs().past.is_empty()
    }
}

//! What the one writer of a store is asked for, and what it answers.

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::Span;

use super::{Write, Written};
use crate::model::{Revision, StoreError, error::Result};

/// Something to do. It is answered when it is durable.
#[derive(Debug)]
pub(super) enum Task<E = StoreError> {
    /// Change keys.
    Write(Write, Asker<Result<Written>>),
    /// Keep or forget a record.
    Remember(String, Option<Bytes>, oneshot::Sender<Result<()>>),
    /// Give up the past below a revision; the second channel hears when the work is done.
    Compact(Revision, oneshot::Sender<Result<()>>, oneshot::Sender<Result<(), E>>),
}

/// Whoever waits for an answer, and the span that it is waited for in.
#[derive(Debug)]
pub(super) struct Asker<T> {
    answer: oneshot::Sender<T>,
    span: Span,
}

/// The span of what is done at once for several requests: a child of the first that is traced, and
/// linked with those of the others, both ways.
pub(super) fn shared_span<'t, E: 't>(
    tasks: impl IntoIterator<Item = &'t Task<E>>,
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

// === impl Asker ===

impl<T> Asker<T> {
    /// Who asks now, and where the answer comes.
    pub(super) fn new() -> (Self, oneshot::Receiver<T>) {
        let (answer, answered) = oneshot::channel();
        (Self { answer, span: Span::current() }, answered)
    }

    /// Answers. Gives the answer back where nobody waits for it any more.
    pub(super) fn send(self, answer: T) -> Result<(), T> {
        self.answer.send(answer)
    }
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

    fn span(&self) -> Option<&Span> {
        match self {
            Self::Write(_, asker) => Some(&asker.span),
            Self::Remember(..) | Self::Compact(..) => None,
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

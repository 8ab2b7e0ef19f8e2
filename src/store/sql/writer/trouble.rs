//! What became of a commit that failed, and waiting for a store that is lost.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        reader,
        session::{DbError, DbResult, Session},
    },
    Writer,
    batch::WriteBatch,
};
use crate::{
    model::{Revision, StoreError},
    store::led::mailbox::Task,
};

/// How long a write waits to learn what became of a commit that failed.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The pauses between attempts to get a lost store back.
const RECOVER_PAUSE_MIN: Duration = Duration::from_millis(100);
const RECOVER_PAUSE_MAX: Duration = Duration::from_secs(2);

// === impl Writer ===

impl<S: Session> Writer<S> {
    /// After a commit that failed: asks the database whether it happened all the same. Until that is
    /// known nothing else is written, and nobody is told more than that it is not known.
    ///
    /// Returns tasks to be tried again, as [`Writer::refuse`] does.
    pub(super) async fn settle(&mut self, batch: WriteBatch, error: DbError) -> Vec<Task> {
        tracing::error!(store = %self.shared.leaf.name, %error, "a commit failed");
        let expected = batch.run.commits.last().map(|commit| commit.revision);
        let asked = match self.session.keep_interval() {
            None => self.look(expected).await,
            Some(_) => {
                let until = Instant::now() + SETTLE_WAIT_MAX;
                let asked = tokio::time::timeout_at(until, self.look_again(expected)).await;
                asked.unwrap_or_else(|_| Err(DbError::Lost("its server stays away".to_owned())))
            }
        };
        match asked {
            Ok(true) => self.conclude(batch),
            Ok(false) if expected.is_some() || matches!(error, DbError::Full(_)) => {
                return self.refuse(batch, &error);
            }
            Ok(false) => self.leave_unknown(batch, &error),
            Err(second) => self.await_outcome(batch, &error, second).await,
        }
        Vec::new()
    }

    /// Looks until the server can be reached.
    async fn look_again(&mut self, expected: Option<Revision>) -> DbResult<bool> {
        loop {
            match self.look(expected).await {
                Err(DbError::Lost(_)) => tokio::time::sleep(RECOVER_PAUSE_MIN).await,
                looked => return looked,
            }
        }
    }

    /// Whether a revision was committed, once the session is in order again.
    async fn look(&mut self, expected: Option<Revision>) -> DbResult<bool> {
        self.session.recover().await?;
        let newest = self.newest_there().await?;
        self.load_index().await?;
        Ok(expected.is_some_and(|expected| newest >= expected))
    }

    /// The newest revision that the store holds now.
    pub(super) async fn newest_there(&mut self) -> DbResult<Revision> {
        let statements = &self.shared.statements;
        let (_, newest) = super::super::last(&mut self.session, statements).await?;
        let compacted = reader::meta(&mut self.session, statements, "compacted").await?;
        let newest = newest.max(compacted.unwrap_or(-1));
        if newest < self.newest {
            return Err(DbError::Lost(format!(
                "its newest revision is {newest}, but {} was committed before: the server lost \
                 what it had promised, or this is a replica that is behind; make the right server \
                 answer at this address, or restore all stores to one point in time",
                self.newest
            )));
        }
        Ok(newest)
    }

    /// The commit of a batch that changed no key: there is no revision to find out by whether its
    /// records are there.
    fn leave_unknown(&self, batch: WriteBatch, error: &DbError) {
        self.shared.leaf.journal.abort();
        let refused = self.shared.error(error.clone());
        let reason: Arc<str> = error.to_string().into();
        for task in batch.tasks {
            let store = self.shared.leaf.name.clone();
            let error = match task {
                Task::Write(..) => refused.clone(),
                _ => StoreError::UnknownOutcome { store, reason: reason.clone() },
            };
            task.refuse(error);
        }
    }

    /// The outcome of a commit stays unknown: its revisions stay open until it is known.
    async fn await_outcome(&mut self, mut batch: WriteBatch, error: &DbError, second: DbError) {
        let unknown = StoreError::UnknownOutcome {
            store: self.shared.leaf.name.clone(),
            reason: format!("{error}; then {second}").into(),
        };
        let tasks = std::mem::take(&mut batch.tasks);
        tasks.into_iter().for_each(|task| task.refuse(unknown.clone()));
        let expected = batch.run.commits.last().map(|commit| commit.revision);
        if !self.wait_for_store(second).await {
            return;
        }
        // What was found while the store came back is still there.
        match super::super::last(&mut self.session, &self.shared.statements).await {
            Ok((_, newest)) if expected.is_some_and(|expected| newest >= expected) => {
                self.conclude(batch);
            }
            Ok(_) => self.shared.leaf.journal.abort(),
            Err(again) => Box::pin(self.await_outcome(batch, error, again)).await,
        }
    }

    /// Deals with an error outside of a commit: waits where the store is lost.
    pub(super) async fn take_trouble(&mut self, error: DbError) {
        match error {
            DbError::Lost(_) | DbError::Fenced(_) => _ = self.wait_for_store(error).await,
            DbError::Full(_) | DbError::Failed(_) => self.session.rollback().await,
        }
    }

    /// Answers all that is asked with what the trouble is, until the session works again, the queue
    /// ends or another node has the store for good. Says whether it works.
    async fn wait_for_store(&mut self, first: DbError) -> bool {
        let mut trouble = first;
        let mut pause = Duration::ZERO;
        loop {
            tracing::warn!(store = %self.shared.leaf.name, error = %trouble, "the store can't be used");
            let error = self.shared.error(trouble.clone());
            self.shared.leaf.enter_trouble(error.clone());
            // The work itself goes on when the store is back.
            self.compaction.answer(&Err(error.clone()));
            let waiting = self.pieces.drain(..).flatten().chain(self.held.take());
            waiting.for_each(|task| task.refuse(error.clone()));
            if matches!(trouble, DbError::Fenced(_)) {
                self.shared.leaf.journal.abort();
                // Whoever may have it next finds nothing of this owner in the way.
                self.session.abandon();
                while let Some(task) = self.queue.recv().await {
                    task.refuse(error.clone());
                }
                return false;
            }
            let Some(recovered) = self.recover(pause, &error).await else { return false };
            let found = match recovered {
                Ok(()) => self.learn_anew().await,
                Err(error) => Err(error),
            };
            match found {
                Ok(()) => break,
                Err(error) => trouble = error,
            }
            pause = (pause * 2).clamp(RECOVER_PAUSE_MIN, RECOVER_PAUSE_MAX);
        }
        tracing::info!(store = %self.shared.leaf.name, "the store is back");
        self.shared.leaf.leave_trouble();
        true
    }

    /// Takes note of what the store has after it was lost, of which some may be gone that changed no key.
    async fn learn_anew(&mut self) -> DbResult<()> {
        self.newest_there().await?;
        self.load_index().await
    }

    /// One attempt to recover after a pause, answering all that is asked meanwhile. `None` where the
    /// queue ends.
    async fn recover(&mut self, pause: Duration, error: &StoreError) -> Option<DbResult<()>> {
        let session = &mut self.session;
        let again = async move {
            tokio::time::sleep(pause).await;
            session.recover().await
        };
        tokio::pin!(again);
        loop {
            tokio::select! {
                recovered = &mut again => return Some(recovered),
                task = self.queue.recv() => task?.refuse(error.clone()),
            }
        }
    }
}

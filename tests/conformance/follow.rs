//! Reading tails, with a deadline instead of patience.

use std::{future::Future, sync::Arc, time::Duration};

use futures::StreamExt as _;
use pleach::{
    model::{Commit, Revision, StoreError},
    store::{LogBatch, Store, Tail},
};

/// What has not happened after this long will not happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for something that must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(DEADLINE, future).await;
    waited.unwrap_or_else(|_| panic!("{what} did not happen within {DEADLINE:?}"))
}

/// A tail and what it has said so far. Every batch is held against the promises of a tail.
pub(crate) struct Follower {
    tail: Tail,
    pub(crate) closed: Revision,
    pub(crate) commits: Vec<Arc<Commit>>,
}

// === impl Follower ===

impl Follower {
    pub(crate) fn start(store: &dyn Store, after: Revision) -> Self {
        Self { tail: store.tail(after), closed: after, commits: Vec::new() }
    }

    /// The next batch; panics where it breaks a promise of its own.
    pub(crate) async fn next(&mut self) -> Result<LogBatch, StoreError> {
        let next = soon("the next batch of a tail", self.tail.next()).await;
        let batch = next.expect("a tail ends only with an error")?;
        for commit in &batch.commits {
            let last = self.commits.last().map_or(0, |last| last.revision);
            let revision = commit.revision;
            assert!(revision > last, "revision {revision} came after {last}");
            assert!(
                revision > self.closed,
                "revision {revision} came though {} was closed",
                self.closed
            );
            assert!(revision <= batch.closed, "revision {revision} is above what its batch closes");
            assert!(!commit.events.is_empty(), "revision {revision} has no events");
            let is_whole = commit.events.iter().all(|event| event.kv.mod_revision == revision);
            assert!(is_whole, "revision {revision} has events of another revision");
            self.commits.push(commit.clone());
        }
        assert!(batch.closed >= self.closed, "closed went back to {}", batch.closed);
        self.closed = batch.closed;
        Ok(batch)
    }

    /// Reads until all up to `revision` has come.
    pub(crate) async fn reach(&mut self, revision: Revision) -> Result<(), StoreError> {
        while self.closed < revision {
            self.next().await?;
        }
        Ok(())
    }
}

/// All commits of `after < revision <= through`. The store is asked to close `through`.
pub(crate) async fn commits(
    store: &dyn Store,
    after: Revision,
    through: Revision,
) -> Vec<Arc<Commit>> {
    let mut follower = Follower::start(store, after);
    let closed =
        store.advance_closed(through, 0).await.expect("the store can close what was shown");
    assert!(closed >= through, "sync closed {closed} where {through} was asked for");
    follower.reach(through).await.expect("nothing of this is compacted");
    let mut commits = follower.commits;
    commits.retain(|commit| commit.revision <= through);
    commits
}

pub(crate) fn revisions(commits: &[Arc<Commit>]) -> Vec<Revision> {
    commits.iter().map(|commit| commit.revision).collect()
}

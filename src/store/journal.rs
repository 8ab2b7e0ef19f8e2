//! The newest commits of a store in memory, and the tails that follow it.
//!
//! A tail is a cursor, not a queue: it reads what lies behind its position, from here while the
//! journal still holds it, else from the store's log. So any number of tails, slow ones too, cost
//! the journal nothing.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use tokio::sync::Notify;

use super::{LogBatch, Tail};
use crate::{
    clock::{ClockSeat, LimitReached, SharedClock},
    model::{Commit, Revision, StoreError, error::Result},
};

/// Bytes of commits kept in memory for tails that are not far behind.
const JOURNAL_BYTES_MAX: usize = 8 << 20;

/// The most commits that a tail yields at once.
const BATCH_COMMITS_MAX: usize = 1_000;

/// Where a tail reads what the journal no longer holds.
#[async_trait]
pub trait Log: fmt::Debug + Send + Sync + 'static {
    /// Some first commits of those in `after < revision <= through`, with where they are complete
    /// up to: `through`, or the revision of the last.
    ///
    /// # Errors
    /// `Compacted` where `after + 1` is compacted.
    async fn page(&self, after: Revision, through: Revision) -> Result<LogBatch>;

    /// The oldest revision that can be read.
    fn compacted(&self) -> Revision;
}

/// The newest commits of a store.
#[derive(Debug)]
pub struct Journal {
    name: Arc<str>,
    clock: SharedClock,
    slot: ClockSeat,
    recent: Mutex<Recent>,
    changed: Notify,
    /// The greatest revision that the store holds.
    newest: AtomicI64,
}

#[derive(Debug)]
struct Recent {
    commits: VecDeque<Arc<Commit>>,
    bytes: usize,
    /// Every commit above is in `commits`.
    complete_above: Revision,
    /// Tails are to say what is closed once it reaches this.
    wanted: Revision,
}

// === impl Recent ===

impl Recent {
    fn empty(wanted: Revision) -> Self {
        Self { commits: VecDeque::new(), bytes: 0, complete_above: 0, wanted }
    }
}

// === impl Journal ===

impl Journal {
    /// The journal of the store in `slot`, all of whose commits so far are at or below `last`.
    pub fn new(name: &str, clock: SharedClock, slot: ClockSeat, last: Revision) -> Self {
        let recent = Recent { complete_above: last, ..Recent::empty(0) };
        let (recent, changed) = (Mutex::new(recent), Notify::new());
        Self { name: name.into(), clock, slot, recent, changed, newest: AtomicI64::new(last) }
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        // No method panics while it changes what is behind the lock.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes durable commits, in order, and closes them in the clock: whoever finds a revision
    /// closed finds its commit here. Tails are woken.
    pub fn publish(&self, commits: &[Arc<Commit>]) {
        let Some(last) = commits.last().map(|commit| commit.revision) else { return };
        {
            let mut recent = self.lock();
            for commit in commits {
                recent.bytes += commit.size();
                recent.commits.push_back(commit.clone());
            }
            while recent.bytes > JOURNAL_BYTES_MAX && recent.commits.len() > commits.len() {
                let Some(old) = recent.commits.pop_front() else { break };
                recent.bytes -= old.size();
                recent.complete_above = old.revision;
            }
        }
        self.newest.fetch_max(last, Ordering::AcqRel);
        self.clock.commit(self.slot, last);
        self.changed.notify_waiters();
    }

    /// Goes on at `revision`, with what happened before it lost: who follows from further back asks the
    /// log, and hears from it that this is compacted.
    pub fn cut(&self, revision: Revision) {
        {
            let mut recent = self.lock();
            *recent = Recent { complete_above: revision, ..Recent::empty(recent.wanted) };
        }
        self.clock.commit(self.slot, revision);
        self.changed.notify_waiters();
    }

    /// The greatest revision that the store holds.
    pub fn newest(&self) -> Revision {
        self.newest.load(Ordering::Acquire)
    }

    /// Gives up what is in flight.
    pub fn abort(&self) {
        self.clock.abort(self.slot);
        self.changed.notify_waiters();
    }

    /// What clients were shown at most; see [`SharedClock::shown`].
    pub fn shown(&self) -> Revision {
        self.clock.shown()
    }

    /// What the store has closed.
    pub fn closed(&self) -> Revision {
        self.clock.closed(self.slot)
    }

    /// Closes at least `revision`, or `ahead` more, and makes the tails say so.
    ///
    /// # Errors
    /// Where the clock can't reach it.
    pub async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        let closed = self.wait_closed(revision).await?;
        let promised = (ahead > 0).then(|| self.clock.close_ahead(ahead)).flatten();
        let (closed, revision) =
            promised.map_or((closed, revision), |it| (closed.max(it), revision.max(it)));
        let is_news = {
            let mut recent = self.lock();
            let is_news = revision > recent.wanted;
            recent.wanted = recent.wanted.max(revision);
            is_news
        };
        if is_news {
            self.changed.notify_waiters();
        }
        Ok(closed)
    }

    /// Waits until the store has closed `revision`.
    ///
    /// # Errors
    /// Where the clock can't reach it.
    pub async fn wait_closed(&self, revision: Revision) -> Result<Revision> {
        let closed = self.clock.wait_closed(self.slot, revision).await;
        closed.map_err(|full| self.unavailable(&full))
    }

    /// The next revision, in flight until [`Journal::publish`] or [`Journal::abort`].
    ///
    /// # Errors
    /// Where the clock has none left.
    pub fn allocate(&self) -> Result<Revision> {
        self.clock.allocate(self.slot).map_err(|full| self.unavailable(&full))
    }

    fn unavailable(&self, full: &LimitReached) -> StoreError {
        let reason = full.to_string().into();
        StoreError::Unavailable { store: self.name.clone(), reason }
    }

    /// A tail from behind `after`; see [`super::Store::tail`].
    pub fn tail(self: Arc<Self>, after: Revision, log: Arc<dyn Log>) -> Tail {
        let cursor = Cursor { journal: self, log, after, is_first: true };
        stream::try_unfold(cursor, |mut cursor| async move {
            let batch = cursor.next().await?;
            Ok(Some((batch, cursor)))
        })
        .boxed()
    }

    /// What lies behind `after`: `Err` where the log must be asked, up to the closed revision given.
    /// Nothing but a closed revision is worth a batch only to those who wait for one.
    fn recent_after(&self, after: Revision, is_first: bool) -> Result<Option<LogBatch>, Revision> {
        // Closed first: whatever is closed now is in the journal by now.
        let closed = self.clock.closed(self.slot);
        let recent = self.lock();
        if after < recent.complete_above && after < closed {
            return Err(closed);
        }
        let from = recent.commits.partition_point(|commit| commit.revision <= after);
        let ready = recent.commits.range(from..).take_while(|commit| commit.revision <= closed);
        let commits: Vec<_> = ready.take(BATCH_COMMITS_MAX).cloned().collect();
        if commits.is_empty() {
            let is_wanted = closed > after && (is_first || recent.wanted > after);
            return Ok(is_wanted.then(|| LogBatch::new(commits, closed)));
        }
        let is_cut = commits.len() == BATCH_COMMITS_MAX;
        let last = commits.last().map_or(closed, |commit| commit.revision);
        Ok(Some(LogBatch::new(commits, if is_cut { last } else { closed })))
    }
}

struct Cursor {
    journal: Arc<Journal>,
    log: Arc<dyn Log>,
    after: Revision,
    /// The first batch comes at once, so that whoever catches up learns how far it is.
    is_first: bool,
}

// === impl Cursor ===

impl Cursor {
    async fn next(&mut self) -> Result<LogBatch> {
        let journal = self.journal.clone();
        let compacted = self.log.compacted();
        if self.is_first && self.after + 1 < compacted {
            return Err(StoreError::Compacted { compacted });
        }
        loop {
            let changed = journal.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let batch = match journal.recent_after(self.after, self.is_first) {
                Ok(Some(batch)) => batch,
                Ok(None) => {
                    changed.await;
                    continue;
                }
                Err(closed) => self.log.page(self.after, closed).await?,
            };
            self.after = batch.closed.max(self.after);
            self.is_first = false;
            return Ok(batch);
        }
    }
}

//! The shell of every leaf that this node owns and writes alone.
//!
//! ```text
//!   Store, RecordStore ──> Led ──> mailbox ──> the engine's writer ──> Journal, Leaf
//!                           └────> Engine: pages as of a revision, the log, records, size
//! ```
//!
//! A [`Led`] store is an [`Engine`] behind one bounded queue. What is asked for, when it may be asked, what is
//! waited for and what is checked around each read stands here, once; an engine only reads and writes.

pub(super) mod leaf;
pub(super) mod mailbox;
pub(super) mod page_sizer;
pub(super) mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{Instrument as _, Span, field::Empty};

use self::{
    leaf::Leaf,
    mailbox::{Task, Ticket, Write},
};
use super::{
    Coverage, Described, Head, LogBatch, Page, Query, RecordStore, Size, Store, Tail, Written,
    attach::AttachState, explained::StoreRead, journal::Log, meter::Meters, pool::Pool, selected,
};
use crate::{
    model::{Key, KeyRange, KeyValue, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    wire::trace,
};

/// The most writes that wait for the writer; who comes later waits to be let in.
const QUEUE_WRITES_MAX: usize = 1_024;

/// The rows that a read with a selector may look at in vain before it asks for an index.
const ROWS_IN_VAIN_MAX: usize = 500;

/// How long a measurement of the size may hold up whoever asks; then the last one has to do.
const SIZE_WAIT_MAX: Duration = Duration::from_secs(1);

/// What reads of a store. Its writer is a task of its own, which takes [`Task`]s from the queue.
#[async_trait]
pub(super) trait Engine: fmt::Debug + Send + Sync + 'static {
    fn leaf(&self) -> &Leaf;

    /// Its connections that read, where they are bounded here.
    fn pool(&self) -> Option<Arc<Pool>>;

    /// Settings of its server under which a commit is not durable, each with what that means.
    fn hazards(&self) -> Vec<&'static str>;

    /// Refuses a transaction that the store can't keep, whatever it holds.
    fn check_txn(&self, txn: &Txn) -> Result<()>;

    /// Whether the store is certainly still this node's, so that what it answers is the present.
    fn check_owned(&self) -> Result<()>;

    /// A page as of a revision that is closed. Compaction may come in between: that is checked afterwards.
    async fn page_at(&self, query: &Query) -> Result<Page>;

    /// A page of what the query's selector may match, likewise, where the store has an index that finds it. `None`
    /// where all rows are to be looked at; else with how many were.
    async fn selected_page_at(&self, query: &Query) -> Result<Option<(Page, usize)>>;

    /// What makes an index that would find what the query's selector may match, where the store can have one.
    fn index_for(&self, query: &Query) -> Option<Task>;

    /// How many keys a range has as of a revision, likewise.
    async fn count_at(&self, range: &KeyRange, revision: Revision) -> Result<u64>;

    /// Some first commits of those in `after < revision <= through`; see [`Log::page`].
    async fn log_after(&self, after: Revision, through: Revision) -> Result<LogBatch>;

    async fn leases(&self) -> Result<BTreeSet<LeaseId>>;

    async fn get_record(&self, name: &str) -> Result<Option<Bytes>>;

    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>>;

    async fn measure(&self) -> Result<Size>;
}

/// An engine, and the queue to its writer.
#[derive(Debug)]
pub(super) struct Led<E> {
    engine: Arc<E>,
    queue: mpsc::Sender<Task>,
}

/// The queue to a writer.
pub(super) fn mailbox() -> (mpsc::Sender<Task>, mpsc::Receiver<Task>) {
    mpsc::channel(QUEUE_WRITES_MAX)
}

#[async_trait]
impl<E: Engine> Log for E {
    async fn page(&self, after: Revision, through: Revision) -> Result<LogBatch> {
        self.leaf().check_readable(after + 1)?;
        let batch = self.log_after(after, through).await;
        self.leaf().check_readable(after + 1)?;
        // A server that answers meanwhile is not known to be the right one.
        self.leaf().check_usable()?;
        batch
    }

    fn compacted(&self) -> Revision {
        self.leaf().compacted()
    }
}

// === impl Led ===

impl<E: Engine> Led<E> {
    pub(super) fn new(engine: Arc<E>, queue: mpsc::Sender<Task>) -> Arc<Self> {
        Arc::new(Self { engine, queue })
    }

    fn leaf(&self) -> &Leaf {
        self.engine.leaf()
    }

    fn gone(&self) -> StoreError {
        self.leaf().unavailable("its writer has stopped")
    }

    async fn ask<T>(&self, task: Task, answer: oneshot::Receiver<T>) -> Result<T> {
        self.leaf().check_usable()?;
        self.queue.send(task).await.map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())
    }

    async fn write(&self, write: Write) -> Result<Written> {
        let (answer, written) = Ticket::new();
        self.ask(Task::Write(write, answer), written).await?
    }

    /// A page of a lease's keys with those that have left the lease since the revision that was asked for: engines
    /// find keys by an index of what is there now, and the log says what came since.
    async fn with_those_that_left(&self, query: &Query, page: Page) -> Result<Page> {
        // Behind all that was written when the index was read: by then the log has it.
        let (answer, written) = oneshot::channel();
        self.ask(Task::Records(Vec::new(), answer), written).await??;
        let through = self.leaf().journal.newest();
        let end = page.next.clone().or_else(|| query.range.end.clone());
        let range = KeyRange { start: query.range.start.clone(), end };
        let mut kvs: BTreeMap<Key, KeyValue> =
            page.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let mut after = query.revision;
        while after < through {
            let batch = self.engine.log_after(after, through).await?;
            self.leaf().check_readable(query.revision)?;
            let changes = batch.commits.iter().flat_map(|commit| &commit.events);
            for kv in changes.filter_map(|event| event.prev.as_ref()) {
                // Of all changes of a key the first one says how it was then.
                let was_its = kv.lease == query.lease && kv.mod_revision <= query.revision;
                if was_its && range.contains(&kv.key) {
                    let value = if query.keys_only { Bytes::new() } else { kv.value.clone() };
                    kvs.insert(kv.key.clone(), KeyValue { value, ..kv.clone() });
                }
            }
            after = batch.closed;
        }
        Ok(Page { kvs: kvs.into_values().collect(), ..page })
    }

    async fn page_at(&self, query: &Query) -> Result<Page> {
        let page = self.engine.page_at(query).await;
        // Compaction may have dropped what was needed, while it was read.
        self.leaf().check_readable(query.revision)?;
        page
    }

    /// A page of what the query's selector may match.
    async fn selected_page(&self, query: &Query) -> Result<Page> {
        let span = self.select_span();
        let (by_index, rows, page) = self.select(query).instrument(span.clone()).await?;
        self.leaf().selected.note(by_index, rows, page.kvs.len());
        span.record("pleach.by_index", by_index);
        span.record("pleach.rows_read", rows);
        span.record("db.response.returned_rows", page.kvs.len());
        self.explain(query, by_index, rows);
        Ok(page)
    }

    fn explain(&self, query: &Query, by_index: bool, rows: usize) {
        query.explain(|| StoreRead {
            path: self.leaf().name.to_string(),
            pages_by_index: by_index.into(),
            rows_read: rows as u64,
            ..StoreRead::default()
        });
    }

    /// The span of a page that is selected, where that is for a request that is traced.
    fn select_span(&self) -> Span {
        trace::within(|| {
            tracing::info_span!(
                "select",
                pleach.route = &*self.leaf().name,
                pleach.by_index = Empty,
                pleach.rows_read = Empty,
                db.response.returned_rows = Empty,
            )
        })
    }

    /// A page of what the query's selector may match, whether an index found it, and how many rows were looked at.
    async fn select(&self, query: &Query) -> Result<(bool, usize, Page)> {
        let page = self.engine.selected_page_at(query).await;
        self.leaf().check_readable(query.revision)?;
        if let Some((page, rows)) = page? {
            return Ok((true, rows, page));
        }
        let all = |all| async move { self.page_at(&all).await };
        let (page, rows, in_vain) = selected::read(query, all).await?;
        if in_vain >= ROWS_IN_VAIN_MAX
            && let Some(task) = self.engine.index_for(query)
        {
            // Where the queue is full, a later read asks for it.
            let _ = self.queue.try_send(task);
        }
        Ok((false, rows, page))
    }

    /// Waits until a read as of `revision` finds all that it must find.
    async fn wait_readable(&self, revision: Revision) -> Result<()> {
        self.leaf().wait_closed(revision).await?;
        self.engine.check_owned()?;
        self.leaf().check_readable(revision)
    }
}

#[async_trait]
impl<E: Engine> Store for Led<E> {
    fn name(&self) -> &Arc<str> {
        &self.leaf().name
    }

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        self.engine.check_txn(&txn)?;
        self.write(Write::Txn { txn, dead_leases }).await
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        let Written { revision, result } = self.write(Write::EndLease(lease)).await?;
        Ok(result.succeeded.then_some(revision))
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        self.engine.leases().await
    }

    async fn read(&self, query: &Query) -> Result<Page> {
        let query = query.at(self.leaf().journal.shown());
        self.wait_readable(query.revision).await?;
        if query.selector.is_some() {
            return self.selected_page(&query).await;
        }
        let page = self.page_at(&query).await?;
        self.explain(&query, false, page.kvs.len());
        if query.lease == 0 { Ok(page) } else { self.with_those_that_left(&query, page).await }
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        self.wait_readable(query.revision).await?;
        if query.selector.is_some() {
            let mut query = Query { limit: 0, keys_only: true, ..query.clone() };
            let mut count = 0;
            loop {
                let page = self.selected_page(&query).await?;
                count += page.kvs.len() as u64;
                let Some(next) = page.next else { return Ok(count) };
                query.range.start = next;
            }
        }
        let count = self.engine.count_at(&query.range, query.revision).await;
        self.leaf().check_readable(query.revision)?;
        count
    }

    fn tail(&self, after: Revision) -> Tail {
        let tail = self.leaf().journal.clone().tail(after, self.engine.clone());
        let ended = stream::once(self.leaf().fenced().map(Err));
        // Once another node has the store, nothing more is closed.
        stream::select_with_strategy(ended, tail, |(): &mut ()| stream::PollNext::Left).boxed()
    }

    fn covers(&self, _after: Revision) -> bool {
        true
    }

    fn check_resume(&self, _after: Revision) -> Result<()> {
        Ok(())
    }

    fn attach_states(&self) -> &[Arc<AttachState>] {
        &[]
    }

    fn announce_closed(&self) -> Revision {
        self.leaf().closed()
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        let closed = self.leaf().journal.advance_closed(revision, ahead).await;
        // What was waited for may have been given up by who lost the store.
        match self.leaf().check_usable() {
            Err(fenced @ StoreError::Fenced { .. }) => Err(fenced),
            _ => closed,
        }
    }

    async fn read_index(&self, _range: &KeyRange, _coverage: Coverage) -> Result<Revision> {
        Ok(self.leaf().journal.shown())
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        let (answer, accepted) = oneshot::channel();
        let (done, finished) = oneshot::channel();
        self.ask(Task::Compact(revision, answer, done), accepted).await??;
        if wait { finished.await.unwrap_or_else(|_| Err(self.gone())) } else { Ok(()) }
    }

    fn compacted(&self) -> Revision {
        self.leaf().compacted()
    }

    async fn size(&self) -> Result<Size> {
        let measured = match self.leaf().check_usable() {
            Ok(()) => timeout(SIZE_WAIT_MAX, self.engine.measure()).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        Ok(self.leaf().note_size(measured))
    }

    fn head(&self) -> Head {
        self.leaf().head()
    }

    async fn describe(&self) -> Vec<Described> {
        let trouble = self.leaf().check_usable().err().map(|error| error.to_string());
        let (name, trouble) = (self.name().to_string(), trouble.unwrap_or_default());
        let trouble_s = self.leaf().trouble_age().as_secs_f64();
        let hazards = self.engine.hazards().into_iter().map(str::to_owned).collect();
        vec![Described { name, trouble, trouble_s, hazards, ..Described::default() }]
    }

    fn meters(&self) -> Vec<Meters> {
        let (name, leaf) = (self.name().clone(), self.leaf());
        let (commits, selected) = (Some(leaf.commits.clone()), Some(leaf.selected.clone()));
        let trouble = leaf.check_usable().err().map(|error| error.to_string());
        let (pool, hazards) = (self.engine.pool(), self.engine.hazards().len());
        vec![Meters { commits, selected, pool, hazards, ..Meters::new(name, trouble) }]
    }

    async fn defragment(&self) -> Result<bool> {
        let (answer, done) = oneshot::channel();
        self.ask(Task::Defragment(answer), done).await?
    }

    async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Task::Close(done)).await.is_ok() {
            // Where the writer has ended, there is nothing to close.
            let _ = closed.await;
        }
    }
}

#[async_trait]
impl<E: Engine> RecordStore for Led<E> {
    async fn put_records(&self, changes: Vec<(String, Option<Bytes>)>) -> Result<()> {
        let (answer, done) = oneshot::channel();
        self.ask(Task::Records(changes, answer), done).await?
    }

    async fn get_record(&self, name: &str) -> Result<Option<Bytes>> {
        self.engine.get_record(name).await
    }

    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.engine.scan_records(prefix).await
    }

    fn fenced(&self) -> BoxFuture<'static, ()> {
        self.leaf().fenced().map(drop).boxed()
    }
}

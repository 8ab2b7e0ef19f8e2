//! A store in a SQL database: one algorithm, and a dialect for each database.
//!
//! [`statements`] says how rows are kept, `writer` how they change, `reader` how they are read as of
//! a revision, `compact` how the past is given up. [`session`] is all that they ask of a database;
//! [`sqlite`] gives it for a file, [`remote`] for a server. Revisions come from the node's clock and stand in the rows, so that the
//! database alone is the store: a process keeps nothing that it could lose.

mod checkpoint;
mod compact;
pub mod mysql;
pub mod postgres;
mod reader;
pub mod remote;
pub mod session;
pub mod sqlite;
pub mod statements;
mod writer;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{Instrument as _, Span, field::Empty};

use self::{
    compact::Compaction,
    session::{Arg, Columns, Database, DbError, DbResult, Session, Sql, rows},
    statements::Statements,
    writer::{Task, Writer},
};
use super::{
    Coverage, Described, Head, LogBatch, Page, Query, RecordStore, Size, Store, Tail, Written,
    attach::AttachState,
    journal::{Journal, Log},
    led::{
        mailbox::{Ticket, Write},
        page_sizer::PageSizer,
    },
};
use crate::{
    clock::SharedClock,
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    wire::trace,
};

/// The most writes that wait for the writer; who comes later waits to be let in.
const QUEUE_WRITES_MAX: usize = 1_024;

/// How long a measurement of the size may hold up whoever asks; then the last one has to do.
const SIZE_WAIT_MAX: Duration = Duration::from_secs(1);

/// A store in the database `D`.
#[derive(Debug)]
pub struct SqlStore<D> {
    inner: Arc<Inner<D>>,
    queue: mpsc::Sender<Task>,
}

/// What stood beside a store about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Witnessed {
    /// The greatest revision that it held; 0 where nothing is known.
    pub newest: Revision,
    /// Whether that was another store.
    pub is_another: bool,
}

/// What reads need.
#[derive(Debug)]
struct Inner<D> {
    database: D,
    shared: Arc<Shared>,
}

/// What reads and the writer share.
#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    /// The database's name in traces.
    system: &'static str,
    clock: SharedClock,
    journal: Arc<Journal>,
    compacted: AtomicI64,
    statements: Statements,
    page_sizer: PageSizer,
    key_bytes_max: usize,
    incarnation: u64,
    /// How far it had come by what lies beside it.
    witnessed: Revision,
    /// Why it can't be used at present.
    trouble: watch::Sender<Option<StoreError>>,
    /// The size as it was last measured.
    size: Mutex<Size>,
}

// === impl SqlStore ===

impl<D: Database> SqlStore<D> {
    /// Opens a store whose tables are there and owned by this node. The clock is moved up to the
    /// store's greatest revision, unless the node has begun without it.
    ///
    /// # Errors
    /// Where the database can't be read, or holds a revision that the clock can't move up to.
    pub async fn open(
        name: &str,
        database: D,
        mut session: D::Session,
        clock: SharedClock,
        witnessed: Witnessed,
    ) -> Result<Arc<Self>, DbError> {
        let dialect = database.dialect();
        let statements = Statements::new(&dialect);
        let (seq, newest) = last(&mut session, &statements).await?;
        let compacted = reader::meta(&mut session, &statements, "compacted").await?.unwrap_or(-1);
        let walked = reader::meta(&mut session, &statements, "walked").await?.unwrap_or(-1);
        // Compaction may have dropped the newest row, where that was a deletion below it.
        let newest = newest.max(compacted);
        let incarnation = reader::meta(&mut session, &statements, "incarnation").await?;
        // One more than there is counts as gone back: another store breaks what was promised, whatever it has.
        let witnessed = witnessed.newest.max(if witnessed.is_another { newest + 1 } else { 0 });
        session.witness(newest.max(witnessed));
        // Others may have written it while this node went on without it: the slot sees to that.
        let slot = clock.join_apart(newest).await;
        let slot = slot.map_err(|error| DbError::Failed(error.to_string()))?;
        let shared = Arc::new(Shared {
            name: name.into(),
            system: dialect.system,
            journal: Arc::new(Journal::new(name, clock.clone(), slot, newest)),
            clock,
            compacted: AtomicI64::new(compacted),
            statements,
            page_sizer: PageSizer::new(dialect.rows_come_all),
            key_bytes_max: dialect.key_bytes_max,
            incarnation: incarnation.and_then(|it| u64::try_from(it).ok()).unwrap_or(0),
            witnessed,
            trouble: watch::Sender::new(None),
            size: Mutex::default(),
        });
        let (queue, tasks) = mpsc::channel(QUEUE_WRITES_MAX);
        let writer_shared = shared.clone();
        let start = move |session| -> futures::future::BoxFuture<'static, ()> {
            let writer = Writer {
                session,
                shared: writer_shared,
                queue: tasks,
                next_seq: seq + 1,
                last_seq: seq,
                newest,
                kept: Instant::now(),
                compaction: Compaction::resume(walked, compacted),
                held: None,
            };
            Box::pin(writer.run())
        };
        database.start_writer(session, Box::new(start));
        Ok(Arc::new(Self { inner: Arc::new(Inner { database, shared }), queue }))
    }

    async fn ask<T>(&self, task: Task, answer: oneshot::Receiver<T>) -> Result<T> {
        let gone = || StoreError::Unavailable {
            store: self.inner.shared.name.clone(),
            reason: "its writer has stopped".into(),
        };
        self.inner.shared.check_usable()?;
        self.queue.send(task).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

impl<D: Database> SqlStore<D> {
    async fn measure(&self) -> DbResult<Size> {
        let shared = self.inner.shared.clone();
        let job: session::Job<D::Session, Size> = Box::new(move |session| {
            let shared = shared.clone();
            Box::pin(async move {
                let both = |columns: &dyn Columns| Size {
                    total: u64::try_from(columns.int(0)).unwrap_or(0),
                    in_use: u64::try_from(columns.int(1)).unwrap_or(0),
                };
                let found = rows(session, &shared.statements.size, &[], both).await?;
                Ok(found.first().copied().unwrap_or_default())
            })
        });
        self.inner.database.read(false, job).await
    }
}

/// The greatest place in the log, and the greatest revision.
async fn last(session: &mut impl Session, statements: &Statements) -> DbResult<(i64, Revision)> {
    let both = |columns: &dyn Columns| (columns.int(0), columns.int(1));
    Ok(rows(session, &statements.last, &[], both).await?.pop().unwrap_or_default())
}

#[async_trait]
impl<D: Database> Store for SqlStore<D> {
    fn name(&self) -> &Arc<str> {
        &self.inner.shared.name
    }

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        self.inner.shared.check_keys(&txn)?;
        let (answer, written) = Ticket::new();
        self.ask(Task::Write(Write::Txn { txn, dead_leases }, answer), written).await?
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Revision> {
        let (answer, written) = Ticket::new();
        let written = self.ask(Task::Write(Write::EndLease(lease), answer), written).await??;
        Ok(written.revision)
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        let shared = self.inner.shared.clone();
        let leases = self.inner.database.read(
            false,
            Box::new(move |session| {
                let shared = shared.clone();
                Box::pin(async move {
                    rows(session, &shared.statements.leases, &[], |columns| columns.int(0)).await
                })
            }),
        );
        let leases = leases.await.map_err(|error| self.inner.shared.error(error))?;
        Ok(leases.into_iter().collect())
    }

    async fn read(&self, read: &Query) -> Result<Page> {
        let shared = self.inner.shared.clone();
        let read = read.at(shared.journal.shown());
        shared.wait_closed(read.revision).await?;
        shared.check_readable(read.revision)?;
        let (statements, read, revision) = (shared.clone(), read.clone(), read.revision);
        let is_short = read.range.as_single().is_some();
        let span = shared.span("SELECT", reader::statement(&shared.statements, &read));
        let page = self.inner.database.read(
            is_short,
            Box::new(move |session| {
                let (shared, read) = (statements.clone(), read.clone());
                Box::pin(async move {
                    reader::page(session, &shared.statements, &shared.page_sizer, &read).await
                })
            }),
        );
        let page = page.instrument(span.clone()).await;
        let page = page.map_err(|error| shared.error_in(&span, error))?;
        // Compaction may have dropped what was needed, while it was read.
        shared.check_readable(revision)?;
        Ok(page)
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        let (range, revision) = (&query.range, query.revision);
        let shared = self.inner.shared.clone();
        shared.wait_closed(revision).await?;
        shared.check_readable(revision)?;
        let (statements, range) = (shared.clone(), range.clone());
        let span = shared.span("SELECT", reader::count_statement(&shared.statements, &range));
        let count = self.inner.database.read(
            range.as_single().is_some(),
            Box::new(move |session| {
                let (shared, range) = (statements.clone(), range.clone());
                Box::pin(async move {
                    reader::count(session, &shared.statements, &range, revision).await
                })
            }),
        );
        let count = count.instrument(span.clone()).await;
        let count = count.map_err(|error| shared.error_in(&span, error))?;
        shared.check_readable(revision)?;
        Ok(count)
    }

    fn tail(&self, after: Revision) -> Tail {
        self.inner.shared.journal.clone().tail(after, self.inner.clone())
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
        self.inner.shared.journal.closed()
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.inner.shared.journal.advance_closed(revision, ahead).await
    }

    async fn read_index(&self, _range: &KeyRange, _coverage: Coverage) -> Result<Revision> {
        Ok(self.inner.shared.journal.shown())
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        let (answer, accepted) = oneshot::channel();
        let (done, finished) = oneshot::channel();
        self.ask(Task::Compact(revision, answer, done), accepted).await??;
        if !wait {
            return Ok(());
        }
        let gone = || DbError::Lost("its writer has stopped".to_owned());
        let finished = finished.await.unwrap_or_else(|_| Err(gone()));
        finished.map_err(|error| self.inner.shared.error(error))
    }

    fn compacted(&self) -> Revision {
        self.inner.shared.compacted.load(Ordering::Acquire)
    }

    async fn size(&self) -> Result<Size> {
        let shared = &self.inner.shared;
        let measure = tokio::time::timeout(SIZE_WAIT_MAX, self.measure());
        let measured = match shared.check_usable() {
            Ok(()) => measure.await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        let mut last = shared.size.lock().unwrap_or_else(PoisonError::into_inner);
        *last = measured.unwrap_or(*last);
        Ok(*last)
    }

    fn head(&self) -> Head {
        let Shared { incarnation, witnessed, journal, .. } = &*self.inner.shared;
        let (incarnation, witnessed) = (*incarnation, *witnessed);
        Head { incarnation, newest: journal.newest(), is_exact: true, witnessed }
    }

    async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Task::Close(done)).await.is_ok() {
            // Where the writer has ended, there is nothing to close.
            let _ = closed.await;
        }
    }

    async fn describe(&self) -> Vec<Described> {
        let trouble = self.inner.shared.check_usable().err().map(|error| error.to_string());
        let (name, trouble) = (self.name().to_string(), trouble.unwrap_or_default());
        vec![Described { name, trouble, node: None }]
    }
}

#[async_trait]
impl<D: Database> RecordStore for SqlStore<D> {
    async fn put_records(&self, changes: Vec<(String, Option<Bytes>)>) -> Result<()> {
        let (answer, done) = oneshot::channel();
        self.ask(Task::Records(changes, answer), done).await?
    }

    async fn get_record(&self, name: &str) -> Result<Option<Bytes>> {
        let statement = self.inner.shared.statements.record.clone();
        let found = self.inner.records(statement, vec![name.to_owned()]).await?;
        Ok(found.into_iter().next().map(|(_, value)| value))
    }

    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        let statement = self.inner.shared.statements.records.clone();
        // Names are ASCII, so that nothing that begins with the prefix lies behind this.
        let bounds = vec![prefix.to_owned(), format!("{prefix}\u{7f}")];
        self.inner.records(statement, bounds).await
    }
}

impl<D: Database> Inner<D> {
    /// The records that a statement finds, by name.
    async fn records(&self, statement: Sql, names: Vec<String>) -> Result<Vec<(String, Bytes)>> {
        let records = self.database.read(
            false,
            Box::new(move |session| {
                let (statement, names) = (statement.clone(), names.clone());
                Box::pin(async move {
                    let decode =
                        |c: &dyn Columns| (String::from_utf8_lossy(&c.bytes(0)).into(), c.bytes(1));
                    let args: Vec<Arg<'_>> = names.iter().map(|name| Arg::Text(name)).collect();
                    rows(session, &statement, &args, decode).await
                })
            }),
        );
        records.await.map_err(|error| self.shared.error(error))
    }
}

#[async_trait]
impl<D: Database> Log for Inner<D> {
    async fn page(&self, after: Revision, through: Revision) -> Result<LogBatch> {
        let shared = self.shared.clone();
        shared.check_readable(after + 1)?;
        let statements = shared.clone();
        let batch = self.database.read(
            false,
            Box::new(move |session| {
                let shared = statements.clone();
                Box::pin(
                    async move { reader::log(session, &shared.statements, after, through).await },
                )
            }),
        );
        let batch = batch.await.map_err(|error| shared.error(error))?;
        shared.check_readable(after + 1)?;
        // A server that answers meanwhile is not known to be the right one.
        shared.check_usable()?;
        Ok(batch)
    }

    fn compacted(&self) -> Revision {
        self.shared.compacted.load(Ordering::Acquire)
    }
}

// === impl Shared ===

impl Shared {
    /// From now on nothing is asked of it: others may have it soon.
    fn stop(&self) {
        let (store, reason) = (self.name.clone(), "this node is stopping".into());
        self.trouble.send_replace(Some(StoreError::Unavailable { store, reason }));
    }

    fn check_usable(&self) -> Result<()> {
        self.trouble.borrow().clone().map_or(Ok(()), Err)
    }

    fn check_keys(&self, txn: &Txn) -> Result<()> {
        let (bytes, max) = (txn.longest_put(), self.key_bytes_max);
        if bytes > max {
            return Err(StoreError::KeyTooLong { store: self.name.clone(), bytes, max });
        }
        Ok(())
    }

    /// Waits until the store has closed `revision`, but for no store that is in trouble.
    async fn wait_closed(&self, revision: Revision) -> Result<()> {
        let mut trouble = self.trouble.subscribe();
        tokio::select! {
            biased;
            Ok(error) = trouble.wait_for(Option::is_some) => error.clone().map_or(Ok(()), Err),
            closed = self.journal.wait_closed(revision) => closed.map(drop),
        }
    }

    fn check_readable(&self, revision: Revision) -> Result<()> {
        let compacted = self.compacted.load(Ordering::Acquire);
        if revision < compacted { Err(StoreError::Compacted { compacted }) } else { Ok(()) }
    }

    /// The span of what is asked of the database, where that is for a request that is traced.
    /// Arguments are no part of a statement.
    fn span(&self, operation: &'static str, statement: &Sql) -> Span {
        trace::within(|| {
            tracing::info_span!(
                "sql",
                otel.name = operation,
                otel.kind = "client",
                otel.status_code = Empty,
                db.system = self.system,
                db.query.text = &**statement,
                pleach.route = &*self.name,
            )
        })
    }

    /// The span of a transaction for so many writes, likewise.
    fn transaction_span(&self, writes: usize) -> Span {
        tracing::info_span!(
            "sql",
            otel.name = "transaction",
            otel.kind = "client",
            otel.status_code = Empty,
            db.system = self.system,
            db.operation.batch.size = writes,
            db.query.text = Empty,
            pleach.route = &*self.name,
        )
    }

    fn error_in(&self, span: &Span, error: DbError) -> StoreError {
        span.record("otel.status_code", "ERROR");
        self.error(error)
    }

    fn error(&self, error: DbError) -> StoreError {
        let store = self.name.clone();
        match error {
            DbError::Full(reason) => StoreError::NoSpace(format!("store {store}: {reason}").into()),
            DbError::Fenced(owner) => StoreError::Fenced { store, owner: owner.into() },
            DbError::Lost(reason) | DbError::Failed(reason) => {
                StoreError::Unavailable { store, reason: reason.into() }
            }
        }
    }
}

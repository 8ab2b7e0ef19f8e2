//! A store in a SQL database: one algorithm, and a dialect for each database.
//!
//! [`statements`] says how rows are kept, `writer` how they change, `reader` how they are read as of
//! a revision, `compact` how the past is given up. [`session`] is all that they ask of a database;
//! [`sqlite`] gives it for a file, [`remote`] for a server. Revisions come from the node's clock and stand in
//! the rows, so that the database alone is the store: a process keeps nothing that it could lose.

mod checkpoint;
mod compact;
mod index;
pub mod mysql;
pub mod postgres;
mod reader;
pub mod remote;
mod reserve;
pub mod session;
pub mod sqlite;
pub mod statements;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, field::Empty};

use self::{
    compact::Compaction,
    index::Index,
    session::{Arg, Columns, Database, DbError, DbResult, Session, Sql, rows},
    statements::Statements,
    writer::{Building, Writer},
};
use super::{
    Head, LogBatch, Page, Query, RecordStore, Size,
    led::{self, Engine, Led, leaf::Leaf, mailbox::Task, page_sizer::PageSizer},
    pool::Pool,
};
use crate::{
    clock::SharedClock,
    model::{
        Key, KeyRange, LeaseId, Revision, StoreError, error::Result, key::kind_prefix, txn::Txn,
    },
    select::Attribute,
    wire::trace,
};

/// What stood beside a store about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Witnessed {
    /// The greatest revision that it held; 0 where nothing is known.
    pub newest: Revision,
    /// Whether it was another store.
    pub is_another: bool,
    /// Where the database says that its tables may have been made anew since: the number by which it says so,
    /// kept once what was before is broken off.
    pub made_anew: Option<i64>,
}

/// Which indexes of labels and fields a store keeps for reads with selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Indexing {
    /// Those that reads were in need of, and these in any case.
    WhereUsed(Vec<Demanded>),
    /// None; those that are there are given up.
    Never,
}

/// An index that is demanded, used or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demanded {
    /// The prefix of its keys.
    pub prefix: Key,
    /// What of their objects it finds.
    pub attribute: Attribute,
}

/// What reads need.
#[derive(Debug)]
struct SqlEngine<D> {
    database: D,
    shared: Arc<Shared>,
}

/// What reads and the writer share.
#[derive(Debug)]
struct Shared {
    leaf: Leaf,
    /// The database's name in traces.
    system: &'static str,
    statements: Statements,
    page_sizer: PageSizer,
    key_bytes_max: usize,
    /// Whether puts are refused from when there is no room until there is plenty.
    keeps_reserve: bool,
    indexing: Indexing,
    /// As the writer has it; what is built there is there for all revisions that are shown.
    index: RwLock<Arc<Index>>,
}

/// Opens a store whose tables are there and owned by this node. The clock is moved up to the store's
/// greatest revision, unless the node has begun without it.
///
/// # Errors
/// Where the database can't be read, or holds a revision that the clock can't move up to.
async fn open<D: Database>(
    name: &str,
    database: D,
    mut session: D::Session,
    clock: SharedClock,
    witnessed: Witnessed,
    indexing: Indexing,
) -> Result<Arc<dyn RecordStore>, DbError> {
    let dialect = database.dialect();
    let statements = Statements::new(&dialect);
    let (seq, newest) = last(&mut session, &statements).await?;
    let compacted = reader::meta(&mut session, &statements, "compacted").await?.unwrap_or(-1);
    let walked = reader::meta(&mut session, &statements, "walked").await?.unwrap_or(-1);
    // Compaction may have dropped the newest row, where that was a deletion below it.
    let newest = newest.max(compacted);
    let incarnation = reader::meta(&mut session, &statements, "incarnation").await?;
    let incarnation = incarnation.and_then(|it| u64::try_from(it).ok()).unwrap_or(0);
    // One more than there is counts as gone back: another store breaks what was promised, whatever it has.
    let Witnessed { newest: beside, is_another, made_anew } = witnessed;
    let witnessed = beside.max(if is_another { newest + 1 } else { 0 });
    session.witness(newest.max(witnessed));
    let index = index::open(&mut session, &statements, &indexing).await?;
    let mut planned = index.clone();
    for Demanded { prefix, attribute } in indexing.demanded() {
        let obstacle = planned.obstacle(prefix, attribute);
        planned = planned.with(prefix, attribute).unwrap_or(planned);
        if let Some(obstacle) = obstacle {
            let prefix = String::from_utf8_lossy(prefix);
            tracing::warn!(store = name, %prefix, %attribute, obstacle, "an index that the topology has is not made");
        }
    }
    // Others may have written it while this node went on without it: the slot sees to that.
    let seat = clock.join_apart(newest).await;
    let seat = seat.map_err(|error| DbError::Failed(error.to_string()))?;
    let is_suspect = made_anew.is_some();
    let is_full = database.is_full();
    let head = Head { incarnation, newest, is_exact: true, witnessed, is_suspect, is_full: false };
    let shared = Arc::new(Shared {
        leaf: Leaf::new(name, clock, seat, head, compacted, is_full),
        system: dialect.system,
        statements,
        page_sizer: PageSizer::new(dialect.rows_come_all),
        key_bytes_max: dialect.key_bytes_max,
        keeps_reserve: dialect.keeps_reserve,
        indexing,
        index: RwLock::new(Arc::new(index)),
    });
    let (queue, tasks) = led::mailbox();
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
            index_paused: None,
            building: Building::default(),
            made_anew,
            held: None,
            pieces: Vec::new(),
        };
        Box::pin(writer.run())
    };
    database.start_writer(session, Box::new(start));
    Ok(Led::new(Arc::new(SqlEngine { database, shared }), queue))
}

/// The greatest place in the log, and the greatest revision.
async fn last(session: &mut impl Session, statements: &Statements) -> DbResult<(i64, Revision)> {
    let both = |columns: &dyn Columns| (columns.int(0), columns.int(1));
    Ok(rows(session, &statements.last, &[], both).await?.pop().unwrap_or_default())
}

#[async_trait]
impl<D: Database> Engine for SqlEngine<D> {
    fn leaf(&self) -> &Leaf {
        &self.shared.leaf
    }

    fn pool(&self) -> Option<Arc<Pool>> {
        Some(self.database.pool())
    }

    fn hazards(&self) -> Vec<&'static str> {
        self.database.hazards()
    }

    fn check_txn(&self, txn: &Txn) -> Result<()> {
        let (bytes, max) = (txn.longest_put(), self.shared.key_bytes_max);
        if bytes > max {
            let store = self.shared.leaf.name.clone();
            return Err(StoreError::KeyTooLong { store, bytes, max });
        }
        if txn.largest_put() > self.database.row_bytes_max() {
            return Err(StoreError::TooLarge(self.shared.leaf.name.clone()));
        }
        self.shared.check_room(txn)
    }

    fn check_owned(&self) -> Result<()> {
        // A session that lost the store reads nothing.
        Ok(())
    }

    async fn page_at(&self, query: &Query) -> Result<Page> {
        let (shared, query) = (self.shared.clone(), query.clone());
        let is_short = query.range.as_single().is_some();
        let span = shared.span("SELECT", reader::statement(&shared.statements, &query));
        let page = self.database.read(
            is_short,
            Box::new(move |session| {
                let (shared, query) = (shared.clone(), query.clone());
                Box::pin(async move {
                    reader::page(session, &shared.statements, &shared.page_sizer, &query).await
                })
            }),
        );
        let page = page.instrument(span.clone()).await;
        page.map_err(|error| self.shared.error_in(&span, error))
    }

    async fn selected_page_at(&self, query: &Query) -> Result<Option<(Page, usize)>> {
        let Some(selector) = &query.selector else { return Ok(None) };
        let Some(lookup) = self.shared.index().lookup(&query.range, selector) else {
            return Ok(None);
        };
        let (shared, query, attribute) = (self.shared.clone(), query.clone(), lookup.attribute);
        let span = shared.span("SELECT", &shared.statements.terms);
        let page = self.database.read(
            false,
            Box::new(move |session| {
                let (shared, query, lookup) = (shared.clone(), query.clone(), lookup.clone());
                Box::pin(async move {
                    let Shared { statements, page_sizer, .. } = &*shared;
                    reader::selected_page(session, statements, page_sizer, &query, &lookup).await
                })
            }),
        );
        let page = page.instrument(span.clone()).await;
        let page = page.map_err(|error| self.shared.error_in(&span, error))?;
        // Rows go only once it is given up: what is there still was whole.
        Ok(page.filter(|_| self.shared.index().has(attribute)))
    }

    fn index_for(&self, query: &Query) -> Option<Task> {
        let selector =
            query.selector.as_ref().filter(|_| self.shared.indexing != Indexing::Never)?;
        let prefix = kind_prefix(&query.range)?;
        let attribute = self.shared.index().attribute_for(&prefix, selector)?;
        Some(Task::Index(prefix, attribute))
    }

    async fn count_at(&self, range: &KeyRange, revision: Revision) -> Result<u64> {
        let (shared, range) = (self.shared.clone(), range.clone());
        let is_short = range.as_single().is_some();
        let span = shared.span("SELECT", reader::count_statement(&shared.statements, &range));
        let count = self.database.read(
            is_short,
            Box::new(move |session| {
                let (shared, range) = (shared.clone(), range.clone());
                Box::pin(async move {
                    reader::count(session, &shared.statements, &range, revision).await
                })
            }),
        );
        let count = count.instrument(span.clone()).await;
        count.map_err(|error| self.shared.error_in(&span, error))
    }

    async fn log_after(&self, after: Revision, through: Revision) -> Result<LogBatch> {
        let shared = self.shared.clone();
        let batch = self.database.read(
            false,
            Box::new(move |session| {
                let shared = shared.clone();
                Box::pin(
                    async move { reader::log(session, &shared.statements, after, through).await },
                )
            }),
        );
        batch.await.map_err(|error| self.shared.error(error))
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        let leases =
            self.rows(&self.shared.statements.leases, Vec::new(), |columns| columns.int(0));
        Ok(leases.await?.into_iter().collect())
    }

    async fn get_record(&self, name: &str) -> Result<Option<Bytes>> {
        let statement = &self.shared.statements.record;
        let found = self.rows(statement, vec![name.to_owned()], record).await?;
        Ok(found.into_iter().next().map(|(_, value)| value))
    }

    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        // Names are ASCII, so that nothing that begins with the prefix lies behind this.
        let bounds = vec![prefix.to_owned(), format!("{prefix}\u{7f}")];
        self.rows(&self.shared.statements.records, bounds, record).await
    }

    async fn measure(&self) -> Result<Size> {
        let size = |columns: &dyn Columns| Size {
            total: u64::try_from(columns.int(0)).unwrap_or(0),
            in_use: u64::try_from(columns.int(1)).unwrap_or(0),
        };
        let found = self.rows(&self.shared.statements.size, Vec::new(), size).await?;
        Ok(found.first().copied().unwrap_or_default())
    }
}

fn record(columns: &dyn Columns) -> (String, Bytes) {
    (String::from_utf8_lossy(&columns.bytes(0)).into(), columns.bytes(1))
}

// === impl SqlEngine ===

impl<D: Database> SqlEngine<D> {
    /// What `decode` makes of the rows of a statement with names for arguments.
    async fn rows<T: Send + 'static>(
        &self,
        statement: &Sql,
        names: Vec<String>,
        decode: fn(&dyn Columns) -> T,
    ) -> Result<Vec<T>> {
        let statement = statement.clone();
        let found = self.database.read(
            false,
            Box::new(move |session| {
                let (statement, names) = (statement.clone(), names.clone());
                Box::pin(async move {
                    let args: Vec<Arg<'_>> = names.iter().map(|name| Arg::Text(name)).collect();
                    rows(session, &statement, &args, decode).await
                })
            }),
        );
        found.await.map_err(|error| self.shared.error(error))
    }
}

// === impl Indexing ===

impl Indexing {
    fn demanded(&self) -> &[Demanded] {
        match self {
            Self::WhereUsed(demanded) => demanded,
            Self::Never => &[],
        }
    }
}

impl Default for Indexing {
    fn default() -> Self {
        Self::WhereUsed(Vec::new())
    }
}

// === impl Shared ===

impl Shared {
    fn index(&self) -> Arc<Index> {
        // Nothing panics while it has the lock.
        self.index.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next of the indexes that are demanded which is not there and may be begun.
    fn demanded(&self, index: &Index) -> Option<&Demanded> {
        self.indexing.demanded().iter().find(|it| index.wants(&it.prefix, &it.attribute))
    }

    fn set_index(&self, index: Index) {
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
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
                pleach.route = &*self.leaf.name,
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
            pleach.route = &*self.leaf.name,
        )
    }

    /// Refuses what makes a store larger that has no room.
    fn check_room(&self, txn: &Txn) -> Result<()> {
        if self.keeps_reserve && txn.longest_put() > 0 && self.leaf.is_full() {
            return Err(self.error(DbError::Full("the disk is full".to_owned())));
        }
        Ok(())
    }

    /// Something was put. Where room is kept, that says nothing: it may lie in there.
    fn found_room(&self) {
        if !self.keeps_reserve && self.leaf.is_full() {
            self.leaf.note_full(false);
        }
    }

    fn error_in(&self, span: &Span, error: DbError) -> StoreError {
        span.record("otel.status_code", "ERROR");
        self.error(error)
    }

    fn error(&self, error: DbError) -> StoreError {
        let store = self.leaf.name.clone();
        match error {
            DbError::Full(reason) => StoreError::NoSpace(format!("store {store}: {reason}").into()),
            DbError::Fenced(owner) => StoreError::Fenced { store, owner: owner.into() },
            DbError::Lost(reason) | DbError::Failed(reason) => self.leaf.unavailable(reason),
        }
    }
}

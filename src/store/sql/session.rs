//! What the algorithm asks of a database: statements, rows, one writing transaction at a time.

use std::{
    fmt,
    future::Future,
    ops::ControlFlow,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::store::pool::Pool;

/// A value bound to a placeholder.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// A number.
    Int(i64),
    /// Bytes, never interpreted.
    Bytes(&'a [u8]),
    /// The name of a record.
    Text(&'a str),
}

/// The columns of the row at hand, by position. NULL reads as 0, or as no bytes.
pub trait Columns {
    /// A number.
    fn int(&self, column: usize) -> i64;
    /// Bytes, copied out of the database's memory.
    fn bytes(&self, column: usize) -> Bytes;
}

/// Takes the rows of a query one by one, and may stop it.
pub type Each<'a> = &'a mut (dyn FnMut(&dyn Columns) -> ControlFlow<()> + Send);

/// The text of a statement, as its dialect writes it.
pub type Sql = Arc<str>;

/// A connection to a database.
pub trait Session: Send + 'static {
    /// Begins the one writing transaction, where this session still owns the store. Returns the place of
    /// the newest row in the log.
    fn begin(&mut self) -> impl Future<Output = DbResult<i64>> + Send;

    /// Makes the transaction durable.
    fn commit(&mut self) -> impl Future<Output = DbResult<()>> + Send;

    /// Gives the transaction up; harmless where there is none.
    fn rollback(&mut self) -> impl Future<Output = ()> + Send;

    /// Runs a query and hands its rows to `each`.
    fn fetch(
        &mut self,
        sql: &Sql,
        args: &[Arg<'_>],
        each: Each<'_>,
    ) -> impl Future<Output = DbResult<()>> + Send;

    /// Runs a query that selects by one column for each of the values of it; the dialect's
    /// [`Dialect::one_of`] stands where it does. Rows come in no order.
    fn fetch_each(
        &mut self,
        sql: &Sql,
        values: &[Arg<'_>],
        each: Each<'_>,
    ) -> impl Future<Output = DbResult<()>> + Send;

    /// Runs a statement for many rows of arguments; the dialect's [`Dialect::rows`] or
    /// [`Dialect::one_of`] stands where they do.
    fn execute_many(
        &mut self,
        sql: &Sql,
        rows: &[Vec<Arg<'_>>],
    ) -> impl Future<Output = DbResult<()>> + Send;

    /// Gives up whatever the session was doing, connects anew where it has to, and makes sure that
    /// it still owns the store.
    fn recover(&mut self) -> impl Future<Output = DbResult<()>> + Send;

    /// Notes beside the store how far it has come, where it has something beside it.
    fn witness(&mut self, newest: i64);

    /// Gives up room that it keeps for when there is none, and says whether it had some.
    fn make_room(&mut self) -> bool;

    /// Gives what is free in the store's files back to the disk, and says whether they are this node's to do
    /// that with.
    fn defragment(&mut self) -> impl Future<Output = DbResult<bool>> + Send;

    /// Gives up the store, so that another process may have it at once.
    fn release(&mut self) -> impl Future<Output = ()> + Send;

    /// Lets go of all that it has, without a word to the database: another owner has the store. It does nothing
    /// more.
    fn abandon(&mut self);

    /// How often [`Session::keep`] is due, where ownership runs out.
    fn keep_interval(&self) -> Option<Duration>;

    /// Keeps the store for a while more.
    fn keep(&mut self) -> impl Future<Output = DbResult<()>> + Send;
}

/// Something to do on a session, for a result.
///
/// It may be run again on another session, where the first one turns out to be dead.
pub type Job<S, T> = Box<dyn for<'s> Fn(&'s mut S) -> BoxFuture<'s, DbResult<T>> + Send + Sync>;

/// The task that owns the writing session.
pub type WriterTask<S> = Box<dyn FnOnce(S) -> BoxFuture<'static, ()> + Send>;

/// A database: a bounded set of sessions that read, and one that writes.
pub trait Database: fmt::Debug + Send + Sync + 'static {
    /// Its connections.
    type Session: Session;

    /// What differs in its SQL.
    fn dialect(&self) -> Dialect;

    /// Runs `job` on a session that only reads, waiting for a free one. A short job may block its
    /// thread for as long as reading one row takes.
    fn read<T: Send + 'static>(
        &self,
        is_short: bool,
        job: Job<Self::Session, T>,
    ) -> impl Future<Output = DbResult<T>> + Send;

    /// Its sessions that read.
    fn pool(&self) -> Arc<Pool>;

    /// Each setting of its server under which a commit is not durable, with what that means, as of the opening.
    fn hazards(&self) -> Vec<&'static str>;

    /// Whether it has no room for more, to be shared with who finds that out.
    fn is_full(&self) -> Arc<AtomicBool>;

    /// The bytes of the longest key and value that its server takes at present.
    fn row_bytes_max(&self) -> usize;

    /// Gives the writing session to the writer, which runs until its queue ends.
    fn start_writer(&self, session: Self::Session, task: WriterTask<Self::Session>);
}

/// How a database writes what databases write differently.
#[derive(Clone, Debug)]
pub struct Dialect {
    /// The database's name in traces.
    pub system: &'static str,
    /// What the names of the tables begin with, instead of `pleach_`.
    pub prefix: String,
    /// Whether placeholders are `$1`, `$2`, … and not `?`.
    pub has_numbers: bool,
    /// Behind the columns of an INSERT: so many columns of any number of rows.
    pub rows: fn(columns: usize) -> String,
    /// Behind a column in a condition: one of any number of values.
    pub one_of: &'static str,
    /// Behind an INSERT into the keys: what to do where the key is there already.
    pub on_key_conflict: &'static str,
    /// Behind an INSERT of a name with a value, likewise.
    pub on_name_conflict: &'static str,
    /// Behind an INSERT into the terms of an index: nothing to do where the row is there already.
    pub on_term_conflict: &'static str,
    /// Makes the table of the terms, where it is not there.
    pub make_terms: &'static str,
    /// Yields the bytes in all, and the bytes in use.
    pub size: &'static str,
    /// The bytes of the longest key that it can keep.
    pub key_bytes_max: usize,
    /// Whether it keeps room for when there is none: puts are refused until it has that again.
    pub keeps_reserve: bool,
    /// Whether a query sends all its rows, also those that nobody reads any more.
    pub rows_come_all: bool,
}

/// What went wrong in a database, without secrets.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DbError {
    /// The disk or the quota is full. The transaction is rolled back.
    #[error("no space: {0}")]
    Full(String),
    /// Another owner has the store.
    #[error("owned by {0}")]
    Fenced(String),
    /// The connection broke or did not answer in time. Outside a COMMIT the transaction is rolled
    /// back.
    #[error("{0}")]
    Lost(String),
    /// Anything else. The transaction is rolled back.
    #[error("{0}")]
    Failed(String),
}

/// A store whose owners are counted lower than its present one: it was put back under it, or this is a replica
/// that is behind.
pub fn went_back(found: i64, owned: i64) -> DbError {
    DbError::Lost(format!(
        "it has had {found} owners, and this node is the {owned}th: the server lost what it had promised, or \
         this is a replica that is behind; make the right server answer at this address, or start the node \
         anew to go on with what is there"
    ))
}

/// The result of what a database does.
pub type DbResult<T> = Result<T, DbError>;

/// Runs a query and collects what `decode` makes of each row.
///
/// # Errors
/// Those of the query.
pub async fn rows<S: Session, T: Send>(
    session: &mut S,
    sql: &Sql,
    args: &[Arg<'_>],
    decode: fn(&dyn Columns) -> T,
) -> DbResult<Vec<T>> {
    let mut rows = Vec::new();
    let mut each = |columns: &dyn Columns| {
        rows.push(decode(columns));
        ControlFlow::Continue(())
    };
    session.fetch(sql, args, &mut each).await?;
    Ok(rows)
}

// === impl Dialect ===

impl Dialect {
    /// Our statement as the database wants it: its names, its placeholders.
    pub fn write(&self, sql: &str) -> Sql {
        let sql = sql.replace("pleach_", &self.prefix);
        if !self.has_numbers {
            return sql.into();
        }
        let mut parts = sql.split('?');
        let mut written = parts.next().unwrap_or_default().to_owned();
        for (place, part) in parts.enumerate() {
            written.push_str(&format!("${}{part}", place + 1));
        }
        written.into()
    }
}

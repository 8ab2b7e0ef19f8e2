//! What the algorithm asks of a database: statements, rows, one writing transaction at a time.

use std::{fmt, future::Future, ops::ControlFlow};

use bytes::Bytes;
use futures::future::BoxFuture;

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

/// A connection to a database. Statements are written with `?` placeholders.
pub trait Session: Send + 'static {
    /// Begins the one writing transaction.
    fn begin(&mut self) -> impl Future<Output = DbResult<()>> + Send;

    /// Makes the transaction durable.
    fn commit(&mut self) -> impl Future<Output = DbResult<()>> + Send;

    /// Gives the transaction up; harmless where there is none.
    fn rollback(&mut self) -> impl Future<Output = ()> + Send;

    /// Runs a query and hands its rows to `each`.
    fn fetch(
        &mut self,
        sql: &str,
        args: &[Arg<'_>],
        each: Each<'_>,
    ) -> impl Future<Output = DbResult<()>> + Send;

    /// Runs a statement once for each row of arguments.
    fn execute_many(
        &mut self,
        sql: &str,
        rows: &[Vec<Arg<'_>>],
    ) -> impl Future<Output = DbResult<()>> + Send;
}

/// Something to do on a session, for a result.
pub type Job<S, T> = Box<dyn for<'s> FnOnce(&'s mut S) -> BoxFuture<'s, DbResult<T>> + Send>;

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

    /// Gives the writing session to the writer, which runs until its queue ends.
    fn start_writer(&self, session: Self::Session, task: WriterTask<Self::Session>);
}

/// The few texts in which databases differ.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Behind an INSERT into the keys: what to do where the key is there already.
    pub on_key_conflict: &'static str,
    /// Behind an INSERT of a name with a value, likewise.
    pub on_name_conflict: &'static str,
    /// Yields the bytes in all, and the bytes in use.
    pub size: &'static str,
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
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The result of what a database does.
pub type DbResult<T> = Result<T, DbError>;

/// Runs a query and collects what `decode` makes of each row.
///
/// # Errors
/// Those of the query.
pub async fn rows<S: Session, T: Send>(
    session: &mut S,
    sql: &str,
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

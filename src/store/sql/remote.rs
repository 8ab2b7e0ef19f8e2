//! Databases behind a socket: their connections, how long anything may take, and who owns the store.
//!
//! The writer keeps one connection, reads share a few others; a read never takes a second one. Every
//! statement has a time limit, and a connection that broke or did not answer is thrown away.
//!
//! ```text
//!   lock of the connection   held while the owner's connection lives: who else starts is refused
//!   epoch                    checked in every transaction: an owner that lost the store writes nothing
//!   note, until              who has it, and until when it may be read without asking again
//! ```

use std::{
    fmt,
    future::Future,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    SqlStore, address,
    session::{
        Arg, Columns, Database, DbError, DbResult, Dialect, Each, Job, Session, Sql, WriterTask,
    },
};
use crate::clock::SharedClock;

/// The schema that this version reads and writes.
const SCHEMA_VERSION: i64 = 1;

/// What a statement may take, as long as etcd gives a request.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(7);

/// How long an owner that can't be reached keeps its store.
const LEASE: Duration = Duration::from_secs(10);

/// How often the owner extends it.
const KEEP_INTERVAL: Duration = Duration::from_secs(3);

/// How long to wait for the lock of an owner that died a moment ago: its server ends the connection
/// when it notices.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What an owner's clock and the database's may differ by within one lease.
const LEASE_DOUBT: Duration = Duration::from_secs(1);

/// Connections that read, where the topology does not say how many.
pub const READERS_MAX: usize = 8;

/// How a database is spoken to.
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// One connection.
    type Connection: fmt::Debug + Send + 'static;

    /// The database.
    fn database(&self) -> &address::Database;

    /// How it writes what databases write differently.
    fn dialect(&self) -> Dialect;

    /// A new connection, fit for both roles. The database itself is made where it is missing.
    fn connect(&self) -> impl Future<Output = DbResult<Self::Connection>> + Send;

    /// Runs statements without arguments, several where `;` parts them. Returns the first column of
    /// the last row, where it is a number.
    fn run(
        connection: &mut Self::Connection,
        sql: &Sql,
    ) -> impl Future<Output = DbResult<Option<i64>>> + Send;

    /// See [`Session::fetch`].
    fn fetch(
        connection: &mut Self::Connection,
        sql: &Sql,
        args: &[Arg<'_>],
        each: Each<'_>,
    ) -> impl Future<Output = DbResult<()>> + Send;

    /// See [`Session::fetch_each`].
    fn fetch_each(
        connection: &mut Self::Connection,
        sql: &Sql,
        values: &[Arg<'_>],
        each: Each<'_>,
    ) -> impl Future<Output = DbResult<()>> + Send;

    /// See [`Session::execute_many`].
    fn execute_many(
        connection: &mut Self::Connection,
        sql: &Sql,
        rows: &[Vec<Arg<'_>>],
    ) -> impl Future<Output = DbResult<()>> + Send;

    /// The texts in which only the opening differs between databases.
    fn texts(&self) -> Texts;
}

/// The statements around a store's tables, as a database writes them.
#[derive(Clone, Debug)]
pub struct Texts {
    /// Makes the tables; each statement does nothing where its table is there.
    pub schema: Vec<String>,
    /// Yields 1 where kine's table is there.
    pub has_kine: String,
    /// Yields 1 where the tables are there.
    pub has_tables: String,
    /// Takes the lock of the connection; yields 1 where it was free.
    pub lock: String,
    /// The database's time, in milliseconds since 1970.
    pub now_ms: &'static str,
    /// Yields 1 for each setting under which a commit is not durable.
    pub durability: Vec<(&'static str, String)>,
}

/// A database that can't be a store, or can't be one now.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another node has it.
    #[error(
        "{place} is in use by {owner}; stop that node, or give this one another database \
         or table prefix"
    )]
    InUse {
        /// The database.
        place: String,
        /// What its owner wrote about itself.
        owner: String,
    },
    /// It belongs to another program.
    #[error(
        "{place} holds the table `kine`: kine or HariKube filled it, and Pleach does not read \
         their tables; point this store at another database or schema"
    )]
    Foreign {
        /// The database.
        place: String,
    },
    /// A newer version wrote it.
    #[error(
        "{place} has schema version {found}, but this version of Pleach knows none above \
         {SCHEMA_VERSION}; run a newer one"
    )]
    TooNew {
        /// The database.
        place: String,
        /// Its version.
        found: i64,
    },
    /// It can't be reached, or does not answer.
    #[error("{place} can't be reached: {reason}")]
    Unreachable {
        /// The database.
        place: String,
        /// What happened.
        reason: String,
    },
    /// Anything else: no rights, a wrong password, a bad certificate.
    #[error("{place} can't be opened: {reason}")]
    Failed {
        /// The database.
        place: String,
        /// Why, and what to do where that is known.
        reason: String,
    },
}

/// A database behind a socket, for reads.
#[derive(Debug)]
pub struct Remote<D: Driver> {
    driver: Arc<D>,
    tenure: Arc<Tenure>,
    permits: Semaphore,
    free: Mutex<Vec<RemoteSession<D>>>,
    /// How long a connection that reads is used.
    life_time_max: Duration,
}

/// How many connections read, and how long each is used.
#[derive(Clone, Copy, Debug)]
pub struct Readers {
    /// The most at once.
    pub open_max: usize,
    /// How long a connection is used.
    pub life_time_max: Duration,
}

/// Until when the store is this node's for certain.
#[derive(Debug)]
struct Tenure {
    begin: Instant,
    /// Milliseconds after `begin`.
    until_ms: AtomicU64,
}

/// One connection, and what it may do.
#[derive(Debug)]
pub struct RemoteSession<D: Driver> {
    driver: Arc<D>,
    /// There where it can be used.
    connection: Option<D::Connection>,
    opened: Instant,
    /// There where this session writes.
    title: Option<Title>,
}

/// The writing session's right to the store.
#[derive(Debug)]
struct Title {
    epoch: i64,
    tenure: Arc<Tenure>,
    begin: Sql,
    extend: Sql,
}

/// Opens the store at `place`, making its tables where there are none, and takes it.
///
/// # Errors
/// Those of [`OpenError`].
pub async fn open<D: Driver>(
    name: &str,
    place: &str,
    driver: D,
    readers: Readers,
    owner: &str,
    clock: SharedClock,
) -> Result<Arc<SqlStore<Remote<D>>>, OpenError> {
    let opening = Opening { place, driver: Arc::new(driver), owner };
    let failed = |error| OpenError::new(place, error);
    let session = opening.take().await?;
    let tenure = session.title.as_ref().map(|title| title.tenure.clone());
    let remote = Remote {
        driver: opening.driver.clone(),
        tenure: tenure.unwrap_or_else(|| Arc::new(Tenure::new())),
        permits: Semaphore::new(readers.open_max),
        free: Mutex::default(),
        life_time_max: readers.life_time_max,
    };
    SqlStore::open(name, remote, session, clock).await.map_err(failed)
}

// === impl OpenError ===

impl OpenError {
    /// Whether it may be open later with no change to the node.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::Unreachable { .. } => true,
            Self::Foreign { .. } | Self::TooNew { .. } | Self::Failed { .. } => false,
        }
    }

    fn new(place: &str, error: DbError) -> Self {
        let (place, reason) = (place.to_owned(), error.to_string());
        match error {
            DbError::Lost(_) => Self::Unreachable { place, reason },
            DbError::Full(_) | DbError::Fenced(_) | DbError::Failed(_) => {
                Self::Failed { place, reason }
            }
        }
    }
}

struct Opening<'a, D> {
    place: &'a str,
    driver: Arc<D>,
    owner: &'a str,
}

/// What the database says about who has the store.
struct Claim {
    owner: String,
    left_ms: i64,
}

/// The part of an owner's words that stays the same when its process starts anew.
fn who(owner: &str) -> &str {
    owner.split_once(" (").map_or(owner, |(who, _)| who)
}

/// What went wrong while connecting, where it is about certificates and lasts; the driver has a
/// handshake that failed as an error of input.
pub(super) fn failure_of_tls(error: &sqlx::Error) -> Option<DbError> {
    let is_tls = match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    };
    is_tls.then(|| {
        DbError::Failed(format!("{error}; check the certificates of the server and of the route"))
    })
}

/// What went wrong beside what the server says itself.
pub(super) fn failure_of_connection(error: &sqlx::Error) -> DbError {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => DbError::Lost(error.to_string()),
        _ => DbError::Failed(error.to_string()),
    }
}

// === impl Opening ===

impl<D: Driver> Opening<'_, D> {
    fn failed(&self, error: DbError) -> OpenError {
        OpenError::new(self.place, error)
    }

    /// A session that owns the store.
    async fn take(&self) -> Result<RemoteSession<D>, OpenError> {
        self.driver.database().check_files().await.map_err(|error| self.failed(error))?;
        let mut session = RemoteSession::new(self.driver.clone());
        self.prepare(&mut session).await?;
        let begun = Instant::now();
        loop {
            let started = Instant::now();
            let is_free = session.number(&self.sql(&self.driver.texts().lock)).await;
            let is_free = is_free.map_err(|error| self.failed(error))? == Some(1);
            let taken = self.claim(&mut session, is_free).await;
            match taken.map_err(|error| self.failed(error))? {
                Ok(epoch) => {
                    let tenure = Arc::new(Tenure::new());
                    tenure.extend(started);
                    session.title = Some(self.title(epoch, tenure));
                    return Ok(session);
                }
                Err(_) if !is_free && begun.elapsed() < LOCK_WAIT_MAX => {
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(claim) if !is_free => {
                    let owner = claim.owner;
                    return Err(OpenError::InUse { place: self.place.to_owned(), owner });
                }
                Err(claim) => {
                    // Its connection is gone, so it is most likely dead; but it may come back.
                    let left = Duration::from_millis(u64::try_from(claim.left_ms).unwrap_or(0));
                    tracing::info!(
                        place = self.place,
                        owner = claim.owner,
                        ?left,
                        "waiting until the last owner's lease runs out"
                    );
                    tokio::time::sleep(left.min(LEASE) + Duration::from_millis(10)).await;
                }
            }
        }
    }

    fn sql(&self, text: &str) -> Sql {
        self.driver.dialect().write(text)
    }

    /// Makes the tables, and refuses what is not ours before anything is written.
    async fn prepare(&self, session: &mut RemoteSession<D>) -> Result<(), OpenError> {
        let texts = self.driver.texts();
        let mut ask = async |text: &str| {
            session.number(&self.sql(text)).await.map_err(|error| self.failed(error))
        };
        if ask(&texts.has_kine).await? == Some(1) {
            return Err(OpenError::Foreign { place: self.place.to_owned() });
        }
        if ask(&texts.has_tables).await? != Some(1) {
            for statement in &texts.schema {
                ask(statement).await?;
            }
        }
        let found = ask("SELECT value FROM pleach_meta WHERE name = 'schema'").await?;
        if let Some(found) = found.filter(|found| *found > SCHEMA_VERSION) {
            return Err(OpenError::TooNew { place: self.place.to_owned(), found });
        }
        for (advice, query) in &texts.durability {
            if ask(query).await? == Some(1) {
                tracing::warn!(place = self.place, "{advice}");
            }
        }
        Ok(())
    }

    /// Takes the store, or says who has it.
    async fn claim(
        &self,
        session: &mut RemoteSession<D>,
        is_free: bool,
    ) -> DbResult<Result<i64, Claim>> {
        let now = self.driver.texts().now_ms;
        session.number(&self.sql("BEGIN")).await?;
        let epoch = "SELECT value FROM pleach_meta WHERE name = 'epoch' FOR UPDATE";
        let epoch = session.number(&self.sql(epoch)).await?.unwrap_or(0);
        let left = format!("SELECT value - {now} FROM pleach_meta WHERE name = 'until'");
        let left_ms = session.number(&self.sql(&left)).await?.unwrap_or(0);
        let mut owner = String::new();
        let mut each = |columns: &dyn Columns| {
            owner = String::from_utf8_lossy(&columns.bytes(0)).into();
            ControlFlow::Continue(())
        };
        let sql = self.sql("SELECT note FROM pleach_meta WHERE name = ?");
        session.fetch(&sql, &[Arg::Text("epoch")], &mut each).await?;
        let is_mine = is_free && who(self.owner) == who(&owner);
        if left_ms > 0 && !is_mine {
            session.rollback().await;
            return Ok(Err(Claim { owner, left_ms }));
        }
        let sql = self.sql("UPDATE pleach_meta SET note = ? WHERE name = ?");
        let note = [Arg::Bytes(self.owner.as_bytes()), Arg::Text("epoch")];
        session.fetch(&sql, &note, &mut |_| ControlFlow::Continue(())).await?;
        let epoch = epoch + 1;
        let lease = LEASE.as_millis();
        let take = format!(
            "UPDATE pleach_meta SET value = {epoch} WHERE name = 'epoch'; \
             UPDATE pleach_meta SET value = {now} + {lease} WHERE name = 'until'"
        );
        session.number(&self.sql(&take)).await?;
        session.commit().await?;
        Ok(Ok(epoch))
    }

    fn title(&self, epoch: i64, tenure: Arc<Tenure>) -> Title {
        let now = self.driver.texts().now_ms;
        let lease = LEASE.as_millis();
        let check = "SELECT value FROM pleach_meta WHERE name = 'epoch' FOR UPDATE";
        let extend =
            format!("UPDATE pleach_meta SET value = {now} + {lease} WHERE name = 'until'; COMMIT");
        Title {
            epoch,
            tenure,
            begin: self.sql(&format!("BEGIN; {check}")),
            extend: self.sql(&extend),
        }
    }
}

// === impl Tenure ===

impl Tenure {
    fn new() -> Self {
        Self { begin: Instant::now(), until_ms: AtomicU64::new(0) }
    }

    /// Notes that the lease was extended no earlier than at `started`.
    fn extend(&self, started: Instant) {
        let until = started.saturating_duration_since(self.begin) + LEASE - LEASE_DOUBT;
        self.until_ms.fetch_max(until.as_millis() as u64, Ordering::AcqRel);
    }

    fn check(&self) -> DbResult<()> {
        let until = Duration::from_millis(self.until_ms.load(Ordering::Acquire));
        if self.begin.elapsed() < until {
            return Ok(());
        }
        Err(DbError::Lost("its ownership could not be renewed in time".to_owned()))
    }
}

// === impl Remote ===

impl<D: Driver> Remote<D> {
    /// Runs a job on a free connection, and once more on a new one where that turns out to be dead.
    async fn run<T: Send>(&self, job: &Job<RemoteSession<D>, T>) -> DbResult<T> {
        loop {
            let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let is_young =
                |session: &RemoteSession<D>| session.opened.elapsed() < self.life_time_max;
            let free = free.filter(is_young);
            let is_new = free.is_none();
            let mut session = free.unwrap_or_else(|| RemoteSession::new(self.driver.clone()));
            let started = Instant::now();
            match job(&mut session).await {
                // A connection that was cut while it lay idle says so at once.
                Err(DbError::Lost(_)) if !is_new && started.elapsed() < STATEMENT_TIME_MAX / 2 => {}
                result => {
                    if session.connection.is_some() {
                        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(session);
                    }
                    return result;
                }
            }
        }
    }
}

impl<D: Driver> Database for Remote<D> {
    type Session = RemoteSession<D>;

    fn dialect(&self) -> Dialect {
        self.driver.dialect()
    }

    async fn read<T: Send + 'static>(
        &self,
        _is_short: bool,
        job: Job<RemoteSession<D>, T>,
    ) -> DbResult<T> {
        let busy = || DbError::Failed("all its connections are busy".to_owned());
        let _permit = match timeout(STATEMENT_TIME_MAX, self.permits.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => return Err(busy()),
        };
        self.tenure.check()?;
        let result = self.run(&job).await?;
        // Another node may have taken the store while the answer was on its way.
        self.tenure.check()?;
        Ok(result)
    }

    fn start_writer(&self, session: RemoteSession<D>, task: WriterTask<RemoteSession<D>>) {
        tokio::spawn(task(session));
    }
}

// === impl RemoteSession ===

impl<D: Driver> RemoteSession<D> {
    fn new(driver: Arc<D>) -> Self {
        Self { driver, connection: None, opened: Instant::now(), title: None }
    }

    /// The connection, for one statement: [`RemoteSession::put_back`] takes it again.
    async fn take(&mut self) -> DbResult<D::Connection> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            // A writer that lost its connection lost its transaction too.
            None if self.title.is_some() => Err(DbError::Lost("the connection is gone".to_owned())),
            None => self.connect().await,
        }
    }

    async fn connect(&mut self) -> DbResult<D::Connection> {
        self.opened = Instant::now();
        in_time("accept a connection", self.driver.connect()).await
    }

    /// Keeps the connection where it can be used again.
    fn put_back<T>(&mut self, connection: D::Connection, result: DbResult<T>) -> DbResult<T> {
        if !matches!(result, Err(DbError::Lost(_))) {
            self.connection = Some(connection);
        }
        result
    }

    async fn number(&mut self, sql: &Sql) -> DbResult<Option<i64>> {
        let mut connection = self.take().await?;
        let result = in_time("answer", D::run(&mut connection, sql)).await;
        self.put_back(connection, result)
    }

    async fn begin_as_owner(&mut self) -> DbResult<()> {
        let Some(title) = &self.title else {
            return Err(DbError::Failed("a session that reads was asked to write".to_owned()));
        };
        let (epoch, begin) = (title.epoch, title.begin.clone());
        match self.number(&begin).await? {
            Some(found) if found == epoch => Ok(()),
            found => {
                self.rollback().await;
                let found = found.map_or("nobody".to_owned(), |found| format!("epoch {found}"));
                Err(DbError::Fenced(format!("another node ({found}; this one has {epoch})")))
            }
        }
    }
}

impl<D: Driver> Session for RemoteSession<D> {
    async fn begin(&mut self) -> DbResult<()> {
        self.begin_as_owner().await
    }

    async fn commit(&mut self) -> DbResult<()> {
        self.number(&"COMMIT".into()).await.map(drop)
    }

    async fn rollback(&mut self) {
        if self.connection.is_some()
            && let Err(error) = self.number(&"ROLLBACK".into()).await
        {
            tracing::warn!(%error, "a transaction could not be rolled back");
            self.connection = None;
        }
    }

    async fn fetch(&mut self, sql: &Sql, args: &[Arg<'_>], each: Each<'_>) -> DbResult<()> {
        let mut connection = self.take().await?;
        let result = in_time("answer", D::fetch(&mut connection, sql, args, each)).await;
        self.put_back(connection, result)
    }

    async fn fetch_each(&mut self, sql: &Sql, values: &[Arg<'_>], each: Each<'_>) -> DbResult<()> {
        if values.is_empty() {
            return Ok(());
        }
        let mut connection = self.take().await?;
        let result = in_time("answer", D::fetch_each(&mut connection, sql, values, each)).await;
        self.put_back(connection, result)
    }

    async fn execute_many(&mut self, sql: &Sql, rows: &[Vec<Arg<'_>>]) -> DbResult<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut connection = self.take().await?;
        let result = in_time("answer", D::execute_many(&mut connection, sql, rows)).await;
        self.put_back(connection, result)
    }

    async fn recover(&mut self) -> DbResult<()> {
        self.rollback().await;
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
            // The old connection may hold the lock until the server knows that it is dead. The
            // epoch keeps the store; the lock only tells others early.
            let lock = self.driver.dialect().write(&self.driver.texts().lock);
            self.number(&lock).await?;
        }
        self.keep().await
    }

    fn keep_interval(&self) -> Option<Duration> {
        Some(KEEP_INTERVAL)
    }

    async fn keep(&mut self) -> DbResult<()> {
        let started = Instant::now();
        self.begin_as_owner().await?;
        let Some(title) = &self.title else { return Ok(()) };
        let (extend, tenure) = (title.extend.clone(), title.tenure.clone());
        self.number(&extend).await?;
        tenure.extend(started);
        Ok(())
    }
}

/// What is not done in time leaves its connection in no known state.
async fn in_time<T>(what: &str, work: impl Future<Output = DbResult<T>>) -> DbResult<T> {
    timeout(STATEMENT_TIME_MAX, work).await.unwrap_or_else(|_| {
        let limit = STATEMENT_TIME_MAX.as_secs();
        Err(DbError::Lost(format!("the server did not {what} within {limit} s")))
    })
}

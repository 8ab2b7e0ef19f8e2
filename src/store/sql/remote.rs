//! Databases behind a socket: their connections, how long anything may take, and who owns the store.
//!
//! The writer keeps one connection, reads share a few others; a read never takes a second one. Every
//! statement has a time limit, and a connection that broke or did not answer is thrown away.
//!
//! ```text
//!   lock of the connection   held while the owner's connection lives: who else starts is refused
//!   epoch                    checked in every transaction: an owner that lost the store writes nothing
//!   incarnation              checked with it: another store that answers at the address is left alone
//!   note, until              who has it, and a number that grows whenever it says that it lives
//!   home                     where the owner's connection goes: what reads elsewhere, or was opened
//!                            before the owner's, is thrown away
//! ```

mod opening;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until, timeout};

pub use self::opening::{OpenError, Usage, open, open_known};
use super::session::{
    Arg, Database, DbError, DbResult, Dialect, Each, Job, Session, Sql, WriterTask, went_back,
};
use crate::{
    net::address::{self, Host},
    store::pool::Pool,
};

/// What a statement may take, as long as etcd gives a request.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(7);

/// How long an owner that can't be reached keeps its store.
const LEASE: Duration = Duration::from_secs(10);

/// How often the owner extends it.
const KEEP_INTERVAL: Duration = Duration::from_secs(3);

/// So much earlier an owner takes its lease for over than a waiter does: the clocks of two machines do not run
/// at quite the same speed, and a request takes a while.
const LEASE_DOUBT: Duration = Duration::from_secs(1);

/// Connections that read, where the topology does not say how many.
pub const READERS_MAX: usize = 8;

/// How a database is spoken to.
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// The bytes of the longest key and value that its server takes, as it said to the last connection.
    fn row_bytes_max(&self) -> usize;

    /// One connection.
    type Connection: fmt::Debug + Send + 'static;

    /// The database.
    fn database(&self) -> &address::Database;

    /// How it writes what databases write differently.
    fn dialect(&self) -> Dialect;

    /// A new connection to one of the database's hosts, fit for both roles. The database itself is
    /// made where it is missing.
    fn connect(&self, host: &Host) -> impl Future<Output = DbResult<Self::Connection>> + Send;

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
    /// Yields a number that changes when the tables are made anew, as from a dump, and when the server goes on
    /// from a copy, as far as it knows that itself. An error where it says nothing.
    pub made: &'static str,
    /// Takes the lock of the connection; yields 1 where it was free.
    pub lock: String,
    /// Yields the server's number of the session that it runs in.
    pub session: &'static str,
    /// The database's time, in milliseconds since 1970.
    pub now_ms: &'static str,
    /// Yields 1 for each setting under which a commit is not durable.
    pub hazards: Vec<(&'static str, String)>,
}

/// A database behind a socket, for reads.
#[derive(Debug)]
pub struct Remote<D: Driver> {
    driver: Arc<D>,
    tenure: Arc<Tenure>,
    pool: Arc<Pool>,
    hazards: Vec<&'static str>,
    free: Arc<Free<D>>,
    readers: Readers,
}

/// Connections that nobody needs at present, the one that was used last behind the others.
#[derive(Debug)]
struct Free<D: Driver>(Mutex<Vec<(RemoteSession<D>, Instant)>>);

/// How many connections read, and how long each is used or kept.
#[derive(Clone, Copy, Debug)]
pub struct Readers {
    /// The most at once.
    pub open_max: usize,
    /// The most that are kept while nobody needs them.
    pub idle_max: usize,
    /// How long a connection is used.
    pub life_time_max: Duration,
    /// How long a connection is kept that nobody needs.
    pub idle_time_max: Duration,
}

/// Until when the store is this node's for certain, and where it is.
#[derive(Debug)]
struct Tenure {
    epoch: i64,
    /// Which store it is.
    incarnation: u64,
    /// The connection that the writer is on.
    home: Mutex<Home>,
    begin: Instant,
    /// Milliseconds after `begin`; 0 once it is over.
    until_ms: AtomicU64,
    is_over: AtomicBool,
}

/// One connection, and what it may do.
#[derive(Debug)]
pub struct RemoteSession<D: Driver> {
    driver: Arc<D>,
    /// There where it can be used.
    connection: Option<D::Connection>,
    opened: Instant,
    /// Where it is, if it writes; where the writer was when it was opened, if it reads.
    home: Home,
    role: Role,
}

/// Where a writer is: on its how-manieth connection, to which host by its place in the endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Home {
    connection: u64,
    host: usize,
}

/// What a session may do.
#[derive(Debug)]
enum Role {
    /// Find out whether the store can be had.
    Opens,
    /// Read where the writer is.
    Reads(Arc<Tenure>),
    Writes(Title),
}

/// The writing session's right to the store.
#[derive(Debug)]
struct Title {
    tenure: Arc<Tenure>,
    begin: Sql,
    extend: Sql,
    release: Sql,
}

/// What is wrong where statements of one connection run in several sessions.
pub(super) const POOLED: &str = "a pooler stands between that gives each transaction another session, and the \
    ownership of a store is held by a session: have it pool by sessions (pool_mode = session), or name the \
    server itself";

/// In a condition: which store it is, to be compared with a number.
const IS_IT: &str = "(SELECT value FROM pleach_meta WHERE name = 'incarnation') =";

/// A server that answers for another. Nothing is read of it or written to it, and it is waited for the
/// right one. `found` is 0 for one that holds no store.
fn another_store(expected: u64, found: u64) -> DbError {
    let found = if found == 0 { "no store at all".to_owned() } else { format!("{found:x}") };
    DbError::Lost(format!(
        "what answers at its address is another store: it was {expected:x} and is {found}; make the right \
         server answer there, or start the node with --adopt ROUTE where that is meant"
    ))
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

// === impl Tenure ===

impl Tenure {
    fn new(epoch: i64, incarnation: u64, home: Home) -> Self {
        let (home, until_ms, begin) = (Mutex::new(home), AtomicU64::new(0), Instant::now());
        Self { epoch, incarnation, home, begin, until_ms, is_over: AtomicBool::new(false) }
    }

    fn home(&self) -> Home {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the lease was extended no earlier than at `started`.
    fn extend(&self, started: Instant) {
        let until = started.saturating_duration_since(self.begin) + LEASE - LEASE_DOUBT;
        self.until_ms.fetch_max(until.as_millis() as u64, Ordering::AcqRel);
    }

    /// The store is not this node's any more, for good.
    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    fn check(&self) -> DbResult<()> {
        if self.is_over.load(Ordering::Acquire) {
            return Err(DbError::Lost("it is not this node's any more".to_owned()));
        }
        let until = Duration::from_millis(self.until_ms.load(Ordering::Acquire));
        if self.begin.elapsed() < until {
            return Ok(());
        }
        Err(DbError::Lost("its ownership could not be renewed in time".to_owned()))
    }
}

// === impl Remote ===

impl<D: Driver> Remote<D> {
    /// The database that a session owns.
    fn new(
        writer: &RemoteSession<D>,
        readers: Readers,
        hazards: Vec<&'static str>,
    ) -> DbResult<Self> {
        let free = Arc::new(Free(Mutex::default()));
        tokio::spawn(Free::close_idle(Arc::downgrade(&free), readers.idle_time_max));
        Ok(Self {
            driver: writer.driver.clone(),
            tenure: writer.title()?.tenure.clone(),
            pool: Pool::new(readers.open_max),
            hazards,
            free,
            readers,
        })
    }

    /// Runs a job on a free connection, and once more on a new one where that turns out to be dead.
    async fn run<T: Send>(&self, job: &Job<RemoteSession<D>, T>) -> DbResult<T> {
        loop {
            let free = self.free.lock().pop().map(|(session, _)| session);
            let is_good = |session: &RemoteSession<D>| {
                let is_young = session.opened.elapsed() < self.readers.life_time_max;
                is_young && session.home == self.tenure.home()
            };
            let free = free.filter(is_good);
            let is_new = free.is_none();
            let mut session = free.unwrap_or_else(|| {
                RemoteSession::new(self.driver.clone(), Role::Reads(self.tenure.clone()))
            });
            let started = Instant::now();
            match job(&mut session).await {
                // A connection that was cut while it lay idle says so at once.
                Err(DbError::Lost(_)) if !is_new && started.elapsed() < STATEMENT_TIME_MAX / 2 => {}
                // The writer went on elsewhere, and this may have been read behind it.
                Ok(_) if session.home != self.tenure.home() => {}
                result => {
                    let mut free = self.free.lock();
                    if session.connection.is_some() && free.len() < self.readers.idle_max {
                        free.push((session, Instant::now()));
                    }
                    return result;
                }
            }
        }
    }
}

// === impl Free ===

impl<D: Driver> Free<D> {
    fn lock(&self) -> MutexGuard<'_, Vec<(RemoteSession<D>, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what nobody has needed for so long, as long as the store is there.
    async fn close_idle(free: Weak<Self>, idle_time_max: Duration) {
        loop {
            let oldest = match free.upgrade() {
                Some(free) => free.lock().first().map(|(_, since)| *since),
                None => return,
            };
            sleep_until(oldest.unwrap_or_else(Instant::now) + idle_time_max).await;
            if let Some(free) = free.upgrade() {
                free.lock().retain(|(_, since)| since.elapsed() < idle_time_max);
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
        let _permit = self.pool.acquire(STATEMENT_TIME_MAX).await.ok_or_else(busy)?;
        self.tenure.check()?;
        let result = self.run(&job).await?;
        // Another node may have taken the store while the answer was on its way.
        self.tenure.check()?;
        Ok(result)
    }

    fn pool(&self) -> Arc<Pool> {
        self.pool.clone()
    }

    fn hazards(&self) -> Vec<&'static str> {
        self.hazards.clone()
    }

    /// Whoever writes finds out anew each time.
    fn is_full(&self) -> Arc<AtomicBool> {
        Arc::default()
    }

    fn row_bytes_max(&self) -> usize {
        self.driver.row_bytes_max()
    }

    fn start_writer(&self, session: RemoteSession<D>, task: WriterTask<RemoteSession<D>>) {
        tokio::spawn(task(session));
    }
}

// === impl RemoteSession ===

impl<D: Driver> RemoteSession<D> {
    fn new(driver: Arc<D>, role: Role) -> Self {
        let home = match &role {
            Role::Reads(tenure) => tenure.home(),
            Role::Opens | Role::Writes(_) => Home::default(),
        };
        Self { driver, connection: None, opened: Instant::now(), home, role }
    }

    /// Makes it the writer of the store that it took at `started`.
    fn own(&mut self, epoch: i64, incarnation: u64, started: Instant) {
        let check = format!(
            "SELECT CASE WHEN value = {epoch} AND {IS_IT} {incarnation} \
             THEN (SELECT coalesce(max(seq), 0) FROM pleach_log) \
             ELSE -1 - value END FROM pleach_meta WHERE name = 'epoch' FOR UPDATE"
        );
        let beat = self.beat();
        let extend = format!("UPDATE pleach_meta SET value = {beat} WHERE name = 'until'; COMMIT");
        let tenure = Arc::new(Tenure::new(epoch, incarnation, self.home));
        tenure.extend(started);
        let dialect = self.driver.dialect();
        self.role = Role::Writes(Title {
            tenure,
            begin: dialect.write(&format!("BEGIN; {check}")),
            extend: dialect.write(&extend),
            release: dialect.write("UPDATE pleach_meta SET value = 0 WHERE name = 'until'; COMMIT"),
        });
    }

    /// The next value of `until`: the database's time, for people and older versions, and greater than the
    /// last one whatever that clock does. Who waits for the store looks only whether it grows.
    fn beat(&self) -> String {
        let (now, lease) = (self.driver.texts().now_ms, LEASE.as_millis());
        format!("GREATEST(value + 1, {now} + {lease})")
    }

    fn title(&self) -> DbResult<&Title> {
        match &self.role {
            Role::Writes(title) => Ok(title),
            Role::Opens | Role::Reads(_) => {
                Err(DbError::Failed("a session that reads was asked to write".to_owned()))
            }
        }
    }

    /// The connection, for one statement: [`RemoteSession::put_back`] takes it again.
    async fn take(&mut self) -> DbResult<D::Connection> {
        match (self.connection.take(), &self.role) {
            (Some(connection), _) => Ok(connection),
            // A writer that lost its connection lost its transaction too.
            (None, Role::Writes(_)) => Err(DbError::Lost("the connection is gone".to_owned())),
            (None, Role::Opens) => self.connect().await,
            (None, Role::Reads(tenure)) => self.follow(tenure.clone()).await,
        }
    }

    /// A connection to the first host that answers.
    async fn connect(&mut self) -> DbResult<D::Connection> {
        self.opened = Instant::now();
        let hosts = &self.driver.database().hosts;
        // A host that is silent leaves time for those behind it.
        let share = STATEMENT_TIME_MAX / u32::try_from(hosts.len()).unwrap_or(u32::MAX).max(1);
        let mut failed = None;
        for (at, host) in hosts.iter().enumerate() {
            let connecting = self.driver.connect(host);
            match within(share, "accept a connection", Box::pin(connecting)).await {
                Ok(connection) => {
                    self.home = Home { connection: self.home.connection + 1, host: at };
                    return Ok(connection);
                }
                // What may pass is worth waiting for, whatever is wrong with the others.
                Err(error) if !matches!(failed, Some(DbError::Lost(_))) => failed = Some(error),
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or_else(|| DbError::Failed("the endpoint names no host".to_owned())))
    }

    /// A connection to where the writer is. Another server may answer at its address: one that was
    /// put in its place, or one of several behind it.
    async fn follow(&mut self, tenure: Arc<Tenure>) -> DbResult<D::Connection> {
        self.opened = Instant::now();
        self.home = tenure.home();
        let hosts = &self.driver.database().hosts;
        let host = hosts.get(self.home.host).ok_or_else(|| DbError::Lost("it moved".to_owned()))?;
        let connecting = Box::pin(self.driver.connect(host));
        let mut connection = in_time("accept a connection", connecting).await?;
        let Tenure { incarnation, .. } = *tenure;
        let epoch = "SELECT value FROM pleach_meta WHERE name = 'epoch' AND";
        let epoch = self.driver.dialect().write(&format!("{epoch} {IS_IT} {incarnation}"));
        let found = in_time("answer", D::run(&mut connection, &epoch)).await;
        let found = found.map_err(|error| DbError::Lost(error.to_string()))?;
        if found == Some(tenure.epoch) {
            return Ok(connection);
        }
        Err(DbError::Lost(match found {
            Some(found) => {
                format!("another node took it (epoch {found}; this one has {})", tenure.epoch)
            }
            None => format!("what answers at its address is not the store {incarnation:x}"),
        }))
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

    /// Begins a transaction of the owner's. Returns the place of the newest row in the log.
    async fn begin_as_owner(&mut self) -> DbResult<i64> {
        let title = self.title()?;
        let (tenure, begin) = (title.tenure.clone(), title.begin.clone());
        match self.number(&begin).await? {
            Some(last_seq) if last_seq >= 0 => Ok(last_seq),
            found => {
                let incarnation = "SELECT value FROM pleach_meta WHERE name = 'incarnation'";
                let incarnation = self.driver.dialect().write(incarnation);
                let there = self.number(&incarnation).await;
                self.rollback().await;
                let there = there.ok().flatten().filter(|_| found.is_some()).unwrap_or(0);
                if there.cast_unsigned() != tenure.incarnation {
                    // The next one may go to the right server.
                    self.connection = None;
                    return Err(another_store(tenure.incarnation, there.cast_unsigned()));
                }
                let (epoch, found) = (tenure.epoch, -1 - found.unwrap_or(-1));
                // The next one may go to the right server, and no lock is held for who has lost the store.
                self.connection = None;
                if found < epoch {
                    return Err(went_back(found, epoch));
                }
                // From now on it reads nothing either: whoever has the store may have written it.
                tenure.end();
                Err(DbError::Fenced(format!("another node (epoch {found}; this one has {epoch})")))
            }
        }
    }
}

impl<D: Driver> Session for RemoteSession<D> {
    async fn begin(&mut self) -> DbResult<i64> {
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
        let kept = self.keep().await;
        if kept.is_err() {
            // It may be the wrong server, which holds no tables at all.
            self.connection = None;
        }
        kept
    }

    /// Nothing lies beside a database.
    fn witness(&mut self, _newest: i64) {}

    fn make_room(&mut self) -> bool {
        false
    }

    /// A database does that by itself.
    async fn defragment(&mut self) -> DbResult<bool> {
        Ok(false)
    }

    async fn release(&mut self) {
        let Ok(title) = self.title() else { return };
        let (tenure, release) = (title.tenure.clone(), title.release.clone());
        let begun = self.begin_as_owner().await;
        // Before it is given up: from then on others may write it.
        tenure.end();
        let released = match begun {
            Ok(_) => self.number(&release).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = released {
            tracing::info!(%error, "the store was not given up; whoever wants it waits until it is free");
        }
    }

    fn abandon(&mut self) {
        self.connection = None;
    }

    fn keep_interval(&self) -> Option<Duration> {
        Some(KEEP_INTERVAL)
    }

    async fn keep(&mut self) -> DbResult<()> {
        let started = Instant::now();
        self.begin_as_owner().await?;
        let title = self.title()?;
        let (extend, tenure) = (title.extend.clone(), title.tenure.clone());
        self.number(&extend).await?;
        *tenure.home.lock().unwrap_or_else(PoisonError::into_inner) = self.home;
        tenure.extend(started);
        Ok(())
    }
}

/// What is not done in time leaves its connection in no known state.
async fn in_time<T>(what: &str, work: impl Future<Output = DbResult<T>>) -> DbResult<T> {
    within(STATEMENT_TIME_MAX, what, work).await
}

async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = DbResult<T>>,
) -> DbResult<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let limit = limit.as_secs_f32();
        Err(DbError::Lost(format!("the server did not {what} within {limit:.1} s")))
    })
}

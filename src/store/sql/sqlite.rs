//! SQLite: an embedded store in one file.
//!
//! WAL with `synchronous=FULL`: a commit is one fsync of the log, and readers never block the writer.
//! The writer runs on a thread of its own, checkpoints on another, and reads on connections that only
//! read. Ownership is a
//! lock on a file beside the database, which the kernel lets go when its holder dies, and an epoch in
//! the database that each commit checks.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, ToSql, types::ToSqlOutput};

use super::{
    Indexing, Witnessed,
    checkpoint::{Checkpoints, LOG_BYTES_KEPT, checkpoint, spare, truncate},
    index::{SCHEMA_INDEXED, SCHEMA_VERSION},
    reserve::Reserve,
    session::{
        Arg, Columns, Database, DbError, DbResult, Dialect, Each, Job, Session, Sql, WriterTask,
        went_back,
    },
};
use crate::{
    clock::{Entropy, SharedClock},
    model::Revision,
    store::{Expected, RecordStore, pool::Pool},
};

/// Connections that read. More than the cores that wait on disks help nobody.
const READERS_MAX: usize = 4;

/// Compiled statements that a connection keeps.
const STATEMENTS_MAX: usize = 64;

pub(super) const SCHEMA: &str = "
    CREATE TABLE pleach_meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE pleach_record (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE pleach_key (
        name BLOB PRIMARY KEY, seq INTEGER NOT NULL, create_revision INTEGER NOT NULL,
        mod_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX pleach_key_lease ON pleach_key (lease) WHERE lease <> 0;
    CREATE TABLE pleach_log (
        seq INTEGER PRIMARY KEY, revision INTEGER NOT NULL, name BLOB NOT NULL,
        prev_seq INTEGER NOT NULL, create_revision INTEGER NOT NULL, version INTEGER NOT NULL,
        lease INTEGER NOT NULL, value BLOB NOT NULL
    );
    CREATE INDEX pleach_log_revision ON pleach_log (revision);
    INSERT INTO pleach_meta (name, value) VALUES ('schema', 1), ('epoch', 0);
";

pub(super) fn dialect() -> Dialect {
    Dialect {
        system: "sqlite",
        prefix: "pleach_".to_owned(),
        has_numbers: false,
        // A call costs nothing here, so a statement takes one row at a time.
        rows: |columns| format!("VALUES ({})", vec!["?"; columns].join(", ")),
        one_of: "= ?",
        on_key_conflict: "ON CONFLICT (name) DO UPDATE SET seq = excluded.seq, \
            create_revision = excluded.create_revision, mod_revision = excluded.mod_revision, \
            version = excluded.version, lease = excluded.lease",
        on_name_conflict: "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        on_term_conflict: "ON CONFLICT DO NOTHING",
        make_terms: "CREATE TABLE IF NOT EXISTS pleach_term (attribute INTEGER NOT NULL, \
            hash INTEGER NOT NULL, name BLOB NOT NULL, PRIMARY KEY (attribute, hash, name)) WITHOUT ROWID",
        size: "SELECT p.page_count * s.page_size, (p.page_count - f.freelist_count) * s.page_size \
            FROM pragma_page_count p, pragma_page_size s, pragma_freelist_count f",
        key_bytes_max: usize::MAX,
        keeps_reserve: true,
        rows_come_all: false,
    }
}

/// A file that can't be a store, or can't be one now.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{path} is in use by {owner}; stop that process, or give this one another file \
         (--data-dir or --endpoint)"
    )]
    InUse {
        /// The file.
        path: String,
        /// What its owner wrote about itself.
        owner: String,
    },
    /// It belongs to another program.
    #[error("{path} is not a Pleach store: {found}; point this store at another file")]
    Foreign {
        /// The file.
        path: String,
        /// What is in it.
        found: String,
    },
    /// A newer version wrote it.
    #[error(
        "{path} has schema version {found}, but this version of Pleach knows none above \
         {SCHEMA_INDEXED}; run a newer one"
    )]
    TooNew {
        /// The file.
        path: String,
        /// Its version.
        found: i64,
    },
    /// It is another store than the one that was here.
    #[error(
        "{path} is another store than before: it was {expected:x} and is {found:x}; put the file of before \
         back, or say with --adopt that this one is meant"
    )]
    Another {
        /// The file.
        path: String,
        /// The incarnation that was here.
        expected: u64,
        /// The incarnation that is here.
        found: u64,
    },
    /// Anything else: no rights, no space, a damaged file.
    #[error("{path} can't be opened: {reason}")]
    Failed {
        /// The file.
        path: String,
        /// Why, and what to do where that is known.
        reason: String,
    },
}

/// An embedded database in one file.
#[derive(Debug)]
pub struct Sqlite {
    name: String,
    readers: Arc<Readers>,
    is_full: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Readers {
    path: PathBuf,
    free: Mutex<Vec<SqliteSession>>,
    pool: Arc<Pool>,
}

/// A connection.
#[derive(Debug)]
pub struct SqliteSession {
    connection: Connection,
    /// The epoch that the writer owns; the connections that read own none.
    ownership: Option<Ownership>,
}

#[derive(Debug)]
struct Ownership {
    epoch: i64,
    checkpoints: Checkpoints,
    reserve: Arc<Reserve>,
    /// Locked for as long as it is open.
    lock: Lock,
}

/// The file beside the database: who has it, and how far the store has come. A database that was put
/// there from a copy has come less far than this says.
#[derive(Debug)]
struct Lock {
    file: File,
    /// Where the witness stands, behind the owner's line.
    offset: u64,
    incarnation: u64,
}

/// What stands beside the database about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Witness {
    incarnation: u64,
    newest: Revision,
}

/// A witness always takes so much room, so that it can be written over.
const WITNESS_BYTES: usize = 53;

// === impl Witness ===

impl Witness {
    fn text(self) -> String {
        format!("store {:016x} revision {:020}\n", self.incarnation, self.newest)
    }

    /// The witness in the text of a lock's file, where there is one.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().nth(1)?.strip_prefix("store ")?;
        let (incarnation, newest) = line.split_once(" revision ")?;
        Some(Self {
            incarnation: u64::from_str_radix(incarnation, 16).ok()?,
            newest: newest.parse().ok()?,
        })
    }
}

/// Opens the store in `path`, making it where there is none. `owner` is what a second process that
/// tries will be told.
///
/// # Errors
/// See [`OpenError`]; the file is left as it was.
pub async fn open(
    name: &str,
    path: &Path,
    owner: &str,
    clock: SharedClock,
) -> Result<Arc<dyn RecordStore>, OpenError> {
    open_known(name, path, owner, clock, Expected::default(), Indexing::default()).await
}

/// The same, where the store must be the one that is expected.
///
/// # Errors
/// See [`OpenError`]; the file is left as it was.
pub async fn open_known(
    name: &str,
    path: &Path,
    owner: &str,
    clock: SharedClock,
    expected: Expected,
    indexing: Indexing,
) -> Result<Arc<dyn RecordStore>, OpenError> {
    let is_full = Arc::new(AtomicBool::new(false));
    let reserve = Arc::new(Reserve::new(path, is_full.clone()));
    let (shown, ran_full) = (path.display().to_string(), AtomicBool::new(false));
    let opening = Opening { name, path, shown, expected, reserve, ran_full };
    opening.check_file(Witness::default())?;
    let (file, witness) = opening.lock()?;
    opening.check_file(witness)?;
    let (writer, witnessed) = opening.open(file, witness, owner)?;
    let readers = Readers {
        path: path.to_owned(),
        free: Mutex::new(Vec::new()),
        pool: Pool::new(READERS_MAX),
    };
    let database = Sqlite { name: name.to_owned(), readers: Arc::new(readers), is_full };
    let opened = super::open(name, database, writer, clock, witnessed, indexing).await;
    opened.map_err(|error| opening.failed(error))
}

struct Opening<'a> {
    name: &'a str,
    path: &'a Path,
    shown: String,
    expected: Expected,
    reserve: Arc<Reserve>,
    /// Whether the disk was too full for a start.
    ran_full: AtomicBool,
}

// === impl OpenError ===

impl OpenError {
    /// Whether it may be open later with no change to the node.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::Failed { .. } => true,
            Self::Foreign { .. } | Self::TooNew { .. } | Self::Another { .. } => false,
        }
    }
}

// === impl Opening ===

impl Opening<'_> {
    fn failed(&self, reason: impl ToString) -> OpenError {
        OpenError::Failed { path: self.shown.clone(), reason: reason.to_string() }
    }

    /// Refuses a file that is not there and should be, before anything is made in its place.
    fn check_file(&self, witness: Witness) -> Result<(), OpenError> {
        match self.path.try_exists() {
            Ok(false) => self.check_incarnation(0, witness),
            _ => Ok(()),
        }
    }

    /// Takes the lock that says who owns the file; and what stands there about the store.
    fn lock(&self) -> Result<(File, Witness), OpenError> {
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|error| self.failed(error))?;
        }
        let mut lock_path = self.path.as_os_str().to_owned();
        lock_path.push(".lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut lock = options.open(&lock_path).map_err(|error| self.failed(error))?;
        let locked = lock.try_lock();
        let mut text = String::new();
        let read = lock.seek(SeekFrom::Start(0)).and_then(|_| lock.read_to_string(&mut text));
        match locked {
            // What can't be read says nothing.
            Ok(()) => Ok((lock, Witness::parse(&text).unwrap_or_default())),
            Err(TryLockError::WouldBlock) => {
                let owner = text.lines().next().filter(|owner| read.is_ok() && !owner.is_empty());
                let owner = owner.unwrap_or("another process").to_owned();
                Err(OpenError::InUse { path: self.shown.clone(), owner })
            }
            Err(TryLockError::Error(error)) => Err(self.failed(error)),
        }
    }

    /// Opens the database, and says who has it. Returns how far it had come by what stood beside it.
    fn open(
        &self,
        file: File,
        witness: Witness,
        owner: &str,
    ) -> Result<(SqliteSession, Witnessed), OpenError> {
        let connection = self.begin(witness).or_else(|error| match error {
            // On a full disk the last of what is held is for this.
            error if self.ran_full.load(Ordering::Relaxed) && self.reserve.release_last() => {
                tracing::warn!(path = self.shown, %error, "opened with the room that was held for it");
                self.begin(witness)
            }
            error => Err(error),
        });
        let (connection, epoch, incarnation) = connection?;
        if !self.reserve.is_full() {
            self.reserve.begin(spare(&connection));
        }
        let checkpoints = Checkpoints::start(self.name, self.path, self.reserve.clone())
            .map_err(|error| self.failed(describe(&error)))?;
        let known = Some(witness).filter(|witness| witness.incarnation != 0);
        let witnessed = Witnessed {
            newest: known.map_or(0, |witness| witness.newest),
            is_another: known.is_some_and(|witness| witness.incarnation != incarnation),
            made_anew: None,
        };
        let lock = Lock::new(file, owner, Witness { incarnation, ..witness });
        let lock = lock.map_err(|error| self.failed(error))?;
        let reserve = self.reserve.clone();
        let ownership = Some(Ownership { epoch, checkpoints, reserve, lock });
        Ok((SqliteSession { connection, ownership }, witnessed))
    }

    /// A connection that has begun an epoch of its own; with that, and the store's incarnation.
    fn begin(&self, witness: Witness) -> Result<(Connection, i64, u64), OpenError> {
        let connection = Connection::open(self.path).map_err(|error| self.failed(error))?;
        self.check(&connection, witness)?;
        let prepared = self.prepare(&connection).inspect_err(|error| {
            let is_full = matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure)
            );
            self.ran_full.store(is_full, Ordering::Relaxed);
        });
        let (epoch, incarnation) = prepared.map_err(|error| self.failed(describe(&error)))?;
        Ok((connection, epoch, incarnation))
    }

    /// Refuses what is not ours before anything is written.
    fn check(&self, connection: &Connection, witness: Witness) -> Result<(), OpenError> {
        let tables = || -> rusqlite::Result<Vec<String>> {
            let mut query =
                connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
            query.query_map([], |row| row.get(0))?.collect()
        };
        let tables = match tables() {
            Ok(tables) => tables,
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                let found = "it is no SQLite database".to_owned();
                return Err(OpenError::Foreign { path: self.shown.clone(), found });
            }
            Err(error) => return Err(self.failed(describe(&error))),
        };
        if tables.is_empty() {
            return self.check_incarnation(0, witness);
        }
        if !tables.iter().any(|table| table == "pleach_meta") {
            let found = match tables.iter().any(|table| table == "kine") {
                true => "kine or HariKube filled it".to_owned(),
                false => format!("it holds the tables {}", tables.join(", ")),
            };
            return Err(OpenError::Foreign { path: self.shown.clone(), found });
        }
        let version = "SELECT value FROM pleach_meta WHERE name = 'schema'";
        match connection.query_row(version, [], |row| row.get(0)) {
            Ok(found) if found > SCHEMA_INDEXED => {
                return Err(OpenError::TooNew { path: self.shown.clone(), found });
            }
            Ok(_) => {}
            Err(error) => return Err(self.failed(describe(&error))),
        }
        let incarnation = "SELECT value FROM pleach_meta WHERE name = 'incarnation'";
        match connection.query_row(incarnation, [], |row| row.get::<_, i64>(0)) {
            Ok(found) => self.check_incarnation(found.cast_unsigned(), witness),
            // One of a version that had none is taken for the one that is expected.
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(()),
            Err(error) => Err(self.failed(describe(&error))),
        }
    }

    /// Refuses another store than the one that is expected, or was here before. 0 is one that is still to
    /// be made.
    fn check_incarnation(&self, found: u64, witness: Witness) -> Result<(), OpenError> {
        let before = Some(witness.incarnation).filter(|before| *before != 0);
        match self.expected.incarnation.or(before) {
            Some(expected) if expected != found && !self.expected.adopts => {
                Err(OpenError::Another { path: self.shown.clone(), expected, found })
            }
            _ => Ok(()),
        }
    }

    /// Makes the tables where there are none, brings them to this version, and begins the next epoch.
    /// Returns that, and the store's incarnation.
    fn prepare(&self, connection: &Connection) -> rusqlite::Result<(i64, u64)> {
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // See `checkpoint`.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        // What a reader of long ago has made of the log is given back once the log begins anew.
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT.cast_signed())?;
        connection.pragma_update(None, "cache_size", -16_384)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let exists = "SELECT count(*) FROM sqlite_schema WHERE name = 'pleach_meta'";
        if connection.query_row(exists, [], |row| row.get::<_, i64>(0))? == 0 {
            connection.execute_batch(SCHEMA)?;
            tracing::info!(store = self.name, path = self.shown, "a new, empty store is made");
        }
        let version = "SELECT value FROM pleach_meta WHERE name = 'schema'";
        if connection.query_row(version, [], |row| row.get::<_, i64>(0))? < SCHEMA_VERSION {
            let incarnation = self.expected.incarnation.filter(|_| !self.expected.adopts);
            let incarnation = incarnation.unwrap_or_else(|| Entropy::system().id());
            let made = "INSERT INTO pleach_meta (name, value) VALUES ('incarnation', ?)";
            connection.execute(made, [incarnation.cast_signed()])?;
            let version = "UPDATE pleach_meta SET value = ? WHERE name = 'schema'";
            connection.execute(version, [SCHEMA_VERSION])?;
        }
        let incarnation = "SELECT value FROM pleach_meta WHERE name = 'incarnation'";
        let incarnation: i64 = connection.query_row(incarnation, [], |row| row.get(0))?;
        let next = "UPDATE pleach_meta SET value = value + 1 WHERE name = 'epoch' RETURNING value";
        let epoch = connection.query_row(next, [], |row| row.get(0))?;
        connection.execute_batch("COMMIT")?;
        Ok((epoch, incarnation.cast_unsigned()))
    }
}

// === impl Lock ===

impl Lock {
    /// Writes who has the store, and behind it how far that had come: it is not forgotten before the store
    /// is further.
    fn new(file: File, owner: &str, witness: Witness) -> std::io::Result<Self> {
        let owner = format!("{}\n", owner.replace('\n', " "));
        let text = owner.clone() + &witness.text();
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)?;
        Ok(Self { file, offset: owner.len() as u64, incarnation: witness.incarnation })
    }

    /// Notes how far the store has come. Not synced: it outlives the process, and a crash of the machine
    /// leaves it behind the store, where it says nothing.
    fn note(&self, newest: Revision) -> std::io::Result<()> {
        let witness = Witness { incarnation: self.incarnation, newest }.text();
        debug_assert_eq!(witness.len(), WITNESS_BYTES);
        self.file.write_all_at(witness.as_bytes(), self.offset)
    }
}

// === impl Sqlite ===

impl Database for Sqlite {
    type Session = SqliteSession;

    fn dialect(&self) -> Dialect {
        dialect()
    }

    async fn read<T: Send + 'static>(
        &self,
        is_short: bool,
        job: Job<SqliteSession, T>,
    ) -> DbResult<T> {
        let busy = || DbError::Failed("all its connections are busy".to_owned());
        let permit = self.readers.pool.acquire(Duration::MAX).await.ok_or_else(busy)?;
        if is_short {
            return self.readers.run(job);
        }
        let readers = self.readers.clone();
        let blocking = tokio::task::spawn_blocking(move || {
            let result = readers.run(job);
            drop(permit);
            result
        });
        blocking.await.map_err(|error| DbError::Failed(format!("a read was given up: {error}")))?
    }

    fn pool(&self) -> Arc<Pool> {
        self.readers.pool.clone()
    }

    /// Its settings are this node's own.
    fn hazards(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn is_full(&self) -> Arc<AtomicBool> {
        self.is_full.clone()
    }

    fn row_bytes_max(&self) -> usize {
        usize::MAX
    }

    fn start_writer(&self, session: SqliteSession, task: WriterTask<SqliteSession>) {
        let thread = thread::Builder::new().name(format!("write-{}", self.name));
        let spawned = thread.spawn(move || futures::executor::block_on(task(session)));
        if let Err(error) = spawned {
            // The queue's receiver is gone with the task: every write answers that the writer stopped.
            tracing::error!(store = self.name, %error, "the writer's thread did not start");
        }
    }
}

// === impl Readers ===

impl Readers {
    /// Runs a job on a free connection, opening one where none is.
    fn run<T>(&self, job: Job<SqliteSession, T>) -> DbResult<T> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut session = match free {
            Some(session) => session,
            None => self.connect().map_err(|error| failure(&error))?,
        };
        let result = job(&mut session)
            .now_or_never()
            .expect("a job waits for nothing but its session, and SQLite's never waits");
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        result
    }

    fn connect(&self) -> rusqlite::Result<SqliteSession> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "mmap_size", 256 << 20)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Ok(SqliteSession::reading(connection))
    }
}

// === impl SqliteSession ===

impl SqliteSession {
    /// A session that owns nothing.
    pub(super) fn reading(connection: Connection) -> Self {
        Self { connection, ownership: None }
    }

    fn begin_now(&mut self) -> DbResult<i64> {
        if self.ownership.as_ref().is_some_and(|ownership| ownership.checkpoints.take_rest()) {
            checkpoint(&self.connection).map_err(|error| failure(&error))?;
        }
        self.batch("BEGIN IMMEDIATE")?;
        let Some(ownership) = &self.ownership else { return Ok(0) };
        let sql = "SELECT value, (SELECT coalesce(max(seq), 0) FROM pleach_log) \
            FROM pleach_meta WHERE name = 'epoch'";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let query = self.connection.prepare_cached(sql).and_then(|mut sql| sql.query_row([], read));
        match query.map_err(|error| failure(&error))? {
            (epoch, last_seq) if epoch == ownership.epoch => Ok(last_seq),
            (epoch, _) if epoch < ownership.epoch => Err(went_back(epoch, ownership.epoch)),
            (epoch, _) => Err(DbError::Fenced(format!("the owner of epoch {epoch}"))),
        }
    }

    fn batch(&mut self, sql: &str) -> DbResult<()> {
        let mut statement = self.connection.prepare_cached(sql).map_err(|error| failure(&error))?;
        statement.execute([]).map(drop).map_err(|error| failure(&error))
    }

    fn fetch_now(&mut self, sql: &Sql, args: &[Arg<'_>], each: Each<'_>) -> DbResult<()> {
        let mut fetch = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(rusqlite::params_from_iter(args))?;
            while let Some(row) = rows.next()? {
                if each(&SqliteRow(row)).is_break() {
                    break;
                }
            }
            Ok(())
        };
        fetch().map_err(|error| failure(&error))
    }

    fn execute_now(&mut self, sql: &Sql, rows: &[Vec<Arg<'_>>]) -> DbResult<()> {
        let execute = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(sql)?;
            for row in rows {
                statement.execute(rusqlite::params_from_iter(row))?;
            }
            Ok(())
        };
        execute().map_err(|error| failure(&error))?;
        if let Some(ownership) = &mut self.ownership {
            let bytes = rows.iter().flatten().map(|arg| match arg {
                Arg::Bytes(bytes) => bytes.len(),
                Arg::Int(_) | Arg::Text(_) => 0,
            });
            ownership.checkpoints.wrote(rows.len(), bytes.sum());
        }
        Ok(())
    }
}

impl Session for SqliteSession {
    async fn begin(&mut self) -> DbResult<i64> {
        self.begin_now()
    }

    async fn commit(&mut self) -> DbResult<()> {
        self.batch("COMMIT")
    }

    async fn rollback(&mut self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.batch("ROLLBACK")
        {
            tracing::warn!(%error, "a transaction could not be rolled back");
        }
    }

    async fn fetch(&mut self, sql: &Sql, args: &[Arg<'_>], each: Each<'_>) -> DbResult<()> {
        self.fetch_now(sql, args, each)
    }

    async fn fetch_each(&mut self, sql: &Sql, values: &[Arg<'_>], each: Each<'_>) -> DbResult<()> {
        values.iter().try_for_each(|value| self.fetch_now(sql, &[*value], each))
    }

    async fn execute_many(&mut self, sql: &Sql, rows: &[Vec<Arg<'_>>]) -> DbResult<()> {
        self.execute_now(sql, rows)
    }

    /// The file's lock is held as long as the session lives, so there is nothing to make sure of.
    async fn recover(&mut self) -> DbResult<()> {
        self.rollback().await;
        Ok(())
    }

    fn witness(&mut self, newest: i64) {
        if let Some(ownership) = &self.ownership
            && let Err(error) = ownership.lock.note(newest)
        {
            tracing::debug!(%error, "how far the store is was not noted beside it");
        }
    }

    fn make_room(&mut self) -> bool {
        self.ownership.as_ref().is_some_and(|Ownership { reserve, checkpoints, .. }| {
            let had_room = reserve.release();
            checkpoints.nudge();
            had_room
        })
    }

    async fn defragment(&mut self) -> DbResult<bool> {
        let copied = self.batch("VACUUM");
        // The whole store went through the log, or as much of it as there was room for.
        let cut = truncate(&self.connection).map_err(|error| failure(&error));
        copied.and(cut)?;
        Ok(true)
    }

    /// The lock goes with the session.
    async fn release(&mut self) {}

    fn abandon(&mut self) {
        self.ownership = None;
    }

    fn keep_interval(&self) -> Option<Duration> {
        None
    }

    async fn keep(&mut self) -> DbResult<()> {
        Ok(())
    }
}

struct SqliteRow<'a, 'b>(&'a Row<'b>);

impl Columns for SqliteRow<'_, '_> {
    fn int(&self, column: usize) -> i64 {
        self.0.get_ref(column).ok().and_then(|value| value.as_i64().ok()).unwrap_or(0)
    }

    fn bytes(&self, column: usize) -> Bytes {
        let value = self.0.get_ref(column).ok();
        let bytes = value.as_ref().and_then(|value| value.as_bytes().ok()).unwrap_or_default();
        Bytes::copy_from_slice(bytes)
    }
}

impl ToSql for Arg<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        use rusqlite::types::ValueRef;
        Ok(ToSqlOutput::Borrowed(match *self {
            Arg::Int(number) => ValueRef::Integer(number),
            Arg::Bytes(bytes) => ValueRef::Blob(bytes),
            Arg::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

fn failure(error: &rusqlite::Error) -> DbError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => DbError::Full("the disk is full".to_owned()),
        _ => DbError::Failed(describe(error)),
    }
}

/// What SQLite says, with the remedy where there is one.
fn describe(error: &rusqlite::Error) -> String {
    let remedy = match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "; this user needs the right to write the file and its folder"
        }
        Some(ErrorCode::DatabaseCorrupt) => "; restore it from a backup",
        Some(ErrorCode::DiskFull) => "; make room on its disk",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "; another program has it open"
        }
        _ => "",
    };
    format!("{error}{remedy}")
}

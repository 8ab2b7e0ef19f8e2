//! The writer on a server that does what a script says: connections that break before and after a commit,
//! full disks, errors, servers that stay away, other owners. One seed is one run.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, future::join_all};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{
    Indexing, Witnessed,
    session::{
        Arg, Database, DbError, DbResult, Dialect, Each, Job, Session, Sql, WriterTask, rows,
    },
    sqlite::{self, SqliteSession},
};
use crate::{
    clock::{Clock, Entropy, Lane, REVISION_MAX, SharedClock},
    model::{
        Revision, StoreError,
        txn::{Op, PutOp, Txn},
    },
    store::{RecordStore, pool::Pool},
};

const SEEDS: u64 = 1_000;
const CLIENTS: u64 = 3;
const PUTS: u64 = 12;

/// A value that the server does not take.
const POISON: &[u8] = b"poison";

/// What is wrong with the server, or with how its answers are taken, to see that it would be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    /// It says that it committed, and did not.
    LosesCommits,
    /// It lets an owner of before write.
    IgnoresEpoch,
    /// Whoever hears that an outcome is not known takes it for a failure.
    UnknownIsFailure,
    /// Whoever hears that an outcome is not known takes it for a success.
    UnknownIsSuccess,
}

/// A server, with its database in a file.
#[derive(Clone, Debug)]
struct Server {
    path: PathBuf,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    entropy: Entropy,
    planted: Option<Planted>,
    is_on: bool,
    /// How many attempts to connect fail before one does not.
    away: u64,
    /// The newest row when another owner took the store.
    taken_at: Option<i64>,
}

/// A connection, as the writer or a reader has it.
struct Scripted {
    server: Server,
    inner: SqliteSession,
    is_connected: bool,
}

/// One put, and what was said of it.
#[derive(Clone, Debug)]
struct Put {
    value: Bytes,
    said: Result<Revision, StoreError>,
}

// === impl Script ===

impl Script {
    fn draws(&mut self, one_in: u64) -> bool {
        self.is_on && self.entropy.bits().is_multiple_of(one_in)
    }
}

// === impl Server ===

impl Server {
    fn new(folder: &TempDir, seed: u64, planted: Option<Planted>) -> Self {
        let path = folder.path().join(format!("{seed}.db"));
        let (entropy, is_on) = (Entropy::seeded(seed), false);
        let script = Script { entropy, planted, is_on, away: 0, taken_at: None };
        let server = Self { path, script: Arc::new(Mutex::new(script)) };
        let connection = server.connection();
        connection.execute_batch("PRAGMA journal_mode = WAL").expect("a file can have a log");
        connection.execute_batch(sqlite::SCHEMA).expect("it is empty");
        let owned = "UPDATE pleach_meta SET value = 1 WHERE name = 'epoch'; \
                     INSERT INTO pleach_meta VALUES ('incarnation', 7)";
        connection.execute_batch(owned).expect("the table is there");
        server
    }

    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(&self.path).expect("the folder is there");
        // What is tried is the writer, not the disk.
        connection.pragma_update(None, "synchronous", "OFF").expect("it is a setting");
        connection
    }

    fn session(&self) -> Scripted {
        let inner = SqliteSession::reading(self.connection());
        Scripted { server: self.clone(), inner, is_connected: true }
    }

    /// The rows of the log: revision and value, in order.
    fn log(&self) -> Vec<(Revision, Bytes)> {
        let connection = self.connection();
        let mut all = connection
            .prepare("SELECT revision, value FROM pleach_log ORDER BY seq")
            .expect("the table is there");
        let row = |row: &rusqlite::Row<'_>| {
            Ok((row.get::<_, i64>(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?)))
        };
        let all = all.query_map([], row).expect("it can be read");
        all.collect::<rusqlite::Result<_>>().expect("it can be read")
    }
}

// === impl Scripted ===

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").field("is_connected", &self.is_connected).finish_non_exhaustive()
    }
}

impl Scripted {
    async fn lose<T>(&mut self, reason: &str) -> DbResult<T> {
        self.inner.rollback().await;
        self.is_connected = false;
        let mut script = self.server.lock();
        script.away = script.entropy.bits() % 5;
        Err(DbError::Lost(reason.to_owned()))
    }

    /// What may go wrong anywhere.
    async fn step(&mut self) -> DbResult<()> {
        if !self.is_connected {
            return Err(DbError::Lost("the connection is gone".to_owned()));
        }
        let is_lost = self.server.lock().draws(60);
        if is_lost { self.lose("the connection broke").await } else { Ok(()) }
    }

    async fn begin_owned(&mut self) -> DbResult<i64> {
        self.step().await?;
        let is_taken = {
            let mut script = self.server.lock();
            script.taken_at.is_none() && script.draws(150)
        };
        if is_taken {
            let connection = self.server.connection();
            let take = "UPDATE pleach_meta SET value = value + 1 WHERE name = 'epoch'";
            connection.execute_batch(take).expect("the table is there");
            let newest = "SELECT coalesce(max(seq), 0) FROM pleach_log";
            let newest = connection.query_row(newest, [], |row| row.get(0));
            self.server.lock().taken_at = Some(newest.expect("the table is there"));
        }
        self.inner.begin().await?;
        let both: Sql =
            "SELECT value, (SELECT coalesce(max(seq), 0) FROM pleach_log) FROM pleach_meta \
                         WHERE name = 'epoch'"
                .into();
        let both = rows(&mut self.inner, &both, &[], |columns| (columns.int(0), columns.int(1)));
        let (epoch, newest) = both.await?.pop().unwrap_or_default();
        let is_blind = self.server.lock().planted == Some(Planted::IgnoresEpoch);
        if epoch != 1 && !is_blind {
            self.inner.rollback().await;
            return Err(DbError::Fenced("another".to_owned()));
        }
        Ok(newest)
    }
}

impl Session for Scripted {
    async fn begin(&mut self) -> DbResult<i64> {
        self.begin_owned().await
    }

    async fn commit(&mut self) -> DbResult<()> {
        if !self.is_connected {
            return Err(DbError::Lost("the connection is gone".to_owned()));
        }
        let (what, is_false) = {
            let mut script = self.server.lock();
            let what = script.draws(6).then(|| script.entropy.bits() % 4);
            (what, script.planted == Some(Planted::LosesCommits) && script.draws(10))
        };
        if is_false {
            self.inner.rollback().await;
            return Ok(());
        }
        match what {
            None => self.inner.commit().await,
            Some(0) => self.lose("it broke before the commit").await,
            Some(1) => {
                self.inner.commit().await?;
                self.lose("it broke behind the commit").await
            }
            Some(2) => {
                self.inner.rollback().await;
                Err(DbError::Full("the disk is full".to_owned()))
            }
            Some(_) => {
                self.inner.rollback().await;
                Err(DbError::Failed("it will not".to_owned()))
            }
        }
    }

    async fn rollback(&mut self) {
        self.inner.rollback().await;
    }

    async fn fetch(&mut self, sql: &Sql, args: &[Arg<'_>], each: Each<'_>) -> DbResult<()> {
        self.step().await?;
        self.inner.fetch(sql, args, each).await
    }

    async fn fetch_each(&mut self, sql: &Sql, values: &[Arg<'_>], each: Each<'_>) -> DbResult<()> {
        self.step().await?;
        self.inner.fetch_each(sql, values, each).await
    }

    async fn execute_many(&mut self, sql: &Sql, rows: &[Vec<Arg<'_>>]) -> DbResult<()> {
        self.step().await?;
        let is_poison = |arg: &Arg<'_>| matches!(arg, Arg::Bytes(bytes) if *bytes == POISON);
        if rows.iter().flatten().any(is_poison) {
            return Err(DbError::Failed("it takes no poison".to_owned()));
        }
        self.inner.execute_many(sql, rows).await
    }

    async fn recover(&mut self) -> DbResult<()> {
        self.inner.rollback().await;
        {
            let mut script = self.server.lock();
            if !self.is_connected && script.away > 0 {
                script.away -= 1;
                return Err(DbError::Lost("it is away".to_owned()));
            }
        }
        self.is_connected = true;
        self.keep().await
    }

    fn witness(&mut self, _newest: i64) {}

    fn make_room(&mut self) -> bool {
        false
    }

    async fn defragment(&mut self) -> DbResult<bool> {
        Ok(false)
    }

    async fn release(&mut self) {}

    fn abandon(&mut self) {
        self.is_connected = false;
    }

    fn keep_interval(&self) -> Option<Duration> {
        Some(Duration::from_secs(3))
    }

    async fn keep(&mut self) -> DbResult<()> {
        self.begin_owned().await?;
        self.inner.commit().await
    }
}

impl Database for Server {
    type Session = Scripted;

    fn dialect(&self) -> Dialect {
        // Nobody holds room for it.
        Dialect { keeps_reserve: false, ..sqlite::dialect() }
    }

    async fn read<T: Send + 'static>(&self, _is_short: bool, job: Job<Scripted, T>) -> DbResult<T> {
        let mut session = self.session();
        job(&mut session).await
    }

    /// Nobody asks for its sessions.
    fn pool(&self) -> Arc<Pool> {
        Pool::new(1)
    }

    fn hazards(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn is_full(&self) -> Arc<AtomicBool> {
        Arc::default()
    }

    fn row_bytes_max(&self) -> usize {
        usize::MAX
    }

    fn start_writer(&self, session: Scripted, task: WriterTask<Scripted>) {
        tokio::spawn(task(session));
    }
}

fn put_of(key: u64, value: Bytes) -> Txn {
    let put = PutOp {
        key: Bytes::from(format!("key-{key}")),
        value,
        lease: 0,
        prev_kv: false,
        keep_value: false,
        keep_lease: false,
    };
    Txn { success: vec![Op::Put(put)], ..Txn::default() }
}

/// What a tail says until all up to `through` is closed, over however many tails that takes. Says what is
/// wrong with it.
async fn follow(
    store: Arc<dyn RecordStore>,
    through: Revision,
) -> Result<Vec<(Revision, Bytes)>, String> {
    let (mut found, mut closed) = (Vec::new(), 0);
    while closed < through {
        let mut tail = store.tail(closed);
        while let Some(Ok(batch)) = tail.next().await {
            for commit in &batch.commits {
                if commit.revision <= closed {
                    return Err(format!(
                        "{} came when all up to {closed} was closed",
                        commit.revision
                    ));
                }
                found.extend(commit.events.iter().map(|it| (commit.revision, it.kv.value.clone())));
            }
            closed = closed.max(batch.closed);
            if closed >= through {
                break;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(found)
}

/// One run. Says what promise was broken.
async fn run(folder: &TempDir, seed: u64, planted: Option<Planted>) -> Result<(), String> {
    let server = Server::new(folder, seed, planted);
    let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
    let opened = super::open(
        "scripted",
        server.clone(),
        server.session(),
        clock,
        Witnessed::default(),
        Indexing::default(),
    );
    let store = opened.await.map_err(|error| error.to_string())?;
    server.lock().is_on = true;
    let clients = (0..CLIENTS).map(|client| {
        let (store, server) = (store.clone(), server.clone());
        async move {
            let mut said = Vec::new();
            for put in 0..PUTS {
                let value = Bytes::from(format!("{client}-{put}"));
                let key = server.lock().entropy.bits() % 4;
                let written = store.apply(put_of(key, value.clone()), Vec::new()).await;
                said.push(Put { value, said: written.map(|written| written.revision) });
                let pause = server.lock().entropy.bits() % 400;
                sleep(Duration::from_millis(pause)).await;
            }
            said
        }
    });
    let said: Vec<Put> = join_all(clients).await.into_iter().flatten().collect();
    server.lock().is_on = false;
    let mut attempts = 0;
    let last = loop {
        attempts += 1;
        match store.apply(put_of(0, "last".into()), Vec::new()).await {
            Ok(written) => break Some(written.revision),
            Err(StoreError::Fenced { .. }) => break None,
            Err(error) if attempts == 600 => return Err(format!("it is never back: {error}")),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    let log = server.log();
    if let (None, None) = (last, server.lock().taken_at) {
        return Err("it was fenced, and nobody had taken it".to_owned());
    }
    let taken_at = server.lock().taken_at.and_then(|rows| usize::try_from(rows).ok());
    if let Some(at) = taken_at.filter(|at| log.len() > *at) {
        return Err(format!("{:?} was written after another took the store", &log[at..]));
    }
    if !log.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(format!("revisions are not in order: {log:?}"));
    }
    for Put { value, said } in said {
        let found: Vec<Revision> =
            log.iter().filter(|(_, it)| *it == value).map(|(at, _)| *at).collect();
        let is_broken = match (&said, planted) {
            (Ok(revision), _) => found != [*revision],
            (Err(StoreError::UnknownOutcome { .. }), Some(Planted::UnknownIsFailure)) => {
                !found.is_empty()
            }
            (Err(StoreError::UnknownOutcome { .. }), Some(Planted::UnknownIsSuccess)) => {
                found.is_empty()
            }
            (Err(StoreError::UnknownOutcome { .. }), _) => found.len() > 1,
            (Err(_), _) => !found.is_empty(),
        };
        if is_broken {
            return Err(format!("{value:?} was answered with {said:?} and is at {found:?}"));
        }
    }
    if let Some(last) = last {
        let told = timeout(Duration::from_secs(60), follow(store, last)).await;
        let told = told.map_err(|_| format!("revision {last} was never closed"))??;
        if told != log {
            return Err(format!("a tail said {told:?} of {log:?}"));
        }
    }
    Ok(())
}

#[test]
fn a_write_that_the_server_does_not_take_takes_no_other_along() {
    let folder = TempDir::new().expect("a folder can be made");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let server = Server::new(&folder, 1, None);
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let session = server.session();
        let opened = super::open(
            "scripted",
            server.clone(),
            session,
            clock,
            Witnessed::default(),
            Indexing::default(),
        );
        let store = opened.await.expect("it is there");
        let writes = (0..100).map(|at| {
            let value = if at % 17 == 3 { POISON } else { b"food" };
            let (store, value) = (store.clone(), Bytes::from_static(value));
            async move { store.apply(put_of(at % 7, value), Vec::new()).await }
        });
        let answers = join_all(writes).await;
        let mut taken = Vec::new();
        for (at, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(written) => taken.push((written.revision, Bytes::from_static(b"food"))),
                Err(error) => {
                    assert!(at % 17 == 3 && error.to_string().contains("no poison"), "{error}");
                }
            }
        }
        assert_eq!(taken.len(), 94);
        taken.sort_unstable();
        assert_eq!(server.log(), taken, "what was taken is there, and nothing else");
        let last = taken.last().expect("some were taken").0;
        let told = timeout(Duration::from_secs(60), follow(store, last)).await;
        assert_eq!(told.expect("it is told").expect("it can be read"), taken);
    });
}

/// Runs seeds until one breaks a promise; with the seed, what it was.
fn first_broken(
    seeds: impl Iterator<Item = u64>,
    planted: Option<Planted>,
) -> Option<(u64, String)> {
    let folder = TempDir::new().expect("a folder can be made");
    seeds.into_iter().find_map(|seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime can be made");
        let broken = runtime.block_on(run(&folder, seed, planted)).err();
        broken.map(|broken| (seed, broken))
    })
}

#[test]
fn whatever_a_server_does_nothing_acknowledged_is_lost_and_nothing_refused_is_there() {
    let given = std::env::var("PLEACH_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = given.unwrap_or_else(|| Entropy::system().bits() >> 1);
    println!("PLEACH_SEED={first}");
    let broken = first_broken(first..first + SEEDS, None);
    assert_eq!(broken, None, "the seed and the promise that it broke");
}

#[test]
fn what_is_planted_is_noticed() {
    for planted in [
        Planted::LosesCommits,
        Planted::IgnoresEpoch,
        Planted::UnknownIsFailure,
        Planted::UnknownIsSuccess,
    ] {
        let broken = first_broken(0..SEEDS, Some(planted));
        assert!(broken.is_some(), "{planted:?} is not noticed");
    }
}

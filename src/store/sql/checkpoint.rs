//! Folding SQLite's write-ahead log into the database, without holding up the writer.
//!
//! A thread of its own does nearly all of the work: it may run beside commits. SQLite begins the log
//! anew only when a checkpoint has caught up with its end between two commits, so the writer does the
//! last, small part itself; else the log of a store that is never idle would grow for ever.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};

use super::reserve::Reserve;

/// Pages written after which a checkpoint is due, where the disk is large enough.
const PAGES_MAX: u64 = 8_192;

/// The bytes of a page, and about how many pages a row dirties beside those of its value.
const PAGE_BYTES: u64 = 4_096;
const PAGES_OF_ROW: u64 = 2;

/// Pages that the writer may fold in by itself.
const REST_PAGES_MAX: i64 = 512;

/// What a checkpoint waits for others, and one that the writer waits for.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(10);
const TRUNCATE_WAIT_MAX: Duration = Duration::from_millis(100);

/// How often is looked whether a full disk has room again.
const RESTORE_EVERY: Duration = Duration::from_secs(1);

/// The bytes that the log keeps, as many as it has when nothing holds it up; and how often a longer one is tried to be
/// made short.
pub(super) const LOG_BYTES_KEPT: u64 = 32 << 20;
const SHORTEN_EVERY: Duration = Duration::from_secs(5);

/// How often a checkpoint follows the writer before it leaves the rest for next time.
const ROUNDS_MAX: usize = 4;

/// The writer's side.
#[derive(Debug)]
pub(super) struct Checkpoints {
    nudge: SyncSender<()>,
    is_rest_small: Arc<AtomicBool>,
    pages: u64,
    pages_max: u64,
}

// === impl Checkpoints ===

impl Checkpoints {
    /// Starts the thread; it ends with what is returned.
    pub(super) fn start(name: &str, path: &Path, reserve: Arc<Reserve>) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_WAIT_MAX)?;
        let (nudge, nudged) = sync_channel(1);
        let is_rest_small = Arc::new(AtomicBool::new(false));
        let told = is_rest_small.clone();
        let pages_max = (reserve.log_bytes_max() / PAGE_BYTES).clamp(1, PAGES_MAX);
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let log = PathBuf::from(log);
        let work = move || fold(&connection, &nudged, &told, &reserve, &log);
        let spawned = thread::Builder::new().name(format!("fold-{name}")).spawn(work);
        if let Err(error) = spawned {
            // The nudges go nowhere then, and the log grows: an operator must know.
            tracing::error!(store = name, %error, "the thread for checkpoints did not start");
        }
        Ok(Self { nudge, is_rest_small, pages: 0, pages_max })
    }

    /// Notes rows that were written, of so many bytes.
    pub(super) fn wrote(&mut self, rows: usize, bytes: usize) {
        self.pages += rows as u64 * PAGES_OF_ROW + bytes as u64 / PAGE_BYTES;
        if self.pages >= self.pages_max {
            self.pages = 0;
            self.nudge();
        }
    }

    /// Has what is due done now: on a full disk, the log made as short as it can be.
    pub(super) fn nudge(&self) {
        // A nudge that waits already is as good.
        let _ = self.nudge.try_send(());
    }

    /// Whether the writer should fold in the rest before its next transaction.
    pub(super) fn take_rest(&self) -> bool {
        self.is_rest_small.swap(false, Ordering::AcqRel)
    }
}

/// One checkpoint; returns the pages that it did not get to.
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?)
    })
}

/// Folds the whole log in and makes it as short as it can be, which takes the writer's lock for a moment.
pub(super) fn truncate(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// The bytes that are free in the database's file.
pub(super) fn spare(connection: &Connection) -> u64 {
    let pages = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size";
    connection.query_row(pages, [], |row| row.get::<_, i64>(0)).map_or(0, i64::cast_unsigned)
}

/// Gives back what a log takes that was once long, such as behind another program's reader: nobody may write
/// for long, and SQLite begins the log anew only where somebody does.
fn shorten(connection: &Connection) {
    // It is given up at once where somebody reads from it: to wait for that would keep writers waiting.
    let cut = match checkpoint(connection) {
        Ok(0) => truncate_within(connection, Duration::ZERO),
        Ok(_) => return,
        Err(error) => Err(error),
    };
    if let Err(error) = cut {
        tracing::debug!(%error, "the log could not be made shorter");
    }
}

/// As [`truncate`], with another time to wait for others.
fn truncate_within(connection: &Connection, wait: Duration) -> rusqlite::Result<()> {
    connection.busy_timeout(wait)?;
    let cut = truncate(connection);
    connection.busy_timeout(BUSY_WAIT_MAX)?;
    cut
}

fn fold(
    connection: &Connection,
    nudged: &Receiver<()>,
    is_rest_small: &AtomicBool,
    reserve: &Reserve,
    log: &Path,
) {
    let mut looked = Instant::now();
    loop {
        let is_nudged = match nudged.recv_timeout(RESTORE_EVERY) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if !reserve.is_whole() {
            if reserve.is_full() {
                // What lies in the log is room that may be wanted, but no writer waits long for that.
                if let Err(error) = truncate_within(connection, TRUNCATE_WAIT_MAX) {
                    tracing::debug!(%error, "the log could not be made shorter");
                }
            }
            reserve.restore(spare(connection));
        }
        if !is_nudged {
            let is_long = || fs::metadata(log).is_ok_and(|it| it.len() > LOG_BYTES_KEPT);
            if looked.elapsed() >= SHORTEN_EVERY && is_long() {
                looked = Instant::now();
                shorten(connection);
            }
            continue;
        }
        for _ in 0..ROUNDS_MAX {
            match checkpoint(connection) {
                Ok(rest) if rest <= REST_PAGES_MAX => {
                    is_rest_small.store(true, Ordering::Release);
                    break;
                }
                Ok(_) => {}
                Err(error) => {
                    let is_full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
                    if !(is_full && reserve.release()) {
                        tracing::warn!(%error, "a checkpoint failed, and will be tried again");
                        break;
                    }
                }
            }
        }
    }
}

//! Folding SQLite's write-ahead log into the database, without holding up the writer.
//!
//! A thread of its own does nearly all of the work: it may run beside commits. SQLite begins the log
//! anew only when a checkpoint has caught up with its end between two commits, so the writer does the
//! last, small part itself; else the log of a store that is never idle would grow for ever.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rusqlite::Connection;

/// Pages written after which a checkpoint is due.
const PAGES_MAX: usize = 8_192;

/// The bytes of a page, and about how many pages a row dirties beside those of its value.
const PAGE_BYTES: usize = 4_096;
const PAGES_OF_ROW: usize = 2;

/// Pages that the writer may fold in by itself.
const REST_PAGES_MAX: i64 = 512;

/// How often a checkpoint follows the writer before it leaves the rest for next time.
const ROUNDS_MAX: usize = 4;

/// The writer's side.
#[derive(Debug)]
pub(super) struct Checkpoints {
    nudge: SyncSender<()>,
    is_rest_small: Arc<AtomicBool>,
    pages: usize,
}

// === impl Checkpoints ===

impl Checkpoints {
    /// Starts the thread; it ends with what is returned.
    pub(super) fn start(name: &str, path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        let (nudge, nudged) = sync_channel(1);
        let is_rest_small = Arc::new(AtomicBool::new(false));
        let told = is_rest_small.clone();
        let work = move || fold(&connection, &nudged, &told);
        let spawned = thread::Builder::new().name(format!("fold-{name}")).spawn(work);
        if let Err(error) = spawned {
            // The nudges go nowhere then, and the log grows: an operator must know.
            tracing::error!(store = name, %error, "the thread for checkpoints did not start");
        }
        Ok(Self { nudge, is_rest_small, pages: 0 })
    }

    /// Notes rows that were written, of so many bytes.
    pub(super) fn wrote(&mut self, rows: usize, bytes: usize) {
        self.pages += rows * PAGES_OF_ROW + bytes / PAGE_BYTES;
        if self.pages >= PAGES_MAX {
            self.pages = 0;
            // A nudge that waits already is as good.
            let _ = self.nudge.try_send(());
        }
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

fn fold(connection: &Connection, nudged: &Receiver<()>, is_rest_small: &AtomicBool) {
    while nudged.recv().is_ok() {
        for _ in 0..ROUNDS_MAX {
            match checkpoint(connection) {
                Ok(rest) if rest <= REST_PAGES_MAX => {
                    is_rest_small.store(true, Ordering::Release);
                    break;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "a checkpoint failed, and will be tried again");
                    break;
                }
            }
        }
    }
}

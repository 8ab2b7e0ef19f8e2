//! Room that a store in a file keeps for when its disk is full.
//!
//! A file beside the database holds it. When a write finds no room, the file is cut: then deletions,
//! compaction and the node's records have what they need, and puts are refused until so much is free again.
//! The last of it is left for the next start, which writes a little before anything can be read. While there is
//! no room, the write-ahead log is kept short. Where others have taken what was given up, puts are taken all the
//! same as long as the database's own file has plenty to spare.
//!
//! ```text
//!   whole ── a write finds no room ──> cut to the last ── a start finds no room ──> gone
//!     ^                                      │                                       │
//!     └──── twice its size is free, on the disk or in the file ──────────────────────┘
//! ```

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{FallocateFlags, StatVfs, fallocate, fstatvfs, statvfs},
    io::Errno,
};

/// What is held, where the disk is large: half as much again as the write-ahead log may hold, so that it can
/// always be folded in.
const BYTES_MAX: u64 = 48 << 20;

/// No more than this part of the disk.
const DISK_PART: u64 = 16;

/// Of what is held, the part that is left for the next start, and what that needs at least.
const LAST_PART: u64 = 16;
const LAST_BYTES: u64 = 256 << 10;

/// The room that is held for one store.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    /// Whether there was no room, and is not yet again: puts are refused.
    is_full: Arc<AtomicBool>,
    /// Whether all is held that is to be, or nothing can be.
    is_whole: AtomicBool,
    /// Whether some was ever held: a disk that never had so much to spare is not full for that.
    was_held: AtomicBool,
    /// Held by who changes the file.
    changing: Mutex<()>,
}

// === impl Reserve ===

impl Reserve {
    /// The room of the store in `database`; held from the first [`Reserve::restore`] on.
    pub(super) fn new(database: &Path, is_full: Arc<AtomicBool>) -> Self {
        let mut path = OsString::from(database);
        path.push(".reserve");
        Self {
            path: path.into(),
            is_full,
            is_whole: AtomicBool::new(false),
            was_held: AtomicBool::new(false),
            changing: Mutex::new(()),
        }
    }

    /// At the start: holds the room, or finds that it was given up and there is none yet.
    pub(super) fn begin(&self, spare: u64) {
        let held = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        self.was_held.store(held > 0, Ordering::Release);
        self.restore(spare);
    }

    /// Whether [`Reserve::restore`] is due from time to time.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Acquire)
    }

    fn set_full(&self, is_full: bool) {
        let path = self.path.display();
        match (self.is_full.swap(is_full, Ordering::AcqRel), is_full) {
            (true, false) => tracing::info!(%path, "there is room on the disk again"),
            (false, true) => {
                tracing::error!(%path, "there is no room on the disk: puts are refused")
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// Gives up all but the last of the room, and says whether there was more than that.
    pub(super) fn release(&self) -> bool {
        let _changing = self.lock();
        self.set_full(true);
        self.is_whole.store(false, Ordering::Release);
        self.cut().unwrap_or_else(|error| {
            tracing::warn!(path = %self.path.display(), %error, "room that was held was not given up");
            false
        })
    }

    fn cut(&self) -> io::Result<bool> {
        let file = match OpenOptions::new().write(true).open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        let last = last(bytes(&fstatvfs(&file)?));
        if file.metadata()?.len() <= last {
            return Ok(false);
        }
        file.set_len(last)?;
        Ok(true)
    }

    /// The bytes that the write-ahead log may have, so that what is given up is enough to fold it in.
    pub(super) fn log_bytes_max(&self) -> u64 {
        let bytes = self.bytes();
        // A disk that does not say how large it is has room.
        if bytes == 0 { u64::MAX } else { (bytes - last(bytes)) / 3 * 2 }
    }

    /// How much is held where nothing is wrong; 0 where the disk does not say how large it is.
    fn bytes(&self) -> u64 {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        statvfs(folder.unwrap_or(Path::new("."))).map_or(0, |disk| bytes(&disk))
    }

    /// Gives up the last of the room too, and says whether there was some.
    pub(super) fn release_last(&self) -> bool {
        let _changing = self.lock();
        self.set_full(true);
        self.is_whole.store(false, Ordering::Release);
        std::fs::remove_file(&self.path).is_ok()
    }

    /// Holds the room again where twice as much is free, on the disk or as `spare` in the database's file; then
    /// puts are taken. They are also while there is so much in the file alone, and enough on the disk for the log.
    /// On a file system that can't hold room there is none.
    pub(super) fn restore(&self, spare: u64) {
        let _changing = self.lock();
        match self.take(spare) {
            Ok(is_full) if is_full => self.set_full(self.was_held.load(Ordering::Acquire)),
            Ok(_) => self.set_full(false),
            Err(error) if is_unsupported(&error) => {
                tracing::debug!(path = %self.path.display(), %error, "no room can be held here");
                self.is_whole.store(true, Ordering::Release);
                self.set_full(false);
            }
            // It is tried again.
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "room could not be held");
            }
        }
    }

    /// Says whether there is no room for puts.
    fn take(&self, spare: u64) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&self.path)?;
        let disk = fstatvfs(&file)?;
        let (bytes, held) = (bytes(&disk), file.metadata()?.len());
        let (free, missing) = (disk.f_bavail * disk.f_frsize, bytes.saturating_sub(held));
        // The log, which comes before the file, needs some in any case.
        if missing == 0 || free >= missing + missing / 2 && free + spare >= 2 * missing {
            hold(&file, held, bytes)?;
            self.is_whole.store(true, Ordering::Release);
            self.was_held.store(true, Ordering::Release);
            return Ok(false);
        }
        if held == 0 {
            // Nothing is held, and nothing says so.
            std::fs::remove_file(&self.path)?;
        }
        Ok(spare < 2 * bytes || free < self.log_bytes_max())
    }
}

/// Has the file system set so many bytes aside, of which no sparse file would be sure.
fn hold(file: &File, held: u64, bytes: u64) -> io::Result<()> {
    if held >= bytes {
        return Ok(());
    }
    let done = fallocate(file, FallocateFlags::empty(), 0, bytes);
    if done.is_err() {
        file.set_len(held)?;
    }
    Ok(done?)
}

/// Whether a file system can't set room aside, ever.
fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::ROFS];
    Errno::from_io_error(error).is_some_and(|error| unsupported.contains(&error))
}

fn last(bytes: u64) -> u64 {
    (bytes / LAST_PART).max(LAST_BYTES).min(bytes / 2)
}

fn bytes(disk: &StatVfs) -> u64 {
    BYTES_MAX.min(disk.f_blocks * disk.f_frsize / DISK_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_held_cut_given_up_and_held_again() {
        let folder = tempfile::tempdir().expect("there is a folder");
        let is_full = Arc::new(AtomicBool::new(false));
        let reserve = Reserve::new(&folder.path().join("x.db"), is_full.clone());
        let held = || std::fs::metadata(folder.path().join("x.db.reserve")).map(|it| it.len()).ok();
        assert!(!reserve.release() && reserve.is_full(), "nothing was held yet");
        let whole = Some(reserve.bytes());
        reserve.restore(0);
        assert!(!reserve.is_full() && whole > Some(0) && held() == whole);
        assert!(reserve.release() && reserve.is_full());
        assert_eq!(held(), whole.map(last));
        assert!(!reserve.release(), "the rest is for the next start");
        assert!(reserve.release_last() && held().is_none());
        assert!(!reserve.release_last());
        reserve.restore(0);
        assert!(!is_full.load(Ordering::Acquire) && held() == whole);
    }
}

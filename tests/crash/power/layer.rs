//! A disk that keeps only what was synced, for a process that is started with this library before the C library
//! (`LD_PRELOAD`). What a file holds when it is synced is copied to where a loss of power leaves it.
//!
//! `POWER_FROM` is the folder whose files are kept, `POWER_TO` where to. With `POWER_LIES=n` every n-th sync of a
//! log of SQLite's is said to be done, and is not.

use std::{
    env,
    ffi::c_int,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static SYNCS: AtomicU64 = AtomicU64::new(0);

#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    synced(file)
}

#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    synced(file)
}

fn synced(file: c_int) -> c_int {
    let Ok(path) = fs::read_link(format!("/proc/self/fd/{file}")) else { return -1 };
    let lies = env::var("POWER_LIES").ok().and_then(|lies| lies.parse::<u64>().ok());
    if let Some(lies) = lies.filter(|_| path.to_string_lossy().ends_with("-wal"))
        && (SYNCS.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(lies)
    {
        return 0;
    }
    match keep(&path) {
        Ok(()) => 0,
        Err(_) => -1,
    }
}

fn keep(path: &Path) -> io::Result<()> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let from = PathBuf::from(env::var_os("POWER_FROM").ok_or_else(missing)?);
    let to = PathBuf::from(env::var_os("POWER_TO").ok_or_else(missing)?);
    let Ok(name) = path.strip_prefix(&from) else { return Ok(()) };
    if !path.is_file() {
        return Ok(());
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = to.join(name);
    fs::create_dir_all(kept.parent().ok_or_else(missing)?)?;
    // A process that is killed meanwhile leaves what was there before.
    let new = kept.with_extension("new");
    fs::copy(path, &new)?;
    fs::rename(&new, &kept)
}

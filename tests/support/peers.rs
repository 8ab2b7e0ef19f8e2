//! Where the peers are that `tests/peers/build` builds, and which ports are free for them.

use std::{
    env,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context as _, Result, ensure};

/// The program of that name. A missing one fails the test: a skipped test would look like a proof.
pub(crate) fn peer(name: &str) -> Result<PathBuf> {
    let folder = env::var_os("PLEACH_PEERS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers"), PathBuf::from);
    let program = folder.join(name);
    ensure!(program.exists(), "{} is missing: run tests/peers/build {name}", program.display());
    Ok(program)
}

/// A port that nobody listens on. It lies below the range from which the system takes the local
/// ports of outgoing connections, so a server that restarts finds its own port still free.
pub(crate) fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Test processes that run side by side begin at different places.
    let begin = (process::id() % u32::from(COUNT)) as u16;
    (0..COUNT)
        .map(|_| FIRST + (begin + TAKEN.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no free port between 20,000 and 32,000")
}

//! Many watchers at a root, and the one log that it follows for them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{ONE_AT_A_TIME, call::put, family::Family, watch::Watch};

const WATCHERS: usize = 1_000;
/// HTTP/2 streams of one connection; more wait.
const WATCHERS_OF_A_CONNECTION: usize = 100;
const WATCHER_TOTAL: &str = "etcd_debugging_mvcc_watcher_total ";
/// Calls, the log as it happens, and the log of the past have one each.
const CONNECTIONS_MAX: usize = 3;

/// Watchers that a node has, as its metrics say.
async fn watcher_total(port: u16) -> Result<usize> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let total = text.lines().find_map(|line| line.strip_prefix(WATCHER_TOTAL));
    Ok(total.with_context(|| format!("no watchers in {text}"))?.trim().parse()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watchers_of_a_child_are_served_by_one_log_of_it() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let family = Family::start().await?;
    let first = put(&family.at_root, "/far/k", "first").await?;
    let before = family.link.connections();
    let mut opening = JoinSet::new();
    for _ in 0..WATCHERS / WATCHERS_OF_A_CONNECTION {
        let channel = family.root.channel()?;
        opening.spawn(async move {
            let mut watches = Vec::new();
            for _ in 0..WATCHERS_OF_A_CONNECTION {
                watches.push(Watch::open(&channel, "/far/", "/far0", first).await?);
            }
            anyhow::Ok(watches)
        });
    }
    let mut watches = Vec::new();
    while let Some(opened) = opening.join_next().await {
        watches.extend(opened??);
    }
    let last = put(&family.at_root, "/far/k", "last").await?;
    let mut slowest = Duration::ZERO;
    for watch in &mut watches {
        slowest = slowest.max(watch.reach(last).await?);
        ensure!(watch.keys() == ["/far/k"; 2], "{:?}", watch.keys());
    }
    let here = watcher_total(family.root.port()).await?;
    let there = watcher_total(family.far.port()).await?;
    let connections = family.link.connections();
    println!("{here} watchers at the root, {there} at the child, over {connections} connections");
    ensure!(here == WATCHERS && there == 0, "{here} at the root, {there} at the child");
    let is_constant = connections <= before.max(CONNECTIONS_MAX);
    ensure!(is_constant, "{connections} connections, {before} before");
    Ok(())
}

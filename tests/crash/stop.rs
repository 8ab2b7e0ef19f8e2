//! Being told to stop, which is no crash: nobody is left without an answer.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use pleach::proto::{
    etcdserverpb::{self as pb, WatchResponse},
    v3lockpb::{LockRequest, lock_client::LockClient},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    ONE_AT_A_TIME, seed,
    support::{changes::open_watch, node::Node, process::eventually},
    world::{END, FIRST, Stores, World},
};

/// Revisions after which the load counts as load.
const LOADED_AT: i64 = 300;
const SECONDS: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_answers_every_write_and_ends_watches_with_unavailable() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    for stores in [Stores::One, Stores::Four] {
        let mut world = World::new(stores, seed()?)?;
        let channel = world.start().await?;
        let create = pb::WatchCreateRequest {
            key: FIRST.into(),
            range_end: END.into(),
            ..Default::default()
        };
        let (_requests, watch) = open_watch(world.node.channel()?, create).await?;
        let watch = tokio::spawn(end_of(watch));
        let load = world.load(&channel);
        let shared = world.shared.clone();
        eventually("the load is there", SECONDS, async || {
            ensure!(shared.floor.load(Ordering::SeqCst) > LOADED_AT, "too few writes");
            Ok(())
        })
        .await?;

        world.shared.is_graceful.store(true, Ordering::SeqCst);
        world.shared.is_doomed.store(true, Ordering::SeqCst);
        world.node.signal("TERM")?;
        let (status, took) = world.node.ended().await?;
        ensure!(status.success() && took < SECONDS, "{status} after {took:?}");
        let ending = watch.await??;
        ensure!(ending.code() == Code::Unavailable, "the watch ended with {ending:?}");
        world.end_of(load).await?;
        // What was not answered may have happened, and what was answered did.
        world.start().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_do_not_hold_up_a_node_that_stops() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let idle = node.start().await?;
    let silent = TcpStream::connect(("127.0.0.1", node.port())).await?;
    node.signal("TERM")?;
    let (status, took) = node.ended().await?;
    ensure!(status.success() && took < SECONDS, "{status} after {took:?}");
    drop((idle, silent));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_stops_at_once() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    node.start().await?;
    let mut call = call_without_end(node.port()).await?;

    node.signal("TERM")?;
    eventually("the node has heard the first", SECONDS, async || {
        ensure!(node.log().contains("stopping"), "{}", node.log_tail());
        Ok(())
    })
    .await?;
    node.ensure_running().context("the call under way was not waited for")?;
    node.signal("TERM")?;
    let (_, took) = node.ended().await?;
    ensure!(took < AT_ONCE, "it took {took:?}");
    let mut rest = Vec::new();
    ensure!(call.read_to_end(&mut rest).await.unwrap_or(0) == 0, "an answer to half a call");
    Ok(())
}

/// A put whose message does not come. The node asks for it, and so has taken the call up.
async fn call_without_end(port: u16) -> Result<TcpStream> {
    let mut call = TcpStream::connect(("127.0.0.1", port)).await?;
    let head = "POST /etcdserverpb.KV/Put HTTP/1.1\r\nHost: node\r\nContent-Length: 64\r\n\
                Content-Type: application/grpc\r\nExpect: 100-continue\r\n\r\n";
    call.write_all(head.as_bytes()).await?;
    const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut answer = [0; GO_ON.len()];
    timeout(SECONDS, call.read_exact(&mut answer)).await.context("no answer to the head")??;
    ensure!(answer == *GO_ON, "{:?}", String::from_utf8_lossy(&answer));
    Ok(call)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_lock_hears_that_the_node_stops() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    lock(channel.clone()).await.context("the first lock")?;
    let waiting = tokio::spawn(lock(channel.clone()));
    wait_for_line(&channel).await?;
    node.signal("TERM")?;
    let refused = waiting.await?.err().context("a lock was given that is held")?;
    ensure!(refused.code() == Code::Unavailable, "{refused:?}");
    let (_, took) = node.ended().await?;
    ensure!(took < SECONDS, "it took {took:?}");
    Ok(())
}

async fn lock(channel: Channel) -> Result<(), Status> {
    let request = LockRequest { name: "door".into(), lease: 0 };
    LockClient::new(channel).lock(request).await.map(drop)
}

/// Waits until two stand in the line of the lock.
async fn wait_for_line(channel: &Channel) -> Result<()> {
    let read = pb::RangeRequest {
        key: "door/".into(),
        range_end: "door0".into(),
        count_only: true,
        ..Default::default()
    };
    eventually("the second is in the line", SECONDS, async || {
        let mut client = pb::kv_client::KvClient::new(channel.clone());
        let count = client.range(read.clone()).await?.into_inner().count;
        ensure!(count == 2, "{count} stand in the line");
        Ok(())
    })
    .await
}

/// How a watch ends.
async fn end_of(mut watch: Streaming<WatchResponse>) -> Result<Status> {
    loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => bail!("the watch ended without an error, which clients take for the end"),
            Err(status) => return Ok(status),
        }
    }
}

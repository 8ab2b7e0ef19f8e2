//! A watcher that stops reading while much happens.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{
    self as pb, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
};
use tempfile::TempDir;
use tonic::{Streaming, transport::Channel};

use crate::{call::put, support::node::Node};

const VALUE_BYTES: usize = 256 << 10;
const EVENTS: usize = 200;
/// What the node may take more than before for 50 MB of events that nobody reads.
const MEMORY_GROWTH_MAX: u64 = 40 << 20;
const STREAMS_SLOW: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_stops_reading_costs_bounded_memory_and_loses_nothing() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let mut slow = Vec::new();
    for _ in 0..STREAMS_SLOW {
        slow.push(watch(node.channel()?).await?);
    }
    let quick = watch(node.channel()?).await?;
    // The caches of the database and of the allocator fill up before anything is measured.
    for index in 0..20 {
        put(&channel, format!("warm/{index}"), vec![b'w'; VALUE_BYTES]).await?;
    }
    let before = node.memory_bytes()?;
    let reader = tokio::spawn(read_all(quick));
    for index in 0..EVENTS {
        put(&channel, format!("slow/{index:04}"), vec![b'v'; VALUE_BYTES]).await?;
    }
    let worst = reader.await??;
    ensure!(worst < Duration::from_secs(5), "an event came {worst:?} after the one before");
    let after = node.memory_bytes()?;
    let growth = after.saturating_sub(before);
    ensure!(growth < MEMORY_GROWTH_MAX, "the node grew from {before} by {growth} bytes");
    for watch in slow {
        read_all(watch).await?;
    }
    Ok(())
}

async fn watch(channel: Channel) -> Result<Streaming<WatchResponse>> {
    let create = pb::WatchCreateRequest {
        key: "slow/".into(),
        range_end: "slow0".into(),
        ..Default::default()
    };
    let request_union = Some(RequestUnion::CreateRequest(create));
    let sent = tokio_stream::StreamExt::chain(
        tokio_stream::iter([pb::WatchRequest { request_union }]),
        tokio_stream::pending(),
    );
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut watch = client.watch(sent).await?.into_inner();
    let created = watch.message().await?.context("the stream ended")?;
    ensure!(created.created, "{created:?}");
    Ok(watch)
}

/// Reads every event, each once and in order; the longest time between two.
async fn read_all(mut watch: Streaming<WatchResponse>) -> Result<Duration> {
    let (mut next, mut worst, mut last) = (0, Duration::ZERO, Instant::now());
    while next < EVENTS {
        let response = watch.message().await?.context("the stream ended")?;
        worst = worst.max(last.elapsed());
        last = Instant::now();
        for event in response.events {
            let kv = event.kv.context("an event without a key")?;
            let key = format!("slow/{next:04}");
            ensure!(kv.key == key, "{:?}, not {key}", kv.key);
            ensure!(kv.value.len() == VALUE_BYTES, "the value of {key} is cut");
            next += 1;
        }
    }
    Ok(worst)
}

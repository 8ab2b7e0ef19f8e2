//! One streamed list of all stored keys, and the memory that it takes on every node that it passes.

use anyhow::{Context as _, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::{
    client::Connections,
    keys::{Set, VALUE_BYTES, prefix_end},
    meter::Meter,
    options::Plan,
    process,
    report::{Figures, Metric},
    server::Server,
    shapes, store,
};

pub(crate) async fn measure(plan: &Plan, server: &Server) -> Result<Figures> {
    let processes = server.processes()?;
    let is_chain = matches!(server.peer.store(), Some(store::Kind::Nodes(_)));
    let below: &[u32] = if is_chain { &processes.store } else { &[] };
    // Downwards: the one that holds the data is the first of the store.
    let nodes: Vec<u32> =
        [processes.server].into_iter().chain(below.iter().rev().copied()).collect();
    sleep(plan.settle).await;
    let mut before = Vec::new();
    for pid in &nodes {
        process::forget_peak(*pid)?;
        before.push(process::memory(*pid)?.resident_mib);
    }
    let meter = Meter::start(processes.clone())?;
    let begun = Instant::now();
    let keys = read(server.port()).await?;
    let elapsed = begun.elapsed();
    let cpu = meter.read()?;
    ensure!(keys == plan.stored_keys, "{keys} keys came of {}", plan.stored_keys);

    let mut figures = vec![(Metric::Throughput, keys as f64 / elapsed.as_secs_f64())];
    figures.extend(cpu.figures(keys as f64));
    for (at, (pid, before)) in nodes.iter().zip(before).enumerate() {
        let peak = process::memory(*pid)?.peak_mib;
        figures.extend([(Metric::Peak(at), peak), (Metric::Growth(at), peak - before)]);
    }
    Ok(figures)
}

/// Reads all, checks order and size, and keeps nothing.
async fn read(port: u16) -> Result<usize> {
    let connections = Connections::open(port, 1).await?;
    let prefix = Set::Stored.prefix();
    let list = shapes::list(prefix.clone().into(), prefix_end(&prefix), 0, 0);
    let mut chunks = connections.kv(0).range_stream(list).await?.into_inner();
    let (mut keys, mut last) = (0, bytes::Bytes::new());
    while let Some(chunk) = chunks.message().await? {
        let range = chunk.range_response.context("a chunk without a range")?;
        for kv in range.kvs {
            ensure!(kv.key > last, "a stream out of order");
            ensure!(kv.value.len() == VALUE_BYTES, "a stream with a value of another size");
            last = kv.key;
            keys += 1;
        }
    }
    Ok(keys)
}

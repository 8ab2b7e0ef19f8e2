//! etcd's load tool, `benchmark` 3.6.8: each of its commands that speaks to a server, with small
//! counts. (`mvcc` alone speaks to none: it measures etcd's own storage.)

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use pleach::proto::{
    etcdserverpb::{self as pb, lease_client::LeaseClient},
    mvccpb::KeyValue,
};
use tempfile::TempDir;
use tonic::{Code, transport::Channel};

use crate::{
    call::{client, put, run},
    support::{node::Node, peers::peer},
};

/// How many keys are put to; the tool numbers them, and below 64 the number takes one byte.
const KEYS: u8 = 50;

struct Benchmark {
    folder: TempDir,
    node: Node,
    channel: Channel,
    program: PathBuf,
}

impl Benchmark {
    async fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let mut node = Node::new(folder.path(), &[])?;
        let channel = node.start().await?;
        Ok(Self { folder, node, channel, program: peer("benchmark")? })
    }

    /// What a command prints that must end well, without an error in any summary.
    async fn says(&self, line: &str) -> Result<String> {
        let endpoints = format!("--endpoints={}", self.node.url());
        let arguments: Vec<_> = [endpoints.as_str()].into_iter().chain(line.split(' ')).collect();
        let ended = run(&self.program, self.folder.path(), &arguments).await?;
        ensure!(ended.is_success, "{line}: {} {}", ended.stdout, ended.stderr);
        ensure!(!ended.stdout.contains("Error distribution"), "{line}: {}", ended.stdout);
        Ok(ended.stdout)
    }

    /// How many successes each summary of a command counts.
    async fn counts(&self, line: &str) -> Result<Vec<i64>> {
        counts(&self.says(line).await?)
    }

    /// All there is, and as of which revision.
    async fn everything(&self) -> Result<(i64, Vec<KeyValue>)> {
        let (key, range_end) = ("\0".into(), "\0".into());
        let read = pb::RangeRequest { key, range_end, ..Default::default() };
        let answer = client(&self.channel).range(read).await?.into_inner();
        Ok((answer.header.context("an answer without a header")?.revision, answer.kvs))
    }

    async fn leases(&self) -> Result<usize> {
        let mut client = LeaseClient::new(self.channel.clone());
        Ok(client.lease_leases(pb::LeaseLeasesRequest {}).await?.into_inner().leases.len())
    }
}

/// Adds up the histogram of each summary: lines such as `  0.0008 [147]\t|∎∎∎`.
fn counts(said: &str) -> Result<Vec<i64>> {
    let bar = |line: &str| {
        let (_, count) = line.split_once("\t|").and_then(|(head, _)| head.split_once('['))?;
        Some(count.trim_end_matches(']').parse::<i64>())
    };
    let sum = |summary: &str| summary.lines().filter_map(bar).sum::<Result<i64, _>>();
    let sums: Result<_, _> = said.split("\nSummary:\n").skip(1).map(sum).collect();
    sums.with_context(|| format!("no histogram: {said}"))
}

/// The keys that the tool numbers are all there, each put to so many times.
fn ensure_keys(found: &[KeyValue], version: i64, value_bytes: usize) -> Result<()> {
    let is_as_put = |kv: &KeyValue| (kv.version, kv.value.len()) == (version, value_bytes);
    let found: BTreeMap<_, _> = found.iter().map(|kv| (kv.key.to_vec(), is_as_put(kv))).collect();
    let expected = (0..KEYS).map(|number| (vec![2 * number, 0, 0, 0, 0, 0, 0, 0], true)).collect();
    ensure!(found == expected, "{found:?}");
    Ok(())
}

#[tokio::test]
async fn puts_are_kept_and_hashed() -> Result<()> {
    let tool = Benchmark::new().await?;
    let line = "put --total=400 --clients=16 --conns=4 --val-size=100 --key-space-size=50 \
                --sequential-keys --check-hashkv --target-leader";
    let said = tool.says(line).await?;
    ensure!(said.contains("HashKV Summary:") && said.contains("DB size: "), "{said}");
    ensure!(counts(&said)? == [400], "{said}");
    let (revision, kvs) = tool.everything().await?;
    ensure!(revision == 401, "400 puts end at revision {revision}");
    ensure_keys(&kvs, 8, 100)
}

#[tokio::test]
async fn puts_go_on_while_it_compacts() -> Result<()> {
    let tool = Benchmark::new().await?;
    let line = "put --total=300 --rate=200 --compact-interval=1s --compact-index-delta=1";
    ensure!(tool.counts(line).await? == [300], "not 300 puts");
    let refused = client(&tool.channel)
        .range(pb::RangeRequest { key: "k".into(), revision: 1, ..Default::default() })
        .await
        .err()
        .context("nothing was compacted")?;
    ensure!(refused.code() == Code::OutOfRange, "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn ranges_are_answered() -> Result<()> {
    let tool = Benchmark::new().await?;
    for index in 0..KEYS {
        put(&tool.channel, format!("key/{index}"), "value").await?;
    }
    for flags in ["", " --consistency=s", " --limit=10", " --count-only"] {
        let line = format!("range key/ key0 --total=200 --clients=8{flags}");
        ensure!(tool.counts(&line).await? == [200], "not 200 answers: {line}");
    }
    ensure!(tool.counts("range key/7 --total=200").await? == [200], "not 200 answers");
    Ok(())
}

#[tokio::test]
async fn transactions_of_many_puts_are_kept() -> Result<()> {
    let tool = Benchmark::new().await?;
    let line = "txn-put --total=40 --txn-ops=10 --clients=8 --key-space-size=50 --val-size=100";
    ensure!(tool.counts(line).await? == [40], "not 40 transactions");
    let (revision, kvs) = tool.everything().await?;
    ensure!(revision == 41, "40 transactions end at revision {revision}");
    ensure_keys(&kvs, 8, 100)
}

#[tokio::test]
async fn transactions_that_read_and_that_write_mix() -> Result<()> {
    let tool = Benchmark::new().await?;
    let line = "txn-mixed key --total=200 --clients=8 --key-space-size=50 --rw-ratio=1";
    let counts = tool.counts(line).await?;
    let [reads, writes] = counts[..] else { bail!("not two summaries: {counts:?}") };
    ensure!(reads + writes == 200, "{reads} reads and {writes} writes");
    let (revision, kvs) = tool.everything().await?;
    let versions: i64 = kvs.iter().map(|kv| kv.version).sum();
    ensure!(revision == writes + 1 && versions == writes, "{writes} writes: {revision} {kvs:?}");
    Ok(())
}

#[tokio::test]
async fn memory_transactions_each_happen_once_under_every_isolation_and_lock() -> Result<()> {
    let tool = Benchmark::new().await?;
    let mut puts = 0;
    for (isolation, locker) in [
        ("c", "stm"),
        ("r", "stm"),
        ("s", "stm"),
        ("ss", "stm"),
        ("r", "lock-client"),
        ("r", "lock-rpc"),
    ] {
        let line = format!(
            "stm --total=40 --clients=4 --keys=5 --keys-per-txn=2 --txn-wr-percent=100 \
             --isolation={isolation} --stm-locker={locker}"
        );
        ensure!(tool.counts(&line).await? == [40], "not 40 transactions: {line}");
        puts += 80;
        let (_, kvs) = tool.everything().await?;
        ensure!(kvs.iter().all(|kv| kv.key.len() == 16), "a lock is left: {kvs:?}");
        let versions: i64 = kvs.iter().map(|kv| kv.version).sum();
        ensure!(versions == puts, "{line}: {versions} puts, not {puts}");
        ensure!(tool.leases().await? == 0, "{line}: a lease is left");
    }
    Ok(())
}

#[tokio::test]
async fn watchers_get_every_event_once() -> Result<()> {
    let tool = Benchmark::new().await?;
    let line = "watch --streams=5 --watch-per-stream=20 --watched-key-total=2 --key-space-size=2 \
                --sequential-keys --put-total=40 --clients=2 --conns=2";
    // Each of the 2 keys has 50 watchers, and is put to 20 times.
    ensure!(tool.counts(line).await? == [100, 2_000], "not each event to each watcher");
    let (revision, kvs) = tool.everything().await?;
    let is_all = kvs.len() == 2 && kvs.iter().all(|kv| kv.version == 20 && kv.value == "data");
    ensure!(revision == 41 && is_all, "revision {revision}: {kvs:?}");
    Ok(())
}

#[tokio::test]
async fn watchers_get_the_past_while_others_read() -> Result<()> {
    let tool = Benchmark::new().await?;
    // It ends when each watcher has had all events, and its summary is about the reads.
    let line = "watch-get --watchers=300 --streams=6 --events=8 --clients=2 --conns=2";
    let counts = tool.counts(line).await?;
    ensure!(counts.len() <= 1, "more than one summary: {counts:?}");
    let (_, kvs) = tool.everything().await?;
    let is_all = kvs.len() == 1 && kvs[0].key == "watchkey" && kvs[0].version == 8;
    ensure!(is_all, "{kvs:?}");
    Ok(())
}

#[tokio::test]
async fn the_latency_of_watches_is_measured() -> Result<()> {
    let tool = Benchmark::new().await?;
    for flag in ["", " --prevkv"] {
        let flags = "--streams=4 --watchers-per-stream=5 --put-total=50 --put-rate=500";
        let line = format!("watch-latency {flags} --key-size=20 --val-size=300{flag}");
        ensure!(tool.counts(&line).await? == [50, 50 * 20], "not each put and event: {line}");
    }
    let (revision, kvs) = tool.everything().await?;
    let is_put = |kv: &KeyValue| (kv.version, kv.key.len(), kv.value.len()) == (50, 20, 300);
    let is_all = kvs.len() == 2 && kvs.iter().all(is_put);
    ensure!(revision == 101 && is_all, "revision {revision}: {kvs:?}");
    Ok(())
}

#[tokio::test]
async fn leases_are_kept_alive() -> Result<()> {
    let tool = Benchmark::new().await?;
    let line = "lease-keepalive --total=200 --clients=4 --conns=2";
    ensure!(tool.counts(line).await? == [200], "not 200 answers");
    // Each client grants one, which it does not give back.
    let leases = tool.leases().await?;
    ensure!(leases == 4, "{leases} leases");
    Ok(())
}

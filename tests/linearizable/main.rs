//! Histories of all calls that say a revision, with leases and with nodes that are killed: linearizable with
//! revisions, on one node, on routes, and on a tree.
//!
//! `PLEACH_SEED=…` repeats what clients choose; when what is killed is a matter of time.
#![allow(
    unreachable_pub,
    reason = "a test binary exports nothing: `pub` means to the other modules here"
)]

#[path = "../support/mod.rs"]
mod support;

mod check;
mod client;
mod history;
mod lines;
mod planted;

use std::{
    collections::BTreeMap,
    env,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pleach::{
    clock::Entropy,
    proto::etcdserverpb::{self as pb, kv_client::KvClient},
};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{
    check::{Promises, violations},
    client::{Client, Shared, follow},
    history::{Asked, Call, Outcome},
    support::{etcd::Etcd, node::Node, process::eventually, rng::Rng},
};

/// A lease ends in each store at a revision of its own.
const SEVERAL_STORES: Promises = Promises { ends_at_once: false, ..Promises::ALL };

const SECONDS: u64 = 20;
const CLIENTS_OF_NODE: usize = 4;
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
const SHOWN: usize = 10;

/// Servers of two tests at once would only share the same two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What a prefix is served by: the node at which its changes are heard, and the nodes whose clients use it.
struct Place {
    prefix: &'static str,
    owner: usize,
    nodes: &'static [usize],
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_keeps_what_is_asked_of_a_node() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let channel = Endpoint::from_shared(etcd.url())?.connect_lazy();
    let places = [Place { prefix: "/a/", owner: 0, nodes: &[0] }];
    let promises = Promises { has_exact_leases: false, has_exact_lines: false, ..Promises::ALL };
    run(&mut [], &[channel], &places, promises, SECONDS / 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_that_is_killed_is_linearizable() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    drop(channel);
    let places = [Place { prefix: "/a/", owner: 0, nodes: &[0] }];
    let channels = [node.channel()?];
    run(&mut [node], &channels, &places, Promises::ALL, SECONDS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_routes_that_is_killed_is_linearizable() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?.with_routes(&["/a/", "/b/"])?;
    node.start().await?;
    let place = |prefix| Place { prefix, owner: 0, nodes: &[0] };
    let places = [place("/a/"), place("/b/"), place("/c/")];
    let channels = [node.channel()?];
    run(&mut [node], &channels, &places, SEVERAL_STORES, SECONDS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_whose_nodes_are_killed_is_linearizable() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (root_folder, child_folder) = (TempDir::new()?, TempDir::new()?);
    let mut child = Node::new(child_folder.path(), &["--name=child"])?.with_routes(&["/t/e/"])?;
    child.start().await?;
    let mut root =
        Node::new(root_folder.path(), &["--name=root"])?.with_routes_to(&[("/t/", child.url())])?;
    let channel = root.start().await?;
    eventually("the child is attached", SETTLED_WITHIN, async || {
        for key in ["/t/d/first", "/t/e/first"] {
            let read = pb::RangeRequest { key: key.into(), ..Default::default() };
            KvClient::new(channel.clone()).range(read).await?;
        }
        Ok(())
    })
    .await?;
    let places = [
        Place { prefix: "/c/", owner: 0, nodes: &[0] },
        Place { prefix: "/t/d/", owner: 1, nodes: &[0, 1] },
        Place { prefix: "/t/e/", owner: 1, nodes: &[0] },
    ];
    let channels = [root.channel()?, child.channel()?];
    run(&mut [root, child], &channels, &places, SEVERAL_STORES, SECONDS).await
}

/// Lets clients ask, and kills nodes, for so many seconds; then looks at all that was said.
async fn run(
    nodes: &mut [Node],
    channels: &[Channel],
    places: &[Place],
    promises: Promises,
    seconds: u64,
) -> Result<()> {
    let seed = seed();
    let mut seeds = Rng::new(seed);
    let (shared, epoch) = (Arc::new(Shared::default()), Instant::now());
    let (end, (settled, settles)) = (CancellationToken::new(), watch::channel(0));
    let mut clients = JoinSet::new();
    for (node, channel) in channels.iter().enumerate() {
        let of_node = places.iter().filter(|place| place.nodes.contains(&node));
        let prefixes: Vec<_> = of_node.map(|place| place.prefix).collect();
        for _ in 0..CLIENTS_OF_NODE {
            let client = Client {
                node,
                channel: channel.clone(),
                prefixes: prefixes.clone(),
                rng: Rng::new(seeds.next()),
                shared: shared.clone(),
                epoch,
                modified: BTreeMap::new(),
                place: None,
            };
            clients.spawn(client.run(end.clone()));
        }
    }
    shared.begin(places.len());
    let mut followers = JoinSet::new();
    for (at, place) in places.iter().enumerate() {
        let channel = channels[place.owner].clone();
        followers.spawn(follow(channel, at, place.prefix, shared.clone(), settles.clone()));
    }
    let kills = kill(nodes, &mut seeds, Duration::from_secs(seconds)).await?;
    end.cancel();
    let mut calls = Vec::new();
    while let Some(done) = clients.join_next().await {
        calls.extend(done?);
    }
    // A write without an answer may land until all have heard of what came behind it.
    settled.send_replace(last(channels, places).await?);
    let mut log = Vec::new();
    while let Some(heard) = followers.join_next().await {
        log.extend(heard??);
    }
    log.sort_by_key(|change| change.revision);
    report(&calls, log.len(), kills);
    let answered = calls.iter().filter(|call| call.is_said()).count();
    ensure!(
        answered > 2_000 && log.len() > 500,
        "{answered} answers are not enough to say anything"
    );
    ensure!(nodes.is_empty() || kills > 2, "{kills} kills are not enough to say anything");
    let found = violations(&calls, &log, promises);
    for violation in found.iter().take(SHOWN) {
        println!("VIOLATION {violation}");
    }
    ensure!(found.is_empty(), "PLEACH_SEED={seed}: {} violations", found.len());
    Ok(())
}

/// Kills nodes and starts them again; how often.
async fn kill(nodes: &mut [Node], seeds: &mut Rng, lasting: Duration) -> Result<usize> {
    let begin = Instant::now();
    let mut kills = 0;
    while begin.elapsed() < lasting {
        sleep(Duration::from_millis(seeds.below(3_000) as u64)).await;
        if let Some(count) = (!nodes.is_empty()).then_some(nodes.len()) {
            let node = &mut nodes[seeds.below(count)];
            node.kill()?;
            sleep(Duration::from_millis(seeds.below(300) as u64)).await;
            node.start().await?;
            kills += 1;
        }
    }
    Ok(kills)
}

/// A revision at or above all that was done, once every node answers for all its places.
async fn last(channels: &[Channel], places: &[Place]) -> Result<i64> {
    let mut last = 0;
    for place in places {
        for node in place.nodes {
            let key = format!("{}last", place.prefix);
            let put = eventually("a write behind all others", SETTLED_WITHIN, async || {
                let put = pb::DeleteRangeRequest { key: key.clone().into(), ..Default::default() };
                let mut client = KvClient::new(channels[*node].clone());
                Ok(timeout(Duration::from_secs(10), client.delete_range(put)).await??.into_inner())
            });
            last = last.max(put.await?.header.context("no header")?.revision);
        }
    }
    Ok(last)
}

fn report(calls: &[Call], changes: usize, kills: usize) {
    let mut kinds: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    for call in calls {
        let kind = match &call.asked {
            Asked::Look(what) => (*what).to_owned(),
            asked => format!("{asked:?}").split([' ', '(']).next().unwrap_or_default().to_owned(),
        };
        let at = match call.outcome {
            Outcome::Said(..) => 0,
            Outcome::Refused => 1,
            Outcome::Unknown => 2,
        };
        kinds.entry(kind).or_default()[at] += 1;
    }
    println!("{} calls, {changes} changes, {kills} kills", calls.len());
    for (kind, [said, refused, unknown]) in kinds {
        println!("  {kind:12} {said:6} answered {refused:5} refused {unknown:4} unknown");
    }
}

fn seed() -> u64 {
    let given = env::var("PLEACH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| Entropy::system().bits() >> 1);
    println!("PLEACH_SEED={seed}");
    seed
}

//! The ledger: clients under load, a node that is killed again and again, and every acknowledged
//! write accounted for.
//!
//! `PLEACH_CRASHES=…` sets how many kills the tests on files do together, and how many of the node each
//! test on a database does, which kills the server a quarter as often; `PLEACH_SEED=…` repeats the
//! choices of a run; where in the node's work a kill falls, no seed can repeat.
#![allow(clippy::large_futures, reason = "the future of a test is on the heap once, and alone")]

#[path = "../support/mod.rs"]
mod support;

mod compaction;
mod copy;
mod index;
mod ledger;
mod power;
mod stop;
mod witness;
mod world;
mod writer;

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::Mutex;

use crate::{
    support::{databases::Kind, rng::Rng},
    world::{Stores, World},
};

const CRASHES: u64 = 200;
/// The longest that the clients write before a kill.
const LOAD_MS_MAX: usize = 120;
/// The longest that a node gets whose kill falls into its start.
const START_US_MAX: usize = 60_000;

/// Nodes of two tests at once would only share the same cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_keeps_every_acknowledged_write_through_kills() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    crashes(Stores::One, crash_count()? / 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_four_stores_keeps_every_acknowledged_write_through_kills() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    crashes(Stores::Four, crash_count()? - crash_count()? / 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_postgresql_keeps_every_acknowledged_write_through_kills_of_both() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    Box::pin(crashes(Stores::Database(Kind::Postgres), crash_count()? * 5 / 4)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_mariadb_keeps_every_acknowledged_write_through_kills_of_both() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    Box::pin(crashes(Stores::Database(Kind::MariaDb), crash_count()? * 5 / 4)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_an_etcd_keeps_every_acknowledged_write_through_kills_of_both() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    Box::pin(crashes(Stores::Etcd, crash_count()? * 5 / 4)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_over_all_kinds_keeps_every_acknowledged_write_through_kills_of_all() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    Box::pin(crashes(Stores::OfAllKinds, crash_count()? * 5 / 4)).await
}

/// Kills under load, and now and then while the node is starting.
async fn crashes(stores: Stores, count: u64) -> Result<()> {
    let seed = seed()?;
    let begin = Instant::now();
    println!("PLEACH_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut world = match stores {
        Stores::One | Stores::Four => World::new(stores, seed)?,
        Stores::Database(kind) => World::in_database(kind, seed).await?,
        Stores::Etcd => World::in_etcd(seed).await?,
        Stores::OfAllKinds => World::of_all_kinds(seed).await?,
    };
    let witnesses = world.watch()?;
    for crash in 0..count {
        // While the node is down; and once more under load, right before it is killed.
        let stranger =
            if stores == Stores::Etcd { world.strange(crash).await? } else { BTreeMap::new() };
        let is_servers_turn = !world.behind.is_empty() && crash % 5 == 4;
        let killed = match rng.below(5) {
            _ if is_servers_turn => crash_behind(&mut world, &mut rng).await,
            0 => crash_at_start(&mut world, &mut rng).await,
            _ => crash_under_load(&mut world, &mut rng, &stranger).await,
        };
        killed.with_context(|| format!("crash {crash} of {stores:?}, PLEACH_SEED={seed}"))?;
    }
    let channel = world.start().await?;
    world.finish(&channel, witnesses).await.with_context(|| format!("PLEACH_SEED={seed}"))?;
    let acknowledged = world.acknowledged();
    println!("{stores:?}: {count} kills, {acknowledged} writes, {:?}", begin.elapsed());
    ensure!(acknowledged as u64 > count, "too little load to mean anything");
    Ok(())
}

async fn crash_under_load(
    world: &mut World,
    rng: &mut Rng,
    stranger: &BTreeMap<String, String>,
) -> Result<()> {
    let channel = world.start().await?;
    if !stranger.is_empty() {
        world.has(&channel, stranger).await?;
    }
    let load = world.load(&channel);
    if !stranger.is_empty() {
        world.strange(0).await?;
    }
    // Not a wait for anything: when the kill comes is the one thing that is left to chance.
    tokio::time::sleep(Duration::from_millis(rng.below(LOAD_MS_MAX) as u64)).await;
    world.kill()?;
    world.end_of(load).await
}

/// The node survives and serves again; then it is killed, too.
async fn crash_behind(world: &mut World, rng: &mut Rng) -> Result<()> {
    let channel = world.start().await?;
    let load = world.load(&channel);
    tokio::time::sleep(Duration::from_millis(rng.below(LOAD_MS_MAX) as u64)).await;
    let at = rng.below(world.behind.len());
    world.kill_behind(&channel, at).await?;
    world.kill()?;
    world.end_of(load).await
}

async fn crash_at_start(world: &mut World, rng: &mut Rng) -> Result<()> {
    world.node.spawn()?;
    tokio::time::sleep(Duration::from_micros(rng.below(START_US_MAX) as u64)).await;
    world.kill()
}

fn crash_count() -> Result<u64> {
    env::var("PLEACH_CRASHES").map_or(Ok(CRASHES), |count| Ok(count.parse()?))
}

fn seed() -> Result<u64> {
    match env::var("PLEACH_SEED") {
        Ok(seed) => Ok(seed.parse()?),
        Err(_) => Ok(SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64),
    }
}

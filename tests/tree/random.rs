//! The random test: clients at every level of a tree in which everything fails, and their history.

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pleach::{clock::Entropy, proto::etcdserverpb as pb};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    ONE_AT_A_TIME,
    check::{Log, violations},
    client::{Connection, Reader, Watching, Writer},
    faults::{self, Counts},
    history::{History, Keys, NodeId, Outcome, Read},
    support::{
        changes::{Event, open_watch},
        process::eventually,
        rng::Rng,
    },
    world::{NAMES, PLACES, World, children, keys_below},
};

const SECONDS: u64 = 60;
/// How soon all must be well when nothing fails any more.
const WELL_WITHIN: Duration = Duration::from_secs(60);
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
/// A fault under way ends by itself.
const FAULTS_END_WITHIN: Duration = Duration::from_secs(90);
const PATIENCE: Duration = Duration::from_secs(10);
const VIOLATIONS_SHOWN: usize = 12;

type Clients = JoinSet<Result<History>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_in_which_everything_fails_keeps_all_promises_to_all_clients() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (seed, lasting) = (seed()?, lasting()?);
    println!("PLEACH_SEED={seed} PLEACH_TREE_SECONDS={}", lasting.as_secs());
    let mut world = World::start().await?;
    let ran = Box::pin(run(&mut world, seed, lasting)).await;
    let sound = world.ensure_sound();
    if ran.is_err() || sound.is_err() {
        println!("PLEACH_SEED={seed}; the logs of the nodes are in {}", world.keep_logs()?);
    }
    ran?;
    sound
}

async fn run(world: &mut World, seed: u64, lasting: Duration) -> Result<()> {
    let begin = Instant::now();
    let urls = world.urls();
    let connect = |node: NodeId| Connection::new(node, &urls[node], begin);
    let mut seeds = Rng::new(seed);
    let (writing, reading) = (CancellationToken::new(), CancellationToken::new());
    let (end, ends) = watch::channel(Vec::new());
    let mut writers = Clients::new();
    let mut others = Clients::new();
    for writer in all_writers(&connect, &mut seeds)? {
        writers.spawn(writer.run(writing.clone(), WELL_WITHIN));
    }
    for node in 0..NAMES.len() {
        others.spawn(reader(connect(node)?, &mut seeds).run(reading.clone()));
    }
    for watching in all_watchers(&connect, &mut seeds)? {
        others.spawn(watching.run(ends.clone(), SETTLED_WITHIN));
    }

    let counts = Box::pin(trouble(world, &mut seeds, lasting, &mut writers)).await?;
    println!("{counts:?}");

    // Nothing fails any more.
    let calm = Instant::now();
    writing.cancel();
    let mut history = collect(&mut writers).await.context("the last writes")?;
    reading.cancel();
    let settled = agreed(&connect, &mut history).await?;
    println!("all levels agree {:?} after the last fault", calm.elapsed());
    end.send_replace(settled.clone());
    history.absorb(collect(&mut others).await.context("readers and watchers")?);

    let log = whole_log(&connect, &settled).await.context("the logs of all stores")?;
    report(&history, &log);
    let found = violations(&history, &log);
    for violation in found.iter().take(VIOLATIONS_SHOWN) {
        println!("VIOLATION {violation}");
    }
    ensure!(found.is_empty(), "{} violations", found.len());
    faults::ensure_trouble(&counts)
}

/// A writer for each place at each node through which it is reached.
fn all_writers(
    connect: &impl Fn(NodeId) -> Result<Connection>,
    seeds: &mut Rng,
) -> Result<Vec<Writer>> {
    let mut writers = Vec::new();
    for place in PLACES {
        for node in place.nodes {
            let path = format!("{}{}/", place.path, NAMES[*node]);
            writers.push(Writer::new(connect(*node)?, path, Rng::new(seeds.next())));
        }
    }
    Ok(writers)
}

fn reader(connection: Connection, seeds: &mut Rng) -> Reader {
    let mut keys = Vec::new();
    let mut lists = vec![keys_below(connection.node)];
    for place in PLACES.iter().filter(|place| place.nodes.contains(&connection.node)) {
        lists.push(Keys::below(place.path));
        for node in place.nodes {
            keys.extend((0..4).map(|at| format!("{}{}/k{at}", place.path, NAMES[*node])));
        }
    }
    Reader::new(connection, keys, lists, Rng::new(seeds.next()))
}

/// Two that watch all below a node, and one for each place that is reached there.
fn all_watchers(
    connect: &impl Fn(NodeId) -> Result<Connection>,
    seeds: &mut Rng,
) -> Result<Vec<Watching>> {
    let mut watchers = Vec::new();
    for node in 0..NAMES.len() {
        let mut add = |keys: Keys, is_own: bool| {
            let rng = Rng::new(seeds.next());
            watchers.push(Watching::new(connect(node)?, keys, is_own, rng));
            anyhow::Ok(())
        };
        for _ in 0..2 {
            add(keys_below(node), children(node).next().is_none())?;
        }
        for place in PLACES.iter().filter(|place| place.nodes.contains(&node)) {
            add(Keys::below(place.path), place.is_own && place.nodes[0] == node)?;
        }
    }
    Ok(watchers)
}

/// All kinds of faults for a time, at whose end everything runs again. A writer that ends meanwhile has
/// found something that can't be.
async fn trouble(
    world: &mut World,
    seeds: &mut Rng,
    lasting: Duration,
    writers: &mut Clients,
) -> Result<Counts> {
    let done = CancellationToken::new();
    let mut rng = || Rng::new(seeds.next());
    let nodes = std::mem::take(&mut world.nodes);
    let links = std::mem::take(&mut world.links);
    let databases = std::mem::take(&mut world.databases);
    let etcd = std::mem::replace(&mut world.etcd, crate::support::etcd::Etcd::hasty()?);
    let all = async {
        tokio::try_join!(
            Box::pin(faults::of_nodes(nodes, rng(), done.clone())),
            Box::pin(faults::of_links(links, rng(), done.clone())),
            Box::pin(faults::of_databases(databases, etcd, rng(), done.clone())),
        )
    };
    let ended = async {
        tokio::select! {
            () = sleep(lasting) => {}
            Some(ended) = writers.join_next() => {
                ended??;
                anyhow::bail!("a writer ended");
            }
        }
        done.cancel();
        anyhow::Ok(())
    };
    let both = async { tokio::try_join!(all, ended) };
    let (((nodes, mut counts), (links, of_links), (databases, etcd, of_databases)), ()) =
        timeout(lasting + FAULTS_END_WITHIN, both).await.context("the faults do not end")??;
    (world.nodes, world.links, world.databases, world.etcd) = (nodes, links, databases, etcd);
    counts.extend(of_links);
    counts.extend(of_databases);
    let begin = Instant::now();
    for (id, node) in world.nodes.iter_mut().enumerate() {
        eventually("the node serves", WELL_WITHIN, async || {
            faults::revive(id, node)?;
            crate::call::list(&node.channel()?).await?;
            Ok(())
        })
        .await
        .with_context(|| NAMES[id])?;
    }
    println!("all nodes serve {:?} after the last fault", begin.elapsed());
    Ok(counts)
}

async fn collect(clients: &mut Clients) -> Result<History> {
    let mut history = History::default();
    while let Some(ended) = clients.join_next().await {
        history.absorb(ended??);
    }
    Ok(history)
}

/// Waits until every node lists what its children list together with its own. Returns the revision of
/// each node's list.
async fn agreed(
    connect: &impl Fn(NodeId) -> Result<Connection>,
    history: &mut History,
) -> Result<Vec<i64>> {
    let lists = eventually("all levels agree", WELL_WITHIN, async || {
        let mut lists: Vec<Read> = Vec::new();
        for (node, name) in NAMES.iter().enumerate() {
            let list = connect(node)?.read(&keys_below(node), PATIENCE).await?;
            lists.push(list.with_context(|| format!("{name} does not answer"))?);
        }
        for node in 0..NAMES.len() {
            for child in children(node) {
                let keys = keys_below(child);
                let here = lists[node].rows.iter().filter(|(key, _)| keys.contain(key));
                let is_same = here.eq(&lists[child].rows);
                let (node, child) = (NAMES[node], NAMES[child]);
                ensure!(is_same, "{node} and {child} do not agree: {lists:?}");
            }
        }
        Ok(lists)
    })
    .await?;
    let revisions = lists.iter().map(|list| list.revision).collect();
    history.reads.extend(lists);
    Ok(revisions)
}

/// The log of each store from its beginning, as its own node has it.
async fn whole_log(
    connect: &impl Fn(NodeId) -> Result<Connection>,
    settled: &[i64],
) -> Result<Log> {
    let mut log = Log::default();
    for place in PLACES {
        let owner = place.nodes[0];
        let events = log_of(connect(owner)?.channel, Keys::below(place.path), settled[owner]);
        log.add_store(Box::pin(events).await.with_context(|| place.path)?);
    }
    Ok(log)
}

async fn log_of(channel: Channel, keys: Keys, last: i64) -> Result<Vec<Event>> {
    let create = pb::WatchCreateRequest {
        key: keys.from.into(),
        range_end: keys.end.into(),
        start_revision: 1,
        prev_kv: true,
        progress_notify: true,
        ..Default::default()
    };
    let (_requests, mut responses) = open_watch(channel, create).await?;
    let mut events = Vec::new();
    loop {
        let response = timeout(SETTLED_WITHIN, responses.message()).await??;
        let response = response.context("the stream ended")?;
        ensure!(!response.canceled, "{response:?}");
        for event in &response.events {
            events.push(Event::try_from(event)?);
        }
        let revision = response.header.context("no header")?.revision;
        // A header with events is not yet a promise.
        if response.events.is_empty() && !response.created && revision >= last {
            return Ok(events);
        }
    }
}

fn report(history: &History, log: &Log) {
    let count = |wanted: fn(&Outcome) -> bool| {
        history.writes.iter().filter(|write| wanted(&write.outcome)).count()
    };
    println!(
        "{} commits; writes: {} acknowledged, {} unknown, {} failed, {} refused",
        log.commits().count(),
        count(|outcome| matches!(outcome, Outcome::Applied(_))),
        count(|outcome| matches!(outcome, Outcome::Unknown)),
        count(|outcome| matches!(outcome, Outcome::Failed)),
        count(|outcome| matches!(outcome, Outcome::Refused(_))),
    );
    let lists = history.reads.iter().filter(|read| !read.keys.end.is_empty()).count();
    println!("{} reads, {lists} of them lists", history.reads.len());
    let generations = history.watchers.iter().flat_map(|watcher| &watcher.generations);
    let lives = generations.clone().map(|generation| generation.lives.len()).sum::<usize>();
    let compacted = generations.clone().filter(|generation| generation.is_compacted).count();
    let told = generations.flat_map(|generation| &generation.lives);
    let events = told.flat_map(|life| &life.told).map(|told| told.events.len()).sum::<usize>();
    println!(
        "{} watchers in {lives} lives, ended as compacted {compacted} times, told {events} events",
        history.watchers.len()
    );
}

fn seed() -> Result<u64> {
    match env::var("PLEACH_SEED") {
        Ok(seed) => seed.parse().context("PLEACH_SEED is no number"),
        Err(_) => Ok(Entropy::system().bits() >> 1),
    }
}

fn lasting() -> Result<Duration> {
    match env::var("PLEACH_TREE_SECONDS") {
        Ok(seconds) => {
            Ok(Duration::from_secs(seconds.parse().context("PLEACH_TREE_SECONDS is no number")?))
        }
        Err(_) => Ok(Duration::from_secs(SECONDS)),
    }
}

//! What goes wrong in the random test: nodes, links and databases, each by a seed of its own.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    history::NodeId,
    support::{
        databases::DatabaseServer,
        etcd::Etcd,
        node::Node,
        proxy::{Mode, Proxy, Way},
        rng::Rng,
    },
    world::{IN_DATABASES, NAMES},
};

/// Shorter and longer than the grace, and than what it takes to notice.
const LASTING_MS: [u64; 6] = [50, 300, 1_000, 2_500, 4_000, 7_000];
const PAUSE_MS_MAX: usize = 3_000;
const DATABASE_PAUSE_MS_MAX: usize = 15_000;

/// How often each thing went wrong.
pub(crate) type Counts = BTreeMap<&'static str, usize>;

/// Kills nodes, and stops them for a while. They run when this returns.
pub(crate) async fn of_nodes(
    mut nodes: Vec<Node>,
    mut rng: Rng,
    done: CancellationToken,
) -> Result<(Vec<Node>, Counts)> {
    let mut counts = Counts::new();
    while paused(&mut rng, PAUSE_MS_MAX, &done).await {
        for (id, node) in nodes.iter_mut().enumerate() {
            if revive(id, node)? {
                *counts.entry("starts without a database").or_default() += 1;
            }
        }
        let id = rng.below(nodes.len());
        let node = &mut nodes[id];
        if rng.chance(50) {
            node.kill()?;
            lasting(&mut rng).await;
            node.spawn()?;
            *counts.entry("kills of nodes").or_default() += 1;
        } else {
            node.signal("STOP")?;
            lasting(&mut rng).await;
            node.signal("CONT")?;
            *counts.entry("stops of nodes").or_default() += 1;
        }
    }
    Ok((nodes, counts))
}

/// Starts a node again that did not start because its database was away. No other ends by itself.
pub(crate) fn revive(id: NodeId, node: &mut Node) -> Result<bool> {
    let Some(status) = node.has_ended()? else { return Ok(false) };
    if !IN_DATABASES.contains(&id) {
        bail!("{} ended by itself, {status}:\n{}", NAMES[id], node.log_tail());
    }
    node.spawn()?;
    Ok(true)
}

/// Breaks links. They are whole when this returns.
pub(crate) async fn of_links(
    links: Vec<Proxy>,
    mut rng: Rng,
    done: CancellationToken,
) -> Result<(Vec<Proxy>, Counts)> {
    let mut counts = Counts::new();
    while paused(&mut rng, PAUSE_MS_MAX, &done).await {
        let link = &links[rng.below(links.len())];
        let way = if rng.chance(50) { Way::Requests } else { Way::Answers };
        let (name, mode) = match rng.below(6) {
            0 => ("cuts of links", None),
            1 => ("stalls of links", Some(Mode::Stall)),
            2 => ("stalls of links one way", Some(Mode::StallOf(way))),
            3 => {
                let delay = Duration::from_millis(10 + rng.below(300) as u64);
                ("delays of links", Some(Mode::Delay(delay)))
            }
            4 => {
                link.truncate(way, rng.below(2_000));
                ("truncations of links", None)
            }
            _ => ("refusals of links", Some(Mode::Refuse)),
        };
        *counts.entry(name).or_default() += 1;
        if name == "truncations of links" {
            continue;
        }
        if let Some(mode) = mode {
            link.set(mode).await?;
        }
        if matches!(mode, None | Some(Mode::Refuse)) || rng.chance(30) {
            link.cut().await;
        }
        if mode.is_some() {
            lasting(&mut rng).await;
            link.set(Mode::Pass).await?;
        }
    }
    Ok((links, counts))
}

/// Kills databases, and starts them again. They run when this returns.
pub(crate) async fn of_databases(
    mut databases: Vec<DatabaseServer>,
    mut etcd: Etcd,
    mut rng: Rng,
    done: CancellationToken,
) -> Result<(Vec<DatabaseServer>, Etcd, Counts)> {
    let mut counts = Counts::new();
    while paused(&mut rng, DATABASE_PAUSE_MS_MAX, &done).await {
        let at = rng.below(databases.len() + 1);
        match databases.get_mut(at) {
            Some(server) => {
                server.kill().await?;
                lasting(&mut rng).await;
                server.start().await.context("a database")?;
            }
            None => {
                etcd.kill().await?;
                lasting(&mut rng).await;
                etcd.start().await.context("the etcd")?;
            }
        }
        *counts.entry("kills of databases").or_default() += 1;
    }
    Ok((databases, etcd, counts))
}

async fn lasting(rng: &mut Rng) {
    sleep(Duration::from_millis(rng.pick(&LASTING_MS))).await;
}

/// `false` where there are to be no more faults.
async fn paused(rng: &mut Rng, most_ms: usize, done: &CancellationToken) -> bool {
    let pause = Duration::from_millis(rng.below(most_ms) as u64);
    done.run_until_cancelled(sleep(pause)).await.is_some()
}

/// What a run must have seen to be worth anything.
pub(crate) fn ensure_trouble(counts: &Counts) -> Result<()> {
    for name in ["kills of nodes", "stops of nodes", "kills of databases"] {
        ensure!(counts.contains_key(name), "no {name} at all: {counts:?}");
    }
    Ok(())
}

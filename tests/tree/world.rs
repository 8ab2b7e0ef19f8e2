//! The tree of the random test: every kind of store, at three levels, all links behind proxies.
//!
//! ```text
//!   root ──────┬─ region-a ──┬─ a1          SQLite
//!    SQLite    │  PostgreSQL └─ a2          MariaDB
//!              └─ region-b ──┬─ b1          SQLite
//!                 SQLite     └─ an etcd
//! ```

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{
    family::node,
    history::{Keys, NodeId},
    route::{Route, topology},
    support::{
        databases::{DatabaseServer, Kind},
        etcd::Etcd,
        node::Node,
        process::eventually,
        proxy::Proxy,
    },
};

pub(crate) const NAMES: [&str; 6] = ["root", "region-a", "region-b", "a1", "a2", "b1"];
pub(crate) const ROOT: NodeId = 0;
const REGION_A: NodeId = 1;
const REGION_B: NodeId = 2;
const A1: NodeId = 3;
const A2: NodeId = 4;
const B1: NodeId = 5;

/// Nodes whose default store is in a database: without it they do not start.
pub(crate) const IN_DATABASES: [NodeId; 2] = [REGION_A, A2];

/// The links, from parent to child.
const LINKS: [(NodeId, NodeId); 5] =
    [(ROOT, REGION_A), (ROOT, REGION_B), (REGION_A, A1), (REGION_A, A2), (REGION_B, B1)];

const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A store by the keys in it, and the nodes through which it is reached, the one that has it first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) path: &'static str,
    pub(crate) nodes: &'static [NodeId],
    /// Whether nobody but its node writes it.
    pub(crate) is_own: bool,
}

pub(crate) const PLACES: [Place; 7] = [
    Place { path: "/r/", nodes: &[ROOT], is_own: true },
    Place { path: "/a/0/", nodes: &[REGION_A, ROOT], is_own: true },
    Place { path: "/a/1/", nodes: &[A1, REGION_A, ROOT], is_own: true },
    Place { path: "/a/2/", nodes: &[A2, REGION_A, ROOT], is_own: true },
    Place { path: "/b/0/", nodes: &[REGION_B, ROOT], is_own: true },
    Place { path: "/b/1/", nodes: &[B1, REGION_B, ROOT], is_own: true },
    Place { path: "/b/e/", nodes: &[REGION_B, ROOT], is_own: false },
];

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Vec<Proxy>,
    pub(crate) databases: Vec<DatabaseServer>,
    pub(crate) etcd: Etcd,
    _folder: TempDir,
}

/// All keys below a node.
pub(crate) fn keys_below(node: NodeId) -> Keys {
    Keys::below(match node {
        ROOT => "/",
        REGION_A => "/a/",
        REGION_B => "/b/",
        A1 => "/a/1/",
        A2 => "/a/2/",
        _ => "/b/1/",
    })
}

/// The children of a node.
pub(crate) fn children(node: NodeId) -> impl Iterator<Item = NodeId> {
    LINKS.into_iter().filter(move |(parent, _)| *parent == node).map(|(_, child)| child)
}

// === impl World ===

impl World {
    /// The whole tree, which serves when this returns.
    pub(crate) async fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("pleach-tree-")?;
        let mut databases = Vec::new();
        for kind in [Kind::Postgres, Kind::MariaDb] {
            let mut server = DatabaseServer::new(kind)?.without_sync();
            server.start().await?;
            server.create_database("tree").await?;
            databases.push(server);
        }
        let mut etcd = Etcd::hasty()?;
        etcd.start().await?;
        let mut nodes = Vec::new();
        for name in NAMES {
            let database = match name {
                "region-a" => Some(databases[0].url("tree")),
                "a2" => Some(databases[1].url("tree")),
                _ => None,
            };
            let endpoint = database.map(|url| format!("--endpoint={url}"));
            let flags: Vec<&str> = endpoint.as_deref().into_iter().collect();
            nodes.push(node(folder.path(), name, &flags)?);
        }
        let mut links = Vec::new();
        for (_, child) in LINKS {
            links.push(Proxy::start(([127, 0, 0, 1], nodes[child].port()).into()).await?);
        }
        for parent in [ROOT, REGION_A, REGION_B] {
            let linked = LINKS.iter().zip(&links).filter(|((from, _), _)| *from == parent);
            let mut routes: Vec<Route> = linked
                .map(|((_, child), link)| {
                    let path = keys_below(*child).from;
                    let endpoint = format!("http://{}", link.address());
                    Route::new(NAMES[*child], path.trim_end_matches('/'), endpoint)
                })
                .collect();
            if parent == REGION_B {
                routes.push(Route::new("etcd", "/b/e", etcd.url()));
            }
            nodes[parent].set_topology(&topology(&routes))?;
        }
        for node in nodes.iter_mut().rev() {
            node.start().await?;
        }
        let world = Self { nodes, links, databases, etcd, _folder: folder };
        eventually("the tree is whole", STARTS_WITHIN, async || {
            let channel = world.nodes[ROOT].channel()?;
            Ok(crate::call::list(&channel).await.map(drop)?)
        })
        .await?;
        Ok(world)
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Node::url).collect()
    }

    /// No node may have panicked. The logs are kept where the test says.
    pub(crate) fn ensure_sound(&self) -> Result<()> {
        for (node, name) in self.nodes.iter().zip(NAMES) {
            let log = node.log();
            let at = log.find("panicked");
            let said = at.and_then(|at| log.get(at.saturating_sub(200)..(at + 800).min(log.len())));
            ensure!(at.is_none(), "{name} panicked: {}", said.unwrap_or_default());
        }
        Ok(())
    }

    /// Keeps the logs of all nodes, to be read when the test has failed.
    pub(crate) fn keep_logs(&self) -> Result<String> {
        let folder = TempDir::with_prefix("pleach-tree-logs-")?.keep();
        for (node, name) in self.nodes.iter().zip(NAMES) {
            fs::write(folder.join(name), node.log()).context("a log can't be kept")?;
        }
        Ok(folder.display().to_string())
    }
}

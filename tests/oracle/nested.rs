//! A node over routers of routers, which no topology file can say. So it runs in this process.
//!
//! ```text
//!   root ─┬ /n ──> ─┬ /n/m ──> ─┬ /n/m/c ──> c (file)
//!         │         │           └ the rest ──> d (memory)
//!         │         └ the rest ──> b (memory)
//!         └ the rest ──> ─┬ /a ──> a (file)
//!                         └ the rest ──> main (file)
//! ```

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Result;
use pleach::{
    clock::{Clock, Entropy, Lane, REVISION_MAX, SharedClock},
    node::{Node, Options},
    route::{Route, Router, rule::Rule},
    server::{Limits, Services},
    store::{RecordStore, Store, memory::Memory, records::Records, sql::sqlite},
    tree::{membership::Membership, parent::TreeOptions},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What `pleach serve` takes where no flag is given, which is what etcd takes.
const LIMITS: Limits =
    Limits { request_bytes_max: 1_572_864, txn_ops_max: 128, ready_requires_all: false };
const OPTIONS: Options =
    Options { progress_every: Duration::from_secs(600), quota_bytes: 0, splits_deletes: false };

/// A running node. It ends when this value goes.
#[derive(Debug)]
pub struct NestedNode {
    /// Ends the connections, which have tasks of their own.
    _stopping: DropGuard,
    _tasks: JoinSet<()>,
}

// === impl NestedNode ===

impl NestedNode {
    /// Starts a node that serves clients at `address`.
    pub async fn start(data: &Path, address: &str, url: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let (root, main) = open(data, &clock).await?;
        let records = Records::open(main).await?;
        let (entropy, tree) = (Entropy::system(), TreeOptions::default());
        let membership = Membership::load(records, clock, entropy, "nested", tree).await?;
        let node = Node::start(root, membership, OPTIONS, &[]).await?;
        let stopping = CancellationToken::new();
        let urls = vec![url.to_owned()];
        let face = Services::new(node.clone(), LIMITS, "nested".to_owned(), urls, stopping.clone());
        let stopped = stopping.clone().cancelled_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(node.clone().expire_leases());
        tasks.spawn(node.reserve_revisions());
        tasks.spawn(async move {
            face.serve(listener, None, stopped).await.expect("the listener is a good one");
        });
        Ok(Self { _stopping: stopping.drop_guard(), _tasks: tasks })
    }
}

/// No router is surveyed, so reads that span stores look at each key, as `pleach serve` does only
/// until it has surveyed its own.
async fn open(data: &Path, clock: &SharedClock) -> Result<(Arc<Router>, Arc<dyn RecordStore>)> {
    let file = async |name: &str| {
        let path = data.join(name).with_extension("db");
        sqlite::open(name, &path, "the oracle", clock.clone()).await
    };
    let memory = |name: &str| Memory::new(name, clock.clone());
    let of_m = router("/n/m/c", file("c").await?, memory("d"))?;
    let of_n = router("/n/m", of_m, memory("b"))?;
    let main = file("main").await?;
    let of_rest = router("/a", file("a").await?, main.clone())?;
    Ok((router("/n", of_n, of_rest)?, main))
}

fn router(prefix: &str, store: Arc<dyn Store>, rest: Arc<dyn Store>) -> Result<Arc<Router>> {
    let route = Route { rule: Rule::prefix(prefix)?, store, has_other_writers: true };
    Ok(Router::new(vec![route], rest))
}

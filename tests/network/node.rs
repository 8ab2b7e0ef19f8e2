//! A node on a host of the simulated network, put together as `pleach serve` does it.

use std::{sync::Arc, time::Duration};

use futures::future::try_join_all;
use pleach::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    node::{Node, Options},
    route::{Route, Router, rule::Rule},
    server::{Face, Limits},
    store::{
        Store,
        late::{self, Opened, Opener, Refusal},
        membership::Membership,
        memory::{Kept, Memory},
        node::{Answerer, Connections, NodeStore, Terms, probe},
        presence::Presence,
    },
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    fault::{self, Fault},
    history::SharedHistory,
    socket,
    tree::{NODES, NodeId, children},
};

/// How long a start waits for a child to be attached.
const CHILD_WAIT_MAX: Duration = Duration::from_secs(3);

const PROGRESS_EVERY: Duration = Duration::from_millis(700);

/// What a life of a node begins with.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) node: NodeId,
    pub(crate) kept: Kept,
    /// How long merged watches wait for a child.
    pub(crate) grace: Duration,
    pub(crate) fault: Option<Fault>,
    pub(crate) history: SharedHistory,
}

// === impl Start ===

impl Start {
    /// Runs the node until its host crashes.
    pub(crate) async fn run(self) -> turmoil::Result {
        let incoming = socket::incoming().await?;
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let main = Memory::reopen("main", clock.clone(), self.kept.clone())?;
        let main = fault::store(self.fault, main, &clock);
        let name = NODES[self.node].name;
        let membership = Membership::recall(main.clone(), clock.clone(), name).await?;
        fault::lanes(self.fault, &membership);
        let opening = children(self.node).map(|child| self.open(child, &clock, &membership));
        let opened: Vec<(NodeId, Opened)> = try_join_all(opening).await?;
        let late: Vec<Arc<str>> = opened
            .iter()
            .filter(|(_, opened)| opened.is_late)
            .map(|(_, opened)| opened.store.name().clone())
            .collect();
        let mut routes = Vec::new();
        for (child, opened) in opened {
            let store = fault::store(self.fault, opened.store, &clock);
            if let Some(presence) = store.presence() {
                tokio::task::spawn_local(count(presence.clone(), self.history.clone()));
                tokio::spawn(presence.clone().keep_watch(store.clone(), self.grace));
            }
            routes.push(Route { rule: Rule::prefix(NODES[child].path)?, store });
        }
        let root: Arc<dyn Store> = if routes.is_empty() { main } else { Router::new(routes, main) };
        let options = Options { progress_every: PROGRESS_EVERY, quota_bytes: 0 };
        let node = Node::start_in(root, membership, options, &late).await?;
        tokio::spawn(node.clone().expire_leases());
        tokio::spawn(node.clone().reserve_revisions());
        let limits = Limits { request_bytes_max: 1 << 20, txn_ops_max: 128 };
        let stopping = CancellationToken::new();
        let face = Face::new(node, limits, name.to_owned(), Vec::new(), stopping);
        let routes = fault::face(self.fault, face.routes().await);
        Server::builder().add_routes(routes).serve_with_incoming(incoming).await?;
        Ok(())
    }

    async fn open(
        &self,
        child: NodeId,
        clock: &SharedClock,
        membership: &Arc<Membership>,
    ) -> Result<(NodeId, Opened), Box<dyn std::error::Error>> {
        let name = NODES[child].name;
        let presence = Presence::recall(name, membership.store().clone(), clock.clone()).await?;
        let opener = opener(name, membership.clone(), presence.clone());
        let opened = late::open(name, clock, Some(presence), opener).await;
        Ok((child, opened.map_err(|error| error as Box<dyn std::error::Error>)?))
    }
}

fn opener(name: &'static str, membership: Arc<Membership>, presence: Arc<Presence>) -> Opener {
    Box::new(move || {
        let (membership, presence) = (membership.clone(), presence.clone());
        Box::pin(async move {
            let connect = || socket::channel(name);
            let connections = Connections { calls: connect(), live: connect(), past: connect() };
            let refused = |reason: String| Refusal { reason: reason.into(), may_pass: true };
            match probe(&connections).await.map_err(refused)? {
                Answerer::Node => {}
                Answerer::Other => return Err(refused("it is no node".to_owned())),
            }
            let store =
                NodeStore::open(name, connections, membership, presence.clone(), Terms::default());
            let _ = timeout(CHILD_WAIT_MAX, presence.there()).await;
            Ok(store as Arc<dyn Store>)
        })
    })
}

/// Counts how often a child is detached, and comes back with late changes.
async fn count(presence: Arc<Presence>, history: SharedHistory) {
    let mut changes = presence.changes();
    let (mut was_detached, mut gap) = (presence.left_at().is_some(), presence.gaps_above(0));
    while changes.changed().await.is_ok() {
        let seen = &mut history.borrow_mut().seen;
        let is_detached = presence.left_at().is_some();
        seen.detached += u64::from(is_detached && !was_detached);
        was_detached = is_detached;
        let newest = presence.gaps_above(0);
        seen.gaps += u64::from(newest != gap && newest != (0, 0));
        gap = newest;
    }
}

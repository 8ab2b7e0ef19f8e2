//! A node on a host of the simulated network, put together as `pleach serve` does it.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use pleach::{
    assembly::{self, Context, Opens, Plan, RoutePlan, Settings, StorePlan},
    clock::{Entropy, Gap, SharedClock},
    node::Options,
    route::rule::Rule,
    server::{Limits, Services},
    store::{
        RecordStore, Store,
        attach::AttachState,
        memory::{Kept, Memory},
        slot::{Occupant, Opener, Refusal},
    },
    topology::{Endpoint, Topology},
    tree::{
        child::{Answerer, Connections, NodeStore, Terms, probe},
        parent::TreeOptions,
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
    /// Where the random numbers of all lives come from.
    pub(crate) entropy: Entropy,
}

/// Stores in memory, and children over the simulated network.
#[derive(Clone, Debug)]
struct Simulated {
    kept: Kept,
    fault: Option<Fault>,
}

// === impl Start ===

impl Start {
    /// Runs the node until its host crashes.
    pub(crate) async fn run(self) -> turmoil::Result {
        let incoming = socket::incoming().await?;
        let name = NODES[self.node].name;
        let opens = Simulated { kept: self.kept.clone(), fault: self.fault };
        let settings = Settings {
            name: name.to_owned(),
            tree: TreeOptions { is_local: true, ..TreeOptions::default() },
            node: Options { progress_every: PROGRESS_EVERY, quota_bytes: 0, splits_deletes: false },
            grace: self.grace,
            slow_after: Duration::from_secs(1),
            adopt: Vec::new(),
            entropy: self.entropy.clone(),
        };
        let running = assembly::start(self.plan()?, &opens, settings).await?;
        let node = running.node().clone();
        fault::lanes(self.fault, node.membership());
        for attach_state in node.root().attach_states() {
            tokio::task::spawn_local(count(attach_state.clone(), self.history.clone()));
        }
        let limits =
            Limits { request_bytes_max: 1 << 20, txn_ops_max: 128, ready_requires_all: false };
        let stopping = CancellationToken::new();
        let services = Services::new(node, limits, name.to_owned(), Vec::new(), stopping);
        let routes = fault::face(self.fault, services.routes().await);
        Server::builder().add_routes(routes).serve_with_incoming(incoming).await?;
        Ok(())
    }

    fn plan(&self) -> Result<Plan, Box<dyn std::error::Error>> {
        let mut plan = Plan::new(Topology::default(), None, Path::new(""))?;
        for child in children(self.node) {
            let name = NODES[child].name.to_owned();
            let endpoint = Endpoint::parse(&format!("http://{name}:{}", socket::PORT))?;
            let store = StorePlan { name, endpoint, ..plan.default.clone() };
            plan.routes.push(RoutePlan { rule: Rule::prefix(NODES[child].path)?, store });
        }
        Ok(plan)
    }
}

#[async_trait]
impl Opens for Simulated {
    async fn open_default(
        &self,
        plan: &StorePlan,
        clock: &SharedClock,
    ) -> Result<Arc<dyn RecordStore>, Refusal> {
        let opened = Memory::reopen(&plan.name, clock.clone(), self.kept.clone());
        let refused = |error| Refusal { reason: Box::new(error), may_pass: false };
        Ok(fault::records(self.fault, opened.map_err(refused)?, clock))
    }

    fn opener(&self, route: &RoutePlan, context: Context) -> Opener {
        let (name, fault) = (route.store.name.clone(), self.fault);
        Box::new(move |_| {
            let (name, context) = (name.clone(), context.clone());
            Box::pin(async move {
                let connect = || socket::channel(&name);
                let connections =
                    Connections { calls: connect(), live: connect(), past: connect() };
                let refused = |reason: String| Refusal { reason: reason.into(), may_pass: true };
                match probe(&connections).await.map_err(refused)? {
                    Answerer::Node => {}
                    Answerer::Other => return Err(refused("it is no node".to_owned())),
                }
                let Context { clock, membership, attach_state, .. } = context;
                let attach_state = attach_state.expect("a child may be away");
                let (state, terms) = (attach_state.clone(), Terms::default());
                let store = NodeStore::open(&name, connections, membership, state, terms);
                let _ = timeout(CHILD_WAIT_MAX, attach_state.reachable()).await;
                Ok(Occupant::child(fault::store(fault, store, &clock)))
            })
        })
    }
}

/// Counts how often a child is detached, and comes back with late changes.
async fn count(attach_state: Arc<AttachState>, history: SharedHistory) {
    let mut changes = attach_state.changes();
    let (mut was_detached, mut gap) =
        (attach_state.detached_at().is_some(), attach_state.gaps_above(0));
    while changes.changed().await.is_ok() {
        let seen = &mut history.borrow_mut().seen;
        let is_detached = attach_state.detached_at().is_some();
        seen.detached += u64::from(is_detached && !was_detached);
        was_detached = is_detached;
        let newest = attach_state.gaps_above(0);
        seen.gaps += u64::from(newest != gap && newest != Gap { after: 0, floor: 0 });
        gap = newest;
    }
}

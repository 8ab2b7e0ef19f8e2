//! Stores that are nodes: served here over a socket, and attached as children.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use pleach::{
    clock::{Entropy, Lane, LaneBlock, SharedClock},
    node::{Node, Options},
    route::{Route, Router},
    server::{Limits, Services},
    store::{
        Described, RecordStore, Store, attach::AttachState, memory::Memory, records::Records,
        slot::SlotRecord,
    },
    tree::{
        child::{Connections, NodeStore, Terms},
        membership::Membership,
        parent::TreeOptions,
    },
    wire::blocks_of,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    follow::soon,
    world::{fresh_clock, shirts},
};

/// How numbers are allocated in a tree of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counting {
    /// By one in all nodes, as in a lone store. Good while one writes at a time.
    ByOne,
    /// Each node in its own lane, as it is.
    InLanes,
}

/// A node's place in a tree. What it keeps lies apart from the stores of the suite.
pub(crate) async fn membership(name: &str, clock: &SharedClock) -> Arc<Membership> {
    member(Memory::new("kept", clock.clone()), clock, name, TreeOptions::default()).await
}

/// The same, of what is kept in `store`. Anybody may be its parent, unless `options` say who.
pub(crate) async fn member(
    store: Arc<dyn RecordStore>,
    clock: &SharedClock,
    name: &str,
    options: TreeOptions,
) -> Arc<Membership> {
    let records = Records::open(store).await.expect("it remembers");
    let options = TreeOptions { is_local: options.parent.is_none(), ..options };
    let loaded = Membership::load(records, clock.clone(), Entropy::system(), name, options).await;
    loaded.expect("it remembers")
}

/// A child of `parent`, which has a child itself where `depth` is more than one. Adds its clocks.
pub(crate) async fn open_child(
    name: &str,
    parent: &Arc<Membership>,
    depth: usize,
    counting: Counting,
    clocks: &mut Vec<SharedClock>,
) -> Arc<dyn Store> {
    let clock = fresh_clock();
    clocks.push(clock.clone());
    let own = Memory::new("own", clock.clone());
    let member = membership(name, &clock).await;
    let mut root = Router::single(own.clone());
    if depth > 1 {
        let below = Box::pin(open_child("below", &member, depth - 1, counting, clocks)).await;
        root =
            Router::new(vec![Route { rule: shirts(), store: below, has_other_writers: true }], own);
    }
    let address = serve(root, member).await;
    let terms = match counting {
        Counting::ByOne => Terms { ahead: 0, ..Terms::default() },
        Counting::InLanes => Terms::default(),
    };
    attach(name, address, parent, terms).await
}

/// A node over `root`, where it can be reached.
pub(crate) async fn serve(root: Arc<Router>, member: Arc<Membership>) -> SocketAddr {
    let name = member.me().name.clone();
    let options =
        Options { progress_every: Duration::from_secs(600), quota_bytes: 0, splits_deletes: false };
    let node = Node::start(root, member, options, &[]).await.expect("memory answers");
    tokio::spawn(node.clone().reserve_revisions());
    let limits = Limits { request_bytes_max: 2 << 20, txn_ops_max: 128, ready_requires_all: false };
    let stopping = CancellationToken::new();
    let face = Services::new(node, limits, name, Vec::new(), stopping);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(face.serve(listener, None, std::future::pending()));
    address
}

/// The node at `address` as a child of `parent`, which is there when this returns.
pub(crate) async fn attach(
    name: &str,
    address: SocketAddr,
    parent: &Arc<Membership>,
    terms: Terms,
) -> Arc<dyn Store> {
    let store = connect(name, address, parent, terms).await;
    let attach_state = &store.attach_states()[0];
    soon("attaching a child", attach_state.reachable()).await;
    store
}

/// The same, which may never be there.
pub(crate) async fn connect(
    name: &str,
    address: SocketAddr,
    parent: &Arc<Membership>,
    terms: Terms,
) -> Arc<dyn Store> {
    let url = format!("http://{address}");
    let address = crate::world::address(url.clone());
    let connections = Connections::new(&url, &address).expect("the address is good");
    let record = SlotRecord::open(parent.records(), name, parent.entropy().id()).await;
    let record = Arc::new(record.expect("it remembers"));
    let attach_state = AttachState::restored(name, record, parent.clock().clone());
    NodeStore::open(name, connections, parent.clone(), attach_state, terms)
}

/// Waits until every node below has the lanes of its parent, and has them all count as they shall.
pub(crate) async fn settle(stores: &[Arc<dyn Store>], counting: Counting, clocks: &[SharedClock]) {
    let settled = async {
        for store in stores {
            while !is_settled(&store.describe().await, None) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    soon("settling a tree", settled).await;
    if counting == Counting::ByOne {
        clocks.iter().for_each(|clock| clock.set_lane(Lane::ALL));
    }
}

/// Whether all that is described is attached, with lanes out of those above.
fn is_settled(routes: &[Described], above: Option<LaneBlock>) -> bool {
    routes.iter().all(|route| {
        let Some(node) = &route.node else { return route.trouble.is_empty() };
        let lanes = blocks_of(&node.lanes).map(|blocks| blocks[0]);
        let is_inside = lanes.is_some_and(|lanes| above.is_none_or(|above| above.covers(lanes)));
        route.trouble.is_empty() && is_inside && is_settled(&node.routes, lanes)
    })
}

//! Whom a node attaches as its child, whom it refuses, and what it makes of one that is not what it was.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use pleach::{
    clock::SharedClock,
    model::{KeyRange, Revision, StoreError},
    proto::{
        mvccpb,
        tree::{self as pb, tree_client::TreeClient, tree_server::Tree, tree_server::TreeServer},
    },
    route::Router,
    select::Selector,
    store::{Query, Store, memory::Memory},
    tree::{
        call::Call,
        child::{PROTOCOL, Terms},
        membership::Membership,
        parent::TreeOptions,
    },
};
use tokio::{net::TcpListener, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, metadata::MetadataMap, transport::Server};

use crate::{
    children::{attach, connect, member, membership, serve},
    follow::{Follower, soon},
    support::proxy::{Mode, Proxy},
    words::{all_of, bytes, number, object, put_op},
    world::fresh_clock,
};

/// A node, a child, and the link between them.
struct Pair {
    clock: SharedClock,
    store: Arc<dyn Store>,
    link: Proxy,
    /// What the child keeps of itself, and its clock.
    child: (Arc<Memory>, SharedClock),
}

impl Pair {
    async fn start() -> Self {
        let child_clock = fresh_clock();
        let kept = Memory::new("kept", child_clock.clone());
        let own = Memory::new("own", child_clock.clone());
        let address = serve(Router::single(own), recalled(&kept, &child_clock).await).await;
        let link = Proxy::start(address).await.expect("there is a port");
        let clock = fresh_clock();
        let parent = membership("parent", &clock).await;
        let store = attach("far", link.address(), &parent, Terms::default()).await;
        Self { clock, store, link, child: (kept, child_clock) }
    }

    /// Another process answers instead of the child, which has nothing of what that had.
    async fn replace(&self, member: Arc<Membership>) {
        let own = Memory::new("own", member.clock().clone());
        self.link.redirect(serve(Router::single(own), member).await);
        self.link.set(Mode::Refuse).await.expect("the proxy refuses");
        self.link.cut().await;
        let attach_state = self.store.attach_states()[0].clone();
        let mut changes = attach_state.changes();
        soon("the loss", async {
            while attach_state.is_reachable() {
                changes.changed().await.expect("the sender is here");
            }
        })
        .await;
        self.link.set(Mode::Pass).await.expect("the proxy passes");
        soon("attaching it again", attach_state.reachable()).await;
    }

    /// The child is started anew, in another process with the same data.
    async fn replace_process(&self, member: Arc<Membership>) {
        let own = Memory::new("own", member.clock().clone());
        self.link.redirect(serve(Router::single(own), member).await);
        self.link.cut().await;
    }

    /// All who follow are ended, those who come back from before too, and the rest goes on.
    async fn starts_afresh(&self, log: &mut Follower, told: Revision) {
        let ended = loop {
            if let Err(error) = log.next().await {
                break error;
            }
        };
        assert!(matches!(ended, StoreError::Compacted { .. }), "{ended:?}");
        let resumed = self.store.check_resume(told);
        assert!(matches!(resumed, Err(StoreError::Compacted { .. })), "{resumed:?}");
        let next = put(&*self.store).await;
        assert!(next > told, "{next} is not above {told}");
        let mut afresh = Follower::start(&*self.store, self.clock.shown() - 1);
        afresh.reach(next).await.expect("the child is there");
    }
}

async fn recalled(kept: &Arc<Memory>, clock: &SharedClock) -> Arc<Membership> {
    member(kept.clone(), clock, "far", TreeOptions::default()).await
}

async fn put(store: &dyn Store) -> Revision {
    let txn = all_of(vec![put_op(bytes("key"), bytes("value"), 0)]);
    store.apply(txn, Vec::new()).await.expect("it is there").revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_has_gone_back_is_followed_afresh() {
    let pair = Pair::start().await;
    let mut log = Follower::start(&*pair.store, pair.clock.shown());
    let told = put(&*pair.store).await;
    log.reach(told).await.expect("the child is there");
    let clock = fresh_clock();
    pair.replace(recalled(&pair.child.0, &clock).await).await;
    pair.starts_afresh(&mut log, told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_child_at_the_address_is_followed_afresh() {
    let pair = Pair::start().await;
    let mut log = Follower::start(&*pair.store, pair.clock.shown());
    let told = put(&*pair.store).await;
    log.reach(told).await.expect("the child is there");
    pair.replace(membership("another", &fresh_clock()).await).await;
    pair.starts_afresh(&mut log, told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_forgot_what_it_had_promised_counts_on_above_that() {
    let pair = Pair::start().await;
    let mut log = Follower::start(&*pair.store, pair.clock.shown());
    let promised =
        pair.store.advance_closed(pair.clock.shown(), 0).await.expect("the child is there");
    log.reach(promised).await.expect("the child is there");
    pair.replace(recalled(&pair.child.0, &fresh_clock()).await).await;
    let next = put(&*pair.store).await;
    assert!(next > promised, "{next} is not above {promised}, which was closed");
    log.reach(next).await.expect("the child is there");
    assert_eq!(log.commits.last().map(|commit| commit.revision), Some(next));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_parent_is_refused_by_name_and_the_first_goes_on() {
    let pair = Pair::start().await;
    let second = membership("second", &fresh_clock()).await;
    let store = connect("far", pair.link.address(), &second, Terms::default()).await;
    let refused = trouble(&*store).await;
    assert!(refused.contains("`far`") && refused.contains("has the parent `parent`"), "{refused}");
    assert!(refused.contains("--parent second:"), "{refused}");
    let attach_state = &pair.store.attach_states()[0];
    assert!(attach_state.is_reachable(), "the first parent lost its child");
    put(&*pair.store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_of_a_child_gives_it_to_another_parent_and_the_first_is_told() {
    let pair = Pair::start().await;
    let second = membership("second", &fresh_clock()).await;
    let parent = Some(format!("second:{:x}", second.me().id).parse().expect("a good name"));
    let options = TreeOptions { parent, ..TreeOptions::default() };
    let (kept, child_clock) = &pair.child;
    pair.replace_process(member(kept.clone(), child_clock, "far", options).await).await;
    let store = attach("far", pair.link.address(), &second, Terms::default()).await;
    put(&*store).await;
    soon("the first is told", async {
        while !trouble(&*pair.store).await.contains("has the parent `second`") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_parent_is_refused_for_as_long_as_the_parent_is_attached() {
    let child_clock = fresh_clock();
    let own = Memory::new("own", child_clock.clone());
    let address = serve(Router::single(own), membership("far", &child_clock).await).await;
    let (clock, kept) = (fresh_clock(), Memory::new("kept", fresh_clock()));
    let root = member(kept.clone(), &clock, "root", TreeOptions::default()).await;
    let first = attach("far", address, &root, Terms::default()).await;
    let copy = member(kept, &fresh_clock(), "root", TreeOptions::default()).await;
    let second = connect("far", address, &copy, Terms::default()).await;
    let refused = trouble(&*second).await;
    assert!(refused.contains("has a copy of the other's data"), "{refused}");
    put(&*first).await;
    first.close().await;
    drop(first);
    soon("the other takes its place", second.attach_states()[0].reachable()).await;
    put(&*second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_child_with_all_it_had_is_followed_on() {
    let pair = Pair::start().await;
    let mut log = Follower::start(&*pair.store, pair.clock.shown());
    log.reach(put(&*pair.store).await).await.expect("the child is there");
    pair.link.cut().await;
    let attach_state = pair.store.attach_states()[0].clone();
    let next = soon("a write after the cut", async {
        loop {
            attach_state.reachable().await;
            let txn = all_of(vec![put_op(bytes("key"), bytes("value"), 0)]);
            if let Ok(written) = pair.store.apply(txn, Vec::new()).await {
                break written.revision;
            }
            tokio::task::yield_now().await;
        }
    });
    let next = next.await;
    log.reach(next).await.expect("it was the child all the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_child_is_not_attached_beside_it() {
    let (child_clock, kept) = (fresh_clock(), Memory::new("kept", fresh_clock()));
    let own = Memory::new("own", child_clock.clone());
    let address = serve(Router::single(own), recalled(&kept, &child_clock).await).await;
    let clock = fresh_clock();
    let own = Memory::new("own", clock.clone());
    let copy = serve(Router::single(own), recalled(&kept, &clock).await);
    let parent = membership("parent", &fresh_clock()).await;
    let first = attach("one", address, &parent, Terms::default()).await;
    let copy = connect("two", copy.await, &parent, Terms::default()).await;
    let trouble = trouble(&*copy).await;
    assert!(trouble.contains("another process answers as `far`"), "{trouble}");
    assert!(trouble.contains("at the route `one`"), "{trouble}");
    drop(first);
}

/// What is said before it is known why a child is away.
const PASSING: [&str; 3] = ["not reached yet", "assigned it its lanes", "its log ended"];

/// What keeps a child from being attached, once something does.
async fn trouble(store: &dyn Store) -> String {
    soon("a refusal", async {
        loop {
            let read = store.read(&Query::new(KeyRange::all(), 0)).await;
            match read {
                Err(error) if PASSING.iter().all(|it| !error.to_string().contains(it)) => {
                    return error.to_string();
                }
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_not_answered_and_moves_no_clock() {
    let clock = fresh_clock();
    let own = Memory::new("own", clock.clone());
    let address = serve(Router::single(own), membership("child", &clock).await).await;
    let mut client = TreeClient::connect(format!("http://{address}")).await.expect("it is served");
    let before = clock.now();
    let far = (1_i64 << 53) - 100;
    let mut describe = Request::new(pb::DescribeRequest {});
    describe.metadata_mut().insert("pleach-clock", far.into());
    client.describe(describe).await.expect("anyone may ask that");
    let sync = client.advance_closed(pb::AdvanceClosedRequest { revision: far, ahead: 0 }).await;
    let read = client.read(pb::ReadRequest { revision: far, ..Default::default() }).await;
    for status in [sync.err(), read.err()] {
        let status = status.expect("it is no parent");
        assert!(status.message().contains("assigned it its lanes"), "{status:?}");
    }
    assert_eq!(clock.now(), before);
}

/// A child that is none: it answers as it is told, and keeps what it was asked with.
#[derive(Clone, Debug)]
struct Actor {
    protocol: u32,
    revision: Revision,
    asked: Arc<Mutex<Vec<MetadataMap>>>,
    /// What it has; it knows nothing of selectors.
    kvs: Arc<Mutex<Vec<mvccpb::KeyValue>>>,
}

impl Actor {
    async fn serve(protocol: u32, revision: Revision) -> (Self, std::net::SocketAddr) {
        let actor = Self { protocol, revision, asked: Arc::default(), kvs: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
        let address = listener.local_addr().expect("it is bound");
        let server = Server::builder().add_service(TreeServer::new(actor.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (actor, address)
    }
}

#[tonic::async_trait]
impl Tree for Actor {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<pb::FollowResponse, Status>> + Send>>;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        Ok(Response::new(pb::Node {
            member: Some(pb::Member { id: 7, name: "actor".to_owned() }),
            protocol: self.protocol,
            version: "9.9.9".to_owned(),
            revision: self.revision,
            closed: 1,
            ..pb::Node::default()
        }))
    }

    async fn explain(
        &self,
        _: Request<pb::ExplainRequest>,
    ) -> Result<Response<pb::ExplainResponse>, Status> {
        Err(Status::unimplemented("an actor explains nothing"))
    }

    async fn prefixes(
        &self,
        _: Request<pb::PrefixesRequest>,
    ) -> Result<Response<pb::PrefixesResponse>, Status> {
        Err(Status::unimplemented("an actor explains nothing"))
    }

    async fn join(
        &self,
        _: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        Ok(Response::new(pb::JoinResponse { revision: 1 }))
    }

    async fn advance_closed(
        &self,
        request: Request<pb::AdvanceClosedRequest>,
    ) -> Result<Response<pb::AdvanceClosedResponse>, Status> {
        Ok(Response::new(pb::AdvanceClosedResponse { closed: request.into_inner().revision }))
    }

    async fn read_index(
        &self,
        _: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        Ok(Response::new(pb::ReadIndexResponse { revision: 1 }))
    }

    async fn apply(
        &self,
        _: Request<pb::ApplyRequest>,
    ) -> Result<Response<pb::ApplyResponse>, Status> {
        Err(Status::unimplemented("an actor writes nothing"))
    }

    async fn end_lease(
        &self,
        _: Request<pb::EndLeaseRequest>,
    ) -> Result<Response<pb::EndLeaseResponse>, Status> {
        Err(Status::unimplemented("an actor writes nothing"))
    }

    async fn leases(
        &self,
        _: Request<pb::LeasesRequest>,
    ) -> Result<Response<pb::LeasesResponse>, Status> {
        Ok(Response::new(pb::LeasesResponse::default()))
    }

    async fn read(
        &self,
        request: Request<pb::ReadRequest>,
    ) -> Result<Response<pb::ReadResponse>, Status> {
        let mut asked = self.asked.lock().expect("nobody panics with it");
        asked.push(request.metadata().clone());
        let pb::ReadRequest { key, limit, keys_only, .. } = request.into_inner();
        let mut kvs = self.kvs.lock().expect("nobody panics with it").clone();
        kvs.retain(|kv| kv.key >= key);
        let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(2);
        let next = kvs.get(limit).map(|kv| kv.key.clone());
        kvs.truncate(limit);
        if keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        let more = next.is_some();
        let next = next.unwrap_or_default();
        let (revision, is_selected, stores) = (1, false, Vec::new());
        Ok(Response::new(pb::ReadResponse { kvs, next, more, revision, is_selected, stores }))
    }

    async fn count(
        &self,
        _: Request<pb::CountRequest>,
    ) -> Result<Response<pb::CountResponse>, Status> {
        let count = self.kvs.lock().expect("nobody panics with it").len() as u64;
        Ok(Response::new(pb::CountResponse { count, is_selected: false }))
    }

    async fn compact(
        &self,
        _: Request<pb::CompactRequest>,
    ) -> Result<Response<pb::CompactResponse>, Status> {
        Ok(Response::new(pb::CompactResponse {}))
    }

    async fn follow(
        &self,
        _: Request<pb::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        Ok(Response::new(stream::pending().boxed()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_child_answers_that_knows_no_selectors_is_selected_by_its_parent() {
    let (actor, address) = Actor::serve(PROTOCOL, 1).await;
    let kv = |number: u8| mvccpb::KeyValue {
        key: bytes(format!("{number:02}")),
        value: object(number),
        version: 1,
        ..mvccpb::KeyValue::default()
    };
    *actor.kvs.lock().expect("nobody panics with it") = (0..19).map(kv).collect();
    let parent = membership("parent", &fresh_clock()).await;
    let store = attach("far", address, &parent, Terms::default()).await;
    let selector = Selector::parse("app=a", "").expect("it can be read").map(Arc::new);
    let is_wanted = |number: &u8| {
        selector.as_ref().is_some_and(|selector| selector.may_match(&object(*number)))
    };
    let expected: Vec<u8> = (0..19).filter(is_wanted).collect();
    assert!(expected.len() > 3 && expected.len() < 15, "{expected:?}");
    for (limit, keys_only) in [(0, false), (1, false), (1, true), (3, false), (100, true)] {
        let all = Query::new(KeyRange::all(), 1);
        let mut read = Query { limit, keys_only, selector: selector.clone(), ..all };
        assert_eq!(store.count(&read).await.expect("it is there"), expected.len() as u64);
        let mut found = Vec::new();
        loop {
            let page = store.read(&read).await.expect("it is there");
            assert!(limit == 0 || page.kvs.len() <= limit);
            assert!(page.kvs.iter().all(|kv| kv.value.is_empty() == keys_only));
            found.extend(page.kvs.iter().map(|kv| number(&kv.key)));
            let Some(next) = page.next else { break };
            read.range.start = next;
        }
        assert_eq!(found, expected.iter().map(|it| u64::from(*it)).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_of_another_protocol_is_refused_with_both_versions() {
    let (_, address) = Actor::serve(PROTOCOL + 1, 1).await;
    let parent = membership("parent", &fresh_clock()).await;
    let store = connect("far", address, &parent, Terms::default()).await;
    let trouble = trouble(&*store).await;
    let (theirs, mine) = (PROTOCOL + 1, PROTOCOL);
    assert!(trouble.contains(&format!("version {theirs} of the protocol")), "{trouble}");
    assert!(trouble.contains("9.9.9"), "{trouble}");
    assert!(trouble.contains(&format!("version {mine} ")), "{trouble}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_would_use_up_all_numbers_is_refused() {
    let (_, address) = Actor::serve(PROTOCOL, (1 << 53) - 100).await;
    let clock = fresh_clock();
    let parent = membership("parent", &clock).await;
    let before = clock.now();
    let store = connect("far", address, &parent, Terms::default()).await;
    let trouble = trouble(&*store).await;
    assert!(trouble.contains("it says to be at revision 9007199254740892"), "{trouble}");
    assert_eq!(clock.now(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_path_and_what_is_left_of_the_time_go_with_a_call() {
    let (actor, address) = Actor::serve(PROTOCOL, 1).await;
    let clock = fresh_clock();
    let parent = membership("parent", &clock).await;
    let store = attach("far", address, &parent, Terms::default()).await;
    clock.observe(41).expect("there is no limit");
    let left = Duration::from_millis(700);
    let call = Call { deadline: Some(Instant::now() + left), ..Call::default() };
    let read = call.scope(async { store.read(&Query::new(KeyRange::all(), 0)).await });
    read.await.expect("the actor answers");
    let asked = actor.asked.lock().expect("nobody panics with it").pop().expect("it was asked");
    let text = |name: &str| asked.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
    assert_eq!(text("pleach-clock"), "41");
    assert!(asked.get_bin("pleach-path-bin").is_some());
    // In the finest unit that has eight digits for it.
    let timeout = text("grpc-timeout");
    let micros: u64 = timeout.trim_end_matches('u').parse().expect("it is in microseconds");
    assert!(micros < 700_000 && micros > 0, "{timeout}");
}

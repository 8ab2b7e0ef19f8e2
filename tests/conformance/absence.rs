//! Merged logs of a node whose child comes and goes: whoever was told of a revision without a change of the
//! child hears of it when the child is back, however its own log and that of others stand by then.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pleach::{
    clock::SharedClock,
    model::{KeyRange, Revision},
    route::{Route, Router, rule::Rule},
    store::{Store, attach::AttachState, memory::Memory},
    tree::{child::Terms, membership::Membership},
    watch::{Create, Filters, Hub, Request, Response, Stream},
};
use tokio::sync::mpsc;

use crate::{
    children::{attach, membership, serve},
    follow::{Follower, soon},
    support::proxy::{Mode, Proxy},
    words::{all_of, bytes, put_op},
    world::fresh_clock,
};

/// How long merged logs wait for the child.
const GRACE: Duration = Duration::from_millis(50);

/// How far a child closes ahead when it is asked.
const AHEAD: Revision = 1 << 14;

/// A child as its node sees it, and as it is.
struct Child {
    store: Arc<dyn Store>,
    attach_state: Arc<AttachState>,
    link: Proxy,
    own: Arc<Memory>,
    clock: SharedClock,
}

/// A node and its children.
struct Family {
    clock: SharedClock,
    main: Arc<Memory>,
    far: Child,
    near: Child,
    root: Arc<Router>,
}

impl Child {
    /// One that has done `before` things before the node knew it.
    async fn start(name: &str, parent: &Arc<Membership>, before: usize) -> Self {
        let clock = fresh_clock();
        let own = Memory::new("own", clock.clone());
        for _ in 0..before {
            put(&*own, "/far/before").await;
        }
        let address = serve(Router::single(own.clone()), membership(name, &clock).await).await;
        let link = Proxy::start(address).await.expect("there is a port");
        let terms = Terms { ahead: AHEAD, ..Terms::default() };
        let store = attach(name, link.address(), parent, terms).await;
        let attach_state = store.attach_states()[0].clone();
        tokio::spawn(attach_state.clone().supervise(store.clone(), GRACE));
        Self { store, attach_state, link, own, clock }
    }

    async fn cut_off(&self) {
        self.link.set(Mode::Refuse).await.expect("the proxy refuses");
        self.link.cut().await;
        self.until(|left| left.is_some()).await;
    }

    async fn reconnect(&self) {
        self.link.set(Mode::Pass).await.expect("the proxy passes");
        self.until(|left| left.is_none()).await;
    }

    async fn until(&self, is_so: impl Fn(Option<Revision>) -> bool) {
        let mut changes = self.attach_state.changes();
        soon("a coming or going", async {
            while !is_so(self.attach_state.detached_at()) {
                changes.changed().await.expect("the attach_state is here");
            }
        })
        .await;
    }
}

impl Family {
    /// One whose far child has done `before` things before the node knew it.
    async fn start(before: usize) -> Self {
        let clock = fresh_clock();
        let main = Memory::new("main", clock.clone());
        let parent = membership("root", &clock).await;
        let far = Child::start("far", &parent, before).await;
        let near = Child::start("near", &parent, 0).await;
        let route = |child: &Child| {
            let rule = Rule::prefix(&format!("/{}", child.store.name())).expect("it is one");
            Route { rule, store: child.store.clone(), has_other_writers: true }
        };
        let root = Router::new(vec![route(&far), route(&near)], main.clone());
        Self { clock, main, far, near, root }
    }

    /// The log of all, from now on, after the far child has closed far ahead for it.
    async fn follow(&self) -> Follower {
        let mut log = Follower::start(&*self.root, self.clock.shown());
        log.reach(self.put().await).await.expect("all are there");
        soon("closing ahead", async {
            while self.far.store.announce_closed() < AHEAD {
                tokio::task::yield_now().await;
            }
        })
        .await;
        // Once more, so that the log has heard of it too.
        log.reach(self.put().await).await.expect("all are there");
        log
    }

    /// A write to the node's own store.
    async fn put(&self) -> Revision {
        put(&*self.main, "/own").await
    }

    /// The same, above all that the far child has done.
    async fn put_above_all(&self) -> Revision {
        self.clock.observe(self.far.clock.now()).expect("there is no limit");
        self.put().await
    }
}

/// A client's watch of all keys.
struct Watch {
    _requests: mpsc::Sender<Request>,
    responses: mpsc::Receiver<Response>,
}

impl Watch {
    /// One of what comes from now on.
    async fn of_all(hub: &Arc<Hub>) -> Self {
        let ((requests, asked), (output, responses)) = (mpsc::channel(1), mpsc::channel(64));
        tokio::spawn(Stream::new(hub.clone(), output, Duration::from_secs(600)).run(asked));
        let create = Create {
            watcher: 0,
            range: KeyRange::all(),
            start: 0,
            wants_progress: false,
            filters: Filters::default(),
            prev_kv: false,
            fragment: false,
            selector: Ok(None),
        };
        requests.send(Request::Create(create)).await.expect("the stream is there");
        let mut watch = Self { _requests: requests, responses };
        let first = watch.next().await;
        assert!(matches!(first, Response::Created { .. }), "{first:?}");
        watch
    }

    async fn next(&mut self) -> Response {
        let next = soon("what a watch tells next", self.responses.recv()).await;
        next.expect("the stream is there")
    }

    /// The revision of the next event.
    async fn next_event(&mut self) -> Revision {
        match self.next().await {
            Response::Events { revision, .. } => revision,
            other => panic!("{other:?}"),
        }
    }
}

async fn put(store: &dyn Store, key: &'static str) -> Revision {
    let txn = all_of(vec![put_op(bytes(key), bytes("value"), 0)]);
    store.apply(txn, Vec::new()).await.expect("it is there").revision
}

/// Reads until a change of the child's key has come, in its order or late. Returns whether it was late.
async fn hears_late(log: &mut Follower, revision: Revision) -> bool {
    loop {
        if log.commits.iter().any(|commit| commit.revision == revision) {
            return false;
        }
        let batch = log.next().await.expect("the log goes on");
        if batch.backfill.commits.iter().any(|commit| commit.revision == revision) {
            let late = batch.backfill;
            assert!(late.after < revision && late.floor > log.closed, "{late:?}, {}", log.closed);
            return true;
        }
    }
}

/// Another log begins before the node knew the child, and passes over what that did then. Who follows it joins
/// those of the first, and lacks the same: so the first must tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_log_passed_over_comes_late_though_the_child_had_closed_far_above() {
    let family = Family::start(3).await;
    let mut feed = family.follow().await;
    family.far.cut_off().await;
    feed.reach(family.put().await).await.expect("it goes on without the child");
    let mut other = Follower::start(&*family.root, 1);
    other.reach(feed.closed).await.expect("it goes on without the child");
    assert!(other.commits.iter().all(|commit| commit.revision > 4), "the child is away");
    family.far.reconnect().await;
    family.put().await;
    assert!(hears_late(&mut feed, 3).await);
    assert!(hears_late(&mut other, 3).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_log_passed_over_is_told_by_one_that_slept_meanwhile() {
    let family = Family::start(3).await;
    let mut feed = family.follow().await;
    family.far.cut_off().await;
    let mut other = Follower::start(&*family.root, 1);
    other.reach(feed.closed).await.expect("it goes on without the child");
    assert!(other.commits.iter().all(|commit| commit.revision > 4), "the child is away");
    family.far.reconnect().await;
    family.put().await;
    assert!(hears_late(&mut feed, 3).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_child_that_comes_back_is_attached_at_once() {
    let family = Family::start(0).await;
    let mut log = family.follow().await;
    family.far.cut_off().await;
    log.reach(family.put().await).await.expect("it goes on without the child");
    family.far.link.set(Mode::Pass).await.expect("the proxy passes");
    soon("reaching the child", family.far.attach_state.reachable()).await;
    let begin = Instant::now();
    family.far.until(|left| left.is_none()).await;
    // Well below the time in which a child must say what it did.
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    log.reach(family.put().await).await.expect("both are there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_child_did_between_two_absences_is_told_by_a_log_that_slept_through_both() {
    let family = Family::start(0).await;
    let mut log = family.follow().await;
    family.far.cut_off().await;
    log.reach(family.put_above_all().await).await.expect("it goes on without the child");
    family.far.reconnect().await;
    let between = put(&*family.far.store, "/far/between").await;
    family.far.cut_off().await;
    log.reach(family.put_above_all().await).await.expect("it goes on without the child");
    assert!(log.commits.iter().any(|commit| commit.revision == between), "{between} is lacking");
    family.far.reconnect().await;
    assert!(!hears_late(&mut log, between).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_begins_where_a_log_was_lost_though_another_child_is_away() {
    let family = Family::start(0).await;
    let hub = Hub::new(family.root.clone(), family.clock.clone());
    let mut first = Watch::of_all(&hub).await;
    assert_eq!(family.put().await, first.next_event().await);
    family.far.cut_off().await;
    family.near.cut_off().await;
    // The log of the feed is lost: its child does not say any more what it did.
    put(&*family.far.own, "/far/alone").await;
    let alone = put(&*family.far.own, "/far/alone").await;
    family.far.own.compact(alone, true).await.expect("memory compacts");
    family.far.reconnect().await;
    soon("the loss", async { while !matches!(first.next().await, Response::Compacted { .. }) {} })
        .await;
    let mut watch = Watch::of_all(&hub).await;
    let own = family.put().await;
    assert_eq!(watch.next_event().await, own);
    let back = put(&*family.far.store, "/far/back").await;
    assert_eq!(watch.next_event().await, back);
}

/// A node in the middle whose own child is gone, and which is compacted beyond what that had closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_attached_though_a_child_of_its_own_is_gone_and_it_is_compacted_since() {
    let family = Family::start(0).await;
    // It has begun before its child was gone.
    let middle = serve(family.root.clone(), membership("middle", &family.clock).await).await;
    family.follow().await.reach(family.put().await).await.expect("all are there");
    family.far.cut_off().await;
    family.clock.observe(2 * AHEAD).expect("there is no limit");
    family.put().await;
    let line = family.put().await;
    let compacted = family.root.compact(line, true).await;
    compacted.expect_err("one of its stores is away");
    let top_clock = fresh_clock();
    let top = membership("top", &top_clock).await;
    let store = attach("middle", middle, &top, Terms::default()).await;
    assert!(store.announce_closed() >= line, "{} is below {line}", store.announce_closed());
    let mut log = Follower::start(&*store, store.announce_closed());
    log.reach(family.put().await).await.expect("it goes on without its child");
}

/// Begun at the present of all others, above what the child then does alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_now_on_that_begins_while_a_child_is_away_hears_what_it_lacks() {
    let family = Family::start(0).await;
    family.far.cut_off().await;
    family.clock.observe(50_000).expect("there is no limit");
    let present = family.put().await;
    let hub = Hub::new(family.root.clone(), family.clock.clone());
    let mut watch = Watch::of_all(&hub).await;
    let alone = put(&*family.far.own, "/far/alone").await;
    assert!(alone < present, "{alone} is not below {present}");
    family.far.reconnect().await;
    loop {
        match watch.next().await {
            Response::Events { events, .. } => {
                if events.iter().any(|event| event.kv.mod_revision == alone) {
                    return;
                }
            }
            Response::Compacted { compacted, .. } => {
                assert!(compacted > present, "{compacted} is not above {present}");
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

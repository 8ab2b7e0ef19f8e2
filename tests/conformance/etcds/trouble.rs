//! Connections to an etcd that break. The etcd's keys are refused in bounded time, with the route's name;
//! the others' go on; and all is well again without help when the trouble is over.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pleach::{
    clock::SharedClock,
    model::{KeyRange, Revision, StoreError},
    net::connect::Address,
    route::{Route, Router},
    store::{RecordStore, memory::Memory},
};
use tokio::net::TcpListener;

use super::open_at;
use crate::{
    follow::{Follower, soon},
    support::{
        etcd::Etcd,
        proxy::{Act, Mode, Proxy},
        rng::Rng,
    },
    words::{all_of, apply, bytes, get, key, number, put, put_op, put_record},
    world::{fresh_clock, pods},
};

/// What a call may take, and a new connection, and some patience with a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Longer than an etcd takes to close a connection on which it is pinged more often than it likes: every 5 s
/// (its `--grpc-keepalive-min-time`), and never while nothing is under way.
const PINGED_FOR: Duration = Duration::from_secs(25);

/// How often an answer is lost until it is the one that is meant.
const TRIES_MAX: usize = 20;

/// The family of keys that lives in memory, and the one in the etcd.
const MEMORY: usize = 0;
const ETCD: usize = 1;

/// A router over memory and an etcd behind a proxy.
struct Bed {
    _server: Etcd,
    upstream: SocketAddr,
    proxy: Proxy,
    clock: SharedClock,
    router: Arc<Router>,
    records: Arc<dyn RecordStore>,
}

// === impl Bed ===

impl Bed {
    async fn open() -> Self {
        Self::open_with(false).await
    }

    async fn open_with(has_tls: bool) -> Self {
        let mut server = Etcd::hasty().expect("there is an etcd");
        if has_tls {
            server = server.with_tls().expect("certificates");
        }
        server.start().await.expect("it runs");
        let url = server.url();
        let (scheme, upstream) = url.split_once("://").expect("it has a scheme");
        let upstream = upstream.parse().expect("it is an address");
        let proxy = Proxy::start(upstream).await.expect("a proxy can listen");
        let clock = fresh_clock();
        let address = Address {
            urls: vec![format!("{scheme}://{}", proxy.address())],
            ca_file: has_tls.then(|| server.authority().into()),
            ..Address::default()
        };
        let etcd = open_at(&address, &clock).await;
        let main = Memory::new("main", clock.clone());
        let records = etcd.clone();
        let to = Route { rule: pods(), store: etcd.clone(), has_other_writers: true };
        let router = Router::new(vec![to], main);
        Self { _server: server, upstream, proxy, clock, router, records }
    }

    async fn try_put(&self, name: &str, value: &str) -> Result<Revision, StoreError> {
        let txn = all_of(vec![put_op(key(ETCD, name), bytes(value), 0)]);
        let answer = tokio::time::timeout(ANSWER_WITHIN, apply(&*self.router, txn)).await;
        answer.expect("an answer in bounded time").map(|written| written.revision)
    }

    async fn put_again(&self, name: &str, value: &str) -> Revision {
        soon("the store is back", async {
            loop {
                match self.try_put(name, value).await {
                    Ok(revision) => return revision,
                    Err(StoreError::Unavailable { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await
    }

    async fn others_go_on(&self) {
        let started = Instant::now();
        let revision = put(&*self.router, key(MEMORY, "other"), bytes("goes on")).await;
        let kv = get(&*self.router, &key(MEMORY, "other"), revision).await;
        assert_eq!(kv.expect("it was put").mod_revision, revision);
        assert!(started.elapsed() < Duration::from_secs(1), "the other store was held up");
    }

    async fn value(&self, name: &str) -> Option<String> {
        let kv = get(&*self.router, &key(ETCD, name), self.clock.shown()).await?;
        Some(String::from_utf8_lossy(&kv.value).into_owned())
    }

    async fn refuse(&self) {
        self.proxy.set(Mode::Refuse).await.expect("the proxy obeys");
        self.proxy.cut().await;
    }

    async fn pass(&self) {
        self.proxy.set(Mode::Pass).await.expect("the proxy obeys");
    }
}

fn is_unavailable(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { store, .. } if &**store == "etcd")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_refuses_is_named_and_comes_back() {
    let bed = Bed::open().await;
    bed.try_put("a", "before").await.expect("all is well");
    bed.refuse().await;
    let error = bed.try_put("a", "meanwhile").await.expect_err("nobody is there");
    assert!(
        is_unavailable(&error) || matches!(error, StoreError::UnknownOutcome { .. }),
        "{error}"
    );
    bed.others_go_on().await;
    // A list over both must not look whole.
    let all = crate::words::list(&*bed.router, KeyRange::all(), bed.clock.shown()).await;
    assert!(is_unavailable(&all.expect_err("a part is missing")));
    bed.pass().await;
    bed.put_again("b", "after").await;
    assert_eq!(bed.value("b").await.as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_answer_was_lost_is_found_out() {
    let bed = Bed::open().await;
    let mut follower = Follower::start(&*bed.router, bed.clock.shown());
    // What comes first on the connection may be another answer: then it did not happen, and is not said to.
    for at in 0..TRIES_MAX {
        let fired = bed.proxy.trigger("the-needle", Act::DropAnswer);
        let name = at.to_string();
        let answer = bed.try_put(&name, "the-needle").await;
        fired.await.expect("an answer was dropped");
        match answer {
            Ok(revision) => {
                assert_eq!(bed.value(&name).await.as_deref(), Some("the-needle"));
                soon("the event", follower.reach(revision)).await.expect("nothing is compacted");
                assert_eq!(crate::follow::revisions(&follower.commits), [revision]);
                return;
            }
            Err(error) => {
                assert!(is_unavailable(&error), "{error}");
                bed.put_again("well", "again").await;
                follower = Follower::start(&*bed.router, bed.clock.shown());
                assert_eq!(bed.value(&name).await, None);
            }
        }
    }
    panic!("no answer to a transaction was dropped in {TRIES_MAX} tries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_cut_off_did_not_happen() {
    let bed = Bed::open().await;
    let fired = bed.proxy.trigger("the-needle", Act::CutBefore);
    let error = bed.try_put("a", "the-needle").await.expect_err("it was cut off");
    fired.await.expect("the transaction was cut off");
    assert!(is_unavailable(&error), "found out, so it may be tried again: {error}");
    assert_eq!(bed.value("a").await, None);
    bed.put_again("a", "2").await;
    assert_eq!(bed.value("a").await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_still_on_its_way_can_never_be_applied_later() {
    let bed = Bed::open().await;
    // It freezes before the etcd has it, as a request that lies in some queue does.
    let fired = bed.proxy.trigger("the-needle", Act::StallBefore);
    let error = bed.try_put("a", "the-needle").await.expect_err("it is frozen");
    fired.await.expect("the transaction was frozen");
    assert!(
        is_unavailable(&error) || matches!(error, StoreError::UnknownOutcome { .. }),
        "{error}"
    );
    bed.put_again("b", "2").await;
    assert_eq!(bed.value("a").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_happened_is_told_when_the_etcd_is_back() {
    // The etcd may give up a request whose connection breaks, and the writer may be quick enough to ask what
    // became of it: then it is another case, and tried again.
    for attempt in 0..TRIES_MAX {
        if happened_and_was_told().await {
            return;
        }
        println!("attempt {attempt}: it did not happen, or was found out at once");
    }
    panic!("it never happened");
}

/// Whether a transaction whose answer was lost, and of which nobody could know for a while, had happened; if so it
/// was told once.
async fn happened_and_was_told() -> bool {
    let bed = Bed::open().await;
    let mut follower = Follower::start(&*bed.router, bed.clock.shown());
    // Not when it is sent: the end of a request may come in a frame of its own.
    let fired = bed.proxy.trigger("the-needle", Act::DropAnswer);
    let lose = async {
        fired.await.expect("there is a transaction");
        bed.refuse().await;
    };
    let (answer, ()) = tokio::join!(bed.try_put("a", "the-needle"), lose);
    let Err(error) = answer else { return false };
    assert!(matches!(error, StoreError::UnknownOutcome { .. }), "{error}");
    bed.others_go_on().await;
    bed.pass().await;
    let last = bed.put_again("b", "2").await;
    let value = bed.value("a").await;
    soon("the events", follower.reach(last)).await.expect("nothing is compacted");
    let told = follower.commits.iter().flat_map(|commit| &commit.events);
    let told = told.filter(|event| event.kv.key == key(ETCD, "a")).count();
    assert_eq!(
        told,
        usize::from(value.is_some()),
        "what is there is told once, and what is not never"
    );
    value.as_deref() == Some("the-needle")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_hangs_holds_up_no_other_store() {
    let bed = Bed::open().await;
    bed.try_put("a", "1").await.expect("all is well");
    bed.proxy.set(Mode::Stall).await.expect("the proxy obeys");
    let others = async {
        for _ in 0..10 {
            bed.others_go_on().await;
        }
    };
    let (answer, ()) = tokio::join!(bed.try_put("a", "2"), others);
    let error = answer.expect_err("nobody answers");
    assert!(
        is_unavailable(&error) || matches!(error, StoreError::UnknownOutcome { .. }),
        "{error}"
    );
    let started = Instant::now();
    bed.try_put("a", "3").await.expect_err("nobody answers");
    assert!(started.elapsed() < Duration::from_secs(1), "it waited for one known to hang");
    bed.proxy.cut().await;
    bed.pass().await;
    bed.put_again("b", "4").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_silent_when_tls_is_agreed_on_comes_back() {
    let bed = Bed::open_with(true).await;
    bed.try_put("a", "before").await.expect("all is well");
    // Takes connections, and never says anything.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    bed.proxy.redirect(silent.local_addr().expect("it has an address"));
    bed.proxy.cut().await;
    bed.try_put("a", "meanwhile").await.expect_err("nobody answers");
    bed.others_go_on().await;
    bed.proxy.redirect(bed.upstream);
    bed.put_again("b", "after").await;
    assert_eq!(bed.value("b").await.as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_has_nothing_to_do_keeps_its_connections() {
    let bed = Bed::open().await;
    bed.put_again("a", "once").await;
    let begun = Instant::now();
    let open = bed.proxy.connections();
    while begun.elapsed() < PINGED_FOR {
        // One that is closed is not opened again for 100 ms at least.
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(bed.proxy.connections(), open, "after {:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_trouble_loses_no_acknowledged_write_and_no_event() {
    const ROUNDS: usize = 40;
    const WRITERS: usize = 4;
    let bed = Bed::open().await;
    let seed = std::env::var("PLEACH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("PLEACH_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut follower = Follower::start(&*bed.router, bed.clock.shown());
    let is_done = AtomicBool::new(false);
    let writer = async |writer: usize| {
        // The last value that was acknowledged, and those after it whose outcome is not known.
        let (mut known, mut doubtful, mut next) = (0, Vec::new(), 1);
        let mut revisions = BTreeMap::new();
        while !is_done.load(Ordering::Acquire) {
            match bed.try_put(&format!("writer-{writer}"), &next.to_string()).await {
                Ok(revision) => {
                    revisions.insert(revision, next);
                    (known, doubtful) = (next, Vec::new());
                }
                Err(StoreError::UnknownOutcome { .. }) => doubtful.push(next),
                Err(error) => {
                    assert!(is_unavailable(&error), "{error}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            next += 1;
        }
        (known, doubtful, revisions)
    };
    let recorder = async {
        let (mut known, mut doubtful, mut next) = (0, Vec::new(), 1u64);
        while !is_done.load(Ordering::Acquire) {
            match put_record(&*bed.records, "record", Some(bytes(next))).await {
                Ok(()) => (known, doubtful) = (next, Vec::new()),
                Err(StoreError::UnknownOutcome { .. }) => doubtful.push(next),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
            next += 1;
        }
        (known, doubtful)
    };
    let trouble = async {
        for _ in 0..ROUNDS {
            println!("{}", bed.proxy.trouble(&mut rng).await.expect("the proxy obeys"));
            bed.others_go_on().await;
            bed.put_again("well", "again").await;
        }
        is_done.store(true, Ordering::Release);
    };
    let writers = futures::future::join_all((0..WRITERS).map(writer));
    let (ledgers, (known, doubtful), ()) = tokio::join!(writers, recorder, trouble);
    let last = bed.put_again("last", "0").await;
    soon("all events", follower.reach(last)).await.expect("nothing is compacted");
    let record = bed.records.scan_records("record").await.expect("the store is there");
    let record = record.first().map_or(0, |(_, value)| number(value));
    let is_expected = record == known || doubtful.contains(&record);
    assert!(is_expected, "the record is {record}, acknowledged {known}, unknown {doubtful:?}");
    let events: Vec<_> = follower.commits.iter().flat_map(|commit| &commit.events).collect();
    for (writer, (known, doubtful, revisions)) in ledgers.into_iter().enumerate() {
        assert!(!revisions.is_empty(), "writer {writer} got nothing through");
        let name = key(ETCD, format!("writer-{writer}"));
        let found = get(&*bed.router, &name, last).await.map_or(0, |kv| number(&kv.value));
        let is_expected = found == known || doubtful.contains(&found);
        assert!(is_expected, "writer {writer} left {found}, acknowledged {known}, {doubtful:?}");
        let told: Vec<_> = events.iter().filter(|event| event.kv.key == name).collect();
        for (at, event) in told.iter().enumerate() {
            assert_eq!(event.kv.version, at as i64 + 1, "an event of writer {writer} is missing");
        }
        let told: BTreeMap<_, _> =
            told.iter().map(|event| (event.kv.mod_revision, number(&event.kv.value))).collect();
        for (revision, value) in revisions {
            assert_eq!(told.get(&revision), Some(&value), "of writer {writer}");
        }
    }
}

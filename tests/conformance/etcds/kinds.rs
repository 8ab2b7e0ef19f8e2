//! Etcds of all kinds.

use std::time::{Duration, Instant};

use etcd_client::{Txn, TxnOp};
use pleach::{model::KeyRange, net::connect::Address, store::etcd, topology::Endpoint};

use super::{Bed, OWNER};
use crate::{
    follow::{commits, soon},
    support::{
        etcd::{Etcd, PASSWORD, USER},
        peers::peer,
    },
    words::{all_of, apply, bytes, get, key, kvs, put, put_op},
    world::fresh_clock,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_holds_much_is_attached_in_a_moment() {
    const KEYS: usize = 500_000;
    const TXN_KEYS: usize = 100;
    let server = crate::world::start_etcd().await;
    let fill = (0..8).map(|part| {
        let server = &server;
        async move {
            let mut client = server.client().await.expect("the etcd takes clients");
            let mut at = part * TXN_KEYS;
            while at < KEYS {
                let put = |at: usize| TxnOp::put(key(0, format!("{at:06}")).to_vec(), "x", None);
                let ops: Vec<_> = (at..at + TXN_KEYS).map(put).collect();
                client.txn(Txn::new().and_then(ops)).await.expect("the puts are taken");
                at += 8 * TXN_KEYS;
            }
        }
    });
    futures::future::join_all(fill).await;
    let begun = Instant::now();
    let bed = Bed::over(server).await;
    let shown = bed.clock.shown();
    let count =
        crate::words::count(&*bed.store, KeyRange::all(), shown).await.expect("it can be counted");
    let one = get(&*bed.store, &key(0, "000007"), shown).await.expect("it is there");
    let took = begun.elapsed();
    println!("attached, counted and read one of {KEYS} keys in {took:?}");
    assert_eq!(count, KEYS as u64);
    assert_eq!(one.version, 1);
    assert!(took < Duration::from_secs(10), "it took {took:?}: everything was read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_without_one_of_its_members_and_loses_nothing() {
    let mut members = Etcd::cluster(3).expect("there is an etcd");
    members.iter_mut().for_each(|member| member.spawn().expect("it starts"));
    for member in &mut members {
        member.ready().await.expect("the cluster answers");
    }
    let urls: Vec<String> = members.iter().map(Etcd::url).collect();
    let address = Address { urls: urls.clone(), ..Address::default() };
    let clock = fresh_clock();
    let opened = etcd::open("etcd", &urls.join(","), &address, OWNER, clock.clone()).await;
    let store = opened.expect("the cluster can be opened");
    let mut written = Vec::new();
    let mut failed = 0;
    for (round, member) in members.iter_mut().enumerate() {
        member.kill().await.expect("it runs");
        soon("writes go on", async {
            let begun = written.len();
            let mut at = 0;
            while written.len() < begun + 20 {
                let txn = all_of(vec![put_op(key(0, format!("{round}-{at}")), bytes("x"), 0)]);
                match apply(&*store, txn).await {
                    Ok(done) => written.push((format!("{round}-{at}"), done.revision)),
                    Err(_) => failed += 1,
                }
                at += 1;
            }
        })
        .await;
        member.start().await.expect("it comes back");
    }
    println!("{failed} writes failed while members were killed");
    let last = written.last().expect("some were written").1;
    for (name, revision) in &written {
        let kv = get(&*store, &key(0, name), last).await.expect("it was acknowledged");
        assert_eq!(kv.mod_revision, *revision);
    }
    let told = commits(&*store, 1, last).await;
    for (_, revision) in &written {
        assert!(told.iter().any(|commit| commit.revision == *revision), "{revision} is not told");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_passwords_are_used_renewed_and_never_shown() {
    let mut server = crate::world::start_etcd().await;
    server.enable_auth().await.expect("it can be enabled");
    let url = |password: &str| {
        let host = server.url().replace("http://", "");
        format!("http://{USER}:{password}@{host}")
    };
    let open = async |url: String| {
        let Ok(Endpoint::Etcd { urls, login, .. }) = Endpoint::parse(&url) else {
            panic!("a good endpoint");
        };
        let address = Address { urls, login, ..Address::default() };
        etcd::open("etcd", "the etcd", &address, OWNER, fresh_clock()).await
    };
    let error = open(url("not-the-password")).await.expect_err("it is wrong");
    assert!(error.to_string().contains("authentication failed"), "{error}");
    assert!(!format!("{error} {error:?}").contains("not-the-password"));
    let error = open(server.url()).await.expect_err("nobody asked");
    assert!(error.to_string().contains("user name is empty"), "{error}");
    let store = open(url(PASSWORD)).await.expect("it is right");
    put(&*store, key(0, "a"), bytes("a")).await;
    // A new user makes every token old.
    let mut client = server.client().await.expect("the etcd takes clients");
    client.user_add("another", "secret", None).await.expect("a user can be added");
    let last = put(&*store, key(0, "a"), bytes("b")).await;
    assert_eq!(&get(&*store, &key(0, "a"), last).await.expect("it is there").value[..], b"b");
    assert!(!format!("{store:?}").contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_and_a_stranger_is_not_trusted() {
    let mut server = Etcd::new().expect("there is an etcd").with_tls().expect("certificates");
    server.start().await.expect("it runs");
    let open = async |ca_file| {
        let address = Address { urls: vec![server.url()], ca_file, ..Address::default() };
        super::try_open_at(&address, &fresh_clock()).await
    };
    let error = open(None).await.expect_err("nobody has signed for it");
    assert!(error.to_string().contains("certificate"), "{error}");
    let store = open(Some(server.authority().into())).await.expect("its authority is known");
    let last = put(&*store, key(0, "a"), bytes("a")).await;
    assert_eq!(kvs(&*store, KeyRange::all(), last).await.len(), 1);
    let error = open(Some("/nowhere/ca.pem".into())).await.expect_err("there is no such file");
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    drop(store);
    let address = Address { urls: vec![server.url()], is_unverified: true, ..Address::default() };
    let store = super::open_at(&address, &fresh_clock()).await;
    assert_eq!(kvs(&*store, KeyRange::all(), store.announce_closed()).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_in_place_of_the_stores_own_are_refused() {
    let server = crate::world::start_etcd().await;
    let mut client = server.client().await.expect("the etcd takes clients");
    client.put("pleach.store/mine", "mine", None).await.expect("a put is taken");
    let error = super::try_open(&server.url(), &fresh_clock()).await.expect_err("it is not ours");
    assert!(matches!(error, etcd::OpenError::Foreign { .. }), "{error}");
}

/// What Kubernetes does to a store, in short, and another client of the etcd.
async fn works(mut server: Etcd) {
    server.start().await.expect("it runs");
    let mut client = server.client().await.expect("the etcd takes clients");
    client.put(key(0, "old").to_vec(), "old", None).await.expect("a put is taken");
    let bed = Bed::over(server).await;
    let first = bed.clock.shown();
    for at in 0..300 {
        put(&*bed.store, key(at % 5, at % 20), bytes(at)).await;
    }
    let middle = bed.clock.shown();
    let before = kvs(&*bed.store, KeyRange::all(), middle).await;
    crate::words::delete(&*bed.store, crate::words::family_range(1)).await;
    client.put(key(0, "old").to_vec(), "theirs", None).await.expect("a put is taken");
    let last = bed.told(bed.clock.shown()).await[0].revision;
    let told = commits(&*bed.store, first, last).await;
    assert_eq!(told.len() as i64, last - first);
    bed.store.compact(middle, true).await.expect("it is compacted");
    assert_eq!(kvs(&*bed.store, KeyRange::all(), middle).await, before);
    let bed = bed.reopened().await;
    assert_eq!(bed.store.compacted(), middle);
    assert_eq!(kvs(&*bed.store, KeyRange::all(), middle).await, before);
    let theirs = get(&*bed.store, &key(0, "old"), last).await.expect("it was put");
    assert_eq!((theirs.mod_revision, theirs.version), (last, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_3_5_works() {
    let program = peer("etcd-3.5").expect("it is built");
    let server = Etcd::hasty().expect("a folder can be made").with_program(program);
    Box::pin(works(server)).await;
}

/// 3.4, as Debian has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_3_4_works() {
    let program = std::path::PathBuf::from("/usr/bin/etcd");
    assert!(program.exists(), "Debian's package `etcd-server` is missing");
    let server = Etcd::new().expect("a folder can be made").with_program(program);
    Box::pin(works(server)).await;
}

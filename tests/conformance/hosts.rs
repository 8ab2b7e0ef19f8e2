//! Stores behind endpoints with several hosts, and addresses that several servers answer at.

use std::time::{Duration, Instant};

use pleach::{
    model::KeyRange,
    store::sql::remote::Readers,
    topology::{Endpoint, endpoint::Host},
};

use crate::{
    bed::{Bed, endpoint, is_unavailable},
    follow::soon,
    support::{
        databases::DatabaseServer,
        proxy::{Mode, Proxy},
    },
    words::{bytes, key, list, put},
    world::{DATABASE, fresh_clock, new_prefix, open_database, open_pooled},
};

/// What an answer takes, and far less than a silent host is waited for.
const QUICKLY: Duration = Duration::from_secs(2);

on_every_database! {
    a_silent_first_host_does_not_hide_the_second,
    reads_go_where_the_writer_went_and_stay_there,
    another_store_at_the_address_is_neither_read_nor_written,
    a_server_without_the_tables_is_left_as_soon_as_the_right_one_is_back,
    connections_that_nobody_needs_are_closed,
}

/// A balancer's mistake: what answers for a moment is a database of the same name in which nothing was made.
async fn a_server_without_the_tables_is_left_as_soon_as_the_right_one_is_back(bed: Bed) {
    bed.try_put("a", "1").await.expect("all is well");
    let other = another_server(&bed).await;
    bed.proxy.redirect(other.address());
    bed.proxy.cut().await;
    soon("nothing of the store is there", async {
        loop {
            let error = bed.try_put("a", "2").await.expect_err("it is another server");
            if !error.to_string().contains("the connection is gone") {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Long enough for the writer to try it more than once.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bed.proxy.redirect(bed.server.address());
    goes_on_with_the_right_one(&bed).await;
}

/// As many as `maxIdle` says stay at once, and none longer than `maxIdleLifeTime` says.
async fn connections_that_nobody_needs_are_closed(bed: Bed) {
    let readers = Readers {
        open_max: 4,
        idle_max: 2,
        life_time_max: Duration::MAX,
        idle_time_max: Duration::from_millis(300),
    };
    let endpoint = endpoint(&bed.server, &bed.proxy, &new_prefix());
    let before = bed.proxy.connections();
    let clock = fresh_clock();
    let store = open_pooled("pods", &endpoint, &clock, readers).await.expect("it can be opened");
    let revision = put(&*store, key(1, "a"), bytes("1")).await;
    let asked = (0..16).map(|_| list(&*store, KeyRange::all(), revision));
    for page in futures::future::join_all(asked).await {
        page.expect("it answers");
    }
    // The writer's, and those that may stay.
    soon("most are closed", async {
        while bed.proxy.connections() > before + 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon("all that read are closed", async {
        while bed.proxy.connections() > before + 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(list(&*store, KeyRange::all(), revision).await.expect("it answers").kvs.len(), 1);
}

/// The endpoint of a bed with one more host before its own.
fn with_first(bed: &Bed, first: &Proxy) -> Endpoint {
    let mut endpoint = endpoint(&bed.server, &bed.proxy, &new_prefix());
    let host = Host::Tcp(first.address().ip().to_string(), first.address().port());
    match &mut endpoint {
        Endpoint::Postgres(database) | Endpoint::Mysql(database) => database.hosts.insert(0, host),
        other => panic!("{other} is no database"),
    }
    endpoint
}

/// A server of the bed's kind, with an empty database of its name.
async fn another_server(bed: &Bed) -> DatabaseServer {
    let other = DatabaseServer::new(bed.server.kind()).expect("a folder can be made");
    let mut other = other.without_sync();
    Box::pin(other.start()).await.expect("the server starts");
    other.create_database(DATABASE).await.expect("a database can be made");
    other
}

/// The bed's own server answers again, and has what was put there before.
async fn goes_on_with_the_right_one(bed: &Bed) {
    soon("the right one is there again", async {
        while bed.try_put("b", "2").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(bed.value("a").await.as_deref(), Some("1"));
}

async fn a_silent_first_host_does_not_hide_the_second(bed: Bed) {
    let silent = Proxy::start(bed.server.address()).await.expect("a proxy can listen");
    silent.set(Mode::Stall).await.expect("the proxy obeys");
    let clock = fresh_clock();
    let opened = open_database("pods", &with_first(&bed, &silent), &clock).await;
    let store = opened.expect("the second host answers");
    // Reads know by now which one answers.
    let started = Instant::now();
    let revision = put(&*store, key(1, "a"), bytes("value")).await;
    assert_eq!(list(&*store, KeyRange::all(), revision).await.expect("it answers").kvs.len(), 1);
    assert!(started.elapsed() < QUICKLY, "the silent host was waited for again");
    // The writer finds its way back past the silent one, too.
    bed.proxy.cut().await;
    soon("it is back", async {
        while list(&*store, KeyRange::all(), clock.shown()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn reads_go_where_the_writer_went_and_stay_there(bed: Bed) {
    let first = Proxy::start(bed.server.address()).await.expect("a proxy can listen");
    let clock = fresh_clock();
    let opened = open_database("pods", &with_first(&bed, &first), &clock).await;
    let store = opened.expect("both hosts answer");
    let before = bed.proxy.connections();
    let revision = put(&*store, key(1, "a"), bytes("1")).await;
    list(&*store, KeyRange::all(), revision).await.expect("it answers");
    assert_eq!(bed.proxy.connections(), before, "something went to the second host");
    assert!(first.connections() >= 2, "one writes and one reads");

    first.set(Mode::Refuse).await.expect("the proxy obeys");
    first.cut().await;
    let write = async || {
        let txn = crate::words::put_op(key(1, "a"), bytes("2"), 0).into();
        crate::words::apply(&*store, txn).await
    };
    soon("the writer went on", async {
        while write().await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    first.set(Mode::Pass).await.expect("the proxy obeys");
    let page = list(&*store, KeyRange::all(), clock.shown()).await.expect("it answers");
    assert_eq!(&page.kvs[0].value[..], b"2");
    assert_eq!(first.connections(), 0, "a read went where the writer is not");
    // A read that needs no connection is at home everywhere.
    let none = KeyRange { start: key(1, "b"), end: Some(key(1, "a")) };
    let page = list(&*store, none, clock.shown()).await.expect("there is nothing to ask");
    assert!(page.kvs.is_empty());
}

async fn another_store_at_the_address_is_neither_read_nor_written(bed: Bed) {
    bed.try_put("a", "1").await.expect("all is well");
    // Another server with the same tables, of the same epoch, and further on.
    let other = another_server(&bed).await;
    let there = Proxy::start(other.address()).await.expect("a proxy can listen");
    let copy = endpoint(&other, &there, &bed.prefix);
    let theirs = open_database("pods", &copy, &fresh_clock()).await.expect("it can be opened");
    for _ in 0..20 {
        put(&*theirs, key(1, "a"), bytes("theirs")).await;
    }

    // The writer stays where it is, and no read has a connection yet.
    bed.proxy.redirect(other.address());
    let error = list(&*bed.router, KeyRange::all(), bed.clock.shown()).await;
    let error = error.expect_err("another server has other keys");
    assert!(is_unavailable(&error), "{error}");
    assert!(error.to_string().contains("what answers at its address is not the store"), "{error}");
    bed.others_go_on().await;
    // The writer goes there too.
    bed.proxy.cut().await;
    soon("what is there is found out", async {
        loop {
            let error = bed.try_put("a", "ours").await.expect_err("it is another store");
            assert!(is_unavailable(&error), "{error}");
            if error.to_string().contains("is another store: it was") {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(list(&*bed.router, KeyRange::all(), bed.clock.shown()).await.is_err());
    bed.others_go_on().await;
    bed.proxy.redirect(bed.server.address());
    goes_on_with_the_right_one(&bed).await;
    let clock = fresh_clock();
    drop(theirs);
    let theirs = soon("it is given up", async {
        loop {
            if let Ok(theirs) = open_database("pods", &copy, &clock).await {
                break theirs;
            }
        }
    })
    .await;
    let found = list(&*theirs, KeyRange::all(), clock.shown()).await.expect("it is there");
    assert_eq!((found.kvs.len(), &found.kvs[0].value[..]), (1, &b"theirs"[..]));
}

//! Keys of leases, and the records of a node.

use bytes::Bytes;
use pleach::model::KeyRange;

use crate::{
    follow::commits,
    words::{FAMILIES, all_of, apply, bytes, key, kvs, put, put_op, put_record},
    world::World,
};

on_every_composition! {
    the_keys_of_a_lease_go_in_key_order_at_one_revision,
    a_key_that_left_its_lease_stays,
    keys_of_a_lease_go_from_every_store,
    the_leases_of_live_keys_are_known,
    records_are_kept_replaced_and_forgotten,
    records_are_no_keys,
}

pub(crate) async fn the_keys_of_a_lease_go_in_key_order_at_one_revision(world: World) {
    let store = &*world.store;
    let names = ["d", "a", "c", "b"];
    for name in names {
        let put = put_op(key(1, name), bytes(name), 9);
        apply(store, put.into()).await.expect("a put is taken");
    }
    let stays = put(store, key(1, "stays"), bytes("stays")).await;
    let written = store.end_lease(9).await.expect("the lease ends").expect("it had keys");
    assert_eq!(written, stays + 1);
    let commits = commits(store, stays, written).await;
    assert_eq!(commits.len(), 1);
    let gone: Vec<_> = commits[0].events.iter().map(|event| event.kv.key.clone()).collect();
    assert_eq!(gone, ["a", "b", "c", "d"].map(|name| key(1, name)));
    assert!(commits[0].events.iter().all(|event| event.is_delete() && event.prev.is_some()));
    assert_eq!(kvs(store, KeyRange::all(), written).await.len(), 1);
    assert_eq!(kvs(store, KeyRange::all(), stays).await.len(), names.len() + 1);
}

async fn a_key_that_left_its_lease_stays(world: World) {
    let store = &*world.store;
    for lease in [9, 0, 9, 8] {
        apply(store, put_op(key(2, "a"), bytes(lease), lease).into()).await.expect("it is taken");
    }
    let before = world.clock.shown();
    let written = store.end_lease(9).await.expect("the lease ends");
    assert_eq!(written, None, "it has no key");
    assert_eq!(kvs(store, KeyRange::all(), before).await.len(), 1);
}

async fn keys_of_a_lease_go_from_every_store(world: World) {
    let store = &*world.store;
    for family in 0..FAMILIES.len() {
        let leased = put_op(key(family, "leased"), bytes(family), 5);
        let stays = put_op(key(family, "stays"), bytes(family), 0);
        apply(store, all_of(vec![leased, stays])).await.expect("the keys lie in one store");
    }
    let written = store.end_lease(5).await.expect("the lease ends").expect("it had keys");
    assert_eq!(written, world.clock.shown(), "the answer is as new as its last change");
    let left = kvs(store, KeyRange::all(), written).await;
    assert_eq!(left.len(), FAMILIES.len());
    assert!(left.iter().all(|kv| kv.lease == 0));
}

async fn the_leases_of_live_keys_are_known(world: World) {
    let store = &*world.store;
    let leases =
        async || store.leases().await.expect("all is well").into_iter().collect::<Vec<_>>();
    assert!(leases().await.is_empty());
    for (family, lease) in [(0, 7), (1, i64::MAX), (2, 7), (3, 9), (4, 5)] {
        for name in ["a", "b"] {
            let put = put_op(key(family, name), bytes(name), lease);
            apply(store, put.into()).await.expect("it is taken");
        }
    }
    assert_eq!(leases().await, [5, 7, 9, i64::MAX]);
    // One of a lease's keys leaves it, of another one all.
    for name in ["a", "b"] {
        apply(store, put_op(key(3, name), bytes(name), 0).into()).await.expect("it is taken");
    }
    apply(store, put_op(key(4, "a"), bytes("a"), 0).into()).await.expect("it is taken");
    store.end_lease(7).await.expect("the lease ends");
    assert_eq!(leases().await, [5, i64::MAX]);
}

pub(crate) async fn records_are_kept_replaced_and_forgotten(world: World) {
    let store = &*world.records;
    let record = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    put_record(store, "lease/2", record("two")).await.expect("it is kept");
    put_record(store, "lease/1", record("one")).await.expect("it is kept");
    put_record(store, "leasf", record("other")).await.expect("it is kept");
    put_record(store, "lease/1", record("uno")).await.expect("it is replaced");
    put_record(store, "alarm", record("")).await.expect("it is kept");
    put_record(store, "alarm", None).await.expect("it is forgotten");
    put_record(store, "never", None).await.expect("there is nothing to forget");
    let names = |records: Vec<(String, Bytes)>| -> Vec<String> {
        records.into_iter().map(|(name, value)| format!("{name}={value:?}")).collect()
    };
    let exact = store.get_record("lease/").await.expect("it is looked for");
    assert_eq!(exact, None, "a part of a name is no name");
    let exact = store.get_record("lease/1").await.expect("it is looked for");
    assert_eq!(exact, record("uno"));
    let leases = store.scan_records("lease/").await.expect("it is recalled");
    assert_eq!(names(leases), ["lease/1=b\"uno\"", "lease/2=b\"two\""]);
    let all = store.scan_records("").await.expect("it is recalled");
    assert_eq!(all.len(), 3);
}

async fn records_are_no_keys(world: World) {
    let store = &*world.store;
    let before = world.clock.now();
    put_record(&*world.records, "lease/1", Some(Bytes::from_static(b"one")))
        .await
        .expect("it is kept");
    assert_eq!(world.clock.now(), before, "a record takes no revision");
    assert!(kvs(store, KeyRange::all(), before).await.is_empty());
    let written = put(store, key(0, "a"), bytes("a")).await;
    assert_eq!(commits(store, 0, written).await.len(), 1, "a record is not in the log");
}

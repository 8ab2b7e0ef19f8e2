//! Keys of leases, and the records of a node.

use bytes::Bytes;
use pleach::{model::KeyRange, store::Write};

use crate::{
    follow::commits,
    words::{FAMILIES, all_of, apply, bytes, key, kvs, put, put_op},
    world::World,
};

on_every_composition! {
    the_keys_of_a_lease_go_in_key_order_at_one_revision,
    a_key_that_left_its_lease_stays,
    keys_of_a_lease_go_from_every_store,
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
    let written = store.apply(Write::DeleteLeased(9)).await.expect("the lease ends");
    assert_eq!(written.revision, stays + 1);
    let commits = commits(store, stays, written.revision).await;
    assert_eq!(commits.len(), 1);
    let gone: Vec<_> = commits[0].events.iter().map(|event| event.kv.key.clone()).collect();
    assert_eq!(gone, ["a", "b", "c", "d"].map(|name| key(1, name)));
    assert!(commits[0].events.iter().all(|event| event.is_delete() && event.prev.is_some()));
    assert_eq!(kvs(store, KeyRange::all(), written.revision).await.len(), 1);
    assert_eq!(kvs(store, KeyRange::all(), stays).await.len(), names.len() + 1);
}

async fn a_key_that_left_its_lease_stays(world: World) {
    let store = &*world.store;
    for lease in [9, 0, 9, 8] {
        apply(store, put_op(key(2, "a"), bytes(lease), lease).into()).await.expect("it is taken");
    }
    let before = world.clock.shown();
    let written = store.apply(Write::DeleteLeased(9)).await.expect("the lease ends");
    assert_eq!(written.revision, before);
    assert_eq!(kvs(store, KeyRange::all(), before).await.len(), 1);
}

async fn keys_of_a_lease_go_from_every_store(world: World) {
    let store = &*world.store;
    for family in 0..FAMILIES.len() {
        let leased = put_op(key(family, "leased"), bytes(family), 5);
        let stays = put_op(key(family, "stays"), bytes(family), 0);
        apply(store, all_of(vec![leased, stays])).await.expect("the keys lie in one store");
    }
    let written = store.apply(Write::DeleteLeased(5)).await.expect("the lease ends");
    assert_eq!(written.revision, world.clock.shown(), "the answer is as new as its last change");
    let left = kvs(store, KeyRange::all(), written.revision).await;
    assert_eq!(left.len(), FAMILIES.len());
    assert!(left.iter().all(|kv| kv.lease == 0));
}

pub(crate) async fn records_are_kept_replaced_and_forgotten(world: World) {
    let store = &*world.store;
    let record = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    store.remember("lease/2", record("two")).await.expect("it is kept");
    store.remember("lease/1", record("one")).await.expect("it is kept");
    store.remember("leasf", record("other")).await.expect("it is kept");
    store.remember("lease/1", record("uno")).await.expect("it is replaced");
    store.remember("alarm", record("")).await.expect("it is kept");
    store.remember("alarm", None).await.expect("it is forgotten");
    store.remember("never", None).await.expect("there is nothing to forget");
    let names = |records: Vec<(String, Bytes)>| -> Vec<String> {
        records.into_iter().map(|(name, value)| format!("{name}={value:?}")).collect()
    };
    let leases = store.recall("lease/").await.expect("it is recalled");
    assert_eq!(names(leases), ["lease/1=b\"uno\"", "lease/2=b\"two\""]);
    let all = store.recall("").await.expect("it is recalled");
    assert_eq!(all.len(), 3);
}

async fn records_are_no_keys(world: World) {
    let store = &*world.store;
    let before = world.clock.now();
    store.remember("lease/1", Some(Bytes::from_static(b"one"))).await.expect("it is kept");
    assert_eq!(world.clock.now(), before, "a record takes no revision");
    assert!(kvs(store, KeyRange::all(), before).await.is_empty());
    let written = put(store, key(0, "a"), bytes("a")).await;
    assert_eq!(commits(store, 0, written).await.len(), 1, "a record is not in the log");
}

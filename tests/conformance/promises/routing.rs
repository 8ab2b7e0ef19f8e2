//! What is promised of stores made of stores.

use std::sync::Arc;

use futures::FutureExt as _;
use pleach::{
    model::{KeyRange, StoreError},
    route::Router,
    store::{Query, Store, memory::Memory, read_all},
};

use crate::{
    follow::{Follower, commits, soon},
    stalled::Stalled,
    words::{
        FAMILIES, all_of, apply, bytes, family_range, get, key, keys_of, kvs, put, put_op,
        range_op, unchanged_since,
    },
    world::{World, fresh_clock, pods, route},
};

on_every_composition! {
    each_key_lives_in_the_store_that_its_rule_names,
    a_transaction_over_two_stores_is_refused_with_both_names,
    strays_are_never_shown,
    strays_of_others_are_never_shown_whenever_they_come,
    a_narrow_store_says_all_that_its_range_holds,
}

async fn each_key_lives_in_the_store_that_its_rule_names(world: World) {
    for family in 0..FAMILIES.len() {
        let key = key(family, "a");
        let revision = put(&*world.store, key.clone(), bytes("a")).await;
        for (at, leaf) in world.leaves.iter().enumerate() {
            let is_there = get(&*leaf.store, &key, revision).await.is_some();
            assert_eq!(is_there, at == world.composition.leaf_of(family), "{key:?} in {leaf:?}");
        }
    }
}

async fn a_transaction_over_two_stores_is_refused_with_both_names(world: World) {
    let store = &*world.store;
    for (one, other) in [(0, 1), (1, 3), (4, 0), (3, 4), (2, 1)] {
        let leaf_of = |family| world.composition.leaf_of(family);
        let put_one = put_op(key(one, "a"), bytes("a"), 0);
        let mut compared = all_of(vec![put_one.clone()]);
        compared.compares.push(unchanged_since(&key(other, "a"), 0));
        let with_put = all_of(vec![put_one.clone(), put_op(key(other, "a"), bytes("a"), 0)]);
        let with_read = all_of(vec![put_one, range_op(KeyRange::single(key(other, "b")), 0)]);
        for txn in [compared, with_put, with_read] {
            let before = world.clock.now();
            let written = apply(store, txn).await;
            if leaf_of(one) == leaf_of(other) {
                written.expect("the keys lie in one store");
                continue;
            }
            let Err(StoreError::TwoStores { first, second }) = written else {
                panic!("keys of two stores in one transaction: {written:?}");
            };
            assert_ne!(first, second);
            let names = world.routers.iter().map(|router| {
                [one, other].map(|family| router.explain(&key(family, "a")).route.to_string())
            });
            let said = [&*first, &*second];
            let is_named = |names: [String; 2]| names.iter().all(|name| said.contains(&&**name));
            assert!(names.into_iter().any(is_named), "{said:?} for {one} and {other}");
            assert_eq!(world.clock.now(), before);
        }
    }
}

/// Every leaf gets keys of every family, as if the rules had been others once. All but those that
/// are where the rules say now must never be seen.
async fn strays_are_never_shown(world: World) {
    let mut expected = Vec::new();
    for (at, leaf) in world.leaves.iter().enumerate() {
        for family in 0..FAMILIES.len() {
            for name in ["a", "b"] {
                let key = key(family, format!("{name}-{at}"));
                put(&*leaf.store, key.clone(), bytes(at)).await;
                if world.composition.leaf_of(family) == at {
                    expected.push(String::from_utf8_lossy(&key).into_owned());
                }
            }
        }
    }
    expected.sort();
    let with_strays = world.clock.shown();
    assert_shown(&world, &expected).await;
    survey(&world).await;
    assert_shown(&world, &expected).await;

    // The misrouted are deleted where they are, so that another survey finds none.
    for (at, leaf) in world.leaves.iter().enumerate() {
        for family in (0..FAMILIES.len()).filter(|f| world.composition.leaf_of(*f) != at) {
            crate::words::delete(&*leaf.store, family_range(family)).await;
        }
    }
    survey(&world).await;
    assert_shown(&world, &expected).await;
    let found = keys_of(&kvs(&*world.store, KeyRange::all(), with_strays).await);
    assert_eq!(found, expected, "as of when there were misrouted");
    let count = crate::words::count(&*world.store, KeyRange::all(), with_strays)
        .await
        .expect("it can be read");
    assert_eq!(count, expected.len() as u64, "as of when there were misrouted");
}

/// A node that is a child has clients of its own, and an etcd others that write: what they put where it
/// routes elsewhere comes after every survey.
async fn strays_of_others_are_never_shown_whenever_they_come(world: World) {
    let mut expected = Vec::new();
    for family in 0..FAMILIES.len() {
        let key = key(family, "a");
        put(&*world.store, key.clone(), bytes("routed")).await;
        expected.push(String::from_utf8_lossy(&key).into_owned());
    }
    expected.sort();
    survey(&world).await;
    for (at, leaf) in world.leaves.iter().enumerate().filter(|(_, leaf)| leaf.has_other_writers()) {
        for family in (0..FAMILIES.len()).filter(|f| world.composition.leaf_of(*f) != at) {
            for name in ["a", "b"] {
                put(&*leaf.store, key(family, name), bytes("stray")).await;
            }
        }
    }
    assert_shown(&world, &expected).await;
    for limit in 1..4 {
        let read = Query { limit, ..Query::new(KeyRange::all(), world.clock.shown()) };
        let page = read_all(&*world.store, &read).await.expect("it can be read");
        assert_eq!(keys_of(&page.kvs), expected[..limit.min(expected.len())]);
    }
}

async fn survey(world: &World) {
    for router in &world.routers {
        let stores: Vec<_> = router.stores().cloned().collect();
        let places: Vec<usize> = (0..stores.len()).collect();
        for (_, found) in router.survey(&stores, &places, world.clock.shown()).await {
            found.expect("all stores are there");
        }
    }
}

async fn assert_shown(world: &World, expected: &[String]) {
    let (store, at) = (&*world.store, world.clock.shown());
    assert_eq!(keys_of(&kvs(store, KeyRange::all(), at).await), expected);
    let count = crate::words::count(store, KeyRange::all(), at).await.expect("it can be read");
    assert_eq!(count, expected.len() as u64);
    for (family, prefix) in FAMILIES.iter().enumerate() {
        let range = family_range(family);
        let of_family: Vec<_> =
            expected.iter().filter(|key| key.starts_with(prefix)).cloned().collect();
        assert_eq!(keys_of(&kvs(store, range.clone(), at).await), of_family);
        let count = store.count(&Query::new(range.clone(), at)).await.expect("it can be read");
        assert_eq!(count, of_family.len() as u64);
    }
    let mut told: Vec<String> = Vec::new();
    for commit in commits(store, 0, at).await {
        for event in &commit.events {
            assert!(!event.is_delete(), "only misrouted were deleted: {event:?}");
            told.push(String::from_utf8_lossy(&event.kv.key).into_owned());
        }
    }
    told.sort();
    assert_eq!(told, expected);
}

async fn a_narrow_store_says_all_that_its_range_holds(world: World) {
    for at in 0..30usize {
        put(&*world.store, key(at % FAMILIES.len(), at), bytes(at)).await;
    }
    let at = world.clock.shown();
    let log = commits(&*world.store, 0, at).await;
    let pods = KeyRange::prefix(pleach::model::Key::from_static(b"/registry/pods/"));
    let families = (0..FAMILIES.len()).map(family_range);
    for range in families.chain([KeyRange::all(), pods, KeyRange::single(key(0, 0))]) {
        let narrow = world.narrow(&range);
        let whole = kvs(&*world.store, range.clone(), at).await;
        assert_eq!(kvs(&*narrow, range.clone(), at).await, whole);
        let count = narrow.count(&Query::new(range.clone(), at)).await.expect("it can be read");
        assert_eq!(count, whole.len() as u64);
        let inside = |commits: Vec<Arc<pleach::model::Commit>>| {
            let mut events: Vec<_> =
                commits.iter().flat_map(|commit| commit.events.clone()).collect();
            events.retain(|event| range.contains(&event.kv.key));
            events
        };
        assert_eq!(inside(commits(&*narrow, 0, at).await), inside(log.clone()), "in {range:?}");
    }
}

/// A router over a store that hangs, and one that does not; and the router in another one.
fn half_stalled() -> (Arc<Stalled>, Arc<Router>, Arc<Router>, pleach::clock::SharedClock) {
    let clock = fresh_clock();
    let stalled = Stalled::new(Memory::new("stalled", clock.clone()));
    let inner =
        Router::new(vec![route(pods(), stalled.clone())], Memory::new("fine", clock.clone()));
    let shirts = route(crate::world::shirts(), Memory::new("shirts", clock.clone()));
    (stalled, Router::new(vec![shirts], inner.clone()), inner, clock)
}

#[tokio::test]
async fn a_store_that_hangs_delays_no_other_stores_keys() {
    let (stalled, store, inner, clock) = half_stalled();
    let hanging = tokio::spawn({
        let store = store.clone();
        async move { put(&*store, key(1, "hangs"), bytes("hangs")).await }
    });
    let range = family_range(0);
    assert_eq!(store.narrow(&range).name(), inner.name());
    let narrow = inner.narrow(&range);
    let mut narrow_tail = Follower::start(&*narrow, 0);
    let mut whole_tail = Follower::start(&*store, 0);
    let revision = soon("a put beside", put(&*store, key(0, "a"), bytes("a"))).await;
    soon("a read beside", kvs(&*store, range.clone(), revision)).await;
    soon("a narrow read", kvs(&*narrow, range.clone(), revision)).await;
    soon("a count beside", store.count(&Query::new(range.clone(), revision)))
        .await
        .expect("it can be read");
    soon("a narrow sync", narrow.advance_closed(revision, 0))
        .await
        .expect("nothing is in flight there");
    narrow_tail.reach(revision).await.expect("nothing was compacted");
    assert_eq!(narrow_tail.commits.len(), 1);

    // What spans both waits, for else an answer would not be whole.
    assert!(kvs(&*store, KeyRange::all(), revision).now_or_never().is_none());
    assert!(whole_tail.next().now_or_never().is_none());
    stalled.resume();
    let last = soon("the put that hung", hanging).await.expect("it is taken");
    whole_tail.reach(last).await.expect("nothing was compacted");
    assert_eq!(whole_tail.commits.len(), 2);
    assert_eq!(kvs(&*store, KeyRange::all(), clock.shown()).await.len(), 2);
}

#[tokio::test]
async fn a_number_in_flight_in_one_store_holds_up_only_what_spans_it() {
    let clock = fresh_clock();
    let slot = clock.add_store();
    let store: Arc<dyn Store> = Memory::new("fine", clock.clone());
    let in_flight = clock.allocate(slot).expect("there are numbers left");
    let revision = put(&*store, key(0, "a"), bytes("a")).await;
    assert!(revision > in_flight && clock.closed(slot) < in_flight);
    let mut tail = Follower::start(&*store, 0);
    tail.reach(revision).await.expect("nothing was compacted");
    assert_eq!(soon("a read", kvs(&*store, KeyRange::all(), revision)).await.len(), 1);
    let nothing = store.end_lease(1).await.expect("there is no key");
    assert_eq!(nothing, None);
}

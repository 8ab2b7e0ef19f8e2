//! Reads are snapshots, at any revision that can be read.

use pleach::{
    model::{KeyRange, Revision},
    store::{Page, Query, Store},
};

use crate::{
    follow::soon,
    words::{FAMILIES, all_of, apply, bytes, delete, family_range, get, key, kvs, put, put_op},
    world::World,
};

on_every_composition! {
    reads_at_every_revision_are_exact_snapshots,
    pages_of_one_revision_fit_together_while_writes_go_on,
    a_count_is_the_number_of_keys_read,
    keys_come_ordered_over_all_stores_and_without_values_where_asked,
    keys_of_a_lease_are_found_wherever_they_live,
}

pub(crate) async fn reads_at_every_revision_are_exact_snapshots(world: World) {
    let store = &*world.store;
    let mut history: Vec<(Revision, Vec<(bytes::Bytes, bytes::Bytes)>)> = Vec::new();
    let mut state = std::collections::BTreeMap::new();
    for step in 0..60usize {
        let key = key(step % FAMILIES.len(), step * 7 % 4);
        let revision = if step % 5 == 3 {
            state.remove(&key);
            delete(store, KeyRange::single(key)).await
        } else {
            state.insert(key.clone(), bytes(step));
            put(store, key, bytes(step)).await
        };
        history.push((revision, state.clone().into_iter().collect()));
    }
    for (revision, expected) in &history {
        let found = kvs(store, KeyRange::all(), *revision).await;
        let found: Vec<_> = found.into_iter().map(|kv| (kv.key, kv.value)).collect();
        assert_eq!(&found, expected, "as of revision {revision}");
        for (key, value) in expected {
            let one = get(store, key, *revision).await.map(|kv| kv.value);
            assert_eq!(one.as_ref(), Some(value), "{key:?} as of revision {revision}");
        }
    }
}

/// All pages of a read with a limit, while `between` does something else after each page.
async fn pages(
    store: &dyn Store,
    limit: usize,
    at: Revision,
    mut between: impl AsyncFnMut(usize),
) -> Vec<Page> {
    let mut read = Query { limit, ..Query::new(KeyRange::all(), at) };
    let mut pages = Vec::new();
    loop {
        let page = soon("a page", store.read(&read)).await.expect("the revision can be read");
        assert!(page.kvs.len() <= limit, "{} keys in a page of {limit}", page.kvs.len());
        let next = page.next.clone();
        pages.push(page);
        between(pages.len()).await;
        let Some(next) = next else { return pages };
        assert!(next > read.range.start, "a page that leads nowhere");
        read.range.start = next;
    }
}

pub(crate) async fn pages_of_one_revision_fit_together_while_writes_go_on(world: World) {
    let store = &*world.store;
    for at in 0..30 {
        put(store, key(at % FAMILIES.len(), at), bytes(at)).await;
    }
    let at = world.clock.shown();
    let whole = kvs(store, KeyRange::all(), at).await;
    let disturb = async |page: usize| {
        put(store, key(page % FAMILIES.len(), page), bytes("changed")).await;
        put(store, key(page % FAMILIES.len(), format!("new-{page}")), bytes("new")).await;
        delete(store, KeyRange::single(key((page + 1) % FAMILIES.len(), page + 1))).await;
    };
    let pages = pages(store, 3, at, disturb).await;
    let together: Vec<_> = pages.into_iter().flat_map(|page| page.kvs).collect();
    assert_eq!(together, whole);
}

pub(crate) async fn a_count_is_the_number_of_keys_read(world: World) {
    let store = &*world.store;
    for at in 0..40 {
        put(store, key(at % FAMILIES.len(), at / 2), bytes(at)).await;
        if at % 4 == 1 {
            delete(store, KeyRange::single(key((at + 2) % FAMILIES.len(), at / 2))).await;
        }
    }
    let families = (0..FAMILIES.len()).map(family_range);
    let single = KeyRange::single(key(0, 0));
    let ranges: Vec<_> = families.chain([KeyRange::all(), single]).collect();
    for revision in 1..=world.clock.shown() {
        for range in &ranges {
            let count =
                crate::words::count(store, range.clone(), revision).await.expect("it can be read");
            let keys = kvs(store, range.clone(), revision).await.len();
            assert_eq!(count, keys as u64, "{range:?} as of revision {revision}");
        }
    }
}

async fn keys_come_ordered_over_all_stores_and_without_values_where_asked(world: World) {
    let store = &*world.store;
    for at in (0..25).rev() {
        put(store, key(at % FAMILIES.len(), at), bytes(at)).await;
    }
    let at = world.clock.shown();
    let whole = kvs(store, KeyRange::all(), at).await;
    assert!(whole.is_sorted_by(|a, b| a.key < b.key));
    let read = Query { keys_only: true, ..Query::new(KeyRange::all(), at) };
    let keys = pleach::store::read_all(store, &read).await.expect("it can be read").kvs;
    assert!(keys.iter().all(|kv| kv.value.is_empty()));
    let without_value = |kv: &pleach::model::KeyValue| pleach::model::KeyValue {
        value: bytes::Bytes::new(),
        ..kv.clone()
    };
    assert_eq!(keys, whole.iter().map(without_value).collect::<Vec<_>>());
}

async fn keys_of_a_lease_are_found_wherever_they_live(world: World) {
    let store = &*world.store;
    let mut expected = Vec::new();
    for family in 0..FAMILIES.len() {
        let leased = put_op(key(family, "leased"), bytes(family), 5);
        let other = put_op(key(family, "other"), bytes(family), 6);
        apply(store, all_of(vec![leased, other])).await.expect("the keys lie in one store");
        expected.push(key(family, "leased"));
    }
    expected.sort();
    let read = Query { lease: 5, ..Query::new(KeyRange::all(), world.clock.shown()) };
    let found = pleach::store::read_all(store, &read).await.expect("it can be read").kvs;
    assert_eq!(found.into_iter().map(|kv| kv.key).collect::<Vec<_>>(), expected);
}

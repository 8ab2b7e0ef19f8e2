//! One order, and all or nothing.

use pleach::model::{KeyRange, StoreError, txn::OpResult};

use crate::{
    follow::{commits, revisions},
    words::{
        FAMILIES, all_of, apply, bytes, delete, delete_op, family_range, get, key, keys_of, kvs,
        put, put_op, range_op, unchanged_since,
    },
    world::World,
};

on_every_composition! {
    writes_take_one_revision_each_in_one_order_over_all_stores,
    a_write_that_changes_nothing_takes_no_revision,
    what_shares_a_revision_is_applied_whole,
    a_refused_transaction_changes_nothing,
    a_key_counts_its_versions_and_begins_anew_after_deletion,
    a_transaction_reads_the_past_and_its_own_changes,
}

pub(crate) async fn writes_take_one_revision_each_in_one_order_over_all_stores(world: World) {
    let store = &*world.store;
    let mut written = Vec::new();
    for round in 0..4 {
        for family in 0..FAMILIES.len() {
            written.push(put(store, key(family, "a"), bytes(round)).await);
        }
    }
    let expected: Vec<_> = (2..2 + written.len() as i64).collect();
    assert_eq!(written, expected);
    assert_eq!(world.clock.shown(), written[written.len() - 1]);
    assert_eq!(revisions(&commits(store, 0, world.clock.shown()).await), expected);
}

async fn a_write_that_changes_nothing_takes_no_revision(world: World) {
    let store = &*world.store;
    let first = put(store, key(0, "a"), bytes(1)).await;
    assert_eq!(delete(store, family_range(1)).await, first);
    assert_eq!(delete(store, KeyRange::single(key(0, "b"))).await, first);
    let mut guarded = all_of(vec![put_op(key(0, "a"), bytes(2), 0)]);
    guarded.compares.push(unchanged_since(&key(0, "a"), first - 1));
    let written = apply(store, guarded).await.expect("a failed compare is no error");
    assert_eq!((written.revision, written.result.succeeded), (first, false));
    let nothing_leased = store.end_lease(7).await.expect("no key is no error");
    assert_eq!(nothing_leased, None);
    assert_eq!(world.clock.now(), first);
    assert_eq!(put(store, key(2, "a"), bytes(3)).await, first + 1);
}

pub(crate) async fn what_shares_a_revision_is_applied_whole(world: World) {
    let store = &*world.store;
    let before = put(store, key(1, "old"), bytes(0)).await;
    let ops = vec![
        put_op(key(1, "a"), bytes(1), 0),
        delete_op(KeyRange::single(key(1, "old"))),
        put_op(key(1, "b"), bytes(2), 0),
    ];
    let written = apply(store, all_of(ops)).await.expect("the keys lie in one store");
    assert_eq!(written.revision, before + 1);
    assert_eq!(keys_of(&kvs(store, family_range(1), before).await).len(), 1);
    let after = kvs(store, family_range(1), written.revision).await;
    assert_eq!(after.iter().map(|kv| &kv.key).collect::<Vec<_>>(), [&key(1, "a"), &key(1, "b")]);
    let commits = commits(store, before, written.revision).await;
    assert_eq!(commits.len(), 1);
    let events: Vec<_> =
        commits[0].events.iter().map(|event| (event.kv.key.clone(), event.is_delete())).collect();
    let expected = [(key(1, "a"), false), (key(1, "old"), true), (key(1, "b"), false)];
    assert_eq!(events, expected, "events come in the order of the operations");
}

async fn a_refused_transaction_changes_nothing(world: World) {
    let store = &*world.store;
    let before = put(store, key(3, "a"), bytes(1)).await;
    let txn = all_of(vec![put_op(key(3, "a"), bytes(2), 0), put_op(key(3, "b"), bytes(2), 99)]);
    let refused = store.apply(txn, vec![99]).await;
    assert!(matches!(refused, Err(StoreError::LeaseNotFound(99))), "{refused:?}");
    let future = range_op(family_range(3), before + 10);
    let refused = apply(store, all_of(vec![put_op(key(3, "a"), bytes(2), 0), future])).await;
    assert!(matches!(refused, Err(StoreError::FutureRevision { .. })), "{refused:?}");
    assert_eq!(world.clock.now(), before);
    let found = get(store, &key(3, "a"), before).await.expect("it was put");
    assert_eq!(found.value, bytes(1));
    assert!(get(store, &key(3, "b"), before).await.is_none());
}

async fn a_key_counts_its_versions_and_begins_anew_after_deletion(world: World) {
    let store = &*world.store;
    for family in 0..FAMILIES.len() {
        let key = key(family, "a");
        let created = put(store, key.clone(), bytes(1)).await;
        let changed = put(store, key.clone(), bytes(2)).await;
        let kv = get(store, &key, changed).await.expect("it was put");
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (created, changed, 2));
        delete(store, KeyRange::single(key.clone())).await;
        let again = put(store, key.clone(), bytes(3)).await;
        let kv = get(store, &key, again).await.expect("it was put again");
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
    }
}

async fn a_transaction_reads_the_past_and_its_own_changes(world: World) {
    let store = &*world.store;
    let old = put(store, key(4, "a"), bytes("old")).await;
    put(store, key(4, "a"), bytes("new")).await;
    let ops = vec![
        put_op(key(4, "a"), bytes("newest"), 0),
        range_op(family_range(4), old),
        range_op(family_range(4), 0),
    ];
    let written = apply(store, all_of(ops)).await.expect("the keys lie in one store");
    let values: Vec<_> = written.result.results[1..]
        .iter()
        .map(|result| match result {
            OpResult::Range { found, .. } => found.kvs[0].value.clone(),
            other => panic!("{other:?} answers a range"),
        })
        .collect();
    assert_eq!(values, [bytes("old"), bytes("newest")]);
}

//! Durable before answered: what was acknowledged is there when the files are opened again.

use bytes::Bytes;
use pleach::model::KeyRange;

use super::tails::some_writes;
use crate::{
    follow::{commits, revisions},
    words::{FAMILIES, apply, bytes, key, kvs, put, put_op, put_record},
    world::World,
};

on_every_composition! {
    everything_is_there_after_a_restart,
    a_tail_goes_on_after_a_restart_where_it_stopped,
    revisions_go_on_after_a_restart,
    a_restart_in_the_midst_of_compaction_finishes_it_later,
}

async fn everything_is_there_after_a_restart(world: World) {
    some_writes(&world).await;
    let leased = put_op(key(1, "leased"), bytes("leased"), 77);
    apply(&*world.store, leased.into()).await.expect("it is taken");
    let record = Bytes::from_static(b"record");
    put_record(&*world.records, "lease/77", Some(record.clone())).await.expect("it is kept");
    let last = world.clock.shown();
    let mut before = Vec::new();
    for revision in 1..=last {
        before.push(kvs(&*world.store, KeyRange::all(), revision).await);
    }
    let log = commits(&*world.store, 0, last).await;

    let world = world.reopened().await;
    assert_eq!(world.clock.shown(), last, "the clock stands where it stood");
    for (revision, expected) in (1..).zip(&before) {
        assert_eq!(&kvs(&*world.store, KeyRange::all(), revision).await, expected);
    }
    assert_eq!(commits(&*world.store, 0, last).await, log);
    let records = world.records.scan_records("").await.expect("it is recalled");
    assert_eq!(records, [("lease/77".to_owned(), record)]);
}

async fn a_tail_goes_on_after_a_restart_where_it_stopped(world: World) {
    let mut written = some_writes(&world).await;
    let stopped = written[written.len() / 2];
    let first = commits(&*world.store, 0, stopped).await;
    let world = world.reopened().await;
    for family in 0..FAMILIES.len() {
        written.push(put(&*world.store, key(family, "later"), bytes("later")).await);
    }
    let rest = commits(&*world.store, stopped, world.clock.shown()).await;
    assert_eq!([revisions(&first), revisions(&rest)].concat(), written);
}

async fn revisions_go_on_after_a_restart(world: World) {
    let mut world = world;
    let mut last = 1;
    for life in 0..3 {
        for family in 0..FAMILIES.len() {
            let written = put(&*world.store, key(family, life), bytes(life)).await;
            assert_eq!(written, last + 1);
            last = written;
        }
        // Even where the newest row is a deletion that compaction has dropped.
        last = crate::words::delete(&*world.store, KeyRange::single(key(life, life))).await;
        world.store.compact(last, true).await.expect("it is compacted");
        world = world.reopened().await;
        assert_eq!(world.clock.shown(), last);
    }
}

async fn a_restart_in_the_midst_of_compaction_finishes_it_later(world: World) {
    for at in 0..900usize {
        put(&*world.store, key(at % FAMILIES.len(), at % 10), bytes(at)).await;
    }
    let last = world.clock.shown();
    let before = kvs(&*world.store, KeyRange::all(), last).await;
    world.store.compact(last, false).await.expect("it is compacted");
    let world = world.reopened().await;
    assert_eq!(world.store.compacted(), last);
    assert_eq!(kvs(&*world.store, KeyRange::all(), last).await, before);
    let later = put(&*world.store, key(0, "later"), bytes("later")).await;
    world.store.compact(later, true).await.expect("it is compacted");
    assert_eq!(kvs(&*world.store, KeyRange::all(), later).await.len(), before.len() + 1);
}

//! Compaction is a line: at and above it everything can be read, below it nothing.

use futures::future::join_all;
use pleach::{
    model::{KeyRange, Revision, StoreError},
    store::Query,
};

use crate::{
    follow::{Follower, commits, soon},
    words::{FAMILIES, all_of, apply, bytes, delete, delete_op, get, key, kvs, list, put, put_op},
    world::{DATABASE, Place, World, server},
};

on_every_composition! {
    what_is_compacted_is_refused_and_the_rest_reads_as_before,
    compacting_to_an_older_revision_changes_nothing,
    a_deletion_at_the_compacted_revision_is_seen_by_a_tail_that_starts_there,
    a_key_deleted_and_put_at_the_compacted_revision_shows_both_to_a_tail,
    a_tail_that_compaction_overtook_ends_or_misses_nothing,
    compacted_rows_are_gone_from_the_tables,
    every_compaction_that_waits_returns_when_its_rows_are_gone,
    compaction_and_writes_do_not_wait_for_each_other,
}

fn is_compacted<T: std::fmt::Debug>(result: &Result<T, StoreError>, at: Revision) -> bool {
    matches!(result, Err(StoreError::Compacted { compacted }) if *compacted == at)
}

/// Puts and deletes in every store, each key a few times.
async fn churn(world: &World, rounds: usize) {
    for at in 0..rounds {
        let family = at % FAMILIES.len();
        put(&*world.store, key(family, at % 4), bytes(at)).await;
        if at % 6 == 5 {
            delete(&*world.store, KeyRange::single(key(family, at % 4))).await;
        }
    }
}

pub(crate) async fn what_is_compacted_is_refused_and_the_rest_reads_as_before(world: World) {
    let store = &*world.store;
    assert_eq!(store.compacted(), -1);
    churn(&world, 48).await;
    let last = world.clock.shown();
    let line = last / 2;
    let mut before = Vec::new();
    for revision in line..=last {
        before.push(kvs(store, KeyRange::all(), revision).await);
    }
    store.compact(line, true).await.expect("it is compacted");
    assert_eq!(store.compacted(), line);
    for revision in 1..line {
        let read = list(store, KeyRange::all(), revision).await;
        assert!(is_compacted(&read, line), "a read as of {revision}: {read:?}");
        let one = store.read(&Query::new(KeyRange::single(key(1, 1)), revision)).await;
        assert!(is_compacted(&one, line), "a get as of {revision}: {one:?}");
        let count = crate::words::count(store, KeyRange::all(), revision).await;
        assert!(is_compacted(&count, line), "a count as of {revision}: {count:?}");
        // The first that a tail from behind `revision` wants is the one after it.
        let tail = Follower::start(store, revision - 1).next().await.map(|batch| batch.closed);
        assert!(is_compacted(&tail, line), "a tail from {revision}: {tail:?}");
    }
    for (revision, expected) in (line..).zip(&before) {
        assert_eq!(&kvs(store, KeyRange::all(), revision).await, expected, "as of {revision}");
        let count =
            crate::words::count(store, KeyRange::all(), revision).await.expect("it can be read");
        assert_eq!(count, expected.len() as u64, "a count as of {revision}");
    }
    assert_eq!(commits(store, line - 1, last).await.len() as i64, last - line + 1);
}

async fn compacting_to_an_older_revision_changes_nothing(world: World) {
    churn(&world, 24).await;
    let last = world.clock.shown();
    world.store.compact(last, true).await.expect("it is compacted");
    world.store.compact(last / 2, true).await.expect("it is compacted already");
    assert_eq!(world.store.compacted(), last);
    let world = world.reopened().await;
    assert_eq!(world.store.compacted(), last, "after a restart");
    let read = list(&*world.store, KeyRange::all(), last - 1).await;
    assert!(is_compacted(&read, last), "{read:?}");
}

async fn a_deletion_at_the_compacted_revision_is_seen_by_a_tail_that_starts_there(world: World) {
    for family in 0..FAMILIES.len() {
        put(&*world.store, key(family, "a"), bytes("a")).await;
    }
    for family in 0..FAMILIES.len() {
        let gone = delete(&*world.store, KeyRange::single(key(family, "a"))).await;
        world.store.compact(gone, true).await.expect("it is compacted");
    }
    // Only what lies in memory was looked at by now; the next life has nothing but the tables.
    let world = world.reopened().await;
    let last = world.store.compacted();
    let told = commits(&*world.store, last - 1, last).await;
    assert_eq!(told.len(), 1);
    assert!(told[0].events[0].is_delete());
    assert_eq!(told[0].events[0].kv.key, key(FAMILIES.len() - 1, "a"));
}

async fn a_key_deleted_and_put_at_the_compacted_revision_shows_both_to_a_tail(world: World) {
    put(&*world.store, key(0, "a"), bytes("old")).await;
    let single = KeyRange::single(key(0, "a"));
    let ops = vec![delete_op(single), put_op(key(0, "a"), bytes("new"), 0)];
    let both = apply(&*world.store, all_of(ops)).await.expect("one key").revision;
    world.store.compact(both, true).await.expect("it is compacted");
    let world = world.reopened().await;
    let told = commits(&*world.store, both - 1, both).await;
    let kinds: Vec<_> = told[0].events.iter().map(|event| event.is_delete()).collect();
    assert_eq!(kinds, [true, false]);
    // What is left for the sake of such a tail must not come to light elsewhere, and goes later.
    let later = put(&*world.store, key(0, "b"), bytes("b")).await;
    world.store.compact(later, true).await.expect("it is compacted");
    assert_eq!(get(&*world.store, &key(0, "a"), later).await.expect("it is there").version, 1);
    assert_eq!(world.rows(0).await, world.tables(0).map(|_| (2, 2)));
}

async fn a_tail_that_compaction_overtook_ends_or_misses_nothing(world: World) {
    let store = &*world.store;
    churn(&world, 12).await;
    let mut follower = Follower::start(store, 0);
    follower.next().await.expect("nothing is compacted yet");
    churn(&world, 12).await;
    let last = world.clock.shown();
    store.compact(last, true).await.expect("it is compacted");
    match follower.reach(last).await {
        Ok(()) => assert_eq!(follower.commits.len() as i64, last - 1),
        ended => assert!(is_compacted(&ended, last), "{ended:?}"),
    }
}

async fn compacted_rows_are_gone_from_the_tables(world: World) {
    churn(&world, 200).await;
    let gone = delete(&*world.store, KeyRange::single(key(0, 0))).await;
    put(&*world.store, key(1, "last"), bytes("last")).await;
    let last = world.clock.shown();
    assert!(gone < last);
    world.store.compact(last, true).await.expect("it is compacted");
    let mut live = vec![0; world.leaves.len()];
    for family in 0..FAMILIES.len() {
        let range = crate::words::family_range(family);
        let count = kvs(&*world.store, range, last).await.len();
        live[world.composition.leaf_of(family)] += count;
    }
    for (leaf, live) in live.into_iter().enumerate() {
        let Some(rows) = world.rows(leaf).await else { continue };
        assert_eq!(rows, (live, live), "keys and log of leaf {leaf}");
    }
}

async fn every_compaction_that_waits_returns_when_its_rows_are_gone(world: World) {
    churn(&world, 400).await;
    let last = put(&*world.store, key(0, "last"), bytes("last")).await;
    let world = &world;
    let compact = |revision| async move {
        world.store.compact(revision, true).await.expect("it is compacted");
        let mut rows = 0;
        for leaf in 0..world.leaves.len() {
            rows += world.history_rows(leaf, revision).await.unwrap_or(0);
        }
        rows
    };
    // Those that meet in one batch must all be waited for.
    let left: Vec<usize> = join_all((1..5).map(|behind| last - behind).map(compact)).await;
    assert_eq!(left, [0; 4], "rows that only older reads need");
}

async fn compaction_and_writes_do_not_wait_for_each_other(world: World) {
    let store = &*world.store;
    for round in 0..30 {
        let puts = (0..100).map(|at| put(store, key(at % FAMILIES.len(), at), bytes(round)));
        join_all(puts).await;
    }
    let line = world.clock.shown();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let compaction = async {
        store.compact(line, true).await.expect("it is compacted");
        is_done.store(true, std::sync::atomic::Ordering::Release);
    };
    // Writes never stop before compaction is done, and it must be done all the same.
    let writes = async {
        let mut at = 0usize;
        while !is_done.load(std::sync::atomic::Ordering::Acquire) {
            put(store, key(at % FAMILIES.len(), at % 100), bytes("meanwhile")).await;
            at += 1;
        }
    };
    soon("compaction while writes go on", async { tokio::join!(compaction, writes) }).await;
    assert_eq!(kvs(store, KeyRange::all(), line).await.len(), 100);
}

// === impl World ===

impl World {
    fn tables(&self, leaf: usize) -> Option<&Place> {
        self.leaves[leaf].place.as_ref().filter(|place| place.has_tables())
    }

    /// The rows in the tables of a leaf: its keys and its log. `None` where it has no tables.
    async fn rows(&self, leaf: usize) -> Option<(usize, usize)> {
        let place = self.tables(leaf)?;
        let keys = ask(place, "SELECT count(*) FROM pleach_key").await;
        Some((keys, ask(place, "SELECT count(*) FROM pleach_log").await))
    }

    /// The rows of a leaf's log that only reads below `revision` could need.
    async fn history_rows(&self, leaf: usize, revision: Revision) -> Option<usize> {
        let place = self.tables(leaf)?;
        let superseded = "SELECT count(*) FROM pleach_log old JOIN pleach_log new \
                          ON new.prev_seq = old.seq WHERE new.revision <= ";
        Some(ask(place, &format!("{superseded}{revision}")).await)
    }
}

async fn ask(place: &Place, sql: &str) -> usize {
    match place {
        Place::File(path) => {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            let connection = rusqlite::Connection::open_with_flags(path, flags);
            let connection = connection.expect("it is a database");
            let rows: i64 =
                connection.query_row(sql, [], |row| row.get(0)).expect("the tables are there");
            usize::try_from(rows).expect("a count")
        }
        Place::Tables(kind, prefix) => {
            let sql = format!("{};", sql.replace("pleach_", prefix));
            let answer = server(*kind).await.sql(DATABASE, &sql).await.expect("it answers");
            answer.trim().parse().expect("a count")
        }
        Place::Etcd(_) => panic!("an etcd has no tables"),
    }
}

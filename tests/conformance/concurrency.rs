//! Many at once: nothing is lost, nothing is doubled, and every snapshot is one.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::join_all;
use pleach::{
    model::{Key, KeyRange, Revision},
    store::{Query, Store, read_all},
};

use crate::{
    follow::{Follower, commits, revisions, soon},
    promises::tails::a_tail_reads_the_log_where_memory_no_longer_reaches,
    words::{
        FAMILIES, all_of, apply, bytes, delete, family_range, get, key, kvs, number, put, put_op,
        unchanged_since,
    },
    world::World,
};

const WRITERS: usize = 8;
const INCREMENTS: usize = 20;

on_every_composition! { at once:
    a_tail_reads_the_log_where_memory_no_longer_reaches,
    no_update_is_lost_and_each_is_told_once,
    money_is_neither_made_nor_lost_in_any_snapshot,
    what_was_written_second_is_never_seen_first,
    counts_at_one_revision_stay_the_same_while_writes_go_on,
    writes_that_meet_in_one_batch_see_each_other,
}

/// Adds one to the number at `key`, as often as it takes. Returns the revision.
async fn increment(world: &World, key: &Key) -> Revision {
    let store = &*world.store;
    loop {
        let old = get(store, key, world.clock.shown()).await;
        let (revision, value) = old.map_or((0, 0), |kv| (kv.mod_revision, number(&kv.value)));
        // Whoever can come between shall.
        tokio::task::yield_now().await;
        let mut txn = all_of(vec![put_op(key.clone(), bytes(value + 1), 0)]);
        txn.compares.push(unchanged_since(key, revision));
        let written = apply(store, txn).await.expect("one key");
        if written.result.succeeded {
            return written.revision;
        }
    }
}

pub(crate) async fn no_update_is_lost_and_each_is_told_once(world: World) {
    let world = Arc::new(world);
    let mut live = Follower::start(&*world.store, 0);
    let writers = (0..WRITERS).map(|writer| {
        let world = world.clone();
        tokio::spawn(async move {
            let own = key(writer % FAMILIES.len(), format!("own-{writer}"));
            let mut acknowledged = Vec::new();
            for _ in 0..INCREMENTS {
                acknowledged.push(increment(&world, &key(0, "shared")).await);
                acknowledged.push(increment(&world, &own).await);
            }
            assert!(acknowledged.is_sorted(), "an answer went back in time");
            acknowledged
        })
    });
    let mut acknowledged = Vec::new();
    for writer in soon("all writes", join_all(writers)).await {
        acknowledged.extend(writer.expect("no writer fails"));
    }
    acknowledged.sort_unstable();
    let unique: BTreeSet<_> = acknowledged.iter().collect();
    assert_eq!(unique.len(), WRITERS * INCREMENTS * 2, "a revision was given twice");

    let last = world.clock.shown();
    let shared = get(&*world.store, &key(0, "shared"), last).await.expect("it was put");
    assert_eq!(number(&shared.value), (WRITERS * INCREMENTS) as u64);
    assert_eq!(shared.version, (WRITERS * INCREMENTS) as i64);
    assert_eq!(revisions(&commits(&*world.store, 0, last).await), acknowledged);
    live.reach(last).await.expect("nothing was compacted");
    assert_eq!(revisions(&live.commits), acknowledged, "the tail that was there meanwhile");
}

/// Runs `readers` again and again until `writers` is done, and at least once.
async fn meanwhile<W: Future<Output = ()> + Send + 'static>(
    writers: Vec<W>,
    mut reader: impl AsyncFnMut(),
) {
    let is_done = Arc::new(AtomicBool::new(false));
    let all = {
        let is_done = is_done.clone();
        tokio::spawn(async move {
            let writers = join_all(writers.into_iter().map(tokio::spawn)).await;
            is_done.store(true, Ordering::Release);
            writers.into_iter().for_each(|writer| writer.expect("no writer fails"));
        })
    };
    soon("reading while others write", async {
        loop {
            let is_last = is_done.load(Ordering::Acquire);
            reader().await;
            if is_last {
                break;
            }
        }
    })
    .await;
    all.await.expect("no writer fails");
}

async fn transfer(store: &dyn Store, shown: Revision, family: usize, from: usize, to: usize) {
    if from == to {
        return;
    }
    let accounts = [key(family, from), key(family, to)];
    let mut txn = all_of(Vec::new());
    for (account, is_from) in accounts.iter().zip([true, false]) {
        let kv = get(store, account, shown).await.expect("the account is there");
        let money = number(&kv.value);
        let money = if is_from { money.saturating_sub(1) } else { money + 1 };
        if is_from && number(&kv.value) == 0 {
            return;
        }
        txn.compares.push(unchanged_since(account, kv.mod_revision));
        txn.success.push(put_op(account.clone(), bytes(money), 0));
    }
    apply(store, txn).await.expect("both accounts lie in one store");
}

async fn money_is_neither_made_nor_lost_in_any_snapshot(world: World) {
    const ACCOUNTS: usize = 4;
    let opening = FAMILIES.len() * ACCOUNTS * 10;
    for family in 0..FAMILIES.len() {
        for account in 0..ACCOUNTS {
            put(&*world.store, key(family, account), bytes(10)).await;
        }
    }
    let writers = (0..FAMILIES.len()).map(|family| {
        let (store, clock) = (world.store.clone(), world.clock.clone());
        async move {
            for at in 0..30usize {
                let (from, to) = (at % ACCOUNTS, at * 3 % 7 % ACCOUNTS);
                transfer(&*store, clock.shown(), family, from, to).await;
            }
        }
    });
    let mut seen = Vec::new();
    let reader = async || {
        let at = world.clock.shown();
        let read = Query { limit: 3, ..Query::new(KeyRange::all(), at) };
        let whole = read_pages(&*world.store, read).await;
        let sum: u64 = whole.iter().map(|kv| number(&kv.value)).sum();
        assert_eq!(sum, opening as u64, "as of revision {at}");
        seen.push((at, whole));
    };
    meanwhile(writers.collect(), reader).await;
    for (at, whole) in seen.iter().rev().take(20) {
        assert_eq!(&kvs(&*world.store, KeyRange::all(), *at).await, whole, "as of {at}, later");
    }
}

/// All keys, in pages as small as the read says.
async fn read_pages(store: &dyn Store, mut read: Query) -> Vec<pleach::model::KeyValue> {
    let mut whole = Vec::new();
    loop {
        let page = store.read(&read).await.expect("the revision can be read");
        whole.extend(page.kvs);
        let Some(next) = page.next else { return whole };
        read.range.start = next;
    }
}

async fn what_was_written_second_is_never_seen_first(world: World) {
    let first_and_second = [(0, 1), (1, 2), (4, 3), (3, 0)];
    let writers = first_and_second.map(|(first, second)| {
        let store = world.store.clone();
        async move {
            for number in 1..=40 {
                put(&*store, key(first, format!("to-{second}")), bytes(number)).await;
                put(&*store, key(second, format!("from-{first}")), bytes(number)).await;
            }
        }
    });
    let reader = async || {
        let read = Query::new(KeyRange::all(), world.clock.shown());
        let whole = read_all(&*world.store, &read).await.expect("it can be read").kvs;
        let value =
            |key: Key| whole.iter().find(|kv| kv.key == key).map_or(0, |kv| number(&kv.value));
        for (first, second) in first_and_second {
            let ahead = value(key(first, format!("to-{second}")));
            let behind = value(key(second, format!("from-{first}")));
            assert!(
                behind <= ahead && ahead <= behind + 1,
                "{behind} in {second} and {ahead} in {first} as of {}",
                read.revision
            );
        }
    };
    meanwhile(writers.into_iter().collect(), reader).await;
}

pub(crate) async fn counts_at_one_revision_stay_the_same_while_writes_go_on(world: World) {
    const KEYS: usize = 300;
    join_all((0..KEYS).map(|at| put(&*world.store, key(at % FAMILIES.len(), at), bytes(at)))).await;
    let at = world.clock.shown();
    let writers = (0..2usize).map(|writer| {
        let store = world.store.clone();
        async move {
            for step in 0..60usize {
                let touched = (0..8).map(|n| (step * 8 + n) * 2 + writer).map(|n| n % KEYS);
                let put = |n: usize| put(&*store, key(n % FAMILIES.len(), n), bytes("changed"));
                join_all(touched.map(put)).await;
                let gone = key(step % FAMILIES.len(), step);
                delete(&*store, KeyRange::single(gone)).await;
            }
        }
    });
    let reader = async || {
        let count =
            crate::words::count(&*world.store, KeyRange::all(), at).await.expect("it can be read");
        assert_eq!(count, KEYS as u64, "as of revision {at}");
        let of_family =
            crate::words::count(&*world.store, family_range(2), at).await.expect("it can be read");
        assert_eq!(of_family, (KEYS / FAMILIES.len()) as u64, "as of revision {at}");
    };
    meanwhile(writers.collect(), reader).await;
}

/// Writes that wait together see each other's changes in the order of their revisions, whatever
/// of their keys was loaded for which of them.
async fn writes_that_meet_in_one_batch_see_each_other(world: World) {
    let store = &*world.store;
    for round in 0..12usize {
        let writes = (0..24usize).map(|at| async move {
            match at % 6 {
                0 => drop(delete(store, family_range(round % 5)).await),
                1 => drop(delete(store, KeyRange::single(key(round % 5, at % 4))).await),
                2 => {
                    let leased = put_op(key(round % 5, at % 4), bytes(at), 3);
                    apply(store, leased.into()).await.expect("it is taken");
                }
                3 => {
                    let ended = store.end_lease(3).await;
                    ended.expect("the lease ends");
                }
                _ => drop(put(store, key(round % 5, at % 4), bytes(at)).await),
            }
        });
        join_all(writes).await;
    }
    replay(&world).await;
}

/// The log of a store, replayed from nothing, must give each snapshot, and each event must say
/// truly what was there before.
async fn replay(world: &World) {
    let mut rows = std::collections::BTreeMap::new();
    for commit in commits(&*world.store, 0, world.clock.shown()).await {
        for event in &commit.events {
            let (kv, old) = (&event.kv, rows.get(&event.kv.key).cloned());
            assert_eq!(event.prev, old, "before revision {}", commit.revision);
            let old: Option<pleach::model::KeyValue> = old;
            if event.is_delete() {
                assert!(rows.remove(&kv.key).is_some(), "{:?} was deleted twice", kv.key);
                continue;
            }
            assert_eq!(kv.version, old.as_ref().map_or(0, |old| old.version) + 1);
            let created = old.map_or(commit.revision, |old| old.create_revision);
            assert_eq!(kv.create_revision, created);
            rows.insert(kv.key.clone(), kv.clone());
        }
        let snapshot = kvs(&*world.store, KeyRange::all(), commit.revision).await;
        let replayed: Vec<_> = rows.values().cloned().collect();
        assert_eq!(snapshot, replayed, "as of revision {}", commit.revision);
    }
}

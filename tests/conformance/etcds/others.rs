//! Other clients of the etcd.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use pleach::model::{
    KeyRange, StoreError,
    txn::{Op, OpResult, PutOp},
};

use super::{Bed, open, try_open};
use crate::{
    follow::{Follower, commits, revisions, soon},
    words::{
        all_of, apply, bytes, create, delete, get, key, kvs, list, number, put, put_op,
        unchanged_since,
    },
    world::fresh_clock,
};

/// A key as a client of the etcd itself names it.
fn raw(family: usize, name: &str) -> Vec<u8> {
    key(family, name).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_there_keep_their_revisions_and_their_history() {
    let server = crate::world::start_etcd().await;
    let mut client = server.client().await.expect("the etcd takes clients");
    let mut put_at = Vec::new();
    for value in ["1", "2", "3"] {
        let put = client.put(raw(0, "old"), value, None).await.expect("a put is taken");
        put_at.push(put.header().expect("it has a header").revision());
    }
    client.put(raw(1, "gone"), "x", None).await.expect("a put is taken");
    let gone = client.delete(raw(1, "gone"), None).await.expect("a deletion is taken");
    let gone = gone.header().expect("it has a header").revision();
    let bed = Bed::over(server).await;
    let store = &*bed.store;
    assert_eq!(bed.clock.shown(), gone, "the clock starts where the etcd stands");
    let old = get(store, &key(0, "old"), gone).await.expect("it was put");
    assert_eq!((old.create_revision, old.mod_revision, old.version), (put_at[0], put_at[2], 3));
    let before = get(store, &key(0, "old"), put_at[1]).await.expect("it was put");
    assert_eq!((&before.value[..], before.mod_revision), (&b"2"[..], put_at[1]));
    // A client that has seen the etcd's own revisions resumes with them.
    let later = put(store, key(0, "old"), bytes(4)).await;
    assert_eq!(later, gone + 1);
    let told = commits(store, put_at[0], later).await;
    let expected = [put_at[1], put_at[2], gone - 1, gone, later];
    assert_eq!(revisions(&told), expected);
    assert_eq!(told[1].events[0].prev.as_ref().map(|prev| prev.mod_revision), Some(put_at[1]));
    let now = get(store, &key(0, "old"), later).await.expect("it was put");
    assert_eq!((now.create_revision, now.mod_revision, now.version), (put_at[0], later, 4));
    let bed = bed.reopened().await;
    let again = commits(&*bed.store, put_at[0], later).await;
    assert_eq!(again, told, "after a restart");
    assert_eq!(get(&*bed.store, &key(0, "old"), later).await, Some(now));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_etcd_stays_readable_by_its_own_tools() {
    let mut bed = Bed::open().await;
    put(&*bed.store, key(0, "a"), bytes("as it is")).await;
    let found = bed.client.get(raw(0, "a"), None).await.expect("the etcd answers");
    assert_eq!(found.kvs()[0].value(), b"as it is");
    let all = GetOptions::new().with_prefix().with_keys_only();
    let found = bed.client.get("/", Some(all)).await.expect("the etcd answers");
    assert_eq!(found.kvs().len(), 1, "nothing else lies among the keys");
    // What the store keeps beside them is none of its clients' business.
    let shown = kvs(&*bed.store, KeyRange::all(), bed.clock.shown()).await;
    assert_eq!(shown.len(), 1);
    let count = crate::words::count(&*bed.store, KeyRange::all(), bed.clock.shown()).await;
    assert_eq!(count.expect("it can be counted"), 1);
    let reserved = put_op(bytes("pleach.store/log"), bytes("mine"), 0);
    let refused = apply(&*bed.store, reserved.into()).await;
    assert!(matches!(refused, Err(StoreError::KeyReserved { .. })), "{refused:?}");
    // Naming one is no way to find it, to delete it, or to hold up others.
    let reserved = KeyRange::single(bytes("pleach.store/log"));
    let ops = vec![
        put_op(key(0, "b"), bytes("b"), 0),
        crate::words::range_op(reserved.clone(), 0),
        crate::words::delete_op(reserved),
    ];
    let written = apply(&*bed.store, all_of(ops)).await.expect("it is taken").revision;
    assert_eq!(kvs(&*bed.store, KeyRange::all(), written).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_do_gets_revisions_and_is_told() {
    let mut bed = Bed::open().await;
    let first = put(&*bed.store, key(0, "ours"), bytes("ours")).await;
    bed.client.put(raw(0, "theirs"), "1", None).await.expect("a put is taken");
    let told = bed.told(first).await;
    assert_eq!(told[0].revision, first + 1);
    assert!(told[0].events[0].is_create());
    // An update of our key, a deletion of theirs and a new key, all at once.
    let ops = [
        TxnOp::put(raw(0, "ours"), "changed", None),
        TxnOp::delete(raw(0, "theirs"), None),
        TxnOp::put(raw(3, "new"), "new", None),
    ];
    bed.client.txn(Txn::new().and_then(ops)).await.expect("the transaction is taken");
    let told = bed.told(first + 1).await;
    let events = &told[0].events;
    assert_eq!((told[0].revision, events.len()), (first + 2, 3));
    let prev = events[0].prev.as_ref().expect("it was there before");
    assert_eq!((&prev.value[..], prev.mod_revision), (&b"ours"[..], first));
    assert_eq!((events[0].kv.create_revision, events[0].kv.version), (first, 2));
    assert!(events[1].is_delete() && events[1].prev.is_some());
    assert!(events[2].is_create());
    // And from then on like any other.
    let last = put(&*bed.store, key(3, "new"), bytes("ours now")).await;
    let kv = get(&*bed.store, &key(3, "new"), last).await.expect("it was put");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first + 2, last, 2));
    let reads: Vec<_> =
        futures::future::join_all((1..=last).map(|at| kvs(&*bed.store, KeyRange::all(), at))).await;
    let told = commits(&*bed.store, 1, last).await;
    let bed = bed.reopened().await;
    assert_eq!(commits(&*bed.store, 1, last).await, told, "after a restart");
    for (at, before) in (1..=last).zip(reads) {
        assert_eq!(kvs(&*bed.store, KeyRange::all(), at).await, before, "as of {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_finds_the_key_that_others_made_and_holds_up_no_other_create() {
    let mut bed = Bed::open().await;
    bed.client.put(raw(0, "theirs"), "theirs", None).await.expect("a put is taken");
    let names = ["a", "b", "theirs", "c", "d"];
    let creates = names.map(|name| apply(&*bed.store, create(key(0, name), bytes("ours"))));
    let written = futures::future::join_all(creates).await;
    let written = written.into_iter().map(|it| it.expect("the store is there").result);
    let succeeded: Vec<bool> = written.map(|result| result.succeeded).collect();
    assert_eq!(succeeded, [true, true, false, true, true]);
    // One that was made before the store was opened, and that nobody has read since.
    let bed = bed.reopened().await;
    let again = apply(&*bed.store, create(key(0, "a"), bytes("again"))).await;
    let again = again.expect("the store is there");
    assert!(!again.result.succeeded);
    assert_eq!(again.revision, bed.clock.shown(), "nothing was changed");
    let OpResult::Range { found, .. } = &again.result.results[0] else {
        panic!("it was to be read")
    };
    assert_eq!(&found.kvs[0].value[..], b"ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_did_while_the_store_was_closed_is_told_when_it_opens() {
    let bed = Bed::open().await;
    let first = put(&*bed.store, key(0, "a"), bytes("ours")).await;
    let Bed { server, mut client, store, .. } = bed;
    drop(store);
    client.put(raw(0, "a"), "theirs", None).await.expect("a put is taken");
    client.put(raw(0, "b"), "theirs", None).await.expect("a put is taken");
    client.delete(raw(0, "a"), None).await.expect("a deletion is taken");
    let clock = fresh_clock();
    let store = open(&server.url(), &clock).await;
    let mut follower = Follower::start(&*store, first);
    soon("all three", follower.reach(first + 3)).await.expect("nothing is compacted");
    let told: Vec<_> = follower.commits.iter().map(|commit| commit.events[0].is_delete()).collect();
    assert_eq!(told, [false, false, true]);
    let kv = get(&*store, &key(0, "b"), first + 3).await.expect("it was put");
    assert_eq!((kv.mod_revision, kv.version), (first + 2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_that_others_did_is_taken_up_in_pieces_and_writes_go_on() {
    const PUTS: usize = 2_000;
    let bed = Bed::open().await;
    let first = put(&*bed.store, key(0, "ours"), bytes("ours")).await;
    let Bed { server, mut client, store, .. } = bed;
    drop(store);
    for at in 0..PUTS / 100 {
        // Some revisions of one key, and some of many.
        let many = (0..100).map(|key_at| TxnOp::put(raw(1, &format!("{at}-{key_at}")), "x", None));
        client.txn(Txn::new().and_then(many.collect::<Vec<_>>())).await.expect("it is taken");
        for _ in 0..10 {
            client.put(raw(1, "hot"), at.to_string(), None).await.expect("a put is taken");
        }
    }
    let clock = fresh_clock();
    let store = open(&server.url(), &clock).await;
    let last = put(&*store, key(0, "ours"), bytes("again")).await;
    let told = commits(&*store, first, last).await;
    let events: usize = told.iter().map(|commit| commit.events.len()).sum();
    assert_eq!(events, PUTS + PUTS / 10 + 1);
    assert_eq!(kvs(&*store, KeyRange::all(), last).await.len(), PUTS + 2);
    // All of it goes at once, and so do some thousands more than can be told one by one.
    let all = etcd_client::DeleteOptions::new().with_prefix();
    client.delete(raw(1, ""), Some(all.clone())).await.expect("a deletion is taken");
    let gone = soon("the deletion is told", async {
        loop {
            let at = put(&*store, key(0, "ours"), bytes("waits")).await;
            if kvs(&*store, crate::words::family_range(1), at).await.is_empty() {
                return at;
            }
        }
    })
    .await;
    assert_eq!(store.compacted(), -1);
    for at in 0..60 {
        let many = (0..100).map(|key_at| TxnOp::put(raw(2, &format!("{at}-{key_at}")), "x", None));
        client.txn(Txn::new().and_then(many.collect::<Vec<_>>())).await.expect("it is taken");
    }
    client.delete(raw(2, ""), Some(all)).await.expect("a deletion is taken");
    soon("the history begins anew", async {
        while store.compacted() < 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let old = Follower::start(&*store, gone).next().await;
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
    let last = soon("writes go on", async {
        loop {
            let txn = all_of(vec![put_op(key(0, "ours"), bytes("goes on"), 0)]);
            if let Ok(written) = apply(&*store, txn).await {
                return written.revision;
            }
        }
    })
    .await;
    assert_eq!(kvs(&*store, KeyRange::all(), last).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_do_at_the_moment_of_closing_is_not_lost() {
    let mut bed = Bed::open().await;
    for round in 0..15 {
        let mut client = bed.client.clone();
        let theirs = async move {
            for at in 0..4 {
                client.put(raw(1, &format!("{at}")), round.to_string(), None).await.expect("taken");
            }
        };
        let ours = async {
            for at in 0..4 {
                put(&*bed.store, key(0, at), bytes(round)).await;
            }
        };
        tokio::join!(theirs, ours);
        bed = bed.reopened().await;
        let shown = soon("all is told", async {
            loop {
                let at = put(&*bed.store, key(0, "mark"), bytes(round)).await;
                let found = kvs(&*bed.store, crate::words::family_range(1), at).await;
                if found.iter().all(|kv| kv.value == bytes(round)) && found.len() == 4 {
                    return at;
                }
            }
        });
        let shown = shown.await;
        let told = commits(&*bed.store, 1, shown).await;
        let theirs = told.iter().flat_map(|commit| &commit.events);
        let theirs = theirs.filter(|event| event.kv.key.starts_with(&raw(1, "")));
        assert_eq!(theirs.count(), 4 * (round + 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guards_hold_against_others_and_no_update_of_either_is_lost() {
    const ROUNDS: u64 = 150;
    let bed = Bed::open().await;
    put(&*bed.store, key(0, "counter"), bytes(0)).await;
    let ours = async {
        for _ in 0..ROUNDS {
            loop {
                let counter = get(&*bed.store, &key(0, "counter"), bed.clock.shown()).await;
                let counter = counter.expect("it is never deleted");
                let next = bytes(number(&counter.value) + 1);
                let mut txn = all_of(vec![put_op(key(0, "counter"), next, 0)]);
                txn.compares.push(unchanged_since(&key(0, "counter"), counter.mod_revision));
                let written = apply(&*bed.store, txn).await.expect("the store is there");
                if written.result.succeeded {
                    break;
                }
            }
        }
    };
    let theirs = async {
        let mut client = bed.server.client().await.expect("the etcd takes clients");
        for _ in 0..ROUNDS {
            loop {
                let found = client.get(raw(0, "counter"), None).await.expect("it answers");
                let kv = &found.kvs()[0];
                let next: u64 = kv.value_str().expect("a text").parse().expect("a number");
                let guard =
                    Compare::mod_revision(raw(0, "counter"), CompareOp::Equal, kv.mod_revision());
                let put = TxnOp::put(raw(0, "counter"), (next + 1).to_string(), None);
                let txn = Txn::new().when([guard]).and_then([put]);
                if client.txn(txn).await.expect("it answers").succeeded() {
                    break;
                }
            }
        }
    };
    tokio::join!(ours, theirs);
    // The last of theirs may not have been seen yet.
    let last = soon("the last is seen", async {
        loop {
            let last = put(&*bed.store, key(1, "mark"), bytes("x")).await;
            let counter = get(&*bed.store, &key(0, "counter"), last).await.expect("it is there");
            if number(&counter.value) == 2 * ROUNDS {
                return last;
            }
        }
    })
    .await;
    let told = commits(&*bed.store, 1, last).await;
    let counted = told.iter().flat_map(|commit| &commit.events);
    let counted: Vec<u64> = counted
        .filter(|event| event.kv.key == key(0, "counter"))
        .map(|event| number(&event.kv.value))
        .collect();
    assert_eq!(counted, (0..=2 * ROUNDS).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_the_etcd_itself_ends_with_its_keys_told() {
    let mut bed = Bed::open().await;
    let first = put(&*bed.store, key(0, "a"), bytes("a")).await;
    let lease = bed.client.lease_grant(2, None).await.expect("a lease is granted").id();
    let leased = PutOptions::new().with_lease(lease);
    bed.client.put(raw(0, "leased"), "x", Some(leased)).await.expect("a put is taken");
    let told = bed.told(first).await;
    assert_eq!(told[0].events[0].kv.lease, lease);
    // Who keeps the lease of a key keeps the etcd's own, too.
    let kept = Op::Put(PutOp {
        key: key(0, "leased"),
        value: bytes("y"),
        lease: 0,
        prev_kv: false,
        keep_value: false,
        keep_lease: true,
    });
    let kept = apply(&*bed.store, kept.into()).await.expect("a put is taken").revision;
    let told = bed.told(kept).await;
    let event = &told[0].events[0];
    assert!(event.is_delete() && event.kv.key == key(0, "leased"), "{event:?}");
    assert_eq!(event.prev.as_ref().map(|prev| prev.value.clone()), Some(bytes("y")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_compact_is_refused_and_the_rest_goes_on() {
    let mut bed = Bed::open().await;
    for at in 0..20 {
        put(&*bed.store, key(0, at % 3), bytes(at)).await;
    }
    let last = bed.clock.shown();
    let present = kvs(&*bed.store, KeyRange::all(), last).await;
    let line = bed.etcd_revision().await;
    bed.client.compact(line, None).await.expect("it is compacted");
    let old = list(&*bed.store, KeyRange::all(), 3).await;
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
    let floor = bed.store.compacted();
    assert!(floor > 3 && floor <= last, "{floor}");
    assert_eq!(kvs(&*bed.store, KeyRange::all(), last).await, present);
    let later = put(&*bed.store, key(0, "later"), bytes("later")).await;
    assert_eq!(commits(&*bed.store, last, later).await.len(), 1);
    let bed = bed.reopened().await;
    assert!(bed.store.compacted() > 3);
    assert_eq!(kvs(&*bed.store, KeyRange::all(), last).await, present);
    let old = Follower::start(&*bed.store, 3).next().await;
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_were_compacted_unseen_end_the_tails_and_the_present_is_right() {
    let bed = Bed::open().await;
    let first = put(&*bed.store, key(0, "a"), bytes("ours")).await;
    let Bed { server, mut client, store, .. } = bed;
    drop(store);
    for value in 0..5 {
        client.put(raw(0, "a"), value.to_string(), None).await.expect("a put is taken");
    }
    let last = client.delete(raw(0, "never"), None).await.expect("it answers");
    let last = last.header().expect("it has a header").revision();
    client.compact(last, None).await.expect("it is compacted");
    let clock = fresh_clock();
    let store = open(&server.url(), &clock).await;
    let old = Follower::start(&*store, first).next().await;
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
    let kv = get(&*store, &key(0, "a"), clock.shown()).await.expect("it is there");
    assert_eq!(&kv.value[..], b"4");
    assert!(kv.mod_revision > first && kv.mod_revision <= clock.shown());
    let next = put(&*store, key(0, "a"), bytes("ours again")).await;
    let kv = get(&*store, &key(0, "a"), next).await.expect("it is there");
    assert_eq!((kv.create_revision, kv.mod_revision), (first, next));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_went_back_in_time_is_not_served() {
    let mut bed = Bed::open().await;
    put(&*bed.store, key(0, "a"), bytes("kept")).await;
    bed.server.stop().await.expect("it stops");
    let copy = tempfile::tempdir().expect("a folder can be made");
    copy_all(&bed.server.data_dir(), copy.path());
    bed.server.start().await.expect("it starts");
    soon("it is back", async {
        let txn = || all_of(vec![put_op(key(0, "b"), bytes("lost"), 0)]);
        while apply(&*bed.store, txn()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    bed.server.stop().await.expect("it stops");
    std::fs::remove_dir_all(bed.server.data_dir()).expect("it can be removed");
    copy_all(copy.path(), &bed.server.data_dir());
    bed.server.start().await.expect("it starts");
    let said = soon("the loss is said", async {
        loop {
            let txn = all_of(vec![put_op(key(0, "c"), bytes("c"), 0)]);
            let error = apply(&*bed.store, txn).await.expect_err("it is not served");
            let said = error.to_string();
            if said.contains("went back in time") {
                return said;
            }
            tokio::task::yield_now().await;
        }
    });
    let said = said.await;
    assert!(said.contains("start this node anew"), "it names the remedy: {said}");
    let read = list(&*bed.store, KeyRange::all(), bed.clock.shown()).await;
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "a folder can be copied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_is_refused_by_name_and_a_dead_ones_store_is_taken() {
    let bed = Bed::open().await;
    put(&*bed.store, key(0, "a"), bytes("a")).await;
    let begun = std::time::Instant::now();
    let error = try_open(&bed.server.url(), &fresh_clock()).await.expect_err("it is in use");
    assert!(begun.elapsed() < Duration::from_secs(8), "it was said after {:?}", begun.elapsed());
    assert!(error.to_string().contains(super::OWNER), "{error}");
    let last = put(&*bed.store, key(0, "a"), bytes("its owner goes on")).await;
    // Its lease is gone, as if it had hung: another may have it, and it writes nothing any more.
    let mut client = bed.server.client().await.expect("the etcd takes clients");
    client.delete("pleach.store/owner", None).await.expect("a deletion is taken");
    let clock = fresh_clock();
    let second = try_open(&bed.server.url(), &clock).await;
    if let Ok(second) = second {
        let later = put(&*second, key(0, "b"), bytes("the second")).await;
        assert!(later > last);
        let txn = all_of(vec![put_op(key(0, "a"), bytes("late"), 0)]);
        let refused = apply(&*bed.store, txn).await;
        assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
        soon("reads are refused too", async {
            while list(&*bed.store, KeyRange::all(), bed.clock.shown()).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(
            &get(&*second, &key(0, "a"), later).await.expect("it is there").value[..],
            b"its owner goes on"
        );
    } else {
        panic!("{second:?}: it had no owner");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_deletions_and_large_leases_go_at_one_revision() {
    const KEYS: usize = 1_500;
    let mut bed = Bed::open().await;
    for lease in [0, 7] {
        for chunk in 0..KEYS / 100 {
            let puts = (0..100).map(|at| put_op(key(0, chunk * 100 + at), bytes("x"), lease));
            apply(&*bed.store, all_of(puts.collect())).await.expect("the puts are taken");
        }
        let before = bed.clock.shown();
        let gone = match lease {
            0 => delete(&*bed.store, crate::words::family_range(0)).await,
            lease => {
                let ended = bed.store.end_lease(lease).await;
                ended.expect("the lease ends").expect("it had keys")
            }
        };
        let told = commits(&*bed.store, before, gone).await;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].events.len(), KEYS);
        assert!(told[0].events.iter().all(|event| event.is_delete() && event.prev.is_some()));
        assert!(kvs(&*bed.store, KeyRange::all(), gone).await.is_empty());
        assert_eq!(kvs(&*bed.store, KeyRange::all(), before).await.len(), KEYS);
        let left = GetOptions::new().with_prefix().with_count_only();
        let left = bed.client.get("pleach.store/key/", Some(left)).await.expect("it answers");
        assert_eq!(left.count(), 0, "the marks went with the keys");
        let left = GetOptions::new().with_prefix().with_count_only();
        let left = bed.client.get("pleach.store/lease/", Some(left)).await.expect("it answers");
        assert_eq!(left.count(), 0, "the notes of the lease went with the keys");
    }
}

//! Random writes by the node and by others at once. What the tail tells, applied one by one, must be
//! what every revision reads, from memory and from the etcd's own history after a restart.

use std::collections::BTreeMap;

use etcd_client::{Txn, TxnOp};
use pleach::model::{Key, KeyRange, KeyValue, Revision};

use super::Bed;
use crate::{
    follow::{Follower, commits, soon},
    support::rng::Rng,
    words::{all_of, apply, bytes, create, delete_op, get, key, kvs, put, put_op},
};

const ROUNDS: usize = 60;
const NAMES: usize = 6;

type State = BTreeMap<Key, KeyValue>;

fn seed() -> u64 {
    let seed = std::env::var("PLEACH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("PLEACH_SEED={seed}");
    seed
}

/// What a key was found to be as of a revision.
type Got = (Revision, Key, Option<KeyValue>);

/// A few writes of the node's own, which share transactions, and then reads of single keys.
async fn ours(bed: &Bed, rng: &mut Rng) -> Vec<Got> {
    let writes = (0..1 + rng.below(6)).map(|_| {
        let name = key(rng.below(3), rng.below(NAMES));
        let value = bytes(rng.below(1_000));
        let txn = match rng.below(10) {
            0..5 => all_of(vec![put_op(name, value, 0)]),
            5..7 => create(name, value),
            _ => all_of(vec![delete_op(KeyRange::single(name))]),
        };
        apply(&*bed.store, txn)
    });
    let writes: Vec<_> = writes.collect();
    for written in futures::future::join_all(writes).await {
        written.expect("the store is there");
    }
    let mut got = Vec::new();
    for _ in 0..4 {
        let (at, name) = (bed.clock.shown(), key(rng.below(3), rng.below(NAMES)));
        let found = get(&*bed.store, &name, at).await;
        got.push((at, name, found));
    }
    got
}

/// A few writes by another client of the etcd.
async fn theirs(client: &mut etcd_client::Client, rng: &mut Rng) {
    for _ in 0..rng.below(5) {
        let mut names: Vec<usize> = (0..1 + rng.below(3)).map(|_| rng.below(NAMES)).collect();
        names.sort_unstable();
        names.dedup();
        let ops: Vec<TxnOp> = names
            .into_iter()
            .map(|name| {
                let name = key(rng.below(3), name).to_vec();
                match rng.chance(60) {
                    true => TxnOp::put(name, rng.below(1_000).to_string(), None),
                    false => TxnOp::delete(name, None),
                }
            })
            .collect();
        // Two families may have given the same key: then the etcd refuses it, and nothing happens.
        let _ = client.txn(Txn::new().and_then(ops)).await;
    }
}

/// What the commits add up to, at each revision.
fn states(told: &[std::sync::Arc<pleach::model::Commit>]) -> Vec<(Revision, State)> {
    let mut state = State::new();
    let mut states = Vec::new();
    for commit in told {
        for event in &commit.events {
            let before = state.get(&event.kv.key).cloned();
            if !event.is_create() {
                assert_eq!(event.prev, before, "before {} of {:?}", commit.revision, event.kv.key);
            }
            if event.is_delete() {
                state.remove(&event.kv.key);
            } else {
                let is_first = before.is_none();
                assert_eq!(event.kv.version == 1, is_first, "at {}", commit.revision);
                state.insert(event.kv.key.clone(), event.kv.clone());
            }
        }
        states.push((commit.revision, state.clone()));
    }
    states
}

/// Reads every `step`th revision. What lies before the entries in memory costs a search and a replay.
async fn check(bed: &Bed, states: &[(Revision, State)], step: usize) {
    for (revision, state) in states.iter().rev().step_by(step) {
        let expected: Vec<KeyValue> = state.values().cloned().collect();
        let found = kvs(&*bed.store, KeyRange::all(), *revision).await;
        assert_eq!(found, expected, "as of {revision}");
        let count = crate::words::count(&*bed.store, KeyRange::all(), *revision)
            .await
            .expect("it can be read");
        assert_eq!(count, expected.len() as u64, "the count as of {revision}");
        // One family at each, since a read so far back costs as much as a list.
        let family = usize::try_from(*revision).unwrap_or(0) % 3;
        for name in (0..NAMES).map(|name| key(family, name)) {
            let found = get(&*bed.store, &name, *revision).await;
            assert_eq!(found.as_ref(), state.get(&name), "{name:?} as of {revision}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_revision_reads_as_it_was_told_whoever_wrote() {
    let mut rng = Rng::new(seed());
    let mut bed = Bed::open().await;
    let mut all = Vec::new();
    let mut got: Vec<Got> = Vec::new();
    let mut after = 1;
    for _life in 0..2 {
        let before = all.len();
        let mut follower = Follower::start(&*bed.store, after);
        for _ in 0..ROUNDS {
            let (mut a, mut b) = (Rng::new(rng.next()), Rng::new(rng.next()));
            let mut client = bed.client.clone();
            let (found, ()) = tokio::join!(ours(&bed, &mut a), theirs(&mut client, &mut b));
            got.extend(found);
        }
        // Whatever others did before this is seen before it.
        bed.client.put(key(4, "mark").to_vec(), "x", None).await.expect("a put is taken");
        let mark = soon("the mark is told", async {
            loop {
                follower.next().await.expect("nothing is compacted");
                let mut events = follower.commits.iter().flat_map(|commit| &commit.events);
                let last = events.rfind(|event| event.kv.key == key(4, "mark"));
                if let Some(event) = last.filter(|event| event.kv.mod_revision > after) {
                    return event.kv.mod_revision;
                }
            }
        })
        .await;
        let last = put(&*bed.store, key(4, "last"), bytes("x")).await;
        assert!(last > mark);
        follower.reach(last).await.expect("nothing is compacted");
        all.extend(follower.commits.clone());
        let states = states(&all);
        check(&bed, &states[before..], 1).await;
        for (at, name, found) in got.drain(..) {
            let then = states.partition_point(|(revision, _)| *revision <= at);
            let expected = then.checked_sub(1).and_then(|then| states[then].1.get(&name).cloned());
            assert_eq!(found, expected, "{name:?} as of {at}");
        }
        after = last;
        drop(follower);
        bed = bed.reopened().await;
        assert_eq!(bed.clock.shown(), last);
        let told = commits(&*bed.store, 1, last).await;
        assert_eq!(told.len(), all.len());
        for (again, before) in told.iter().zip(&all) {
            assert_eq!(again, before, "after a restart");
        }
        check(&bed, &states, 17).await;
    }
}

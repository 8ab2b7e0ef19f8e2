//! A tail has no gap, from wherever it starts.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt as _, future::join_all};
use pleach::model::{Commit, KeyRange, Revision};

use crate::{
    follow::{Follower, commits, revisions},
    words::{FAMILIES, bytes, delete, family_range, key, put},
    world::World,
};

/// More than a store keeps of its newest commits in memory, in values of [`VALUE_BYTES`].
const LOG_BYTES: usize = 12 << 20;
const VALUE_BYTES: usize = 48 << 10;

on_every_composition! {
    a_tail_has_no_gap_and_no_duplicate_from_any_revision,
    a_tail_says_what_was_there_before,
    an_idle_store_holds_up_nobody,
    sync_makes_tails_say_what_is_closed,
    a_tail_says_at_once_how_far_it_is,
}

/// Writes of every kind, all over. Returns the revisions.
pub(crate) async fn some_writes(world: &World) -> Vec<Revision> {
    let store = &*world.store;
    let mut written = Vec::new();
    for at in 0..40usize {
        let family = at * 3 % FAMILIES.len();
        written.push(put(store, key(family, at % 3), bytes(at)).await);
        if at % 7 == 6 {
            written.push(delete(store, KeyRange::single(key(family, at % 3))).await);
        }
    }
    written
}

pub(crate) async fn a_tail_has_no_gap_and_no_duplicate_from_any_revision(world: World) {
    let mut live = Follower::start(&*world.store, 0);
    let written = some_writes(&world).await;
    let last = world.clock.shown();
    for after in 0..=last {
        let expected: Vec<_> = written.iter().copied().filter(|at| *at > after).collect();
        let told = revisions(&commits(&*world.store, after, last).await);
        assert_eq!(told, expected, "the tail from behind {after}");
    }
    live.reach(last).await.expect("nothing was compacted");
    assert_eq!(revisions(&live.commits), written, "the tail that was there from the start");
}

pub(crate) async fn a_tail_reads_the_log_where_memory_no_longer_reaches(world: World) {
    let store = &*world.store;
    let early = Follower::start(store, 0);
    let mut started = Follower::start(store, 0);
    let mut written = vec![put(store, key(0, "first"), bytes("first")).await];
    started.reach(written[0]).await.expect("nothing was compacted");
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let count = LOG_BYTES / VALUE_BYTES;
    // So many at once that they share commits to disk.
    for round in 0..count / 16 {
        let puts = (0..16).map(|at| put(store, key((round + at) % 5, at), value.clone()));
        written.extend(join_all(puts).await);
    }
    written.sort_unstable();
    let last = world.clock.shown();
    let whole = commits(store, 0, last).await;
    assert_eq!(revisions(&whole), written);
    for (what, mut follower) in [("not polled before", early), ("left behind", started)] {
        follower.reach(last).await.expect("nothing was compacted");
        assert_eq!(revisions(&follower.commits), written, "a tail {what}");
        assert!(follower.commits == whole, "a tail {what} says other than a fresh one");
    }
    for after in [1, written[3], written[written.len() / 2], last - 1] {
        assert_behind(&whole, after, &commits(store, after, last).await);
    }
}

fn assert_behind(whole: &[Arc<Commit>], after: Revision, told: &[Arc<Commit>]) {
    let from = whole.partition_point(|commit| commit.revision <= after);
    assert_eq!(revisions(told), revisions(&whole[from..]), "the tail from behind {after}");
    assert!(told == &whole[from..], "the tail from behind {after} has other events");
}

async fn a_tail_says_what_was_there_before(world: World) {
    let store = &*world.store;
    for family in 0..FAMILIES.len() {
        let key = key(family, "a");
        let first = put(store, key.clone(), bytes("first")).await;
        put(store, key.clone(), bytes("second")).await;
        let gone = delete(store, KeyRange::single(key.clone())).await;
        put(store, key.clone(), bytes("third")).await;
        let commits = commits(store, first - 1, gone + 1).await;
        let before: Vec<_> = commits
            .iter()
            .map(|commit| commit.events[0].prev.as_ref().map(|prev| prev.value.clone()))
            .collect();
        assert_eq!(before, [None, Some(bytes("first")), Some(bytes("second")), None]);
        assert!(commits[0].events[0].is_create() && commits[2].events[0].is_delete());
    }
}

async fn an_idle_store_holds_up_nobody(world: World) {
    let mut follower = Follower::start(&*world.store, 0);
    for at in 0..20usize {
        let revision = put(&*world.store, key(at % 2, at), bytes(at)).await;
        // No sync: what was committed comes by itself, though most stores have nothing to say.
        follower.reach(revision).await.expect("nothing was compacted");
        assert_eq!(follower.commits.last().map(|commit| commit.revision), Some(revision));
    }
}

pub(crate) async fn sync_makes_tails_say_what_is_closed(world: World) {
    let store = &*world.store;
    let mut followers: Vec<_> = (0..FAMILIES.len())
        .map(|family| {
            let narrow = store_of(&world, family);
            let follower = Follower::start(&*narrow, 0);
            (narrow, follower)
        })
        .collect();
    for family in 0..FAMILIES.len() {
        let revision = put(store, key(family, "a"), bytes("a")).await;
        for (narrow, follower) in &mut followers {
            let closed = narrow.advance_closed(revision, 0).await.expect("all is within reach");
            assert!(closed >= revision && closed <= world.clock.shown());
            follower.reach(revision).await.expect("nothing was compacted");
        }
    }
}

fn store_of(world: &World, family: usize) -> Arc<dyn pleach::store::Store> {
    world.narrow(&family_range(family))
}

async fn a_tail_says_at_once_how_far_it_is(world: World) {
    let last = put(&*world.store, key(0, "a"), bytes("a")).await;
    put(&*world.store, key(1, "a"), bytes("a")).await;
    let mut follower = Follower::start(&*world.store, last);
    follower.next().await.expect("nothing was compacted");
    assert!(follower.closed > last);
    // Nothing is behind, so there is nothing to say until something happens.
    assert!(follower.next().now_or_never().is_none(), "a batch that says nothing");
}

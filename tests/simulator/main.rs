//! The simulator: random schedules of a small tree, driven through the clock and the merge that
//! the product uses, sequentially and from a seed, with no I/O.
//!
//! ```text
//!   clients ── root ── store 0, store 1          what travels between root and child may be
//!               │                                delayed and overtaken, but for the messages
//!   clients ── child ── store 2, store 3         of one stream
//! ```
//!
//! Each run draws writes, lists, watches, lost connections, crashes, partitions, stores out of
//! reach, detaching and attaching. In the end the trouble stops, everything must drain, and what
//! each client saw is held against what the logs hold: [`history`] says how. Then rules of the
//! algorithm are left out one by one, and each time the simulator must notice ([`fault`]).
//!
//! `PLEACH_SIM_SCHEDULES` sets how many schedules are run, `PLEACH_SEED` repeats a single one.

mod fault;
mod history;
mod lists;
mod node;
#[path = "../support/rng.rs"]
#[allow(dead_code, reason = "others draw in more ways")]
mod rng;
mod schedule;
mod store;
mod trouble;
mod watches;
mod world;
mod writes;

use std::env;

use fault::Fault;
use history::Seen;
use pleach::model::Revision;
use schedule::Violation;

/// A store: 0 and 1 are the root's own, 2 and 3 the child's.
type StoreId = usize;
/// A set of stores, one bit each: a range that touches them.
type Mask = u8;
/// Names a call of the root's.
type Rpc = u64;
/// The last change of each key in each store, as of some revision.
type Snapshot = [[Revision; KEYS]; STORES];

const ROOT: usize = 0;
const CHILD: usize = 1;
const STORES: usize = 4;
const KEYS: usize = 2;

/// How many schedules run where nothing else is said.
const SCHEDULES: u64 = 300_000;
/// Within so many schedules each planted fault must be noticed.
const FAULT_SCHEDULES: u64 = 1_000_000;
/// So much is printed of a shrunk schedule: what never comes to rest repeats itself.
const STORY_SENTENCES_MAX: usize = 60;

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {value:?}")))
}

fn describe(violation: &Violation) -> String {
    let Violation { seed, what, story } = violation;
    let sentences = story.len().min(STORY_SENTENCES_MAX);
    format!("PLEACH_SEED={seed}: {what}\n  {}\n", story[..sentences].join("\n  "))
}

/// The first violation among the seeds, which must exist: a fault is planted.
fn must_be_noticed(fault: Fault) {
    let seeds = number("PLEACH_SEED").map_or(0..FAULT_SCHEDULES, |seed| seed..seed + 1);
    let violation = seeds.clone().find_map(|seed| schedule::run(seed, Some(fault)).err());
    match violation {
        Some(violation) => println!("{fault:?} is noticed with {}", describe(&violation)),
        None if seeds.end - seeds.start == 1 => println!("{fault:?} is not noticed with {seeds:?}"),
        None => panic!("{fault:?} is not noticed with any seed in {seeds:?}"),
    }
}

#[test]
fn no_schedule_breaks_a_promise_to_any_client() {
    if let Some(seed) = number("PLEACH_SEED") {
        let outcome = schedule::run(seed, None);
        assert!(outcome.is_ok(), "{}", outcome.err().map_or(String::new(), |v| describe(&v)));
        return;
    }
    let schedules = number("PLEACH_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let mut seen = Seen::default();
    for seed in 0..schedules {
        match schedule::run(seed, None) {
            Ok(more) => seen.add(more),
            Err(violation) => panic!("{}", describe(&violation)),
        }
    }
    println!("seeds 0..{schedules} without a violation:");
    for (name, count) in seen.counts() {
        println!("  {count:>12} {name}");
        assert!(count > 0 || schedules < 1_000, "no schedule had any {name}");
    }
}

macro_rules! planted {
    ($($sentence:ident: $fault:ident;)*) => {$(
        #[test]
        fn $sentence() {
            must_be_noticed(Fault::$fault);
        }
    )*};
}

planted! {
    emitting_without_closing_is_noticed: EmittingWithoutClosing;
    a_restart_without_a_reserved_limit_is_noticed: NoReservedLimit;
    listing_each_log_at_its_own_revision_is_noticed: ListingEachLogAtItsOwnRevision;
    reattaching_without_ending_the_affected_watches_is_noticed: ReattachingWithoutEnding;
    nodes_without_lanes_are_noticed: NoLanes;
    closing_what_was_not_shown_is_noticed: ClosingAboveShown;
    a_child_that_restarts_at_its_greatest_revision_is_noticed: ChildRestartingAtGreatest;
    showing_a_number_above_the_durable_limit_is_noticed: ReservingInMemoryOnly;
    forgetting_where_the_last_life_began_is_noticed: ForgettingTheStart;
    forgetting_in_a_crash_that_a_store_is_detached_is_noticed: ForgettingTheDetached;
    forgetting_who_may_lack_late_changes_is_noticed: ForgettingTheFloor;
    trusting_a_watch_that_is_resumed_while_a_store_is_detached_is_noticed: TrustingResumedWatches;
    attaching_with_late_changes_at_the_same_revision_is_noticed: AttachingWithoutMovingOn;
    attaching_before_all_that_was_shown_is_closed_is_noticed: AttachingBeforeClosed;
    telling_clients_what_a_child_closed_ahead_is_noticed: TellingThePromise;
    a_child_that_ignores_its_parents_clock_is_noticed: NotObservingTheParent;
}

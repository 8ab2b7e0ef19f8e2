//! The simulated network: a tree of real nodes, which speak gRPC over a network that is simulated, as
//! their time is.
//!
//! ```text
//!   seed ──> schedule ──> hosts: nodes and their clients ──> history ──┐
//!             cuts, holds, slows links; crashes nodes                  ├──> check
//!                                     what the stores hold ──> truth ──┘
//! ```
//!
//! Servers, clients between nodes, routers, watches and what nodes remember are the product's; stores are
//! in memory, and outlive the nodes. Clients at every level write, read, list and watch while links and
//! nodes fail. In the end the trouble stops, everyone must get to know everything, and what each client
//! saw is held against what the stores hold ([`check`]). Then rules of the algorithm are left out one by
//! one, and each time that must be noticed ([`fault`]).
//!
//! `PLEACH_NETWORK_SEEDS` sets which seeds are run, as `100` or as `100..200`; `PLEACH_SEED` repeats a
//! single one, and `RUST_LOG` prints what the nodes say meanwhile.

mod check;
mod client;
mod fault;
mod history;
mod node;
mod panics;
#[path = "../support/rng.rs"]
#[allow(dead_code, reason = "others draw in more ways")]
mod rng;
mod schedule;
mod socket;
mod tree;
mod truth;
mod watcher;

use std::{
    env,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use fault::Fault;
use history::Seen;
use tracing_subscriber::{
    EnvFilter,
    fmt::{format::Writer, time::FormatTime},
};

/// How many seeds run where nothing else is said.
const SEEDS: u64 = 200;
/// Seeds that found something.
const FOUND: [u64; 14] = [8, 29, 35, 39, 69, 88, 122, 137, 150, 157, 172, 231, 870, 1112];
/// How often each of them is run: which task of a host is first is not the seed's.
const FOUND_RUNS: usize = 3;
/// Within so many seeds each planted fault must be noticed.
const FAULT_SEEDS: u64 = 300;

/// The time on the host that logs something.
struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:?}", turmoil::sim_elapsed().unwrap_or_default())
    }
}

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {value:?}")))
}

/// The first seed that breaks a promise, which must exist: a fault is planted.
fn must_be_noticed(fault: Fault) {
    let seeds = number("PLEACH_SEED").map_or(0..FAULT_SEEDS, |seed| seed..seed + 1);
    let noticed =
        seeds.clone().find_map(|seed| Some((seed, schedule::run(seed, Some(fault)).err()?)));
    match noticed {
        Some((seed, what)) => println!("{fault:?} is noticed with PLEACH_SEED={seed}: {what}"),
        None => panic!("{fault:?} is not noticed with any seed in {seeds:?}"),
    }
}

/// The seeds that are asked for.
fn seeds() -> Range<u64> {
    if let Some(seed) = number("PLEACH_SEED") {
        return seed..seed + 1;
    }
    let Ok(asked) = env::var("PLEACH_NETWORK_SEEDS") else { return 0..SEEDS };
    let (from, to) = asked.split_once("..").unwrap_or(("0", &asked));
    let bound = |text: &str| text.parse().unwrap_or_else(|_| panic!("no seeds: {asked:?}"));
    bound(from)..bound(to)
}

/// Runs the seeds, one on each processor at a time. What breaks a promise comes as a sentence.
fn run(seeds: &Range<u64>) -> (Seen, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let (mut seen, mut broken) = (Seen::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (seen, broken);
            }
            match schedule::run(seed, None) {
                Ok(more) => seen.add(more),
                Err(what) => broken.push(format!("PLEACH_SEED={seed}: {what}")),
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let (mut seen, mut broken) = (Seen::default(), Vec::new());
        for worker in running {
            let (more, what) = worker.join().expect("a schedule catches its panics");
            seen.add(more);
            broken.extend(what);
        }
        (seen, broken)
    })
}

#[test]
fn no_trouble_of_the_network_breaks_a_promise_to_any_client() {
    if let Ok(filter) = EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt().with_env_filter(filter).with_timer(SimulatedTime).init();
    }
    let seeds = seeds();
    let (seen, broken) = run(&seeds);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    println!("seeds {seeds:?} without a violation:");
    for (name, count) in seen.counts() {
        println!("  {count:>10} {name}");
        assert!(count > 0 || seeds.end - seeds.start < 20, "there were no {name}");
    }
}

#[test]
fn what_was_found_once_is_not_found_again() {
    let runs = FOUND.iter().flat_map(|seed| [*seed; FOUND_RUNS]);
    for broken in runs.map(|seed| run(&(seed..seed + 1)).1) {
        assert!(broken.is_empty(), "{}", broken.join("\n"));
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
    a_restart_at_the_greatest_revision_is_noticed: RestartingAtGreatest;
    listing_each_log_at_its_own_revision_is_noticed: ListingEachLogAtItsOwnRevision;
    reattaching_without_telling_is_noticed: ReattachingWithoutTelling;
    forgetting_who_may_lack_late_changes_is_noticed: ForgettingTheFloor;
    forgetting_in_a_crash_that_a_child_is_detached_is_noticed: ForgettingTheDetached;
    nodes_that_share_a_lane_are_noticed: SharingOneLane;
    a_child_that_ignores_its_parents_clock_is_noticed: IgnoringTheParent;
    not_asking_children_for_their_present_is_noticed: TakingTheClockForThePresent;
    retrying_what_may_be_done_is_noticed: RetryingUnknownOutcomes;
}

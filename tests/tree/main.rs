//! Trees of real processes: nodes over real stores, whose links, nodes and databases fail, and clients
//! at every level whose whole history is checked.
//!
//! `PLEACH_TREE_SECONDS=…` sets how long the random faults go on, and `PLEACH_SEED=…` repeats their
//! choices; where in the work of a node a fault falls, no seed can repeat.
#![allow(clippy::large_futures, reason = "the future of a test is on the heap once, and alone")]

#[path = "../support/mod.rs"]
mod support;

mod begin;
mod call;
mod check;
mod client;
mod cut_off;
mod family;
mod faults;
mod history;
mod lanes;
mod leases;
mod loops;
mod many;
mod random;
mod restart;
mod route;
mod slow;
mod tls;
mod watch;
mod world;

use tokio::sync::Mutex;

/// Trees of two tests at once would only share the same cores, and times would mean nothing.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

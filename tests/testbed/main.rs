//! The bed that the stores' tests lie in is tested first: the servers are real, take the store's
//! user only by password, keep what they acknowledged through kills, and never outlive the tests; and
//! the proxy in front of them does what it says, to the byte.
#![allow(clippy::large_futures, reason = "the future of a test is on the heap once, and alone")]

#[path = "../support/mod.rs"]
mod support;

mod commits;
mod databases;
mod etcds;
mod orphans;
mod proxies;

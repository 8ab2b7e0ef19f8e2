//! The command as its users meet it: how it starts and refuses to, what it says to bad input, and
//! whether clients that are not ours get along with it.
#![allow(clippy::large_futures, reason = "the future of a test is on the heap once, and alone")]

#[path = "../support/mod.rs"]
mod support;

mod authority;
mod benchmark;
mod call;
mod connection;
mod etcdctl;
mod flags;
mod foreign;
mod hostile;
mod independent;
mod late;
mod look;
mod metrics;
mod ports;
mod slow;
mod space;
mod start;
mod tls;
mod told;
mod topology;
mod trace;
mod tree;
mod wire;

//! Pleach: a tree of routing proxies that speak etcd v3.
//!
//! # Layout
//!
//! What stands lower may use what stands higher, never the other way round.
//!
//! * [`proto`]: etcd's API on the wire and what nodes say to each other, generated from `proto/`.
//! * [`model`]: the words. Values only: no I/O, no waiting, no gRPC, no SQL.
//! * [`clock`]: revisions, and the promises about them.
//! * [`wire`]: between messages and the words.
//! * [`store`]: the one interface and its leaves; its documentation is the architecture.
//! * [`route`]: the composite, a store made of stores.
//! * [`watch`]: the hub, a few logs for many watchers.
//! * [`node`]: etcd's verbs on stores: keys, leases, quota, lines.
//! * [`server`]: etcd's services over gRPC, and what is served over HTTP.
//! * [`topology`]: the file that says which routes there are.
//! * [`telemetry`]: what a node tells those who run it.
//! * [`cli`]: the commands.

pub mod proto;

pub mod model;

pub mod clock;

pub mod wire;

pub mod store;

pub mod route;

pub mod watch;

pub mod node;

pub mod server;

pub mod topology;

pub mod telemetry;

pub mod cli;

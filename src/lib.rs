//! Pleach: a tree of routing proxies that speak etcd v3.
//!
//! # Layout
//!
//! What stands lower may use what stands higher, never the other way round.
//!
//! * [`proto`]: etcd's API on the wire and what nodes say to each other, generated from `proto/`.
//! * [`select`]: Kubernetes' selectors, and what they need to know of objects.
//! * [`model`]: the words. Values only: no I/O, no waiting, no gRPC, no SQL.
//! * [`clock`]: revisions, and the promises about them.
//! * [`wire`]: between messages and the words.
//! * [`net`]: addresses, credentials, TLS, connections, how errors read.
//! * [`store`]: the one interface and its leaves; its documentation is the architecture.
//! * [`tree`]: nodes behind nodes: identity, lanes, whom a node answers, its children.
//! * [`route`]: the composite, a store made of stores.
//! * [`watch`]: the hub, a few logs for many watchers.
//! * [`node`]: etcd's verbs on stores: keys, leases, quota, lines.
//! * [`topology`]: the file that says which routes there are.
//! * [`assembly`]: from a topology to a running node that owns every task.
//! * [`server`]: etcd's services over gRPC, and what is served over HTTP.
//! * [`telemetry`]: what a node tells those who run it.
//! * [`cli`]: the commands.
//!
#![doc = include_str!("../docs/src/glossary.md")]

pub mod proto;

pub mod select;

pub mod model;

pub mod clock;

pub mod wire;

pub mod net;

pub mod store;

pub mod tree;

pub mod route;

pub mod watch;

pub mod node;

pub mod topology;

pub mod assembly;

pub mod server;

pub mod telemetry;

pub mod cli;

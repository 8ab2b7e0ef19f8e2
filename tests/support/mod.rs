//! What the tests that run real processes share: processes, peers, the server under test, database
//! servers and etcds to be its stores, nodes to be its children, a receiver of its traces, a proxy that
//! breaks their connections, what watches tell, a small HTTP client, a random generator and a
//! Kubernetes control plane.
#![allow(dead_code, reason = "each test takes only the pieces it needs")]

pub(crate) mod certificates;
pub(crate) mod changes;
pub(crate) mod controlplane;
pub(crate) mod daemon;
pub(crate) mod databases;
pub(crate) mod etcd;
pub(crate) mod http;
pub(crate) mod node;
pub(crate) mod otlp;
pub(crate) mod peers;
pub(crate) mod pgbouncer;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod rng;
pub(crate) mod server;
pub(crate) mod tmpfs;
pub(crate) mod tree;

//! What the tests that run real processes share: processes, peers, the server under test, a small
//! HTTP client and a Kubernetes control plane.
#![allow(dead_code, reason = "each test takes only the pieces it needs")]

pub(crate) mod controlplane;
pub(crate) mod http;
pub(crate) mod node;
pub(crate) mod peers;
pub(crate) mod process;
pub(crate) mod server;

//! Pleach: a tree of routing proxies that speak etcd v3.
pub mod clock;
pub mod model;
pub mod node;
pub mod proto;
pub mod route;
pub mod store;
pub mod watch;

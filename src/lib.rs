//! Pleach: a tree of routing proxies that speak etcd v3.
pub mod proto;

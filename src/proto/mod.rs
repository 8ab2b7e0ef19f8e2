//! etcd's wire types and those between nodes, generated from `proto/` at build time. Names follow the
//! packages.
#![allow(
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    reason = "what is generated is as its generator writes it"
)]

/// The descriptor set of every service, as gRPC reflection serves it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// A method of a service.
#[derive(Debug)]
pub struct Method {
    /// Where it is asked for.
    pub path: &'static str,
    /// The service with its package.
    pub service: &'static str,
    /// The method alone.
    pub name: &'static str,
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`, as gRPC's metrics say it.
    pub kind: &'static str,
}

/// Every method of every service.
pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// KV, Watch, Lease, Cluster, Maintenance, Auth.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
/// Keys and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
/// Permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}
/// gRPC's health service.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
/// Server-side locks.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
/// Server-side elections.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
/// Between nodes, where the package says it.
mod pleach {
    pub(super) mod tree {
        pub mod v1 {
            tonic::include_proto!("pleach.tree.v1");
        }
    }
    pub(super) mod records {
        pub mod v2 {
            tonic::include_proto!("pleach.records.v2");
        }
    }
}
pub use pleach::records::v2 as records;
pub use pleach::tree::v1 as tree;

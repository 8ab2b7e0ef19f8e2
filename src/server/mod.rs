//! The face of a node: etcd's services over gRPC, one file each, and what etcd serves over HTTP.
//!
//! It turns messages into the model's words and back, refuses what etcd refuses by looking at a
//! request alone, and gives each error etcd's code and text. It decides nothing else.

mod auth;
mod calls;
mod certificates;
mod check;
mod cluster;
mod election;
mod failures;
mod health;
mod http;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod metrics;
mod opening;
mod page;
mod patience;
pub mod status;
mod tls;
mod trace;
mod tree;
mod watch;

use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, TryStreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    codec::CompressionEncoding,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tower::util::MapRequestLayer;

use self::{
    calls::Calls,
    certificates::Certificates,
    metrics::CommitSums,
    opening::Opening,
    patience::{Placed, Places, Traffic},
};
pub use self::{
    certificates::{CertificateFile, unix_time},
    tls::{Tls, TlsFiles, TlsPart, WrongTls},
};
use crate::{
    model::Revision,
    node::Node,
    proto::{self, etcdserverpb as pb, tree as treepb, v3electionpb, v3lockpb},
};

/// The etcd that a node passes for. API servers ask for progress only where it is new enough.
pub const ETCD_VERSION: &str = "3.7.3";

/// The layout of etcd's storage that goes with it.
pub const STORAGE_VERSION: &str = "3.7.0";

/// There are no elections, so the first term lasts.
const RAFT_TERM: u64 = 1;

/// What stands around a request in etcd's log, beside its length: a header with an id of nine bytes, and
/// which request it is.
const RAFT_OVERHEAD_BYTES: usize = 14;

/// What etcd adds to the bound on requests where it bounds messages.
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// Connections are asked for a sign of life this often, and closed without one, as etcd does.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2 * 60 * 60);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(20);

/// A client's host is asked for one this often while nothing is sent, as Go's servers do.
const PROBE_EVERY: Duration = Duration::from_secs(15);

/// Connections at once of a port for probes and metrics.
const ADMIN_CONNECTIONS_MAX: usize = 16;

/// API servers give up many requests; HTTP/2 counts these against a flood of resets.
const RESETS_PENDING_MAX: usize = 1_024;

/// Bounds on requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The bytes of a write (`--max-request-bytes`).
    pub request_bytes_max: usize,
    /// The operations of a branch of a transaction (`--max-txn-ops`).
    pub txn_ops_max: usize,
    /// Whether the node is ready only with every route's store (`--ready-requires-all`).
    pub ready_requires_all: bool,
}

/// All that the services share.
#[derive(Clone, Debug)]
pub struct Services {
    node: Arc<Node>,
    limits: Limits,
    name: String,
    advertised: Vec<String>,
    scheme: &'static str,
    stopping: CancellationToken,
    places: Places,
    calls: Calls,
    traffic: Traffic,
    commits: CommitSums,
    certificates: Certificates,
    begun: Instant,
}

// === impl Services ===

impl Services {
    /// The face of `node`, named `name`, which clients are told to reach by `advertised`. When
    /// `stopping` is cancelled, watches end so that their clients resume.
    pub fn new(
        node: Arc<Node>,
        limits: Limits,
        name: String,
        advertised: Vec<String>,
        stopping: CancellationToken,
    ) -> Self {
        let calls = Calls::new(node.requests().clone());
        Self {
            node,
            limits,
            name,
            advertised,
            scheme: "http",
            stopping,
            places: Places::new(usize::MAX),
            calls,
            traffic: Traffic::default(),
            commits: CommitSums::default(),
            certificates: Certificates::default(),
            begun: Instant::now(),
        }
    }

    /// The same for so many connections at once, over all its listeners.
    #[must_use]
    pub fn with_connections_max(self, count: usize) -> Self {
        Self { places: Places::new(count), ..self }
    }

    /// The same, which tells when the certificates in `files` end.
    #[must_use]
    pub fn with_certificates(self, files: Vec<CertificateFile>) -> Self {
        Self { certificates: Certificates::new(files), ..self }
    }

    fn header(&self, revision: Revision) -> Option<pb::ResponseHeader> {
        let identity = self.node.identity();
        Some(pb::ResponseHeader {
            cluster_id: identity.cluster,
            member_id: identity.member,
            revision,
            raft_term: RAFT_TERM,
        })
    }

    /// Waits in a line, which may take as long as others like, but not longer than the node runs.
    async fn until_stopped<T>(
        &self,
        waiting: impl Future<Output = crate::model::error::Result<T>>,
    ) -> Result<T, tonic::Status> {
        tokio::select! {
            done = waiting => done.map_err(status::of_line),
            () = self.stopping.cancelled() => Err(status::status(status::STOPPED)),
        }
    }

    fn header_now(&self) -> Option<pb::ResponseHeader> {
        self.header(self.node.revision())
    }

    /// Serves clients on `listener` until `stopped`, then lets what is under way end.
    ///
    /// # Errors
    /// Where the listener fails.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        tls: Option<Tls>,
        stopped: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        if tls.is_some() {
            self.scheme = "https";
        }
        // Answers are small and waited for.
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(PROBE_EVERY))
            .with_keepalive_interval(Some(PROBE_EVERY));
        let incoming = patience::placed(incoming, self.places.clone(), self.traffic.clone());
        serve_routes(self.routes().await, incoming, tls, stopped).await
    }

    /// Serves the page, health, version and metrics alone, on a port of their own.
    ///
    /// # Errors
    /// Where the listener fails.
    pub async fn serve_admin(
        self,
        listener: TcpListener,
        tls: Option<Tls>,
        stopped: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        // Clients, however many, do not keep a probe out.
        let places = Places::new(ADMIN_CONNECTIONS_MAX);
        let traffic = Traffic::default();
        let incoming = patience::placed(TcpIncoming::from(listener), places, traffic);
        // The page is not for pages of other origins, so it is beside what these may ask.
        let routes = Routes::from(page::routes(self.clone()).merge(http::routes(self)));
        serve_routes(routes, incoming, tls, stopped).await
    }

    /// All that is served on the clients' port.
    pub async fn routes(self) -> Routes {
        // One bound for all: what a write may be, and what stands around it.
        let max = self.limits.request_bytes_max + GRPC_OVERHEAD_BYTES;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .build_v1();
        let mut routes = Routes::default();
        if let Ok(reflection) = reflection {
            let reflection = reflection
                .accept_compressed(CompressionEncoding::Gzip)
                .send_compressed(CompressionEncoding::Gzip);
            routes = routes.add_service(reflection);
        }
        let face = || self.clone();
        macro_rules! add {
            ($($server:path),* $(,)?) => {
                routes
                $(.add_service(
                    <$server>::new(face())
                        .max_decoding_message_size(max)
                        .accept_compressed(CompressionEncoding::Gzip)
                        .send_compressed(CompressionEncoding::Gzip),
                ))*
            };
        }
        let routes = add!(
            proto::health::health_server::HealthServer<Services>,
            pb::kv_server::KvServer<Services>,
            treepb::tree_server::TreeServer<Services>,
            pb::watch_server::WatchServer<Services>,
            pb::lease_server::LeaseServer<Services>,
            pb::cluster_server::ClusterServer<Services>,
            pb::maintenance_server::MaintenanceServer<Services>,
            pb::auth_server::AuthServer<Services>,
            v3lockpb::lock_server::LockServer<Services>,
            v3electionpb::election_server::ElectionServer<Services>,
        );
        let state = (self.node.clone(), self.calls.clone());
        let all = routes.into_axum_router().merge(http::routes(self)).fallback(http::missing);
        let all = all.layer(axum::middleware::from_fn_with_state(state, tree::note_call));
        let all = all.layer(MapRequestLayer::new(answer_as_asked));
        Routes::from(all.layer(MapRequestLayer::new(cluster::note_authority)))
    }
}

/// What is served on a port has these bounds, whatever it is.
async fn serve_routes(
    routes: Routes,
    incoming: impl Stream<Item = io::Result<Placed<TcpStream>>>,
    tls: Option<Tls>,
    stopped: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let incoming = tls::secured(incoming, tls).map_ok(Opening::new);
    Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stopped)
        .await
}

/// Only who compresses gets compressed answers: many say that they would take them, and etcd sends none.
fn answer_as_asked(mut request: axum::extract::Request) -> axum::extract::Request {
    let headers = request.headers_mut();
    if headers.get("grpc-encoding").is_none_or(|encoding| encoding == "identity") {
        headers.remove("grpc-accept-encoding");
    }
    request
}

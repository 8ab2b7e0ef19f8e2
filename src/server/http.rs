//! What is not gRPC: health, version, metrics; on the clients' port as in etcd, and on an admin port.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::future::join_all;
use serde_json::json;
use tokio::time::timeout;
use tonic::Status;

use super::{ETCD_VERSION, STORAGE_VERSION, Services, metrics};

/// How long a store may take to say whether it is there.
const STORE_TIME_MAX: Duration = Duration::from_secs(1);

/// The routes over HTTP.
pub(super) fn routes(face: Services) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/metrics", get(scrape))
        .with_state(face)
}

/// What is nowhere: 404 to who speaks HTTP, UNIMPLEMENTED to who speaks gRPC.
pub(super) async fn missing(headers: HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    match kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        true => Status::unimplemented("").into_http(),
        false => StatusCode::NOT_FOUND.into_response(),
    }
}

/// As etcd answers: healthy where a read works and no alarm is raised.
async fn health(State(face): State<Services>) -> Response {
    let (code, health, reason) = match face.trouble().await {
        None => (StatusCode::OK, "true", String::new()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, "false", reason),
    };
    (code, Json(json!({ "health": health, "reason": reason }))).into_response()
}

/// The process answers: that is all there is to being alive.
async fn livez() -> &'static str {
    "ok\n"
}

/// Ready where the node can serve; `verbose` adds a line for each store. With `--ready-requires-all` every
/// route's store must be there, else only the default one.
async fn readyz(State(face): State<Services>, RawQuery(query): RawQuery) -> Response {
    let is_verbose =
        query.is_some_and(|query| query.split('&').any(|it| it.starts_with("verbose")));
    let trouble = face.trouble().await;
    let mut lines = String::new();
    let mut is_ready = trouble.is_none();
    if is_verbose || face.limits.ready_requires_all {
        for (name, trouble) in face.stores().await {
            is_ready &= trouble.is_empty() || !face.limits.ready_requires_all;
            lines += &match trouble.as_str() {
                "" => format!("[+]store {name} ok\n"),
                trouble => format!("[-]store {name}: {trouble}\n"),
            };
        }
    }
    let said = match (&trouble, is_ready) {
        (Some(reason), _) => format!("{lines}{reason}\n"),
        (None, true) if is_verbose => format!("{lines}ok\n"),
        (None, true) => "ok\n".to_owned(),
        (None, false) => format!("{lines}not ready: a store is not there\n"),
    };
    let code = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, said).into_response()
}

async fn version() -> Json<serde_json::Value> {
    Json(json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": ETCD_VERSION,
        "storage": STORAGE_VERSION,
        "pleach": env!("CARGO_PKG_VERSION"),
    }))
}

async fn scrape(State(face): State<Services>) -> Response {
    match metrics::text(&face.node).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

impl Services {
    /// Its stores by the names of their routes, and why they can't be used where they can't.
    async fn stores(&self) -> Vec<(String, String)> {
        let asked = self.node.root().stores().map(|store| async move {
            let described = timeout(STORE_TIME_MAX, store.describe()).await.unwrap_or_default();
            let trouble = match described.first() {
                Some(route) => route.trouble.clone(),
                None => "it does not answer".to_owned(),
            };
            (store.name().to_string(), trouble)
        });
        join_all(asked).await
    }

    /// Why the node is not healthy, if it is not.
    async fn trouble(&self) -> Option<String> {
        if self.node.is_out_of_space() && !self.stopping.is_cancelled() {
            return Some("ALARM NOSPACE".to_owned());
        }
        self.unanswering().await
    }

    /// Why the node does not answer, if it does not.
    pub(super) async fn unanswering(&self) -> Option<String> {
        if self.stopping.is_cancelled() {
            return Some("the node is stopping".to_owned());
        }
        let probe = bytes::Bytes::from_static(b"health");
        self.node.get(probe).await.err().map(|error| error.to_string())
    }
}

//! What is not gRPC: health, version, metrics; on the clients' port as in etcd, and on an admin port.

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tonic::Status;

use super::{ETCD_VERSION, Face, STORAGE_VERSION, metrics};

/// The routes over HTTP.
pub(super) fn routes(face: Face) -> Router {
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
async fn health(State(face): State<Face>) -> Response {
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

async fn readyz(State(face): State<Face>) -> Response {
    match face.trouble().await {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn version() -> Json<serde_json::Value> {
    Json(json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": ETCD_VERSION,
        "storage": STORAGE_VERSION,
        "pleach": env!("CARGO_PKG_VERSION"),
    }))
}

async fn scrape(State(face): State<Face>) -> Response {
    match metrics::text(&face.node).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

impl Face {
    /// Why the node can't serve, if it can't.
    async fn trouble(&self) -> Option<String> {
        if self.stopping.is_cancelled() {
            return Some("the node is stopping".to_owned());
        }
        if self.node.is_out_of_space() {
            return Some("ALARM NOSPACE".to_owned());
        }
        let probe = bytes::Bytes::from_static(b"health");
        self.node.get(probe).await.err().map(|error| error.to_string())
    }
}

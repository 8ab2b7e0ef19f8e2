//! What is not gRPC: health, version, metrics; on the clients' port as in etcd, and on an admin port.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::any,
};
use futures::future::join_all;
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::time::timeout;
use tonic::Status;

use super::{ETCD_VERSION, STORAGE_VERSION, Services};
use crate::node::{Alarm, AlarmKind};

/// How long a store may take to say whether it is there.
const STORE_TIME_MAX: Duration = Duration::from_secs(1);

const TEXT: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
const NOSNIFF: [(HeaderName, &str); 1] = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// The checks of `/livez` and `/readyz`, by etcd's names. Each is a path of its own, too.
const LIVE: &[&str] = &["serializable_read"];
const READY: &[&str] =
    &["data_corruption", "serializable_read", "linearizable_read", "non_learner"];

/// The routes over HTTP.
pub(super) fn routes(face: Services) -> Router {
    let mut router = Router::new()
        .route("/health", any(health))
        .route("/livez", any(livez))
        .route("/readyz", any(readyz))
        .route("/version", any(version))
        .route("/metrics", any(scrape));
    for (path, checks, reads) in [("livez", LIVE, false), ("readyz", READY, true)] {
        for &check in checks {
            let probe = async move |State(face): State<Services>, asked: Asked| {
                // Only the whole of a path has parts to leave out.
                let asked = Asked { exclude: Vec::new(), ..asked };
                face.probe(&asked, Probe { checks: &[check], reads, has_stores: false }).await
            };
            router = router.route(&format!("/{path}/{check}"), any(probe));
        }
    }
    router.layer(from_fn(cors)).with_state(face)
}

/// Pages of any origin may ask, as etcd lets them where its `--cors` is not given.
async fn cors(request: Request, next: Next) -> Response {
    let mut response = match *request.method() {
        Method::OPTIONS => StatusCode::OK.into_response(),
        _ => next.run(request).await,
    };
    allow_origins(&mut response);
    response
}

fn allow_origins(response: &mut Response) {
    let headers = response.headers_mut();
    let mut allow = |name, value| headers.insert(name, HeaderValue::from_static(value));
    allow(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    allow(header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE");
    allow(header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization");
}

/// What a probe looks at.
#[derive(Clone, Copy, Debug)]
struct Probe<'a> {
    checks: &'a [&'a str],
    /// Whether a read is tried. Not for whether the process is worth keeping: a store that is away is no
    /// reason against that.
    reads: bool,
    has_stores: bool,
}

/// How a probe is asked for.
#[derive(Debug)]
struct Asked {
    is_get: bool,
    exclude: Vec<String>,
    is_verbose: bool,
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let query = parts.uri.query().unwrap_or_default();
        let decoded = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let pairs: Vec<_> = pairs.map(|(key, value)| (decoded(key), decoded(value))).collect();
        let of = |name: &'static str| pairs.iter().filter(move |(key, _)| key == name);
        Ok(Self {
            is_get: parts.method == Method::GET,
            exclude: of("exclude").map(|(_, value)| value.clone()).collect(),
            is_verbose: of("verbose").next().is_some(),
        })
    }
}

// === impl Asked ===

impl Asked {
    fn excludes(&self, name: &str) -> bool {
        self.exclude.iter().any(|it| it == name)
    }
}

/// As etcd answers what is no GET.
fn not_allowed() -> Response {
    let allow = [(header::ALLOW, "GET")];
    (StatusCode::METHOD_NOT_ALLOWED, allow, TEXT, NOSNIFF, "Method Not Allowed\n").into_response()
}

/// What is nowhere: 404 to who speaks HTTP, UNIMPLEMENTED to who speaks gRPC, in the words of its library
/// for Go.
pub(super) async fn missing(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        let mut response = match method {
            Method::OPTIONS => StatusCode::OK.into_response(),
            _ => (StatusCode::NOT_FOUND, TEXT, NOSNIFF, "404 page not found\n").into_response(),
        };
        allow_origins(&mut response);
        return response;
    }
    let path = uri.path();
    let text = match path.trim_start_matches('/').rsplit_once('/') {
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: {path:?}"),
    };
    Status::unimplemented(text).into_http()
}

/// Says which method it is that a service does not have.
pub(super) fn name_unknown(path: &str, response: Response) -> Response {
    let is = |name: &str, value: &str| response.headers().get(name).is_some_and(|it| it == value);
    if !is("grpc-status", "12") || response.headers().contains_key("grpc-message") {
        return response;
    }
    match path.trim_start_matches('/').rsplit_once('/') {
        Some((service, method)) => {
            Status::unimplemented(format!("unknown method {method} for service {service}"))
                .into_http()
        }
        None => response,
    }
}

/// As etcd answers: healthy where a read works and no alarm is raised that `exclude` does not name.
async fn health(State(face): State<Services>, asked: Asked) -> Response {
    if !asked.is_get {
        return not_allowed();
    }
    let alarms = face.node.alarms().into_iter().map(|alarm| alarm.kind.name());
    let trouble = match alarms.into_iter().find(|alarm| !asked.excludes(alarm)) {
        Some(alarm) => Some(format!("ALARM {alarm}")),
        None => face.unanswering().await,
    };
    let Some(reason) = trouble else {
        return (StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#).into_response();
    };
    let said = json!({ "health": "false", "reason": reason }).to_string() + "\n";
    (StatusCode::SERVICE_UNAVAILABLE, TEXT, NOSNIFF, said).into_response()
}

/// Whether to start the node again: never for what a restart does not mend, such as a store that is away.
async fn livez(State(face): State<Services>, asked: Asked) -> Response {
    face.probe(&asked, Probe { checks: LIVE, reads: false, has_stores: false }).await
}

/// Whether to send clients here. An alarm does not count, as in etcd: reads, deletions and compaction are
/// served. With `--ready-requires-all` every route's store must be there, else only the default one.
async fn readyz(State(face): State<Services>, asked: Asked) -> Response {
    face.probe(&asked, Probe { checks: READY, reads: true, has_stores: true }).await
}

async fn version(asked: Asked) -> Response {
    if !asked.is_get {
        return not_allowed();
    }
    let json = [(header::CONTENT_TYPE, "application/json")];
    let versions = format!(
        r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{STORAGE_VERSION}","storage":"{STORAGE_VERSION}"}}"#
    );
    (json, versions).into_response()
}

async fn scrape(State(face): State<Services>) -> Response {
    match face.metrics_text().await {
        Ok(text) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
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

    /// The answer to a probe of some checks, with a line for each where one fails or `verbose` is said; with
    /// the stores behind them where they are asked for too.
    async fn probe(&self, asked: &Asked, probe: Probe<'_>) -> Response {
        if !asked.is_get {
            return not_allowed();
        }
        let Probe { checks, reads, has_stores } = probe;
        let (mut lines, mut is_good) = (String::new(), true);
        for check in checks.iter().filter(|check| !asked.excludes(check)) {
            let trouble = match *check {
                "linearizable_read" | "serializable_read" if reads => self.unanswering().await,
                "data_corruption" => {
                    let is_raised = |alarm: &Alarm| alarm.kind == AlarmKind::Corrupt;
                    let is_raised = self.node.alarms().iter().any(is_raised);
                    is_raised.then(|| "alarm activated: CORRUPT".to_owned())
                }
                // A node does not learn.
                _ => None,
            };
            is_good &= trouble.is_none();
            lines += &match trouble {
                None => format!("[+]{check} ok\n"),
                Some(trouble) => format!("[-]{check} failed: {trouble}\n"),
            };
        }
        if has_stores && (asked.is_verbose || self.limits.ready_requires_all) {
            for (name, trouble) in self.stores().await {
                is_good &= trouble.is_empty() || !self.limits.ready_requires_all;
                lines += &match trouble.as_str() {
                    "" => format!("[+]store {name} ok\n"),
                    trouble => format!("[-]store {name} failed: {trouble}\n"),
                };
            }
        }
        let said = match (is_good, asked.is_verbose) {
            (true, false) => "ok\n".to_owned(),
            (true, true) => lines + "ok\n",
            (false, _) => lines + "\n",
        };
        let code = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (code, TEXT, NOSNIFF, said).into_response()
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

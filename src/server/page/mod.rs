//! Page: the tree below a node, for people with a browser, on the admin port.
//!
//! ```text
//!   GET /?q=…&show=…&sort=…  ──>  Asked ──┐
//!   Services::described_within ──> pb::Node ──> view: what is shown, in which order ──> templates ──> HTML
//! ```
//!
//! It shows what `Describe` says and nothing else: what a node does not tell is a dash, never a number. All of
//! it is there without JavaScript, which only fetches the same page again and takes over what is new. It changes
//! nothing, asks nobody outside, and takes every name and text for hostile: templates escape, and the headers let
//! a browser run and load only what this port serves.

mod asked;
mod figures;
mod node;
mod route;
#[cfg(test)]
mod tests;
mod trouble;

use std::time::Duration;

use askama::Template;
use axum::{
    Router,
    extract::{RawQuery, Request, State},
    http::{HeaderValue, StatusCode, Version, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};

use self::{
    asked::{Asked, COLUMNS, Show, Sort},
    node::NodeView,
};
use super::Services;
use crate::proto::tree as pb;

/// How long the page waits for what lies below. Who is silent is shown as that.
const BELOW_TIME_MAX: Duration = Duration::from_secs(2);

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Nothing from elsewhere is loaded, run, asked or framed, whatever a name or a text contains.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The page, as its template has it.
#[derive(Debug, Template)]
#[template(path = "page.html")]
struct Page {
    asked: Asked,
    root: NodeView,
}

/// The page and its two files.
pub(super) fn routes(face: Services) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, kind)], text).into_response())
    };
    Router::new()
        .route("/", get(page))
        .route("/page.css", file("text/css; charset=utf-8", STYLE))
        .route("/page.js", file("text/javascript; charset=utf-8", SCRIPT))
        .layer(from_fn(guard))
        .with_state(face)
}

async fn page(State(face): State<Services>, RawQuery(query): RawQuery) -> Response {
    let asked = Asked::from_query(query.as_deref().unwrap_or_default());
    let node = face.described_within(BELOW_TIME_MAX).await;
    match Page::new(&node, asked).render() {
        Ok(html) => ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn guard(request: Request, next: Next) -> Response {
    let version = request.version();
    let mut response = next.run(request).await;
    let mut set =
        |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CACHE_CONTROL, "no-store");
    if version <= Version::HTTP_11 {
        // Browsers keep several connections that they do not use, and probes need the port's few places.
        set(header::CONNECTION, "close");
    }
    response
}

// === impl Page ===

impl Page {
    fn new(node: &pb::Node, asked: Asked) -> Self {
        Self { root: NodeView::root(node, &asked), asked }
    }

    /// The columns, where each leads, and whether it is sorted by now: then it leads back to trouble first.
    fn columns(&self) -> impl Iterator<Item = (&'static str, String, bool)> {
        COLUMNS.iter().map(|&(sort, heading)| {
            let is_now = sort == self.asked.sort;
            let next = if is_now { Sort::default() } else { sort };
            (heading, self.asked.link(self.asked.show, next), is_now)
        })
    }

    fn shows_trouble_only(&self) -> bool {
        self.asked.show == Show::Trouble
    }

    fn options(&self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        Sort::ALL.iter().map(|sort| (sort.word(), sort.said(), *sort == self.asked.sort))
    }

    /// How many routes are shown, for people.
    fn count(&self) -> String {
        let (shown, all) = (self.root.shown(), self.root.routes_all);
        match (shown == all, all) {
            (true, 1) => "1 route".to_owned(),
            (true, _) => format!("{} routes", figures::count(all)),
            (false, _) => format!("{} of {} routes", figures::count(shown), figures::count(all)),
        }
    }
}

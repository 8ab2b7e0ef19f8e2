//! Route: a line of the page, and what is behind it when it is opened.

use askama::{Template, filters::HtmlSafe};

use super::{
    asked::Asked,
    figures::{self, UNKNOWN, or_dash},
    node::NodeView,
    trouble::Trouble,
};
use crate::proto::tree as pb;

/// Of a text that others wrote no more is shown: it may be as long as a message.
const TEXT_BYTES_MAX: usize = 2_000;

/// A route, as its template has it.
#[derive(Debug, Template)]
#[template(path = "route.html")]
pub(super) struct RouteView {
    /// The names on the way to it: the same in the next page.
    pub(super) id: String,
    pub(super) name: String,
    kind: String,
    rule: String,
    /// What is wrong with it.
    pub(super) trouble: Trouble,
    /// What is wrong with it, or with the worst of what lies below.
    pub(super) worst: Trouble,
    /// Why, and for how long, where it says so.
    reason: String,
    since: Option<Age>,
    cells: Vec<Fact>,
    facts: Vec<Fact>,
    last_error: Option<(String, Option<Age>)>,
    pub(super) below: Option<Box<NodeView>>,
    pub(super) is_open: bool,
    /// Whether it has what is searched for.
    pub(super) is_found: bool,
    pub(super) measures: Measures,
}

/// What is said of something under a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) label: &'static str,
    pub(super) value: String,
}

/// How long ago something was.
#[derive(Clone, Debug)]
pub(super) struct Age {
    /// For the script, which knows the time of day.
    seconds: f64,
    said: String,
}

/// What routes are sorted by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measures {
    pub(super) reads: Option<f64>,
    pub(super) writes: Option<f64>,
    pub(super) failed: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) lag: Option<f64>,
    pub(super) keys: Option<f64>,
    pub(super) bytes: Option<f64>,
}

/// Templates escape what they are filled with, so this is not escaped again.
impl HtmlSafe for RouteView {}

/// A text that others wrote, no longer than can be shown.
pub(super) fn shown(text: &str) -> String {
    match text.floor_char_boundary(TEXT_BYTES_MAX) {
        end if end < text.len() => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

// === impl Fact ===

impl Fact {
    pub(super) fn new(label: &'static str, value: impl Into<String>) -> Self {
        Self { label, value: value.into() }
    }

    /// Where something is known.
    pub(super) fn known(label: &'static str, value: Option<String>) -> Option<Self> {
        let value = value.filter(|value| !value.is_empty())?;
        Some(Self { label, value })
    }
}

// === impl Age ===

impl Age {
    fn of(seconds: f64) -> Option<Self> {
        let seconds = figures::measure(seconds)?;
        Some(Self { seconds, said: figures::span(seconds) })
    }
}

// === impl Measures ===

impl Measures {
    fn of(route: &pb::Route, node: &pb::Node) -> Self {
        let done = [&route.reads, &route.writes, &route.commits];
        let failed = done.into_iter().filter_map(figures::failed).reduce(u64::saturating_add);
        let slow = [&route.reads, &route.writes].into_iter().filter_map(figures::p99);
        let has_lag = route.closed > 0 && node.revision > 0;
        let lag = has_lag.then(|| node.revision.saturating_sub(route.closed).max(0) as f64);
        Self {
            reads: figures::per_second(&route.reads),
            writes: figures::per_second(&route.writes),
            failed: failed.map(|it| it as f64),
            p99: slow.reduce(f64::max),
            lag,
            keys: route.keys.map(|it| it as f64),
            bytes: Some(route.bytes as f64).filter(|it| *it > 0.0),
        }
    }

    /// One for each column behind the name.
    fn cells(&self, route: &pb::Route) -> Vec<Fact> {
        let whole = |number: f64| figures::count(number as u64);
        let cells = [
            ("reads", self.reads.map(figures::rate)),
            ("writes", self.writes.map(figures::rate)),
            ("failed", self.failed.map(whole)),
            ("p99", self.p99.map(figures::latency)),
            ("lag", self.lag.map(whole)),
            ("keys", route.keys.map(figures::count)),
            ("size", figures::known_bytes(route.bytes)),
        ];
        cells.into_iter().map(|(label, value)| Fact::new(label, or_dash(value))).collect()
    }
}

// === impl RouteView ===

impl RouteView {
    /// A route of `node`, reached by the way `id`, with the texts on it in lower case.
    pub(super) fn new(
        route: &pb::Route,
        node: &pb::Node,
        id: String,
        around: &str,
        asked: &Asked,
    ) -> Self {
        let kind = match (route.kind.as_str(), &route.node) {
            ("", Some(_)) => "node",
            (kind, _) => kind,
        };
        let mut text = String::new();
        if asked.is_searching() {
            let below = route.node.as_ref().map(NodeView::name_of).unwrap_or_default();
            let own = [&route.name, &route.rule, &route.place, kind, &below];
            text = format!("{around} {}", own.join(" ").to_lowercase());
        }
        let below =
            route.node.as_ref().map(|node| Box::new(NodeView::new(node, &id, &text, asked)));
        let trouble = Trouble::of(route);
        let measures = Measures::of(route, node);
        let last = route.last_error.as_ref().filter(|last| !last.text.is_empty());
        let reason = match trouble {
            Trouble::Away => shown(&route.trouble),
            Trouble::Loop => below.as_ref().map(|below| below.in_loop.clone()).unwrap_or_default(),
            Trouble::Alarm => below.as_ref().map(|below| below.alarms()).unwrap_or_default(),
            Trouble::Failing => last.map(|last| shown(&last.text)).unwrap_or_default(),
            Trouble::Full | Trouble::Misrouted | Trouble::None => String::new(),
        };
        let since = match trouble {
            Trouble::Away if route.trouble_s > 0.0 => Age::of(route.trouble_s),
            _ => None,
        };
        Self {
            name: shown(&route.name),
            kind: shown(kind),
            rule: if route.is_default { "all other keys".to_owned() } else { shown(&route.rule) },
            trouble,
            worst: below.as_ref().map_or(trouble, |below| below.worst.max(trouble)),
            reason,
            since,
            cells: measures.cells(route),
            facts: facts(route, node, kind),
            last_error: last.map(|last| (shown(&last.text), Age::of(last.age_s))),
            is_open: false,
            is_found: asked.finds(&text),
            below,
            measures,
            id,
        }
    }

    /// What is wrong here, or below.
    fn state(&self) -> &'static str {
        match (self.trouble, self.worst) {
            (Trouble::None, worst) if worst.is_any() => "trouble below",
            (trouble, _) => trouble.said(),
        }
    }

    /// What it does not do while it is away: a node answers, a store is there to be used.
    fn away(&self) -> String {
        match self.kind.ends_with("node") {
            true => format!("No answer from {}", self.name),
            false => "Away".to_owned(),
        }
    }

    fn class(&self) -> &'static str {
        self.worst.class()
    }
}

/// What is known of a route beside its figures.
fn facts(route: &pb::Route, node: &pb::Node, kind: &str) -> Vec<Fact> {
    let known = |is_known: bool, value: String| is_known.then_some(value);
    // A node is told of below, and who is in trouble says itself whose it is.
    let is_ours = matches!(kind, "memory" | "sqlite" | "postgres" | "mysql" | "etcd");
    let owner = known(is_ours && route.trouble.is_empty(), shown(&NodeView::name_of(node)));
    let counted = || match figures::measure(route.keys_age_s).filter(|age| *age > 0.0) {
        Some(age) => format!(", counted {} ago", figures::span(age)),
        None => String::new(),
    };
    let keys = route.keys.map(|keys| figures::count(keys) + &counted());
    let size = figures::known_bytes(route.bytes).map(|all| {
        let used = figures::known_bytes(route.bytes_in_use);
        used.map_or_else(
            || format!("{all} on disk"),
            |used| format!("{all} on disk, {used} in use"),
        )
    });
    let full = known(route.is_full, "no room for more: writes are refused".to_owned());
    let misrouted = route.misrouted.map(|keys| match keys {
        0 => "none".to_owned(),
        keys => format!("{} keys route elsewhere, and are hidden", figures::count(keys)),
    });
    let is_told = route.writes.is_some() || route.pending > 0;
    let facts = [
        Fact::known("Place", Some(shown(&route.place))),
        Fact::known("Owner", owner),
        Fact::known("Reads", figures::activity(&route.reads)),
        Fact::known("Writes", figures::activity(&route.writes)),
        Fact::known("Commits", figures::activity(&route.commits)),
        Fact::known("Waiting writes", known(is_told, figures::count(route.pending))),
        Fact::known("Closed up to", figures::revision(route.closed)),
        Fact::known("Keys", keys),
        Fact::known("Size", size),
        Fact::known("Room", full),
        Fact::known("Misrouted", misrouted),
    ];
    facts.into_iter().flatten().collect()
}

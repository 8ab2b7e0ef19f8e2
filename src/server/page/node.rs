//! Node: what a node says of itself, and its routes below.

use askama::{Template, filters::HtmlSafe};

use super::{
    asked::{Asked, encode},
    figures::{self, UNKNOWN, or_dash},
    route::{Fact, RouteView, shown},
    trouble::Trouble,
};
use crate::{proto::tree as pb, tree::lanes::printed, wire};

/// So many routes in trouble are opened by themselves; more would be a wall of text.
const OPEN_MAX: usize = 6;

/// A tree of so many routes is shown with its nodes open.
const SMALL_TREE: u64 = 40;

/// So many routes of a node are listed; the rest is folded, where that is more than a few.
const LISTED_MAX: usize = 50;
const FOLDED_MIN: usize = 10;

/// A node, as its template has it.
#[derive(Debug, Template)]
#[template(path = "node.html")]
pub(super) struct NodeView {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    /// The most telling, of the node that is asked; each with whether it is a bad one.
    pub(super) figures: Vec<(Fact, bool)>,
    pub(super) facts: Vec<Fact>,
    pub(super) in_loop: String,
    alarms: Vec<String>,
    /// Whether it says what it does: nodes of before that say nothing, which is not zero.
    tells: bool,
    /// Its routes, in the order that is asked for.
    pub(super) routes: Vec<RouteView>,
    /// Those that are folded.
    rest: Vec<RouteView>,
    /// Whether there was any before what is not asked for was taken out.
    has_routes: bool,
    pub(super) worst: Trouble,
    /// How many routes there are in it and below, and how many of them are in trouble themselves.
    pub(super) routes_all: u64,
    pub(super) in_trouble: u64,
}

/// Templates escape what they are filled with, so this is not escaped again.
impl HtmlSafe for NodeView {}

// === impl NodeView ===

impl NodeView {
    /// The node that is asked, with all below it, as it is asked for.
    pub(super) fn root(node: &pb::Node, asked: &Asked) -> Self {
        let around = match asked.is_searching() {
            true => Self::name_of(node).to_lowercase(),
            false => String::new(),
        };
        let mut root = Self::new(node, "tree", &around, asked);
        root.figures = summary(node, &root);
        asked.narrow(&mut root);
        let is_small = asked.is_searching() || root.shown() <= SMALL_TREE;
        root.open(&mut { OPEN_MAX }, is_small);
        root.fold();
        root
    }

    pub(super) fn new(node: &pb::Node, id: &str, around: &str, asked: &Asked) -> Self {
        let mut routes: Vec<RouteView> = Vec::with_capacity(node.routes.len());
        let mut ids = std::collections::HashMap::<&str, u64>::new();
        for route in &node.routes {
            let mut id = format!("{id}/");
            encode(&mut id, &shown(&route.name));
            // Names differ, but nobody holds another's program to that, and ids must.
            let same = ids.entry(&route.name).and_modify(|same| *same += 1).or_default();
            if *same > 0 {
                id += &format!("~{same}");
            }
            routes.push(RouteView::new(route, node, id, around, asked));
        }
        asked.sort.sort(&mut routes);
        let below = || routes.iter().filter_map(|route| route.below.as_ref());
        let in_trouble = routes.iter().filter(|route| route.trouble.is_any()).count() as u64;
        Self {
            id: id.to_owned(),
            name: shown(&Self::name_of(node)),
            version: shown(&node.version),
            figures: Vec::new(),
            facts: facts(node),
            in_loop: shown(&node.r#loop),
            alarms: node.alarms.iter().map(|alarm| shown(alarm)).collect(),
            tells: node.uptime_s > 0.0,
            has_routes: !routes.is_empty(),
            worst: routes.iter().map(|route| route.worst).max().unwrap_or_default(),
            routes_all: routes.len() as u64 + below().map(|it| it.routes_all).sum::<u64>(),
            in_trouble: in_trouble + below().map(|it| it.in_trouble).sum::<u64>(),
            routes,
            rest: Vec::new(),
        }
    }

    pub(super) fn name_of(node: &pb::Node) -> String {
        node.member.as_ref().map_or_else(|| UNKNOWN.to_owned(), |member| member.name.clone())
    }

    /// The alarms that are raised, in a line.
    pub(super) fn alarms(&self) -> String {
        match (self.alarms.is_empty(), self.tells) {
            (false, _) => self.alarms.join(", "),
            (true, true) => "none".to_owned(),
            (true, false) => UNKNOWN.to_owned(),
        }
    }

    /// How many routes are left, in it and below.
    pub(super) fn shown(&self) -> u64 {
        let routes = self.routes.iter().chain(&self.rest);
        routes.map(|route| 1 + route.below.as_ref().map_or(0, |below| below.shown())).sum()
    }

    /// Opens what is in trouble, and nodes where they are few.
    fn open(&mut self, left: &mut usize, is_small: bool) {
        for route in &mut self.routes {
            let is_in_trouble = route.worst.is_any() && *left > 0;
            if is_in_trouble {
                *left -= 1;
            }
            route.is_open = is_in_trouble || (is_small && route.below.is_some());
            if let Some(below) = &mut route.below {
                below.open(left, is_small);
            }
        }
    }

    /// Folds what is far down.
    fn fold(&mut self) {
        for below in self.routes.iter_mut().filter_map(|route| route.below.as_mut()) {
            below.fold();
        }
        if self.routes.len() >= LISTED_MAX + FOLDED_MIN {
            self.rest = self.routes.split_off(LISTED_MAX);
        }
    }

    /// What is most worth knowing while the rest is closed.
    fn brief(&self) -> impl Iterator<Item = String> {
        let of = |label| self.facts.iter().find(move |fact| fact.label == label);
        let brief = [("Up for", "up"), ("Revision", "revision"), ("Watchers", "watchers")];
        brief
            .into_iter()
            .filter_map(move |(label, word)| Some(format!("{word} {}", of(label)?.value)))
    }

    fn rest_said(&self) -> String {
        let in_trouble = self.rest.iter().filter(|route| route.worst.is_any()).count() as u64;
        let rest = figures::count(self.rest.len() as u64);
        match in_trouble {
            0 => format!("{rest} more routes, none in trouble"),
            count => format!("{rest} more routes, {} in trouble", figures::count(count)),
        }
    }
}

/// How many watchers there are, and how many of them are not up to date.
fn watchers(node: &pb::Node) -> String {
    let all = node.watchers.saturating_add(node.watchers_behind);
    match node.watchers_behind {
        0 => figures::count(all),
        behind => format!("{}, {} behind", figures::count(all), figures::count(behind)),
    }
}

/// Figures of the node that is asked, for the top of the page.
fn summary(node: &pb::Node, view: &NodeView) -> Vec<(Fact, bool)> {
    let told = |value: String| view.tells.then_some(value);
    let failed = figures::failed(&node.requests);
    let all = node.watchers.saturating_add(node.watchers_behind);
    let is_behind = node.watchers_behind > 0;
    let figures = [
        ("Routes", Some(figures::count(view.routes_all)), false),
        ("In trouble", Some(figures::count(view.in_trouble)), view.in_trouble > 0),
        ("Alarms", Some(view.alarms()), !view.alarms.is_empty()),
        ("Requests", figures::per_second(&node.requests).map(figures::rate), false),
        ("Failed", failed.map(figures::count), failed.is_some_and(|it| it > 0)),
        ("p99", figures::p99(&node.requests).map(figures::latency), false),
        ("Watchers", told(figures::count(all)), false),
        ("Behind", Some(figures::count(node.watchers_behind)).filter(|_| is_behind), is_behind),
        ("Leases", told(figures::count(node.leases)), false),
        ("Revision", figures::revision(node.revision), false),
        ("Memory", figures::known_bytes(node.memory_bytes), false),
    ];
    // That no watcher is behind takes no room.
    let figures = figures.into_iter().filter(|(label, ..)| *label != "Behind" || is_behind);
    figures.map(|(label, value, is_bad)| (Fact::new(label, or_dash(value)), is_bad)).collect()
}

/// What is known of a node beside its name and version.
fn facts(node: &pb::Node) -> Vec<Fact> {
    let tells = node.uptime_s > 0.0;
    let told = |value: String| tells.then_some(value);
    let lanes = wire::blocks_of(&node.lanes).map(|blocks| match node.lanes_left {
        0 => printed(&blocks),
        left => format!("{}, {left} left", printed(&blocks)),
    });
    let parent = node.giver.as_ref().map(|giver| giver.name.clone());
    let lag = node.revision.saturating_sub(node.closed).max(0);
    let has_lag = node.closed > 0 && node.revision > 0;
    let cpu = figures::measure(node.cpu_s).filter(|cpu| *cpu > 0.0).map(figures::span);
    let files = (node.open_files > 0).then(|| match node.open_files_max {
        0 => figures::count(node.open_files),
        max => format!("{} of {}", figures::count(node.open_files), figures::count(max)),
    });
    let alarms = match node.alarms.is_empty() {
        true => told("none".to_owned()),
        false => Some(node.alarms.iter().map(|alarm| shown(alarm)).collect::<Vec<_>>().join(", ")),
    };
    let facts = [
        Fact::known("Id", node.member.as_ref().map(|member| format!("{:x}", member.id))),
        Fact::known("Parent", parent.map(|parent| shown(&parent))),
        Fact::known("Lanes", lanes),
        Fact::known("Up for", figures::measure(node.uptime_s).filter(|_| tells).map(figures::span)),
        Fact::known("Revision", figures::revision(node.revision)),
        Fact::known("Lag", has_lag.then(|| figures::count(lag.unsigned_abs()))),
        Fact::known("Compacted", figures::revision(node.compacted)),
        Fact::known("Requests", figures::activity(&node.requests)),
        Fact::known("Watchers", told(watchers(node))),
        Fact::known("Leases", told(figures::count(node.leases))),
        Fact::known("Alarms", alarms),
        Fact::known("Memory", figures::known_bytes(node.memory_bytes)),
        Fact::known("Processor time", cpu),
        Fact::known("Open files", files),
        Fact::known("Protocol", (node.protocol > 0).then(|| node.protocol.to_string())),
    ];
    facts.into_iter().flatten().collect()
}

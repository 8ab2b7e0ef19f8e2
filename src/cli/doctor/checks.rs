//! What is looked at, and from where on it is too much.

use super::{Finding, Severity};
use crate::{
    cli::{
        output::{bytes, seconds},
        walk::{self, Place},
    },
    clock::LANES,
    net::status::Cause,
    proto::tree as pb,
};

/// A commit waits for the disk. Below this API servers notice nothing; etcd's own alerts begin at it.
const COMMIT_SLOW_S: f64 = 0.025;
const COMMIT_BAD_S: f64 = 0.1;

/// An API server gives up on a request after some of these.
const REQUEST_SLOW_S: f64 = 1.0;

/// Of the requests of late. Single ones fail for reasons of their own.
const FAILED_SHARE_MAX: f64 = 0.01;
const FAILED_MIN: u64 = 3;

/// An error is of late for so long.
const LATE_S: f64 = 600.0;

/// Of the files that a process may have open.
const FILES_DOUBTFUL_SHARE: f64 = 0.8;
const FILES_BAD_SHARE: f64 = 0.95;

/// Of the watchers of a node; a few are always on their way.
const BEHIND_SHARE_MAX: f64 = 0.1;
const BEHIND_MIN: u64 = 10;

/// How many writes may lie between what was shown and what is closed.
const CLOSED_LAG_WRITES: i64 = 10_000;

/// Writes that wait in one store.
const PENDING_MAX: u64 = 1_000;

/// A root has a thousand lanes; what is left of them is for the children of years to come.
const ROOT_LANES_LEFT_MIN: u32 = 32;

/// A store that could be smaller by so much is worth a word.
const UNUSED_BYTES_MIN: u64 = 1 << 30;

/// A process that is younger may have been started again by what watches over it.
const YOUNG_S: f64 = 60.0;

/// All that is found in a tree, the worst first.
pub(super) fn examine(root: &pb::Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    for place in walk::nodes(root) {
        of_node(&place, root, &mut findings);
        for route in &place.node.routes {
            of_route(&place.of(route), route, &mut findings);
        }
    }
    // Stable: what is alike stays in the order of the tree.
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// What is found at one place.
struct Notes<'a> {
    place: &'a str,
    findings: &'a mut Vec<Finding>,
}

impl Notes<'_> {
    fn note(
        &mut self,
        severity: Severity,
        check: &'static str,
        what: String,
        meaning: &'static str,
        remedy: impl Into<String>,
    ) {
        let (place, remedy) = (self.place.to_owned(), remedy.into());
        self.findings.push(Finding { severity, check, place, what, meaning, remedy });
    }
}

fn of_node(place: &Place<'_>, root: &pb::Node, findings: &mut Vec<Finding>) {
    let node = place.node;
    let mut notes = Notes { place: &place.path, findings };
    if !node.r#loop.is_empty() {
        notes.note(
            Severity::Error,
            "loop",
            format!("the routes form a loop: {}", node.r#loop),
            "keys of these routes are refused",
            "take one of the routes out of its topology, and start that node again",
        );
    }
    alarms(node, &mut notes);
    if node.version != root.version {
        notes.note(
            Severity::Warning,
            "version",
            format!("version {}, while {} is asked", node.version, root.version),
            "meant for the time of an upgrade only",
            "bring all nodes of the tree to one version, children first",
        );
    }
    lanes(node, &mut notes);
    closed(node, &mut notes);
    of_process(node, &mut notes);
    if let Some(requests) = &node.requests {
        of_activity("requests", "requests", requests, REQUEST_SLOW_S, &mut notes);
    }
}

fn alarms(node: &pb::Node, notes: &mut Notes<'_>) {
    for alarm in &node.alarms {
        let (meaning, remedy) = match alarm.as_str() {
            "NOSPACE" => (
                "puts are refused",
                "compact and defragment (`etcdctl compact`, `etcdctl defrag`) or raise \
                 --quota-backend-bytes, then `etcdctl alarm disarm`",
            ),
            "CORRUPT" => (
                "reads and writes are refused",
                "look into the node's log for what is damaged before `etcdctl alarm disarm`",
            ),
            _ => ("clients may be refused", "`etcdctl alarm list` has it; the node's log says why"),
        };
        notes.note(
            Severity::Error,
            "alarm",
            format!("the alarm {alarm} is raised"),
            meaning,
            remedy,
        );
    }
}

fn lanes(node: &pb::Node, notes: &mut Notes<'_>) {
    let held: u32 = node.lanes.iter().map(|block| block.count).sum();
    if held == 0 {
        return;
    }
    if node.giver.is_some() && node.lanes_needed > held {
        notes.note(
            Severity::Warning,
            "lanes",
            format!("it needs {} lanes and holds {held}", node.lanes_needed),
            "children that have none are not attached",
            "take `lanes` out of its route in the parent's topology, or set it higher",
        );
    } else if node.giver.is_none() && node.lanes_left < ROOT_LANES_LEFT_MIN {
        notes.note(
            Severity::Warning,
            "lanes",
            format!("{} of {LANES} lanes are left", node.lanes_left),
            "further children will find none, and are not attached",
            "give routes to large subtrees fewer `lanes` before they first join; lanes that were given \
             are not taken back",
        );
    }
}

fn closed(node: &pb::Node, notes: &mut Notes<'_>) {
    // In a tree revisions lie a whole round of lanes apart.
    let step = if node.lanes.is_empty() { 1 } else { i64::from(LANES) };
    let lag = (node.revision - node.closed) / step;
    if node.closed > 0 && lag > CLOSED_LAG_WRITES {
        notes.note(
            Severity::Warning,
            "closed",
            format!("what is closed is {lag} writes behind what was shown"),
            "watches over several stores wait for the slowest",
            "look for a store that is away or slow, or whose clock is behind; its log says more",
        );
    }
}

fn of_process(node: &pb::Node, notes: &mut Notes<'_>) {
    if node.uptime_s > 0.0 && node.uptime_s < YOUNG_S {
        notes.note(
            Severity::Note,
            "uptime",
            format!("it was started {} ago", seconds(node.uptime_s)),
            "a node that starts again and again shows its clients nothing else",
            "nothing, where it was meant; else its log says why it ended",
        );
    }
    let share = node.open_files as f64 / node.open_files_max.max(1) as f64;
    if node.open_files_max > 0 && share > FILES_DOUBTFUL_SHARE {
        let severity = if share > FILES_BAD_SHARE { Severity::Error } else { Severity::Warning };
        notes.note(
            severity,
            "open-files",
            format!("{} of {} files are open", node.open_files, node.open_files_max),
            "each connection is one; without them clients and stores are not connected",
            "raise the limit (`ulimit -Hn`, LimitNOFILE=), or find out who opens so many connections",
        );
    }
    let watchers = node.watchers + node.watchers_behind;
    let behind_max = (watchers as f64 * BEHIND_SHARE_MAX) as u64;
    if node.watchers_behind > behind_max.max(BEHIND_MIN) {
        notes.note(
            Severity::Warning,
            "watchers",
            format!("{} of {watchers} watchers are behind", node.watchers_behind),
            "they read the log from the store, and are told late",
            "look for clients that read slowly, and for a store whose reads are slow",
        );
    }
}

fn of_route(place: &str, route: &pb::Route, findings: &mut Vec<Finding>) {
    let mut notes = Notes { place, findings };
    if !route.trouble.is_empty() {
        let since = match route.trouble_s {
            0.0 => String::new(),
            time => format!(" for {}", seconds(time)),
        };
        notes.note(
            Severity::Error,
            "store-away",
            format!("it can't be used{since}: {}", route.trouble),
            "its keys are refused, and lists over them fail; all else goes on",
            remedy_of(route),
        );
    }
    room(route, &mut notes);
    if let Some(commits) = route.commits.as_ref().filter(|it| it.recent_p99_s > COMMIT_SLOW_S) {
        let is_bad = commits.recent_p99_s > COMMIT_BAD_S;
        let severity = if is_bad { Severity::Error } else { Severity::Warning };
        let remedy = match route.kind.as_str() {
            "sqlite" => "give its file a faster disk, or one that it does not share",
            "postgres" | "mysql" => {
                "look at the database's disk, its load, and the network between"
            }
            _ => "look at the disk of the etcd, its load, and the network between",
        };
        let time = seconds(commits.recent_p99_s);
        let what = format!("one commit in a hundred takes {time} or more");
        notes.note(severity, "slow-commits", what, "each write waits at least so long", remedy);
    }
    if let Some(misrouted) = route.misrouted.filter(|count| *count > 0) {
        notes.note(
            Severity::Warning,
            "misrouted",
            format!("{misrouted} of its keys route elsewhere"),
            "nobody is shown them, and they take room",
            "after a change of the rules: copy them to where they route, or delete them, with the tools \
             of the store; `pleach explain KEY` says where that is",
        );
    }
    if route.pending > PENDING_MAX {
        notes.note(
            Severity::Warning,
            "pending",
            format!("{} writes wait for it", route.pending),
            "clients wait, and give up after some seconds",
            "look whether its commits are slow, or who writes so much",
        );
    }
    activities(route, &mut notes);
}

fn remedy_of(route: &pb::Route) -> String {
    let place = match route.place.as_str() {
        "" => "its endpoint".to_owned(),
        place => place.to_owned(),
    };
    if let Some(cause) = Cause::of(&route.trouble) {
        return format!("{place}: {}", cause.remedy());
    }
    if route.trouble.contains("is another store than before") {
        return format!(
            "put the store of before back at {place}, or start the node once with `--adopt {}`",
            route.name
        );
    }
    match route.kind.as_str() {
        "node" | "etcd or node" => format!(
            "look whether the node or etcd at {place} runs, and into its log: a node may not admit this one"
        ),
        "sqlite" => {
            format!("look whether another process has {place}, and whether its disk is there")
        }
        _ => format!(
            "look whether {place} answers, and whether the login is right; the node tries again by itself"
        ),
    }
}

fn room(route: &pb::Route, notes: &mut Notes<'_>) {
    if route.is_full {
        notes.note(
            Severity::Error,
            "full",
            "there is no room for more".to_owned(),
            "puts to its keys are refused; deletions and reads go on",
            "make room on its disk, or compact and defragment it",
        );
    }
    let unused = route.bytes.saturating_sub(route.bytes_in_use);
    if route.bytes_in_use > 0 && unused > UNUSED_BYTES_MIN && unused > route.bytes / 2 {
        notes.note(
            Severity::Note,
            "unused",
            format!("{} of {} hold nothing", bytes(unused), bytes(route.bytes)),
            "the room is used again, and given to nobody else until then",
            "`etcdctl defrag`, where the disk is needed for something else",
        );
    }
}

fn activities(route: &pb::Route, notes: &mut Notes<'_>) {
    let before = notes.findings.len();
    if let Some(reads) = &route.reads {
        of_activity("reads", "reads", reads, REQUEST_SLOW_S, notes);
    }
    if let Some(writes) = &route.writes {
        of_activity("writes", "writes", writes, REQUEST_SLOW_S, notes);
    }
    let is_said = notes.findings[before..].iter().any(|it| it.what.contains("failed"));
    let Some(error) = &route.last_error else {
        return;
    };
    if is_said {
        // What failed, and why, is one thing.
        let failed = notes.findings[before..].iter_mut().filter(|it| it.what.contains("failed"));
        for finding in failed {
            finding.what += &format!("; the last, {} ago: {}", seconds(error.age_s), error.text);
        }
    } else if error.age_s < LATE_S && route.trouble.is_empty() {
        notes.note(
            Severity::Note,
            "last-error",
            format!("{} ago: {}", seconds(error.age_s), error.text),
            "a single one is told to its client, which tries again",
            "nothing, where it stays alone",
        );
    }
}

fn of_activity(
    noun: &str,
    check: &'static str,
    it: &pb::Activity,
    slow_s: f64,
    notes: &mut Notes<'_>,
) {
    let share = it.recent_failed as f64 / it.recent.max(1) as f64;
    if it.recent_failed >= FAILED_MIN && share > FAILED_SHARE_MAX {
        notes.note(
            Severity::Warning,
            check,
            format!("{} of {} {noun} failed of late", it.recent_failed, it.recent),
            "clients were told so, and try again",
            "the node's log has each kind of failure",
        );
    }
    if it.recent_p99_s > slow_s {
        notes.note(
            Severity::Warning,
            check,
            format!("one of a hundred {noun} takes {} or more", seconds(it.recent_p99_s)),
            "clients wait; API servers give up on some",
            "look for slow stores with `pleach top --sort time`",
        );
    }
}

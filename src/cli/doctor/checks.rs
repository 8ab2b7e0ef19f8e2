//! What is looked at, and from where on it is too much.

use std::time::Duration;

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

/// Revisions end at 2^53.
const REVISION_DOUBTFUL: i64 = 1 << 52;

/// Of the quota.
const QUOTA_DOUBTFUL_SHARE: f64 = 0.8;
const QUOTA_BAD_SHARE: f64 = 0.98;

/// Of the places for connections.
const CONNECTIONS_DOUBTFUL_SHARE: f64 = 0.8;

/// A read that waits so long for a connection shows in what its client sees.
const POOL_WAIT_DOUBTFUL_S: f64 = 0.025;
const POOL_WAITS_SHARE_MIN: f64 = 0.01;

/// A certificate is renewed before this much of its time is left, whoever renews it; …
const CERTIFICATE_DOUBTFUL_SHARE: f64 = 0.25;
const CERTIFICATE_BAD_SHARE: f64 = 0.05;

/// … and one that lasts for years not years before it ends.
const CERTIFICATE_DOUBTFUL_S: f64 = 30.0 * DAY_S;
const CERTIFICATE_BAD_S: f64 = 7.0 * DAY_S;
const DAY_S: f64 = 86_400.0;

/// Clocks differ by less, wherever something sets them.
const CLOCKS_DIFFER_S: f64 = 2.0;

/// A process that is younger may have been started again by what watches over it.
const YOUNG_S: f64 = 60.0;

/// How the tree was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// How long the answer took.
    pub took: Duration,
    /// The time of who asked, since 1970, when it had the answer.
    pub unix_time: Duration,
}

/// All that is found in a tree, the worst first.
pub(super) fn examine(root: &pb::Node, asked: &Asked) -> Vec<Finding> {
    let mut findings = Vec::new();
    for place in walk::nodes(root) {
        of_node(&place, root, &mut findings);
        clock(&place, root, asked, &mut findings);
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
        let alert = alert_of(check, severity, &what);
        self.findings.push(Finding { severity, check, place, what, meaning, remedy, alert });
    }
}

/// The alert of deploy/prometheus that a finding makes fire where it lasts. Its bounds are wider in places: an alert
/// wakes somebody.
pub(super) fn alert_of(check: &str, severity: Severity, what: &str) -> Option<&'static str> {
    let is_bad = severity == Severity::Error;
    Some(match check {
        "alarm" => "PleachAlarmRaised",
        "certificate" => "PleachCertificateEnds",
        "closed" => "PleachClosedLagGrows",
        "connections" => "PleachConnectionsRunOut",
        "detached" => "PleachStoreDetached",
        "full" => "PleachStoreFull",
        "lanes" => "PleachLanesUsedUp",
        "misrouted" => "PleachKeysMisrouted",
        "not-durable" => "PleachStoreNotDurable",
        "open-files" => "PleachFilesRunOut",
        "pending" => "PleachWritesPileUp",
        "pool" => "PleachPoolBusy",
        "quota" if is_bad => "PleachQuotaReached",
        "quota" => "PleachQuotaAlmostReached",
        "reads" | "writes" if what.contains("failed") => "PleachStoreFails",
        "reads" | "writes" => "PleachStoreSlow",
        "requests" if what.contains("failed") => "PleachRequestsFail",
        "revisions" => "PleachRevisionsRunOut",
        "slow-commits" if is_bad => "PleachStoreCommitsSlow",
        "store-away" => "PleachStoreDown",
        "watchers" => "PleachWatchersBehind",
        _ => return None,
    })
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
    quota(node, &mut notes);
    certificates(node, &mut notes);
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

/// The nodes' clocks, each against that of the one that was asked, and that one's against who asked.
fn clock(place: &Place<'_>, root: &pb::Node, asked: &Asked, findings: &mut Vec<Finding>) {
    let (is_root, mine) = (std::ptr::eq(place.node, root), place.node.time_ms);
    let theirs = match is_root {
        true => asked.unix_time.as_millis() as u64,
        false => root.time_ms,
    };
    if mine == 0 || theirs == 0 {
        return;
    }
    // Both were read while the answer was under way.
    let differ = mine.abs_diff(theirs) as f64 / 1_000.0 - asked.took.as_secs_f64();
    if differ > CLOCKS_DIFFER_S {
        let way = if mine > theirs { "ahead of" } else { "behind" };
        let whose = if is_root { "this machine's" } else { "that of the node that was asked" };
        let mut notes = Notes { place: &place.path, findings };
        notes.note(
            Severity::Warning,
            "clock",
            format!("its clock is {} or more {way} {whose}", seconds(differ)),
            "revisions and leases do not go by it; certificates, logs and traces do",
            "have both machines' clocks set by NTP",
        );
    }
}

fn quota(node: &pb::Node, notes: &mut Notes<'_>) {
    // Those that it writes itself: a child has its own.
    let own = node.routes.iter().filter(|route| route.node.is_none());
    let in_use: u64 = own.map(|route| route.bytes_in_use).sum();
    let share = in_use as f64 / node.quota_bytes.max(1) as f64;
    if node.quota_bytes > 0 && share > QUOTA_DOUBTFUL_SHARE {
        let severity = if share > QUOTA_BAD_SHARE { Severity::Error } else { Severity::Warning };
        notes.note(
            severity,
            "quota",
            format!("its stores hold {} of {}", bytes(in_use), bytes(node.quota_bytes)),
            "at the quota, puts and new leases are refused",
            "delete and compact, or raise --quota-backend-bytes",
        );
    }
}

fn certificates(node: &pb::Node, notes: &mut Notes<'_>) {
    for certificate in &node.certificates {
        let pb::Certificate { setting, file, subject, .. } = certificate;
        let (left, lasts) = (certificate.ends_in_s as f64, certificate.lasts_s as f64);
        let is_within = |share: f64, most: f64| left < most.min(lasts * share);
        let severity = if is_within(CERTIFICATE_BAD_SHARE, CERTIFICATE_BAD_S) {
            Severity::Error
        } else if is_within(CERTIFICATE_DOUBTFUL_SHARE, CERTIFICATE_DOUBTFUL_S) {
            Severity::Warning
        } else {
            continue;
        };
        // Who believes an authority may or may not look at its time.
        let (severity, meaning) = match certificate.is_authority {
            true => (Severity::Warning, "many programs refuse what it has signed from then on"),
            false => (severity, "from then on connections with it are refused"),
        };
        let when = match left {
            ..=0.0 => format!("ended {} ago", seconds(-left)),
            left => format!("ends in {}", seconds(left)),
        };
        let remedy = match setting.starts_with("--") {
            true => format!("put another one into {file}: it is taken within a moment"),
            false => format!("put another one into {file}, and start the node again"),
        };
        notes.note(
            severity,
            "certificate",
            format!("the certificate of {subject} in {file} ({setting}) {when}"),
            meaning,
            remedy,
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
    let share = node.connections as f64 / node.connections_max.max(1) as f64;
    if node.connections_max > 0 && share > CONNECTIONS_DOUBTFUL_SHARE {
        let (taken, places) = (node.connections, node.connections_max);
        notes.note(
            Severity::Warning,
            "connections",
            format!("{taken} of {places} places for connections are taken"),
            "where all are, the next client is closed at once",
            "raise the limit of open files (`ulimit -Hn`, LimitNOFILE=), or find the client that opens so many",
        );
    }
    if node.revision > REVISION_DOUBTFUL {
        notes.note(
            Severity::Error,
            "revisions",
            format!("it is at revision {}, more than half of all", node.revision),
            "they stay below 2^53, and then nothing is written any more",
            "stop every node of the tree, and run `pleach repair clock` on each, before the first is started again",
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
    if route.is_detached && route.trouble.is_empty() {
        notes.note(
            Severity::Warning,
            "detached",
            "it is there, and watches still go on without it".to_owned(),
            "what changes there is not told to watches over several stores",
            "nothing for some seconds: it is attached again by itself; the log says what it waits for",
        );
    }
    for hazard in &route.hazards {
        notes.note(
            Severity::Warning,
            "not-durable",
            hazard.clone(),
            "what clients were told is written may be gone",
            "set it in the server's configuration, and start the node again, which looks at its start",
        );
    }
    pool(route, &mut notes);
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

fn pool(route: &pb::Route, notes: &mut Notes<'_>) {
    let Some((pool, waits)) = route.pool.as_ref().and_then(|it| Some((it, it.waits.as_ref()?)))
    else {
        return;
    };
    let reads = route.reads.as_ref().map_or(0, |reads| reads.recent);
    let are_many = waits.recent as f64 > reads as f64 * POOL_WAITS_SHARE_MIN;
    let is_slow = are_many && waits.recent_p99_s > POOL_WAIT_DOUBTFUL_S;
    if waits.recent_failed == 0 && !is_slow {
        return;
    }
    let vain = match waits.recent_failed {
        0 => String::new(),
        count => format!(", {count} of them in vain"),
    };
    let (connections, time) = (pool.connections_max, seconds(waits.recent_p99_s));
    notes.note(
        Severity::Warning,
        "pool",
        format!(
            "{} reads had to wait for one of its {connections} connections{vain}, one in a hundred for {time} or more",
            waits.recent
        ),
        "reads wait before the store has even been asked",
        match route.kind.as_str() {
            "sqlite" => "look for clients that list large ranges again and again, and for a slow disk",
            _ => "set `pool.maxOpen` of its route higher, as far as the server takes connections",
        },
    );
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

//! What a node tells of itself as programs get it: the schema of `-o json` and `-o yaml`.
//!
//! The names are those of `proto/pleach/tree.proto`. Fields are added here and never renamed; seconds end in
//! `_s`, sizes in bytes. What a node does not say, as those of older versions, is left out. Numbers that are
//! names (ids) are texts: JSON's numbers are not exact above 2⁵³.

use serde::Serialize;

use crate::{proto::tree as pb, topology::DEFAULT_NAME};

/// A node, with all that lies below it.
#[derive(Debug, Serialize)]
pub(super) struct Node {
    name: String,
    id: String,
    protocol: u32,
    version: String,
    revision: i64,
    closed: i64,
    compacted: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest: Option<i64>,
    lanes: Vec<Lanes>,
    lanes_left: u32,
    lanes_needed: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    giver: Option<Member>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#loop: Option<String>,
    alarms: Vec<String>,
    #[serde(flatten)]
    measured: Option<Measured>,
    routes: Vec<Route>,
}

/// What nodes tell since they measure themselves.
#[derive(Debug, Serialize)]
struct Measured {
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<Activity>,
    watchers: u64,
    watchers_behind: u64,
    leases: u64,
    uptime_s: f64,
    memory_bytes: u64,
    cpu_s: f64,
    open_files: u64,
    open_files_max: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quota_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    certificates: Vec<Certificate>,
}

#[derive(Debug, Serialize)]
struct Certificate {
    setting: String,
    file: String,
    subject: String,
    is_authority: bool,
    ends_in_s: i64,
    lasts_s: i64,
}

#[derive(Debug, Serialize)]
struct Pool {
    connections_max: u64,
    connections_used: u64,
    waiting: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits: Option<Activity>,
}

#[derive(Debug, Serialize)]
struct Lanes {
    first: u32,
    count: u32,
}

#[derive(Debug, Serialize)]
struct Member {
    name: String,
    id: String,
}

#[derive(Debug, Serialize)]
struct Route {
    name: String,
    is_default: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    place: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    rule: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    trouble: String,
    #[serde(skip_serializing_if = "is_zero")]
    trouble_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_full: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_age_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_in_use: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    misrouted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reads: Option<Activity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    writes: Option<Activity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commits: Option<Activity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<Pool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hazards: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watchers: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_detached: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detachments: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backfills: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<LastError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Box<Node>>,
}

#[derive(Debug, Serialize)]
struct Activity {
    total: u64,
    failed: u64,
    recent_s: f64,
    recent: u64,
    recent_failed: u64,
    recent_p99_s: f64,
}

#[derive(Debug, Serialize)]
struct LastError {
    text: String,
    age_s: f64,
}

/// An id as the tools of etcd print it.
fn id(id: u64) -> String {
    format!("{id:x}")
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// A number that an older node leaves at zero.
fn known<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

// === impl Node ===

impl From<&pb::Node> for Node {
    fn from(node: &pb::Node) -> Self {
        let member = node.member.clone().unwrap_or_default();
        let lanes = node.lanes.iter().map(|it| Lanes { first: it.first, count: it.count });
        Self {
            name: member.name,
            id: id(member.id),
            protocol: node.protocol,
            version: node.version.clone(),
            revision: node.revision,
            closed: node.closed,
            compacted: node.compacted,
            newest: known(node.newest),
            lanes: lanes.collect(),
            lanes_left: node.lanes_left,
            lanes_needed: node.lanes_needed,
            giver: node.giver.as_ref().map(Member::from),
            r#loop: known(node.r#loop.clone()),
            alarms: node.alarms.clone(),
            measured: measured(node),
            routes: node.routes.iter().map(Route::from).collect(),
        }
    }
}

/// What the node measured; `None` of a node that does not.
fn measured(node: &pb::Node) -> Option<Measured> {
    known(node.uptime_s).map(|uptime_s| Measured {
        requests: node.requests.as_ref().map(Activity::from),
        watchers: node.watchers,
        watchers_behind: node.watchers_behind,
        leases: node.leases,
        uptime_s,
        memory_bytes: node.memory_bytes,
        cpu_s: node.cpu_s,
        open_files: node.open_files,
        open_files_max: node.open_files_max,
        connections: known(node.connections_max).map(|_| node.connections),
        connections_max: known(node.connections_max),
        quota_bytes: known(node.quota_bytes),
        time_ms: known(node.time_ms),
        certificates: node.certificates.iter().map(Certificate::from).collect(),
    })
}

impl From<&pb::Member> for Member {
    fn from(member: &pb::Member) -> Self {
        Self { name: member.name.clone(), id: id(member.id) }
    }
}

impl From<&pb::Route> for Route {
    fn from(route: &pb::Route) -> Self {
        // Nodes that tell less of their stores don't tell their kind either.
        let is_told = !route.kind.is_empty();
        Self {
            name: route.name.clone(),
            is_default: route.is_default || route.name == DEFAULT_NAME,
            kind: route.kind.clone(),
            place: route.place.clone(),
            rule: route.rule.clone(),
            trouble: route.trouble.clone(),
            trouble_s: route.trouble_s,
            is_full: is_told.then_some(route.is_full),
            keys: route.keys,
            keys_age_s: route.keys.map(|_| route.keys_age_s),
            bytes: known(route.bytes),
            bytes_in_use: known(route.bytes_in_use),
            misrouted: route.misrouted,
            closed: known(route.closed),
            reads: route.reads.as_ref().map(Activity::from),
            writes: route.writes.as_ref().map(Activity::from),
            commits: route.commits.as_ref().map(Activity::from),
            pending: is_told.then_some(route.pending),
            pool: route.pool.as_ref().map(Pool::from),
            hazards: route.hazards.clone(),
            watchers: is_told.then_some(route.watchers),
            is_detached: is_told.then_some(route.is_detached),
            detachments: is_told.then_some(route.detachments),
            backfills: is_told.then_some(route.backfills),
            last_error: route.last_error.as_ref().map(LastError::from),
            node: route.node.as_ref().map(|node| Box::new(Node::from(node))),
        }
    }
}

impl From<&pb::Activity> for Activity {
    fn from(it: &pb::Activity) -> Self {
        Self {
            total: it.total,
            failed: it.failed,
            recent_s: it.recent_s,
            recent: it.recent,
            recent_failed: it.recent_failed,
            recent_p99_s: it.recent_p99_s,
        }
    }
}

impl From<&pb::Certificate> for Certificate {
    fn from(it: &pb::Certificate) -> Self {
        Self {
            setting: it.setting.clone(),
            file: it.file.clone(),
            subject: it.subject.clone(),
            is_authority: it.is_authority,
            ends_in_s: it.ends_in_s,
            lasts_s: it.lasts_s,
        }
    }
}

impl From<&pb::Pool> for Pool {
    fn from(it: &pb::Pool) -> Self {
        Self {
            connections_max: it.connections_max,
            connections_used: it.connections_used,
            waiting: it.waiting,
            waits: it.waits.as_ref().map(Activity::from),
        }
    }
}

impl From<&pb::LastError> for LastError {
    fn from(it: &pb::LastError) -> Self {
        Self { text: it.text.clone(), age_s: it.age_s }
    }
}

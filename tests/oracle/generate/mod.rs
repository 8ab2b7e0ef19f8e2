//! Random steps: every field of every request, mostly sensible, often hostile.

mod kubernetes;
mod kv;
mod lease;
mod txn;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use pleach::proto::etcdserverpb::{
    self as pb, request_op::Request as Op, response_op::Response as Done,
};

use crate::{
    keys::Keys,
    request::{Answer, Request},
    support::rng::Rng,
};

/// What a run does next. Steps are plain values: a failing run is repeated from its steps.
#[derive(Clone, Debug)]
pub enum Step {
    Ask(Request),
    /// A range by labels, which etcd does not know: it is asked for all, and what the labels select is what the
    /// node must answer.
    Selecting(pb::RangeRequest),
    /// A grant whose ID the server chooses. It is revoked at once, since the two IDs differ.
    GrantUnnamed {
        ttl: i64,
    },
    /// A mutation over two stores. Only a routed node is asked, and must refuse.
    Spanning(Request),
    Open {
        stream: usize,
        create: pb::WatchCreateRequest,
    },
    Cancel {
        stream: usize,
        id: i64,
    },
    Sync,
}

/// What kind of client the steps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Anything that the API allows, and some that it does not.
    Anything,
    /// What an API server sends, with values that depend on what it has seen.
    Kubernetes,
}

/// What has been seen so far, so that revisions, leases and watch IDs often mean something.
#[derive(Debug, Default)]
pub struct Seen {
    pub revision: i64,
    pub compacted: i64,
    /// Where a transaction may have deleted a key and put it again. Compacted at such a revision,
    /// etcd loses the put, and ends when the key is read.
    pub fatal_to_compact: BTreeSet<i64>,
    pub leases: BTreeSet<i64>,
    /// Of each stream, the watchers that live.
    pub watchers: BTreeMap<usize, BTreeSet<i64>>,
    /// How many watchers were ever opened on each stream; no ID chosen by the server is above.
    pub opened: BTreeMap<usize, i64>,
    mod_revisions: BTreeMap<Bytes, i64>,
    compactor_version: i64,
}

#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    keys: Keys,
    flavour: Flavour,
    /// Steps that must follow the last one without a gap.
    due: VecDeque<Step>,
    watch_ids_chosen: i64,
}

/// A revision that a test of a few thousand steps cannot reach.
pub const FAR: i64 = 1 << 40;

// === impl Seen ===

impl Seen {
    pub fn new() -> Self {
        Self { revision: 1, compacted: -1, ..Self::default() }
    }

    /// Learns from what etcd answered.
    pub fn learn(&mut self, request: &Request, answer: &Answer) {
        if let Some(header) = answer.header() {
            self.revision = self.revision.max(header.revision);
        }
        match (request, answer) {
            (Request::Compact(r), Answer::Compact(_)) => self.compacted = r.revision,
            (Request::LeaseGrant(r), Answer::LeaseGrant(_)) => _ = self.leases.insert(r.id),
            (Request::LeaseRevoke(r), Answer::LeaseRevoke(_)) => _ = self.leases.remove(&r.id),
            (Request::Txn(r), Answer::Txn(a)) => self.learn_from_txn(r, a),
            _ => {}
        }
    }

    fn learn_from_txn(&mut self, request: &pb::TxnRequest, answer: &pb::TxnResponse) {
        if txn::deletes_to_the_end(request) {
            self.fatal_to_compact.insert(self.revision);
        }
        let ops = if answer.succeeded { &request.success } else { &request.failure };
        for (op, done) in ops.iter().zip(&answer.responses) {
            match (&op.request, &done.response) {
                (Some(Op::RequestPut(put)), _) => {
                    self.mod_revisions.insert(put.key.clone(), self.revision);
                    if put.key == "compact_rev_key" {
                        self.compactor_version += 1;
                    }
                }
                (Some(Op::RequestDeleteRange(delete)), _) => {
                    self.mod_revisions.remove(&delete.key);
                }
                (_, Some(Done::ResponseRange(range))) => {
                    for kv in &range.kvs {
                        self.mod_revisions.insert(kv.key.clone(), kv.mod_revision);
                    }
                }
                _ => {}
            }
        }
    }
}

// === impl Generator ===

impl Generator {
    pub fn new(seed: u64, keys: Keys, flavour: Flavour) -> Self {
        let watch_ids_chosen = 1000;
        Self { rng: Rng::new(seed), keys, flavour, due: VecDeque::new(), watch_ids_chosen }
    }

    pub fn next(&mut self, seen: &Seen) -> Step {
        if let Some(step) = self.due.pop_front() {
            return step;
        }
        match self.flavour {
            Flavour::Kubernetes if self.rng.chance(80) => self.kubernetes(seen),
            _ => self.anything(seen),
        }
    }

    fn anything(&mut self, seen: &Seen) -> Step {
        let kind = self.rng.weighted(&[
            (300, "range"),
            (40, "stream"),
            (30, "selecting"),
            (220, "put"),
            (60, "delete"),
            (230, "txn"),
            (12, "compact"),
            (25, "grant"),
            (12, "revoke"),
            (20, "ttl"),
            (8, "leases"),
            (12, "keepalive"),
            (8, "about"),
            (14, "open"),
            (6, "cancel"),
            (2, "sync"),
            (6, "spanning"),
        ]);
        match kind {
            "range" => Step::Ask(Request::Range(self.range(None, seen))),
            "stream" => Step::Ask(Request::RangeStream(self.range_to_stream(seen))),
            "selecting" => Step::Selecting(self.selecting(seen)),
            "put" => {
                let group = self.group();
                Step::Ask(Request::Put(self.put(group, seen)))
            }
            "delete" => {
                let group = self.group();
                Step::Ask(Request::DeleteRange(self.delete(group)))
            }
            "txn" => Step::Ask(Request::Txn(self.txn(seen))),
            "compact" => Step::Ask(Request::Compact(self.compaction(seen))),
            "grant" => self.grant(),
            "revoke" => {
                Step::Ask(Request::LeaseRevoke(pb::LeaseRevokeRequest { id: self.lease() }))
            }
            "ttl" => {
                let request =
                    pb::LeaseTimeToLiveRequest { id: self.lease(), keys: self.rng.chance(60) };
                Step::Ask(Request::LeaseTimeToLive(request))
            }
            "leases" => Step::Ask(Request::LeaseLeases(pb::LeaseLeasesRequest {})),
            "keepalive" => {
                Step::Ask(Request::LeaseKeepAlive(pb::LeaseKeepAliveRequest { id: self.lease() }))
            }
            "about" => self.about(),
            "open" => self.open(seen),
            "cancel" => self.cancel(seen),
            "spanning" if self.keys.is_routed() => self.spanning(),
            "sync" => Step::Sync,
            _ => Step::Ask(Request::Range(self.range(None, seen))),
        }
    }
}

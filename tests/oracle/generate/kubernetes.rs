//! What an API server sends: guarded writes, pages of lists, watches, its compactor.

use bytes::Bytes;
use pleach::proto::etcdserverpb::{self as pb, compare::TargetUnion, request_op::Request as Op};

use super::{Generator, Seen, Step};
use crate::request::Request;

// === impl Generator ===

impl Generator {
    pub(super) fn kubernetes(&mut self, seen: &Seen) -> Step {
        let kind = self.rng.weighted(&[
            (20, "create"),
            (35, "update"),
            (15, "delete"),
            (10, "get"),
            (12, "list"),
            (8, "selecting"),
            (4, "count"),
            (3, "stream"),
            (5, "fresh"),
            (3, "watch"),
            (1, "compactor"),
            (1, "lease"),
        ]);
        let key = self.keys.key(None, &mut self.rng);
        match kind {
            "create" => self.guarded(key, 0, seen),
            "update" => {
                let revision = self.seen_revision(&key, seen);
                self.guarded(key, revision, seen)
            }
            "delete" => self.guarded_delete(key, seen),
            "get" => ask_range(pb::RangeRequest { key, limit: 1, ..Default::default() }),
            "list" => self.list(seen, false),
            "stream" => self.list(seen, true),
            "selecting" => Step::Selecting(self.selecting(seen)),
            "count" => {
                let (key, range_end) = self.keys.range(None, &mut self.rng);
                let count_only = true;
                ask_range(pb::RangeRequest { key, range_end, count_only, ..Default::default() })
            }
            "fresh" => {
                let key = Bytes::from("/registry/pods");
                ask_range(pb::RangeRequest { key, limit: 1, ..Default::default() })
            }
            "watch" => self.api_server_watch(seen),
            "compactor" => self.compactor(seen),
            _ => self.grant(),
        }
    }

    /// Mostly what was last seen of the key, sometimes a stale guess.
    fn seen_revision(&mut self, key: &Bytes, seen: &Seen) -> i64 {
        let known = seen.mod_revisions.get(key).copied().unwrap_or(0);
        if self.rng.chance(85) { known } else { self.rng.between(0, seen.revision) }
    }

    fn guarded(&mut self, key: Bytes, revision: i64, seen: &Seen) -> Step {
        let lease = if self.rng.chance(10) { self.lease_of(None, seen) } else { 0 };
        let put =
            pb::PutRequest { key: key.clone(), value: self.value(), lease, ..Default::default() };
        let failure = if revision == 0 { vec![] } else { vec![get(key.clone())] };
        let success = vec![pb::RequestOp { request: Some(Op::RequestPut(put)) }];
        let compare = vec![if_modified_at(key, revision)];
        Step::Ask(Request::Txn(pb::TxnRequest { compare, success, failure }))
    }

    fn guarded_delete(&mut self, key: Bytes, seen: &Seen) -> Step {
        let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
        let success = vec![pb::RequestOp { request: Some(Op::RequestDeleteRange(delete)) }];
        let compare = vec![if_modified_at(key.clone(), self.seen_revision(&key, seen))];
        let failure = vec![get(key)];
        Step::Ask(Request::Txn(pb::TxnRequest { compare, success, failure }))
    }

    /// A page of a list: the first one, or one that goes on behind a key at a revision.
    fn list(&mut self, seen: &Seen, is_streamed: bool) -> Step {
        let prefixes = self.keys.groups[0].prefixes.clone();
        let prefix = self.rng.pick(&prefixes);
        let mut range_end = prefix.to_vec();
        *range_end.last_mut().expect("no prefix of these is empty") += 1;
        let mut request = pb::RangeRequest {
            key: prefix,
            range_end: range_end.into(),
            limit: self.rng.pick(&[0, 1, 3, 7, 500, 10_000]),
            ..Default::default()
        };
        if self.rng.chance(40) {
            request.revision = self.revision(seen).max(0);
            if self.rng.chance(50) {
                let last = self.keys.key(None, &mut self.rng);
                request.key = Bytes::from([&last[..], b"\0"].concat());
            }
        }
        Step::Ask(if is_streamed { Request::RangeStream(request) } else { Request::Range(request) })
    }

    fn api_server_watch(&mut self, seen: &Seen) -> Step {
        let Step::Open { stream, mut create } = self.open(seen) else {
            return self.cancel(seen);
        };
        create.start_revision = seen.revision + 1 - self.rng.between(0, 30);
        create.start_revision = create.start_revision.max(1);
        create.prev_kv = true;
        create.filters = vec![];
        create.watch_id = 0;
        create.fragment = false;
        Step::Open { stream, create }
    }

    fn compactor(&mut self, seen: &Seen) -> Step {
        let key = Bytes::from("compact_rev_key");
        let version = seen.compactor_version - i64::from(self.rng.chance(20));
        let compare = vec![pb::Compare {
            target: pb::compare::CompareTarget::Version.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::Version(version.max(0))),
            ..Default::default()
        }];
        let value = Bytes::from(seen.revision.to_string());
        let put = pb::PutRequest { key: key.clone(), value, ..Default::default() };
        let success = vec![pb::RequestOp { request: Some(Op::RequestPut(put)) }];
        let revision = self.rng.between((seen.compacted + 1).max(1), seen.revision);
        let compaction = pb::CompactionRequest { revision, physical: false };
        self.due.push_back(Step::Ask(Request::Compact(compaction)));
        let failure = vec![get(key)];
        Step::Ask(Request::Txn(pb::TxnRequest { compare, success, failure }))
    }
}

fn ask_range(request: pb::RangeRequest) -> Step {
    Step::Ask(Request::Range(request))
}

fn get(key: Bytes) -> pb::RequestOp {
    let range = pb::RangeRequest { key, ..Default::default() };
    pb::RequestOp { request: Some(Op::RequestRange(range)) }
}

fn if_modified_at(key: Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        target: pb::compare::CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

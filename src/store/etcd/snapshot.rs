//! The keys as they were at one revision of the etcd, with our revisions.
//!
//! A key and its mark are read by one transaction at one etcd revision. Nothing that is read there can
//! change, so any member that has reached it may answer.

use std::collections::BTreeMap;

use prost::Message as _;

use super::{
    layout::{
        EtcdRevision, Gap, Mark, is_reserved, lease_prefix, mark_of, marked, marks_of,
        without_reserved,
    },
    wire::{Wire, WireError, WireResult, ranges},
};
use crate::{
    model::{Key, KeyRange, KeyValue, LeaseId, Revision, key::successor},
    proto::{etcdserverpb as pb, mvccpb},
};

/// The most operations of a transaction, nested ones counted along each path: etcd's default.
pub(super) const OPS_MAX: usize = 128;

/// Keys that one transaction reads, each with its mark.
const KEYS_AT_ONCE: usize = 1_000;

/// What revisions of ours stand for changes that have no mark.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    /// See [`super::layout::About`].
    pub attached: EtcdRevision,
    pub gaps: Vec<Gap>,
    /// Changes of others whose marks may lie at a later etcd revision than they themselves.
    pub adopted: BTreeMap<EtcdRevision, Revision>,
}

/// A key as it was.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub kv: KeyValue,
    /// The etcd revision that changed it last.
    pub etcd: EtcdRevision,
    /// The lease that it has in the etcd itself.
    pub etcd_lease: i64,
}

/// The first keys of a range.
#[derive(Debug)]
pub(super) struct Scanned {
    pub rows: Vec<Row>,
    /// How many keys the whole range has, where the etcd was asked for all of it.
    pub count: Option<u64>,
}

/// A mark and the etcd revision at which it was written.
pub(super) type Marked = (Mark, EtcdRevision);

/// All keys at one etcd revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot<'a> {
    pub wire: &'a Wire,
    pub at: EtcdRevision,
    /// Where the marks are read; `at`, unless the keys are known not to have changed since.
    pub marks_at: EtcdRevision,
    pub numbers: &'a Numbers,
}

// === impl Numbers ===

impl Numbers {
    /// Our revision for a change that somebody else made.
    fn of_change(&self, etcd: EtcdRevision) -> Option<Revision> {
        if etcd <= self.attached {
            return Some(etcd);
        }
        let adopted = self.adopted.get(&etcd).copied();
        let in_gap = || self.gaps.iter().find(|gap| etcd <= gap.etcd).map(|gap| gap.revision);
        adopted.or_else(in_gap)
    }

    /// A key of the etcd as clients see it; `None` where nobody has given its change a revision yet.
    pub(super) fn revise(&self, kv: mvccpb::KeyValue, mark: Option<&Marked>) -> Option<KeyValue> {
        let described = |(mark, at): &Marked| if mark.etcd == 0 { *at } else { mark.etcd };
        let valid = mark.filter(|mark| described(mark) == kv.mod_revision);
        if let Some((mark, _)) = valid {
            return Some(KeyValue {
                key: kv.key,
                create_revision: mark.create_revision,
                mod_revision: mark.revision,
                version: mark.version,
                lease: mark.lease,
                value: kv.value,
            });
        }
        let mod_revision = self.of_change(kv.mod_revision)?;
        let same_life = mark.filter(|mark| described(mark) >= kv.create_revision);
        let create_revision = match same_life {
            _ if kv.create_revision == kv.mod_revision => mod_revision,
            Some((mark, _)) => mark.create_revision,
            None => self.of_change(kv.create_revision)?,
        };
        Some(KeyValue {
            key: kv.key,
            create_revision,
            mod_revision,
            version: kv.version,
            lease: kv.lease,
            value: kv.value,
        })
    }
}

/// A mark as it is stored; `None` where it can't be read.
pub(super) fn mark(kv: &mvccpb::KeyValue) -> Option<Marked> {
    Some((Mark::decode(kv.value.clone()).ok()?, kv.mod_revision))
}

pub(super) fn range_request(range: &KeyRange) -> pb::RangeRequest {
    let range_end = match (range.as_single(), &range.end) {
        (Some(_), _) => Key::new(),
        (None, Some(end)) => end.clone(),
        (None, None) => Key::from_static(b"\0"),
    };
    let key = if range.start.is_empty() { Key::from_static(b"\0") } else { range.start.clone() };
    pb::RangeRequest { key, range_end, ..pb::RangeRequest::default() }
}

/// Puts operations into transactions within, so that no level has more than `width`.
pub(super) fn nested(mut ops: Vec<pb::RequestOp>, width: usize) -> Vec<pb::RequestOp> {
    use pb::request_op::Request;
    while ops.len() > width {
        let mut outer = Vec::with_capacity(ops.len() / width + 1);
        let mut rest = ops.into_iter().peekable();
        while rest.peek().is_some() {
            let success = rest.by_ref().take(width).collect();
            let txn = pb::TxnRequest { success, ..pb::TxnRequest::default() };
            let txn = Request::RequestTxn(txn.encode_to_vec().into());
            outer.push(pb::RequestOp { request: Some(txn) });
        }
        ops = outer;
    }
    ops
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

// === impl Snapshot ===

impl<'a> Snapshot<'a> {
    pub(super) fn new(wire: &'a Wire, at: EtcdRevision, numbers: &'a Numbers) -> Self {
        Self { wire, at, marks_at: at, numbers }
    }

    /// Those of some keys that were there, in the order asked for. Reserved keys never are.
    pub(super) async fn rows_of(&self, keys: &[Key]) -> WireResult<Vec<Row>> {
        let mut rows = Vec::new();
        let keys: Vec<&Key> = keys.iter().filter(|key| !is_reserved(key)).collect();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let single = |key: Key, revision| pb::RangeRequest {
                key,
                revision,
                ..pb::RangeRequest::default()
            };
            let reads = keys.iter().flat_map(|key| {
                [single((*key).clone(), self.at), single(mark_of(key), self.marks_at)]
            });
            let mut answers = self.read(reads.collect()).await?.into_iter();
            while let (Some(key), Some(mark_found)) = (answers.next(), answers.next()) {
                let Some(kv) = key.kvs.into_iter().next() else { continue };
                let mark = mark_found.kvs.first().and_then(mark);
                rows.push(self.row(kv, mark.as_ref())?);
            }
        }
        Ok(rows)
    }

    /// The first keys of a range, at most `limit` (0 for all). Reserved keys are left out.
    pub(super) async fn scan(
        &self,
        range: &KeyRange,
        limit: usize,
        keys_only: bool,
    ) -> WireResult<Scanned> {
        let mut rows = Vec::new();
        let mut count = Some(0);
        for part in without_reserved(range) {
            if limit > 0 && rows.len() >= limit {
                count = None;
                break;
            }
            let left = if limit == 0 { 0 } else { limit - rows.len() };
            let (found, keys) = self.scan_part(&part, left, keys_only).await?;
            rows.extend(found);
            count = count.map(|count| count + keys);
        }
        Ok(Scanned { rows, count })
    }

    async fn scan_part(
        &self,
        range: &KeyRange,
        limit: usize,
        keys_only: bool,
    ) -> WireResult<(Vec<Row>, u64)> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let keys = pb::RangeRequest { limit, keys_only, ..range_request(range) };
        let found = self.read(vec![keys]).await?.pop().unwrap_or_default();
        let mut all = BTreeMap::new();
        if let (Some(first), Some(last)) = (found.kvs.first(), found.kvs.last()) {
            // Asked for afterwards, and for no more than these: an etcd counts all that a range has,
            // whatever its limit.
            let keys = KeyRange { start: first.key.clone(), end: Some(successor(&last.key)) };
            let marks = range_request(&marks_of(&keys));
            let marks = self.read(vec![marks]).await?.pop().unwrap_or_default();
            all.extend(marks.kvs.iter().filter_map(|kv| marked(&kv.key).zip(mark(kv))));
        }
        let rows = found.kvs.into_iter().map(|kv| {
            let mark = all.get(&kv.key);
            self.row(kv, mark)
        });
        Ok((rows.collect::<WireResult<_>>()?, unsigned(found.count)))
    }

    /// How many keys a range had.
    pub(super) async fn count(&self, range: &KeyRange) -> WireResult<u64> {
        let parts = without_reserved(range);
        if parts.is_empty() {
            return Ok(0);
        }
        let counting =
            |part: &KeyRange| pb::RangeRequest { count_only: true, ..range_request(part) };
        let answers = self.read(parts.iter().map(counting).collect()).await?;
        Ok(answers.iter().map(|answer| unsigned(answer.count)).sum())
    }

    /// The keys of one of our leases, in order.
    pub(super) async fn leased(&self, lease: LeaseId) -> WireResult<Vec<Key>> {
        let prefix = lease_prefix(lease);
        let keys = range_request(&KeyRange::prefix(prefix.clone()));
        let keys = pb::RangeRequest { keys_only: true, ..keys };
        let found = self.read(vec![keys]).await?.pop().unwrap_or_default();
        Ok(found.kvs.iter().map(|kv| kv.key.slice(prefix.len()..)).collect())
    }

    fn row(&self, kv: mvccpb::KeyValue, mark: Option<&Marked>) -> WireResult<Row> {
        let (etcd, etcd_lease) = (kv.mod_revision, kv.lease);
        let unseen = || WireError::Lost("a change of somebody else was not seen yet".to_owned());
        let kv = self.numbers.revise(kv, mark).ok_or_else(unseen)?;
        Ok(Row { kv, etcd, etcd_lease })
    }

    async fn read(&self, reads: Vec<pb::RangeRequest>) -> WireResult<Vec<pb::RangeResponse>> {
        match self.read_from(&reads, true).await {
            // The member that answered is behind; those that lead are not.
            Err(WireError::Future) => self.read_from(&reads, false).await,
            answer => answer,
        }
    }

    async fn read_from(
        &self,
        reads: &[pb::RangeRequest],
        serializable: bool,
    ) -> WireResult<Vec<pb::RangeResponse>> {
        use pb::request_op::Request;
        let pinned = reads.iter().cloned().map(|read| {
            let revision = if read.revision == 0 { self.at } else { read.revision };
            let read = pb::RangeRequest { revision, serializable, ..read };
            pb::RequestOp { request: Some(Request::RequestRange(read)) }
        });
        let success = nested(pinned.collect(), OPS_MAX / 3);
        let txn = pb::TxnRequest { success, ..pb::TxnRequest::default() };
        ranges(self.wire.read(&txn).await?)
    }
}

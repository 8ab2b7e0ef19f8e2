//! Transactions: nested, with operations that clash, at the limit, and sometimes refused.

use bytes::Bytes;
use pleach::proto::etcdserverpb::{self as pb, compare::TargetUnion, request_op::Request as Op};
use prost::Message as _;

use super::{Generator, Seen};

const TXN_DEPTH_MAX: usize = 3;
/// etcd's limit for the operations of a transaction.
const TXN_OPS_MAX: usize = 128;

// === impl Generator ===

impl Generator {
    pub(super) fn txn(&mut self, seen: &Seen) -> pb::TxnRequest {
        if self.rng.chance(2) {
            return self.txn_at_the_limit(seen);
        }
        if self.rng.chance(2) {
            return self.deep_txn(seen);
        }
        let is_read_only = self.rng.chance(15);
        let group = if is_read_only { None } else { self.group() };
        let mut txn = self.txn_of(group, 1, is_read_only, seen);
        keep_from_etcds_panic(&mut txn);
        txn
    }

    fn txn_of(
        &mut self,
        group: Option<usize>,
        depth: usize,
        is_read_only: bool,
        seen: &Seen,
    ) -> pb::TxnRequest {
        let compares = self.rng.pick(&[0, 1, 1, 1, 2, 3]);
        let compare = (0..compares).map(|_| self.compare(group, seen)).collect();
        let ops = |generator: &mut Self| -> Vec<pb::RequestOp> {
            let count = generator.rng.pick(&[0, 1, 1, 2, 3, 4]);
            (0..count).map(|_| generator.op(group, depth, is_read_only, seen)).collect()
        };
        let success = ops(self);
        let failure = ops(self);
        pb::TxnRequest { compare, success, failure }
    }

    fn op(
        &mut self,
        group: Option<usize>,
        depth: usize,
        is_read_only: bool,
        seen: &Seen,
    ) -> pb::RequestOp {
        let kind = if is_read_only {
            'r'
        } else {
            self.rng.weighted(&[(340, 'r'), (360, 'p'), (130, 'd'), (160, 't'), (3, 'n')])
        };
        let request = match kind {
            'r' => Some(Op::RequestRange(self.range_in_txn(group, seen))),
            'p' => Some(Op::RequestPut(self.put(group, seen))),
            'd' => Some(Op::RequestDeleteRange(self.delete(group))),
            't' if depth < TXN_DEPTH_MAX => {
                Some(nested(&self.txn_of(group, depth + 1, false, seen)))
            }
            't' => Some(Op::RequestPut(self.put(group, seen))),
            _ => None,
        };
        pb::RequestOp { request }
    }

    /// Fewer bad fields than a range of its own has, since one spoils the whole transaction.
    fn range_in_txn(&mut self, group: Option<usize>, seen: &Seen) -> pb::RangeRequest {
        let mut request = self.range(group, seen);
        if self.rng.chance(70) {
            request.revision = 0;
        }
        request
    }

    fn compare(&mut self, group: Option<usize>, seen: &Seen) -> pb::Compare {
        let mut key = self.keys.key(group, &mut self.rng);
        let mut range_end = Bytes::new();
        if self.rng.chance(20) {
            (key, range_end) = self.keys.range(group, &mut self.rng);
        }
        if self.rng.chance(1) && self.rng.chance(50) {
            key = Bytes::new();
        }
        let target = self.rng.weighted(&[(20, 0), (20, 1), (30, 2), (20, 3), (10, 4), (1, 5)]);
        let of_target = if self.rng.chance(93) { target } else { self.rng.between(0, 6) as i32 };
        let target_union = match of_target {
            0 => Some(TargetUnion::Version(self.rng.between(-1, 4))),
            1 => Some(TargetUnion::CreateRevision(self.revision_to_compare(&key, seen))),
            2 => Some(TargetUnion::ModRevision(self.revision_to_compare(&key, seen))),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(self.rng.pick(&[0, 0, 1, 2, 3, -7]))),
            _ => None,
        };
        let result = self.rng.weighted(&[(40, 0), (19, 1), (19, 2), (20, 3), (1, 4), (1, -1)]);
        pb::Compare { result, target, key, range_end, target_union }
    }

    fn revision_to_compare(&mut self, key: &Bytes, seen: &Seen) -> i64 {
        match self.rng.below(10) {
            0..=2 => 0,
            3..=5 => seen.mod_revisions.get(key).copied().unwrap_or(0),
            6..=7 => seen.revision,
            8 => -1,
            _ => self.rng.between(1, seen.revision + 1),
        }
    }

    /// As deep as the limit for operations lets transactions nest, or nearly, or one level more.
    fn deep_txn(&mut self, seen: &Seen) -> pb::TxnRequest {
        let group = self.group();
        let mut op = self.op(group, TXN_DEPTH_MAX, false, seen);
        for _ in 0..self.rng.pick(&[40, 60, TXN_OPS_MAX - 2, TXN_OPS_MAX - 1, TXN_OPS_MAX]) {
            let txn = pb::TxnRequest { success: vec![op], ..Default::default() };
            op = pb::RequestOp { request: Some(nested(&txn)) };
        }
        pb::TxnRequest { success: vec![op], ..Default::default() }
    }

    /// Near the limit for operations, which nested transactions share with what is around them.
    fn txn_at_the_limit(&mut self, seen: &Seen) -> pb::TxnRequest {
        let total = TXN_OPS_MAX - 1 + self.rng.below(3);
        let outer = self.rng.pick(&[total, 1, 60]);
        let group = self.group();
        let read = |generator: &mut Self| {
            let key = generator.keys.key(group, &mut generator.rng);
            let range = pb::RangeRequest { key, ..Default::default() };
            pb::RequestOp { request: Some(Op::RequestRange(range)) }
        };
        let mut success: Vec<_> = (0..outer).map(|_| read(self)).collect();
        let mut txn = pb::TxnRequest::default();
        if outer < total {
            let inner = (outer..total).map(|_| read(self)).collect();
            let inner = pb::TxnRequest { failure: inner, ..Default::default() };
            success[0].request = Some(nested(&inner));
        }
        if self.rng.chance(30) {
            txn.compare = (0..total).map(|_| self.compare(group, seen)).collect();
        }
        txn.success = success;
        txn
    }
}

/// A deletion up to the end of all keys escapes etcd's check for duplicate keys, and a put behind
/// it that wants to keep the value or the lease of a key just deleted ends etcd with a panic. So
/// such puts lose their wishes.
fn keep_from_etcds_panic(txn: &mut pb::TxnRequest) {
    if deletes_to_the_end(txn) {
        let ops = txn.success.iter_mut().chain(&mut txn.failure);
        ops.for_each(forget_wishes);
    }
}

pub(super) fn deletes_to_the_end(txn: &pb::TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(Op::RequestDeleteRange(delete)) => delete.range_end == "\0",
        Some(Op::RequestTxn(nested)) => deletes_to_the_end(&read_nested(nested)),
        _ => false,
    })
}

fn nested(txn: &pb::TxnRequest) -> Op {
    Op::RequestTxn(txn.encode_to_vec().into())
}

fn read_nested(bytes: &Bytes) -> pb::TxnRequest {
    pb::TxnRequest::decode(bytes.clone()).expect("it was made here")
}

fn forget_wishes(op: &mut pb::RequestOp) {
    match &mut op.request {
        Some(Op::RequestPut(put)) => {
            put.ignore_value = false;
            put.ignore_lease = false;
        }
        Some(Op::RequestTxn(bytes)) => {
            let mut txn = read_nested(bytes);
            txn.success.iter_mut().chain(&mut txn.failure).for_each(forget_wishes);
            op.request = Some(nested(&txn));
        }
        _ => {}
    }
}

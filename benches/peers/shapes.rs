//! The requests exactly as kube-apiserver (1.32 and later) shapes them.

use bytes::Bytes;
use pb::{compare, request_op::Request, watch_request::RequestUnion};
use pleach::proto::etcdserverpb as pb;

use crate::keys::Key;

/// A create when `revision` is 0, a guarded update otherwise. Only the update asks for the present
/// value in case that the guard fails.
pub(crate) fn write(key: &Key, revision: i64) -> pb::TxnRequest {
    let put = pb::PutRequest { key: key.name.clone(), value: key.value(), ..Default::default() };
    let guard = pb::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        key: key.name.clone(),
        target_union: Some(compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    let present = pb::RangeRequest { key: key.name.clone(), ..Default::default() };
    let failure = (revision != 0).then(|| operation(Request::RequestRange(present)));
    pb::TxnRequest {
        compare: vec![guard],
        success: vec![operation(Request::RequestPut(put))],
        failure: failure.into_iter().collect(),
    }
}

pub(crate) fn get(key: &Key) -> pb::RangeRequest {
    pb::RangeRequest { key: key.name.clone(), limit: 1, ..Default::default() }
}

/// A page, or the whole range when `limit` is 0. A revision of 0 reads the latest.
pub(crate) fn list(from: Bytes, end: Bytes, limit: usize, revision: i64) -> pb::RangeRequest {
    let limit = limit as i64;
    pb::RangeRequest { key: from, range_end: end, limit, revision, ..Default::default() }
}

pub(crate) fn count(from: Bytes, end: Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key: from, range_end: end, count_only: true, ..Default::default() }
}

/// The watch behind a watch cache.
pub(crate) fn watch(prefix: Bytes, end: Bytes, start_revision: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest {
        key: prefix,
        range_end: end,
        start_revision,
        prev_kv: true,
        progress_notify: true,
        ..Default::default()
    };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

fn operation(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

//! Between messages and the words of the model, both ways: clients' and those between nodes.

mod failure;
mod request;
pub mod trace;
mod tree;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

pub use self::{
    failure::{failure, from_failure},
    request::{kv, range_to, txn_request, txn_result},
    tree::{Member, blocks_of, commit, commit_of, lanes, lanes_of, member, member_of},
};

use crate::{
    model::{
        Event, KeyRange, KeyValue, Revision,
        txn::{
            Against, Bounds, Compare, DeleteOp, Found, Op, OpResult, Order, OrderBy, PutOp,
            RangeOp, Relation, Txn, TxnResult,
        },
    },
    proto::{etcdserverpb as pb, mvccpb},
    select::{Selector, SelectorError},
};

/// Copies bytes out of the message that carried them, which a kept slice would keep alive whole.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// The keys that a request names.
pub fn range(key: &Bytes, range_end: &Bytes) -> KeyRange {
    KeyRange::from_wire(own(key), own(range_end))
}

/// Which objects are wanted, by the texts of a label selector and a field selector.
///
/// # Errors
/// Where one of them is no selector.
pub fn selector(labels: &str, fields: &str) -> Result<Option<Arc<Selector>>, SelectorError> {
    if labels.is_empty() && fields.is_empty() {
        return Ok(None);
    }
    Ok(Selector::parse(labels, fields)?.map(Arc::new))
}

/// The texts of a selector.
pub fn selector_texts(selector: Option<&Arc<Selector>>) -> (String, String) {
    let (labels, fields) = selector.map(|it| it.texts()).unwrap_or_default();
    (labels.to_owned(), fields.to_owned())
}

/// A read of a range.
///
/// # Errors
/// Where a selector is none.
pub fn range_op(request: &pb::RangeRequest) -> Result<RangeOp, SelectorError> {
    use pb::range_request::{SortOrder, SortTarget};
    Ok(RangeOp {
        range: range(&request.key, &request.range_end),
        limit: request.limit,
        revision: request.revision,
        order: match request.sort_order() {
            SortOrder::None => Order::None,
            SortOrder::Ascend => Order::Ascend,
            SortOrder::Descend => Order::Descend,
        },
        order_by: match request.sort_target() {
            SortTarget::Key => OrderBy::Key,
            SortTarget::Version => OrderBy::Version,
            SortTarget::Create => OrderBy::Create,
            SortTarget::Mod => OrderBy::Mod,
            SortTarget::Value => OrderBy::Value,
        },
        keys_only: request.keys_only,
        count_only: request.count_only,
        mod_revisions: Bounds { min: request.min_mod_revision, max: request.max_mod_revision },
        create_revisions: Bounds {
            min: request.min_create_revision,
            max: request.max_create_revision,
        },
        selector: selector(&request.label_selector, &request.field_selector)?,
    })
}

/// A write of one key.
pub fn put_op(request: &pb::PutRequest) -> PutOp {
    PutOp {
        key: own(&request.key),
        value: own(&request.value),
        lease: request.lease,
        prev_kv: request.prev_kv,
        keep_value: request.ignore_value,
        keep_lease: request.ignore_lease,
    }
}

/// A deletion.
pub fn delete_op(request: &pb::DeleteRangeRequest) -> DeleteOp {
    DeleteOp { range: range(&request.key, &request.range_end), prev_kv: request.prev_kv }
}

fn compare(compare: &pb::Compare) -> Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let union = compare.target_union.as_ref();
    let number = |pick: fn(&TargetUnion) -> Option<i64>| union.and_then(pick).unwrap_or(0);
    let against = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => Against::Version(number(|union| match union {
            TargetUnion::Version(version) => Some(*version),
            _ => None,
        })),
        Ok(CompareTarget::Create) => Against::Create(number(|union| match union {
            TargetUnion::CreateRevision(revision) => Some(*revision),
            _ => None,
        })),
        Ok(CompareTarget::Mod) => Against::Mod(number(|union| match union {
            TargetUnion::ModRevision(revision) => Some(*revision),
            _ => None,
        })),
        Ok(CompareTarget::Lease) => Against::Lease(number(|union| match union {
            TargetUnion::Lease(lease) => Some(*lease),
            _ => None,
        })),
        Ok(CompareTarget::Value) => Against::Value(match union {
            Some(TargetUnion::Value(value)) => own(value),
            _ => Bytes::new(),
        }),
        Err(_) => Against::Unknown,
    };
    let relation = match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => Relation::Equal,
        Ok(CompareResult::Greater) => Relation::Greater,
        Ok(CompareResult::Less) => Relation::Less,
        Ok(CompareResult::NotEqual) => Relation::NotEqual,
        Err(_) => Relation::Unknown,
    };
    Compare { range: range(&compare.key, &compare.range_end), relation, against }
}

/// Why a request is no transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTxn {
    /// An operation says nothing, or a nested transaction nothing that can be read.
    #[error("an operation is missing")]
    Missing,
    /// A read has a selector that is none.
    #[error("{0}")]
    Selector(#[from] SelectorError),
}

/// A transaction.
///
/// # Errors
/// See [`NoTxn`].
pub fn txn(request: &pb::TxnRequest) -> Result<Txn, NoTxn> {
    Ok(Txn {
        compares: request.compare.iter().map(compare).collect(),
        success: request.success.iter().map(op).collect::<Result<_, _>>()?,
        failure: request.failure.iter().map(op).collect::<Result<_, _>>()?,
        may_split: false,
    })
}

fn op(op: &pb::RequestOp) -> Result<Op, NoTxn> {
    use pb::request_op::Request;
    Ok(match op.request.as_ref().ok_or(NoTxn::Missing)? {
        Request::RequestRange(request) => Op::Range(range_op(request)?),
        Request::RequestPut(request) => Op::Put(put_op(request)),
        Request::RequestDeleteRange(request) => Op::Delete(delete_op(request)),
        Request::RequestTxn(nested) => {
            let nested = pb::TxnRequest::decode(nested.clone()).map_err(|_| NoTxn::Missing)?;
            Op::Txn(txn(&nested)?)
        }
    })
}

/// A key as it stands.
pub fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// Keys as they stand.
pub fn key_values(kvs: Vec<KeyValue>) -> Vec<mvccpb::KeyValue> {
    kvs.into_iter().map(key_value).collect()
}

/// A change of a key.
pub fn event(event: Event) -> mvccpb::Event {
    use mvccpb::event::EventType;
    let kind = if event.is_delete() { EventType::Delete } else { EventType::Put };
    mvccpb::Event {
        r#type: kind as i32,
        kv: Some(key_value(event.kv)),
        prev_kv: event.prev.map(key_value),
    }
}

/// The answer of a read.
pub fn range_response(header: Option<pb::ResponseHeader>, found: Found) -> pb::RangeResponse {
    pb::RangeResponse { header, kvs: key_values(found.kvs), more: found.more, count: found.count }
}

/// The header of an operation within a transaction: etcd fills in nothing but the revision.
fn inner(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

/// The answer of a transaction; `header` is that of the outermost.
pub fn txn_response(header: Option<pb::ResponseHeader>, result: TxnResult) -> pb::TxnResponse {
    let responses = result.results.into_iter().map(response_op).collect();
    pb::TxnResponse { header, succeeded: result.succeeded, responses }
}

fn response_op(result: OpResult) -> pb::ResponseOp {
    use pb::response_op::Response;
    let response = match result {
        OpResult::Range { revision, found } => {
            Response::ResponseRange(range_response(inner(revision), found))
        }
        OpResult::Put { revision, prev } => Response::ResponsePut(pb::PutResponse {
            header: inner(revision),
            prev_kv: prev.map(key_value),
        }),
        OpResult::Delete { revision, deleted, prevs } => {
            Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                header: inner(revision),
                deleted,
                prev_kvs: key_values(prevs),
            })
        }
        OpResult::Txn(result) => {
            Response::ResponseTxn(txn_response(inner(0), result).encode_to_vec().into())
        }
    };
    pb::ResponseOp { response: Some(response) }
}

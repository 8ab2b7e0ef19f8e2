//! The model's words as requests, and answers as the model's words: what a parent does with a child.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    model::{
        KeyRange, KeyValue,
        txn::{
            Against, Compare, DeleteOp, Found, Op, OpResult, Order, OrderBy, PutOp, RangeOp,
            Relation, Txn, TxnResult,
        },
    },
    proto::{etcdserverpb as pb, mvccpb},
};

/// What no enumeration of etcd's defines.
const UNDEFINED: i32 = -1;

/// A range as `key` and `range_end`; see [`KeyRange::from_wire`].
pub fn range_to(range: &KeyRange) -> (Bytes, Bytes) {
    let end = match &range.end {
        _ if range.as_single().is_some() => Bytes::new(),
        Some(end) => end.clone(),
        None => Bytes::from_static(b"\0"),
    };
    (range.start.clone(), end)
}

/// A transaction.
pub fn txn_request(txn: &Txn) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: txn.compares.iter().map(compare).collect(),
        success: txn.success.iter().map(op).collect(),
        failure: txn.failure.iter().map(op).collect(),
    }
}

fn compare(compare: &Compare) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let (key, range_end) = range_to(&compare.range);
    let result = match compare.relation {
        Relation::Equal => CompareResult::Equal as i32,
        Relation::Greater => CompareResult::Greater as i32,
        Relation::Less => CompareResult::Less as i32,
        Relation::NotEqual => CompareResult::NotEqual as i32,
        Relation::Unknown => UNDEFINED,
    };
    let (target, union) = match &compare.against {
        Against::Version(version) => {
            (CompareTarget::Version as i32, Some(TargetUnion::Version(*version)))
        }
        Against::Create(revision) => {
            (CompareTarget::Create as i32, Some(TargetUnion::CreateRevision(*revision)))
        }
        Against::Mod(revision) => {
            (CompareTarget::Mod as i32, Some(TargetUnion::ModRevision(*revision)))
        }
        Against::Value(value) => {
            (CompareTarget::Value as i32, Some(TargetUnion::Value(value.clone())))
        }
        Against::Lease(lease) => (CompareTarget::Lease as i32, Some(TargetUnion::Lease(*lease))),
        Against::Unknown => (UNDEFINED, None),
    };
    pb::Compare { result, target, key, range_end, target_union: union }
}

fn op(op: &Op) -> pb::RequestOp {
    use pb::request_op::Request;
    let request = match op {
        Op::Range(range) => Request::RequestRange(range_request(range)),
        Op::Put(put) => Request::RequestPut(put_request(put)),
        Op::Delete(delete) => Request::RequestDeleteRange(delete_request(delete)),
        Op::Txn(txn) => Request::RequestTxn(txn_request(txn).encode_to_vec().into()),
    };
    pb::RequestOp { request: Some(request) }
}

fn range_request(op: &RangeOp) -> pb::RangeRequest {
    use pb::range_request::{SortOrder, SortTarget};
    let (key, range_end) = range_to(&op.range);
    let order = match op.order {
        Order::None => SortOrder::None,
        Order::Ascend => SortOrder::Ascend,
        Order::Descend => SortOrder::Descend,
    };
    let target = match op.order_by {
        OrderBy::Key => SortTarget::Key,
        OrderBy::Version => SortTarget::Version,
        OrderBy::Create => SortTarget::Create,
        OrderBy::Mod => SortTarget::Mod,
        OrderBy::Value => SortTarget::Value,
    };
    let (label_selector, field_selector) = super::selector_texts(op.selector.as_ref());
    pb::RangeRequest {
        key,
        range_end,
        limit: op.limit,
        revision: op.revision,
        sort_order: order as i32,
        sort_target: target as i32,
        serializable: false,
        keys_only: op.keys_only,
        count_only: op.count_only,
        min_mod_revision: op.mod_revisions.min,
        max_mod_revision: op.mod_revisions.max,
        min_create_revision: op.create_revisions.min,
        max_create_revision: op.create_revisions.max,
        label_selector,
        field_selector,
    }
}

fn put_request(op: &PutOp) -> pb::PutRequest {
    // What is kept is not given, or the request is refused.
    let value = if op.keep_value { Bytes::new() } else { op.value.clone() };
    pb::PutRequest {
        key: op.key.clone(),
        value,
        lease: if op.keep_lease { 0 } else { op.lease },
        prev_kv: op.prev_kv,
        ignore_value: op.keep_value,
        ignore_lease: op.keep_lease,
    }
}

fn delete_request(op: &DeleteOp) -> pb::DeleteRangeRequest {
    let (key, range_end) = range_to(&op.range);
    pb::DeleteRangeRequest { key, range_end, prev_kv: op.prev_kv }
}

/// What a transaction answered; `None` where an answer to a nested one can't be read.
pub fn txn_result(response: pb::TxnResponse) -> Option<TxnResult> {
    let results = response.responses.into_iter().filter_map(|op| op.response).map(op_result);
    Some(TxnResult { succeeded: response.succeeded, results: results.collect::<Option<_>>()? })
}

fn op_result(response: pb::response_op::Response) -> Option<OpResult> {
    use pb::response_op::Response;
    let of = |header: Option<pb::ResponseHeader>| header.map_or(0, |header| header.revision);
    Some(match response {
        Response::ResponseRange(range) => OpResult::Range {
            revision: of(range.header),
            found: Found {
                kvs: range.kvs.into_iter().map(kv).collect(),
                more: range.more,
                count: range.count,
            },
        },
        Response::ResponsePut(put) => {
            OpResult::Put { revision: of(put.header), prev: put.prev_kv.map(kv) }
        }
        Response::ResponseDeleteRange(delete) => OpResult::Delete {
            revision: of(delete.header),
            deleted: delete.deleted,
            prevs: delete.prev_kvs.into_iter().map(kv).collect(),
        },
        Response::ResponseTxn(txn) => {
            OpResult::Txn(txn_result(pb::TxnResponse::decode(txn).ok()?)?)
        }
    })
}

/// A key as it stands. Shares the memory of its message.
pub fn kv(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
        value: kv.value,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> impl Strategy<Value = KeyRange> {
        let key = || prop::collection::vec(any::<u8>(), 1..4).prop_map(Bytes::from);
        prop_oneof![
            key().prop_map(KeyRange::single),
            key().prop_map(KeyRange::prefix),
            key().prop_map(|start| KeyRange { start, end: None }),
            // An end of one zero byte, before which no key lies, means something else on the wire.
            (key(), key().prop_filter("it can be said", |end| end != "\0"))
                .prop_map(|(start, end)| KeyRange { start, end: Some(end) }),
        ]
    }

    fn a_compare() -> impl Strategy<Value = Compare> {
        let relation = prop::sample::select(vec![
            Relation::Equal,
            Relation::Greater,
            Relation::Less,
            Relation::NotEqual,
            Relation::Unknown,
        ]);
        let against = prop_oneof![
            any::<i64>().prop_map(Against::Version),
            any::<i64>().prop_map(Against::Create),
            any::<i64>().prop_map(Against::Mod),
            any::<i64>().prop_map(Against::Lease),
            any::<u8>().prop_map(|byte| Against::Value(Bytes::from(vec![byte]))),
            Just(Against::Unknown),
        ];
        (range(), relation, against).prop_map(|(range, relation, against)| Compare {
            range,
            relation,
            against,
        })
    }

    fn an_op() -> impl Strategy<Value = Op> {
        let flags = || (any::<bool>(), any::<bool>(), any::<bool>());
        let put = (any::<u8>(), any::<i64>(), flags()).prop_map(|(byte, lease, flags)| {
            let (prev_kv, keep_value, keep_lease) = flags;
            let key = Bytes::from(vec![byte]);
            // Who keeps something gives nothing.
            let value = if keep_value { Bytes::new() } else { key.clone() };
            let lease = if keep_lease { 0 } else { lease };
            Op::Put(PutOp { key, value, lease, prev_kv, keep_value, keep_lease })
        });
        let delete = (range(), any::<bool>())
            .prop_map(|(range, prev_kv)| Op::Delete(DeleteOp { range, prev_kv }));
        let orders = prop::sample::select(vec![Order::None, Order::Ascend, Order::Descend]);
        let targets = prop::sample::select(vec![
            OrderBy::Key,
            OrderBy::Version,
            OrderBy::Create,
            OrderBy::Mod,
            OrderBy::Value,
        ]);
        let read = (range(), any::<i64>(), orders, targets, flags()).prop_map(
            |(range, limit, order, order_by, (keys_only, count_only, is_selected))| {
                let selector = || super::super::selector("app in (a,b)", "spec.a=b").ok().flatten();
                Op::Range(RangeOp {
                    selector: is_selected.then(selector).flatten(),
                    limit,
                    revision: limit / 2,
                    order,
                    order_by,
                    keys_only,
                    count_only,
                    ..RangeOp::all(range)
                })
            },
        );
        prop_oneof![put, delete, read]
    }

    fn a_txn() -> impl Strategy<Value = Txn> {
        let ops = || prop::collection::vec(an_op(), 0..4);
        let flat = || {
            (prop::collection::vec(a_compare(), 0..4), ops(), ops()).prop_map(
                |(compares, success, failure)| Txn { compares, success, failure, may_split: false },
            )
        };
        (flat(), flat()).prop_map(|(mut outer, inner)| {
            outer.failure.push(Op::Txn(inner));
            outer
        })
    }

    proptest! {
        #[test]
        fn a_transaction_comes_back_as_it_was_sent(txn in a_txn()) {
            prop_assert_eq!(super::super::txn(&txn_request(&txn)), Ok(txn));
        }
    }
}

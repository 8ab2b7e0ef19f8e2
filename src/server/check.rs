//! What etcd refuses by looking at a request alone, in the order in which it looks.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message as _;
use tonic::Status;

use super::status::{self, status};
use crate::{
    model::KeyRange,
    proto::etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        range_request::{SortOrder, SortTarget},
        request_op::Request as Op,
    },
};

/// How deep transactions nest at most, however many operations a flag allows: what goes through them does so
/// on the stack.
const DEPTH_MAX: usize = 500;

type Checked = Result<(), Status>;

/// A key that must be there.
pub(super) fn key(key: &Bytes) -> Checked {
    if key.is_empty() { Err(status(status::EMPTY_KEY)) } else { Ok(()) }
}

/// A key for Lock and Election, which ask an etcd as its clients: all that fails there has the code UNKNOWN.
pub(super) fn key_of_line(key: &Bytes) -> Checked {
    self::key(key).map_err(|wrong| Status::unknown(wrong.message()))
}

/// A read.
pub(super) fn range(request: &RangeRequest) -> Checked {
    key(&request.key)?;
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(status(status::INVALID_SORT));
    }
    Ok(())
}

/// A streamed read, which has fewer options.
pub(super) fn range_stream(request: &RangeRequest) -> Checked {
    range(request)?;
    let is_sorted = request.sort_order != SortOrder::None as i32
        && !(request.sort_order == SortOrder::Ascend as i32
            && request.sort_target == SortTarget::Key as i32);
    if is_sorted {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters.iter().any(|filter| *filter != 0) {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

/// A write of one key.
pub(super) fn put(request: &PutRequest) -> Checked {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(status(status::VALUE_PROVIDED));
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(status(status::LEASE_PROVIDED));
    }
    Ok(())
}

/// A deletion.
pub(super) fn delete(request: &DeleteRangeRequest) -> Checked {
    key(&request.key)
}

/// A transaction of at most `ops_max` operations a branch; a nested one has what is left of them, so that by
/// etcd's own default, too, they nest to a depth of 127.
pub(super) fn txn(request: &TxnRequest, ops_max: usize) -> Checked {
    parts(request, ops_max, 0)?;
    overlaps(&request.success)?;
    overlaps(&request.failure)?;
    Ok(())
}

fn nested(bytes: &Bytes) -> Result<TxnRequest, Status> {
    let nested = TxnRequest::decode(bytes.clone());
    // As for a message that can't be read as a whole.
    nested.map_err(|error| Status::internal(error.to_string()))
}

fn parts(request: &TxnRequest, ops_max: usize, depth: usize) -> Checked {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > ops_max || depth > DEPTH_MAX {
        return Err(status(status::TOO_MANY_OPS));
    }
    request.compare.iter().try_for_each(|compare: &Compare| key(&compare.key))?;
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Op::RequestRange(request)) => range(request)?,
            Some(Op::RequestPut(request)) => put(request)?,
            Some(Op::RequestDeleteRange(request)) => delete(request)?,
            Some(Op::RequestTxn(request)) => parts(&nested(request)?, ops_max - ops, depth + 1)?,
            None => return Err(status(status::KEY_NOT_FOUND)),
        }
    }
    Ok(())
}

/// What the operations of one branch put and delete.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Vec<KeyRange>,
}

// === impl Writes ===

impl Writes {
    fn refuses(&self, key: &Bytes) -> bool {
        self.puts.contains(key) || self.deletes.iter().any(|range| range.contains(key))
    }
}

/// Refuses branches that put a key twice, or delete a key and put it.
///
/// As in etcd: deletions of one level come first, then nested transactions in order, then the puts;
/// the two branches of a nested transaction may both put a key; and a deletion of all keys from one on
/// counts as a reversed range here, which overlaps nothing.
fn overlaps(ops: &[RequestOp]) -> Result<Writes, Status> {
    let duplicate = || status(status::DUPLICATE_KEY);
    let mut writes = Writes::default();
    let requests = || ops.iter().filter_map(|op| op.request.as_ref());
    for request in requests() {
        if let Op::RequestDeleteRange(delete) = request {
            let range = KeyRange::from_wire(delete.key.clone(), delete.range_end.clone());
            if range.end.is_some() {
                writes.deletes.push(range);
            }
        }
    }
    for request in requests() {
        let Op::RequestTxn(inner) = request else { continue };
        let inner = nested(inner)?;
        let (then, other) = (overlaps(&inner.success)?, overlaps(&inner.failure)?);
        if then.puts.iter().any(|key| writes.refuses(key)) {
            return Err(duplicate());
        }
        let is_refused = |key: &&Bytes| {
            !then.puts.contains(*key) && writes.refuses(key)
                || writes.deletes.iter().any(|range| range.contains(key))
        };
        if other.puts.iter().any(|key| is_refused(&key)) {
            return Err(duplicate());
        }
        writes.puts.extend(then.puts.into_iter().chain(other.puts));
        writes.deletes.extend(then.deletes.into_iter().chain(other.deletes));
    }
    for request in requests() {
        if let Op::RequestPut(put) = request {
            if writes.refuses(&put.key) {
                return Err(duplicate());
            }
            writes.puts.insert(put.key.clone());
        }
    }
    Ok(writes)
}

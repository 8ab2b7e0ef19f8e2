//! Where a node means to answer differently from etcd, or where etcd's own answer is not fixed.
//!
//! One table, each entry with its reason. Whatever is not in it must be equal.

use std::{collections::HashMap, mem};

use bytes::Bytes;
use pleach::proto::{
    etcdserverpb::{
        self as pb, range_request::SortTarget, request_op::Request as Op,
        response_op::Response as Done,
    },
    mvccpb,
};
use prost::Message as _;

use crate::request::{Answer, Request};

struct Meant {
    what: &'static str,
    why: &'static str,
    /// Makes the two answers equal where they differ in just this.
    settle: fn(&Request, &mut Answer, &mut Answer),
}

/// Some entries look at the IDs in the headers, so the entry that hides these is the last.
const MEANT: &[Meant] = &[
    Meant {
        what: "version, sizes and Raft's counters in Status; name, URLs and ID of the one member",
        why: "they describe the program and the process; their shape is compared",
        settle: |_, left, right| {
            each(left, right, shape_of_status);
            each(left, right, shape_of_members);
        },
    },
    Meant {
        what: "the rest of a lease's time to live, by up to two seconds",
        why: "the two servers have clocks of their own",
        settle: remaining_ttl,
    },
    Meant {
        what: "the order of alarms, of leases, and of a lease's keys",
        why: "etcd's is that of a Go map, a new one each time, and for leases that of its clock",
        settle: |_, left, right| each(left, right, sort_lists),
    },
    Meant {
        what: "the order of ties when more than twelve keys are sorted",
        why: "Go's sort is stable only up to twelve elements",
        settle: order_of_ties,
    },
    Meant {
        what: "how RangeStream cuts its answer into chunks",
        why: "the API gives only the merged answer a meaning",
        settle: |_, left, right| each(left, right, merge_chunks),
    },
    Meant {
        what: "RangeStream with a sort target but no sort order, beyond its first chunk",
        why: "etcd sorts each chunk by itself and goes on behind the last key of the sorted one, \
              so it repeats and skips keys",
        settle: unsorted_streams,
    },
    Meant {
        what: "cluster ID, member ID and Raft term in headers",
        why: "they name the server; that they are there is compared",
        settle: |_, left, right| each(left, right, hide_identity),
    },
];

/// Meant differences that no answer shows, so the run itself provides for them.
const MEANT_ELSEWHERE: &[(&str, &str)] = &[
    (
        "into which messages watch events are batched, and header.revision of these",
        "the API leaves it open; that it is atomic, and the revision not below the events, is checked",
    ),
    (
        "progress messages that were not asked for",
        "a node pushes them when a get shows that a client waits; their promise is checked",
    ),
    (
        "events that were on their way when a watcher was cancelled",
        "etcd drops or sends them by chance, also without their previous values; one history must be the beginning of the other",
    ),
    (
        "a compaction at the revision of a transaction that deleted a key and put it again",
        "etcd loses the put, and ends when the key is read; it is not asked",
    ),
    (
        "mutations over two stores",
        "a routed node refuses them with both routes' names; etcd is not asked",
    ),
    (
        "the revisions of a revoke or an expiry over several stores",
        "a routed node takes one for each store; here a lease has keys in one",
    ),
];

/// Both tables: what differs, and why.
fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let settled = MEANT.iter().map(|meant| (meant.what, meant.why));
    settled.chain(MEANT_ELSEWHERE.iter().copied())
}

/// Both tables in words, for the report of a difference.
pub fn table() -> String {
    all().map(|(what, why)| format!("  {what}: {why}\n")).collect()
}

/// Users read what is not equal, each of it, where they look for it.
#[test]
fn every_meant_difference_is_in_the_documentation() {
    let page = include_str!("../../docs/src/compatibility.md");
    let rows: Vec<String> = all().map(|(what, why)| format!("| {what} | {why} |")).collect();
    let missing: Vec<_> = rows.iter().filter(|row| !page.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "not in docs/src/compatibility.md: {missing:#?}");
    let said = page.lines().skip_while(|line| *line != "| what differs | why |").skip(2);
    assert_eq!(said.take_while(|line| line.starts_with('|')).count(), rows.len(), "it says more");
}

/// Settles what is meant; what then differs is a difference.
pub fn settle(request: &Request, left: &mut Answer, right: &mut Answer) {
    for meant in MEANT {
        (meant.settle)(request, left, right);
    }
}

/// A watch message without what names its server.
pub fn anonymous(mut message: pb::WatchResponse) -> pb::WatchResponse {
    message.header.iter_mut().for_each(hide);
    message
}

fn each(left: &mut Answer, right: &mut Answer, settle: fn(&mut Answer)) {
    settle(left);
    settle(right);
}

// --- headers ---

fn hide_identity(answer: &mut Answer) {
    match answer {
        Answer::Range(a) => a.header.iter_mut().for_each(hide),
        Answer::RangeStream(chunks) => {
            chunks.iter_mut().for_each(|chunk| chunk.header.iter_mut().for_each(hide));
        }
        Answer::Put(a) => a.header.iter_mut().for_each(hide),
        Answer::DeleteRange(a) => a.header.iter_mut().for_each(hide),
        Answer::Txn(a) => hide_in_txn(a),
        Answer::Compact(a) => a.header.iter_mut().for_each(hide),
        Answer::LeaseGrant(a) => a.header.iter_mut().for_each(hide),
        Answer::LeaseRevoke(a) => a.header.iter_mut().for_each(hide),
        Answer::LeaseTimeToLive(a) => a.header.iter_mut().for_each(hide),
        Answer::LeaseLeases(a) => a.header.iter_mut().for_each(hide),
        Answer::LeaseKeepAlive(a) => a.iter_mut().for_each(|a| a.header.iter_mut().for_each(hide)),
        Answer::Alarm(a) => a.header.iter_mut().for_each(hide),
        Answer::MemberList(a) => a.header.iter_mut().for_each(hide),
        Answer::Status(a) => a.header.iter_mut().for_each(hide),
        Answer::Refused { .. } | Answer::Silence => {}
    }
}

fn hide_in_txn(answer: &mut pb::TxnResponse) {
    answer.header.iter_mut().for_each(hide);
    for done in &mut answer.responses {
        match &mut done.response {
            Some(Done::ResponseRange(a)) => a.header.iter_mut().for_each(hide),
            Some(Done::ResponsePut(a)) => a.header.iter_mut().for_each(hide),
            Some(Done::ResponseDeleteRange(a)) => a.header.iter_mut().for_each(hide),
            Some(Done::ResponseTxn(nested)) => {
                let mut a = pb::TxnResponse::decode(nested.clone()).expect("it is an answer");
                hide_in_txn(&mut a);
                *nested = a.encode_to_vec().into();
            }
            None => {}
        }
    }
}

/// Every number becomes 1 and a missing one stays 0, so that its attachment is still compared.
fn hide(header: &mut pb::ResponseHeader) {
    header.cluster_id = header.cluster_id.min(1);
    header.member_id = header.member_id.min(1);
    header.raft_term = header.raft_term.min(1);
}

// --- what describes the server ---

fn shape_of_status(answer: &mut Answer) {
    let Answer::Status(status) = answer else {
        return;
    };
    let member_id = status.header.as_ref().map_or(0, |header| header.member_id);
    if status.leader == member_id {
        status.leader = 1;
    }
    status.version = version_shape(&status.version, 3);
    status.storage_version = version_shape(&status.storage_version, 3);
    status.db_size_quota = 0;
    // Go adds a space here and there, and the order is that of a map.
    status.errors.iter_mut().for_each(|error| *error = error.replace("  ", " "));
    status.errors.sort_unstable();
    for size in [&mut status.db_size, &mut status.db_size_in_use] {
        *size = (*size).min(1);
    }
    let raft = [&mut status.raft_index, &mut status.raft_applied_index, &mut status.raft_term];
    raft.into_iter().for_each(|number| *number = (*number).min(1));
}

fn version_shape(version: &str, parts: usize) -> String {
    let is_version = version.split('.').count() == parts
        && version.split('.').all(|part| part.parse::<u32>().is_ok());
    if is_version { "a version".into() } else { version.into() }
}

fn shape_of_members(answer: &mut Answer) {
    let Answer::MemberList(list) = answer else {
        return;
    };
    let member_id = list.header.as_ref().map_or(0, |header| header.member_id);
    for member in &mut list.members {
        if member.id == member_id {
            member.id = 1;
        }
        if !member.name.is_empty() {
            member.name = "a name".into();
        }
        if member.client_ur_ls.iter().any(|url| url.starts_with("http")) {
            member.client_ur_ls = vec!["a URL".into()];
        }
        member.peer_ur_ls.iter_mut().for_each(|url| url.truncate("http://".len()));
    }
}

// --- leases ---

fn remaining_ttl(_: &Request, left: &mut Answer, right: &mut Answer) {
    if let (Answer::LeaseTimeToLive(left), Answer::LeaseTimeToLive(right)) = (left, right)
        && left.ttl > 0
        && (left.ttl - right.ttl).abs() <= 2
    {
        right.ttl = left.ttl;
    }
}

fn sort_lists(answer: &mut Answer) {
    match answer {
        Answer::Alarm(found) => {
            found.alarms.sort_by_key(|alarm| (alarm.alarm, alarm.member_id));
        }
        Answer::LeaseTimeToLive(lease) => lease.keys.sort(),
        Answer::LeaseLeases(leases) => leases.leases.sort_by_key(|lease| lease.id),
        _ => {}
    }
}

// --- ranges ---

/// Go's sort switches from insertion sort, which is stable, above this many elements.
const STABLE_SORT_KEYS_MAX: i64 = 12;

fn order_of_ties(request: &Request, left: &mut Answer, right: &mut Answer) {
    match (request, left, right) {
        (Request::Range(r), Answer::Range(left), Answer::Range(right)) => {
            order_of_ties_in_range(r, left, right);
        }
        (Request::Txn(r), Answer::Txn(left), Answer::Txn(right)) => {
            order_of_ties_in_txn(r, left, right);
        }
        _ => {}
    }
}

fn order_of_ties_in_txn(
    request: &pb::TxnRequest,
    left: &mut pb::TxnResponse,
    right: &mut pb::TxnResponse,
) {
    if left.succeeded != right.succeeded {
        return;
    }
    let ops = if left.succeeded { &request.success } else { &request.failure };
    for ((op, left), right) in ops.iter().zip(&mut left.responses).zip(&mut right.responses) {
        match (&op.request, &mut left.response, &mut right.response) {
            (
                Some(Op::RequestRange(request)),
                Some(Done::ResponseRange(left)),
                Some(Done::ResponseRange(right)),
            ) => order_of_ties_in_range(request, left, right),
            (
                Some(Op::RequestTxn(request)),
                Some(Done::ResponseTxn(left)),
                Some(Done::ResponseTxn(right)),
            ) => {
                let request = pb::TxnRequest::decode(request.clone()).expect("it was sent");
                let [mut a, mut b] = [&*left, &*right].map(|answer| {
                    pb::TxnResponse::decode(answer.clone()).expect("it is an answer")
                });
                order_of_ties_in_txn(&request, &mut a, &mut b);
                (*left, *right) = (a.encode_to_vec().into(), b.encode_to_vec().into());
            }
            _ => {}
        }
    }
}

/// Settles two answers with the same sequence of sort keys and, in each run of ties, the same
/// keys. Where the limit cuts through the last run, the choice among its ties is free.
fn order_of_ties_in_range(
    request: &pb::RangeRequest,
    left: &mut pb::RangeResponse,
    right: &mut pb::RangeResponse,
) {
    if request.sort_target == 0 || left.count <= STABLE_SORT_KEYS_MAX {
        return;
    }
    // The values by which etcd sorted are not in an answer without values.
    let is_hidden = request.keys_only && request.sort_target == i32::from(SortTarget::Value);
    let rank = |kv: &mvccpb::KeyValue| {
        if is_hidden { Rank::Hidden } else { rank(request, kv) }
    };
    let left_ranks: Vec<_> = left.kvs.iter().map(rank).collect();
    let right_ranks: Vec<_> = right.kvs.iter().map(rank).collect();
    if left_ranks != right_ranks {
        return;
    }
    let cut = if left.more { left_ranks.last() } else { None };
    let settled = |kvs: &[mvccpb::KeyValue]| -> HashMap<Bytes, mvccpb::KeyValue> {
        let whole = kvs.iter().filter(|kv| Some(&rank(kv)) != cut);
        whole.map(|kv| (kv.key.clone(), kv.clone())).collect()
    };
    if settled(&left.kvs) == settled(&right.kvs) {
        right.kvs = left.kvs.clone();
    }
}

#[derive(PartialEq)]
enum Rank {
    Number(i64),
    Value(Bytes),
    Hidden,
}

fn rank(request: &pb::RangeRequest, kv: &mvccpb::KeyValue) -> Rank {
    match SortTarget::try_from(request.sort_target) {
        Ok(SortTarget::Version) => Rank::Number(kv.version),
        Ok(SortTarget::Create) => Rank::Number(kv.create_revision),
        Ok(SortTarget::Mod) => Rank::Number(kv.mod_revision),
        _ => Rank::Value(kv.value.clone()),
    }
}

/// What the chunks of a stream add up to, as protobuf merges messages.
fn merge_chunks(answer: &mut Answer) {
    let Answer::RangeStream(chunks) = answer else {
        return;
    };
    // An empty chunk before the end reads like the end to clients, so it stays, and differs.
    let last = chunks.len().saturating_sub(1);
    if chunks.iter().take(last).any(|chunk| chunk.kvs.is_empty()) {
        return;
    }
    let mut whole = pb::RangeResponse::default();
    for chunk in mem::take(chunks) {
        whole.header = chunk.header.or(whole.header);
        whole.kvs.extend(chunk.kvs);
        whole.more |= chunk.more;
        whole.count = whole.count.max(chunk.count);
    }
    *chunks = vec![whole];
}

fn unsorted_streams(request: &Request, left: &mut Answer, right: &mut Answer) {
    /// etcd's first chunk has this many keys.
    const FIRST_CHUNK_KEYS: i64 = 10;
    if let (Request::RangeStream(request), Answer::RangeStream(l), Answer::RangeStream(r)) =
        (request, left, right)
        && request.sort_target != 0
        && l.iter().any(|whole| whole.more || whole.count > FIRST_CHUNK_KEYS)
    {
        for (left, right) in l.iter().zip(r) {
            right.kvs = left.kvs.clone();
            right.more = left.more;
            right.count = left.count;
        }
    }
}

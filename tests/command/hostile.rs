//! Requests that no well-meaning client sends. Each gets etcd's answer, and the node lives.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use pleach::proto::etcdserverpb::{
    self as pb, compare::TargetUnion, lease_client::LeaseClient, request_op::Request as Op,
    response_op::Response as Done, watch_client::WatchClient, watch_request::RequestUnion,
};
use prost::Message as _;
use tempfile::TempDir;
use tonic::{Code, transport::Channel};

use crate::{
    call::{client, ensure_error, get, put},
    support::node::Node,
};

const TOO_LARGE: &str = "etcdserver: request is too large";
const TOO_MANY: &str = "etcdserver: too many operations in txn request";
const MIB: usize = 1 << 20;

async fn node() -> Result<(TempDir, Node, Channel)> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    Ok((folder, node, channel))
}

#[tokio::test]
async fn keys_are_any_bytes_but_not_none() -> Result<()> {
    let (_folder, mut node, channel) = node().await?;
    let no_key = "etcdserver: key is not provided";
    ensure_error(put(&channel, "", "x").await, Code::InvalidArgument, no_key)?;
    ensure_error(get(&channel, "").await, Code::InvalidArgument, no_key)?;
    let delete = client(&channel).delete_range(pb::DeleteRangeRequest::default()).await;
    ensure_error(delete, Code::InvalidArgument, no_key)?;
    let keys = [
        vec![0x00],
        vec![0xff],
        vec![0xff; 300],
        vec![0x00, 0xff, 0x00],
        vec![0xc3, 0x28, b'/'],
        vec![b'k'; 10 << 10],
        b"/registry/../\n\r\t'; DROP TABLE pleach_key; --".to_vec(),
    ];
    for key in &keys {
        put(&channel, key.clone(), key.clone()).await?;
    }
    node.kill()?;
    let channel = node.start().await?;
    for key in &keys {
        let value = get(&channel, key.clone()).await?;
        ensure!(value.as_deref() == Some(key), "{key:?} became {value:?}");
    }
    let zero = || Bytes::from_static(&[0]);
    let all = pb::RangeRequest { key: zero(), range_end: zero(), ..Default::default() };
    let found = client(&channel).range(all).await?.into_inner().kvs;
    let mut sorted = keys.to_vec();
    sorted.sort();
    ensure!(found.iter().map(|kv| &kv.key[..]).eq(sorted.iter().map(|key| &key[..])), "order");
    let all = pb::DeleteRangeRequest { key: zero(), range_end: zero(), prev_kv: true };
    let deleted = client(&channel).delete_range(all).await?.into_inner();
    ensure!(deleted.deleted == keys.len() as i64, "{} deleted", deleted.deleted);
    Ok(())
}

#[tokio::test]
async fn requests_beyond_the_bounds_get_the_texts_of_etcd() -> Result<()> {
    let (_folder, _node, channel) = node().await?;
    put(&channel, "fits", vec![b'v'; 1_572_864 - 64]).await?;
    let large = put(&channel, "large", vec![b'v'; 1_572_864]).await;
    ensure_error(large, Code::InvalidArgument, TOO_LARGE)?;
    for size in [3 * MIB, 40 * MIB] {
        let error = put(&channel, "huge", vec![b'v'; size]).await.err().context("it was taken")?;
        let bytes = size + "huge".len() + 7;
        let text = format!("grpc: received message larger than max ({bytes} vs. 2097152)");
        ensure!(error.code() == Code::ResourceExhausted && error.message() == text, "{error:?}");
    }
    for count in [129, 10_000] {
        let txn = pb::TxnRequest { success: puts(count), ..Default::default() };
        ensure_error(client(&channel).txn(txn).await, Code::InvalidArgument, TOO_MANY)?;
    }
    let txn = pb::TxnRequest { success: puts(128), ..Default::default() };
    ensure!(client(&channel).txn(txn).await?.into_inner().responses.len() == 128, "128 are few");
    Ok(())
}

#[tokio::test]
async fn transactions_nest_as_deep_as_in_etcd_and_no_depth_ends_the_node() -> Result<()> {
    let (_folder, _node, channel) = node().await?;
    for depth in [1, 49, 50, 126, 127] {
        let answer = client(&channel).txn(nested(depth)).await?.into_inner();
        ensure!(answer.succeeded && innermost(answer)? == depth, "{depth}");
    }
    for depth in [128, 1_000, 10_000] {
        let error = client(&channel).txn(nested(depth)).await;
        ensure_error(error, Code::InvalidArgument, TOO_MANY)?;
    }
    put(&channel, "alive", "yes").await?;
    Ok(())
}

#[tokio::test]
async fn a_flag_that_allows_any_number_of_operations_does_not_allow_any_depth() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &["--max-txn-ops", "1000000"])?;
    let channel = node.start().await?;
    let answer = client(&channel).txn(nested(500)).await?.into_inner();
    ensure!(innermost(answer)? == 500, "it did something else");
    for depth in [501, 10_000] {
        let error = client(&channel).txn(nested(depth)).await;
        ensure_error(error, Code::InvalidArgument, TOO_MANY)?;
    }
    put(&channel, "alive", "yes").await?;
    Ok(())
}

/// A put in so many transactions, one in the other.
fn nested(depth: usize) -> pb::TxnRequest {
    let mut txn = pb::TxnRequest { success: puts(1), ..Default::default() };
    for _ in 0..depth {
        let op = pb::RequestOp { request: Some(Op::RequestTxn(txn.encode_to_vec().into())) };
        txn = pb::TxnRequest { success: vec![op], ..Default::default() };
    }
    txn
}

/// How deep the answer to a put lies.
fn innermost(mut answer: pb::TxnResponse) -> Result<usize> {
    for depth in 0.. {
        match answer.responses.pop().and_then(|op| op.response) {
            Some(Done::ResponseTxn(nested)) => answer = pb::TxnResponse::decode(nested)?,
            Some(Done::ResponsePut(_)) => return Ok(depth),
            other => anyhow::bail!("{other:?}"),
        }
    }
    anyhow::bail!("it has no end")
}

#[tokio::test]
async fn reversed_ranges_and_negative_numbers_find_nothing_and_break_nothing() -> Result<()> {
    let (_folder, _node, channel) = node().await?;
    put(&channel, "m", "1").await?;
    let reversed = || (Bytes::from("z"), Bytes::from("a"));
    let (key, range_end) = reversed();
    let read = pb::RangeRequest { key, range_end, ..Default::default() };
    let found = client(&channel).range(read).await?.into_inner();
    ensure!(found.count == 0 && found.kvs.is_empty() && !found.more, "{found:?}");
    let (key, range_end) = reversed();
    let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: true };
    ensure!(client(&channel).delete_range(delete).await?.into_inner().deleted == 0, "deleted");
    for (limit, revision) in [(-1, 0), (i64::MIN, -1), (0, i64::MIN)] {
        let read = pb::RangeRequest { key: "m".into(), limit, revision, ..Default::default() };
        let found = client(&channel).range(read).await?.into_inner();
        ensure!(found.kvs.len() == 1, "limit {limit}, revision {revision}: {found:?}");
    }
    let future = "etcdserver: mvcc: required revision is a future revision";
    let read = pb::RangeRequest { key: "m".into(), revision: i64::MAX, ..Default::default() };
    ensure_error(client(&channel).range(read).await, Code::OutOfRange, future)?;
    let compact = pb::CompactionRequest { revision: i64::MAX, physical: false };
    ensure_error(client(&channel).compact(compact).await, Code::OutOfRange, future)?;
    let lease = pb::LeaseGrantRequest { ttl: i64::MAX, id: 0 };
    let granted = LeaseClient::new(channel.clone()).lease_grant(lease).await;
    ensure_error(granted, Code::OutOfRange, "etcdserver: too large lease TTL")?;
    let put_leased = pb::PutRequest { key: "m".into(), lease: i64::MIN, ..Default::default() };
    let answer = client(&channel).put(put_leased).await;
    ensure_error(answer, Code::NotFound, "etcdserver: requested lease not found")
}

#[tokio::test]
async fn unknown_enumeration_values_and_empty_messages_break_nothing() -> Result<()> {
    let (_folder, _node, channel) = node().await?;
    for (result, target, target_union) in
        [(99, 0, None), (0, 77, None), (-5, -5, Some(TargetUnion::Lease(i64::MIN))), (1, 3, None)]
    {
        let compare =
            pb::Compare { result, target, key: "k".into(), target_union, ..Default::default() };
        let txn = pb::TxnRequest { compare: vec![compare], ..Default::default() };
        // etcd's answer to each is compared by the oracle; here the node has to outlive it.
        if let Err(error) = client(&channel).txn(txn).await {
            ensure!(error.code() != Code::Unavailable, "{result} {target}: {error:?}");
        }
    }
    let sort = pb::RangeRequest { key: "k".into(), sort_order: 9, ..Default::default() };
    let text = "etcdserver: invalid sort option";
    ensure_error(client(&channel).range(sort).await, Code::InvalidArgument, text)?;
    let nothing = pb::TxnRequest { success: vec![pb::RequestOp::default()], ..Default::default() };
    let text = "etcdserver: key not found";
    ensure_error(client(&channel).txn(nothing).await, Code::InvalidArgument, text)?;
    put(&channel, "alive", "yes").await?;
    Ok(())
}

#[tokio::test]
async fn watches_of_nothing_are_refused_and_leave_their_stream_alone() -> Result<()> {
    let (_folder, _node, channel) = node().await?;
    let create = |key: &str, end: &str, start_revision| pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        start_revision,
        ..Default::default()
    };
    let requests =
        [create("z", "a", 0), create("a", "a", 0), create("a", "", i64::MIN), create("a", "", 0)];
    let requests: Vec<_> = requests.map(RequestUnion::CreateRequest).into();
    // A message without a request in it, and the end of a watch that never was, come first.
    let cancel = RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: -7 });
    let requests = [None, Some(cancel)].into_iter().chain(requests.into_iter().map(Some));
    let requests = requests.map(|request_union| pb::WatchRequest { request_union });
    let sent = tokio_stream::StreamExt::chain(
        tokio_stream::iter(requests.collect::<Vec<_>>()),
        tokio_stream::pending(),
    );
    let mut watch = WatchClient::new(channel.clone()).watch(sent).await?.into_inner();
    let empty = "mvcc: watcher range is empty";
    let past = "etcdserver: mvcc: required revision has been compacted";
    for reason in [empty, empty, past] {
        let refused = watch.message().await?.context("the stream ended")?;
        let is_refused = refused.created && refused.canceled && refused.watch_id == -1;
        ensure!(is_refused && refused.cancel_reason == reason, "{refused:?}, not {reason}");
    }
    let created = watch.message().await?.context("the stream ended")?;
    ensure!(created.created && !created.canceled, "{created:?}");
    put(&channel, "a", "1").await?;
    let event = watch.message().await?.context("the stream ended")?;
    ensure!(event.events.len() == 1, "{event:?}");
    Ok(())
}

fn puts(count: usize) -> Vec<pb::RequestOp> {
    let put = |index| {
        let key = format!("many/{index}").into();
        let put = pb::PutRequest { key, ..Default::default() };
        pb::RequestOp { request: Some(Op::RequestPut(put)) }
    };
    (0..count).map(put).collect()
}

/// gRPC writes a time with eight digits at most.
#[tokio::test]
async fn a_time_limit_without_end_is_none() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    for limit in ["18446744073709551615S", "99999999H", "S", "x"] {
        let read = pb::RangeRequest { key: "key".into(), ..Default::default() };
        let mut request = tonic::Request::new(read);
        request.metadata_mut().insert("grpc-timeout", limit.parse()?);
        client(&channel).range(request).await.with_context(|| limit.to_owned())?;
    }
    let log = node.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

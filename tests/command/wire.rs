//! What clients of all kinds may do with a connection: compress, close their side, be many; and how a node
//! that is hung up on ends.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use pleach::proto::etcdserverpb::{
    self as pb, kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use tempfile::TempDir;
use tonic::{Code, codec::CompressionEncoding};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    call::{get, put},
    support::{http::Api, node::Node, process::eventually},
};

const TOLD_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test]
async fn compressed_requests_are_taken_and_answered_so_and_bounded_by_what_they_hold() -> Result<()>
{
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let mut zipped = KvClient::new(channel.clone())
        .send_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Gzip);
    let value = "x".repeat(100_000);
    let put_of = |bytes: usize| pb::PutRequest {
        key: "key".into(),
        value: "x".repeat(bytes).into(),
        ..Default::default()
    };
    zipped.put(put_of(value.len())).await?;
    ensure!(
        get(&channel, "key").await?.as_deref() == Some(value.as_bytes()),
        "it is not what was sent"
    );
    let read = pb::RangeRequest { key: "key".into(), ..Default::default() };
    let answer = zipped.range(read.clone()).await?;
    let encoding = answer.metadata().get("grpc-encoding").cloned();
    ensure!(encoding.as_ref().is_some_and(|it| it == "gzip"), "answered with {encoding:?}");
    ensure!(answer.into_inner().kvs[0].value.len() == value.len(), "it is not what was sent");

    // Far below the bound on the wire, and far above it once it is unpacked.
    let bomb = zipped.put(put_of(64 << 20)).await.err().context("64 MiB are taken")?;
    ensure!(bomb.code() == Code::ResourceExhausted, "{bomb:?}");

    // Who does not compress is not answered so, whatever it would take.
    let mut plain = KvClient::new(channel).accept_compressed(CompressionEncoding::Gzip);
    let answer = plain.range(read).await?;
    ensure!(answer.metadata().get("grpc-encoding").is_none(), "{:?}", answer.metadata());
    Ok(())
}

/// As gateways and scripts do: the create request is all that they say.
#[tokio::test]
async fn a_watch_goes_on_when_its_client_has_nothing_more_to_say() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let create = pb::WatchCreateRequest { key: "key".into(), ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let asked = tokio_stream::iter([request]);
    let mut told = WatchClient::new(channel.clone()).watch(asked).await?.into_inner();
    let mut next = async || -> Result<pb::WatchResponse> {
        let next = tokio::time::timeout(TOLD_WITHIN, told.message()).await;
        next.context("nothing is said")??.context("the stream ended")
    };
    ensure!(next().await?.created, "it is not created");
    for value in ["1", "2"] {
        put(&channel, "key", value).await?;
        let events = next().await?.events;
        let is_told = events.len() == 1
            && events[0].kv.as_ref().is_some_and(|kv| kv.value == value.as_bytes());
        ensure!(is_told, "{events:?}");
    }
    // A client that is gone is not held.
    drop(told);
    let api = Api::at_port(node.port());
    eventually("its watcher is gone", TOLD_WITHIN, async || {
        let metrics = api.get("/metrics").await?.to_string();
        ensure!(metrics.contains("etcd_debugging_mvcc_watcher_total 0"), "{metrics}");
        Ok(())
    })
    .await
}

/// Reflection, as grpcurl asks, and a sign of life for a lease; what etcd does then, the oracle knows.
#[tokio::test]
async fn other_streams_end_well_when_their_client_has_nothing_more_to_say() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let ask = MessageRequest::ListServices(String::new());
    let ask = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let told = reflection.server_reflection_info(tokio_stream::iter([ask])).await?.into_inner();
    let told: Vec<_> = told.try_collect().await?;
    let services = match told.first().and_then(|told| told.message_response.as_ref()) {
        Some(MessageResponse::ListServicesResponse(list)) => &list.service[..],
        _ => &[],
    };
    let has_kv = services.iter().any(|service| service.name == "etcdserverpb.KV");
    ensure!(told.len() == 1 && has_kv, "{told:?}");

    let mut leases = LeaseClient::new(channel);
    let lease = leases.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 600 }).await?.into_inner();
    let asks = [lease.id, lease.id].map(|id| pb::LeaseKeepAliveRequest { id });
    let told = leases.lease_keep_alive(tokio_stream::iter(asks)).await?.into_inner();
    let told: Vec<_> = told.try_collect().await?;
    ensure!(told.len() == 2 && told.iter().all(|told| told.ttl > 0), "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_whose_terminal_is_gone_ends_in_order() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    put(&channel, "key", "value").await?;
    node.signal("HUP")?;
    let (status, _) = node.ended().await?;
    ensure!(status.success(), "{status}");
    ensure!(node.log().contains("signal=\"SIGHUP\""), "{}", node.log());

    // As `nohup` starts it.
    let mut node = node.under("trap '' HUP");
    let channel = node.start().await?;
    node.signal("HUP")?;
    put(&channel, "key", "still").await?;
    node.signal("TERM")?;
    let (status, _) = node.ended().await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Each connection is an open file, and shells give few.
#[tokio::test]
async fn a_node_takes_as_many_open_files_as_it_may() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?.under("ulimit -Sn 64");
    let channel = node.start().await?;
    put(&channel, "key", "value").await?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.id()?))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    let mut words = files.context("no line of open files")?.split_whitespace().skip(3);
    let (soft, hard) = (words.next(), words.next());
    ensure!(soft == hard && soft != Some("64"), "{files:?}");
    Ok(())
}

//! A write that its store can't take is refused by name, and takes none of its neighbours along.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use pleach::proto::etcdserverpb::{self as pb, maintenance_client::MaintenanceClient};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

use crate::{
    call::put,
    support::{
        databases::{DatabaseServer, Kind},
        etcd::Etcd,
        node::Node,
        process::eventually,
    },
};

const TOO_LARGE: &str = "etcdserver: request is too large";
const KIB: usize = 1 << 10;

/// Puts values of these sizes at once; the answers, in their order.
async fn puts(channel: &Channel, prefix: &str, sizes: &[usize]) -> Vec<Result<i64, Status>> {
    let puts = sizes.iter().enumerate().map(|(at, size)| {
        let (channel, key) = (channel.clone(), format!("{prefix}{at:03}"));
        async move {
            let put = pb::PutRequest {
                key: key.into(),
                value: vec![b'v'; *size].into(),
                ..Default::default()
            };
            let mut client = pb::kv_client::KvClient::new(channel);
            let answer = client.put(put).await?.into_inner();
            Ok(answer.header.map_or(0, |header| header.revision))
        }
    });
    join_all(puts).await
}

/// Those that are larger than `max` are refused for that reason, and all others are taken, in three rounds.
async fn ensure_only_large_are_refused(channel: &Channel, prefix: &str, max: usize) -> Result<()> {
    for round in 0..3 {
        let mut sizes = vec![200 * KIB; 12];
        sizes.extend([1, 3 * max, 10, max / 2, 2 * max, 20]);
        sizes.extend(vec![KIB; 40]);
        for (at, answer) in puts(channel, prefix, &sizes).await.into_iter().enumerate() {
            let size = sizes[at];
            match answer {
                Ok(_) => ensure!(size <= max, "round {round}: {size} bytes were taken"),
                Err(status) => ensure!(
                    size > max
                        && status.code() == Code::InvalidArgument
                        && status.message() == TOO_LARGE,
                    "round {round}: {size} bytes: {status:?}"
                ),
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_small_packets_refuses_the_large_value_and_nothing_else() -> Result<()>
{
    let mut server =
        DatabaseServer::new(Kind::MariaDb)?.without_sync().with_setting("max-allowed-packet", "1M");
    server.start().await?;
    let name = server.new_database().await?;
    let folder = TempDir::new()?;
    let url = server.url(&name);
    let mut node = Node::new(folder.path(), &["--max-request-bytes=8388608"])?
        .with_routes_to(&[("/db/", url)])?;
    let channel = node.start().await?;
    eventually("the route is open", Duration::from_secs(20), async || {
        Ok(put(&channel, "/db/first", "x").await?)
    })
    .await?;
    ensure_only_large_are_refused(&channel, "/db/", 1024 * KIB - 1024).await?;
    // What fits singly fits together, whatever a statement may hold.
    let puts = (0..12).map(|at| pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
            key: format!("/db/together{at}").into(),
            value: vec![b'v'; 500 * KIB].into(),
            ..Default::default()
        })),
    });
    let txn = pb::TxnRequest { success: puts.collect(), ..Default::default() };
    let mut client = pb::kv_client::KvClient::new(channel.clone());
    ensure!(client.txn(txn).await?.into_inner().responses.len() == 12, "some are missing");
    ensure!(!node.log().contains("the store can't be used"), "{}", node.log_tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_with_a_small_bound_refuses_the_large_value_and_nothing_else() -> Result<()> {
    const BOUND: usize = 1 << 20;
    let (folder, of_child) = (TempDir::new()?, TempDir::new()?);
    let bound = format!("--max-request-bytes={BOUND}");
    let mut child = Node::new(of_child.path(), &["--name=child", &bound])?;
    child.start().await?;
    let mut node = Node::new(folder.path(), &["--max-request-bytes=8388608"])?
        .with_routes_to(&[("/child/", child.url())])?;
    let channel = node.start().await?;
    eventually("the child is attached", Duration::from_secs(20), async || {
        Ok(put(&channel, "/child/first", "x").await?)
    })
    .await?;
    ensure_only_large_are_refused(&channel, "/child/", BOUND - 100).await?;
    // What the child's own clients may write, its parent's may.
    let own = child.channel()?;
    for bytes in BOUND - 100..BOUND {
        let of = async |channel: &Channel| {
            let put = put(channel, "/child/edge", &"v".repeat(bytes)).await;
            put.map(|_| ()).map_err(|status| (status.code(), status.message().to_owned()))
        };
        let (here, there) = (of(&channel).await, of(&own).await);
        ensure!(
            here == there,
            "{bytes} bytes: {here:?} through the parent, {there:?} at the child"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_with_a_small_bound_refuses_the_large_value_and_nothing_else() -> Result<()> {
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &["--max-request-bytes=8388608"])?
        .with_routes_to(&[("/etcd/", etcd.url())])?;
    let channel = node.start().await?;
    eventually("the route is open", Duration::from_secs(20), async || {
        Ok(put(&channel, "/etcd/first", "x").await?)
    })
    .await?;
    ensure_only_large_are_refused(&channel, "/etcd/", 1500 * KIB).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_defragment_says_where_there_is_no_file_to_make_smaller() -> Result<()> {
    let mut server = DatabaseServer::new(Kind::Postgres)?.without_sync();
    server.start().await?;
    let name = server.new_database().await?;
    let folder = TempDir::new()?;
    let flag = format!("--endpoint={}", server.url(&name));
    let mut node = Node::new(folder.path(), &[&flag])?;
    let channel = node.start().await?;
    let mut client = MaintenanceClient::new(channel.clone());
    let status = client.defragment(pb::DefragmentRequest {}).await.err().context("it was done")?;
    let says = "none of this node's stores is a file";
    ensure!(status.code() == Code::Unimplemented && status.message().contains(says), "{status:?}");
    Ok(())
}

//! No room: a full disk, and a quota that is used up.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::{Method, StatusCode};
use pleach::proto::etcdserverpb::{self as pb, maintenance_client::MaintenanceClient};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

use crate::{
    call::{client, ensure_error, get, put},
    support::{http::Api, node::Node, process::eventually, tmpfs::Tmpfs},
};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const VALUE_BYTES: usize = 16 << 10;
/// Far more values than the disk or the quota of these tests holds.
const PUTS_MAX: usize = 2_000;

/// Writes until there is no room; how many values were acknowledged, and the answer to the first
/// that was not.
async fn fill(channel: &Channel) -> Result<(usize, Status)> {
    for index in 0..PUTS_MAX {
        if let Err(status) = put(channel, key(index), vec![b'v'; VALUE_BYTES]).await {
            return Ok((index, status));
        }
    }
    anyhow::bail!("there was room for {PUTS_MAX} values")
}

fn key(index: usize) -> String {
    format!("fill/{index:05}")
}

async fn ensure_all_there(channel: &Channel, count: usize) -> Result<()> {
    for index in 0..count {
        let value = get(channel, key(index)).await?.with_context(|| format!("{index} is gone"))?;
        ensure!(value.len() == VALUE_BYTES, "value {index} is cut");
    }
    ensure!(get(channel, key(count)).await?.is_none(), "a write that was refused is there");
    Ok(())
}

#[tokio::test]
async fn a_full_disk_refuses_writes_answers_reads_and_loses_nothing() -> Result<()> {
    let folder = TempDir::new()?;
    let disk = Tmpfs::mount("4m")?;
    let mut node = Node::new(folder.path(), &[])?.with_data_dir(disk.path());
    let channel = node.start().await?;
    let (count, status) = fill(&channel).await?;
    ensure_error(Err::<(), _>(status), Code::ResourceExhausted, NO_SPACE)?;
    ensure!(count > 10, "only {count} values fit");
    ensure_all_there(&channel, count).await?;
    let again = put(&channel, key(count), vec![b'v'; VALUE_BYTES]).await;
    ensure_error(again, Code::ResourceExhausted, NO_SPACE)?;

    disk.remount("size=32m")?;
    let revision = put(&channel, "more", "room").await.context("after room was made")?;
    ensure!(revision > 1 + count as i64, "revision {revision} was given before");
    ensure_all_there(&channel, count).await?;
    node.kill()?;
    let channel = node.start().await?;
    ensure_all_there(&channel, count).await?;
    ensure!(get(&channel, "more").await?.is_some(), "the last write is gone");
    node.kill()
}

#[tokio::test]
async fn a_node_that_starts_on_a_full_disk_says_so_or_serves() -> Result<()> {
    let folder = TempDir::new()?;
    let disk = Tmpfs::mount("4m")?;
    let mut node = Node::new(folder.path(), &[])?.with_data_dir(disk.path());
    let channel = node.start().await?;
    let (count, _) = fill(&channel).await?;
    node.kill()?;
    match node.start().await {
        Ok(channel) => ensure_all_there(&channel, count).await?,
        Err(error) => {
            let said = node.log_tail();
            ensure!(said.contains("full") || said.contains("No space"), "{error}: {said}");
        }
    }
    drop(node);

    disk.remount("size=32m")?;
    let mut node = Node::new(folder.path(), &[])?.with_data_dir(disk.path());
    let channel = node.start().await?;
    ensure_all_there(&channel, count).await?;
    put(&channel, "more", "room").await?;
    node.kill()
}

#[tokio::test]
async fn a_used_up_quota_raises_the_alarm_until_room_is_made_and_it_is_disarmed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &["--quota-backend-bytes=2097152"])?;
    let channel = node.start().await?;
    let api = Api::at_port(node.port());
    let (count, status) = fill(&channel).await?;
    ensure_error(Err::<(), _>(status), Code::ResourceExhausted, NO_SPACE)?;
    ensure!(alarms(&channel, 0).await? == 1, "the alarm is not listed");
    ensure_health(&api, StatusCode::SERVICE_UNAVAILABLE, "false").await?;
    // What manifests of kubeadm ask, so that a node that is full is not started again for ever.
    for path in ["/health?serializable=true&exclude=NOSPACE", "/livez", "/readyz"] {
        let answer = api.send(Method::GET, path, None).await?;
        ensure!(answer.status == StatusCode::OK, "{path}: {}", answer.body);
    }
    ensure_error(put(&channel, "x", "y").await, Code::ResourceExhausted, NO_SPACE)?;

    // The alarm outlasts the process.
    node.kill()?;
    let channel = node.start().await?;
    ensure_error(put(&channel, "x", "y").await, Code::ResourceExhausted, NO_SPACE)?;
    ensure_all_there(&channel, count).await?;

    let all = pb::DeleteRangeRequest {
        key: "fill/".into(),
        range_end: "fill0".into(),
        ..Default::default()
    };
    let deleted = client(&channel).delete_range(all).await?.into_inner();
    ensure!(deleted.deleted == count as i64, "{} of {count} deleted", deleted.deleted);
    let revision = deleted.header.context("no header")?.revision;
    client(&channel).compact(pb::CompactionRequest { revision, physical: true }).await?;
    ensure!(alarms(&channel, 2).await? == 1, "nothing was disarmed");
    ensure!(alarms(&channel, 0).await? == 0, "the alarm is still there");
    ensure_health(&api, StatusCode::OK, "true").await?;
    eventually("puts are taken again", Duration::from_secs(5), async || {
        Ok(put(&channel, "x", "y").await?)
    })
    .await?;
    Ok(())
}

/// Lists (0) or disarms (2) the alarms; how many the answer has.
async fn alarms(channel: &Channel, action: i32) -> Result<usize> {
    let asked = pb::AlarmRequest { action, alarm: i32::from(action != 0), member_id: 0 };
    let answer = MaintenanceClient::new(channel.clone()).alarm(asked).await?.into_inner();
    ensure!(answer.alarms.iter().all(|alarm| alarm.alarm == 1), "{answer:?}");
    Ok(answer.alarms.len())
}

async fn ensure_health(api: &Api, status: StatusCode, health: &str) -> Result<()> {
    let answer = api.send(Method::GET, "/health", None).await?;
    let is_as_told = answer.status == status && answer.body["health"] == health;
    ensure!(is_as_told, "{}: {}", answer.status, answer.body);
    Ok(())
}

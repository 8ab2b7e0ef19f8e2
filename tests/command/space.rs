//! No room: a full disk, and a quota that is used up.

use std::{fs, time::Duration};

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
    fill_from(channel, 0).await
}

async fn fill_from(channel: &Channel, first: usize) -> Result<(usize, Status)> {
    for index in 0..PUTS_MAX {
        if let Err(status) = put(channel, key(first + index), vec![b'v'; VALUE_BYTES]).await {
            return Ok((index, status));
        }
    }
    anyhow::bail!("there was room for {PUTS_MAX} values")
}

fn key(index: usize) -> String {
    format!("fill/{index:05}")
}

/// All that was written.
fn all() -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: "fill/".into(), range_end: "fill0".into(), ..Default::default() }
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

    disk.remount("size=32m")?;
    let revision = eventually("there is room", Duration::from_secs(20), async || {
        Ok(put(&channel, "more", "room").await?)
    })
    .await?;
    ensure!(revision > 1 + count as i64, "revision {revision} was given before");
    ensure_all_there(&channel, count).await?;
    node.kill()?;
    let channel = node.start().await?;
    ensure_all_there(&channel, count).await?;
    ensure!(get(&channel, "more").await?.is_some(), "the last write is gone");
    node.kill()
}

/// A full disk raises the alarm, and leaves a way out: reads, deletions, compaction and a start are possible,
/// and puts are as soon as there is room again, be it in the store's own file.
#[tokio::test]
async fn a_full_disk_is_told_survived_and_left_by_deleting() -> Result<()> {
    let folder = TempDir::new()?;
    let disk = Tmpfs::mount("24m")?;
    let mut node = Node::new(folder.path(), &[])?.with_data_dir(disk.path());
    let channel = node.start().await?;
    let api = Api::at_port(node.port());
    for index in 0..300 {
        put(&channel, key(index), vec![b'v'; VALUE_BYTES]).await?;
    }
    // Somebody else takes what is left.
    let other = fs::write(disk.path().join("other"), vec![0; 24 << 20]);
    other.err().context("the disk is not full")?;
    let (more, status) = fill_from(&channel, 300).await?;
    let count = 300 + more;
    ensure_error(Err::<(), _>(status), Code::ResourceExhausted, NO_SPACE)?;
    ensure!(alarms(&channel, 0).await? == 1, "the alarm is not listed");
    ensure_health(&api, StatusCode::SERVICE_UNAVAILABLE, "false").await?;
    let ready = api.send(Method::GET, "/readyz", None).await?;
    ensure!(ready.status == StatusCode::OK, "/readyz: {}", ready.body);
    ensure_all_there(&channel, count).await?;

    node.kill()?;
    let channel = node.start().await.context("it does not start on a full disk")?;
    ensure_all_there(&channel, count).await?;
    let again = put(&channel, key(count), vec![b'v'; VALUE_BYTES]).await;
    ensure_error(again, Code::ResourceExhausted, NO_SPACE)?;
    ensure!(alarms(&channel, 0).await? == 1, "the alarm is not listed");

    for index in 0..200 {
        let one = pb::DeleteRangeRequest { key: key(index).into(), ..Default::default() };
        client(&channel).delete_range(one).await.with_context(|| format!("deletion {index}"))?;
    }
    let deleted = client(&channel).delete_range(all()).await.context("all the rest")?.into_inner();
    ensure!(deleted.deleted == (count - 200) as i64, "{} deleted", deleted.deleted);
    let revision = deleted.header.context("no header")?.revision;
    let compaction = pb::CompactionRequest { revision, physical: true };
    client(&channel).compact(compaction).await.context("compaction")?;
    let again = eventually("puts are taken again", Duration::from_secs(20), async || {
        Ok(put(&channel, "more", "room").await?)
    })
    .await;
    again.with_context(|| node.log_tail())?;
    ensure!(alarms(&channel, 0).await? == 0, "the alarm is still there");
    ensure_health(&api, StatusCode::OK, "true").await?;
    // The file has room, though the disk has none but what the log needs: it goes on, now and then after a wait.
    for index in 0..60 {
        eventually("it goes into what was freed", Duration::from_secs(20), async || {
            Ok(put(&channel, key(index), vec![b'v'; VALUE_BYTES]).await?)
        })
        .await?;
    }
    node.kill()
}

/// The write-ahead log behind a reader of another program grows, and is short again when that has gone.
#[tokio::test]
async fn what_a_foreign_reader_made_of_the_log_is_given_back() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    put(&channel, "first", "x").await?;
    let file = node.data_dir().join("pleach.db");
    let log = node.data_dir().join("pleach.db-wal");
    let log_bytes = || -> Result<u64> { Ok(fs::metadata(&log)?.len()) };
    let reader = rusqlite::Connection::open(&file)?;
    reader.execute_batch("BEGIN; SELECT count(*) FROM pleach_key")?;
    let count = |reader: &rusqlite::Connection| {
        reader.query_row("SELECT count(*) FROM pleach_key", [], |row| row.get::<_, i64>(0))
    };
    count(&reader)?;
    let value = vec![b'v'; 1 << 20];
    for index in 0..100 {
        put(&channel, format!("large/{index}"), value.clone()).await?;
    }
    ensure!(log_bytes()? > 90 << 20, "the reader did not hold it up: {}", log_bytes()?);
    ensure!(count(&reader)? == 1, "the reader sees what came later");
    drop(reader);
    // Also where nothing is written any more.
    eventually("the log is short again", Duration::from_secs(60), async || {
        ensure!(log_bytes()? < 40 << 20, "it has {} bytes", log_bytes()?);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn to_defragment_gives_space_back_while_reads_go_on() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?.with_routes(&["/other/"])?;
    let channel = node.start().await?;
    for index in 0..400 {
        put(&channel, key(index), vec![b'v'; VALUE_BYTES]).await?;
    }
    put(&channel, "stays", "here").await?;
    let deleted = client(&channel).delete_range(all()).await?.into_inner();
    let revision = deleted.header.context("no header")?.revision;
    client(&channel).compact(pb::CompactionRequest { revision, physical: true }).await?;
    let bytes = || -> Result<u64> {
        let of = |name: &str| fs::metadata(node.data_dir().join(name)).map_or(0, |it| it.len());
        Ok(of("pleach.db") + of("pleach.db-wal"))
    };
    ensure!(bytes()? > 6 << 20, "there is nothing to give back");
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let defragment = maintenance.defragment(pb::DefragmentRequest {});
    let (done, read) = tokio::join!(defragment, get(&channel, "stays"));
    done?;
    ensure!(read?.is_some(), "what stays is gone");
    ensure!(bytes()? < 1 << 20, "{} bytes are left", bytes()?);
    let size = maintenance.status(pb::StatusRequest {}).await?.into_inner().db_size;
    ensure!(size < 1 << 20, "it says that it takes {size} bytes");
    put(&channel, "more", "x").await?;
    ensure!(get(&channel, "stays").await?.is_some(), "what stays is gone");
    Ok(())
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

    let deleted = client(&channel).delete_range(all()).await?.into_inner();
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
    let mut client = MaintenanceClient::new(channel.clone());
    let status = client.status(pb::StatusRequest {}).await?.into_inner();
    let member_id = status.header.context("no header")?.member_id;
    let asked = pb::AlarmRequest { action, alarm: i32::from(action != 0), member_id };
    let answer = client.alarm(asked).await?.into_inner();
    ensure!(answer.alarms.iter().all(|alarm| alarm.alarm == 1), "{answer:?}");
    Ok(answer.alarms.len())
}

async fn ensure_health(api: &Api, status: StatusCode, health: &str) -> Result<()> {
    let answer = api.send(Method::GET, "/health", None).await?;
    let is_as_told = answer.status == status && answer.body["health"] == health;
    ensure!(is_as_told, "{}: {}", answer.status, answer.body);
    Ok(())
}

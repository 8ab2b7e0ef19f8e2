//! Kills while compaction walks the log: it takes up where it was, and finishes.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{self as pb, kv_client::KvClient, request_op::Request as Op};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tonic::{Code, transport::Channel};

use crate::{
    ONE_AT_A_TIME,
    support::{node::Node, process::eventually},
};

const KEYS: i64 = 100;
/// Each writes all keys, so this many times as many rows are to be walked.
const REVISIONS: usize = 200;
const FINISHED_WITHIN: Duration = Duration::from_secs(20);

/// Where the walk is, and what is left of the log.
#[derive(Debug)]
struct Walk {
    walked: i64,
    target: i64,
    rows: i64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_that_a_kill_interrupts_resumes_and_finishes() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &["--log-level=warn"])?;
    let database = node.data_dir().join("pleach.db");
    let channel = node.start().await?;
    let mut current = 0;
    for index in 0..REVISIONS {
        current = put_all(&channel, index).await?;
    }

    let target = current - 1;
    let compact = pb::CompactionRequest { revision: target, physical: false };
    KvClient::new(channel).compact(compact).await?;
    node.kill()?;
    let walk = walk(&database)?;
    ensure!(walk.target == target, "an acknowledged compaction is forgotten: {walk:?}");
    ensure!(walk.walked < target, "the kill came too late to interrupt anything: {walk:?}");

    let channel = node.start().await?;
    let answer = KvClient::new(channel.clone()).range(at(target - 1)).await;
    let refused = answer.err().context("a read below the compaction was answered")?;
    ensure!(refused.code() == Code::OutOfRange, "{refused:?}");
    eventually("the compaction has finished", FINISHED_WITHIN, async || {
        let walk = self::walk(&database)?;
        ensure!(walk.walked == target && walk.rows == 2 * KEYS, "{walk:?}");
        Ok(())
    })
    .await?;
    for (revision, value) in [(target, REVISIONS - 2), (0, REVISIONS - 1)] {
        let kvs = KvClient::new(channel.clone()).range(at(revision)).await?.into_inner().kvs;
        let is_whole = kvs.iter().all(|kv| kv.value == value.to_string() && kv.version > 1);
        ensure!(kvs.len() as i64 == KEYS && is_whole, "revision {revision} is damaged: {kvs:?}");
    }
    Ok(())
}

async fn put_all(channel: &Channel, index: usize) -> Result<i64> {
    let put = |key: i64| {
        let (key, value) = (format!("k{key:03}").into(), index.to_string().into());
        let put = pb::PutRequest { key, value, ..Default::default() };
        pb::RequestOp { request: Some(Op::RequestPut(put)) }
    };
    let txn = pb::TxnRequest { success: (0..KEYS).map(put).collect(), ..Default::default() };
    let answer = KvClient::new(channel.clone()).txn(txn).await?.into_inner();
    Ok(answer.header.context("an answer without a header")?.revision)
}

fn at(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), range_end: "l".into(), revision, ..Default::default() }
}

/// Looks into the file, since no answer of the node says how far its compaction is.
fn walk(database: &Path) -> Result<Walk> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let meta = |name: &str| {
        let sql = "SELECT value FROM pleach_meta WHERE name = ?";
        connection.query_row(sql, [name], |row| row.get(0)).or_else(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => Ok(0),
            error => Err(error),
        })
    };
    let rows = connection.query_row("SELECT count(*) FROM pleach_log", [], |row| row.get(0))?;
    Ok(Walk { walked: meta("walked")?, target: meta("compacted")?, rows })
}

//! Kills while an index is built: it goes on where it was, and nothing is missing in it, whatever was written
//! meanwhile.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use pleach::proto::etcdserverpb::{self as pb, kv_client::KvClient, request_op::Request as Op};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    ONE_AT_A_TIME,
    support::{http::Api, node::Node, process::eventually},
};

const KEYS: usize = 12_000;
/// So many are put in one transaction.
const AT_ONCE: usize = 100;
/// One in so many has what is looked for.
const ONE_IN: usize = 50;
const KILLS: usize = 4;
const BUILT_WITHIN: Duration = Duration::from_secs(30);
const PREFIX: &str = "/registry/pods/";
const SELECTOR: &str = "app=wanted";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_whose_building_a_kill_interrupts_is_whole_in_the_end() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &["--log-level=warn"])?;
    let database = node.data_dir().join("pleach.db");
    let mut channel = node.start().await?;
    for first in (0..KEYS).step_by(AT_ONCE) {
        write(&channel, (first..first + AT_ONCE).map(|name| (name, Some(name % ONE_IN == 0))))
            .await?;
    }
    let mut interrupted = 0;
    for round in 0..KILLS {
        // Looks at all rows, and has an index begun the first time.
        check(&channel).await?;
        let before = terms(&database)?;
        // Some leave the selection, some come to it, some go; before the cursor and behind it.
        let changes = (0..AT_ONCE).map(|at| {
            let name = (round * 37 + at * 113) % KEYS;
            (name, [Some(true), Some(false), None][at % 3])
        });
        // Not answered, most likely: what is in flight when it is killed may be there or not.
        let (_, killed) = tokio::join!(write(&channel, changes), async {
            eventually("the index grows", BUILT_WITHIN, async || {
                let now = terms(&database)?;
                ensure!(now > before || now >= KEYS / ONE_IN, "{now} rows");
                Ok(())
            })
            .await?;
            node.kill()
        });
        killed?;
        interrupted += usize::from(!is_built(&database)?);
        channel = node.start().await?;
        check(&channel).await?;
    }
    ensure!(interrupted > 0, "every kill came too late to interrupt anything");
    eventually("the index is built", BUILT_WITHIN, async || {
        check(&channel).await?;
        ensure!(is_built(&database)?, "{} rows", terms(&database)?);
        Ok(())
    })
    .await?;
    let by_index = async || {
        let metrics = Api::at_port(node.port()).get("/metrics").await?;
        let metrics = metrics.as_str().context("metrics are text")?;
        let of_index = |line: &&str| {
            line.starts_with("pleach_store_selected_pages_total") && line.contains(r#"by="index""#)
        };
        let found = metrics.lines().find(of_index).and_then(|line| line.rsplit(' ').next());
        anyhow::Ok(found.context("it is counted")?.parse::<u64>()?)
    };
    let before = by_index().await?;
    check(&channel).await?;
    ensure!(by_index().await? > before, "the index is not used");
    Ok(())
}

/// Puts objects that have what is looked for or not, and deletes others, in one transaction.
async fn write(
    channel: &Channel,
    changes: impl Iterator<Item = (usize, Option<bool>)>,
) -> Result<()> {
    let op = |(name, change): (usize, Option<bool>)| {
        let key = format!("{PREFIX}team/{name:05}").into();
        let op = match change {
            None => Op::RequestDeleteRange(pb::DeleteRangeRequest { key, ..Default::default() }),
            Some(is_wanted) => {
                let app = if is_wanted { "wanted" } else { "other" };
                let value = format!(
                    r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"{app}"}}}}}}"#
                );
                Op::RequestPut(pb::PutRequest { key, value: value.into(), ..Default::default() })
            }
        };
        pb::RequestOp { request: Some(op) }
    };
    let txn = pb::TxnRequest { success: changes.map(op).collect(), ..Default::default() };
    KvClient::new(channel.clone()).txn(txn).await?;
    Ok(())
}

/// What is found with a selector is what stands among all keys of the same revision.
async fn check(channel: &Channel) -> Result<()> {
    let prefix_end = PREFIX.replace("pods/", "pods0");
    let range = |selector: &str, revision| pb::RangeRequest {
        key: PREFIX.into(),
        range_end: prefix_end.clone().into(),
        label_selector: selector.into(),
        revision,
        ..Default::default()
    };
    let all = KvClient::new(channel.clone()).range(range("", 0)).await?.into_inner();
    let revision = all.header.context("a header")?.revision;
    let asked = [0, revision].map(|at| {
        let range = range(SELECTOR, at);
        let mut client = KvClient::new(channel.clone());
        async move { client.range(range).await }
    });
    let has_it = |kv: &&pleach::proto::mvccpb::KeyValue| {
        kv.value.windows(8).any(|window| window == b"\"wanted\"")
    };
    let expected: Vec<_> = all.kvs.iter().filter(has_it).collect();
    for found in try_join_all(asked).await? {
        let found = found.into_inner();
        ensure!(
            found.kvs.iter().collect::<Vec<_>>() == expected,
            "{} were found, of {}",
            found.kvs.len(),
            expected.len()
        );
        ensure!(found.count == expected.len() as i64, "{} were counted", found.count);
    }
    Ok(())
}

fn open(database: &Path) -> Result<Connection> {
    Ok(Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?)
}

/// The rows of the index, of which there is no table before one was begun.
fn terms(database: &Path) -> Result<usize> {
    let connection = open(database)?;
    let count: Result<i64, _> =
        connection.query_row("SELECT count(*) FROM pleach_term", [], |row| row.get(0));
    Ok(usize::try_from(count.unwrap_or(0))?)
}

/// Whether it says that it is built: behind the last key there is no place where to go on.
fn is_built(database: &Path) -> Result<bool> {
    let sql = "SELECT value FROM pleach_record WHERE name = char(127) || 'index'";
    let record: Vec<u8> = open(database)?.query_row(sql, [], |row| row.get(0))?;
    // The one attribute's fifth field, as protobuf writes a `true`.
    Ok(record.windows(2).any(|window| window == [0x28, 1]))
}

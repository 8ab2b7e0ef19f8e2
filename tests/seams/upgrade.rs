//! What version 0.1.0 has left, in stores of every kind: this version goes on with it.
//!
//! `kept/` holds what a node of that version with a route to each kind of store had written when it was
//! stopped: files and databases as SQL, an etcd as all that happened in it, and what the node answered.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Txn, TxnOp};
use pleach::proto::{
    etcdserverpb::{self as pb, lease_client::LeaseClient, maintenance_client::MaintenanceClient},
    mvccpb::KeyValue,
};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    call::{client, put},
    support::{
        databases::{DatabaseServer, Kind, USER},
        etcd::Etcd,
        node::Node,
        process::eventually,
    },
    watch::Watch,
};

const SOON: Duration = Duration::from_secs(30);
const DATABASE: &str = "kept";
/// The lease that keys in each store have.
const LEASE: i64 = 7_777;
const TTL: i64 = 100_000;
const PREFIXES: [&str; 4] = ["/file/", "/postgres/", "/mariadb/", "/etcd/"];

/// A route to each kind of store.
struct Stores {
    folder: TempDir,
    postgres: DatabaseServer,
    mariadb: DatabaseServer,
    etcd: Etcd,
}

impl Stores {
    async fn start() -> Result<Self> {
        let mut postgres = DatabaseServer::new(Kind::Postgres)?;
        postgres.start().await?;
        postgres.create_database(DATABASE).await?;
        let mut mariadb = DatabaseServer::new(Kind::MariaDb)?;
        mariadb.start().await?;
        mariadb.create_database(DATABASE).await?;
        let mut etcd = Etcd::hasty()?;
        etcd.start().await?;
        Ok(Self { folder: TempDir::new()?, postgres, mariadb, etcd })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("route.db")
    }

    fn routes(&self) -> Vec<(&'static str, String)> {
        let file = format!("sqlite://{}", self.file().display());
        let endpoints =
            [file, self.postgres.url(DATABASE), self.mariadb.url(DATABASE), self.etcd.url()];
        PREFIXES.into_iter().zip(endpoints).collect()
    }
}

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seams/kept").join(name)
}

/// What the node of then answered.
struct Answer {
    revision: i64,
    kvs: Vec<KeyValue>,
}

impl Answer {
    fn read() -> Result<Self> {
        let answer: serde_json::Value = serde_json::from_str(&read("answer.json")?)?;
        let kvs = answer["kvs"].as_array().context("no list of keys")?.iter().map(|kv| {
            let text = |at: usize| kv[at].as_str().map(|text| text.as_bytes().to_vec().into());
            let number = |at: usize| kv[at].as_i64();
            Some(KeyValue {
                key: text(0)?,
                value: text(1)?,
                create_revision: number(2)?,
                mod_revision: number(3)?,
                version: number(4)?,
                lease: number(5)?,
            })
        });
        let kvs = kvs.collect::<Option<_>>().context("a key is not as it was kept")?;
        Ok(Self { revision: answer["revision"].as_i64().context("no revision")?, kvs })
    }
}

impl Stores {
    /// Puts everything where it was.
    async fn fill(&self, default: &Path) -> Result<()> {
        for (path, name) in [(default, "default.sql"), (&self.file(), "file.sql")] {
            rusqlite::Connection::open(path)?.execute_batch(&read(name)?)?;
        }
        let tables = format!("SET ROLE {USER};\n{}", read("postgresql.sql")?);
        self.postgres.sql(DATABASE, &tables).await?;
        self.mariadb.sql(DATABASE, &read("mariadb.sql")?).await?;
        let mut etcd = self.etcd.client().await?;
        let text = read("etcd.txt")?;
        for txn in text.split("revision ").skip(1) {
            let mut lines = txn.lines();
            let revision: i64 = lines.next().context("no revision")?.parse()?;
            let ops = lines.map(|line| {
                let mut words = line.split(' ');
                let mut next = || words.next().unwrap_or_default();
                let (verb, key, value) = (next(), bytes(next())?, bytes(next())?);
                Ok(match verb {
                    "put" => TxnOp::put(key, value, None),
                    _ => TxnOp::delete(key, None),
                })
            });
            let ops = ops.collect::<Result<Vec<_>>>()?;
            let done = etcd.txn(Txn::new().and_then(ops)).await?;
            let reached = done.header().map_or(0, |header| header.revision());
            ensure!(reached == revision, "the etcd is at {reached}, and was at {revision}");
        }
        Ok(())
    }
}

fn read(name: &str) -> Result<String> {
    Ok(fs::read_to_string(kept(name))?)
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|two| Ok(u8::from_str_radix(std::str::from_utf8(two)?, 16)?)).collect()
}

async fn range(channel: &Channel, prefix: &str) -> Result<Vec<KeyValue>> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().context("an empty prefix")? += 1;
    let range = pb::RangeRequest {
        key: prefix.to_owned().into(),
        range_end: end.into(),
        ..Default::default()
    };
    Ok(client(channel).range(range).await?.into_inner().kvs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_0_1_0_left_in_every_kind_of_store_is_gone_on_with() -> Result<()> {
    let (stores, answer) = (Stores::start().await?, Answer::read()?);
    let folder = stores.folder.path().join("node");
    fs::create_dir_all(folder.join("data"))?;
    stores.fill(&folder.join("data/pleach.db")).await?;
    let mut routes = stores.routes();
    // The child is not there any more.
    routes.push(("/child/", "http://127.0.0.1:9".to_owned()));
    let mut node = Node::new(&folder, &["--name=root"])?.with_routes_to(&routes)?;
    let channel = node.start().await?;
    for prefix in PREFIXES.into_iter().chain(["/own/"]) {
        let found = eventually("it is open", SOON, async || range(&channel, prefix).await).await?;
        let was = answer.kvs.iter().filter(|kv| kv.key.starts_with(prefix.as_bytes()));
        ensure!(found.iter().eq(was), "{prefix}: {found:?}");
    }
    // What it left of its own: an alarm, a lease, a child that was away.
    let maintenance = &mut MaintenanceClient::new(channel.clone());
    let mut alarm = async |action: pb::alarm_request::AlarmAction, member_id: u64| {
        let alarm = pb::AlarmType::Nospace as i32;
        let asked = pb::AlarmRequest { action: action as i32, member_id, alarm };
        Ok::<_, anyhow::Error>(maintenance.alarm(asked).await?.into_inner().alarms)
    };
    let raised = alarm(pb::alarm_request::AlarmAction::Get, 0).await?;
    let member = raised.first().context("the alarm is gone")?.member_id;
    let refused = put(&channel, "/own/x", "x").await.err().context("there is no room")?;
    ensure!(refused.message().contains("space exceeded"), "{refused:?}");
    alarm(pb::alarm_request::AlarmAction::Deactivate, member).await?;
    let mut leases = LeaseClient::new(channel.clone());
    let asked = pb::LeaseTimeToLiveRequest { id: LEASE, keys: false };
    let lease = leases.lease_time_to_live(asked).await?.into_inner();
    ensure!(lease.granted_ttl == TTL, "{lease:?}");
    // What comes next goes on above all that there was, in the lane of before.
    let mut last = answer.revision;
    for prefix in PREFIXES.into_iter().chain(["/own/"]) {
        let next = put(&channel, &format!("{prefix}many"), "next").await?;
        ensure!(next > last && next % 1_024 == last % 1_024, "{prefix}: {next} after {last}");
        last = next;
    }
    // The past of before is told, but for the etcd, which is another one.
    let mut told = Vec::new();
    let mut watch = Watch::below(&channel, "/postgres/", 2).await?;
    while told.last() != Some(&"/postgres/many=next".to_owned()) {
        let next = watch.next().await?;
        ensure!(next.compact_revision == 0, "{next:?}");
        told.extend(next.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!("{}={}", text(&kv.key), text(&kv.value))
        }));
    }
    ensure!(told.first() == Some(&"/postgres/first=1".to_owned()), "{told:?}");
    // And it starts again, with what it made of them.
    node.kill()?;
    let channel = node.start().await?;
    let next =
        eventually("it is open", SOON, async || Ok(put(&channel, "/etcd/many", "again").await?));
    ensure!(next.await? > last, "a revision is given twice");
    Ok(())
}

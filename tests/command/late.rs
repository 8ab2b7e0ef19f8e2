//! Stores whose servers can't be reached when the node starts: it serves around them.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{
    self as pb, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tonic::{Code, Streaming, transport::Channel};

use crate::{
    call::{client, get, put, refused},
    support::{
        databases::{DatabaseServer, Kind},
        etcd::Etcd,
        node::Node,
        peers::free_port,
        process::eventually,
        proxy::{Mode, Proxy},
    },
};

const DATABASE: &str = "late";
const AGAIN_WITHIN: Duration = Duration::from_secs(30);
/// Far less than a silent server is waited for at a start, and far more than an answer takes.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A server of the test's own, and a node whose pods are there.
struct Bed {
    folder: TempDir,
    server: DatabaseServer,
    node: Node,
}

/// A watch over all keys.
struct Watch {
    _requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<WatchResponse>,
    seen: Vec<(i64, String)>,
}

// === impl Bed ===

impl Bed {
    async fn new(kind: Kind) -> Result<Self> {
        let folder = TempDir::new()?;
        let mut server = DatabaseServer::new(kind)?.without_sync();
        server.start().await?;
        server.create_database(DATABASE).await?;
        let node = node(folder.path(), &server.url(DATABASE))?;
        Ok(Self { folder, server, node })
    }

    /// Writes to the database until it takes it.
    async fn put_again(&self, channel: &Channel, key: &str) -> Result<i64> {
        eventually("the store takes writes", AGAIN_WITHIN, async || {
            Ok(put(channel, key.to_owned(), "again").await?)
        })
        .await
    }
}

fn node(folder: &Path, endpoint: &str) -> Result<Node> {
    node_named(folder, endpoint, "default")
}

fn node_named(folder: &Path, endpoint: &str, name: &str) -> Result<Node> {
    let topology = format!(
        "backends:\n- name: product\n  endpoint: {endpoint}\n  prefix:\n    prefix: pods\n"
    );
    let path = folder.join("topology.yaml");
    fs::write(&path, topology)?;
    let flags = [format!("--topology={}", path.display()), format!("--name={name}")];
    Node::new(folder, &[&flags[0], &flags[1]])
}

// === impl Watch ===

impl Watch {
    async fn start(channel: &Channel, revision: i64) -> Result<Self> {
        let create = pb::WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: revision,
            ..Default::default()
        };
        let (requests, sent) = mpsc::channel(1);
        let request_union = Some(RequestUnion::CreateRequest(create));
        requests.send(pb::WatchRequest { request_union }).await?;
        let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
        let mut responses = WatchClient::new(channel.clone()).watch(sent).await?.into_inner();
        let created = responses.message().await?.context("the stream ended")?;
        ensure!(created.created, "{created:?}");
        Ok(Self { _requests: requests, responses, seen: Vec::new() })
    }

    /// Whether it is ended as compacted, with nothing before that.
    async fn is_compacted(&mut self) -> Result<bool> {
        let response = tokio::time::timeout(AGAIN_WITHIN, self.responses.message()).await;
        let response = response.context("nothing is said")??.context("the stream ended")?;
        Ok(response.compact_revision > 0 && response.events.is_empty())
    }

    /// Reads events until that of `revision` came.
    async fn reach(&mut self, revision: i64) -> Result<()> {
        while self.seen.last().is_none_or(|(last, _)| *last < revision) {
            let response = tokio::time::timeout(AGAIN_WITHIN, self.responses.message()).await;
            let response = response.with_context(|| format!("no event up to {revision}"))??;
            for event in response.context("the stream ended")?.events {
                let kv = event.kv.context("an event without a key")?;
                let last = self.seen.last().map_or(0, |(last, _)| *last);
                ensure!(kv.mod_revision > last, "{} came after {last}", kv.mod_revision);
                self.seen.push((kv.mod_revision, String::from_utf8(kv.key.to_vec())?));
            }
        }
        Ok(())
    }
}

async fn list(channel: &Channel) -> Result<BTreeSet<String>, tonic::Status> {
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let found = client(channel).range(all).await?.into_inner().kvs;
    Ok(found.into_iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect())
}

/// Its keys, and all that must look at them, are refused at once by the route's name.
async fn ensure_refused(channel: &Channel) -> Result<()> {
    let started = Instant::now();
    for status in [
        put(channel, "/registry/pods/new", "x").await.map(drop).expect_err("it is taken"),
        get(channel, "/registry/pods/old").await.map(drop).expect_err("it is answered"),
        list(channel).await.map(drop).expect_err("a part of a list is answered"),
    ] {
        let is_as_told =
            status.code() == Code::Unavailable && status.message().contains("`product`");
        ensure!(is_as_told, "{status:?}");
    }
    ensure!(started.elapsed() < AT_ONCE, "three refusals took {:?}", started.elapsed());
    Ok(())
}

async fn a_node_serves_around_a_server_that_is_down(kind: Kind) -> Result<()> {
    let mut bed = Bed::new(kind).await?;
    let channel = bed.node.start().await?;
    let first = put(&channel, "/registry/pods/old", "1").await?;
    let shown = put(&channel, "/registry/leases/old", "2").await?;
    bed.node.kill()?;
    bed.server.kill().await?;

    let started = Instant::now();
    let channel = bed.node.start().await?;
    ensure!(started.elapsed() < AGAIN_WITHIN, "the start took {:?}", started.elapsed());
    ensure_refused(&channel).await?;
    ensure!(get(&channel, "/registry/leases/old").await?.is_some(), "the other store is gone");
    let mut now = Watch::start(&channel, 0).await?;
    let mut past = Watch::start(&channel, first).await?;
    let mut last = shown;
    for index in 0..3 {
        let started = Instant::now();
        let revision = put(&channel, format!("/registry/leases/{index}"), "x").await?;
        ensure!(revision > last, "revision {revision} was given after {last}");
        now.reach(revision).await?;
        ensure!(started.elapsed() < AT_ONCE, "an event took {:?}", started.elapsed());
        last = revision;
    }
    ensure_refused(&channel).await?;

    bed.server.start().await?;
    let back = bed.put_again(&channel, "/registry/pods/new").await?;
    let end = put(&channel, "/registry/leases/end", "x").await?;
    ensure!(last < back && back < end, "{last}, {back}, {end}");
    ensure!(get(&channel, "/registry/pods/old").await?.is_some(), "a write is gone");
    let all =
        ["leases/0", "leases/1", "leases/2", "leases/end", "leases/old", "pods/new", "pods/old"];
    let all: BTreeSet<String> = all.map(|key| format!("/registry/{key}")).into();
    ensure!(list(&channel).await? == all, "{:?}", list(&channel).await);
    now.reach(end).await?;
    past.reach(end).await?;
    let keys = |watch: &Watch| watch.seen.iter().map(|(_, key)| key.clone()).collect::<Vec<_>>();
    let since = ["leases/0", "leases/1", "leases/2", "pods/new", "leases/end"];
    let since: Vec<String> = since.map(|key| format!("/registry/{key}")).into();
    ensure!(keys(&now) == since, "{:?}", now.seen);
    // What was before the start only the store knew.
    let before = ["/registry/pods/old".to_owned(), "/registry/leases/old".to_owned()];
    ensure!(keys(&past) == [&before[..], &since[..]].concat(), "{:?}", past.seen);
    let log = bed.node.log();
    let said = log.matches("the store can't be opened yet").count();
    ensure!((1..10).contains(&said), "the reason was logged {said} times:\n{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_around_postgresql_that_is_down_when_it_starts() -> Result<()> {
    Box::pin(a_node_serves_around_a_server_that_is_down(Kind::Postgres)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_around_mariadb_that_is_down_when_it_starts() -> Result<()> {
    Box::pin(a_node_serves_around_a_server_that_is_down(Kind::MariaDb)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_beside_a_server_that_hangs_and_has_it_when_it_wakes() -> Result<()> {
    let bed = Bed::new(Kind::Postgres).await?;
    let proxy = Proxy::start(bed.server.address()).await?;
    proxy.set(Mode::Stall).await?;
    let url = bed.server.url_at(proxy.address(), DATABASE);
    let mut node = node(bed.folder.path(), &url)?;
    let channel = node.start().await?;
    ensure_refused(&channel).await?;
    put(&channel, "/registry/leases/x", "x").await?;
    proxy.set(Mode::Pass).await?;
    bed.put_again(&channel, "/registry/pods/new").await?;
    ensure!(list(&channel).await?.len() == 2, "not all keys are there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_node_is_waited_for_and_what_was_shown_without_it_ends() -> Result<()> {
    let mut bed = Bed::new(Kind::Postgres).await?;
    let channel = bed.node.start().await?;
    for _ in 0..3 {
        put(&channel, "/registry/pods/old", "x").await?;
    }
    let folder = TempDir::new()?;
    let url = bed.server.url(DATABASE);
    let mut other = node_named(folder.path(), &url, "other")?;
    let around = other.start().await?;
    let seen = put(&around, "/registry/leases/x", "x").await?;
    let status = put(&around, "/registry/pods/new", "x").await.expect_err("it is taken");
    ensure!(status.message().contains("in use by node `default`"), "{status:?}");
    // Its owner is not disturbed by who waits for it.
    put(&channel, "/registry/pods/old", "x").await?;

    // The other node's clock began below what this one wrote: those who it told of more list afresh.
    bed.node.kill()?;
    let mut first = 0;
    eventually("it is taken over", AGAIN_WITHIN, async || {
        first = put(&around, "/registry/pods/new", "x").await?;
        Ok(())
    })
    .await?;
    ensure!(first > seen + 4, "revision {first} may have been given before");
    let mut watch = Watch::start(&around, seen + 1).await?;
    ensure!(watch.is_compacted().await?, "a watch of before goes on");
    ensure!(list(&around).await?.len() == 3, "not all keys are there");

    // The first node finds it taken, and goes on with the rest.
    let channel = bed.node.start().await?;
    let status = put(&channel, "/registry/pods/old", "x").await.expect_err("it is taken");
    ensure!(status.message().contains("in use by node `other`"), "{status:?}");
    put(&channel, "/registry/leases/x", "x").await?;
    put(&around, "/registry/pods/new", "x").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_an_operator_is_its_routes_own_and_over_when_he_was_there() -> Result<()> {
    let bed = Bed::new(Kind::Postgres).await?;
    let url = bed.server.url(DATABASE);
    let password = crate::support::databases::PASSWORD;
    let no_file = url.replace("sslmode=disable", "sslmode=verify-full&sslrootcert=/nowhere/ca.pem");
    let cases = [
        (url.replace(password, "wrong"), "check the endpoint's user and password"),
        (no_file, "the file /nowhere/ca.pem can't be read"),
    ];
    for (endpoint, part) in cases {
        let mut node = node(bed.folder.path(), &endpoint)?;
        let channel = node.start().await?;
        let status = put(&channel, "/registry/pods/x", "x").await.expect_err("it can't be opened");
        ensure!(status.message().contains("store `product`"), "{status:?}");
        ensure!(status.message().contains(part), "{status:?}");
        put(&channel, "/registry/leases/x", "x").await?;
        node.kill()?;
    }
    bed.server.sql(DATABASE, "CREATE TABLE kine (id INT);").await?;
    let mut node = node(bed.folder.path(), &url)?;
    let channel = node.start().await?;
    let status = put(&channel, "/registry/pods/x", "x").await.expect_err("it is kine's");
    ensure!(status.message().contains("holds the table `kine`"), "{status:?}");
    bed.server.sql(DATABASE, "DROP TABLE kine;").await?;
    eventually("it is opened", AGAIN_WITHIN, async || {
        Ok(put(&channel, "/registry/pods/x", "x").await?)
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_store_that_is_down_ends_the_start() -> Result<()> {
    let folder = TempDir::new()?;
    let port = free_port()?;
    let endpoint = format!("--endpoint=postgres://pleach:secret@127.0.0.1:{port}/late");
    let said = refused(folder.path(), &[&endpoint]).await?;
    ensure!(said.contains("store `main`") && said.contains("can't be reached"), "{said}");
    ensure!(!said.contains("secret"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_an_etcd_that_is_down_does_not_hold_up_the_start() -> Result<()> {
    let folder = TempDir::new()?;
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let silent = Proxy::start(([127, 0, 0, 1], etcd.port()).into()).await?;
    silent.set(Mode::Stall).await?;
    for (at, first) in [free_port()?, silent.address().port()].into_iter().enumerate() {
        let folder = folder.path().join(at.to_string());
        fs::create_dir_all(&folder)?;
        let endpoint = format!("--endpoint=http://127.0.0.1:{first},{}", etcd.url());
        let mut node = Node::new(&folder, &[&endpoint])?;
        let channel = node.start().await?;
        put(&channel, format!("key-{at}"), "value").await?;
        node.kill()?;
    }
    Ok(())
}

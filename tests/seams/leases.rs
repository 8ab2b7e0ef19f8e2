//! A lease ends whole, whatever is away, and nothing outlives it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{self as pb, lease_client::LeaseClient};
use tempfile::TempDir;
use tonic::{Request, transport::Channel};

use crate::{
    call::{client, get, list, put},
    support::{
        databases::{DatabaseServer, Kind},
        etcd::Etcd,
        node::Node,
        process::eventually,
        proxy::{Mode, Proxy},
    },
};

const SOON: Duration = Duration::from_secs(20);
const DATABASE: &str = "leases";

fn node(folder: &Path, name: &str) -> Result<Node> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    Node::new(&folder, &[&format!("--name={name}")])
}

async fn grant(channel: &Channel, id: i64, ttl: i64) -> Result<()> {
    LeaseClient::new(channel.clone()).lease_grant(pb::LeaseGrantRequest { ttl, id }).await?;
    Ok(())
}

async fn revoke(channel: &Channel, id: i64) -> Result<i64, tonic::Status> {
    let mut client = LeaseClient::new(channel.clone());
    let revoked = client.lease_revoke(pb::LeaseRevokeRequest { id }).await?;
    Ok(revoked.into_inner().header.map_or(0, |header| header.revision))
}

async fn leases(channel: &Channel) -> Result<usize> {
    let all = LeaseClient::new(channel.clone()).lease_leases(pb::LeaseLeasesRequest {}).await?;
    Ok(all.into_inner().leases.len())
}

async fn ttl_of(channel: &Channel, id: i64) -> Result<i64> {
    let asked = pb::LeaseTimeToLiveRequest { id, keys: false };
    Ok(LeaseClient::new(channel.clone()).lease_time_to_live(asked).await?.into_inner().ttl)
}

fn leased(key: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: "x".into(), lease, ..Default::default() }
}

/// A put under a lease is on its way to a child that stands still; its asker gives up, the lease is revoked,
/// the child goes on. The put must not land after the end of the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_on_its_way_to_a_child_does_not_outlive_its_lease() -> Result<()> {
    const ROUNDS: i64 = 12;
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child")?;
    child.start().await?;
    let mut root = node(folder.path(), "root")?.with_routes_to(&[("/b/", child.url())])?;
    let channel = root.start().await?;
    eventually("it is attached", SOON, async || Ok(put(&channel, "/b/first", "x").await?)).await?;
    for round in 1..=ROUNDS {
        grant(&channel, round, 600).await?;
        let key = format!("/b/leased-{round}");
        child.signal("STOP")?;
        let mut request = Request::new(leased(&key, round));
        request.set_timeout(Duration::from_millis(300));
        client(&channel).put(request).await.err().context("it was answered by nobody")?;
        // At once, while the child still counts as there, and its connection holds the put.
        let revoking = tokio::spawn({
            let channel = channel.clone();
            async move { revoke(&channel, round).await }
        });
        child.signal("CONT")?;
        let revoked = revoking.await?;
        eventually("the lease is gone", SOON, async || {
            ensure!(leases(&channel).await? == 0, "a lease is left after {revoked:?}");
            Ok(())
        })
        .await?;
        // What comes behind on the same connections has come, so the put has, or never will.
        eventually("the child goes on", SOON, async || Ok(put(&channel, "/b/behind", "x").await?))
            .await?;
        ensure!(get(&channel, &key).await?.is_none(), "round {round}: the key outlives its lease");
    }
    Ok(())
}

/// One of the stores hangs while a lease ends, and the node is killed before the end is through.
async fn ends_whole(store: Store) -> Result<()> {
    let folder = TempDir::new()?;
    let (proxy, endpoint) = store.behind_a_proxy().await?;
    let mut node = node(folder.path(), "node")?.with_routes_to(&[("/a/", endpoint)])?;
    let channel = node.start().await?;
    eventually("it is there", SOON, async || Ok(put(&channel, "/a/first", "x").await?)).await?;
    grant(&channel, 7, 600).await?;
    client(&channel).put(leased("/a/leased", 7)).await?;
    client(&channel).put(leased("own", 7)).await?;
    proxy.set(Mode::Stall).await?;
    let revoking = tokio::spawn({
        let channel = channel.clone();
        async move { revoke(&channel, 7).await }
    });
    eventually("the end has begun", SOON, async || {
        ensure!(ttl_of(&channel, 7).await? == -1, "the lease lives");
        ensure!(get(&channel, "own").await?.is_none(), "no key has gone yet");
        Ok(())
    })
    .await?;
    node.kill()?;
    revoking.abort();
    let channel = node.start().await?;
    ensure!(ttl_of(&channel, 7).await? == -1, "it lives again after a restart");
    let status = client(&channel).put(leased("own", 7)).await.err().context("it takes keys")?;
    ensure!(status.message() == "etcdserver: requested lease not found", "{status:?}");
    proxy.set(Mode::Pass).await?;
    eventually("its keys are gone", SOON, async || {
        ensure!(get(&channel, "/a/leased").await?.is_none(), "the key is there");
        Ok(())
    })
    .await?;
    ensure!(leases(&channel).await? == 0, "a lease is left");
    Ok(())
}

/// Something to put keys in, behind a proxy.
enum Store {
    Database(DatabaseServer),
    Etcd(Etcd),
    Child(Box<Node>, #[expect(dead_code, reason = "its data go with it")] TempDir),
}

impl Store {
    async fn database(kind: Kind) -> Result<Self> {
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        server.create_database(DATABASE).await?;
        Ok(Self::Database(server))
    }

    async fn behind_a_proxy(&self) -> Result<(Proxy, String)> {
        let local = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        Ok(match self {
            Self::Database(server) => {
                let proxy = Proxy::start(server.address()).await?;
                let url = server.url_at(proxy.address(), DATABASE);
                (proxy, url)
            }
            Self::Etcd(etcd) => {
                let proxy = Proxy::start(local(etcd.port())).await?;
                let url = format!("http://{}", proxy.address());
                (proxy, url)
            }
            Self::Child(node, _) => {
                let proxy = Proxy::start(local(node.port())).await?;
                let url = format!("http://{}", proxy.address());
                (proxy, url)
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_end_is_cut_off_over_postgresql_ends_after_a_restart() -> Result<()> {
    Box::pin(ends_whole(Store::database(Kind::Postgres).await?)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_end_is_cut_off_over_mariadb_ends_after_a_restart() -> Result<()> {
    Box::pin(ends_whole(Store::database(Kind::MariaDb).await?)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_end_is_cut_off_over_an_etcd_ends_after_a_restart() -> Result<()> {
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    Box::pin(ends_whole(Store::Etcd(etcd))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_end_is_cut_off_over_a_child_ends_after_a_restart() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child")?;
    child.start().await?;
    Box::pin(ends_whole(Store::Child(Box::new(child), folder))).await
}

/// The client gives up while the default store hangs. The lease is there in the end and lives its time, or is
/// not there; its id is not taken by something that has no end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_is_cancelled_is_finished_or_undone() -> Result<()> {
    let folder = TempDir::new()?;
    let store = Store::database(Kind::Postgres).await?;
    let (proxy, endpoint) = store.behind_a_proxy().await?;
    let mut node = node(folder.path(), "node")?;
    node.add_flag(&format!("--endpoint={endpoint}"));
    let channel = node.start().await?;
    for id in 1..=5 {
        proxy.set(Mode::Stall).await?;
        let mut request = Request::new(pb::LeaseGrantRequest { ttl: 2, id });
        request.set_timeout(Duration::from_millis(100));
        LeaseClient::new(channel.clone()).lease_grant(request).await.err().context("it hangs")?;
        proxy.set(Mode::Pass).await?;
        eventually("the id is free again", SOON, async || {
            grant(&channel, id, 600).await?;
            ensure!(ttl_of(&channel, id).await? > 2, "it is the one of before");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// A route is taken out of the topology, the lease of its keys ends, and the route is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_whose_lease_ended_while_their_store_was_out_go_when_it_is_back() -> Result<()> {
    let folder = TempDir::new()?;
    let file = format!("sqlite://{}", folder.path().join("a.db").display());
    let mut node = node(folder.path(), "node")?.with_routes_to(&[("/a/", file.clone())])?;
    let channel = node.start().await?;
    grant(&channel, 7, 600).await?;
    client(&channel).put(leased("/a/leased", 7)).await?;
    put(&channel, "/a/stays", "x").await?;
    node.kill()?;
    node.set_topology("backends: []\n")?;
    let channel = node.start().await?;
    revoke(&channel, 7).await?;
    node.kill()?;
    node.set_topology(&format!(
        "backends:\n- {{name: a, endpoint: \"{file}\", prefix: {{prefix: /a/}}}}\n"
    ))?;
    let channel = node.start().await?;
    eventually("its keys are gone", SOON, async || {
        let (_, kvs) = list(&channel).await?;
        ensure!(kvs.len() == 1 && &kvs[0].key[..] == b"/a/stays", "{kvs:?}");
        Ok(())
    })
    .await
}

/// A child was away while a lease of its keys ended at the root's default store, which is older than they.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_leases_that_a_restored_default_store_does_not_know_go() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child")?;
    child.start().await?;
    let mut root = node(folder.path(), "root")?.with_routes_to(&[("/b/", child.url())])?;
    let channel = root.start().await?;
    eventually("it is attached", SOON, async || Ok(put(&channel, "/b/stays", "x").await?)).await?;
    root.kill()?;
    let copy = folder.path().join("copy");
    fs::create_dir_all(&copy)?;
    for file in fs::read_dir(root.data_dir())? {
        let file = file?;
        fs::copy(file.path(), copy.join(file.file_name()))?;
    }
    let channel = root.start().await?;
    grant(&channel, 7, 600).await?;
    eventually("it is attached", SOON, async || {
        Ok(client(&channel).put(leased("/b/leased", 7)).await?)
    })
    .await?;
    root.kill()?;
    for file in fs::read_dir(&copy)? {
        let file = file?;
        fs::copy(file.path(), root.data_dir().join(file.file_name()))?;
    }
    let channel = root.start().await?;
    eventually("its keys are gone", SOON, async || {
        ensure!(get(&channel, "/b/leased").await?.is_none(), "the key is there");
        ensure!(get(&channel, "/b/stays").await?.is_some(), "the other is gone");
        Ok(())
    })
    .await
}

//! Who has a store, and who waits for it: what decides is the death of a process and the waiter's own clock,
//! never a name or the database's clock.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    call::{get, put},
    support::{
        databases::{DatabaseServer, Kind},
        etcd::Etcd,
        node::Node,
        process::eventually,
    },
    watch::Watch,
};

const SOON: Duration = Duration::from_secs(30);
const DATABASE: &str = "owned";

/// Two nodes of one name on one host, as that is by default, over one database.
struct Pair {
    server: DatabaseServer,
    owner: Node,
    _waiter: Node,
    _folder: TempDir,
}

fn node(folder: &Path, name: &str, url: &str) -> Result<Node> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    Node::new(&folder, &[])?.with_routes_to(&[("/a/", url.to_owned())])
}

impl Pair {
    async fn start(kind: Kind) -> Result<(Self, Channel, Channel)> {
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        server.create_database(DATABASE).await?;
        let folder = TempDir::new()?;
        let mut owner = node(folder.path(), "owner", &server.url(DATABASE))?;
        let of_owner = owner.start().await?;
        put(&of_owner, "/a/key", "0").await?;
        let mut waiter = node(folder.path(), "waiter", &server.url(DATABASE))?;
        let of_waiter = waiter.start().await?;
        ensure!(put(&of_waiter, "/a/key", "waiter").await.is_err(), "two nodes have the store");
        Ok((Self { server, owner, _waiter: waiter, _folder: folder }, of_owner, of_waiter))
    }
}

/// Ends all connections of the store's user.
async fn cut(server: &DatabaseServer) {
    let user = crate::support::databases::USER;
    let sql = match server.kind() {
        Kind::Postgres => format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{user}';"
        ),
        Kind::MariaDb => format!("KILL USER {user};"),
    };
    // It ends the very connection that asks, where that is the user's.
    let _ = server.sql(DATABASE, &sql).await;
}

/// The owner's connections end while another node of its name waits: the owner lives, so it keeps the store,
/// and nobody ever reads what is older than what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_same_name_does_not_take_the_store_of_one_that_lives() -> Result<()> {
    const ROUNDS: usize = 10;
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let (pair, of_owner, of_waiter) = Pair::start(kind).await?;
        for round in 1..=ROUNDS {
            cut(&pair.server).await;
            let value = round.to_string();
            eventually("the owner goes on", SOON, async || {
                Ok(put(&of_owner, "/a/key", &value).await?)
            })
            .await?;
            let status = put(&of_waiter, "/a/key", "waiter").await;
            ensure!(status.is_err(), "{kind:?}: the waiter took it in round {round}");
            let read = get(&of_owner, "/a/key").await?;
            ensure!(read.as_deref() == Some(&value), "{kind:?}: {read:?} is not {value}");
        }
        ensure!(!pair.owner.log().contains("owned by"), "it was fenced: {}", pair.owner.log());
    }
    Ok(())
}

/// A clean end gives the store up at once; so does the death of the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_has_the_store_as_soon_as_its_owner_ends() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        for signal in ["TERM", "KILL"] {
            let (mut pair, _, of_waiter) = Pair::start(kind).await?;
            pair.owner.signal(signal)?;
            pair.owner.ended().await?;
            // Far less than the lease of an owner of whom nothing is known.
            let within = Duration::from_secs(6);
            eventually("the waiter has it", within, async || {
                Ok(put(&of_waiter, "/a/key", "waiter").await?)
            })
            .await?;
            ensure!(
                get(&of_waiter, "/a/key").await?.as_deref() == Some("waiter"),
                "it is not read"
            );
        }
    }
    Ok(())
}

/// An owner on another machine, as far as anybody can tell, that wrote its time when the database's clock was
/// an hour ahead: whoever waits does so by its own clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_of_the_database_that_was_set_back_holds_nobody_up() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        server.create_database(DATABASE).await?;
        let folder = TempDir::new()?;
        let mut owner = node(folder.path(), "owner", &server.url(DATABASE))?;
        let channel = owner.start().await?;
        put(&channel, "/a/key", "0").await?;
        owner.kill()?;
        let elsewhere = "UPDATE pleach_meta SET note = 'somebody, somewhere' WHERE name = 'epoch'; \
                         UPDATE pleach_meta SET value = value + 3600000 WHERE name = 'until';";
        server.sql(DATABASE, elsewhere).await?;
        let mut waiter = node(folder.path(), "waiter", &server.url(DATABASE))?;
        let channel = waiter.start().await?;
        ensure!(
            put(&channel, "/a/key", "early").await.is_err(),
            "{kind:?}: it did not wait at all"
        );
        eventually("it is taken", SOON, async || Ok(put(&channel, "/a/key", "1").await?)).await?;
    }
    Ok(())
}

/// What a store lies in, and what makes its owner somebody of whom nothing is known here.
enum Lies {
    In(DatabaseServer),
    InEtcd(Etcd),
}

impl Lies {
    async fn within(kind: Option<Kind>) -> Result<Self> {
        let Some(kind) = kind else {
            let mut etcd = Etcd::new()?;
            etcd.start().await?;
            return Ok(Self::InEtcd(etcd));
        };
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        server.create_database(DATABASE).await?;
        Ok(Self::In(server))
    }

    fn url(&self) -> String {
        match self {
            Self::In(server) => server.url(DATABASE),
            Self::InEtcd(etcd) => etcd.url(),
        }
    }

    /// As if the owner's host were gone. An etcd's lease runs out whoever has it.
    async fn hide_owner(&self) -> Result<()> {
        let note = "UPDATE pleach_meta SET note = 'somebody, somewhere' WHERE name = 'epoch';";
        match self {
            Self::In(server) => {
                server.sql(DATABASE, note).await?;
                cut(server).await;
                Ok(())
            }
            Self::InEtcd(_) => Ok(()),
        }
    }
}

/// An owner that stood still until another took its store says nothing of it meanwhile, neither keys nor how
/// far watches are, and has it again as soon as the other ends: without a restart, and with nothing of
/// what it had shown before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_fenced_has_its_store_again_when_the_other_ends() -> Result<()> {
    for kind in [Some(Kind::Postgres), Some(Kind::MariaDb), None] {
        let lies = Lies::within(kind).await?;
        let folder = TempDir::new()?;
        let mut owner = node(folder.path(), "owner", &lies.url())?;
        let of_owner = owner.start().await?;
        put(&of_owner, "/a/key", "0").await?;
        let mut watch = Watch::below(&of_owner, "/a/", 0).await?;
        let spanning = Watch::start(&of_owner, 0).await?;
        owner.signal("STOP")?;
        lies.hide_owner().await?;
        let mut other = node(folder.path(), "other", &lies.url())?;
        let of_other = other.start().await?;
        eventually("the other takes it", SOON, async || {
            Ok(put(&of_other, "/a/key", "other").await?)
        })
        .await?;
        owner.signal("CONT")?;
        let read = get(&of_owner, "/a/key").await;
        ensure!(read.is_err(), "{kind:?}: it still reads {read:?}");
        eventually("it is known", SOON, async || {
            ensure!(owner.log().contains("another node has taken the store"), "{}", owner.log());
            Ok(())
        })
        .await?;
        ensure!(put(&of_owner, "/a/key", "fenced").await.is_err(), "{kind:?}: two nodes have it");
        // What is written elsewhere closes nothing for it.
        put(&of_owner, "/b/key", "1").await?;
        watch.ask_progress().await?;
        let early = tokio::time::timeout(Duration::from_secs(3), watch.next()).await;
        ensure!(early.is_err(), "{kind:?}: it was told {early:?} while another has the store");
        put(&of_other, "/a/key", "last").await?;
        other.signal("TERM")?;
        other.ended().await?;
        eventually("the owner has it again", SOON, async || {
            Ok(put(&of_owner, "/a/other", "1").await?)
        })
        .await?;
        let read = get(&of_owner, "/a/key").await?;
        ensure!(read.as_deref() == Some("last"), "{kind:?}: {read:?} is not what was written last");
        watch.ensure_ends_compacted().await?;
        spanning.ensure_ends_compacted().await?;
    }
    Ok(())
}

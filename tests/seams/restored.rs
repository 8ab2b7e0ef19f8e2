//! Stores that went back, or are others than before: what was shown from before ends, no revision is given
//! twice, and the log says what was lost.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb as pb;
use tempfile::TempDir;
use tonic::{Status, transport::Channel};

use crate::{
    call::{client, get, put},
    support::{
        databases::{DatabaseServer, Kind},
        etcd::Etcd,
        node::Node,
        process::eventually,
    },
    watch::Watch,
};

const SOON: Duration = Duration::from_secs(30);
const DATABASE: &str = "restored";

/// A store that can be put back to what it was.
enum Kept {
    File(PathBuf),
    Database(DatabaseServer),
    Etcd(Etcd),
}

impl Kept {
    async fn database(kind: Kind) -> Result<Self> {
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        server.create_database(DATABASE).await?;
        Ok(Self::Database(server))
    }

    fn endpoint(&self) -> String {
        match self {
            Self::File(path) => format!("sqlite://{}", path.display()),
            Self::Database(server) => server.url(DATABASE),
            Self::Etcd(etcd) => etcd.url(),
        }
    }

    /// Takes a copy, while no node has it.
    async fn copy(&mut self, to: &Path) -> Result<()> {
        match self {
            Self::File(path) => copy_files(path, to),
            Self::Database(server) => {
                server.stop().await?;
                copy_folder(server.folder(), to)?;
                server.start().await
            }
            Self::Etcd(etcd) => {
                etcd.stop().await?;
                copy_folder(&etcd.data_dir(), to)?;
                etcd.start().await
            }
        }
    }

    /// Puts the copy in the place of what is there now.
    async fn restore(&mut self, from: &Path) -> Result<()> {
        match self {
            Self::File(path) => {
                let name = path.file_name().context("it has a name")?;
                for part in ["", "-wal", "-shm"] {
                    let file = PathBuf::from(format!("{}{part}", path.display()));
                    if file.exists() {
                        fs::remove_file(&file)?;
                    }
                }
                fs::copy(from.join(name), path)?;
                Ok(())
            }
            Self::Database(server) => {
                server.stop().await?;
                let folder = server.folder().to_owned();
                copy_folder(from, &folder)?;
                server.start().await
            }
            Self::Etcd(etcd) => {
                etcd.stop().await?;
                let folder = etcd.data_dir();
                copy_folder(from, &folder)?;
                etcd.start().await
            }
        }
    }
}

/// The file, folded into one; its lock stays where it is, as with any copy that an operator takes.
fn copy_files(path: &Path, to: &Path) -> Result<()> {
    let connection = rusqlite::Connection::open(path)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    drop(connection);
    fs::create_dir_all(to)?;
    fs::copy(path, to.join(path.file_name().context("it has a name")?))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let status = std::process::Command::new("rsync")
        .arg("-a")
        .arg("--delete")
        .arg(format!("{}/", from.display()))
        .arg(to)
        .status();
    if status.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let script = format!(
        "mkdir -p '{to}' && find '{to}' -mindepth 1 -delete && cp -a '{from}/.' '{to}/'",
        from = from.display(),
        to = to.display()
    );
    let status = std::process::Command::new("sh").args(["-c", &script]).status()?;
    ensure!(status.success(), "the folder was not copied: {status}");
    Ok(())
}

/// A put that is taken only where the key is as it was at `revision`.
async fn guarded(channel: &Channel, key: &str, revision: i64) -> Result<bool, Status> {
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Mod as i32,
        key: key.to_owned().into(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: "guarded".into(),
        ..Default::default()
    };
    let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
    let txn = pb::TxnRequest { compare: vec![compare], success: vec![op], failure: Vec::new() };
    Ok(client(channel).txn(txn).await?.into_inner().succeeded)
}

/// A store of a route is put back to an older state while the node is down.
async fn goes_back_while_the_node_is_down(mut store: Kept, folder: &TempDir) -> Result<()> {
    let copy = folder.path().join("copy");
    let routes = [("/a/", store.endpoint())];
    let mut node = Node::new(folder.path(), &[])?.with_routes_to(&routes)?;
    let channel = node.start().await?;
    let put_soon = async |channel: &Channel, value: &str| {
        eventually("it is there", SOON, async || Ok(put(channel, "/a/key", value).await?)).await
    };
    let kept = put_soon(&channel, "kept").await?;
    node.kill()?;
    store.copy(&copy).await?;

    let channel = node.start().await?;
    let mut lost = put_soon(&channel, "lost").await?;
    for at in 0..20 {
        lost = put_soon(&channel, &format!("lost {at}")).await?;
    }
    // How far a store is, is kept within a second.
    let slot = async || {
        put(&channel, "own", "x").await?;
        let log = Watch::start(&channel, lost).await?.next().await?;
        ensure!(!log.events.is_empty(), "the last write is told");
        Ok(())
    };
    eventually("it goes on", SOON, slot).await?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // In order, so that its clock leaps nowhere at the next start.
    node.signal("TERM")?;
    node.ended().await?;
    store.restore(&copy).await?;

    let channel = node.start().await?;
    eventually("it is served", SOON, async || {
        ensure!(
            get(&channel, "/a/key").await?.as_deref() == Some("kept"),
            "it is not what was restored"
        );
        Ok(())
    })
    .await?;
    // Who saw what is gone, guards it in vain, also once the key was written again.
    ensure!(!guarded(&channel, "/a/key", lost).await?, "a guard on what is gone holds");
    let first = put_soon(&channel, "again").await?;
    ensure!(first > lost, "revision {first} was given before: {lost} was");
    ensure!(!guarded(&channel, "/a/key", lost).await?, "a guard on what is gone holds");
    for start in [kept + 1, lost, lost + 1] {
        Watch::start(&channel, start).await?.ensure_compacted().await?;
    }
    let past = pb::RangeRequest { key: "/a/key".into(), revision: lost, ..Default::default() };
    let status = client(&channel).range(past).await.err().context("what is gone is read")?;
    ensure!(status.message().contains("has been compacted"), "{status:?}");
    let log = node.log();
    ensure!(log.contains("went back") && log.contains(&format!("held={lost}")), "{log}");
    // And the next start has nothing to say of it.
    node.kill()?;
    let before = node.log().matches("went back").count();
    let channel = node.start().await?;
    let second = put_soon(&channel, "and again").await?;
    ensure!(second > first, "revision {second} after {first}");
    let mut watch = Watch::start(&channel, first).await?;
    let told = watch.next().await?;
    ensure!(told.compact_revision == 0 && !told.events.is_empty(), "{told:?}");
    ensure!(node.log().matches("went back").count() == before, "it is said again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_put_back_is_noticed() -> Result<()> {
    let folder = TempDir::new()?;
    let store = Kept::File(folder.path().join("a.db"));
    Box::pin(goes_back_while_the_node_is_down(store, &folder)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_was_put_back_is_noticed() -> Result<()> {
    let folder = TempDir::new()?;
    let store = Kept::database(Kind::Postgres).await?;
    Box::pin(goes_back_while_the_node_is_down(store, &folder)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_that_was_put_back_is_noticed() -> Result<()> {
    let folder = TempDir::new()?;
    let store = Kept::database(Kind::MariaDb).await?;
    Box::pin(goes_back_while_the_node_is_down(store, &folder)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_put_back_is_noticed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    Box::pin(goes_back_while_the_node_is_down(Kept::Etcd(etcd), &folder)).await
}

/// The file of the default store is put back: what lies beside it says how far it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_store_in_a_file_that_was_put_back_is_noticed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let kept = put(&channel, "key", "kept").await?;
    node.kill()?;
    let mut store = Kept::File(node.data_dir().join("pleach.db"));
    let copy = folder.path().join("copy");
    store.copy(&copy).await?;
    let channel = node.start().await?;
    let lost = put(&channel, "key", "lost").await?;
    node.kill()?;
    store.restore(&copy).await?;
    let channel = node.start().await?;
    ensure!(get(&channel, "key").await?.as_deref() == Some("kept"), "it is not what was restored");
    let first = put(&channel, "key", "again").await?;
    ensure!(first > lost, "revision {first} was given before: {lost} was");
    Watch::start(&channel, kept + 1).await?.ensure_compacted().await?;
    ensure!(node.log().contains("the default store went back"), "{}", node.log());
    Ok(())
}

/// How a default store is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The files of its server.
    Files,
    /// From what the database's own program has dumped.
    Dump,
}

/// The default store is put back while the node is down. With a route beside it, that store knows how far it had
/// come, however it was put back; a dump is noticed with no route too.
async fn default_goes_back(mut store: Kept, how: How, has_route: bool) -> Result<()> {
    let folder = TempDir::new()?;
    let copy = folder.path().join("copy");
    let endpoint = format!("--endpoint={}", store.endpoint());
    let mut node = Node::new(folder.path(), &[&endpoint])?;
    if has_route {
        let beside = format!("sqlite://{}", folder.path().join("beside.db").display());
        node = node.with_routes_to(&[("/a/", beside)])?;
    }
    let channel = node.start().await?;
    let kept = put(&channel, "key", "kept").await?;
    node.signal("TERM")?;
    node.ended().await?;
    let dump = match (&store, how) {
        (Kept::Database(server), How::Dump) => Some(server.dump(DATABASE).await?),
        _ => None,
    };
    store.copy(&copy).await?;
    let channel = node.start().await?;
    let mut lost = put(&channel, "key", "lost").await?;
    for at in 0..20 {
        lost = put(&channel, "key", &format!("lost {at}")).await?;
    }
    // How far it is, is kept within a second.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    lost = lost.max(put(&channel, "key", "lost too").await?);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    node.kill()?;
    match (&store, dump) {
        (Kept::Database(server), Some(dump)) => drop(server.sql(DATABASE, &dump).await?),
        _ => store.restore(&copy).await?,
    }

    let channel = node.start().await?;
    ensure!(get(&channel, "key").await?.as_deref() == Some("kept"), "it is not what was restored");
    ensure!(!guarded(&channel, "key", lost).await?, "a guard on what is gone holds");
    let first = put(&channel, "key", "again").await?;
    ensure!(first > lost, "{how:?}: revision {first} was given before: {lost} was");
    for start in [kept + 1, lost, lost + 1] {
        Watch::start(&channel, start).await?.ensure_compacted().await?;
    }
    ensure!(node.log().contains("the default store went back"), "{}", node.log());
    // And the next start has nothing to say of it.
    node.kill()?;
    let before = node.log().matches("went back").count();
    let channel = node.start().await?;
    let second = put(&channel, "key", "and again").await?;
    ensure!(second > first && second < first + (1 << 29), "revision {second} after {first}");
    ensure!(node.log().matches("went back").count() == before, "it is said again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_store_that_was_restored_from_a_dump_is_noticed() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let store = Kept::database(kind).await?;
        let done = Box::pin(default_goes_back(store, How::Dump, false)).await;
        done.with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_store_whose_files_were_put_back_is_noticed_by_the_store_of_a_route() -> Result<()>
{
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let store = Kept::database(kind).await?;
        let done = Box::pin(default_goes_back(store, How::Files, true)).await;
        done.with_context(|| format!("{kind:?}"))?;
    }
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let done = Box::pin(default_goes_back(Kept::Etcd(etcd), How::Files, true)).await;
    done.context("an etcd")
}

/// The node ends by itself, and says that it failed.
async fn ensure_refused(node: &mut Node) -> Result<()> {
    node.spawn()?;
    let (status, _) = node.ended().await?;
    ensure!(!status.success(), "the node starts: {status}");
    Ok(())
}

/// A start that is cut off forgets nothing: the next one notices what it would have noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_store_that_was_put_back_is_noticed_after_a_start_that_failed() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    put(&channel, "key", "kept").await?;
    node.kill()?;
    let file = node.data_dir().join("pleach.db");
    let mut store = Kept::File(file.clone());
    let copy = folder.path().join("copy");
    store.copy(&copy).await?;
    let channel = node.start().await?;
    let lost = put(&channel, "key", "lost").await?;
    node.kill()?;
    store.restore(&copy).await?;
    let database = rusqlite::Connection::open(&file)?;
    let damaged = database.execute("UPDATE pleach_record SET value = x'00ff'", [])?;
    ensure!(damaged > 0, "there are no records");
    drop(database);
    ensure_refused(&mut node).await?;
    store.restore(&copy).await?;
    let channel = node.start().await?;
    let first = put(&channel, "key", "again").await?;
    ensure!(first > lost, "revision {first} was given before: {lost} was");
    ensure!(node.log().contains("the default store went back"), "{}", node.log());
    Ok(())
}

/// Another default store is refused, and where it is adopted, no revision is given twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_default_store_is_adopted_above_all_that_was_shown() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let mut before = 0;
    for _ in 0..50 {
        before = put(&channel, "key", "before").await?;
    }
    node.kill()?;
    for part in ["", "-wal", "-shm"] {
        let file = node.data_dir().join(format!("pleach.db{part}"));
        if file.exists() {
            fs::remove_file(file)?;
        }
    }
    ensure_refused(&mut node).await?;
    ensure!(node.log().contains("--adopt"), "the remedy is missing: {}", node.log());
    node.add_flag("--adopt=main");
    let channel = node.start().await?;
    let after = put(&channel, "key", "after").await?;
    ensure!(after > before, "revision {after} was given before: {before} was");
    Watch::start(&channel, before).await?.ensure_compacted().await
}

/// Another store is found where one was: it is refused with both identities, until the operator says so.
async fn another_is_refused(
    endpoint: String,
    replace: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?.with_routes_to(&[("/a/", endpoint)])?;
    let channel = node.start().await?;
    let put_soon = async |channel: &Channel| {
        eventually("it is there", SOON, async || Ok(put(channel, "/a/key", "x").await?)).await
    };
    let before = put_soon(&channel).await?;
    node.kill()?;
    replace().await?;
    let channel = node.start().await?;
    let status = eventually("it is refused", SOON, async || {
        let status = put(&channel, "/a/key", "x").await.err().context("it is taken")?;
        ensure!(status.message().contains("is another store than before"), "{status:?}");
        Ok(status)
    })
    .await?;
    ensure!(status.message().contains("--adopt"), "the remedy is missing: {status:?}");
    put(&channel, "own", "x").await?;
    node.kill()?;
    node.add_flag("--adopt=store-0");
    let channel = node.start().await?;
    let after = put_soon(&channel).await?;
    ensure!(after > before, "revision {after} was given before: {before} was");
    Watch::start(&channel, before).await?.ensure_compacted().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_file_in_the_place_of_a_store_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("a.db");
    let replace = async || {
        for part in ["", "-wal", "-shm", ".lock"] {
            let file = PathBuf::from(format!("{}{part}", file.display()));
            if file.exists() {
                fs::remove_file(&file)?;
            }
        }
        Ok(())
    };
    another_is_refused(format!("sqlite://{}", file.display()), replace).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_in_the_place_of_a_store_is_refused() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        server.create_database(DATABASE).await?;
        let replace = async || {
            let tables = ["pleach_key", "pleach_log", "pleach_record", "pleach_meta"];
            let drops = tables.map(|table| format!("DROP TABLE {table};"));
            server.sql(DATABASE, &drops.concat()).await.map(drop)
        };
        Box::pin(another_is_refused(server.url(DATABASE), replace))
            .await
            .context(format!("{kind:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_etcd_in_the_place_of_a_store_is_refused() -> Result<()> {
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let url = etcd.url();
    let client = etcd.client().await?;
    let replace = async || {
        let mut client = client;
        client.delete("", Some(etcd_client::DeleteOptions::new().with_all_keys())).await?;
        Ok(())
    };
    Box::pin(another_is_refused(url, replace)).await
}

/// Restored in place, under the running node: it is noticed, nothing is written over it, and the sentence
/// names the remedy, which helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_put_back_under_a_running_node_is_noticed() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let folder = TempDir::new()?;
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        server.create_database(DATABASE).await?;
        let routes = [("/a/", server.url(DATABASE))];
        let mut node = Node::new(folder.path(), &[])?.with_routes_to(&routes)?;
        let channel = node.start().await?;
        put(&channel, "/a/key", "kept").await?;
        let tables = ["key", "log"];
        let save =
            tables.map(|it| format!("CREATE TABLE saved_{it} AS SELECT * FROM pleach_{it};"));
        server.sql(DATABASE, &save.concat()).await?;
        let mut lost = 0;
        for _ in 0..5 {
            lost = put(&channel, "/a/key", "lost").await?;
        }
        let back = tables.map(|it| {
            format!("DELETE FROM pleach_{it}; INSERT INTO pleach_{it} SELECT * FROM saved_{it};")
        });
        server.sql(DATABASE, &back.concat()).await?;
        // The very next write does not go over what it never saw.
        let status = put(&channel, "/a/key", "over").await.err().context("it is written over")?;
        ensure!(status.message().contains("was committed before"), "{kind:?}: {status:?}");
        eventually("reads are refused too", SOON, async || {
            ensure!(get(&channel, "/a/key").await.is_err(), "it is read");
            Ok(())
        })
        .await?;
        put(&channel, "own", "x").await?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        node.kill()?;
        let channel = node.start().await?;
        let first =
            eventually("it is served", SOON, async || Ok(put(&channel, "/a/key", "again").await?));
        let first = first.await?;
        ensure!(first > lost, "revision {first} was given before: {lost} was");
        Watch::start(&channel, lost).await?.ensure_compacted().await?;
    }
    Ok(())
}

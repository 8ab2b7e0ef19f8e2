//! One route's trouble is its own.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::{Method, StatusCode};
use pleach::proto::etcdserverpb as pb;
use tempfile::TempDir;

use crate::{
    call::{ensure_away, get, list, put, range},
    support::{
        databases::{DatabaseServer, Kind},
        etcd::Etcd,
        http::Api,
        node::Node,
        peers::free_port,
        process::eventually,
        proxy::{Mode, Proxy},
        tmpfs::Tmpfs,
    },
};

const SOON: Duration = Duration::from_secs(30);

/// A deletion over several stores is no transaction where the operator says so: each store deletes its own keys,
/// and no other that lies in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_over_several_stores_is_split_where_that_is_allowed() -> Result<()> {
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let folder = TempDir::new()?;
    let routes =
        [("/a/", format!("sqlite://{}/a.db", folder.path().display())), ("/e/", etcd.url())];
    // What lies in a store from before a route was added is not the route's to delete.
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    put(&channel, "/a/hidden", "x").await?;
    node.signal("TERM")?;
    node.ended().await?;
    let mut node = node.with_routes_to(&routes)?;
    let channel = node.start().await?;
    let keys = ["/a/1", "/a/2", "/b/1", "/e/1", "/e/2", "/z"];
    for key in keys {
        eventually("it is taken", SOON, async || Ok(put(&channel, key, "x").await?)).await?;
    }
    let all = || pb::DeleteRangeRequest { key: "/".into(), range_end: "0".into(), prev_kv: true };
    let mut client = pb::kv_client::KvClient::new(channel.clone());
    let refused = client.delete_range(all()).await.err().context("it was carried out")?;
    ensure!(refused.message().contains("--allow-split-deletes"), "{refused:?}");
    ensure!(list(&channel).await?.1.len() == keys.len(), "something is gone");

    node.signal("TERM")?;
    node.ended().await?;
    node.add_flag("--allow-split-deletes");
    let channel = node.start().await?;
    let mut client = pb::kv_client::KvClient::new(channel.clone());
    let answer = eventually("it is carried out", SOON, async || {
        Ok(client.clone().delete_range(all()).await?.into_inner())
    })
    .await?;
    let gone: Vec<_> = answer.prev_kvs.iter().map(|kv| kv.key.clone()).collect();
    ensure!(answer.deleted == 6 && gone == keys, "{answer:?}");
    let header = answer.header.context("no header")?;
    ensure!(header.revision == list(&channel).await?.0, "{header:?}");
    let nothing = client.delete_range(all()).await?.into_inner();
    ensure!(nothing.deleted == 0 && nothing.header == Some(header), "{nothing:?}");
    // In a transaction it is still one.
    let op = pb::request_op::Request::RequestDeleteRange(all());
    let success = vec![pb::RequestOp { request: Some(op) }];
    let refused = client.txn(pb::TxnRequest { success, ..Default::default() }).await.err();
    let refused = refused.context("a transaction was split")?;
    ensure!(refused.message().contains("must lie in one store"), "{refused:?}");

    // What was hidden is there once the route is gone.
    node.signal("TERM")?;
    node.ended().await?;
    node.set_topology("backends: []\n")?;
    let channel = node.start().await?;
    ensure!(get(&channel, "/a/hidden").await?.is_some(), "it was deleted");
    Ok(())
}

/// A child's stores are split as well, where its own operator allows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_over_the_stores_of_a_child_is_split_where_both_operators_allow_that()
-> Result<()> {
    let (folder, of_child) = (TempDir::new()?, TempDir::new()?);
    let mut child = Node::new(of_child.path(), &["--name=child"])?.with_routes(&["/c/2/"])?;
    child.start().await?;
    let mut root = Node::new(folder.path(), &["--name=root", "--allow-split-deletes"])?
        .with_routes_to(&[("/c/", child.url())])?;
    let channel = root.start().await?;
    let keys = ["/b", "/c/1/a", "/c/2/a", "/c/2/b", "/c/3/a", "/d"];
    for key in keys {
        eventually("it is taken", SOON, async || Ok(put(&channel, key, "x").await?)).await?;
    }
    let below = |key: &str, end: &str| pb::DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        prev_kv: true,
    };
    let mut client = pb::kv_client::KvClient::new(channel.clone());
    let refused = client.delete_range(below("/c/", "/c0")).await.err().context("it was split")?;
    ensure!(refused.message().contains("--allow-split-deletes"), "{refused:?}");
    ensure!(list(&channel).await?.1.len() == keys.len(), "something is gone");

    child.signal("TERM")?;
    child.ended().await?;
    child.add_flag("--allow-split-deletes");
    child.start().await?;
    let answer = eventually("it is carried out", SOON, async || {
        Ok(client.clone().delete_range(below("/c/", "/c0")).await?.into_inner())
    })
    .await?;
    let gone: Vec<_> = answer.prev_kvs.iter().map(|kv| kv.key.clone()).collect();
    ensure!(answer.deleted == 4 && gone == keys[1..5], "{answer:?}");
    ensure!(list(&channel).await?.1.len() == 2, "{:?}", list(&channel).await?);
    for key in keys {
        put(&channel, key, "x").await?;
    }
    // Over the root's stores and the child's.
    let answer = client.delete_range(below("/", "0")).await?.into_inner();
    let gone: Vec<_> = answer.prev_kvs.iter().map(|kv| kv.key.clone()).collect();
    ensure!(answer.deleted == 6 && gone == keys, "{answer:?}");
    ensure!(
        answer.header.context("no header")?.revision == list(&channel).await?.0,
        "it is another"
    );
    // What asks for all at once is not split by anybody.
    for key in keys {
        put(&channel, key, "x").await?;
    }
    let op = pb::request_op::Request::RequestDeleteRange(below("/c/", "/c0"));
    let success = vec![pb::RequestOp { request: Some(op) }];
    let refused = client.txn(pb::TxnRequest { success, ..Default::default() }).await.err();
    ensure!(refused.context("a transaction was split")?.message().contains("one store"), "another");
    Ok(())
}

/// Whatever is wrong with a route's store, the node starts, says so by name, and takes it once it is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_one_store_ends_no_start() -> Result<()> {
    let folder = TempDir::new()?;
    let disk = Tmpfs::mount("4m")?;
    fs::write(disk.path().join("filler"), vec![0; 4 << 20]).ok();
    let read_only = Tmpfs::mount("4m")?;
    read_only.remount("ro")?;
    let garbage = folder.path().join("garbage.db");
    fs::write(&garbage, "this is no database, and long enough to be read as one".repeat(20))?;
    let foreign = folder.path().join("foreign.db");
    rusqlite::Connection::open(&foreign)?.execute("CREATE TABLE other (id INTEGER)", [])?;
    let at = |path: &std::path::Path| format!("sqlite://{}", path.display());
    let nobody = free_port()?;
    let routes = [
        ("/full/", at(&disk.path().join("a.db")), "full"),
        ("/ro/", at(&read_only.path().join("a.db")), "ead-only"),
        ("/garbage/", at(&garbage), "is not a Pleach store"),
        ("/foreign/", at(&foreign), "holds the tables other"),
        ("/nobody/", format!("postgres://a:secret@127.0.0.1:{nobody}/x"), "can't be reached"),
        ("/child/", format!("http://127.0.0.1:{nobody}"), ""),
    ];
    let all: Vec<(&str, String)> =
        routes.iter().map(|(prefix, endpoint, _)| (*prefix, endpoint.clone())).collect();
    let mut node = Node::new(folder.path(), &[])?.with_routes_to(&all)?;
    let channel = node.start().await?;
    put(&channel, "own", "x").await?;
    for (index, (prefix, _, reason)) in routes.iter().enumerate() {
        let key = format!("{prefix}x");
        let status =
            put(&channel, &key, "x").await.err().with_context(|| format!("{key} is taken"))?;
        let name = format!("`store-{index}`");
        ensure!(status.message().contains(&name), "{status:?} does not name {name}");
        ensure!(status.message().contains(reason), "{status:?} does not say `{reason}`");
        ensure!(!status.message().contains("secret"), "{status:?}");
    }
    let api = Api::at_port(node.port());
    let ready = api.send(Method::GET, "/readyz", None).await?;
    ensure!(ready.status == StatusCode::OK, "the default store is there: {}", ready.status);
    // What was wrong is put right, and nobody has to start anything anew.
    read_only.remount("rw")?;
    fs::remove_file(disk.path().join("filler"))?;
    fs::remove_file(&garbage)?;
    fs::remove_file(&foreign)?;
    for prefix in ["/full/", "/ro/", "/garbage/", "/foreign/"] {
        let key = format!("{prefix}x");
        eventually("it is there", SOON, async || Ok(put(&channel, &key, "x").await?)).await?;
        ensure!(get(&channel, &key).await?.is_some(), "{key} is gone");
    }
    ensure!(list(&channel).await.is_err(), "a part of a list is answered");
    Ok(())
}

/// Who wants to be ready only with all stores, says so; `verbose` names each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_names_the_stores_that_are_not_there() -> Result<()> {
    let folder = TempDir::new()?;
    let mut server = DatabaseServer::new(Kind::Postgres)?;
    let url = {
        server.start().await?;
        server.create_database("ready").await?;
        server.url("ready")
    };
    server.stop().await?;
    let mut node =
        Node::new(folder.path(), &["--ready-requires-all"])?.with_routes_to(&[("/a/", url)])?;
    let channel = node.start().await?;
    put(&channel, "own", "x").await?;
    let ready = async |path: &str| -> Result<(u16, String)> {
        let answer = reqwest_text(node.port(), path).await?;
        Ok(answer)
    };
    let (code, text) = ready("/readyz?verbose").await?;
    ensure!(
        code == 503
            && text.contains("[-]store store-0 failed: ")
            && text.contains("[+]store main ok"),
        "{code} {text}"
    );
    let (code, _) = ready("/livez").await?;
    ensure!(code == 200, "{code}");
    server.start().await?;
    eventually("it is ready", SOON, async || {
        let (code, text) = ready("/readyz?verbose").await?;
        ensure!(code == 200 && text.contains("[+]store store-0 ok"), "{code} {text}");
        Ok(())
    })
    .await
}

/// A page as text, with its code.
async fn reqwest_text(port: u16, path: &str) -> Result<(u16, String)> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let code = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok((code.context("no code")?, body.to_owned()))
}

/// A tenant of a namespace route is away: what an API server asks of the cluster as a whole goes on, as far
/// as it is about kinds that Kubernetes has in no namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_what_is_in_no_namespace_wait_for_no_tenant() -> Result<()> {
    let folder = TempDir::new()?;
    let nobody = free_port()?;
    let mut node = Node::new(folder.path(), &[])?.with_topology(&format!(
        "backends:\n- {{name: tenant, endpoint: \"http://127.0.0.1:{nobody}\", namespace: {{namespace: team-a}}}}\n"
    ))?;
    let channel = node.start().await?;
    let cluster = [
        "minions",
        "namespaces",
        "persistentvolumes",
        "clusterroles",
        "clusterrolebindings",
        "priorityclasses",
        "storageclasses",
        "csinodes",
        "validatingwebhookconfigurations",
        "flowschemas",
        "runtimeclasses",
        "masterleases",
        "ranges",
        "apiextensions.k8s.io/customresourcedefinitions",
        "apiregistration.k8s.io/apiservices",
    ];
    for kind in cluster {
        let (from, to) = (format!("/registry/{kind}/"), format!("/registry/{kind}0"));
        put(&channel, &format!("{from}x"), "x").await.with_context(|| kind)?;
        let (_, kvs) = range(&channel, &from, &to).await.with_context(|| kind)?;
        ensure!(kvs.len() == 1, "{kind}: {kvs:?}");
    }
    ensure_away(range(&channel, "/registry/pods/", "/registry/pods0").await, "tenant")?;
    ensure_away(put(&channel, "/registry/pods/team-a/x", "x").await, "tenant")?;
    put(&channel, "/registry/pods/team-b/x", "x").await?;
    Ok(())
}

/// A child hangs while clients ask and ask: the log says so a few times, not for each request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_hangs_does_not_flood_the_log() -> Result<()> {
    const REQUESTS: usize = 2_000;
    let folder = TempDir::new()?;
    let child_folder = folder.path().join("child");
    fs::create_dir_all(&child_folder)?;
    let mut child = Node::new(&child_folder, &["--name=child"])?;
    child.start().await?;
    let proxy = Proxy::start(([127, 0, 0, 1], child.port()).into()).await?;
    let url = format!("http://{}", proxy.address());
    let mut node = Node::new(folder.path(), &[])?.with_routes_to(&[("/b/", url)])?;
    let channel = node.start().await?;
    eventually("it is attached", SOON, async || Ok(put(&channel, "/b/x", "x").await?)).await?;
    proxy.set(Mode::Stall).await?;
    eventually("it is away", SOON, async || {
        ensure!(get(&channel, "/b/x").await.is_err(), "it is answered");
        Ok(())
    })
    .await?;
    let before = node.log().lines().count();
    for _ in 0..REQUESTS {
        ensure!(get(&channel, "/b/x").await.is_err(), "it is answered");
    }
    let log = node.log();
    let lines: Vec<&str> = log.lines().skip(before).collect();
    ensure!(lines.len() < 60, "{} lines for {REQUESTS} requests", lines.len());
    let said =
        log.lines().find(|line| line.contains("a request failed")).context("it is not said")?;
    for part in ["etcdserverpb.KV/", "store-0", "client=127.0.0.1:"] {
        ensure!(said.contains(part), "`{part}` is not in: {said}");
    }
    Ok(())
}

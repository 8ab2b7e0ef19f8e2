//! What a node says of itself at its start.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, net::TcpListener, process::Command};

use crate::support::{
    certificates::{authority, write_certificates},
    node::Node,
    peers::free_port,
    process::eventually,
};

/// A route that can't be reached is tried every few seconds.
const TRIED_FOR: Duration = Duration::from_secs(12);

#[tokio::test]
async fn the_start_says_what_the_node_is_and_shows_no_password() -> Result<()> {
    let folder = TempDir::new()?;
    let (nobody, metrics) = (free_port()?, free_port()?);
    let topology = format!(
        "backends:\n- name: pods\n  endpoint: sqlite://{}/pods.db\n  prefix: {{prefix: pods}}\n\
         - name: away\n  endpoint: postgres://someone:hunter2@127.0.0.1:{nobody}/x\n  \
         namespace: {{namespace: kube-system}}\n",
        folder.path().display()
    );
    let flag = format!("--listen-metrics-urls=http://127.0.0.1:{metrics}");
    let mut node = Node::new(folder.path(), &["--name=here", &flag])?.with_topology(&topology)?;
    node.start().await?;
    let log = node.log();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    let data_dir = node.data_dir().display().to_string();
    let line = |parts: &[&str]| {
        let found = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
        found.map(str::to_owned).with_context(|| format!("no line has {parts:?}:\n{log}"))
    };
    line(&["starting", &version, "name=\"here\"", &data_dir])?;
    line(&["store=\"pods\"", "pods.db", "keys=\"`/registry/pods` and below\"", "state=\"open\""])?;
    line(&[
        "store=\"away\"",
        &format!("127.0.0.1:{nobody}"),
        "namespace kube-system",
        "state=\"away: ",
    ])?;
    line(&["store=\"main\"", "pleach.db", "keys=\"all that no route takes\"", "state=\"open\""])?;
    line(&["in no tree"])?;
    line(&["not used", "TLS", "traces", "a quota of bytes"])?;
    line(&["serving", &format!("127.0.0.1:{}", node.port())])?;
    line(&["serving health, version and metrics", &metrics.to_string()])?;
    ensure!(!line(&["not used"])?.contains("a port for metrics"), "{log}");
    ensure!(!log.contains("hunter2"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_childs_log_says_who_its_parent_is() -> Result<()> {
    let folder = TempDir::new()?;
    for name in ["child", "root"] {
        std::fs::create_dir(folder.path().join(name))?;
    }
    let mut child = Node::new(&folder.path().join("child"), &["--name=child"])?;
    child.start().await?;
    let root = Node::new(&folder.path().join("root"), &["--name=root"])?;
    let mut root = root.with_routes_to(&[("/c/", child.url())])?;
    root.start().await?;
    eventually("the child tells of its parent", Duration::from_secs(20), async || {
        let log = child.log();
        let is_told =
            |line: &str| line.contains("the parent has joined") && line.contains("`root`");
        ensure!(log.lines().any(is_told), "{log}");
        Ok(())
    })
    .await?;
    ensure!(root.log().contains("attached, a node"), "{}", root.log());
    // It is known again after a restart, before the parent has called.
    child.kill()?;
    root.kill()?;
    child.start().await?;
    let log = child.log();
    ensure!(log.contains("in a tree, below its parent"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_route_that_can_not_be_reached_says_what_to_do() -> Result<()> {
    let folder = TempDir::new()?;
    for name in ["child", "root"] {
        std::fs::create_dir(folder.path().join(name))?;
    }
    let mut child = Node::new(&folder.path().join("child"), &[])?;
    child.start().await?;
    let nobody = free_port()?;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let website = format!("http://{}", silent.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = silent.accept().await {
            // Whether anybody reads it is not the server's concern.
            let _ =
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    write_certificates(folder.path(), &authority()?)?;
    let secure = free_port()?;
    let _secure = crate::tls::start(folder.path(), secure, &[])?;
    let routes = [
        ("/tls/", format!("http://127.0.0.1:{secure}")),
        ("/http1/", website),
        ("/plain/", child.url().replace("http://", "https://")),
        ("/port/", format!("http://127.0.0.1:{nobody}")),
        ("/host/", "http://no-such-host.invalid:2379".to_owned()),
    ];
    let mut root = Node::new(&folder.path().join("root"), &[])?.with_routes_to(&routes)?;
    let channel = root.start().await?;
    for (key, remedy) in [
        ("/plain/a", "it does not speak TLS: take `http://`"),
        ("/http1/a", "is the port right, or does it speak TLS"),
        ("/port/a", "is it started, and is the port right?"),
        ("/host/a", "is the name of the host right?"),
    ] {
        eventually(remedy, Duration::from_secs(20), async || {
            let said = crate::call::put(&channel, key, "x").await.err().context("it was put")?;
            ensure!(said.message().matches(remedy).count() == 1, "{key}: {}", said.message());
            Ok(())
        })
        .await?;
    }
    // What a server of TLS says to who does not is another thing each time, and ends in nothing.
    let (begun, mut said) = (Instant::now(), BTreeSet::new());
    eventually("the route has been tried again and again", Duration::from_secs(40), async || {
        let refused =
            crate::call::put(&channel, "/tls/a", "x").await.err().context("it was put")?;
        said.insert(refused.message().to_owned());
        ensure!(begun.elapsed() > TRIED_FOR, "for {:?}", begun.elapsed());
        Ok(())
    })
    .await?;
    let silent = said.iter().find(|message| !message.contains("`https://`"));
    ensure!(silent.is_none(), "no remedy: {silent:?} of {said:?}");
    Ok(())
}

/// Runs a node in a folder until it serves, and stops it; what it said.
async fn run_in(folder: &Path, flags: &[&str]) -> Result<String> {
    let (path, port) = (folder.join("node.log"), free_port()?);
    let log = File::create(&path)?;
    let mut node = Command::new(env!("CARGO_BIN_EXE_pleach"))
        .arg(format!("--listen-client-urls=http://127.0.0.1:{port}"))
        .args(flags)
        .current_dir(folder)
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let said = eventually("it serves", Duration::from_secs(20), async || {
        let said = fs::read_to_string(&path)?;
        ensure!(said.contains("serving address="), "{said}");
        Ok(said)
    })
    .await?;
    node.kill().await?;
    Ok(said)
}

#[tokio::test]
async fn a_node_that_others_can_reach_says_what_they_may() -> Result<()> {
    let folder = TempDir::new()?;
    let is_warned = |said: &str| said.contains("whoever reaches this reads and writes every key");
    let said = run_in(folder.path(), &[]).await?;
    ensure!(!is_warned(&said), "{said}");
    let open = format!("--listen-client-urls=http://0.0.0.0:{}", free_port()?);
    let said = run_in(folder.path(), &[&open]).await?;
    ensure!(is_warned(&said) && said.contains("addresses=\"0.0.0.0"), "{said}");
    Ok(())
}

/// A path in a topology is of the folder that a node is started in. One who starts it in another folder sees where its
/// stores are and that they are new; where the node knows which store it had, nothing is made in its place.
#[tokio::test]
async fn a_node_that_is_started_in_another_folder_says_where_its_stores_are() -> Result<()> {
    let folder = TempDir::new()?;
    let [here, there] = ["here", "there"].map(|name| folder.path().join(name));
    fs::create_dir(&here)?;
    fs::create_dir(&there)?;
    let topology = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok(format!("--topology={}", path.display()))
    };
    let route = "backends:\n- {name: pods, endpoint: \"sqlite://./data/pods.db\", prefix: {prefix: pods}}\n";
    let all = topology("all.yaml", &format!("default: sqlite://./data/main.db\n{route}"))?;
    for place in [&here, &there] {
        for is_new in [true, false] {
            let said = run_in(place, &[&all]).await?;
            for name in ["main", "pods"] {
                let file = place.join("data").join(format!("{name}.db")).display().to_string();
                let is_said = |what: &str| {
                    said.lines().any(|line| line.contains(what) && line.contains(&file))
                };
                ensure!(is_said("a store store="), "{file}: {said}");
                ensure!(is_said("a new, empty store is made") == is_new, "{file}: {said}");
            }
        }
    }

    let data = format!("--data-dir={}", folder.path().join("kept").display());
    let known = topology("known.yaml", route)?;
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere)?;
    run_in(&here, &[&known, &data]).await?;
    let said = run_in(&elsewhere, &[&known, &data]).await?;
    ensure!(said.contains("is another store than before"), "{said}");
    let made: Vec<_> = fs::read_dir(&elsewhere)?.map(|it| it.map(|it| it.file_name())).collect();
    ensure!(made.len() == 1, "beside its log it has made {made:?}");

    // What the first command of a README has written is not served by the second, and that is said.
    let said = run_in(&here, &[&all, &data]).await?;
    let is_told = |line: &str| line.contains("WARN") && line.contains("kept/pleach.db");
    ensure!(said.lines().any(is_told), "{said}");
    Ok(())
}

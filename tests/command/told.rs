//! What a node says of itself at its start.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use crate::support::{node::Node, peers::free_port, process::eventually};

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
    let routes = [
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
    Ok(())
}

//! Flags of others: what is taken as etcd and kine mean it, and what is refused with what to do instead.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    call::{pleach, put, refused},
    support::{http::Api, node::Node, peers::free_port, process::eventually},
};

#[tokio::test]
async fn flags_that_there_are_not_are_refused_all_at_once_with_what_to_do() -> Result<()> {
    let folder = TempDir::new()?;
    let arguments = [
        "--name=infra0",
        "--initial-advertise-peer-urls=http://10.0.0.1:2380",
        "--listen-peer-urls=http://10.0.0.1:2380",
        "--initial-cluster-state=new",
        "--snapshot-count=10000",
        "--auto-compaction-retention=1",
        "--slow-sql-threshold=1s",
    ];
    for command in [&["serve"][..], &[]] {
        let ended = pleach(folder.path(), &[command, &arguments].concat()).await?;
        ensure!(ended.code == Some(2), "{ended:?}");
        for flag in &arguments[1..] {
            let flag = flag.split('=').next().unwrap_or_default();
            let line = ended.stderr.lines().find(|line| line.contains(&format!("{flag}: ")));
            ensure!(
                line.is_some_and(|line| line.contains("; drop it") || line.contains("take")),
                "{flag}: {}",
                ended.stderr
            );
        }
        // The nearest name is no advice where there is better.
        ensure!(!ended.stderr.contains("--listen-metrics-urls"), "{}", ended.stderr);
        ensure!(!folder.path().join("pleach-data").exists(), "a store was made");
    }
    // What nobody has is answered as before.
    let ended = pleach(folder.path(), &["serve", "--listen-client-url=http://a:1"]).await?;
    ensure!(ended.code == Some(2) && ended.stderr.contains("--listen-client-urls"), "{ended:?}");
    let ended = pleach(folder.path(), &["tree", "--endpoints=http://127.0.0.1:1"]).await?;
    ensure!(ended.code == Some(2) && ended.stderr.contains("is an argument"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_is_started_as_kine_is() -> Result<()> {
    let folder = TempDir::new()?;
    let (port, metrics) = (free_port()?, free_port()?);
    let main = folder.path().join("main.db");
    let endpoint =
        format!("--endpoint=multi://sqlite://{}?_journal=WAL&cache=shared", main.display());
    let flags = [
        format!("--listen-address=127.0.0.1:{port}"),
        format!("--metrics-bind-address=:{metrics}"),
        endpoint,
        "--watch-progress-notify-interval=5s".to_owned(),
        "--compact-interval=5m".to_owned(),
        "--compact-interval-jitter=10".to_owned(),
        "--compact-timeout=5s".to_owned(),
        "--compact-min-retain=1000".to_owned(),
        "--datastore-max-open-connections=50".to_owned(),
        "--skip-verify".to_owned(),
        "--log-format=plain".to_owned(),
        "--debug".to_owned(),
    ];
    let mut arguments = vec!["serve"];
    arguments.extend(flags.iter().map(String::as_str));
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_pleach"));
    let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    let node = crate::support::process::Process::start("node", program, folder.path(), &arguments)?;
    eventually("it is ready", Duration::from_secs(20), async || {
        Api::at_port(metrics).get("/readyz").await
    })
    .await?;
    ensure!(Api::at_port(port).get("/livez").await? == json!("ok\n"), "livez");
    ensure!(main.is_file(), "the default store is elsewhere");
    // What has no effect on a file says so.
    let log = fs::read_to_string(folder.path().join("node.log"))?;
    for part in ["--skip-verify have no effect", "--datastore-max-… and"] {
        ensure!(log.contains(part), "{part} is not in: {log}");
    }
    drop(node);
    Ok(())
}

#[tokio::test]
async fn the_default_store_compacts_by_itself_where_a_flag_says_so() -> Result<()> {
    let folder = TempDir::new()?;
    let flags = ["--compact-interval=100ms", "--compact-min-retain=10"];
    let mut node = Node::new(folder.path(), &flags)?;
    let channel = node.start().await?;
    for value in 0..60 {
        put(&channel, "key", value.to_string()).await?;
    }
    let port = node.port();
    eventually("the past is given up", Duration::from_secs(20), async || {
        let metrics = Api::at_port(port).get("/metrics").await?;
        let lines = metrics.as_str().unwrap_or_default().lines();
        let mut revisions =
            lines.filter_map(|line| line.strip_prefix("etcd_debugging_mvcc_compact_revision "));
        let revision = revisions.next().and_then(|it| it.parse::<f64>().ok());
        ensure!(revision.is_some_and(|it| it > 10.0), "{revision:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_has_another_meaning_elsewhere_is_not_guessed() -> Result<()> {
    let folder = TempDir::new()?;
    let cases: [(&[&str], &str); 6] = [
        (
            &["--cert-file=a", "--key-file=b", "--server-cert-file=c", "--server-key-file=d"],
            "--datastore-cert-file",
        ),
        (&["--listen-address=unix://kine.sock"], "sockets of Unix are not served"),
        (&["--listen-address=127.0.0.1:99999"], "no number up to 65535"),
        (&["--listen-client-urls=http://127.0.0.1:99999"], "no number up to 65535"),
        (&["--metrics-bind-address=8080"], "the port is missing"),
        (&["--compact-min-retain=100"], "--compact-interval"),
    ];
    for (flags, said) in cases {
        let mut arguments = vec!["serve"];
        arguments.extend(flags);
        let ended = pleach(folder.path(), &arguments).await?;
        ensure!(!ended.is_success && ended.stderr.contains(said), "{flags:?}: {}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn a_level_that_is_none_is_refused_with_those_that_there_are() -> Result<()> {
    let folder = TempDir::new()?;
    for level in ["inf", "verbose", "", "pleach=dbug", "plaech=debug"] {
        let said = refused(folder.path(), &[&format!("--log-level={level}")]).await?;
        ensure!(said.contains("error, warn, info, debug or trace"), "{level}: {said}");
    }
    // What etcd calls so, and a filter.
    for level in ["warn", "fatal", "pleach=info,h2=error"] {
        let mut node = Node::new(folder.path(), &[&format!("--log-level={level}")])?;
        node.start().await?;
        node.kill()?;
    }
    Ok(())
}

#[tokio::test]
async fn variables_of_etcd_are_not_ignored_in_silence() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    node.set_env("ETCD_NAME", "infra0");
    node.set_env("ETCD_INITIAL_CLUSTER", "infra0=http://a:1");
    node.set_env("ETCD_SERVICE_HOST", "10.0.0.1");
    node.start().await?;
    let log = node.log();
    for part in ["ETCD_NAME (set PLEACH_NAME)", "ETCD_INITIAL_CLUSTER (a node has no peers"] {
        ensure!(log.contains(part), "{part} is not in: {log}");
    }
    ensure!(!log.contains("ETCD_SERVICE_HOST"), "{log}");
    Ok(())
}

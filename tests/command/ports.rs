//! Health, version and metrics, on the clients' port and on a port of their own.

use std::fs;

use anyhow::{Result, ensure};
use http::{Method, Request, StatusCode};
use serde_json::json;
use tempfile::TempDir;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tower::{Service as _, ServiceExt as _};

use crate::{
    call::{pleach, put},
    support::{
        certificates::{authority, write_certificates},
        http::Api,
        node::Node,
        peers::free_port,
    },
};

#[tokio::test]
async fn health_version_and_metrics_are_on_the_clients_port_and_on_the_admin_port() -> Result<()> {
    let folder = TempDir::new()?;
    let admin = free_port()?;
    let other = free_port()?;
    let flag = format!("--listen-metrics-urls=http://127.0.0.1:{admin},http://127.0.0.1:{other}");
    let mut node = Node::new(folder.path(), &[&flag])?;
    let channel = node.start().await?;
    put(&channel, "key", "value").await?;
    for port in [node.port(), admin, other] {
        let api = Api::at_port(port);
        ensure!(api.get("/health").await? == json!({ "health": "true", "reason": "" }), "health");
        ensure!(api.get("/livez").await? == json!("ok\n"), "livez");
        ensure!(api.get("/readyz").await? == json!("ok\n"), "readyz");
        let version = api.get("/version").await?;
        ensure!(version["etcdserver"] == "3.7.3" && version["etcdcluster"] == "3.7.0", "{version}");
        let metrics = api.get("/metrics").await?.to_string();
        for line in ["etcd_server_has_leader 1", "etcd_debugging_mvcc_current_revision 2"] {
            ensure!(metrics.contains(line), "{line} is not in {metrics}");
        }
        // Alerts divide by the quota: without one there is no line.
        ensure!(!metrics.contains("etcd_server_quota_backend_bytes"), "{metrics}");
        let missing = api.send(Method::GET, "/nothing", None).await?;
        ensure!(missing.status != StatusCode::OK, "/nothing is there");
    }
    Ok(())
}

/// The paths and parameters of etcd's probes.
#[tokio::test]
async fn probes_are_answered_as_by_etcd() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    node.start().await?;
    let api = Api::at_port(node.port());
    for (path, said) in [
        ("/livez", "ok\n"),
        ("/livez?verbose", "[+]serializable_read ok\nok\n"),
        ("/livez/serializable_read", "ok\n"),
        ("/readyz/serializable_read?verbose", "[+]serializable_read ok\nok\n"),
        ("/readyz/linearizable_read", "ok\n"),
        ("/readyz/data_corruption", "ok\n"),
        ("/readyz/non_learner", "ok\n"),
        (
            "/readyz/linearizable_read?verbose&exclude=linearizable_read",
            "[+]linearizable_read ok\nok\n",
        ),
        ("/readyz?exclude=non_learner&exclude=data_corruption", "ok\n"),
        (
            "/readyz?verbose&exclude=non_learner",
            "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n\
             [+]store main ok\nok\n",
        ),
    ] {
        let answer = api.send(Method::GET, path, None).await?;
        ensure!(
            answer.status == StatusCode::OK && answer.body == json!(said),
            "{path}: {}",
            answer.body
        );
        let posted = api.send(Method::POST, path, None).await?;
        ensure!(posted.status == StatusCode::METHOD_NOT_ALLOWED, "{path}: {}", posted.status);
    }
    for path in ["/health?exclude=NOSPACE&serializable=true", "/health?exclude=CORRUPT"] {
        ensure!(api.get(path).await? == json!({ "health": "true", "reason": "" }), "{path}");
    }
    let missing = api.send(Method::GET, "/readyz/nothing", None).await?;
    ensure!(missing.status == StatusCode::NOT_FOUND, "{}", missing.status);
    Ok(())
}

#[tokio::test]
async fn metrics_are_served_over_tls_where_that_is_said() -> Result<()> {
    let folder = TempDir::new()?;
    write_certificates(folder.path(), &authority()?)?;
    let admin = free_port()?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let flags = [
        format!("--listen-metrics-urls=https://127.0.0.1:{admin}"),
        format!("--cert-file={}", file("localhost.pem")),
        format!("--key-file={}", file("localhost.key")),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut node = Node::new(folder.path(), &flags)?;
    node.start().await?;
    ensure!(Api::at_port(admin).get("/metrics").await.is_err(), "it is served in clear");
    let authority = Certificate::from_pem(fs::read(folder.path().join("ca.pem"))?);
    let tls = ClientTlsConfig::new().ca_certificate(authority).domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{admin}"))?.tls_config(tls)?;
    let mut channel = endpoint.connect().await?;
    let asked = Request::get("/metrics").body(tonic::body::Body::empty())?;
    let answer = channel.ready().await?.call(asked).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
    // One that is taken is named with its flag, before anything is opened.
    let taken = format!("--listen-metrics-urls=http://127.0.0.1:{admin}");
    let other = ["serve", "--listen-client-urls=http://127.0.0.1:0", &taken, "--data-dir=other"];
    let ended = pleach(folder.path(), &other).await?;
    let said = &ended.stderr;
    ensure!(!ended.is_success && said.contains("--listen-metrics-urls: can't listen on"), "{said}");
    ensure!(!folder.path().join("other").exists(), "a store was made");
    // Without certificates there is nothing to be served with, and that is said at once.
    let ended =
        pleach(folder.path(), &["serve", "--listen-client-urls=http://127.0.0.1:0", flags[0]])
            .await?;
    let said = &ended.stderr;
    ensure!(!ended.is_success && said.contains("--listen-metrics-urls has https://"), "{said}");
    Ok(())
}

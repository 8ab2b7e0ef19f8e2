//! Health, version and metrics, on the clients' port and on a port of their own.

use anyhow::{Result, ensure};
use http::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    call::put,
    support::{http::Api, node::Node, peers::free_port},
};

#[tokio::test]
async fn health_version_and_metrics_are_on_the_clients_port_and_on_the_admin_port() -> Result<()> {
    let folder = TempDir::new()?;
    let admin = free_port()?;
    let flag = format!("--listen-metrics-urls=http://127.0.0.1:{admin}");
    let mut node = Node::new(folder.path(), &[&flag])?;
    let channel = node.start().await?;
    put(&channel, "key", "value").await?;
    for api in [Api::at_port(node.port()), Api::at_port(admin)] {
        ensure!(api.get("/health").await? == json!({ "health": "true", "reason": "" }), "health");
        ensure!(api.get("/livez").await? == json!("ok\n"), "livez");
        ensure!(api.get("/readyz").await? == json!("ok\n"), "readyz");
        let version = api.get("/version").await?;
        ensure!(version["etcdserver"] == "3.7.3" && version["etcdcluster"] == "3.7.3", "{version}");
        let metrics = api.get("/metrics").await?.to_string();
        for line in ["etcd_server_has_leader 1", "etcd_debugging_mvcc_current_revision 2"] {
            ensure!(metrics.contains(line), "{line} is not in {metrics}");
        }
        let missing = api.send(Method::GET, "/nothing", None).await?;
        ensure!(missing.status != StatusCode::OK, "/nothing is there");
    }
    Ok(())
}

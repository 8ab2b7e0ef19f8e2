//! gRPC's health service follows the node, and one route's trouble is not the node's.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tempfile::TempDir;
use tonic::Code;

use crate::support::{
    databases::{DatabaseServer, Kind},
    node::Node,
    peers::free_port,
};

const DATABASE: &str = "health";
const TOLD_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_health_is_as_the_default_store_and_the_nodes_end_have_it() -> Result<()> {
    let mut server = DatabaseServer::new(Kind::Postgres)?;
    server.start().await?;
    server.create_database(DATABASE).await?;
    let folder = TempDir::new()?;
    let nobody = format!("postgres://nobody@127.0.0.1:{}/none", free_port()?);
    let endpoint = format!("--endpoint={}", server.url(DATABASE));
    fs::create_dir_all(folder.path())?;
    let node = Node::new(folder.path(), &[&endpoint])?;
    let mut node = node.with_routes_to(&[("/away/", nobody)])?;
    let channel = node.start().await?;
    let mut health = HealthClient::new(channel);
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let checked = health.check(of("")).await?.into_inner();
    ensure!(
        checked.status() == ServingStatus::Serving,
        "a route away is not the node: {checked:?}"
    );
    let unknown = health.check(of("nobody")).await.err().context("there is no such service")?;
    ensure!(unknown.code() == Code::NotFound, "{unknown:?}");

    // Held to the end: who watches what there is not holds nothing up.
    let mut of_nobody = health.watch(of("nobody")).await?.into_inner();
    let said = of_nobody.message().await?.context("nothing is said")?;
    ensure!(said.status() == ServingStatus::ServiceUnknown, "{said:?}");
    let mut watch = health.watch(of("")).await?.into_inner();
    let mut next = async || -> Result<HealthCheckResponse> {
        let next = tokio::time::timeout(TOLD_WITHIN, watch.message()).await;
        next.context("nothing is said")??.context("the stream ended")
    };
    ensure!(next().await?.status() == ServingStatus::Serving, "it serves");
    server.stop().await?;
    ensure!(next().await?.status() == ServingStatus::NotServing, "its default store is away");
    server.start().await?;
    ensure!(next().await?.status() == ServingStatus::Serving, "its default store is back");
    node.signal("TERM")?;
    ensure!(next().await?.status() == ServingStatus::NotServing, "it stops");
    let (status, took) = node.ended().await?;
    ensure!(status.success() && took < Duration::from_secs(8), "{status} after {took:?}");
    Ok(())
}

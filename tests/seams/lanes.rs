//! A tree grows beyond what its nodes were given at first.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use pleach::proto::tree::{DescribeRequest, tree_client::TreeClient};
use tempfile::TempDir;

use crate::{
    call::put,
    support::{node::Node, process::eventually},
};

const SOON: Duration = Duration::from_secs(40);

/// The tenants of the region: more than fit into the 16 lanes that it gets at first.
const TENANTS: usize = 18;

fn node(folder: &Path, name: &str) -> Result<Node> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    Node::new(&folder, &[&format!("--name={name}")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_with_more_children_than_lanes_gets_more_while_it_runs() -> Result<()> {
    let folder = TempDir::new()?;
    let mut tenants = Vec::new();
    for at in 0..TENANTS {
        let mut tenant = node(folder.path(), &format!("tenant-{at}"))?;
        tenant.start().await?;
        tenants.push(tenant);
    }
    let routes: Vec<(String, String)> =
        (0..TENANTS).map(|at| (format!("/r/{at:02}/"), tenants[at].url())).collect();
    let routes: Vec<(&str, String)> =
        routes.iter().map(|(prefix, url)| (prefix.as_str(), url.clone())).collect();
    let mut region = node(folder.path(), "region")?.with_routes_to(&routes)?;
    region.start().await?;
    let mut root = node(folder.path(), "root")?.with_routes_to(&[("/r/", region.url())])?;
    let channel = root.start().await?;
    let mut revisions = Vec::new();
    for at in 0..TENANTS {
        let key = format!("/r/{at:02}/x");
        let put = async || Ok(put(&channel, &key, "x").await?);
        revisions.push(eventually("every tenant is served", SOON, put).await?);
    }
    ensure!(revisions.is_sorted(), "{revisions:?}");
    let lanes: std::collections::BTreeSet<i64> = revisions.iter().map(|it| it % 1_024).collect();
    ensure!(lanes.len() == TENANTS, "two tenants share a lane: {revisions:?}");
    // Both sides keep it.
    region.kill()?;
    let region_channel = region.start().await?;
    let described = async || {
        let described =
            TreeClient::new(region_channel.clone()).describe(DescribeRequest {}).await?;
        let described = described.into_inner();
        let count: u32 = described.lanes.iter().map(|block| block.count).sum();
        ensure!(count > 16, "{count} lanes");
        Ok(())
    };
    eventually("it has them still", SOON, described).await?;
    for at in 0..TENANTS {
        let key = format!("/r/{at:02}/x");
        eventually("every tenant is served", SOON, async || Ok(put(&channel, &key, "y").await?))
            .await?;
    }
    Ok(())
}

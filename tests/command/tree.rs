//! `tree`, and how nodes come to form one, whichever is there first.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::{
    call::{get, pleach, put, refused},
    support::{node::Node, peers::free_port, process::eventually},
};

const SOON: Duration = Duration::from_secs(20);

fn node(folder: &Path, name: &str) -> Result<Node> {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder)?;
    Node::new(&folder, &[&format!("--name={name}")])
}

/// What `tree` prints of a node, once that has `wanted` in it.
async fn printed(node: &Node, wanted: &[&str]) -> Result<String> {
    let folder = TempDir::new()?;
    let mut text = String::new();
    eventually("the tree is as it shall be", SOON, async || {
        let ended = pleach(folder.path(), &["tree", &node.url()]).await?;
        ensure!(ended.is_success, "{}", ended.stderr);
        text = ended.stdout;
        let missing = wanted.iter().find(|part| !text.contains(**part));
        ensure!(missing.is_none(), "no {missing:?} in\n{text}");
        Ok(())
    })
    .await?;
    Ok(text)
}

#[tokio::test]
async fn a_tree_that_starts_from_below_or_from_above_is_the_same() -> Result<()> {
    for is_from_below in [true, false] {
        let folder = TempDir::new()?;
        let mut tenant = node(folder.path(), "tenant")?;
        let mut region = node(folder.path(), "region")?;
        region = region.with_routes_to(&[("/r/t/", tenant.url())])?;
        let mut root = node(folder.path(), "root")?;
        root = root.with_routes_to(&[("/r/", region.url())])?;
        let mut all = [&mut tenant, &mut region, &mut root];
        if !is_from_below {
            all.reverse();
        }
        for node in all {
            node.start().await?;
        }
        let wanted =
            ["`root`", "root, lane 0", "`region`", "lanes 1 to 16", "`tenant`", ": lane 2,"];
        printed(&root, &wanted).await?;
        let channel = root.channel()?;
        let revisions = [
            put(&channel, "/r/t/a", "1").await?,
            put(&channel, "/r/a", "2").await?,
            put(&channel, "/a", "3").await?,
        ];
        ensure!(revisions.is_sorted(), "{revisions:?}");
        // 1,024 lanes: whose number it is, it says itself.
        ensure!(revisions.map(|revision| revision % 1024) == [2, 1, 0], "{revisions:?}");
        ensure!(
            get(&tenant.channel()?, "/r/t/a").await?.is_some(),
            "the tenant has no key of its own"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_child_that_is_away_is_printed_with_the_reason() -> Result<()> {
    let folder = TempDir::new()?;
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    let mut root = node(folder.path(), "root")?.with_routes_to(&[("/b/", nobody)])?;
    root.start().await?;
    let text = printed(&root, &["store-0 (away: ", "Connection refused"]).await?;
    ensure!(text.contains("└─ main"), "{text}");
    let ended = pleach(folder.path(), &["tree", "http://127.0.0.1:1"]).await?;
    ensure!(!ended.is_success && ended.stderr.contains("127.0.0.1:1"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_is_no_default_store() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child")?;
    child.start().await?;
    let error = refused(folder.path(), &[&format!("--endpoint={}", child.url())]).await?;
    ensure!(error.contains("it is another node"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_child_has_one_address_and_asks_for_no_password() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child")?;
    child.start().await?;
    let (url, nobody) = (child.url(), free_port()?);
    let address = url.trim_start_matches("http://");
    let cases = [
        (format!("{url},http://127.0.0.1:{nobody}"), "name one address"),
        (format!("http://someone:secret@{address}"), "take `user:password@` out"),
    ];
    for (endpoint, remedy) in cases {
        let mut root = node(folder.path(), "root")?.with_routes_to(&[("/b/", endpoint)])?;
        let channel = root.start().await?;
        let said = put(&channel, "/b/x", "x").await.expect_err("it is no such child");
        let said = said.message();
        ensure!(said.contains("store `store-0`") && said.contains(remedy), "{said}");
        ensure!(!root.log().contains("secret"), "{}", root.log());
    }
    Ok(())
}

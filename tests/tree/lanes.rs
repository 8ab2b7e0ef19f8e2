//! Lanes: no number is given out twice, whoever joins a tree or leaves it.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{
    ONE_AT_A_TIME,
    call::{get, put},
    family::{ATTACHED_WITHIN, node, whole},
    route::{Route, topology},
    support::process::eventually,
};

const WRITES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_children_that_hold_the_same_lanes_are_refused_with_both_names() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut children = Vec::new();
    // Each was the first child of a tree of its own, and so they have the same lanes.
    for name in ["first", "second"] {
        let mut child = node(folder.path(), &format!("{name}-child"), &[])?;
        child.start().await?;
        let mut parent = node(folder.path(), &format!("{name}-parent"), &[])?;
        parent.set_topology(&topology(&[Route::new(name, "/x", child.url())]))?;
        whole(&parent.start().await?).await?;
        parent.kill()?;
        // Its operator gives it to another one.
        child.kill()?;
        child.add_flag("--parent=root");
        child.start().await?;
        children.push(child);
    }
    let mut root = node(folder.path(), "root", &[])?;
    let routes = [
        Route::new("first", "/first", children[0].url()),
        Route::new("second", "/second", children[1].url()),
    ];
    root.set_topology(&topology(&routes))?;
    root.spawn()?;
    let channel = root.channel()?;
    let is_named = |text: &str| {
        ["both hold lane", "`first-child`", "`second-child`"].iter().all(|it| text.contains(it))
    };
    eventually("the second of the two is refused", ATTACHED_WITHIN, async || {
        let answers = [get(&channel, "/first/k").await, get(&channel, "/second/k").await];
        let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
        let are_named = refused.iter().all(|status| is_named(status.message()));
        ensure!(refused.len() == 1 && are_named, "{refused:?}");
        Ok(())
    })
    .await?;
    ensure!(root.log().lines().any(is_named), "it is not logged: {}", root.log_tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_with_too_few_lanes_says_who_needs_how_many() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut tenants = Vec::new();
    for name in ["tenant-1", "tenant-2"] {
        let mut tenant = node(folder.path(), name, &[])?;
        tenant.start().await?;
        tenants.push(tenant);
    }
    let mut region = node(folder.path(), "region", &[])?;
    let routes =
        [Route::new("one", "/x/1", tenants[0].url()), Route::new("two", "/x/2", tenants[1].url())];
    region.set_topology(&topology(&routes))?;
    let mut root = node(folder.path(), "root", &[])?;
    // One for the region itself, and one to hand on.
    let route = Route::new("region", "/x", region.url()).with_lanes(2);
    root.set_topology(&topology(&[route]))?;
    // The region has a parent before it has children.
    tenants.iter_mut().try_for_each(crate::support::node::Node::kill)?;
    region.start().await?;
    let channel = root.start().await?;
    eventually("the region is attached", ATTACHED_WITHIN, async || {
        Ok(put(&channel, "/x/own", "1").await?)
    })
    .await?;
    tenants.iter_mut().try_for_each(crate::support::node::Node::spawn)?;
    eventually("one of the two is refused", ATTACHED_WITHIN, async || {
        let answers = [get(&channel, "/x/1/k").await, get(&channel, "/x/2/k").await];
        let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
        let says = |text: &str| text.contains("`region`") && text.contains("has no 1 lanes left");
        let are_said = refused.iter().all(|status| says(status.message()));
        ensure!(refused.len() == 1 && are_said, "{refused:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_joins_a_tree_and_leaves_it_and_no_number_comes_again() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut lone = node(folder.path(), "lone", &[])?;
    let mut root = node(folder.path(), "root", &[])?;
    let at_lone = lone.start().await?;
    let mut at_root = root.start().await?;
    let mut numbers = Vec::new();
    for count in 0..WRITES {
        numbers.push(put(&at_lone, "/x/k", &count.to_string()).await?);
        // It counts on alone, too, and begins at 1 as everyone does: only what comes later is apart.
        put(&at_root, "/own/k", &count.to_string()).await?;
    }
    let expected: Vec<i64> = (2..).take(WRITES).collect();
    ensure!(numbers == expected, "a lone node counts {numbers:?}");

    root.kill()?;
    root.set_topology(&topology(&[Route::new("lone", "/x", lone.url())]))?;
    at_root = root.start().await?;
    whole(&at_root).await.context("it has joined")?;
    for count in 0..WRITES {
        numbers.push(put(&at_root, "/x/k", &count.to_string()).await?);
        numbers.push(put(&at_lone, "/x/own", &count.to_string()).await?);
        numbers.push(put(&at_root, "/own/k", &count.to_string()).await?);
    }

    root.kill()?;
    for count in 0..WRITES {
        numbers.push(put(&at_lone, "/x/k", &count.to_string()).await?);
    }
    lone.kill()?;
    let at_lone = lone.start().await?;
    for count in 0..WRITES {
        numbers.push(put(&at_lone, "/x/k", &count.to_string()).await?);
    }
    // The root that it left goes on alone as well.
    root.set_topology(&topology(&[]))?;
    at_root = root.start().await?;
    for count in 0..WRITES {
        numbers.push(put(&at_root, "/own/k", &count.to_string()).await?);
    }
    let distinct: HashSet<i64> = numbers.iter().copied().collect();
    ensure!(distinct.len() == numbers.len(), "a number came again: {numbers:?}");
    Ok(())
}

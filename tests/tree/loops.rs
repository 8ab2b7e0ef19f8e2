//! Routes that lead back to where they began: refused, and said how they go round.

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    ONE_AT_A_TIME,
    call::{get, put},
    family::{ATTACHED_WITHIN, node},
    route::{Route, topology},
    support::{node::Node, process::eventually},
};

/// Nodes whose names are `node-0`, `node-1` and so on. Nothing runs yet.
fn nodes(folder: &TempDir, count: usize) -> Result<Vec<Node>> {
    (0..count).map(|at| node(folder.path(), &format!("node-{at}"), &[])).collect()
}

/// Sends what is below `/next` from each node to the one behind it, and from the last to the first.
fn close(nodes: &mut [Node]) -> Result<()> {
    let urls: Vec<String> = nodes.iter().map(Node::url).collect();
    let count = nodes.len();
    for (at, node) in nodes.iter_mut().enumerate() {
        let next = (at + 1) % count;
        let route = Route::new(&format!("to-{next}"), "/next", urls[next].clone());
        node.set_topology(&topology(&[route]))?;
    }
    Ok(())
}

/// Keys of the route are refused with the loop, in which all nodes stand, and it is logged.
async fn ensure_printed(channel: &Channel, node: &Node, count: usize) -> Result<()> {
    let is_loop = |text: &str| {
        let names = (0..count).all(|at| text.contains(&format!("`node-{at}`")));
        names && text.contains("the routes form a loop: ") && text.contains(" -> ")
    };
    eventually("a loop is refused", ATTACHED_WITHIN, async || {
        let answer = get(channel, "/next/k").await;
        let status = answer.err().context("a key that goes round was answered")?;
        ensure!(is_loop(status.message()), "{status:?}");
        Ok(())
    })
    .await?;
    let is_logged = node.log().lines().any(is_loop);
    ensure!(is_logged, "the loop is not logged: {}", node.log_tail());
    // All else is served.
    put(channel, "/own/k", "served").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_route_to_each_other_refuse_the_loop_and_serve_what_is_theirs() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    for count in [2, 3] {
        let folder = TempDir::new()?;
        let mut nodes = nodes(&folder, count)?;
        close(&mut nodes)?;
        nodes.iter_mut().try_for_each(Node::spawn)?;
        for node in &nodes {
            let printed = ensure_printed(&node.channel()?, node, count).await;
            printed.with_context(|| format!("{count} nodes, at {}", node.url()))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_routes_to_itself_refuses_the_loop() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut nodes = nodes(&folder, 1)?;
    close(&mut nodes)?;
    nodes[0].spawn()?;
    ensure_printed(&nodes[0].channel()?, &nodes[0], 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_arises_while_nodes_run_is_refused_and_forgotten_when_it_is_gone() -> Result<()>
{
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = TempDir::new()?;
    let mut nodes = nodes(&folder, 2)?;
    let (mut second, mut first) = (nodes.pop().context("two")?, nodes.pop().context("two")?);
    second.start().await?;
    let down = Route::new("to-1", "/next", second.url());
    first.set_topology(&topology(&[down]))?;
    let channel = first.start().await?;
    eventually("the child is attached", ATTACHED_WITHIN, async || {
        Ok(put(&channel, "/next/k", "before").await?)
    })
    .await?;

    // The child gets a route back to its parent.
    second.kill()?;
    second.set_topology(&topology(&[Route::new("to-0", "/next", first.url())]))?;
    second.spawn()?;
    ensure_printed(&second.channel()?, &second, 2).await.context("the child")?;
    ensure_printed(&channel, &first, 2).await.context("its parent")?;

    second.kill()?;
    second.set_topology(&topology(&[]))?;
    second.start().await?;
    eventually("the child is attached again", ATTACHED_WITHIN, async || {
        let value = get(&channel, "/next/k").await?;
        ensure!(value.as_deref() == Some("before"), "{value:?}");
        Ok(())
    })
    .await
}

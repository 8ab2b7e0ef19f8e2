//! A parent that is started again while a child is out of reach.

use anyhow::{Context as _, Result, ensure};

use crate::{
    ONE_AT_A_TIME,
    call::{ensure_away, get, list, put},
    cut_off::names,
    family::Family,
    support::proxy::Mode,
    watch::Watch,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_starts_without_a_child_goes_on_above_all_that_was_shown() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut family = Family::start().await?;
    let written = family.put_everywhere("before").await?;
    let mut newest = written.iter().copied().max().unwrap_or(0);
    // The newest number that anyone was shown is the child's.
    for _ in 0..20 {
        newest = put(&family.at_root, "/far/k", "newest").await?;
    }

    family.link.set(Mode::Refuse).await?;
    family.link.cut().await;
    family.root.kill()?;
    let root = family.root.start().await?;
    ensure_away(get(&root, "/far/k").await, "far")?;
    ensure_away(list(&root).await, "far")?;
    // Who watches from now on is told what there is, once the child is waited for no more.
    let mut anew = Watch::all(&root, 0).await?;
    let own = put(&root, "/own/k", "after").await?;
    ensure!(own > newest, "{own} was given out after {newest}");
    anew.reach(own).await.context("a watch without the child")?;
    ensure!(anew.keys() == ["/own/k"], "{:?}", anew.keys());

    // The child was alone meanwhile, and wrote with a number that is below.
    let alone = put(&family.at_far, "/far/alone", "1").await?;
    family.link.set(Mode::Pass).await?;
    crate::family::whole(&root).await?;
    let (revision, kvs) = list(&root).await?;
    ensure!(names(&kvs).contains(&"/far/alone".to_owned()), "{:?}", names(&kvs));
    ensure!(revision >= own.max(alone), "a list as of {revision}");
    let back = put(&root, "/far/k", "back").await?;
    ensure!(back > own.max(alone).max(revision), "{back} was given out after {revision}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_remembered_over_a_restart() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut family = Family::start().await?;
    let written = family.put_everywhere("before").await?;
    let last = written.iter().copied().max().unwrap_or(0);
    let mut spanning = Watch::all(&family.at_root, last + 1).await?;
    family.cut_off().await?;
    let alone = put(&family.at_far, "/far/alone", "1").await?;
    // The child allocates above what it had closed ahead, and so does the other.
    while put(&family.at_root, "/near/k", "above").await? <= alone {}
    let own = put(&family.at_root, "/own/k", "above").await?;
    spanning.reach(own).await?;
    let resumed_from = spanning.told + 1;

    // Neither the node nor the client is there when the child is back.
    drop(spanning);
    family.root.kill()?;
    family.link.set(Mode::Pass).await?;
    let root = family.root.start().await?;
    crate::family::whole(&root).await?;
    let mut resumed = Watch::all(&root, resumed_from).await?;
    resumed.ended().await.context("a watcher that lacks a change")?;
    let (listed, _) = list(&root).await?;
    let mut afresh = Watch::all(&root, listed + 1).await?;
    let end = put(&root, "/near/k", "end").await?;
    afresh.reach(end).await.context("a watcher that listed afresh")?;
    ensure!(afresh.keys() == ["/near/k"], "{:?}", afresh.keys());
    Ok(())
}

//! How a watch begins: from now on, or from where its client was before.

use anyhow::{Context as _, Result, ensure};

use crate::{ONE_AT_A_TIME, call::put, family::Family, support::proxy::Mode, watch::Watch};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_now_on_has_what_is_then_written_to_the_child_itself() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let family = Family::start().await?;
    family.put_everywhere("before").await?;
    // The root's clock is far ahead of the child's, which hears of it with the next request.
    for _ in 0..20 {
        put(&family.at_root, "/own/k", "ahead").await?;
    }
    let mut of_far = Watch::open(&family.at_root, "/far/", "/far0", 0).await?;
    put(&family.at_far, "/far/alone", "1").await?;
    let last = put(&family.at_root, "/far/k", "last").await?;
    of_far.reach(last).await?;
    ensure!(of_far.keys() == ["/far/alone", "/far/k"], "{:?}", of_far.keys());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_resumes_at_a_root_that_started_without_a_child_goes_on() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut family = Family::start().await?;
    let written = family.put_everywhere("before").await?;
    let last = written.iter().copied().max().unwrap_or(0);
    family.link.set(Mode::Refuse).await?;
    family.link.cut().await;
    family.root.kill()?;
    let root = family.root.start().await?;
    let mut resumed = Watch::all(&root, last + 1).await?;
    let own = put(&root, "/own/k", "after").await?;
    resumed.reach(own).await.context("a watch that resumes without the child")?;
    ensure!(resumed.keys() == ["/own/k"], "{:?}", resumed.keys());
    Ok(())
}

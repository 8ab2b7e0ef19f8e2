//! The API server's compaction: a counter under `compact_rev_key` that its replicas race for.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use etcd_client::{Client, GetOptions};
use http::{Method, StatusCode};

use crate::{
    resource::revision,
    support::{controlplane::ControlPlane, process::eventually},
};

/// Longer than three of the API server's rounds.
const COMPACTION_DEADLINE: Duration = Duration::from_secs(60);
const COMPACTION_KEY: &str = "compact_rev_key";

/// A place in a list to come back to when its revision has been compacted.
pub(crate) struct Bookmark {
    path: String,
    revision: u64,
}

/// Reads the first page of a list, and keeps the way to the second.
pub(crate) async fn remember_a_page(plane: &ControlPlane) -> Result<Bookmark> {
    let page = plane.api.get("/api/v1/namespaces?limit=1").await?;
    let token = page["metadata"]["continue"].as_str().context("there is a second page")?;
    let path = format!("/api/v1/namespaces?limit=1&continue={token}");
    plane.api.get(&path).await?;
    Ok(Bookmark { path, revision: revision(&page)? })
}

/// Waits until the API server has compacted twice, and past an old page. The store then reads at
/// the compacted revision but not below, and the page has expired for Kubernetes.
pub(crate) async fn advances(plane: &ControlPlane, old_page: &Bookmark) -> Result<()> {
    let mut client = Box::pin(Client::connect([plane.server.endpoint()], None)).await?;
    let compacted = eventually("two compactions", COMPACTION_DEADLINE, async || {
        let answer = client.get(COMPACTION_KEY, None).await?;
        let record = answer.kvs().first().context("the API server has not compacted yet")?;
        let compacted: i64 = record.value_str()?.parse()?;
        // The first round only writes a zero; each one after that compacts.
        let rounds = record.version() - 1;
        ensure!(rounds >= 2, "{rounds} rounds");
        ensure!(compacted > i64::try_from(old_page.revision)?, "compacted up to {compacted}");
        Ok(compacted)
    })
    .await?;

    let below = eventually("the old revision is gone", COMPACTION_DEADLINE, async || {
        let read = GetOptions::new().with_revision(compacted - 1);
        match client.get(COMPACTION_KEY, Some(read)).await {
            Ok(_) => bail!("revision {} can still be read", compacted - 1),
            Err(error) => Ok(error.to_string()),
        }
    })
    .await?;
    let wanted = "etcdserver: mvcc: required revision has been compacted";
    ensure!(below.contains(wanted), "the reason is {below:?}");

    eventually("the old page has expired", COMPACTION_DEADLINE, async || {
        let answer = plane.api.send(Method::GET, &old_page.path, None).await?;
        ensure!(answer.status == StatusCode::GONE, "{}: {}", answer.status, answer.body);
        ensure!(answer.body["reason"] == "Expired", "{}", answer.body);
        Ok(())
    })
    .await
}

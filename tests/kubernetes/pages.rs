//! Lists in pages, with what every page promises checked on the way.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::{
    resource::{full_name, items, revision},
    support::http::Api,
};

/// What a list showed, page by page.
pub(crate) struct Pages {
    pub(crate) names: BTreeSet<String>,
    pub(crate) revision: u64,
}

/// Lists `path` in pages of `limit`. All pages must be of one revision, each but the last must be
/// full, no object may come twice, and what is said to remain must be what then comes.
pub(crate) async fn list_in_pages(api: Api, path: &str, limit: usize) -> Result<Pages> {
    let mut connection = api.connect().await?;
    let mut names = BTreeSet::new();
    let mut remaining_after = Vec::new();
    let mut revisions = BTreeSet::new();
    let mut token = String::new();
    loop {
        let page_path = format!("{path}?limit={limit}&continue={token}");
        let page = connection.send(http::Method::GET, &page_path, None).await?;
        let page = page.success(&page_path)?;
        for item in items(&page)? {
            let name = full_name(item)?;
            ensure!(names.insert(name.clone()), "{path} lists {name} twice");
        }
        revisions.insert(revision(&page)?);
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
        ensure!(items(&page)?.len() == limit, "a page in the middle of {path} is not full");
        let remaining = page["metadata"]["remainingItemCount"].as_u64();
        remaining_after.push((names.len(), remaining.context("a page says how many remain")?));
    }
    let revision = revisions.pop_first().context("a list has a revision")?;
    ensure!(revisions.is_empty(), "pages of {path} are of {revision} and of {revisions:?}");
    let count = names.len();
    for (seen, remaining) in remaining_after {
        ensure!(
            seen as u64 + remaining == count as u64,
            "{path}: {remaining} of {count} remain after {seen}"
        );
    }
    Ok(Pages { names, revision })
}

/// Lists `path` at once. The query goes behind the path as it is.
pub(crate) async fn list_at_once(api: Api, path: &str, query: &str) -> Result<BTreeSet<String>> {
    let list = api.get(&format!("{path}{query}")).await?;
    let names: BTreeSet<_> = items(&list)?.iter().map(full_name).collect::<Result<_>>()?;
    ensure!(names.len() == items(&list)?.len(), "{path}{query} lists an object twice");
    Ok(names)
}

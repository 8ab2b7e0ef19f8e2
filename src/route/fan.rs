//! Reads that span stores: the same read in each as of one revision, merged by key.

use futures::future::try_join_all;

use super::Table;
use crate::{
    model::{KeyRange, KeyValue, Revision, error::Result, key::successor},
    store::{Page, Query},
};

/// One page over several stores.
pub(super) async fn read(table: &Table, stores: &[usize], read: &Query) -> Result<Page> {
    let pages = stores.iter().map(|at| async move {
        // From the first key that the store may own to the last: of others' keys it need not send more.
        let parts = table.parts(*at, &read.range);
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            return Ok(Page { revision: read.revision, ..Page::default() });
        };
        let range = KeyRange { start: first.start.clone(), end: last.end.clone() };
        let is_pure = table.is_pure(*at, &range, read.revision);
        let mut page = table.stores[*at].read(&Query { range, ..read.clone() }).await?;
        if !is_pure {
            page.kvs.retain(|kv| table.owner(&kv.key) == *at);
        }
        Ok(page)
    });
    Ok(merge(try_join_all(pages).await?, read.rows_max(), read.revision))
}

/// The keys of a range over several stores.
pub(super) async fn count(table: &Table, stores: &[usize], query: &Query) -> Result<u64> {
    let counts = stores.iter().flat_map(|at| {
        table.parts(*at, &query.range).into_iter().map(move |part| async move {
            let is_pure = table.is_pure(*at, &part, query.revision);
            let query = Query { range: part, ..query.clone() };
            match is_pure {
                true => table.stores[*at].count(&query).await,
                false => count_owned(table, *at, query).await,
            }
        })
    });
    Ok(try_join_all(counts).await?.into_iter().sum())
}

/// Counts key by key, where a store holds some that route elsewhere.
async fn count_owned(table: &Table, at: usize, query: Query) -> Result<u64> {
    let mut read = Query { keys_only: true, limit: 0, ..query };
    let mut count = 0;
    loop {
        let page = table.stores[at].read(&read).await?;
        count += page.kvs.iter().filter(|kv| table.owner(&kv.key) == at).count() as u64;
        let Some(next) = page.next else { return Ok(count) };
        read.range.start = next;
    }
}

/// Merges pages of disjoint keys. What lies behind the end of a page that goes on is left for later,
/// since that store may have keys between.
fn merge(pages: Vec<Page>, rows_max: usize, revision: Revision) -> Page {
    let mut next = pages.iter().filter_map(|page| page.next.clone()).min();
    let mut kvs: Vec<KeyValue> = pages.into_iter().flat_map(|page| page.kvs).collect();
    if let Some(next) = &next {
        kvs.retain(|kv| kv.key < *next);
    }
    // Runs that are ordered already: the merge sort of the library takes them as they are.
    kvs.sort_by(|a, b| a.key.cmp(&b.key));
    if kvs.len() > rows_max {
        kvs.truncate(rows_max);
        next = kvs.last().map(|kv| successor(&kv.key));
    }
    Page { kvs, next, revision }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn page(keys: &[u8], limit: usize) -> Page {
        let kv = |key: &u8| KeyValue { key: Bytes::copy_from_slice(&[*key]), ..Default::default() };
        let kvs: Vec<_> = keys.iter().take(limit).map(kv).collect();
        let next = kvs.last().filter(|_| keys.len() > limit).map(|kv| successor(&kv.key));
        Page { kvs, next, revision: 7 }
    }

    proptest! {
        #[test]
        fn merged_pages_are_the_first_keys_of_all(
            owners in prop::collection::btree_map(any::<u8>(), 0usize..3, 0..60),
            limit in 1usize..20,
        ) {
            let of = |store| -> Vec<u8> {
                owners.iter().filter(|(_, at)| **at == store).map(|(key, _)| *key).collect()
            };
            let pages = (0..3).map(|store| page(&of(store), limit)).collect();
            let merged = merge(pages, limit, 7);
            let all: Vec<u8> = owners.keys().copied().collect();
            let got: Vec<u8> = merged.kvs.iter().map(|kv| kv.key[0]).collect();
            prop_assert!(all.starts_with(&got));
            prop_assert!(got.len() == limit.min(all.len()));
            prop_assert_eq!(merged.next.is_some(), all.len() > got.len());
        }
    }
}

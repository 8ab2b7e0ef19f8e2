//! Which kinds of keys there are, and how many of each: what operators look for where a store is large.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::Node;
use crate::{
    model::{
        Key, KeyRange, Revision,
        error::Result,
        key::{kind_prefix, successor},
    },
    store::{Coverage, Query, Store as _},
};

/// More are not told apart.
const KINDS_MAX: usize = 1_000;

/// So many keys in a row that are of no kind are passed over before what is behind `/registry/` is looked at.
const STRAY_KEYS_MAX: usize = 1_000;

/// The keys of a kind whose sizes are taken for those of all.
const SAMPLE_KEYS: usize = 20;

/// Where API servers keep their objects, if nobody tells them otherwise.
const REGISTRY: Key = Bytes::from_static(b"/registry/");

/// The keys of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// How many there are.
    pub keys: u64,
    /// About how many bytes keys and values take, by some of them.
    pub bytes_about: u64,
}

/// The keys of a node by their kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// By the prefix of their keys.
    pub kinds: BTreeMap<Key, Kind>,
    /// The keys of no kind, and of those that were not come to.
    pub others: u64,
    /// Whether there was no time, or no room, for all kinds.
    pub is_cut_short: bool,
}

impl Node {
    /// Counts the keys of each kind as of now, as far as there is time. Costs a read of a key and of some values and a
    /// count for each kind.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn count_kinds(&self, deadline: Instant) -> Result<Kinds> {
        let all = KeyRange::all();
        let revision = self.root.read_index(&all, Coverage::All).await?;
        let mut found = Kinds::default();
        let counted = timeout_at(deadline, self.count_each(revision, &mut found)).await;
        found.is_cut_short |= counted.is_err();
        counted.unwrap_or(Ok(()))?;
        let known: u64 = found.kinds.values().map(|kind| kind.keys).sum();
        found.others = self.root.count(&Query::new(all, revision)).await?.saturating_sub(known);
        Ok(found)
    }

    async fn count_each(&self, revision: Revision, found: &mut Kinds) -> Result<()> {
        let (mut rest, mut strays) = (KeyRange::all(), 0);
        loop {
            // Those of no kind are passed over in pages; of a kind the first one is enough.
            let limit = if strays == 0 { 1 } else { STRAY_KEYS_MAX };
            let query = Query { keys_only: true, limit, ..Query::new(rest.clone(), revision) };
            let page = self.root.read(&query).await?;
            let prefix_of = |key: &Key| kind_prefix(&KeyRange::single(key.clone()));
            let first = page.kvs.iter().find_map(|kv| prefix_of(&kv.key));
            let Some(prefix) = first else {
                strays += page.kvs.len();
                match (page.kvs.last(), page.next) {
                    // Where a page ends for its size, there may be more behind an empty one.
                    (None, None) => return Ok(()),
                    (_, Some(next)) => rest.start = next,
                    (Some(last), None) => rest.start = successor(&last.key),
                }
                if strays > STRAY_KEYS_MAX {
                    found.is_cut_short = true;
                    if rest.start >= REGISTRY {
                        return Ok(());
                    }
                    (rest.start, strays) = (REGISTRY, 0);
                }
                continue;
            };
            if found.kinds.len() == KINDS_MAX {
                found.is_cut_short = true;
                return Ok(());
            }
            let kind = KeyRange::prefix(prefix.clone());
            (rest.start, strays) = (kind.end.clone().unwrap_or_default(), 0);
            found.kinds.insert(prefix, self.count_kind(kind, revision).await?);
        }
    }

    async fn count_kind(&self, kind: KeyRange, revision: Revision) -> Result<Kind> {
        let query = Query::new(kind, revision);
        let keys = self.root.count(&query).await?;
        let some = self.root.read(&Query { limit: SAMPLE_KEYS, ..query }).await?.kvs;
        let bytes: usize = some.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let each = bytes as f64 / some.len().max(1) as f64;
        Ok(Kind { keys, bytes_about: (each * keys as f64) as u64 })
    }
}

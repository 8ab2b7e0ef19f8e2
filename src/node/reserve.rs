//! Revisions reserved ahead, so that a restart never goes back.
//!
//! Where every store is there, the greatest revision in them is where a node goes on. Where one is not
//! (its route was taken out of the topology, or its server can't be reached), nobody knows what it holds:
//! then the node goes on at the limit that it had reserved, which is above all that it ever allocated.
//! Where it went on is kept too, since it may have shown that revision and crashed before it wrote
//! anything.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::{
    clock::SharedClock,
    model::{Revision, StoreError, error::Result},
    store::Store,
};

/// How long to wait before a reservation that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const RECORD: &str = "reserved";

/// What is kept: where this life began, up to where it may go, and the stores that were there.
struct Reserved {
    start: Revision,
    limit: Revision,
    stores: String,
}

// === impl Reserved ===

impl Reserved {
    async fn recall(root: &dyn Store) -> Result<Option<Self>> {
        let record = root.recall(RECORD).await?.pop();
        Ok(record.and_then(|(_, bytes)| Self::decode(&bytes)))
    }

    async fn remember(&self, root: &dyn Store) -> Result<()> {
        let mut bytes = BytesMut::with_capacity(16 + self.stores.len());
        bytes.put_i64(self.start);
        bytes.put_i64(self.limit);
        bytes.put_slice(self.stores.as_bytes());
        root.remember(RECORD, Some(bytes.freeze())).await
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        let (start, rest) = bytes.split_first_chunk()?;
        let (limit, stores) = rest.split_first_chunk()?;
        Some(Self {
            start: Revision::from_be_bytes(*start),
            limit: Revision::from_be_bytes(*limit),
            stores: String::from_utf8(stores.to_vec()).ok()?,
        })
    }

    /// The stores that were there and are not now.
    fn missing<'r>(&'r self, now: &str) -> Vec<&'r str> {
        let is_here = |name: &str| now.split('+').any(|other| other == name);
        self.stores.split('+').filter(|name| !is_here(name)).collect()
    }
}

/// Moves the clock to where this life begins, and reserves what it may allocate. The stores of `root`
/// that are `late` could not be asked what they hold.
pub(super) async fn begin(root: &dyn Store, clock: &SharedClock, late: &[Arc<str>]) -> Result<()> {
    let stores = root.name().to_string();
    if let Some(before) = Reserved::recall(root).await? {
        let gone = before.missing(&stores);
        let is_whole = gone.is_empty() && late.is_empty();
        // In a tree others count on what this node promised, and it saw what they allocated.
        let is_all_known = is_whole && !clock.lane().is_shared();
        let start = if is_all_known { before.start } else { before.limit };
        if !is_whole {
            tracing::warn!(
                ?gone,
                ?late,
                revision = start,
                "stores are missing; going on above them"
            );
        }
        observe(root, clock, start)?;
    }
    let start = clock.begin();
    loop {
        let limit = clock.now() + clock.reserve_size();
        let reserved = Reserved { start, limit, stores: stores.clone() };
        reserved.remember(root).await?;
        // Bounded behind: to remember this may itself take a number, where others write to the store. And
        // what children say meanwhile may lie above, and must not be forgotten either.
        if clock.bound(limit) {
            return Ok(());
        }
    }
}

/// Reserves more whenever little is left, for ever.
pub(super) async fn keep(root: &dyn Store, clock: &SharedClock, start: Revision) {
    let stores = root.name().to_string();
    loop {
        clock.runs_low().await;
        loop {
            let limit = clock.to_reserve();
            let reserved = Reserved { start, limit, stores: stores.clone() };
            match reserved.remember(root).await {
                Ok(()) => {
                    clock.reserve(limit);
                    break;
                }
                Err(error) => tracing::warn!(%error, "no revisions could be reserved"),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

fn observe(root: &dyn Store, clock: &SharedClock, revision: Revision) -> Result<()> {
    clock.observe(revision).map_err(|full| StoreError::Unavailable {
        store: root.name().clone(),
        reason: full.to_string().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, LOW_WATER, Lane, REVISION_MAX},
        store::memory::Memory,
    };

    /// What a lone node reserves at once.
    const RESERVED_AHEAD: Revision = 2 * LOW_WATER;

    async fn start_of(root: &dyn Store, greatest: Revision) -> Revision {
        let clock = SharedClock::new(Clock::new(greatest, REVISION_MAX - 1, Lane::ALL));
        begin(root, &clock, &[]).await.expect("a memory store answers");
        clock.now()
    }

    #[tokio::test]
    async fn a_node_that_misses_a_store_goes_on_above_all_that_it_allocated() {
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let main = Memory::new("main", clock.clone());
        let all = crate::route::Router::new(
            vec![crate::route::Route {
                rule: crate::route::rule::Rule::prefix("pods").expect("it is a prefix"),
                store: Memory::new("pods", clock),
            }],
            main.clone(),
        );
        assert_eq!(start_of(&*all, 7).await, 7);
        assert_eq!(start_of(&*all, 9).await, 9);
        // The route is gone: the default store alone reaches only 3.
        assert_eq!(start_of(&*main, 3).await, 9 + RESERVED_AHEAD);
        // And where that was shown, a later life does not go back behind it.
        assert_eq!(start_of(&*all, 9).await, 9 + RESERVED_AHEAD);
    }

    #[tokio::test]
    async fn a_node_goes_on_above_a_store_that_is_late_too() {
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let root = Memory::new("main", clock.clone());
        assert_eq!(start_of(&*root, 7).await, 7);
        begin(&*root, &clock, &["pods".into()]).await.expect("a memory store answers");
        assert_eq!(clock.begun(), Some(7 + RESERVED_AHEAD));
    }
}

//! Revisions reserved ahead, so that a restart never goes back.
//!
//! Where every store is there, the greatest revision in them is where a node goes on. Where one is not
//! (its route was taken out of the topology, or its server can't be reached), nobody knows what it holds:
//! then the node goes on at the limit that it had reserved, which is above all that it ever allocated.
//! Where it went on is kept too, since it may have shown that revision and crashed before it wrote
//! anything.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::SharedClock,
    model::{Revision, StoreError, error::Result},
    proto::records::Reservation,
    store::records::{Changes, Records},
};

/// How long to wait before a reservation that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

async fn keep_record(
    records: &Records,
    start: Revision,
    limit: Revision,
    stores: &[String],
) -> Result<()> {
    let stores = stores.to_vec();
    let reservation = Reservation { start, limit, stores, ended: 0 };
    records.write(Changes::default().put(&reservation)).await
}

/// The names of the stores in the name of a router.
fn names(router: &str) -> Vec<String> {
    router.split('+').map(str::to_owned).collect()
}

/// Moves the clock to where this life begins, and reserves what it may allocate. The stores of the router
/// `name` that are `late` could not be asked what they hold.
pub(super) async fn begin(
    records: &Records,
    name: &str,
    clock: &SharedClock,
    late: &[Arc<str>],
) -> Result<()> {
    let stores = names(name);
    if let Some(before) = records.get::<Reservation>().await? {
        let gone: Vec<_> = before.stores.iter().filter(|it| !stores.contains(it)).collect();
        let is_whole = gone.is_empty() && late.is_empty();
        // In a tree others count on what this node promised, and it saw what they allocated.
        let is_all_known = is_whole && !clock.lane().is_shared();
        let start = match before.ended {
            0 if is_all_known => before.start,
            0 => before.limit,
            ended => ended,
        };
        if !is_whole {
            tracing::warn!(
                ?gone,
                ?late,
                revision = start,
                "stores are missing; going on above them"
            );
        }
        observe(records, clock, start)?;
    }
    let start = clock.begin();
    loop {
        let limit = clock.now() + clock.reserve_size();
        keep_record(records, start, limit, &stores).await?;
        // Bounded behind: to keep this may itself take a number, where others write to the store. And
        // what children say meanwhile may lie above, and must not be forgotten either.
        if clock.bound(limit) {
            return Ok(());
        }
    }
}

/// Reserves more whenever little is left, for ever.
pub(super) async fn keep(records: &Records, name: &str, clock: &SharedClock, start: Revision) {
    let stores = names(name);
    loop {
        clock.runs_low().await;
        loop {
            let limit = clock.to_reserve();
            match keep_record(records, start, limit, &stores).await {
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

/// Keeps where the clock stands, from where the next life goes on: nothing is allocated after this.
pub(super) async fn end(records: &Records, name: &str, clock: &SharedClock) -> Result<()> {
    loop {
        let ended = clock.now();
        if !clock.bound(ended) {
            continue;
        }
        let stores = names(name);
        let reservation = Reservation { start: ended, limit: ended, stores, ended };
        return records.write(Changes::default().put(&reservation)).await;
    }
}

fn observe(records: &Records, clock: &SharedClock, revision: Revision) -> Result<()> {
    clock.observe(revision).map_err(|full| StoreError::Unavailable {
        store: records.store().name().clone(),
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

    async fn records() -> Records {
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        Records::open(Memory::new("main", clock)).await.expect("memory answers")
    }

    async fn start_of(records: &Records, stores: &str, greatest: Revision) -> Revision {
        let clock = SharedClock::new(Clock::new(greatest, REVISION_MAX - 1, Lane::ALL));
        begin(records, stores, &clock, &[]).await.expect("memory answers");
        clock.now()
    }

    #[tokio::test]
    async fn a_node_that_misses_a_store_goes_on_above_all_that_it_allocated() {
        let records = records().await;
        assert_eq!(start_of(&records, "pods+main", 7).await, 7);
        assert_eq!(start_of(&records, "pods+main", 9).await, 9);
        // The route is gone: the default store alone reaches only 3.
        assert_eq!(start_of(&records, "main", 3).await, 9 + RESERVED_AHEAD);
        // And where that was shown, a later life does not go back behind it.
        assert_eq!(start_of(&records, "pods+main", 9).await, 9 + RESERVED_AHEAD);
    }

    #[tokio::test]
    async fn a_node_goes_on_above_a_store_that_is_late_too() {
        let records = records().await;
        assert_eq!(start_of(&records, "main", 7).await, 7);
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        begin(&records, "main", &clock, &["pods".into()]).await.expect("memory answers");
        assert_eq!(clock.begun(), Some(7 + RESERVED_AHEAD));
    }

    #[tokio::test]
    async fn one_that_ended_in_order_leaps_nowhere_and_allocates_nothing_more() {
        let records = records().await;
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        clock.set_lane(crate::clock::LaneBlock::ALL.own());
        begin(&records, "main", &clock, &[]).await.expect("memory answers");
        let seat = clock.add_store();
        let last = clock.allocate(seat).expect("there are numbers");
        end(&records, "main", &clock).await.expect("memory answers");
        assert!(clock.allocate(seat).is_err(), "the next life may have shown it");
        let next = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        next.set_lane(crate::clock::LaneBlock::ALL.own());
        begin(&records, "main", &next, &["pods".into()]).await.expect("memory answers");
        assert_eq!(next.begun(), Some(last));
        // That life is killed: the one after it leaps.
        let after = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        after.set_lane(crate::clock::LaneBlock::ALL.own());
        begin(&records, "main", &after, &[]).await.expect("memory answers");
        assert_eq!(after.begun(), Some(last + next.reserve_size()));
    }
}

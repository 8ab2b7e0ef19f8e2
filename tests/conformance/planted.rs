//! Stores with a defect. Each defect must be noticed by the promise that it breaks, and by the
//! model; else neither proves anything.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use pleach::{
    clock::SharedClock,
    model::{KeyRange, Revision, error::Result},
    store::{Batch, Page, Read, Size, Store, Tail, Whose, Write, Written},
};

use crate::{
    concurrency, model,
    promises::{compaction, leases, reads, tails, writes},
    world::{Composition, World},
};

/// What is wrong with a store.
#[derive(Clone, Copy, Debug)]
enum Defect {
    /// Every so many commits, a tail leaves one out.
    DropsCommits(usize),
    /// Every so many commits, a tail says one twice.
    RepeatsCommits(usize),
    /// A tail closes one revision more than it has.
    ClosesTooMuch,
    /// Every count is one too great.
    CountsOneMore,
    /// A read in the past is one of the present.
    ReadsTheNewest,
    /// Pages after the first are of the present.
    TurnsPagesInThePresent,
    /// Guards are taken as held.
    IgnoresGuards,
    /// Compaction says that it is done, and does nothing.
    NeverCompacts,
    /// Records are lost.
    ForgetsRecords,
    /// The keys of a lease outlive it.
    KeepsLeased,
}

#[derive(Debug)]
struct Defective {
    inner: Arc<dyn Store>,
    clock: SharedClock,
    defect: Defect,
    seen: Arc<AtomicUsize>,
}

// === impl Defective ===

impl Defective {
    fn spoil(defect: Defect, seen: &AtomicUsize, mut batch: Batch) -> Batch {
        let is_nth = |n: usize| seen.fetch_add(1, Ordering::Relaxed) % n == n - 1;
        match defect {
            Defect::DropsCommits(n) => batch.commits.retain(|_| !is_nth(n)),
            Defect::RepeatsCommits(n) => {
                let commits = std::mem::take(&mut batch.commits);
                for commit in commits {
                    let times = if is_nth(n) { 2 } else { 1 };
                    batch.commits.extend(std::iter::repeat_n(commit, times));
                }
            }
            Defect::ClosesTooMuch => batch.closed += 1,
            _ => {}
        }
        batch
    }
}

#[async_trait]
impl Store for Defective {
    async fn apply(&self, mut write: Write) -> Result<Written> {
        match (self.defect, &mut write) {
            (Defect::IgnoresGuards, Write::Txn { txn, .. }) => txn.compares.clear(),
            (Defect::KeepsLeased, Write::DeleteLeased(lease)) => *lease = -1,
            _ => {}
        }
        self.inner.apply(write).await
    }

    async fn read(&self, read: &Read) -> Result<Page> {
        let mut read = read.clone();
        let is_next_page = read.range.start.ends_with(b"\0");
        match self.defect {
            Defect::ReadsTheNewest => read.revision = self.clock.shown(),
            Defect::TurnsPagesInThePresent if is_next_page => read.revision = self.clock.shown(),
            _ => {}
        }
        self.inner.read(&read).await
    }

    async fn count(&self, range: &KeyRange, revision: Revision) -> Result<u64> {
        let count = self.inner.count(range, revision).await?;
        Ok(count + u64::from(matches!(self.defect, Defect::CountsOneMore)))
    }

    fn tail(&self, after: Revision) -> Tail {
        let (defect, seen) = (self.defect, self.seen.clone());
        let spoil = move |batch| Self::spoil(defect, &seen, batch);
        self.inner.tail(after).map_ok(spoil).boxed()
    }

    fn closed(&self) -> Revision {
        self.inner.closed()
    }

    async fn present(&self, range: &KeyRange, whose: Whose) -> Result<Revision> {
        self.inner.present(range, whose).await
    }

    async fn sync(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.inner.sync(revision, ahead).await
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        match self.defect {
            Defect::NeverCompacts => Ok(()),
            _ => self.inner.compact(revision, wait).await,
        }
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }

    async fn remember(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        match self.defect {
            Defect::ForgetsRecords => Ok(()),
            _ => self.inner.remember(name, value).await,
        }
    }

    async fn recall(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.inner.recall(prefix).await
    }

    async fn size(&self) -> Result<Size> {
        self.inner.size().await
    }

    fn narrow(self: Arc<Self>, _range: &KeyRange) -> Arc<dyn Store> {
        self
    }

    fn name(&self) -> &Arc<str> {
        self.inner.name()
    }
}

async fn world_with(defect: Defect) -> World {
    let world = World::open(Composition::MemoryRouter).await;
    let (clock, seen) = (world.clock.clone(), Arc::default());
    world.wrapped(|inner| Arc::new(Defective { inner, clock, defect, seen }))
}

/// `promise` must fail on a store with `defect`.
async fn must_be_noticed<F>(defect: Defect, promise: fn(World) -> F)
where
    F: Future<Output = ()>,
{
    let held = AssertUnwindSafe(promise(world_with(defect).await)).catch_unwind().await;
    assert!(held.is_err(), "{defect:?} is not noticed");
}

macro_rules! planted {
    ($($sentence:ident: $defect:expr => $($promise:path),+;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $sentence() {
            $(must_be_noticed($defect, $promise).await;)+
        }
    )*};
}

planted! {
    a_tail_that_drops_commits_is_noticed: Defect::DropsCommits(50) =>
        tails::a_tail_has_no_gap_and_no_duplicate_from_any_revision,
        tails::a_tail_reads_the_log_where_memory_no_longer_reaches,
        concurrency::no_update_is_lost_and_each_is_told_once;
    a_tail_that_repeats_commits_is_noticed: Defect::RepeatsCommits(50) =>
        tails::a_tail_has_no_gap_and_no_duplicate_from_any_revision,
        concurrency::no_update_is_lost_and_each_is_told_once;
    a_tail_that_closes_too_much_is_noticed: Defect::ClosesTooMuch =>
        tails::sync_makes_tails_say_what_is_closed;
    counting_one_too_many_is_noticed: Defect::CountsOneMore =>
        reads::a_count_is_the_number_of_keys_read,
        concurrency::counts_at_one_revision_stay_the_same_while_writes_go_on;
    reading_the_newest_is_noticed: Defect::ReadsTheNewest =>
        reads::reads_at_every_revision_are_exact_snapshots,
        reads::pages_of_one_revision_fit_together_while_writes_go_on,
        writes::what_shares_a_revision_is_applied_whole;
    turning_pages_in_the_present_is_noticed: Defect::TurnsPagesInThePresent =>
        reads::pages_of_one_revision_fit_together_while_writes_go_on;
    ignoring_guards_is_noticed: Defect::IgnoresGuards =>
        concurrency::no_update_is_lost_and_each_is_told_once;
    compacting_nothing_is_noticed: Defect::NeverCompacts =>
        compaction::what_is_compacted_is_refused_and_the_rest_reads_as_before;
    forgetting_records_is_noticed: Defect::ForgetsRecords =>
        leases::records_are_kept_replaced_and_forgotten;
    keeping_the_keys_of_a_lease_is_noticed: Defect::KeepsLeased =>
        leases::the_keys_of_a_lease_go_in_key_order_at_one_revision;
}

/// Within so many sequences the model must notice any defect.
const SEQUENCES: u32 = 200;

#[test]
fn the_model_notices_every_defect() {
    let defects = [
        Defect::DropsCommits(50),
        Defect::RepeatsCommits(50),
        Defect::ClosesTooMuch,
        Defect::CountsOneMore,
        Defect::ReadsTheNewest,
        Defect::TurnsPagesInThePresent,
        Defect::IgnoresGuards,
        Defect::NeverCompacts,
        Defect::ForgetsRecords,
        Defect::KeepsLeased,
    ];
    for defect in defects {
        let checked = model::check(SEQUENCES, false, async || world_with(defect).await);
        assert!(checked.is_err(), "the model does not notice {defect:?}");
    }
}

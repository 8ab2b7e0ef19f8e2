//! Stores with a defect. Each defect must be noticed by the promise that it breaks, and by the
//! model; else neither proves anything.

use std::{
    collections::BTreeSet,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use pleach::{
    clock::SharedClock,
    model::{KeyRange, LeaseId, Revision, error::Result, txn::Txn},
    store::{
        Coverage, Described, Head, LogBatch, Page, Query, RecordStore, Size, Store, Tail, Written,
        attach::AttachState, meter::Meters,
    },
};

use crate::{
    concurrency, model,
    promises::{compaction, leases, reads, selecting, tails, writes},
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
    /// A read with a selector is one of the present.
    SelectsTheNewest,
    /// A read with a selector leaves out what is no object.
    SelectsObjectsOnly,
}

#[derive(Debug)]
struct Defective<S: ?Sized> {
    inner: Arc<S>,
    clock: SharedClock,
    defect: Defect,
    seen: Arc<AtomicUsize>,
}

// === impl Defective ===

impl<S: ?Sized> Defective<S> {
    fn spoil(defect: Defect, seen: &AtomicUsize, mut batch: LogBatch) -> LogBatch {
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
impl<S: Store + ?Sized> Store for Defective<S> {
    fn name(&self) -> &Arc<str> {
        self.inner.name()
    }

    fn covers(&self, after: Revision) -> bool {
        self.inner.covers(after)
    }

    fn check_resume(&self, after: Revision) -> Result<()> {
        self.inner.check_resume(after)
    }

    fn attach_states(&self) -> &[Arc<AttachState>] {
        self.inner.attach_states()
    }

    fn head(&self) -> Head {
        self.inner.head()
    }

    async fn describe(&self) -> Vec<Described> {
        self.inner.describe().await
    }

    fn meters(&self) -> Vec<Meters> {
        self.inner.meters()
    }

    async fn defragment(&self) -> Result<bool> {
        self.inner.defragment().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }

    async fn apply(&self, mut txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        if matches!(self.defect, Defect::IgnoresGuards) {
            txn.compares.clear();
        }
        self.inner.apply(txn, dead_leases).await
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        let lease = if matches!(self.defect, Defect::KeepsLeased) { -1 } else { lease };
        self.inner.end_lease(lease).await
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        self.inner.leases().await
    }

    async fn read(&self, query: &Query) -> Result<Page> {
        let mut query = query.clone();
        let is_next_page = query.range.start.ends_with(b"\0");
        match self.defect {
            Defect::ReadsTheNewest => query.revision = self.clock.shown(),
            Defect::TurnsPagesInThePresent if is_next_page => query.revision = self.clock.shown(),
            Defect::SelectsTheNewest if query.selector.is_some() => {
                query.revision = self.clock.shown();
            }
            _ => {}
        }
        let mut page = self.inner.read(&query).await?;
        if matches!(self.defect, Defect::SelectsObjectsOnly) && query.selector.is_some() {
            page.kvs.retain(|kv| kv.value.is_empty() || kv.value.starts_with(b"{"));
        }
        Ok(page)
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        let count = self.inner.count(query).await?;
        Ok(count + u64::from(matches!(self.defect, Defect::CountsOneMore)))
    }

    fn tail(&self, after: Revision) -> Tail {
        let (defect, seen) = (self.defect, self.seen.clone());
        let spoil = move |batch| Self::spoil(defect, &seen, batch);
        self.inner.tail(after).map_ok(spoil).boxed()
    }

    fn announce_closed(&self) -> Revision {
        self.inner.announce_closed()
    }

    async fn read_index(&self, range: &KeyRange, coverage: Coverage) -> Result<Revision> {
        self.inner.read_index(range, coverage).await
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.inner.advance_closed(revision, ahead).await
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

    async fn size(&self) -> Result<Size> {
        self.inner.size().await
    }
}

#[async_trait]
impl<S: RecordStore + ?Sized> RecordStore for Defective<S> {
    async fn put_records(&self, changes: Vec<(String, Option<Bytes>)>) -> Result<()> {
        match self.defect {
            Defect::ForgetsRecords => Ok(()),
            _ => self.inner.put_records(changes).await,
        }
    }

    async fn get_record(&self, name: &str) -> Result<Option<Bytes>> {
        self.inner.get_record(name).await
    }

    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.inner.scan_records(prefix).await
    }

    fn fenced(&self) -> BoxFuture<'static, ()> {
        self.inner.fenced()
    }
}

async fn world_with(defect: Defect) -> World {
    let world = World::open(Composition::MemoryRouter).await;
    let (clock, seen): (_, Arc<AtomicUsize>) = (world.clock.clone(), Arc::default());
    let (inner, clock_too, seen_too) = (world.records.clone(), clock.clone(), seen.clone());
    let records = Arc::new(Defective { inner, clock: clock_too, defect, seen: seen_too });
    world.wrapped(|inner| Arc::new(Defective { inner, clock, defect, seen }), records)
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
    selecting_the_newest_is_noticed: Defect::SelectsTheNewest =>
        selecting::what_selectors_match_is_found_as_of_every_revision;
    selecting_objects_only_is_noticed: Defect::SelectsObjectsOnly =>
        selecting::what_selectors_match_is_found_as_of_every_revision;
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
        Defect::SelectsTheNewest,
        Defect::SelectsObjectsOnly,
    ];
    for defect in defects {
        let checked = model::check(SEQUENCES, false, async || world_with(defect).await);
        assert!(checked.is_err(), "the model does not notice {defect:?}");
    }
}

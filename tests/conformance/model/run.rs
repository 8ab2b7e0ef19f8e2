//! One sequence, on a world and on the oracle.

use std::sync::Arc;

use pleach::{
    clock::SharedClock,
    model::{Commit, KeyRange, KeyValue, Revision, StoreError, error::Result, txn::Txn},
    select::Selector,
    store::{Query, RecordStore as _, Store, memory::Memory, read_all},
};

use super::steps::{Step, lease_of, revision};
use crate::{
    follow::Follower,
    words::{FAMILIES, bytes, family_range, put_record},
    world::{Composition, World, fresh_clock},
};

/// The most tails that are followed at once.
const TAILS_MAX: usize = 4;

/// A world, the oracle, and what of their logs was compared.
struct Pair {
    world: World,
    oracle: Arc<Memory>,
    oracle_clock: SharedClock,
    /// All that the oracle ever committed.
    history: Follower,
    tails: Vec<Tailing>,
}

/// A tail of the world, and where it started.
struct Tailing {
    after: Revision,
    follower: Follower,
}

/// Runs a sequence; panics where the two differ.
pub(crate) async fn run(world: World, steps: &[Step]) {
    let oracle_clock = fresh_clock();
    let oracle = Memory::new("oracle", oracle_clock.clone());
    let history = Follower::start(&*oracle, 0);
    let mut pair = Pair { world, oracle, oracle_clock, history, tails: Vec::new() };
    pair.start_tail(0);
    pair.learn().await;
    for (at, step) in steps.iter().enumerate() {
        pair = pair.step(step).await;
        pair.learn().await;
        let (ours, theirs) = (pair.world.clock.shown(), pair.oracle_clock.shown());
        assert_eq!(ours, theirs, "the clock after step {at}, {step:?}");
        let (ours, theirs) = (pair.world.store.compacted(), pair.oracle.compacted());
        assert_eq!(ours, theirs, "the compacted revision after step {at}, {step:?}");
    }
    pair.read(&Query::new(KeyRange::all(), pair.shown())).await;
    for tail in 0..pair.tails.len() {
        pair.follow(tail).await;
    }
}

fn selecting(range: &KeyRange, at: Revision, selector: &Option<Arc<Selector>>) -> Query {
    Query { selector: selector.clone(), ..Query::new(range.clone(), at) }
}

/// Both must say the same, errors included.
fn assert_same<T: std::fmt::Debug + PartialEq>(ours: Result<T>, theirs: Result<T>, what: &str) {
    match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{what}"),
        _ => assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{what}"),
    }
}

// === impl Pair ===

impl Pair {
    fn shown(&self) -> Revision {
        self.oracle_clock.shown()
    }

    async fn step(mut self, step: &Step) -> Self {
        let shown = self.shown();
        match step {
            Step::Write(plan) => self.write(plan.at(shown)).await,
            Step::Query { range, age, limit, keys_only, selector } => {
                let (limit, keys_only) = (*limit, *keys_only);
                let query = selecting(range, revision(shown, *age), selector);
                self.read(&Query { limit, keys_only, ..query }).await;
            }
            Step::Count { range, age, selector } => {
                let query = selecting(range, revision(shown, *age), selector);
                let ours = self.world.store.count(&query).await;
                assert_same(ours, self.oracle.count(&query).await, "a count");
            }
            Step::ReadLeased { family } => {
                let lease = lease_of(*family);
                self.read(&Query { lease, ..Query::new(KeyRange::all(), shown) }).await;
            }
            Step::EndLease { family } => self.end_lease(*family).await,
            Step::Compact { age, wait } => {
                let at = revision(shown, *age);
                assert_same(
                    self.world.store.compact(at, *wait).await,
                    self.oracle.compact(at, *wait).await,
                    "a compaction",
                );
            }
            Step::StartTail { age } => self.start_tail(revision(shown, *age)),
            Step::Follow { tail } => self.follow(tail % self.tails.len()).await,
            Step::Remember { name, value } => {
                let (name, value) = (format!("record/{name}"), value.map(bytes));
                let ours = put_record(&*self.world.records, &name, value.clone()).await;
                assert_same(ours, put_record(&*self.oracle, &name, value).await, "a record");
            }
            Step::Recall { prefix } => {
                let prefix = &format!("record/{prefix}")[..6 + usize::from(*prefix) % 3];
                let ours = self.world.records.scan_records(prefix).await;
                assert_same(ours, self.oracle.scan_records(prefix).await, "records");
            }
            Step::Reopen => return self.reopen().await,
        }
        self
    }

    /// Takes down what the oracle has committed, before it may compact that.
    async fn learn(&mut self) {
        let shown = self.shown();
        self.oracle.advance_closed(shown, 0).await.expect("memory never fails");
        self.history.reach(shown).await.expect("nothing of this is compacted yet");
    }

    async fn write(&mut self, txn: Txn) {
        let is_over_two = self.is_over_two_stores(&txn);
        let ours = self.world.store.apply(txn.clone(), Vec::new()).await;
        if let Err(StoreError::TwoStores { first, second }) = &ours {
            assert_ne!(first, second);
            assert_ne!(is_over_two, Some(false), "all keys lie in one store: {txn:?}");
            return;
        }
        // Between nodes what no client may ask for is refused, and then nothing is applied.
        if matches!(&ours, Err(StoreError::Unavailable { reason, .. }) if reason.starts_with("etcdserver: "))
        {
            let is_tree =
                matches!(self.world.composition, Composition::Tree | Composition::LaneTree);
            assert!(is_tree, "{ours:?} of {txn:?}");
            return;
        }
        assert_ne!(is_over_two, Some(true), "keys of two stores were written at once: {txn:?}");
        let theirs = self.oracle.apply(txn, Vec::new()).await;
        let essence = |written: pleach::store::Written| (written.revision, written.result);
        assert_same(ours.map(essence), theirs.map(essence), "a write");
    }

    /// Whether keys of several stores are touched; `None` where a range leaves that open.
    fn is_over_two_stores(&self, txn: &Txn) -> Option<bool> {
        let mut leaves = std::collections::BTreeSet::new();
        let mut is_open = false;
        txn.for_each_range(&mut |range| {
            let inside = (0..FAMILIES.len()).find(|f| family_range(*f).covers(range));
            match inside {
                _ if range.is_empty() => {}
                Some(family) => drop(leaves.insert(self.world.composition.leaf_of(family))),
                None => is_open = true,
            }
        });
        if leaves.len() > 1 { Some(true) } else { Some(false).filter(|_| !is_open) }
    }

    async fn read(&self, read: &Query) {
        let ours = in_pages(&*self.world.store, read.clone()).await;
        let theirs = read_all(&*self.oracle, &Query { limit: 0, ..read.clone() }).await;
        assert_same(ours, theirs.map(|page| page.kvs), &format!("{read:?}"));
    }

    async fn end_lease(&mut self, family: usize) {
        let lease = lease_of(family);
        let leases = self.world.store.leases().await;
        assert_same(leases, self.oracle.leases().await, "the leases of keys");
        let ours = self.world.store.end_lease(lease).await;
        assert_same(ours, self.oracle.end_lease(lease).await, "the end of a lease");
    }

    fn start_tail(&mut self, after: Revision) {
        if self.tails.len() == TAILS_MAX {
            self.tails.remove(0);
        }
        let follower = Follower::start(&*self.world.store, after);
        self.tails.push(Tailing { after, follower });
    }

    /// Reads a tail up to the present and holds it against the history.
    async fn follow(&mut self, tail: usize) {
        let shown = self.shown();
        self.world.store.advance_closed(shown, 0).await.expect("all was shown");
        let compacted = self.world.store.compacted();
        let tailing = &mut self.tails[tail];
        let from = tailing.follower.closed;
        match tailing.follower.reach(shown).await {
            Ok(()) => {}
            Err(StoreError::Compacted { compacted: at }) => {
                assert_eq!(at, compacted);
                assert!(tailing.follower.closed + 1 < compacted, "{from} was not too old");
                // Whoever is too late begins with what can be read.
                *tailing =
                    Tailing { after: shown, follower: Follower::start(&*self.world.store, shown) };
            }
            Err(other) => panic!("a tail failed: {other}"),
        }
        let told = &self.tails[tail];
        let told_from = |commit: &&Arc<Commit>| commit.revision > told.after;
        let expected: Vec<_> =
            self.history.commits.iter().filter(told_from).map(|c| settled(c, compacted)).collect();
        let ours: Vec<_> =
            told.follower.commits.iter().map(|commit| settled(commit, compacted)).collect();
        assert_eq!(ours, expected, "the tail from behind {}", told.after);
    }

    async fn reopen(self) -> Self {
        let Self { world, oracle, oracle_clock, history, tails } = self;
        let positions: Vec<_> = tails.iter().map(|tailing| tailing.follower.closed).collect();
        drop(tails);
        let world = world.reopened().await;
        let mut pair = Self { world, oracle, oracle_clock, history, tails: Vec::new() };
        positions.into_iter().for_each(|after| pair.start_tail(after));
        pair
    }
}

/// All keys of a range, in pages as small as the read says.
async fn in_pages(store: &dyn Store, mut read: Query) -> Result<Vec<KeyValue>> {
    let mut kvs = Vec::new();
    loop {
        let page = store.read(&read).await?;
        kvs.extend(page.kvs);
        let Some(next) = page.next else { return Ok(kvs) };
        read.range.start = next;
    }
}

/// A commit as far as it is promised: what was there before may be gone where compaction has
/// reached the change.
fn settled(commit: &Commit, compacted: Revision) -> Commit {
    let mut commit = commit.clone();
    if commit.revision <= compacted {
        commit.events.iter_mut().for_each(|event| event.prev = None);
    }
    commit
}

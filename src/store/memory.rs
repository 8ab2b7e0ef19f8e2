//! The smallest correct store: the oracle of the property tests. Everything is lost with the process; what
//! a node has [`Kept`] there outlives the node, as files outlive a process.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, pending},
};

use super::{
    Coverage, Described, Head, LogBatch, Page, Query, RecordStore, Size, Store, Tail, Written,
    attach::AttachState,
    journal::{Journal, Log},
    led::mailbox::Write,
    meter::Meters,
};
use crate::{
    clock::{ClockSeat, JoinError, SharedClock},
    model::{
        Commit, KeyRange, KeyValue, LeaseId, Revision, StoreError,
        error::Result,
        key::successor,
        txn::{Past, Rows, Txn, TxnResult, Workspace, delete_all, execute, in_range},
    },
};

/// A store in memory: the live rows, and every commit since the last compaction to undo from.
#[derive(Debug)]
pub struct Memory {
    name: Arc<str>,
    clock: SharedClock,
    journal: Arc<Journal>,
    kept: Kept,
}

/// What a store in memory holds.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    rows: Rows,
    log: Vec<Arc<Commit>>,
    records: std::collections::BTreeMap<String, Bytes>,
    /// The greatest revision that it ever had.
    newest: Revision,
    compacted: Revision,
}

// === impl State ===

impl Default for State {
    fn default() -> Self {
        let (rows, log, records) = Default::default();
        Self { rows, log, records, newest: 0, compacted: -1 }
    }
}

// === impl Memory ===

impl Memory {
    /// An empty store that takes its revisions from `clock`.
    pub fn new(name: &str, clock: SharedClock) -> Arc<Self> {
        let slot = clock.add_store();
        Self::over(name, clock.clone(), slot, clock.now(), Kept::default())
    }

    /// The store again that a node which has ended had open over `kept`.
    ///
    /// # Errors
    /// Where it may not join the clock any more.
    pub fn reopen(name: &str, clock: SharedClock, kept: Kept) -> Result<Arc<Self>, JoinError> {
        let newest = kept.lock().newest;
        let slot = clock.join(newest)?;
        Ok(Self::over(name, clock, slot, newest, kept))
    }

    /// The same, also where it may hold what was promised not to be.
    ///
    /// # Errors
    /// Where it holds no revision.
    pub async fn reopen_apart(
        name: &str,
        clock: SharedClock,
        kept: Kept,
    ) -> Result<Arc<Self>, JoinError> {
        let newest = kept.lock().newest;
        let slot = clock.join_apart(newest).await?;
        Ok(Self::over(name, clock, slot, newest, kept))
    }

    fn over(
        name: &str,
        clock: SharedClock,
        slot: ClockSeat,
        last: Revision,
        kept: Kept,
    ) -> Arc<Self> {
        let journal = Arc::new(Journal::new(name, clock.clone(), slot, last));
        Arc::new(Self { name: name.into(), clock, journal, kept })
    }

    fn rows_at(&self, range: &KeyRange, revision: Revision) -> Result<Vec<KeyValue>> {
        let state = self.kept.lock();
        let compacted = state.compacted;
        if revision < compacted {
            return Err(StoreError::Compacted { compacted });
        }
        let mut rows: Rows =
            in_range(&state.rows, range).map(|kv| (kv.key.clone(), kv.clone())).collect();
        for commit in state.log.iter().rev().take_while(|commit| commit.revision > revision) {
            for event in commit.events.iter().rev().filter(|event| range.contains(&event.kv.key)) {
                match &event.prev {
                    Some(prev) => rows.insert(prev.key.clone(), prev.clone()),
                    None => rows.remove(&event.kv.key),
                };
            }
        }
        Ok(rows.into_values().collect())
    }

    fn apply_now(&self, state: &mut State, write: Write, past: &Past) -> Result<Written> {
        let before = self.clock.shown();
        let mut allocate = || self.journal.allocate();
        let (written, commit) = match write {
            Write::Txn { txn, dead_leases } => {
                let place =
                    Workspace { rows: &mut state.rows, past, before, dead_leases: &dead_leases };
                let outcome = execute(&txn, place, state.compacted, &mut allocate)?;
                let written = Written { revision: outcome.revision, result: outcome.result };
                (written, outcome.commit)
            }
            Write::EndLease(lease) => {
                let leased = |(_, kv): &(&Bytes, &mut KeyValue)| kv.lease == lease;
                let mut rows: Rows = state
                    .rows
                    .iter_mut()
                    .filter(leased)
                    .map(|(key, kv)| (key.clone(), kv.clone()))
                    .collect();
                let commit = delete_all(&mut rows, &mut allocate)?;
                for event in commit.iter().flat_map(|commit| &commit.events) {
                    state.rows.remove(&event.kv.key);
                }
                let revision = commit.as_ref().map_or(before, |commit| commit.revision);
                let result = TxnResult { succeeded: commit.is_some(), results: Vec::new() };
                (Written { revision, result }, commit)
            }
        };
        if let Some(commit) = commit {
            let commit = Arc::new(commit);
            state.newest = commit.revision;
            state.log.push(commit.clone());
            self.journal.publish(&[commit]);
        }
        Ok(written)
    }
}

#[async_trait]
impl Store for Memory {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        let mut past = Past::new();
        for (range, revision) in txn.needs().past {
            // A revision that can't be read is refused by the transaction itself.
            let rows = self.rows_at(&range, revision).unwrap_or_default();
            past.insert((range, revision), rows);
        }
        self.apply_now(&mut self.kept.lock(), Write::Txn { txn, dead_leases }, &past)
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        let ended = self.apply_now(&mut self.kept.lock(), Write::EndLease(lease), &Past::new())?;
        Ok(ended.result.succeeded.then_some(ended.revision))
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        let state = self.kept.lock();
        Ok(state.rows.values().map(|kv| kv.lease).filter(|lease| *lease != 0).collect())
    }

    async fn read(&self, read: &Query) -> Result<Page> {
        let read = &read.at(self.journal.shown());
        self.journal.wait_closed(read.revision).await?;
        let mut kvs = self.rows_at(&read.range, read.revision)?;
        kvs.retain(|kv| (read.lease == 0 || kv.lease == read.lease) && read.wants(kv));
        let is_cut = kvs.len() > read.rows_max();
        kvs.truncate(read.rows_max());
        let next = kvs.last().filter(|_| is_cut).map(|kv| successor(&kv.key));
        if read.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(Page { kvs, next, revision: read.revision })
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        self.journal.wait_closed(query.revision).await?;
        let rows = self.rows_at(&query.range, query.revision)?;
        Ok(rows.iter().filter(|kv| query.wants(kv)).count() as u64)
    }

    fn tail(&self, after: Revision) -> Tail {
        self.journal.clone().tail(after, Arc::new(self.kept.clone()))
    }

    fn covers(&self, _after: Revision) -> bool {
        true
    }

    fn check_resume(&self, _after: Revision) -> Result<()> {
        Ok(())
    }

    fn attach_states(&self) -> &[Arc<AttachState>] {
        &[]
    }

    fn announce_closed(&self) -> Revision {
        self.journal.closed()
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.journal.advance_closed(revision, ahead).await
    }

    async fn read_index(&self, _range: &KeyRange, _coverage: Coverage) -> Result<Revision> {
        Ok(self.journal.shown())
    }

    async fn compact(&self, revision: Revision, _wait: bool) -> Result<()> {
        let mut state = self.kept.lock();
        state.compacted = state.compacted.max(revision);
        state.log.retain(|commit| commit.revision >= revision);
        Ok(())
    }

    fn compacted(&self) -> Revision {
        self.kept.compacted()
    }

    async fn size(&self) -> Result<Size> {
        let bytes = self.kept.lock().rows.values().map(KeyValue::size).sum::<usize>() as u64;
        Ok(Size { total: bytes, in_use: bytes })
    }

    fn head(&self) -> Head {
        Head { newest: self.kept.lock().newest, is_exact: true, ..Head::default() }
    }

    async fn defragment(&self) -> Result<bool> {
        Ok(false)
    }

    async fn close(&self) {}

    async fn describe(&self) -> Vec<Described> {
        vec![Described { name: self.name.to_string(), ..Described::default() }]
    }

    fn meters(&self) -> Vec<Meters> {
        let name = self.name.clone();
        vec![Meters::new(name, None)]
    }
}

#[async_trait]
impl RecordStore for Memory {
    async fn put_records(&self, changes: Vec<(String, Option<Bytes>)>) -> Result<()> {
        let mut state = self.kept.lock();
        for (name, value) in changes {
            match value {
                Some(value) => state.records.insert(name, value),
                None => state.records.remove(&name),
            };
        }
        Ok(())
    }

    async fn get_record(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.kept.lock().records.get(name).cloned())
    }

    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        let state = self.kept.lock();
        let from_prefix = state.records.range(prefix.to_owned()..);
        let named = from_prefix.take_while(|(name, _)| name.starts_with(prefix));
        Ok(named.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn fenced(&self) -> BoxFuture<'static, ()> {
        pending().boxed()
    }
}

// === impl Kept ===

impl Kept {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Transactions check before they change, so a panic leaves whole states behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The commits above `after` that are not compacted, in order.
    pub fn commits(&self, after: Revision) -> Vec<Arc<Commit>> {
        let state = self.lock();
        let from = state.log.partition_point(|commit| commit.revision <= after);
        state.log[from..].to_vec()
    }
}

#[async_trait]
impl Log for Kept {
    async fn page(&self, after: Revision, through: Revision) -> Result<LogBatch> {
        let state = self.lock();
        let compacted = state.compacted;
        if after + 1 < compacted {
            return Err(StoreError::Compacted { compacted });
        }
        let inside = |commit: &&Arc<Commit>| commit.revision > after && commit.revision <= through;
        Ok(LogBatch::new(state.log.iter().filter(inside).cloned().collect(), through))
    }

    fn compacted(&self) -> Revision {
        self.lock().compacted
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;
    use crate::{
        clock::{Clock, Lane, REVISION_MAX},
        model::txn::{Op, PutOp, Txn},
    };

    async fn put(store: &Memory, key: &'static str) -> Revision {
        let (key, value) = (Bytes::from(key), Bytes::from("value"));
        let (prev_kv, keep_value, keep_lease) = (false, false, false);
        let put = Op::Put(PutOp { key, value, lease: 0, prev_kv, keep_value, keep_lease });
        let txn = Txn { success: vec![put], ..Txn::default() };
        let written = store.apply(txn, Vec::new()).await;
        written.expect("memory takes it").revision
    }

    #[tokio::test]
    async fn a_store_that_is_opened_again_holds_what_it_held_and_goes_on_above_it() {
        let clock = || SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let kept = Kept::default();
        let before = Memory::reopen("main", clock(), kept.clone()).expect("it is empty");
        assert_eq!((put(&before, "a").await, put(&before, "b").await), (2, 3));
        let record = vec![("name".to_owned(), Some(Bytes::from("value")))];
        before.put_records(record).await.expect("memory takes it");
        drop(before);
        let after = Memory::reopen("main", clock(), kept.clone()).expect("it may hold anything");
        assert_eq!(after.scan_records("").await.expect("memory answers").len(), 1);
        assert_eq!(put(&after, "a").await, 4);
        let batch = after.tail(1).next().await.expect("a tail does not end");
        let commits = batch.expect("nothing is compacted").commits;
        let revisions: Vec<Revision> = commits.iter().map(|commit| commit.revision).collect();
        assert_eq!((&revisions[..], kept.commits(3).len()), (&[2, 3, 4][..], 1));
        let begun = clock();
        begun.begin();
        assert!(Memory::reopen("main", begun, kept).is_err());
    }
}

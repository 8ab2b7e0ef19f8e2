//! A store of a route, with what is asked of it measured and what is slow logged.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    Coverage, Described, Head, Page, Query, Size, Store, Tail, Written,
    attach::AttachState,
    explained::StoreRead,
    meter::{Meter, Meters, RequestMeter},
    pool::Pool,
};
use crate::{
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    proto::tree::{self as pb, Node},
};

/// What an operator called the store, and where it is.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// What kind of store it is.
    pub kind: String,
    /// Where it is, without user and password.
    pub place: String,
    /// Which keys it takes, for people; empty for the default store.
    pub rule: String,
    /// Whether it is the default store.
    pub is_default: bool,
}

/// A store that is measured. It changes nothing of what the store answers.
#[derive(Debug)]
pub struct Metered {
    store: Arc<dyn Store>,
    about: About,
    /// What takes longer is logged.
    slow_after: Duration,
    meter: Arc<RequestMeter>,
}

/// Something that was asked, until it is answered or given up.
struct Waiting<'m> {
    of: &'m Metered,
    operation: &'static str,
    meter: &'m Meter,
    begun: Instant,
    is_done: bool,
}

/// Counts a write for as long as it is waited for.
struct Pending<'m>(&'m RequestMeter);

// === impl Metered ===

impl Metered {
    /// Measures `store`. What takes longer than `slow_after` is logged.
    pub fn new(store: Arc<dyn Store>, about: About, slow_after: Duration) -> Arc<Self> {
        Arc::new(Self { store, about, slow_after, meter: Arc::default() })
    }

    /// What is measured.
    pub fn meter(&self) -> &Arc<RequestMeter> {
        &self.meter
    }

    /// Waits for what was asked, and counts it; `rows` says of an answer how many keys it has.
    async fn measured<T>(
        &self,
        operation: &'static str,
        meter: &Meter,
        asked: impl Future<Output = Result<T>>,
        rows: impl FnOnce(&T) -> Option<u64>,
    ) -> Result<T> {
        let mut waiting =
            Waiting { of: self, operation, meter, begun: Instant::now(), is_done: false };
        let answer = asked.await;
        let rows = answer.as_ref().ok().and_then(rows);
        if let Some(rows) = rows {
            self.meter.rows.fetch_add(rows, Ordering::Relaxed);
        }
        if let Err(error) = &answer {
            self.meter.note_failure(error);
        }
        waiting.is_done = true;
        waiting.note(rows, answer.as_ref().err());
        answer
    }
}

// === impl Waiting ===

impl Waiting<'_> {
    fn note(&self, rows: Option<u64>, error: Option<&StoreError>) {
        let took = self.begun.elapsed();
        self.meter.note(took, error.is_some_and(StoreError::is_failure));
        if took > self.of.slow_after {
            let (route, store) = (self.of.store.name(), &self.of.about.place);
            let (operation, given_up) = (self.operation, !self.is_done);
            let error = error.map(tracing::field::display);
            tracing::warn!(%route, store, operation, rows, ?took, given_up, error, "a store was slow");
        }
    }
}

impl Drop for Waiting<'_> {
    /// Whoever asked has gone: what took longest is counted, too.
    fn drop(&mut self) {
        if !self.is_done {
            self.note(None, None);
        }
    }
}

#[async_trait]
impl Store for Metered {
    fn name(&self) -> &Arc<str> {
        self.store.name()
    }

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        let _pending = Pending::new(&self.meter);
        self.meter.prefixes.note_txn(&txn);
        let asked = self.store.apply(txn, dead_leases);
        self.measured("apply", &self.meter.writes, asked, |_| None).await
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        let _pending = Pending::new(&self.meter);
        let asked = self.store.end_lease(lease);
        self.measured("end lease", &self.meter.writes, asked, |_| None).await
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        self.store.leases().await
    }

    async fn read(&self, query: &Query) -> Result<Page> {
        self.meter.prefixes.note_read(&query.range);
        let (asked, begun) = (self.store.read(query), Instant::now());
        let rows = |page: &Page| Some(page.kvs.len() as u64);
        let page = self.measured("read", &self.meter.reads, asked, rows).await?;
        query.explain(|| StoreRead {
            path: self.store.name().to_string(),
            pages: 1,
            rows_returned: page.kvs.len() as u64,
            seconds: begun.elapsed().as_secs_f64(),
            ..StoreRead::default()
        });
        Ok(page)
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        self.meter.prefixes.note_read(&query.range);
        let asked = self.store.count(query);
        self.measured("count", &self.meter.reads, asked, |_| None).await
    }

    fn tail(&self, after: Revision) -> Tail {
        self.store.tail(after)
    }

    fn covers(&self, after: Revision) -> bool {
        self.store.covers(after)
    }

    fn check_resume(&self, after: Revision) -> Result<()> {
        self.store.check_resume(after)
    }

    fn attach_states(&self) -> &[Arc<AttachState>] {
        self.store.attach_states()
    }

    fn announce_closed(&self) -> Revision {
        self.store.announce_closed()
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.store.advance_closed(revision, ahead).await
    }

    async fn read_index(&self, range: &KeyRange, coverage: Coverage) -> Result<Revision> {
        self.store.read_index(range, coverage).await
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        self.store.compact(revision, wait).await
    }

    fn compacted(&self) -> Revision {
        self.store.compacted()
    }

    async fn size(&self) -> Result<Size> {
        self.store.size().await
    }

    fn head(&self) -> Head {
        self.store.head()
    }

    async fn describe(&self) -> Vec<Described> {
        // At once: neither waits for the other where the store is slow.
        let (mut described, size) =
            futures::join!(self.store.describe(), self.meter.recent_size(&*self.store));
        let meters = self.store.meters();
        let commits = meters.iter().find_map(|meters| meters.commits.as_ref());
        let pool = meters.iter().find_map(|meters| meters.pool.as_ref());
        let found = self.meter.found();
        for route in &mut described {
            let About { kind, place, rule, is_default } = self.about.clone();
            let below = route.node.as_ref().map(below);
            if below.is_some() {
                route.kind = "node".to_owned();
            }
            if route.kind.is_empty() {
                route.kind = kind;
            }
            (route.place, route.rule, route.is_default) = (place, rule, is_default);
            route.reads = Some(self.meter.reads.activity());
            route.writes = Some(self.meter.writes.activity());
            route.commits = commits.map(|commits| commits.batches.activity());
            route.pool = pool.map(|pool| described_pool(pool));
            route.last_error = self.meter.last_error();
            route.closed = self.store.announce_closed();
            // A node counts its keys itself.
            route.keys = found.keys.map(|(keys, _)| keys).or(below.and_then(|(keys, _)| keys));
            route.keys_age_s = found.keys.map_or(0.0, |(_, at)| at.elapsed().as_secs_f64());
            let size = below.map_or(size, |(_, size)| size);
            (route.bytes, route.bytes_in_use) = (size.total, size.in_use);
            route.misrouted = found.misrouted;
            route.is_full = self.store.head().is_full;
            for state in self.store.attach_states() {
                route.detachments += state.detachments();
                route.backfills += state.backfills();
                route.is_detached |= state.detached_at().is_some();
            }
            route.pending = self.meter.pending.load(Ordering::Relaxed).try_into().unwrap_or(0);
        }
        described
    }

    fn meters(&self) -> Vec<Meters> {
        let mut meters = self.store.meters();
        for leaf in &mut meters {
            leaf.requests = Some(self.meter.clone());
        }
        meters
    }

    async fn defragment(&self) -> Result<bool> {
        self.store.defragment().await
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

/// What a node says that its stores hold: keys where all of them were counted, and bytes.
fn below(node: &Node) -> (Option<u64>, Size) {
    let keys = node.routes.iter().map(|route| route.keys).sum();
    let sum = |of: fn(&Described) -> u64| node.routes.iter().map(of).sum();
    (keys, Size { total: sum(|it| it.bytes), in_use: sum(|it| it.bytes_in_use) })
}

fn described_pool(pool: &Pool) -> pb::Pool {
    pb::Pool {
        connections_max: pool.connections_max() as u64,
        connections_used: pool.connections_used() as u64,
        waiting: pool.waiting(),
        waits: Some(pool.waits.activity()),
    }
}

// === impl Pending ===

impl<'m> Pending<'m> {
    fn new(meter: &'m RequestMeter) -> Self {
        meter.pending.fetch_add(1, Ordering::Relaxed);
        Self(meter)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

//! What can be planted in a node, to see that the checks would notice: one rule of the algorithm left
//! out, where the parts of a node meet.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture};
use pleach::{
    clock::{Lane, SharedClock},
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    store::{
        Backfill, Coverage, Described, Head, LogBatch, Page, Query, RecordStore, Size, Store, Tail,
        Written, attach::AttachState, meter::Meters,
    },
    tree::{call, membership::Membership},
};
use tonic::service::Routes;
use tower::util::MapRequestLayer;

/// One rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Merged watches take for closed in a child what its parent has reached.
    EmittingWithoutClosing,
    /// A restart begins at the greatest revision of the default store.
    RestartingAtGreatest,
    /// A child is read as it stands, not as of the revision asked for.
    ListingEachLogAtItsOwnRevision,
    /// Nobody hears of the changes that a child comes back with.
    ReattachingWithoutTelling,
    /// A client that comes back after a child was attached with late changes goes on from where it
    /// was cut off, though it may lack them.
    ForgettingTheFloor,
    /// That a child is detached dies with the node, and the next life takes it for one that never
    /// was.
    ForgettingTheDetached,
    /// All nodes count in one lane.
    SharingOneLane,
    /// A child stays at its clock, whatever its parent has reached.
    IgnoringTheParent,
    /// A parent takes its own clock for the present of its children.
    TakingTheClockForThePresent,
    /// A write that nobody answered is tried again.
    RetryingUnknownOutcomes,
}

/// A store with a fault.
#[derive(Debug)]
struct Faulty<S: ?Sized> {
    inner: Arc<S>,
    clock: SharedClock,
    fault: Fault,
}

/// What a node has for a store of a route.
pub(crate) fn store(
    fault: Option<Fault>,
    inner: Arc<dyn Store>,
    clock: &SharedClock,
) -> Arc<dyn Store> {
    match fault {
        Some(fault) => Arc::new(Faulty { inner, clock: clock.clone(), fault }),
        None => inner,
    }
}

/// What a node has for a default store.
pub(crate) fn records(
    fault: Option<Fault>,
    inner: Arc<dyn RecordStore>,
    clock: &SharedClock,
) -> Arc<dyn RecordStore> {
    match fault {
        Some(fault) => Arc::new(Faulty { inner, clock: clock.clone(), fault }),
        None => inner,
    }
}

/// What a node serves.
pub(crate) fn face(fault: Option<Fault>, routes: Routes) -> Routes {
    if fault != Some(Fault::IgnoringTheParent) {
        return routes;
    }
    let deaf = MapRequestLayer::new(|mut request: http::Request<_>| {
        request.headers_mut().remove(call::CLOCK);
        request
    });
    Routes::from(routes.into_axum_router().layer(deaf))
}

/// What a node does about its lanes.
pub(crate) fn lanes(fault: Option<Fault>, membership: &Arc<Membership>) {
    if fault != Some(Fault::SharingOneLane) {
        return;
    }
    let (clock, mut lanes) = (membership.clock().clone(), membership.watch_lanes());
    tokio::spawn(async move {
        loop {
            clock.set_lane(Lane::ALL);
            if lanes.changed().await.is_err() {
                return;
            }
        }
    });
}

#[async_trait]
impl<S: Store + ?Sized> Store for Faulty<S> {
    fn name(&self) -> &Arc<str> {
        self.inner.name()
    }

    fn covers(&self, after: Revision) -> bool {
        self.inner.covers(after)
    }

    fn check_resume(&self, after: Revision) -> Result<()> {
        if self.fault == Fault::ForgettingTheFloor {
            return Ok(());
        }
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

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        let written = self.inner.apply(txn.clone(), dead_leases.clone()).await;
        match (self.fault, written) {
            (Fault::RetryingUnknownOutcomes, Err(StoreError::UnknownOutcome { .. })) => {
                for attach_state in self.attach_states() {
                    attach_state.reachable().await;
                }
                self.inner.apply(txn, dead_leases).await
            }
            (_, written) => written,
        }
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        self.inner.end_lease(lease).await
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        self.inner.leases().await
    }

    async fn read(&self, query: &Query) -> Result<Page> {
        let mut query = query.clone();
        let asked = query.revision;
        if self.fault == Fault::ListingEachLogAtItsOwnRevision {
            query.revision = 0;
        }
        let page = self.inner.read(&query).await?;
        Ok(Page { revision: if asked == 0 { page.revision } else { asked }, ..page })
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        self.inner.count(query).await
    }

    fn tail(&self, after: Revision) -> Tail {
        let (clock, fault) = (self.clock.clone(), self.fault);
        let spoil = move |batch: LogBatch| match fault {
            Fault::EmittingWithoutClosing => {
                LogBatch { closed: batch.closed.max(clock.shown()), ..batch }
            }
            Fault::ReattachingWithoutTelling => LogBatch { backfill: Backfill::default(), ..batch },
            _ => batch,
        };
        self.inner.tail(after).map_ok(spoil).boxed()
    }

    fn announce_closed(&self) -> Revision {
        self.inner.announce_closed()
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.inner.advance_closed(revision, ahead).await
    }

    async fn read_index(&self, range: &KeyRange, coverage: Coverage) -> Result<Revision> {
        if self.fault == Fault::TakingTheClockForThePresent {
            return Ok(self.clock.shown());
        }
        self.inner.read_index(range, coverage).await
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        self.inner.compact(revision, wait).await
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }

    async fn size(&self) -> Result<Size> {
        self.inner.size().await
    }
}

#[async_trait]
impl<S: RecordStore + ?Sized> RecordStore for Faulty<S> {
    async fn put_records(&self, mut changes: Vec<(String, Option<Bytes>)>) -> Result<()> {
        let fault = self.fault;
        let is_forgotten = |name: &str| match fault {
            Fault::RestartingAtGreatest => name == "reservation",
            Fault::ForgettingTheDetached => name.starts_with("slot/"),
            _ => false,
        };
        changes.retain(|(name, _)| !is_forgotten(name));
        self.inner.put_records(changes).await
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

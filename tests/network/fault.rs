//! What can be planted in a node, to see that the checks would notice: one rule of the algorithm left
//! out, where the parts of a node meet.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use pleach::{
    clock::{Lane, SharedClock},
    model::{KeyRange, Revision, StoreError, error::Result},
    store::{
        Batch, Described, Late, Page, Read, Size, Store, Tail, Whose, Write, Written,
        membership::Membership, node::call, presence::Presence,
    },
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
struct Faulty {
    inner: Arc<dyn Store>,
    clock: SharedClock,
    fault: Fault,
}

/// What a node has for a store of its own.
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
impl Store for Faulty {
    async fn apply(&self, write: Write) -> Result<Written> {
        let written = self.inner.apply(write.clone()).await;
        match (self.fault, written) {
            (Fault::RetryingUnknownOutcomes, Err(StoreError::UnknownOutcome { .. })) => {
                if let Some(presence) = self.presence() {
                    presence.there().await;
                }
                self.inner.apply(write).await
            }
            (_, written) => written,
        }
    }

    async fn read(&self, read: &Read) -> Result<Page> {
        let mut read = read.clone();
        let asked = read.revision;
        if self.fault == Fault::ListingEachLogAtItsOwnRevision {
            read.revision = 0;
        }
        let page = self.inner.read(&read).await?;
        Ok(Page { revision: if asked == 0 { page.revision } else { asked }, ..page })
    }

    async fn count(&self, range: &KeyRange, revision: Revision) -> Result<u64> {
        self.inner.count(range, revision).await
    }

    fn tail(&self, after: Revision) -> Tail {
        let (clock, fault) = (self.clock.clone(), self.fault);
        let spoil = move |batch: Batch| match fault {
            Fault::EmittingWithoutClosing => {
                Batch { closed: batch.closed.max(clock.shown()), ..batch }
            }
            Fault::ReattachingWithoutTelling => Batch { late: Late::default(), ..batch },
            _ => batch,
        };
        self.inner.tail(after).map_ok(spoil).boxed()
    }

    fn closed(&self) -> Revision {
        self.inner.closed()
    }

    async fn sync(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.inner.sync(revision, ahead).await
    }

    async fn present(&self, range: &KeyRange, whose: Whose) -> Result<Revision> {
        if self.fault == Fault::TakingTheClockForThePresent {
            return Ok(self.clock.shown());
        }
        self.inner.present(range, whose).await
    }

    fn is_here(&self, after: Revision) -> bool {
        self.inner.is_here(after)
    }

    fn presence(&self) -> Option<&Arc<Presence>> {
        self.inner.presence()
    }

    fn check_resumed(&self, after: Revision) -> Result<()> {
        if self.fault == Fault::ForgettingTheFloor {
            return Ok(());
        }
        self.inner.check_resumed(after)
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        self.inner.compact(revision, wait).await
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }

    async fn remember(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        let is_forgotten = match self.fault {
            Fault::RestartingAtGreatest => name == "reserved",
            Fault::ForgettingTheDetached => name.starts_with("presence/"),
            _ => false,
        };
        if is_forgotten { Ok(()) } else { self.inner.remember(name, value).await }
    }

    async fn recall(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.inner.recall(prefix).await
    }

    async fn size(&self) -> Result<Size> {
        self.inner.size().await
    }

    async fn describe(&self) -> Vec<Described> {
        self.inner.describe().await
    }

    fn narrow(self: Arc<Self>, _range: &KeyRange) -> Arc<dyn Store> {
        self
    }

    fn name(&self) -> &Arc<str> {
        self.inner.name()
    }
}

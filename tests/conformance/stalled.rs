//! A store that hangs until it is told not to, as one on a dead disk does.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use pleach::{
    model::{KeyRange, LeaseId, Revision, error::Result, txn::Txn},
    store::{
        Coverage, Described, Head, Page, Query, Size, Store, Tail, Written, attach::AttachState,
        meter::Meters,
    },
};
use tokio::sync::watch;

/// `inner`, whose answers wait while it is stalled.
#[derive(Clone, Debug)]
pub(crate) struct Stalled {
    inner: Arc<dyn Store>,
    is_stalled: watch::Sender<bool>,
}

// === impl Stalled ===

impl Stalled {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { inner, is_stalled: watch::Sender::new(true) })
    }

    pub(crate) fn resume(&self) {
        self.is_stalled.send_replace(false);
    }

    async fn pass(&self) {
        let mut is_stalled = self.is_stalled.subscribe();
        let resumed = is_stalled.wait_for(|is_stalled| !is_stalled).await;
        drop(resumed.expect("`self` holds the sender"));
    }
}

#[async_trait]
impl Store for Stalled {
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

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        self.pass().await;
        self.inner.apply(txn, dead_leases).await
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        self.pass().await;
        self.inner.end_lease(lease).await
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        self.pass().await;
        self.inner.leases().await
    }

    async fn read(&self, query: &Query) -> Result<Page> {
        self.pass().await;
        self.inner.read(query).await
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        self.pass().await;
        self.inner.count(query).await
    }

    fn tail(&self, after: Revision) -> Tail {
        let this = self.clone();
        let tail = async move {
            this.pass().await;
            Ok(this.inner.tail(after))
        };
        stream::once(tail).try_flatten().boxed()
    }

    fn announce_closed(&self) -> Revision {
        self.inner.announce_closed()
    }

    async fn read_index(&self, range: &KeyRange, coverage: Coverage) -> Result<Revision> {
        self.inner.read_index(range, coverage).await
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.pass().await;
        self.inner.advance_closed(revision, ahead).await
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        self.pass().await;
        self.inner.compact(revision, wait).await
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }

    async fn size(&self) -> Result<Size> {
        self.pass().await;
        self.inner.size().await
    }
}

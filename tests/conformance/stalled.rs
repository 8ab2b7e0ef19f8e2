//! A store that hangs until it is told not to, as one on a dead disk does.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use pleach::{
    model::{KeyRange, Revision, error::Result},
    store::{Page, Read, Size, Store, Tail, Whose, Write, Written},
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
    async fn apply(&self, write: Write) -> Result<Written> {
        self.pass().await;
        self.inner.apply(write).await
    }

    async fn read(&self, read: &Read) -> Result<Page> {
        self.pass().await;
        self.inner.read(read).await
    }

    async fn count(&self, range: &KeyRange, revision: Revision) -> Result<u64> {
        self.pass().await;
        self.inner.count(range, revision).await
    }

    fn tail(&self, after: Revision) -> Tail {
        let this = self.clone();
        let tail = async move {
            this.pass().await;
            Ok(this.inner.tail(after))
        };
        stream::once(tail).try_flatten().boxed()
    }

    fn closed(&self) -> Revision {
        self.inner.closed()
    }

    async fn present(&self, range: &KeyRange, whose: Whose) -> Result<Revision> {
        self.inner.present(range, whose).await
    }

    async fn sync(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.pass().await;
        self.inner.sync(revision, ahead).await
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        self.pass().await;
        self.inner.compact(revision, wait).await
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }

    async fn remember(&self, name: &str, value: Option<Bytes>) -> Result<()> {
        self.pass().await;
        self.inner.remember(name, value).await
    }

    async fn recall(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.pass().await;
        self.inner.recall(prefix).await
    }

    async fn size(&self) -> Result<Size> {
        self.pass().await;
        self.inner.size().await
    }

    fn narrow(self: Arc<Self>, _range: &KeyRange) -> Arc<dyn Store> {
        self
    }

    fn name(&self) -> &Arc<str> {
        self.inner.name()
    }
}

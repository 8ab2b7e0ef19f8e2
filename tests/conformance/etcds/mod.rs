//! What a store in an etcd promises besides: the etcd is others' as well.
//!
//! ```text
//!   others     what other clients of the etcd write, compact and restore
//!   histories  random writes by the node and by others at once: every revision reads as it was told
//!   kinds      old releases, clusters, users, TLS, and an etcd that holds much already
//!   trouble    connections that break, at chosen and at random moments
//! ```

mod histories;
mod kinds;
mod others;
mod trouble;

use std::sync::Arc;

use pleach::{
    clock::SharedClock,
    net::connect::Address,
    store::{RecordStore, etcd},
};

use crate::{
    follow::soon,
    support::etcd::Etcd,
    world::{address, fresh_clock},
};

/// The owner that these tests open stores as.
const OWNER: &str = "the etcd suite";

/// A store in an etcd, and a client that goes around it.
struct Bed {
    server: Etcd,
    client: etcd_client::Client,
    clock: SharedClock,
    store: Arc<dyn RecordStore>,
}

// === impl Bed ===

impl Bed {
    async fn open() -> Self {
        Self::over(crate::world::start_etcd().await).await
    }

    async fn over(server: Etcd) -> Self {
        let client = server.client().await.expect("the etcd takes clients");
        let clock = fresh_clock();
        let store = open(&server.url(), &clock).await;
        Self { server, client, clock, store }
    }

    /// Closes the store and opens it again, with a clock of its own.
    async fn reopened(self) -> Self {
        let Self { server, client, store, .. } = self;
        drop(store);
        let clock = fresh_clock();
        let store = open(&server.url(), &clock).await;
        Self { server, client, clock, store }
    }

    /// The revision of the etcd itself.
    async fn etcd_revision(&mut self) -> i64 {
        let found = self.client.get("none", None).await.expect("the etcd answers");
        found.header().expect("answers have headers").revision()
    }

    /// Waits until the store has given a revision to the last thing that others did.
    async fn told(&self, after: i64) -> Vec<Arc<pleach::model::Commit>> {
        let mut follower = crate::follow::Follower::start(&*self.store, after);
        soon("what others did is told", async {
            while follower.commits.is_empty() {
                follower.next().await.expect("nothing is compacted");
            }
        })
        .await;
        follower.commits
    }
}

async fn try_open(url: &str, clock: &SharedClock) -> Result<Arc<dyn RecordStore>, etcd::OpenError> {
    try_open_at(&address(url.to_owned()), clock).await
}

async fn try_open_at(
    address: &Address,
    clock: &SharedClock,
) -> Result<Arc<dyn RecordStore>, etcd::OpenError> {
    etcd::open("etcd", &address.urls[0], address, OWNER, clock.clone()).await
}

/// Opens a store once whoever had it has let it go.
async fn open(url: &str, clock: &SharedClock) -> Arc<dyn RecordStore> {
    open_at(&address(url.to_owned()), clock).await
}

async fn open_at(address: &Address, clock: &SharedClock) -> Arc<dyn RecordStore> {
    let open = async {
        loop {
            match try_open_at(address, clock).await {
                Err(etcd::OpenError::InUse { .. }) => tokio::task::yield_now().await,
                opened => return opened.expect("the etcd can be opened"),
            }
        }
    };
    soon("letting an etcd go", Box::pin(open)).await
}

//! A node: one clock, the stores behind it, and what etcd's verbs mean on them.
//!
//! ```text
//!   server/ ──> Node ─┬─ kv: range, txn, compact        one revision for each answer
//!                     ├─ leases: grant, expire, revoke  keys die with their lease
//!                     ├─ quota: the NOSPACE alarm
//!                     └─ hub: watches
//! ```
//!
//! It knows neither gRPC nor databases. All that must survive it lies in its stores.

mod kv;
mod lease;
mod queue;
mod quota;
mod reserve;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

pub use self::{
    kv::{Chunk, Header},
    lease::{GrantError, LeaseState, TTL_MAX, TTL_MIN},
    queue::Place,
};
use self::{lease::Lessor, quota::Quota};
use crate::{
    clock::SharedClock,
    model::{Revision, error::Result},
    store::{Size, Store},
    watch::Hub,
};

/// Who a node is, as its answers' headers say. Kept in its default store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The same for as long as the default store lives; never 0.
    pub cluster: u64,
    /// Likewise.
    pub member: u64,
}

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often watchers that asked for it are told how far they are.
    pub progress_every: Duration,
    /// Bytes on disk after which puts are refused; 0 for no bound.
    pub quota_bytes: u64,
}

/// A node; see the module.
#[derive(Debug)]
pub struct Node {
    root: Arc<dyn Store>,
    clock: SharedClock,
    hub: Arc<Hub>,
    lessor: Lessor,
    quota: Quota,
    identity: Identity,
    options: Options,
}

// === impl Node ===

impl Node {
    /// A node over `root`, whose stores take their revisions from `clock`. Leases that it knew
    /// before live on, and expire in the task that [`Node::expire_leases`] is.
    ///
    /// # Errors
    /// Where the default store can't be read or written.
    pub async fn start(
        root: Arc<dyn Store>,
        clock: SharedClock,
        options: Options,
    ) -> Result<Arc<Self>> {
        Self::start_without(root, clock, options, &[]).await
    }

    /// The same while some stores of `root` are late: their names.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_without(
        root: Arc<dyn Store>,
        clock: SharedClock,
        options: Options,
        late: &[Arc<str>],
    ) -> Result<Arc<Self>> {
        reserve::begin(&*root, &clock, late).await?;
        let identity = Identity::recall(&*root).await?;
        let lessor = Lessor::recall(&*root).await?;
        let quota = Quota::recall(&*root, options.quota_bytes).await?;
        let hub = Hub::new(root.clone(), clock.clone());
        Ok(Arc::new(Self { root, clock, hub, lessor, quota, identity, options }))
    }

    /// Reserves revisions ahead of the clock, for ever.
    pub async fn reserve_revisions(self: Arc<Self>) {
        reserve::keep(&*self.root, &self.clock, self.clock.now()).await;
    }

    /// Who the node is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The revision that every answer from now on is at least as new as.
    pub fn revision(&self) -> Revision {
        self.clock.shown()
    }

    /// The hub of its watches.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// What it holds, as one store.
    pub fn root(&self) -> &Arc<dyn Store> {
        &self.root
    }

    /// What the operator set.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The bytes on disk of all its stores.
    ///
    /// # Errors
    /// Where a store can't be reached.
    pub async fn size(&self) -> Result<Size> {
        self.root.size().await
    }
}

// === impl Identity ===

impl Identity {
    async fn recall(root: &dyn Store) -> Result<Self> {
        const RECORD: &str = "identity";
        if let Some((_, bytes)) = root.recall(RECORD).await?.pop()
            && let Some(identity) = Self::decode(&bytes)
        {
            return Ok(identity);
        }
        let identity = Self { cluster: random(), member: random() };
        let bytes = [identity.cluster.to_be_bytes(), identity.member.to_be_bytes()].concat();
        root.remember(RECORD, Some(Bytes::from(bytes))).await?;
        Ok(identity)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (cluster, member) = bytes.split_at_checked(8)?;
        Some(Self {
            cluster: u64::from_be_bytes(cluster.try_into().ok()?),
            member: u64::from_be_bytes(member.try_into().ok()?),
        })
    }
}

/// A random number that is positive as an `i64` too. The standard library's hasher is seeded by the
/// system, which is all that ids need.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (hash >> 1).max(1)
}

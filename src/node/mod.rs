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

pub use self::{
    kv::{Chunk, Header},
    lease::{GrantError, LeaseState, TTL_MAX, TTL_MIN},
    queue::Place,
};
use self::{lease::Lessor, quota::Quota};
use crate::{
    clock::SharedClock,
    model::{Revision, StoreError, error::Result},
    store::{
        Size, Store, Write, Written,
        membership::{Identity, Membership, random},
    },
    watch::Hub,
};

/// What a node is called whose operator does not say.
pub const DEFAULT_NAME: &str = "default";

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
    membership: Arc<Membership>,
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
        let membership = Membership::recall(root.clone(), clock, DEFAULT_NAME).await?;
        Self::start_in(root, membership, options, &[]).await
    }

    /// The same with a place in a tree, while some stores of `root` are late: their names.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_in(
        root: Arc<dyn Store>,
        membership: Arc<Membership>,
        options: Options,
        late: &[Arc<str>],
    ) -> Result<Arc<Self>> {
        let clock = membership.clock().clone();
        reserve::begin(&*root, &clock, late).await?;
        let lessor = Lessor::recall(&*root).await?;
        let quota = Quota::recall(&*root, options.quota_bytes).await?;
        let hub = Hub::new(root.clone(), clock.clone());
        Ok(Arc::new(Self { root, clock, hub, lessor, quota, membership, options }))
    }

    /// Reserves revisions ahead of the clock, for ever.
    pub async fn reserve_revisions(self: Arc<Self>) {
        reserve::keep(&*self.root, &self.clock, self.clock.now()).await;
    }

    /// Who the node is.
    pub fn identity(&self) -> Identity {
        self.membership.identity()
    }

    /// Its place in its tree.
    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Moves the clock up to what a parent has reached.
    ///
    /// # Errors
    /// For what is no revision.
    pub async fn take_up(&self, revision: Revision) -> Result<()> {
        let taken = self.clock.take_up(revision).await;
        taken.map_err(|full| StoreError::Unavailable {
            store: self.root.name().clone(),
            reason: full.to_string().into(),
        })
    }

    /// Applies what a parent sends, whose leases are none of this node's.
    ///
    /// # Errors
    /// Those of the stores, and `NoSpace` where the quota is used up.
    pub async fn apply(&self, write: Write) -> Result<Written> {
        if let Write::Txn { txn, .. } = &write {
            self.quota.admit(&*self.root, txn).await?;
        }
        self.root.apply(write).await
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

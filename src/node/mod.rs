//! A node: one clock, the stores behind it, and what etcd's verbs mean on them.
//!
//! ```text
//!   server/ ──> Node ─┬─ kv: range, txn, compact        one revision for each answer
//!                     ├─ leases: grant, expire, revoke  keys die with their lease
//!                     ├─ quota, alarms: what is refused meanwhile
//!                     └─ hub: watches
//! ```
//!
//! It knows neither gRPC nor databases. All that must survive it lies in its stores.

mod alarms;
mod counted;
mod foreign;
pub mod kinds;
mod kv;
mod lease;
mod queue;
mod quota;
mod reserve;

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use tracing::Instrument as _;

use self::{alarms::Alarms, counted::Counted, foreign::ForeignLeases, lease::Lessor, quota::Quota};
pub use self::{
    alarms::{Alarm, AlarmKind},
    foreign::Fence,
    kv::{Chunk, Header},
    lease::{GrantError, LeaseState, TTL_MAX, TTL_MIN},
    queue::Contender,
};
use crate::{
    clock::{LaneBlock, SharedClock},
    model::{Revision, StoreError, error::Result},
    route::Router,
    store::{Size, Store, meter::Meter, records::Records},
    tree::{
        Identity,
        membership::{JoinError, Membership},
        parent::Caller,
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
    /// Whether a deletion that spans stores is carried out in each, and no transaction any more.
    pub splits_deletes: bool,
}

/// A node; see the module.
#[derive(Debug)]
pub struct Node {
    root: Arc<Router>,
    clock: SharedClock,
    hub: Arc<Hub>,
    counted: Counted,
    lessor: Lessor,
    foreign: ForeignLeases,
    quota: Quota,
    alarms: Arc<Alarms>,
    membership: Arc<Membership>,
    options: Options,
    requests: Arc<Meter>,
}

/// Runs what has begun to change state to its end, also where whoever asked goes meanwhile.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work.in_current_span()).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being shut down, and this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

// === impl Node ===

impl Node {
    /// A node over `root`, with its place in a tree, while some stores of `root` are not open yet: their
    /// names. Leases that it knew before live on, and expire in the task that [`Node::expire_leases`] is.
    ///
    /// # Errors
    /// `Damaged` where a record can't be read, and those of the default store.
    pub async fn start(
        root: Arc<Router>,
        membership: Arc<Membership>,
        options: Options,
        late: &[Arc<str>],
    ) -> Result<Arc<Self>> {
        let clock = membership.clock().clone();
        let records = membership.records();
        reserve::begin(records, root.name(), &clock, late).await?;
        let lessor = Lessor::load(records).await?;
        let quota = Quota::new(options.quota_bytes);
        let alarms = Arc::new(Alarms::load(records, membership.identity().member).await?);
        let hub = Hub::new(root.clone(), clock.clone());
        let foreign = ForeignLeases::default();
        Ok(Arc::new(Self {
            root,
            clock,
            hub,
            counted: Counted::default(),
            lessor,
            foreign,
            quota,
            alarms,
            membership,
            options,
            requests: Arc::default(),
        }))
    }

    /// Reserves revisions ahead of the clock, for ever.
    pub async fn reserve_revisions(self: Arc<Self>) {
        reserve::keep(self.records(), self.root.name(), &self.clock, self.clock.now()).await;
    }

    /// Gives up every store, and keeps where the clock stands, so that the next life goes on there. Nothing
    /// may be asked of the node any more.
    pub async fn close(&self) {
        if let Err(error) = reserve::end(self.records(), self.root.name(), &self.clock).await {
            tracing::warn!(%error, "where the clock stands was not kept; the next start leaps ahead");
        }
        self.root.close().await;
    }

    /// Who the node is.
    pub fn identity(&self) -> Identity {
        self.membership.identity()
    }

    /// Its place in its tree.
    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Takes the lanes that a parent brings; see [`Membership::join`].
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(
        self: Arc<Self>,
        caller: Caller,
        lanes: Vec<LaneBlock>,
        credential: Bytes,
        revision: Revision,
    ) -> Result<(), JoinError> {
        let join = async move { self.membership.join(&caller, lanes, credential, revision).await };
        to_the_end(join).await
    }

    /// Moves the clock up to what a parent has reached.
    ///
    /// # Errors
    /// For what is no revision.
    pub async fn advance_to(&self, revision: Revision) -> Result<()> {
        let taken = self.clock.advance_to(revision).await;
        taken.map_err(|full| StoreError::Unavailable {
            store: self.root.name().clone(),
            reason: full.to_string().into(),
        })
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
    pub fn root(&self) -> &Arc<Router> {
        &self.root
    }

    fn records(&self) -> &Records {
        self.membership.records()
    }

    /// What clients asked for, but for streams: counted by who serves them.
    pub fn requests(&self) -> &Arc<Meter> {
        &self.requests
    }

    /// What the operator set.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Gives what is free in its files back to the disk, and says whether it has any; see
    /// [`Store::defragment`]. It runs to its end, also where whoever asked has gone.
    ///
    /// # Errors
    /// The last of those of its stores; the others are done all the same.
    pub async fn defragment(self: &Arc<Self>) -> Result<bool> {
        let root = self.root.clone();
        to_the_end(async move { root.defragment().await }).await
    }

    /// The bytes on disk of all its stores.
    ///
    /// # Errors
    /// Where a store can't be reached.
    pub async fn size(&self) -> Result<Size> {
        self.root.size().await
    }
}

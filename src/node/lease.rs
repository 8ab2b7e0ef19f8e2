//! Leases: granted, kept alive, and ended with all their keys.
//!
//! A lease is a record in the default store; which keys it has, the rows of the keys say. When it was
//! last kept alive is known here only: after a restart each lease has its whole time again, as in etcd
//! after an election.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use tracing::Instrument as _;

use super::Node;
use crate::{
    model::{Key, KeyRange, LeaseId, Revision, StoreError, error::Result},
    store::{Read, Store, Write, read_all},
};

/// The longest time to live, in seconds.
pub const TTL_MAX: i64 = 9_000_000_000;

/// The shortest; who asks for less gets this.
pub const TTL_MIN: i64 = 2;

/// How long to wait before ending a lease is tried again, where a store can't be reached.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How many expired leases are ended at once.
const ENDED_AT_ONCE_MAX: usize = 64;

/// The leases' records are named by this and their id.
const RECORDS: &str = "lease/";

/// All leases of a node.
#[derive(Debug)]
pub(super) struct Lessor {
    table: Arc<Mutex<Table>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Table {
    leases: HashMap<LeaseId, Lease>,
    /// Those that are not being ended, by when they expire.
    expiries: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Debug)]
struct Lease {
    ttl: i64,
    expiry: Instant,
    /// Writes on their way that attach keys to it.
    entered: usize,
    is_ending: bool,
}

/// Why a lease was not granted.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// Its time is beyond [`TTL_MAX`].
    #[error("the time to live is too long")]
    TooLong,
    /// Its id is taken.
    #[error("the lease exists already")]
    Exists,
    /// It could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A lease as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// Its time to live as granted, in seconds.
    pub granted: i64,
    /// The seconds that are left of it.
    pub left: i64,
}

/// Keeps leases from ending while a write that names them is on its way.
#[derive(Debug)]
pub(super) struct Entered {
    leases: Vec<LeaseId>,
    table: Arc<Mutex<Table>>,
    changed: Arc<Notify>,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // No code panics while it holds the lock.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(id: LeaseId) -> String {
    format!("{RECORDS}{id}")
}

// === impl Lessor ===

impl Lessor {
    pub(super) async fn recall(root: &dyn Store) -> Result<Self> {
        let mut table = Table::default();
        for (name, bytes) in root.recall(RECORDS).await? {
            let id = name.strip_prefix(RECORDS).and_then(|id| id.parse().ok());
            let ttl = bytes.as_ref().try_into().ok().map(i64::from_be_bytes);
            match (id, ttl) {
                (Some(id), Some(ttl)) => table.insert(id, ttl),
                _ => tracing::warn!(record = name, "a record of a lease can't be read"),
            }
        }
        Ok(Self { table: Arc::new(Mutex::new(table)), changed: Arc::default() })
    }

    /// Notes that a write that names `leases` is on its way, and returns those that do not exist.
    pub(super) fn enter(&self, leases: BTreeSet<LeaseId>) -> (Option<Entered>, Vec<LeaseId>) {
        if leases.is_empty() {
            return (None, Vec::new());
        }
        let (mut entered, mut dead) = (Vec::new(), Vec::new());
        let mut table = lock(&self.table);
        for id in leases {
            match table.leases.get_mut(&id).filter(|lease| !lease.is_ending) {
                Some(lease) => {
                    lease.entered += 1;
                    entered.push(id);
                }
                None => dead.push(id),
            }
        }
        drop(table);
        let (table, changed) = (self.table.clone(), self.changed.clone());
        (Some(Entered { leases: entered, table, changed }), dead)
    }

    /// Marks a lease as ending, so that no write enters it, and waits for those that have.
    async fn end(&self, id: LeaseId) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                match lock(&self.table).mark_ending(id) {
                    None => return Err(StoreError::LeaseNotFound(id)),
                    Some(0) => return Ok(()),
                    Some(_) => {}
                }
            }
            changed.await;
        }
    }

    /// Waits until a lease has expired. From then on nothing keeps it alive.
    async fn expired(&self) -> LeaseId {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next = {
                let mut table = lock(&self.table);
                let next = table.expiries.first().copied();
                if let Some((expiry, id)) = next
                    && expiry <= Instant::now()
                {
                    table.mark_ending(id);
                    return id;
                }
                next
            };
            match next {
                Some((expiry, _)) => {
                    // Either way the first is looked at again.
                    let _ = tokio::time::timeout_at(expiry, changed).await;
                }
                None => changed.await,
            }
        }
    }
}

// === impl Table ===

impl Table {
    fn insert(&mut self, id: LeaseId, ttl: i64) {
        let expiry = Instant::now() + seconds(ttl);
        self.expiries.insert((expiry, id));
        self.leases.insert(id, Lease { ttl, expiry, entered: 0, is_ending: false });
    }

    /// From now on no write enters the lease. Returns how many have.
    fn mark_ending(&mut self, id: LeaseId) -> Option<usize> {
        let lease = self.leases.get_mut(&id)?;
        lease.is_ending = true;
        let (entered, expiry) = (lease.entered, lease.expiry);
        self.expiries.remove(&(expiry, id));
        Some(entered)
    }

    /// Sets when a lease expires, also one whose end has failed.
    fn rearm(&mut self, id: LeaseId, expiry: Instant) {
        if let Some(lease) = self.leases.get_mut(&id) {
            self.expiries.remove(&(lease.expiry, id));
            lease.expiry = expiry;
            self.expiries.insert((expiry, id));
        }
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        for id in &self.leases {
            if let Some(lease) = table.leases.get_mut(id) {
                lease.entered -= 1;
            }
        }
        drop(table);
        self.changed.notify_waiters();
    }
}

impl Node {
    /// Grants a lease of `ttl` seconds, with an id of its own where `id` is 0. Returns id and
    /// seconds.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub async fn grant_lease(&self, id: LeaseId, ttl: i64) -> Result<(LeaseId, i64), GrantError> {
        if ttl > TTL_MAX {
            return Err(GrantError::TooLong);
        }
        self.quota.admit_lease()?;
        let ttl = ttl.max(TTL_MIN);
        let id = {
            let mut table = lock(&self.lessor.table);
            let id = match id {
                0 => std::iter::repeat_with(|| super::random() as LeaseId)
                    .find(|id| !table.leases.contains_key(id))
                    .expect("the iterator does not end"),
                id if table.leases.contains_key(&id) => return Err(GrantError::Exists),
                id => id,
            };
            // Its id is taken, but no write may name it before it is durable.
            table.insert(id, ttl);
            table.mark_ending(id);
            id
        };
        let kept = Bytes::copy_from_slice(&ttl.to_be_bytes());
        let kept = self.root.remember(&record(id), Some(kept)).await;
        let mut table = lock(&self.lessor.table);
        if let Err(error) = kept {
            table.leases.remove(&id);
            return Err(error.into());
        }
        table.insert(id, ttl);
        drop(table);
        self.lessor.changed.notify_waiters();
        Ok((id, ttl))
    }

    /// Ends a lease: its keys are deleted at one revision in each store that has some.
    ///
    /// # Errors
    /// `LeaseNotFound`, and those of the stores; then the lease will be ended again.
    pub async fn revoke_lease(self: &Arc<Self>, id: LeaseId) -> Result<Revision> {
        // In a task of its own, which goes on where whoever asked has gone: a lease is ended whole.
        let node = self.clone();
        let revoking = async move { node.revoke(id).await };
        let ended = tokio::spawn(revoking.in_current_span()).await;
        ended.unwrap_or_else(|error| {
            let reason = error.to_string().into();
            Err(StoreError::Unavailable { store: "leases".into(), reason })
        })
    }

    async fn revoke(&self, id: LeaseId) -> Result<Revision> {
        self.lessor.end(id).await?;
        let ended = self.end_lease(id).await;
        let mut table = lock(&self.lessor.table);
        if ended.is_ok() {
            table.leases.remove(&id);
        } else {
            table.rearm(id, Instant::now() + RETRY_AFTER);
        }
        drop(table);
        self.lessor.changed.notify_waiters();
        ended.map(|()| self.revision())
    }

    async fn end_lease(&self, id: LeaseId) -> Result<()> {
        self.root.apply(Write::DeleteLeased(id)).await?;
        self.root.remember(&record(id), None).await
    }

    /// Gives a lease its whole time again; returns it, or `None` where there is no such lease.
    pub fn keep_lease_alive(&self, id: LeaseId) -> Option<i64> {
        let mut table = lock(&self.lessor.table);
        let lease = table.leases.get(&id).filter(|lease| !lease.is_ending)?;
        let ttl = lease.ttl;
        table.rearm(id, Instant::now() + seconds(ttl));
        Some(ttl)
    }

    /// How a lease stands; `None` where there is no such lease.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseState> {
        let table = lock(&self.lessor.table);
        let lease = table.leases.get(&id)?;
        let left = lease.expiry.saturating_duration_since(Instant::now());
        // etcd cuts to whole seconds.
        let left = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        Some(LeaseState { granted: lease.ttl, left })
    }

    /// The keys of a lease, in order.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn keys_of_lease(&self, lease: LeaseId) -> Result<Vec<Key>> {
        let read = Read { lease, keys_only: true, ..Read::new(KeyRange::all(), 0) };
        let page = read_all(&*self.root, &read).await?;
        Ok(page.kvs.into_iter().map(|kv| kv.key).collect())
    }

    /// All leases, those that expire first before the others.
    pub fn leases(&self) -> Vec<LeaseId> {
        let table = lock(&self.lessor.table);
        let by_expiry: BTreeMap<(Instant, LeaseId), ()> =
            table.leases.iter().map(|(id, lease)| ((lease.expiry, *id), ())).collect();
        by_expiry.into_keys().map(|(_, id)| id).collect()
    }

    /// Ends leases as they expire, for ever. Many at once, so that a store which does not answer holds
    /// up the leases of its own keys only.
    pub async fn expire_leases(self: Arc<Self>) {
        let turns = Arc::new(Semaphore::new(ENDED_AT_ONCE_MAX));
        loop {
            let id = self.lessor.expired().await;
            let turn = turns.clone().acquire_owned().await;
            let node = self.clone();
            tokio::spawn(async move {
                let _turn = turn;
                if let Err(error) = node.revoke(id).await {
                    tracing::warn!(lease = id, %error, "an expired lease could not be ended");
                }
            });
        }
    }
}

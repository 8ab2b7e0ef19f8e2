//! Leases: granted, kept alive, and ended with all their keys.
//!
//! A lease is a record in the default store; which keys it has, the rows of the keys say. When it was
//! last kept alive is known here only: after a restart each lease has its whole time again, as in etcd
//! after an election.
//!
//! ```text
//!   granted ──> alive ──> expired or revoked ──> ending, durably ──> its keys go, store by store ──> gone
//! ```
//!
//! A lease is ending, durably, before its first key goes: from then on it is gone for everyone, and its end
//! is carried on, over restarts, until every store has deleted its keys. What changes a lease runs to its
//! end, also where whoever asked has gone.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::{Node, alarms::AlarmKind, to_the_end};
use crate::{
    model::{Key, KeyRange, LeaseId, Revision, StoreError, error::Result},
    proto::records::Lease as Record,
    store::{
        Query, Store, read_all,
        records::{Changes, Records},
    },
};

/// The longest time to live, in seconds.
pub const TTL_MAX: i64 = 9_000_000_000;

/// The shortest; who asks for less gets this.
pub const TTL_MIN: i64 = 2;

/// How long to wait before ending a lease is tried again, where a store can't be reached.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often that is doubled.
const RETRY_DOUBLINGS_MAX: u32 = 3;

/// How often the keys of a lease are looked for where compaction comes in between.
const LOOKS_MAX: usize = 4;

/// How many expired leases are ended at once.
const ENDED_AT_ONCE_MAX: usize = 64;

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
    /// Whether that is durable.
    is_kept_ending: bool,
    /// Whether somebody is at it: it is being granted, or its keys are being deleted.
    is_in_hand: bool,
    /// How often its end has failed.
    failed: u32,
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

// === impl Lessor ===

impl Lessor {
    pub(super) async fn load(records: &Records) -> Result<Self> {
        let mut table = Table::default();
        for (id, Record { ttl, is_ending }) in records.leases().await? {
            table.insert(id, ttl);
            if is_ending {
                table.mark_ending(id);
                table.rearm(id, Instant::now());
                if let Some(lease) = table.leases.get_mut(&id) {
                    lease.is_kept_ending = true;
                }
            }
        }
        Ok(Self { table: Arc::new(Mutex::new(table)), changed: Arc::default() })
    }

    /// Whether there is such a lease, alive or ending.
    pub(super) fn knows(&self, id: LeaseId) -> bool {
        lock(&self.table).leases.contains_key(&id)
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

    /// Marks a lease as ending, so that no write enters it, and waits for those that have, and for whoever
    /// is at it. From then on it is in the caller's hand.
    async fn take_in_hand(&self, id: LeaseId) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut table = lock(&self.table);
                let lease = table.mark_ending(id).ok_or(StoreError::LeaseNotFound(id))?;
                if lease.entered == 0 && !lease.is_in_hand {
                    lease.is_in_hand = true;
                    return Ok(());
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
                    table.expiries.remove(&(expiry, id));
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
        let lease = Lease {
            ttl,
            expiry,
            entered: 0,
            is_ending: false,
            is_kept_ending: false,
            is_in_hand: false,
            failed: 0,
        };
        self.leases.insert(id, lease);
    }

    /// From now on no write enters the lease, and it does not expire.
    fn mark_ending(&mut self, id: LeaseId) -> Option<&mut Lease> {
        let lease = self.leases.get_mut(&id)?;
        lease.is_ending = true;
        self.expiries.remove(&(lease.expiry, id));
        Some(lease)
    }

    fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.remove(&id) {
            self.expiries.remove(&(lease.expiry, id));
        }
    }

    /// Sets when a lease expires, also one whose end has failed.
    fn rearm(&mut self, id: LeaseId, expiry: Instant) {
        if let Some(lease) = self.leases.get_mut(&id) {
            self.expiries.remove(&(lease.expiry, id));
            lease.expiry = expiry;
            lease.is_in_hand = false;
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
    pub async fn grant_lease(
        self: &Arc<Self>,
        id: LeaseId,
        ttl: i64,
    ) -> Result<(LeaseId, i64), GrantError> {
        let node = self.clone();
        to_the_end(async move { node.grant(id, ttl).await }).await
    }

    async fn grant(&self, id: LeaseId, ttl: i64) -> Result<(LeaseId, i64), GrantError> {
        self.admit_lease()?;
        if ttl > TTL_MAX {
            return Err(GrantError::TooLong);
        }
        let ttl = ttl.max(TTL_MIN);
        let entropy = self.membership.entropy();
        let id = {
            let mut table = lock(&self.lessor.table);
            let id = match id {
                0 => std::iter::repeat_with(|| entropy.id() as LeaseId)
                    .find(|id| !table.leases.contains_key(id))
                    .expect("the iterator does not end"),
                id if table.leases.contains_key(&id) => return Err(GrantError::Exists),
                id => id,
            };
            // Its id is taken, but no write may name it before it is durable.
            table.insert(id, ttl);
            if let Some(lease) = table.mark_ending(id) {
                lease.is_in_hand = true;
            }
            id
        };
        let record = Record { ttl, is_ending: false };
        let kept = self.records().write(Changes::default().put_at(id, &record)).await;
        let mut table = lock(&self.lessor.table);
        match kept {
            Ok(()) => table.insert(id, ttl),
            // It may be there after a restart; a record that nobody was told of ends by itself.
            Err(StoreError::UnknownOutcome { .. }) => table.rearm(id, Instant::now()),
            Err(_) => table.remove(id),
        }
        drop(table);
        self.lessor.changed.notify_waiters();
        kept?;
        Ok((id, ttl))
    }

    /// Ends a lease: its keys are deleted at one revision in each store that has some. Returns the
    /// greatest of these; where there was no key, one as of which there is none.
    ///
    /// # Errors
    /// `LeaseNotFound`, and those of the stores; then the lease is gone, and what is left of its keys is
    /// deleted as soon as their stores can be reached.
    pub async fn revoke_lease(self: &Arc<Self>, id: LeaseId) -> Result<Revision> {
        self.check_intact()?;
        let node = self.clone();
        to_the_end(async move { node.revoke(id).await }).await
    }

    async fn revoke(&self, id: LeaseId) -> Result<Revision> {
        self.lessor.take_in_hand(id).await?;
        let ended = self.end_lease(id).await;
        {
            let mut table = lock(&self.lessor.table);
            let failed = table.leases.get_mut(&id).map_or(0, |lease| {
                lease.failed += 1;
                lease.failed - 1
            });
            match &ended {
                Ok(_) => table.remove(id),
                Err(error) => {
                    let pause = RETRY_AFTER * 2u32.pow(failed.min(RETRY_DOUBLINGS_MAX));
                    table.rearm(id, Instant::now() + pause);
                    if failed == 0 {
                        tracing::warn!(lease = id, %error, "a lease could not be ended, and is tried again");
                    }
                }
            }
        }
        self.lessor.changed.notify_waiters();
        ended
    }

    async fn end_lease(&self, id: LeaseId) -> Result<Revision> {
        let state = lock(&self.lessor.table).leases.get(&id).map(|it| (it.ttl, it.is_kept_ending));
        let (ttl, is_kept) = state.unwrap_or((TTL_MIN, false));
        if !is_kept {
            let ending = Record { ttl, is_ending: true };
            self.records().write(Changes::default().put_at(id, &ending)).await?;
            if let Some(lease) = lock(&self.lessor.table).leases.get_mut(&id) {
                lease.is_kept_ending = true;
            }
        }
        let revision = self.root.end_lease(id).await?;
        self.records().write(Changes::default().delete_at::<Record>(id)).await?;
        Ok(revision.unwrap_or_else(|| self.revision()))
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
        let lease = table.leases.get(&id).filter(|lease| !lease.is_ending)?;
        let left = lease.expiry.saturating_duration_since(Instant::now());
        // etcd cuts to whole seconds.
        let left = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        Some(LeaseState { granted: lease.ttl, left })
    }

    /// The keys of a lease, in order, and the revision as of which it had them.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn keys_of_lease(&self, lease: LeaseId) -> Result<(Revision, Vec<Key>)> {
        for _ in 1..LOOKS_MAX {
            match self.keys_of_lease_once(lease).await {
                // What came since was compacted away already.
                Err(StoreError::Compacted { .. }) => {}
                found => return found,
            }
        }
        self.keys_of_lease_once(lease).await
    }

    async fn keys_of_lease_once(&self, lease: LeaseId) -> Result<(Revision, Vec<Key>)> {
        let query = Query { lease, keys_only: true, ..Query::new(KeyRange::all(), 0) };
        let page = read_all(&*self.root, &query).await?;
        Ok((page.revision, page.kvs.into_iter().map(|kv| kv.key).collect()))
    }

    /// All leases that are alive, those that expire first before the others.
    pub fn leases(&self) -> Vec<LeaseId> {
        let table = lock(&self.lessor.table);
        let alive = table.leases.iter().filter(|(_, lease)| !lease.is_ending);
        let by_expiry: BTreeSet<(Instant, LeaseId)> =
            alive.map(|(id, lease)| (lease.expiry, *id)).collect();
        by_expiry.into_iter().map(|(_, id)| id).collect()
    }

    /// The leases of live keys that this node did not grant: a parent's, or of nobody any more.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn foreign_leases(&self) -> Result<BTreeSet<LeaseId>> {
        let mut leases = self.root.leases().await?;
        leases.retain(|id| !self.lessor.knows(*id));
        Ok(leases)
    }

    /// Deletes the keys in `store` whose leases do not exist: they ended while it was away, or the default
    /// store is older than they. A node that has a parent leaves that to it, since leases may be the
    /// parent's.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn end_dead_leases(&self, store: &dyn Store) -> Result<()> {
        if self.membership.parent().is_some() {
            return Ok(());
        }
        self.check_intact()?;
        // First which leases have keys, then which exist: one is granted before its first key comes.
        let mut dead = store.leases().await?;
        dead.retain(|id| !self.lessor.knows(*id));
        for lease in dead {
            if self.lessor.knows(lease) || self.membership.parent().is_some() {
                continue;
            }
            if let Some(revision) = store.end_lease(lease).await? {
                let store = store.name();
                tracing::warn!(%store, lease, revision, "keys of a lease that does not exist are deleted");
            }
        }
        Ok(())
    }

    /// Ends leases as they expire, for ever. Many at once, so that a store which does not answer holds
    /// up the leases of its own keys only.
    pub async fn expire_leases(self: Arc<Self>) {
        let turns = Arc::new(Semaphore::new(ENDED_AT_ONCE_MAX));
        loop {
            // Nothing is changed before an operator has looked: leases live on, as in etcd.
            while self.alarms.has(AlarmKind::Corrupt) {
                tokio::time::sleep(RETRY_AFTER).await;
            }
            let id = self.lessor.expired().await;
            let turn = turns.clone().acquire_owned().await;
            let node = self.clone();
            tokio::spawn(async move {
                let _turn = turn;
                // Whoever ends it says so in the log, and sees to it that it is tried again.
                let _ = node.revoke(id).await;
            });
        }
    }
}

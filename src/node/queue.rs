//! Waiting in line under a name, which locks and elections are made of.
//!
//! Who enters the line puts a key `name/<lease in hex>`; the line's order is that of create revisions.
//! The first of the line holds the lock, or leads.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;

use super::{Node, to_the_end};
use crate::{
    model::{
        Key, KeyRange, KeyValue, LeaseId, Revision, StoreError,
        error::Result,
        txn::{
            Against, Bounds, Compare, Op, OpResult, Order, OrderBy, PutOp, RangeOp, Relation, Txn,
        },
    },
    store::{Store as _, Written},
};

/// The seconds of the lease that someone gets who brings none.
const LEASE_TTL: i64 = 60;

/// A place in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// The key that stands in the line.
    pub key: Key,
    /// The revision that created it, which orders the line.
    pub revision: Revision,
    /// Its lease.
    pub lease: LeaseId,
}

/// Someone in a line who is not yet its head.
struct Waiting {
    node: Arc<Node>,
    place: Contender,
    /// The revision at which it entered, or entered again: who enters behind it with the same lease has the
    /// same place, and must not lose it.
    entered: Revision,
    is_head: bool,
}

/// How long it takes until a place that could not be left is left again.
const LEAVE_AGAIN_AFTER: Duration = Duration::from_secs(2);

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_head {
            return;
        }
        let (node, entered) = (Arc::downgrade(&self.node), self.entered);
        let key = self.place.key.clone();
        tokio::spawn(async move {
            let mut is_logged = false;
            // Those behind it wait for it to go.
            while let Some(node) = node.upgrade() {
                let left = node.leave(&key, Against::Mod(entered)).await;
                drop(node);
                let Err(error) = left else { return };
                if !is_logged {
                    tracing::warn!(%error, "a place in a line could not be left yet");
                }
                is_logged = true;
                tokio::time::sleep(LEAVE_AGAIN_AFTER).await;
            }
        });
    }
}

/// The keys of a line.
fn line(name: &[u8]) -> KeyRange {
    let mut prefix = BytesMut::from(name);
    prefix.put_u8(b'/');
    KeyRange::prefix(prefix.freeze())
}

fn created_at(key: &Key, revision: Revision) -> Compare {
    let range = KeyRange::single(key.clone());
    Compare { range, relation: Relation::Equal, against: Against::Create(revision) }
}

fn put(key: &Key, value: Bytes, lease: LeaseId) -> Op {
    let (keep_value, keep_lease, prev_kv) = (false, false, false);
    Op::Put(PutOp { key: key.clone(), value, lease, prev_kv, keep_value, keep_lease })
}

impl Node {
    /// Enters the line `name` and waits for its head. Returns the place and the revision at which
    /// it was the head. Who stops waiting leaves the line.
    ///
    /// # Errors
    /// Where the lease ends before, or is not known, and those of the stores.
    pub async fn line_up(
        self: &Arc<Self>,
        name: &[u8],
        lease: LeaseId,
        value: Bytes,
    ) -> Result<(Contender, Revision)> {
        let lease = match lease {
            0 => self.lease_for_line().await?,
            lease => lease,
        };
        let mut waiting = self.enter_line(name, lease, value).await?;
        let revision = self.wait_for_head(name, &waiting.place).await?;
        waiting.is_head = true;
        Ok((waiting.place.clone(), revision))
    }

    /// In a task of its own: whoever asked may go while the key is being written, and the key must
    /// not stay.
    async fn enter_line(
        self: &Arc<Self>,
        name: &[u8],
        lease: LeaseId,
        value: Bytes,
    ) -> Result<Waiting> {
        let (node, name) = (self.clone(), Bytes::copy_from_slice(name));
        let entering = async move {
            let (place, entered) = node.put_in_line(&name, lease, value).await?;
            Ok(Waiting { node, place, entered, is_head: false })
        };
        to_the_end(entering).await
    }

    async fn lease_for_line(self: &Arc<Self>) -> Result<LeaseId> {
        let granted = self.grant_lease(0, LEASE_TTL).await;
        granted.map(|(id, _)| id).map_err(|error| match error {
            super::GrantError::Store(error) => error,
            other => {
                StoreError::Unavailable { store: "leases".into(), reason: other.to_string().into() }
            }
        })
    }

    /// The place, and the revision at which it was entered.
    async fn put_in_line(
        &self,
        name: &[u8],
        lease: LeaseId,
        value: Bytes,
    ) -> Result<(Contender, Revision)> {
        let mut key = BytesMut::from(name);
        key.put_slice(format!("/{lease:x}").as_bytes());
        let key = key.freeze();
        let txn = Txn {
            compares: vec![created_at(&key, 0)],
            success: vec![put(&key, value.clone(), lease)],
            failure: vec![Op::Range(RangeOp::all(KeyRange::single(key.clone())))],
            ..Txn::default()
        };
        let Written { revision: written, mut result } = self.txn(txn).await?;
        let revision = match result.results.pop() {
            Some(OpResult::Range { found, .. }) => {
                found.kvs.first().map_or(written, |kv| kv.create_revision)
            }
            _ => written,
        };
        let place = Contender { key, revision, lease };
        if result.succeeded {
            return Ok((place, written));
        }
        // The same lease is in the line already: it keeps its place with the new value.
        let entered = self.proclaim(&place, value).await?;
        Ok((place, entered.unwrap_or(written)))
    }

    /// Waits until all that stand before `place` are gone.
    async fn wait_for_head(&self, name: &[u8], place: &Contender) -> Result<Revision> {
        loop {
            let before = RangeOp {
                limit: 1,
                order: Order::Descend,
                order_by: OrderBy::Create,
                create_revisions: Bounds { min: 0, max: place.revision - 1 },
                ..RangeOp::all(line(name))
            };
            let (revision, mut found) = self.range(&before).await?;
            let Some(last) = found.kvs.pop() else {
                return match self.get(place.key.clone()).await? {
                    Some(kv) if kv.create_revision == place.revision => Ok(revision),
                    _ => Err(StoreError::LeaseNotFound(place.lease)),
                };
            };
            self.wait_deleted(last.key, revision).await?;
        }
    }

    async fn wait_deleted(&self, key: Key, after: Revision) -> Result<()> {
        let store = self.root().narrow(&KeyRange::single(key.clone()));
        let mut tail = store.tail(after);
        while let Some(batch) = tail.next().await {
            let batch = match batch {
                // Compaction has passed: the caller looks at the line again.
                Err(StoreError::Compacted { .. }) => return Ok(()),
                batch => batch?,
            };
            let all = batch.commits.iter().chain(&batch.backfill.commits);
            let mut events = all.flat_map(|commit| &commit.events);
            if events.any(|event| event.is_delete() && event.kv.key == key) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Leaves a line.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn leave_line(&self, place: &Contender) -> Result<Revision> {
        self.leave(&place.key, Against::Create(place.revision)).await
    }

    /// Deletes the key of a place that is still what it is compared with.
    async fn leave(&self, key: &Key, against: Against) -> Result<Revision> {
        let range = KeyRange::single(key.clone());
        let compare = Compare { range: range.clone(), relation: Relation::Equal, against };
        let delete = Op::Delete(crate::model::txn::DeleteOp { range, prev_kv: false });
        let txn = Txn { compares: vec![compare], success: vec![delete], ..Txn::default() };
        Ok(self.txn(txn).await?.revision)
    }

    /// Puts a new value at a place; `None` where the place is gone.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn proclaim(&self, place: &Contender, value: Bytes) -> Result<Option<Revision>> {
        let txn = Txn {
            compares: vec![created_at(&place.key, place.revision)],
            success: vec![put(&place.key, value, place.lease)],
            ..Txn::default()
        };
        let written = self.txn(txn).await?;
        Ok(written.result.succeeded.then_some(written.revision))
    }

    /// The head of a line, with the revision at which it was looked at.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn head_of_line(&self, name: &[u8]) -> Result<(Revision, Option<KeyValue>)> {
        let first = RangeOp {
            limit: 1,
            order: Order::Ascend,
            order_by: OrderBy::Create,
            ..RangeOp::all(line(name))
        };
        let (revision, mut found) = self.range(&first).await?;
        Ok((revision, found.kvs.pop()))
    }

    /// Waits for something to change in a line after a revision; returns when it did.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn line_changed(&self, name: &[u8], after: Revision) -> Result<()> {
        let range = line(name);
        let store = self.root().narrow(&range);
        let mut tail = store.tail(after);
        while let Some(batch) = tail.next().await {
            let batch = match batch {
                Err(StoreError::Compacted { .. }) => return Ok(()),
                batch => batch?,
            };
            let all = batch.commits.iter().chain(&batch.backfill.commits);
            let mut events = all.flat_map(|commit| &commit.events);
            if events.any(|event| range.contains(&event.kv.key)) {
                return Ok(());
            }
        }
        Ok(())
    }
}

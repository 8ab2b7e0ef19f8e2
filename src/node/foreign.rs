//! Leases of a parent, whose keys lie here: no put that was sent before a lease ended lands after it.
//!
//! A put may be on its way for long: its deadline is over, its asker has gone, this node was stopped. The
//! parent then ends the lease, and the put must not bring a key that nobody would ever delete. So the
//! parent counts the leases that it ends here, and says with each put that names leases how many it had
//! ended then: its fence. Once a lease was ended, puts with an older fence are refused, and the parent,
//! which knows by that that they were not applied, sends them anew with the leases as they are now.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{Node, to_the_end};
use crate::{
    model::{
        LeaseId, Revision, StoreError,
        error::Result,
        txn::{DeleteOp, Txn},
    },
    store::{Store as _, Written},
};

/// The processes of the parent that are remembered to be of the past.
const PAST_PROCESSES_MAX: usize = 64;

/// What a parent's request says of the leases that it ended here before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The process that counts.
    pub process: u64,
    /// How many it had ended.
    pub ended: u64,
}

/// What is known of a parent's leases.
#[derive(Debug, Default)]
pub(super) struct ForeignLeases {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// The process of the parent that ended leases here last, and how many.
    newest: Option<Fence>,
    /// Those before it, which must not put anything any more.
    past: VecDeque<u64>,
    /// Puts on their way, by the leases that they name.
    entered: HashMap<LeaseId, usize>,
}

/// A put on its way.
struct Entered {
    leases: Vec<LeaseId>,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

// === impl State ===

impl State {
    fn is_stale(&self, fence: Fence) -> bool {
        self.past.contains(&fence.process)
            || self
                .newest
                .is_some_and(|newest| newest.process == fence.process && newest.ended > fence.ended)
    }

    fn raise(&mut self, fence: Fence) {
        match &mut self.newest {
            Some(newest) if newest.process == fence.process => {
                newest.ended = newest.ended.max(fence.ended);
            }
            newest => {
                if let Some(before) = newest.replace(fence) {
                    self.past.push_back(before.process);
                }
                if self.past.len() > PAST_PROCESSES_MAX {
                    self.past.pop_front();
                }
            }
        }
    }
}

// === impl ForeignLeases ===

impl ForeignLeases {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, leases: Vec<LeaseId>, fence: Fence) -> Result<Entered> {
        let mut state = self.lock();
        if state.is_stale(fence) {
            return Err(StoreError::StaleLeases);
        }
        for lease in &leases {
            *state.entered.entry(*lease).or_default() += 1;
        }
        drop(state);
        Ok(Entered { leases, state: self.state.clone(), changed: self.changed.clone() })
    }

    /// From now on puts with an older fence are refused; waits for those that name the lease and are
    /// being applied.
    async fn end(&self, lease: LeaseId, fence: Fence) -> Result<()> {
        {
            let mut state = self.lock();
            if state.past.contains(&fence.process) {
                return Err(StoreError::StaleLeases);
            }
            state.raise(fence);
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.lock().entered.contains_key(&lease) {
                return Ok(());
            }
            changed.await;
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for lease in &self.leases {
            if let Some(count) = state.entered.get_mut(lease) {
                *count -= 1;
                if *count == 0 {
                    state.entered.remove(lease);
                }
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Node {
    /// Applies what a parent sends, whose leases are none of this node's.
    ///
    /// # Errors
    /// Those of the stores, `NoSpace` where the quota is used up, and `StaleLeases` where leases ended
    /// since it was sent.
    pub async fn apply_for_parent(
        self: &Arc<Self>,
        txn: Txn,
        dead_leases: Vec<LeaseId>,
        fence: Fence,
    ) -> Result<Written> {
        self.admit(&txn).await?;
        let leases: Vec<LeaseId> = txn.leases().into_iter().collect();
        let _entered = match leases.is_empty() {
            true => None,
            false => Some(self.foreign.enter(leases, fence)?),
        };
        if !(txn.may_split && txn.is_deletions() && self.options.splits_deletes) {
            return self.root.apply(txn, dead_leases).await;
        }
        let deletions: Vec<DeleteOp> = txn.deletions().cloned().collect();
        match self.root.apply(txn, dead_leases).await {
            Err(StoreError::TwoStores { .. }) => {
                let node = self.clone();
                // What has begun is not left half done.
                to_the_end(async move { node.root.delete_each(&deletions, node.revision()).await })
                    .await
            }
            written => written,
        }
    }

    /// Deletes the keys of a parent's lease, which its parent counts in `fence`; see
    /// [`crate::store::Store::end_lease`].
    ///
    /// # Errors
    /// Those of the stores; the others are done all the same.
    pub async fn end_lease_for_parent(
        self: &Arc<Self>,
        lease: LeaseId,
        fence: Fence,
    ) -> Result<Option<Revision>> {
        self.check_intact()?;
        let node = self.clone();
        to_the_end(async move {
            node.foreign.end(lease, fence).await?;
            node.root.end_lease(lease).await
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn fence(process: u64, ended: u64) -> Fence {
        Fence { process, ended }
    }

    #[tokio::test]
    async fn a_put_that_was_sent_before_a_lease_ended_is_refused_after_it() {
        let leases = ForeignLeases::default();
        leases.enter(vec![7], fence(1, 0)).expect("no lease ended");
        leases.end(7, fence(1, 1)).await.expect("it is the newest process");
        assert!(leases.enter(vec![8], fence(1, 0)).is_err(), "it does not know that 7 ended");
        leases.enter(vec![8], fence(1, 1)).expect("it knows");
        // The parent was started anew, and counts from the beginning.
        leases.end(9, fence(2, 1)).await.expect("it is the newest process");
        assert!(leases.enter(vec![8], fence(1, 9)).is_err(), "its process is of the past");
        assert!(leases.end(8, fence(1, 9)).await.is_err(), "its process is of the past");
        leases.enter(vec![8], fence(2, 1)).expect("it knows");
    }

    #[tokio::test]
    async fn the_end_waits_for_a_put_that_names_the_lease_and_for_no_other() {
        let leases = ForeignLeases::default();
        let entered = leases.enter(vec![7, 8], fence(1, 0)).expect("no lease ended");
        leases.end(9, fence(1, 1)).now_or_never().expect("nothing names it").expect("it ends");
        let ending = leases.end(7, fence(1, 2));
        tokio::pin!(ending);
        assert!(ending.as_mut().now_or_never().is_none(), "the put may land yet");
        drop(entered);
        ending.await.expect("it ends");
        assert!(leases.lock().entered.is_empty());
    }
}

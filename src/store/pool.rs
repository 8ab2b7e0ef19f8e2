//! The connections of a store that may read at once, and who waits for one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::coop::consume_budget,
    time::{Instant, timeout},
};

use super::meter::Meter;

/// A bound of connections. Whoever finds all of them busy waits in line.
#[derive(Debug)]
pub struct Pool {
    connections_max: usize,
    permits: Arc<Semaphore>,
    waiting: AtomicU64,
    /// Who had to wait, for how long, and who did in vain; who gave up by itself did not. What had one at once is not
    /// counted.
    pub waits: Meter,
}

/// Counts one that waits, for as long as it does.
struct Waiting<'p> {
    pool: &'p Pool,
    begun: Instant,
    is_in_vain: bool,
}

// === impl Pool ===

impl Pool {
    /// One of so many connections.
    pub fn new(connections_max: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(connections_max));
        Arc::new(Self {
            connections_max,
            permits,
            waiting: AtomicU64::new(0),
            waits: Meter::default(),
        })
    }

    /// The most connections at once.
    pub fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// How many are busy.
    pub fn connections_used(&self) -> usize {
        self.connections_max - self.permits.available_permits()
    }

    /// How many wait for one.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The right to use one, until it is dropped; `None` where all were busy for `limit`.
    pub async fn acquire(&self, limit: Duration) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            // Many short reads of one request let others have their turn.
            consume_budget().await;
            return Some(permit);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut waiting = Waiting { pool: self, begun: Instant::now(), is_in_vain: false };
        let permit = timeout(limit, self.permits.clone().acquire_owned()).await;
        waiting.is_in_vain = permit.is_err();
        permit.ok()?.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.waiting.fetch_sub(1, Ordering::Relaxed);
        self.pool.waits.note(self.begun.elapsed(), self.is_in_vain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_finds_all_busy_waits_and_is_counted() {
        let pool = Pool::new(1);
        let held = pool.acquire(Duration::ZERO).await.expect("it is free");
        assert_eq!((pool.connections_used(), pool.waits.counts().total()), (1, 0));

        assert!(pool.acquire(Duration::from_secs(1)).await.is_none(), "it is busy");
        let (counts, waiting) = (pool.waits.counts(), pool.waiting());
        assert_eq!((counts.total(), counts.failed, waiting), (1, 1, 0));

        let second = pool.acquire(Duration::from_secs(10));
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(pool.waiting(), 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        drop(held);
        assert!(second.await.is_some(), "it was given back");
        let counts = pool.waits.counts();
        assert_eq!((counts.total(), counts.failed, pool.waiting()), (2, 1, 0));
        assert_eq!(counts.nanos, 3_000_000_000);

        // One that is given up is counted, and not as a failure.
        let held = pool.acquire(Duration::ZERO).await;
        {
            let given_up = pool.acquire(Duration::MAX);
            tokio::pin!(given_up);
            assert!(futures::poll!(&mut given_up).is_pending());
        }
        let counts = pool.waits.counts();
        assert_eq!((counts.total(), counts.failed, pool.waiting()), (3, 1, 0));
        drop(held);
        assert_eq!(pool.connections_used(), 0, "it went with who had it");
    }
}

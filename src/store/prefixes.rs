//! Which kinds of keys of a store are read and written how often, by a sample of what it is asked.
//!
//! A request that is not in the sample pays for a random number and no more.

use std::{
    cell::Cell,
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::model::{
    Key, KeyRange,
    key::kind_prefix,
    txn::{Op, Txn},
};

/// One request in so many is looked at, and counts for all of them.
const SAMPLE: u64 = 8;

/// Of late means one to two times this long.
const WINDOW: Duration = Duration::from_secs(15);

/// More prefixes are not told apart: what comes then is counted with what has none.
const PREFIXES_MAX: usize = 1_000;

/// Longer ones are none of Kubernetes'.
const PREFIX_BYTES_MAX: usize = 512;

/// What was asked for below each prefix of late.
#[derive(Debug, Default)]
pub struct Prefixes(Mutex<Windows>);

#[derive(Debug)]
struct Windows {
    older: Window,
    newer: Window,
}

#[derive(Debug)]
struct Window {
    begun: Instant,
    asked: HashMap<Key, Asked>,
}

/// How often: pages and counts, and operations of transactions that may change keys.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Asked {
    reads: u64,
    writes: u64,
}

/// How often the keys below a prefix are asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixRate {
    /// As API servers lay out the keys of one kind, with a slash at the end; empty for all others.
    pub prefix: Key,
    /// Pages and counts in a second.
    pub reads: f64,
    /// Puts and deletions in a second.
    pub writes: f64,
}

// === impl Windows ===

impl Default for Windows {
    fn default() -> Self {
        // Nothing was asked for in the time before, as far as anybody remembers.
        let now = Instant::now();
        let window = |begun| Window { begun, asked: HashMap::new() };
        Self { older: window(now.checked_sub(WINDOW).unwrap_or(now)), newer: window(now) }
    }
}

// === impl Prefixes ===

impl Prefixes {
    /// Counts a read of a range, where it is in the sample.
    pub fn note_read(&self, range: &KeyRange) {
        if is_sampled() {
            self.count(range, |asked| asked.reads += SAMPLE);
        }
    }

    /// Counts what a transaction may change, likewise.
    pub fn note_txn(&self, txn: &Txn) {
        if is_sampled() {
            self.count_txn(txn);
        }
    }

    fn count_txn(&self, txn: &Txn) {
        for op in txn.success.iter().chain(&txn.failure) {
            let count = |asked: &mut Asked| asked.writes += SAMPLE;
            match op {
                Op::Put(put) => self.count(&KeyRange::single(put.key.clone()), count),
                Op::Delete(delete) => self.count(&delete.range, count),
                Op::Txn(within) => self.count_txn(within),
                Op::Range(_) => {}
            }
        }
    }

    /// What is asked for in a second, in no order.
    pub fn rates(&self) -> Vec<PrefixRate> {
        let windows = self.lock();
        let seconds = windows.older.begun.elapsed().as_secs_f64().max(1.0);
        let mut all = windows.older.asked.clone();
        for (prefix, asked) in &windows.newer.asked {
            let sum = all.entry(prefix.clone()).or_default();
            sum.reads += asked.reads;
            sum.writes += asked.writes;
        }
        drop(windows);
        let rate = |(prefix, asked): (Key, Asked)| PrefixRate {
            prefix,
            reads: asked.reads as f64 / seconds,
            writes: asked.writes as f64 / seconds,
        };
        all.into_iter().map(rate).collect()
    }

    fn count(&self, range: &KeyRange, add: impl FnOnce(&mut Asked)) {
        let prefix = kind_prefix(range).filter(|prefix| prefix.len() <= PREFIX_BYTES_MAX);
        let prefix = prefix.unwrap_or_default();
        let mut windows = self.lock();
        let Window { asked, .. } = &mut windows.newer;
        if let Some(asked) = asked.get_mut(&prefix) {
            return add(asked);
        }
        let prefix = if asked.len() < PREFIXES_MAX { prefix } else { Bytes::new() };
        // Copied: a key is a piece of the request that it came in.
        add(asked.entry(Bytes::copy_from_slice(&prefix)).or_default());
    }

    /// The windows, once what is older is forgotten.
    fn lock(&self) -> MutexGuard<'_, Windows> {
        // Nothing panics while it holds the lock.
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = windows.newer.begun.elapsed();
        if age >= 2 * WINDOW {
            *windows = Windows::default();
        } else if age >= WINDOW {
            let begun = windows.newer.begun + WINDOW;
            let next = Window { begun, asked: HashMap::new() };
            windows.older = std::mem::replace(&mut windows.newer, next);
        }
        windows
    }
}

/// One time in [`SAMPLE`], without a pattern that requests could be in step with.
fn is_sampled() -> bool {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
    }
    STATE.with(|state| {
        // Marsaglia's xorshift.
        let mut next = state.get();
        next ^= next << 13;
        next ^= next >> 7;
        next ^= next << 17;
        state.set(next);
        next.is_multiple_of(SAMPLE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::txn::PutOp;

    fn put(key: &str) -> Txn {
        Txn::from(Op::Put(PutOp {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::new(),
            lease: 0,
            prev_kv: false,
            keep_value: false,
            keep_lease: false,
        }))
    }

    fn of(prefixes: &Prefixes, prefix: &str) -> (f64, f64) {
        let rates = prefixes.rates();
        let rate = rates.iter().find(|rate| rate.prefix == prefix.as_bytes());
        rate.map_or((0.0, 0.0), |rate| (rate.reads, rate.writes))
    }

    #[tokio::test(start_paused = true)]
    async fn a_sample_tells_the_rates_of_all_and_forgets_what_is_old() {
        let prefixes = Prefixes::default();
        let pods = KeyRange::prefix("/registry/pods/".into());
        for at in 0..10_000 {
            prefixes.note_read(&pods);
            prefixes.note_txn(&put(&format!("/registry/leases/a/{at}")));
            prefixes.note_txn(&put("/elsewhere"));
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        // Over the ten seconds, and the fifteen before, in which there was nothing.
        let is_near = |rate: f64| (340.0..460.0).contains(&rate);
        let (pods, leases, others) = (
            of(&prefixes, "/registry/pods/"),
            of(&prefixes, "/registry/leases/"),
            of(&prefixes, ""),
        );
        assert!(is_near(pods.0) && pods.1 == 0.0, "{pods:?}");
        assert!(is_near(leases.1) && is_near(others.1), "{leases:?} {others:?}");
        tokio::time::advance(2 * WINDOW).await;
        assert_eq!(of(&prefixes, "/registry/pods/"), (0.0, 0.0));
    }

    #[test]
    fn no_more_prefixes_are_kept_than_are_told_apart() {
        let prefixes = Prefixes::default();
        for at in 0..100_000 {
            prefixes.note_txn(&put(&format!("/registry/kind-{at}/a/b")));
        }
        assert_eq!(prefixes.rates().len(), PREFIXES_MAX + 1);
    }
}

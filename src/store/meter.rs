//! What is measured of a store, in counters that nobody waits for.
//!
//! ```text
//!   a request ──> Metered ──> RequestMeter     reads, writes, errors by kind, the last one
//!                    └──> the writer ──> CommitMeter   batches, and how long each took to be durable
//! ```
//!
//! A [`Meter`] counts since its store was opened, for who scrapes, and remembers where it stood some seconds ago,
//! for who looks: nobody needs to keep what it said before.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

pub use crate::proto::tree::{Activity, LastError};

use super::{Size, Store, pool::Pool, prefixes::Prefixes};
use crate::model::StoreError;

/// The shortest time that is told apart.
const FIRST_BOUND: Duration = Duration::from_micros(125);

/// Each bound is twice the one before, and those from 1 ms to 8.192 s are etcd's. What took longer than the last
/// is counted behind it.
pub const BOUNDS: usize = 17;

/// How often a meter is to be sampled: `recently` is one to two times this long.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// For how long a size is taken for what it was, by who only looks.
const SIZE_LASTS: Duration = Duration::from_secs(5);

/// How often something was done, how often in vain, and how long it took.
#[derive(Debug)]
pub struct Meter {
    buckets: [AtomicU64; BOUNDS + 1],
    nanos: AtomicU64,
    failed: AtomicU64,
    window: Mutex<Window>,
}

/// What a meter said at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many took longer than the bound before and no longer than this one.
    pub buckets: [u64; BOUNDS + 1],
    /// How long all took together, in nanoseconds.
    pub nanos: u64,
    /// How many of them failed.
    pub failed: u64,
}

/// Where a meter stood at two moments of the near past.
#[derive(Clone, Copy, Debug)]
struct Window {
    older: (Instant, Counts),
    newer: (Instant, Counts),
}

/// What was asked of a store.
#[derive(Debug, Default)]
pub struct RequestMeter {
    /// Pages and counts.
    pub reads: Meter,
    /// Transactions that may change keys, and ends of leases.
    pub writes: Meter,
    /// Keys that were returned.
    pub rows: AtomicU64,
    /// Writes that are not answered yet.
    pub pending: AtomicI64,
    /// Which kinds of keys they were for.
    pub prefixes: Prefixes,
    failures: Mutex<BTreeMap<&'static str, u64>>,
    last: Mutex<Option<(Instant, String)>>,
    found: Mutex<Found>,
    size: Mutex<Option<(Instant, Size)>>,
}

/// What was found when the keys were looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// How many live keys there are, and when that was so.
    pub keys: Option<(u64, Instant)>,
    /// How many of them route elsewhere.
    pub misrouted: Option<u64>,
}

/// What the one writer of a store did.
#[derive(Debug, Default)]
pub struct CommitMeter {
    /// Batches of writes, from their beginning until they were durable.
    pub batches: Meter,
    /// Of these, the last step: what makes a batch durable.
    pub syncs: Meter,
    /// The writes in all batches.
    pub writes: AtomicU64,
}

/// Since when something is so that may end and begin again.
#[derive(Debug, Default)]
pub struct Lasting(Mutex<Option<Instant>>);

/// All meters of a leaf.
#[derive(Clone, Debug)]
pub struct Meters {
    /// The route's name.
    pub name: Arc<str>,
    /// Why it can't be used, as far as is known without asking it.
    pub trouble: Option<String>,
    /// What is asked of it, where that is measured.
    pub requests: Option<Arc<RequestMeter>>,
    /// What its writer does, where this process has it.
    pub commits: Option<Arc<CommitMeter>>,
    /// How it is read with selectors, where that is done here.
    pub selected: Option<Arc<SelectMeter>>,
    /// Its connections that read, where they are bounded here.
    pub pool: Option<Arc<Pool>>,
    /// How many settings of its server are known under which a commit is not durable.
    pub hazards: usize,
}

/// Reads with selectors, since the process began.
#[derive(Debug, Default)]
pub struct SelectMeter {
    /// Pages whose keys an index had.
    pub by_index: AtomicU64,
    /// Pages for which all rows of a range were looked at.
    pub by_scan: AtomicU64,
    /// Rows that were looked at.
    pub rows_read: AtomicU64,
    /// Those of them that matched.
    pub rows_matched: AtomicU64,
}

/// The bound of a bucket; `None` for the last one, which has none.
pub fn bound(at: usize) -> Option<Duration> {
    (at < BOUNDS).then(|| FIRST_BOUND * (1 << at))
}

fn bucket_of(took: Duration) -> usize {
    let steps = took.as_nanos().saturating_sub(1) / FIRST_BOUND.as_nanos();
    match steps.checked_ilog2() {
        None => 0,
        Some(power) => (power as usize + 1).min(BOUNDS),
    }
}

// === impl Counts ===

impl Counts {
    /// Takes in those of another meter.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(other.buckets) {
            *count += more;
        }
        self.nanos += other.nanos;
        self.failed += other.failed;
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What came since.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut buckets = self.buckets;
        for (count, before) in buckets.iter_mut().zip(before.buckets) {
            *count = count.saturating_sub(before);
        }
        let nanos = self.nanos.saturating_sub(before.nanos);
        Self { buckets, nanos, failed: self.failed.saturating_sub(before.failed) }
    }

    /// How long a share of them took at most, evenly spread within a bucket; `None` where there were none. What
    /// took longer than the last bound counts as that.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = share * self.total() as f64;
        let mut below = 0;
        for (at, &count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            if (below + count) as f64 >= rank {
                let start = if at == 0 { Duration::ZERO } else { bound(at - 1)? };
                let width = bound(at).map_or(Duration::ZERO, |end| end - start);
                return Some(start + width.mul_f64((rank - below as f64) / count as f64));
            }
            below += count;
        }
        None
    }
}

// === impl Meter ===

impl Default for Meter {
    fn default() -> Self {
        let begun = (Instant::now(), Counts::default());
        Self {
            buckets: Default::default(),
            nanos: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            window: Mutex::new(Window { older: begun, newer: begun }),
        }
    }
}

impl Meter {
    /// Counts one that took so long.
    pub fn note(&self, took: Duration, has_failed: bool) {
        self.buckets[bucket_of(took)].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        if has_failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let mut buckets = [0; BOUNDS + 1];
        for (count, bucket) in buckets.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        let nanos = self.nanos.load(Ordering::Relaxed);
        Counts { buckets, nanos, failed: self.failed.load(Ordering::Relaxed) }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        // Nothing panics while it holds the lock.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers where it stands: to be called every [`SAMPLE_EVERY`].
    pub fn sample(&self) {
        let newer = (Instant::now(), self.counts());
        let mut window = self.window();
        *window = Window { older: window.newer, newer };
    }

    /// What it says to who looks.
    pub fn activity(&self) -> Activity {
        let (since, before) = self.window().older;
        let counts = self.counts();
        let recent = counts.since(&before);
        let p99 = recent.quantile(0.99).unwrap_or_default();
        Activity {
            total: counts.total(),
            failed: counts.failed,
            recent_s: since.elapsed().as_secs_f64(),
            recent: recent.total(),
            recent_failed: recent.failed,
            recent_p99_s: p99.as_secs_f64(),
        }
    }
}

// === impl RequestMeter ===

impl RequestMeter {
    /// Keeps what went wrong.
    pub fn note_failure(&self, error: &StoreError) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(error.kind()).or_default() += 1;
        drop(failures);
        if error.is_failure() {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some((Instant::now(), error.to_string()));
        }
    }

    /// How often each kind of error was answered.
    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last error that was not the client's own.
    pub fn last_error(&self) -> Option<LastError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, text) = last.as_ref()?;
        Some(LastError { text: text.clone(), age_s: at.elapsed().as_secs_f64() })
    }

    /// The size of the store as it was some seconds ago at most: a database is asked for its own.
    pub async fn recent_size(&self, store: &dyn Store) -> Size {
        let lock = || self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, size)) = *lock()
            && at.elapsed() < SIZE_LASTS
        {
            return size;
        }
        let size = store.size().await.unwrap_or_default();
        *lock() = Some((Instant::now(), size));
        size
    }

    /// What was found when its keys were last looked at.
    pub fn found(&self) -> Found {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps how many live keys there are now.
    pub fn note_keys(&self, keys: u64) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.keys = Some((keys, Instant::now()));
    }

    /// Keeps how many keys route elsewhere.
    pub fn note_misrouted(&self, keys: u64) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.misrouted = Some(keys);
    }
}

// === impl CommitMeter ===

impl CommitMeter {
    /// Counts a batch of so many writes. Those of one that failed are not in the store.
    pub fn note(&self, writes: usize, took: Duration, has_failed: bool) {
        self.batches.note(took, has_failed);
        if !has_failed {
            self.writes.fetch_add(writes as u64, Ordering::Relaxed);
        }
    }
}

// === impl Lasting ===

impl Lasting {
    /// It is so from now on; where it was so already, since then.
    pub fn begin(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    /// It is not so any more.
    pub fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// For how long; zero where it is not so.
    pub fn age(&self) -> Duration {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

// === impl SelectMeter ===

impl SelectMeter {
    /// Counts a page: how it was found, of how many rows, and how many of them matched.
    pub fn note(&self, is_by_index: bool, read: usize, matched: usize) {
        let pages = if is_by_index { &self.by_index } else { &self.by_scan };
        pages.fetch_add(1, Ordering::Relaxed);
        self.rows_read.fetch_add(read as u64, Ordering::Relaxed);
        self.rows_matched.fetch_add(matched as u64, Ordering::Relaxed);
    }
}

// === impl Meters ===

impl Meters {
    /// Those of a leaf of which nothing is measured yet.
    pub fn new(name: Arc<str>, trouble: Option<String>) -> Self {
        Self {
            name,
            trouble,
            requests: None,
            commits: None,
            selected: None,
            pool: None,
            hazards: 0,
        }
    }

    /// Has all of them remember where they stand.
    pub fn sample(&self) {
        if let Some(requests) = &self.requests {
            requests.reads.sample();
            requests.writes.sample();
        }
        if let Some(commits) = &self.commits {
            commits.batches.sample();
            commits.syncs.sample();
        }
        if let Some(pool) = &self.pool {
            pool.waits.sample();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_counted_at_the_first_bound_that_is_not_below_it() {
        for at in 0..BOUNDS {
            let bound = bound(at).expect("it is one of the bounds");
            assert_eq!(bucket_of(bound), at);
            assert_eq!(bucket_of(bound + Duration::from_nanos(1)), at + 1);
        }
        assert_eq!(bucket_of(Duration::ZERO), 0);
        assert_eq!(bucket_of(Duration::MAX), BOUNDS);
        assert_eq!(bound(3), Some(Duration::from_millis(1)), "etcd's first");
        assert_eq!(bound(BOUNDS - 1), Some(Duration::from_millis(8_192)), "etcd's last");
        assert_eq!(bound(BOUNDS), None);
    }

    #[test]
    fn a_quantile_lies_in_the_bucket_of_its_rank() {
        let counts = |times: &[(u64, u64)]| {
            let meter = Meter::default();
            for &(micros, count) in times {
                (0..count).for_each(|_| meter.note(Duration::from_micros(micros), false));
            }
            meter.counts()
        };
        assert_eq!(Counts::default().quantile(0.99), None);
        let fast = counts(&[(100, 99), (900_000, 1)]);
        assert!(fast.quantile(0.99) <= Some(FIRST_BOUND), "{fast:?}");
        let slow = counts(&[(100, 98), (900_000, 2)]).quantile(0.99).expect("there are some");
        assert!((512..=1_024).contains(&slow.as_millis()), "{slow:?}");
        let beyond = counts(&[(20_000_000, 1)]).quantile(0.5);
        assert_eq!(beyond, bound(BOUNDS - 1), "all that is known is that it was longer");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_of_late_is_forgotten_and_what_was_ever_is_not() {
        let meter = Meter::default();
        meter.note(Duration::from_millis(3), true);
        let activity = meter.activity();
        assert_eq!((activity.recent, activity.recent_failed), (1, 1));
        assert!((0.002..=0.004).contains(&activity.recent_p99_s), "{activity:?}");
        for _ in 0..2 {
            tokio::time::advance(SAMPLE_EVERY).await;
            meter.sample();
        }
        let activity = meter.activity();
        assert_eq!((activity.total, activity.failed, activity.recent), (1, 1, 0));
        assert_eq!((activity.recent_s, activity.recent_p99_s), (10.0, 0.0));
    }
}

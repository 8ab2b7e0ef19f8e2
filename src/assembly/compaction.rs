//! Stores that compact by themselves, where the topology says so: each at its own pace, beside what API
//! servers and other clients have compacted.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use crate::{
    clock::{Entropy, LANES},
    model::Revision,
    node::Node,
    store::Store,
    topology,
};

/// What is taken where the topology says something of a store's compaction, but not this.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
const TIME_MAX: Duration = Duration::from_secs(5);
const RETAIN_MIN: u32 = 1_000;

/// How a store compacts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoCompaction {
    /// How often.
    pub interval: Duration,
    /// How far the interval varies to either side, in thousandths.
    pub jitter: u32,
    /// How long one may take before the log says so. It goes on all the same.
    pub time_max: Duration,
    /// How many revisions of the node stay at least.
    pub retain_min: u32,
}

// === impl AutoCompaction ===

impl AutoCompaction {
    /// What an operator asks for; `None` where nothing is said, or an interval of zero.
    pub fn of(asked: &topology::Compaction) -> Option<Self> {
        let topology::Compaction { interval, interval_jitter, timeout, retain_min, .. } = asked;
        let is_asked_for = interval.is_some()
            || interval_jitter.is_some()
            || timeout.is_some()
            || retain_min.is_some();
        let interval = interval.unwrap_or(INTERVAL);
        (is_asked_for && !interval.is_zero()).then(|| Self {
            interval,
            jitter: interval_jitter.unwrap_or(0),
            time_max: timeout.filter(|time| !time.is_zero()).unwrap_or(TIME_MAX),
            retain_min: retain_min.unwrap_or(RETAIN_MIN),
        })
    }

    /// The next pause; `bits` are random.
    fn pause(&self, bits: u64) -> Duration {
        let thousandths = i64::from(self.jitter.min(1_000));
        let span = (2 * thousandths + 1).cast_unsigned();
        let shift = (bits % span).cast_signed() - thousandths;
        let millis = i64::try_from(self.interval.as_millis()).unwrap_or(i64::MAX / 2_000);
        Duration::from_millis((millis + millis / 1_000 * shift).max(1).cast_unsigned())
    }

    /// What may go, where the node was at `before` an interval ago and its revisions lie `step` apart.
    fn target(&self, before: Revision, step: Revision) -> Revision {
        before.saturating_sub(step.saturating_mul(self.retain_min.into()))
    }
}

/// Compacts a store for ever. What changed within the last interval stays, and `retain_min` revisions before
/// that.
pub(super) async fn compact_by_itself(
    store: Arc<dyn Store>,
    node: Arc<Node>,
    how: AutoCompaction,
    entropy: Entropy,
) {
    let mut before = node.revision();
    loop {
        sleep(how.pause(entropy.bits())).await;
        // In a tree a node allocates in its own lane only.
        let is_in_tree = node.membership().lanes().own().is_some();
        let target = how.target(before, if is_in_tree { LANES.into() } else { 1 });
        before = node.revision();
        if target <= store.compacted().max(0) {
            continue;
        }
        match timeout(how.time_max, store.compact(target, true)).await {
            Ok(Ok(())) => tracing::debug!(store = %store.name(), revision = target, "compacted"),
            Ok(Err(error)) => {
                tracing::warn!(store = %store.name(), revision = target, %error, "not compacted");
            }
            Err(_) => tracing::warn!(
                store = %store.name(), revision = target, time_max = ?how.time_max,
                "compaction takes longer than `compactTimeout`, and goes on"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_asks_for_it_by_any_of_its_settings() {
        let none = topology::Compaction::default();
        assert_eq!(AutoCompaction::of(&none), None);
        let never = topology::Compaction { interval: Some(Duration::ZERO), ..none.clone() };
        assert_eq!(AutoCompaction::of(&never), None);
        let some = topology::Compaction { retain_min: Some(10), ..none };
        let how = AutoCompaction::of(&some).expect("it is asked for");
        assert_eq!((how.interval, how.time_max), (INTERVAL, TIME_MAX));
        assert_eq!((how.target(30, 1), how.target(20_000, 1_024)), (20, 9_760));
    }

    #[test]
    fn a_pause_varies_as_far_as_it_may_and_no_further() {
        let interval = Duration::from_secs(100);
        let (time_max, retain_min) = (TIME_MAX, RETAIN_MIN);
        let exact = AutoCompaction { interval, jitter: 0, time_max, retain_min };
        assert!((0..100).all(|bits| exact.pause(bits) == interval));
        let varied = AutoCompaction { jitter: 100, ..exact };
        let pauses: Vec<Duration> = (0..201).map(|bits| varied.pause(bits)).collect();
        assert_eq!(pauses.iter().min(), Some(&Duration::from_secs(90)));
        assert_eq!(pauses.iter().max(), Some(&Duration::from_secs(110)));
        let all = AutoCompaction { jitter: 1_000, ..exact };
        assert!(all.pause(0) >= Duration::from_millis(1));
    }
}

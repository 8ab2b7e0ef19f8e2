//! Watchers, opened and cancelled.

use std::collections::BTreeSet;

use bytes::Bytes;
use pleach::proto::etcdserverpb as pb;

use super::{FAR, Generator, Seen, Step};

const STREAMS_MAX: usize = 3;
const WATCHERS_PER_STREAM_MAX: usize = 8;

// === impl Generator ===

impl Generator {
    pub(super) fn open(&mut self, seen: &Seen) -> Step {
        // Stream 0 is the run's own.
        let stream = 1 + self.rng.below(STREAMS_MAX);
        let empty = BTreeSet::new();
        let live = seen.watchers.get(&stream).unwrap_or(&empty);
        if live.len() >= WATCHERS_PER_STREAM_MAX {
            return self.cancel(seen);
        }
        let (mut key, range_end) = self.keys.range(None, &mut self.rng);
        if self.rng.chance(5) {
            key = Bytes::new();
        }
        let filters = match self.rng.below(10) {
            0 => vec![0],
            1 => vec![1],
            2 => self.rng.pick(&[vec![0, 1], vec![1, 1], vec![7], vec![7, 0]]),
            _ => vec![],
        };
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: self.start_revision(seen),
            progress_notify: self.rng.chance(30),
            filters,
            prev_kv: self.rng.chance(50),
            watch_id: self.watch_id(live, seen.opened.get(&stream).copied().unwrap_or(0)),
            fragment: self.rng.chance(20),
            ..Default::default()
        };
        Step::Open { stream, create }
    }

    fn start_revision(&mut self, seen: &Seen) -> i64 {
        match self.rng.below(100) {
            0..=39 => 0,
            40..=69 => self.rng.between(seen.compacted.max(1), seen.revision),
            70..=79 => seen.revision + 1,
            80..=85 => seen.revision + self.rng.between(2, 20),
            86..=87 => self.rng.pick(&[FAR, i64::MAX]),
            88..=90 => seen.compacted.max(1),
            91..=96 => self.rng.between(1, seen.compacted.max(2) - 1),
            _ => self.rng.pick(&[-1, -2, i64::MIN]),
        }
    }

    fn watch_id(&mut self, live: &BTreeSet<i64>, opened: i64) -> i64 {
        let live: Vec<i64> = live.iter().copied().collect();
        match self.rng.below(20) {
            0 if !live.is_empty() => self.rng.pick(&live),
            1 | 2 => {
                self.watch_ids_chosen += 1;
                self.watch_ids_chosen
            }
            // The server's own choice comes to this one soon, and must pass over it.
            3 => opened + 1,
            4 => self.rng.pick(&[-2, -3, i64::MIN, i64::MAX]),
            _ => 0,
        }
    }

    pub(super) fn cancel(&mut self, seen: &Seen) -> Step {
        let stream = 1 + self.rng.below(STREAMS_MAX);
        let live: Vec<i64> = seen.watchers.get(&stream).into_iter().flatten().copied().collect();
        if live.is_empty() || self.rng.chance(5) {
            return Step::Cancel { stream, id: 777_777 };
        }
        Step::Cancel { stream, id: self.rng.pick(&live) }
    }
}

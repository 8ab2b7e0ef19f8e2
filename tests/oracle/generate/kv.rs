//! Ranges, puts, deletions and compactions.

use bytes::Bytes;
use pleach::proto::etcdserverpb::{self as pb, request_op::Request as Op};

use super::{Generator, Seen, Step};
use crate::{request::Request, support::rng::Rng};

// === impl Generator ===

impl Generator {
    pub(super) fn range(&mut self, group: Option<usize>, seen: &Seen) -> pb::RangeRequest {
        let (mut key, range_end) = self.keys.range(group, &mut self.rng);
        if self.rng.chance(1) {
            key = Bytes::new();
        }
        let mut request = pb::RangeRequest {
            key,
            range_end,
            revision: self.revision(seen),
            serializable: self.rng.chance(20),
            keys_only: self.rng.chance(20),
            count_only: self.rng.chance(12),
            ..Default::default()
        };
        if self.rng.chance(45) {
            request.limit = self.rng.pick(&[1, 1, 2, 3, 5, 10, 20, 100, i64::MAX, -1, i64::MIN]);
        }
        if self.rng.chance(40) {
            request.sort_order = self.rng.pick(&[0, 1, 2]);
            request.sort_target = self.rng.pick(&[0, 1, 2, 3, 4]);
        }
        if self.rng.chance(2) {
            request.sort_order = self.rng.pick(&[3, -1, i32::MAX]);
        }
        if self.rng.chance(2) {
            request.sort_target = self.rng.pick(&[5, -1, i32::MIN]);
        }
        if self.rng.chance(15) {
            self.filter(&mut request, seen);
        }
        request
    }

    /// A range by labels, without what would leave out more than they do.
    pub(super) fn selecting(&mut self, seen: &Seen) -> pb::RangeRequest {
        const SELECTORS: [&str; 9] = [
            "app=a",
            "app=b",
            "app in (a,c)",
            "app!=a",
            "app",
            "!app",
            "tier=x",
            "app=a,!tier",
            "app=b,tier=x",
        ];
        let request = self.range(None, seen);
        pb::RangeRequest {
            key: request.key,
            range_end: request.range_end,
            revision: request.revision,
            limit: self.rng.pick(&[0, 0, 1, 2, 3, 5, 10, 100]),
            keys_only: request.keys_only,
            count_only: request.count_only,
            sort_order: self.rng.pick(&[0, 0, 1, 2]),
            label_selector: self.rng.pick(&SELECTORS).to_owned(),
            ..Default::default()
        }
    }

    pub(super) fn filter(&mut self, request: &mut pb::RangeRequest, seen: &Seen) {
        let bound = |rng: &mut Rng| match rng.below(10) {
            0..=4 => 0,
            5 => rng.pick(&[-1, i64::MIN, i64::MAX]),
            _ => rng.between((seen.revision - 60).max(1), seen.revision + 1),
        };
        request.min_mod_revision = bound(&mut self.rng);
        request.max_mod_revision = bound(&mut self.rng);
        request.min_create_revision = bound(&mut self.rng);
        request.max_create_revision = bound(&mut self.rng);
    }

    /// Mostly what a stream may be asked: it refuses sorting and filters.
    pub(super) fn range_to_stream(&mut self, seen: &Seen) -> pb::RangeRequest {
        let mut request = self.range(None, seen);
        if self.rng.chance(80) {
            request.sort_order = self.rng.pick(&[0, 0, 1]);
            request.sort_target = 0;
            request.min_mod_revision = 0;
            request.max_mod_revision = 0;
            request.min_create_revision = 0;
            request.max_create_revision = 0;
        }
        request
    }

    /// Mostly 0, often a revision that can be read, sometimes one just outside.
    pub(super) fn revision(&mut self, seen: &Seen) -> i64 {
        match self.rng.below(100) {
            0..=61 => 0,
            62..=66 => seen.revision,
            67..=86 => self.rng.between(seen.compacted.max(1), seen.revision),
            87..=89 => seen.compacted,
            90..=91 => seen.compacted - 1,
            92..=93 => seen.revision + 1,
            94 => seen.revision + 1000,
            95..=96 => -1,
            97 => -2,
            98 => i64::MAX,
            _ => i64::MIN,
        }
    }

    /// The store whose keys a mutation may touch; with one store there is nothing to keep apart.
    pub(super) fn group(&mut self) -> Option<usize> {
        self.keys.is_routed().then(|| self.rng.below(self.keys.groups.len()))
    }

    pub(super) fn put(&mut self, group: Option<usize>, seen: &Seen) -> pb::PutRequest {
        let mut request = pb::PutRequest {
            key: self.keys.key(group, &mut self.rng),
            value: self.value(),
            prev_kv: self.rng.chance(30),
            ..Default::default()
        };
        if self.rng.chance(1) {
            request.key = Bytes::new();
        }
        if self.rng.chance(20) {
            request.lease = self.lease_of(group, seen);
        }
        if self.rng.chance(8) {
            request.ignore_value = true;
            if self.rng.chance(85) {
                request.value = Bytes::new();
            }
        }
        if self.rng.chance(8) {
            request.ignore_lease = true;
            if self.rng.chance(85) {
                request.lease = 0;
            }
        }
        request
    }

    /// Few values, so that values tie in sorts and compares; some empty, some large, some objects with labels.
    pub(super) fn value(&mut self) -> Bytes {
        match self.rng.below(40) {
            0..=2 => Bytes::new(),
            3..=14 => self.object(),
            15..=25 => Bytes::from(self.rng.below(6).to_string()),
            26..=34 => Bytes::from(format!("value {}", self.rng.below(1000))),
            35..=37 => Bytes::from(vec![0xff, 0, self.rng.below(4) as u8]),
            38 => Bytes::from(vec![b'v'; self.rng.below(300)]),
            _ => Bytes::from(vec![b'V'; self.rng.below(6000)]),
        }
    }

    fn object(&mut self) -> Bytes {
        let labels = self.rng.pick(&[
            "",
            r#""app":"a""#,
            r#""app":"b""#,
            r#""app":"c""#,
            r#""tier":"x""#,
            r#""app":"a","tier":"x""#,
            r#""app":"b","tier":"x""#,
        ]);
        let object = r#"{"apiVersion":"a.b/v1","kind":"C","metadata":{"labels":{LABELS}}}"#;
        Bytes::from(object.replace("LABELS", labels))
    }

    pub(super) fn delete(&mut self, group: Option<usize>) -> pb::DeleteRangeRequest {
        let (mut key, mut range_end) = self.keys.range(group, &mut self.rng);
        // Few deletions of everything: an empty store answers everything alike.
        if range_end == "\0" && self.rng.chance(70) {
            range_end = Bytes::new();
        }
        if self.rng.chance(1) {
            key = Bytes::new();
        }
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.rng.chance(40) }
    }

    pub(super) fn spanning(&mut self) -> Step {
        let (first, second) = self.keys.keys_of_two_stores(&mut self.rng);
        if self.rng.chance(40) {
            let (key, range_end) = if first < second { (first, second) } else { (second, first) };
            let range_end = Bytes::from([&range_end[..], b"\0"].concat());
            let request = pb::DeleteRangeRequest { key, range_end, prev_kv: self.rng.chance(40) };
            return Step::Spanning(Request::DeleteRange(request));
        }
        let put = |key| pb::RequestOp {
            request: Some(Op::RequestPut(pb::PutRequest { key, ..Default::default() })),
        };
        let success = vec![put(first), put(second)];
        Step::Spanning(Request::Txn(pb::TxnRequest { success, ..Default::default() }))
    }

    pub(super) fn compaction(&mut self, seen: &Seen) -> pb::CompactionRequest {
        let revision = match self.rng.below(12) {
            0..=2 => self.rng.between((seen.compacted + 1).max(1), seen.revision),
            3 => seen.revision - 1,
            4 => seen.revision,
            5 => seen.compacted,
            6 => seen.compacted - 1,
            7 => seen.revision + 1,
            8 => i64::MAX,
            9 => i64::MIN,
            10 => -1,
            _ => 0,
        };
        pb::CompactionRequest { revision, physical: self.rng.chance(40) }
    }
}

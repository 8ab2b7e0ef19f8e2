//! Leases, and questions about the server.

use pleach::proto::etcdserverpb as pb;

use super::{Generator, Seen, Step};
use crate::request::Request;

/// Lease IDs that requests choose. The position says which store may have keys of it, so that in
/// a routed node one lease has keys in one store.
const LEASE_IDS: [i64; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, -7, i64::MIN, i64::MAX, 1 << 40, 15];

// === impl Generator ===

impl Generator {
    pub(super) fn lease(&mut self) -> i64 {
        if self.rng.chance(3) { 0 } else { self.rng.pick(&LEASE_IDS) }
    }

    /// A lease for a key of the group: mostly one that exists, sometimes one that does not.
    pub(super) fn lease_of(&mut self, group: Option<usize>, seen: &Seen) -> i64 {
        let groups = self.keys.groups.len();
        let fits = |position: usize| group.is_none_or(|group| position % groups == group);
        let ids = LEASE_IDS.iter().enumerate().filter(|(at, _)| fits(*at)).map(|(_, id)| *id);
        let granted: Vec<i64> = ids.clone().filter(|id| seen.leases.contains(id)).collect();
        if !granted.is_empty() && self.rng.chance(90) {
            return self.rng.pick(&granted);
        }
        let all: Vec<i64> = ids.collect();
        self.rng.pick(&all)
    }

    /// Leases live for long, so that none expires between two answers. One with a short time to
    /// live is revoked by the next step.
    pub(super) fn grant(&mut self) -> Step {
        let ttl = match self.rng.below(20) {
            0 => self.rng.pick(&[9_000_000_000, 9_000_000_001, i64::MAX]),
            1..=2 => self.rng.pick(&[-1, 0, 1, 2, i64::MIN]),
            _ => self.rng.between(1000, 100_000),
        };
        if self.rng.chance(10) {
            return Step::GrantUnnamed { ttl };
        }
        let id = self.rng.pick(&LEASE_IDS);
        if ttl < 1000 {
            let revoke = pb::LeaseRevokeRequest { id };
            self.due.push_back(Step::Ask(Request::LeaseRevoke(revoke)));
        }
        Step::Ask(Request::LeaseGrant(pb::LeaseGrantRequest { ttl, id }))
    }

    pub(super) fn about(&mut self) -> Step {
        Step::Ask(match self.rng.below(3) {
            0 => Request::Alarm(pb::AlarmRequest {
                action: 0,
                member_id: 0,
                alarm: self.rng.pick(&[0, 1, 2]),
            }),
            1 => Request::MemberList(pb::MemberListRequest { linearizable: self.rng.chance(50) }),
            _ => Request::Status(pb::StatusRequest {}),
        })
    }
}

//! Lanes: no two nodes of a tree allocate the same number, because each allocates only numbers of
//! its own residue modulo [`LANES`].

use crate::model::Revision;

/// How many lanes there are. 2^53 / 1,024 leaves 8.8e12 numbers in each.
pub const LANES: u16 = 1024;

/// Which numbers a node allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    residue: u16,
    modulus: u16,
}

/// The lanes `first .. first + count`, which a parent hands to a child. The child allocates in the
/// first of them and hands on the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneBlock {
    /// The first lane.
    pub first: u16,
    /// How many lanes; at least 1.
    pub count: u16,
}

/// Two children hold the same lane, or a child holds lanes that its parent does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{first} and {second} both hold lane {lane}: one of them belongs to another tree; \
     give it an empty default store, or a route of its own tree"
)]
pub struct OverlappingLanes {
    /// One name.
    pub first: String,
    /// The other name.
    pub second: String,
    /// The first lane that both hold.
    pub lane: u16,
}

// === impl Lane ===

impl Lane {
    /// Every lane: a node that is in no tree counts on by one, as etcd does.
    pub const ALL: Self = Self { residue: 0, modulus: 1 };

    /// Whether it is one of [`LANES`], so that other nodes allocate between its numbers.
    pub fn is_shared(self) -> bool {
        self.modulus > 1
    }

    /// The first number above `after` in this lane.
    pub fn next(self, after: Revision) -> Revision {
        let modulus = Revision::from(self.modulus);
        let ahead = (Revision::from(self.residue) - after - 1).rem_euclid(modulus);
        after + 1 + ahead
    }
}

// === impl LaneBlock ===

impl LaneBlock {
    /// All lanes, the block of a root.
    pub const ALL: Self = Self { first: 0, count: LANES };

    /// The lanes `first .. first + count`; `None` where there are no such.
    pub fn new(first: u16, count: u16) -> Option<Self> {
        let is_there = count > 0 && first < LANES && count <= LANES - first;
        is_there.then_some(Self { first, count })
    }

    /// Whether it has all lanes of `other`.
    pub fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.first + other.count <= self.first + self.count
    }

    /// The lane in which the holder of the block allocates.
    pub fn own(self) -> Lane {
        Lane { residue: self.first, modulus: LANES }
    }

    /// Whether `lane` belongs to the block.
    pub fn contains(self, lane: u16) -> bool {
        lane >= self.first && lane - self.first < self.count
    }

    /// The next free block of `count` lanes in this one, behind its own lane and what was handed
    /// out; `None` where too few are left.
    pub fn assign(self, handed_out: &[LaneBlock], count: u16) -> Option<LaneBlock> {
        let first = handed_out
            .iter()
            .map(|block| block.first + block.count)
            .max()
            .unwrap_or(self.first + 1);
        let end = self.first + self.count;
        (count > 0 && first + count <= end).then_some(LaneBlock { first, count })
    }

    /// Whether no two blocks share a lane.
    pub fn are_disjoint(blocks: &[LaneBlock]) -> bool {
        let named: Vec<_> = blocks.iter().map(|block| (String::new(), *block)).collect();
        Self::check_disjoint(&named).is_ok()
    }

    /// Refuses blocks that share a lane, naming both holders.
    ///
    /// # Errors
    /// For the first two that overlap.
    pub fn check_disjoint(blocks: &[(String, LaneBlock)]) -> Result<(), OverlappingLanes> {
        let mut sorted: Vec<_> = blocks.iter().collect();
        sorted.sort_by_key(|(_, block)| block.first);
        for pair in sorted.windows(2) {
            let [(first, a), (second, b)] = pair else { continue };
            if a.contains(b.first) {
                let (first, second) = (first.clone(), second.clone());
                return Err(OverlappingLanes { first, second, lane: b.first });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_lane_hands_out_only_its_residue_and_skips_none(first in 0..LANES, after in 0i64..1 << 40) {
            let next = LaneBlock { first, count: 1 }.own().next(after);
            prop_assert!(next > after && next - after <= i64::from(LANES));
            prop_assert_eq!(next % i64::from(LANES), i64::from(first));
        }

        #[test]
        fn blocks_handed_out_share_no_lane(counts in prop::collection::vec(1u16..40, 0..40)) {
            let mut handed = Vec::new();
            for count in counts {
                handed.extend(LaneBlock::ALL.assign(&handed, count));
            }
            let mut named: Vec<_> =
                handed.iter().map(|block| (block.first.to_string(), *block)).collect();
            named.push(("self".into(), LaneBlock { first: 0, count: 1 }));
            prop_assert_eq!(LaneBlock::check_disjoint(&named), Ok(()));
            prop_assert!(handed.iter().all(|block| block.first + block.count <= LANES));
        }
    }

    #[test]
    fn overlapping_blocks_are_refused_with_both_names() {
        let blocks = [
            ("tenant-b".to_owned(), LaneBlock { first: 20, count: 4 }),
            ("tenant-a".to_owned(), LaneBlock { first: 17, count: 16 }),
        ];
        let error = LaneBlock::check_disjoint(&blocks).expect_err("lane 20 is in both");
        assert_eq!((error.first.as_str(), error.second.as_str()), ("tenant-a", "tenant-b"));
    }

    #[test]
    fn a_node_in_no_tree_counts_on_by_one() {
        assert_eq!((Lane::ALL.next(1), Lane::ALL.next(2)), (2, 3));
    }
}

//! Random numbers, handed in: a node takes all of its own from one source, so that a simulated network
//! repeats from its seed.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A source of random numbers. Clones share it.
#[derive(Clone)]
pub struct Entropy(Arc<Inner>);

struct Inner {
    source: Source,
    drawn: AtomicU64,
}

enum Source {
    /// A keyed hash, with keys of the operating system, of a counter: nobody can guess what comes next.
    System(RandomState),
    /// The same numbers for the same seed.
    Seeded(u64),
}

// === impl Entropy ===

impl Entropy {
    /// Numbers that nobody can guess.
    pub fn system() -> Self {
        Self::of(Source::System(RandomState::new()))
    }

    /// Numbers that are the same in each run with this seed.
    pub fn seeded(seed: u64) -> Self {
        Self::of(Source::Seeded(seed))
    }

    fn of(source: Source) -> Self {
        Self(Arc::new(Inner { source, drawn: AtomicU64::new(0) }))
    }

    /// Any 64 bits.
    pub fn bits(&self) -> u64 {
        let count = self.0.drawn.fetch_add(1, Ordering::Relaxed);
        match &self.0.source {
            Source::System(keys) => keys.hash_one(count),
            Source::Seeded(seed) => splitmix(seed.wrapping_add(splitmix(count))),
        }
    }

    /// A number that names something: positive as an `i64` too, and never 0.
    pub fn id(&self) -> u64 {
        (self.bits() >> 1).max(1)
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}

/// The mixing step of the SplitMix64 generator.
fn splitmix(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_another_seed_others() {
        let some = |entropy: Entropy| (0..100).map(|_| entropy.id()).collect::<Vec<_>>();
        assert_eq!(some(Entropy::seeded(7)), some(Entropy::seeded(7)));
        let sources =
            [Entropy::seeded(7), Entropy::seeded(8), Entropy::system(), Entropy::system()];
        let all: HashSet<u64> = sources.into_iter().flat_map(some).collect();
        assert_eq!(all.len(), 400);
    }
}

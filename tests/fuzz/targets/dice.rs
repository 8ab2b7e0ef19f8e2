//! Random choices that follow from a seed.

pub(crate) struct Dice(u32);

// === impl Dice ===

impl Dice {
    pub(crate) fn new(seed: u32) -> Self {
        Self(seed)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        // The generator of Numerical Recipes; its upper bits are the better ones.
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % end
    }
}

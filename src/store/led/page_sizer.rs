//! How many rows are likely to fill a page, learned from pages before.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::store::PAGE_BYTES_MAX;

/// For a store whose database sends all rows that were asked for: it is asked for no more than fit.
#[derive(Debug)]
pub(in crate::store) struct PageSizer {
    is_needed: bool,
    rows: AtomicUsize,
}

// === impl PageSizer ===

impl PageSizer {
    const ROWS_MIN: usize = 32;
    const ROWS_MAX: usize = 2_000;

    pub(in crate::store) fn new(is_needed: bool) -> Self {
        Self { is_needed, rows: AtomicUsize::new(Self::ROWS_MAX / 4) }
    }

    pub(in crate::store) fn rows(&self) -> usize {
        if self.is_needed { self.rows.load(Ordering::Relaxed) } else { usize::MAX }
    }

    /// Learns from a page of so many rows and bytes.
    pub(in crate::store) fn learn(&self, rows: usize, bytes: usize) {
        if let Some(average) = bytes.checked_div(rows) {
            let fit = PAGE_BYTES_MAX / average.max(1) + 1;
            self.rows.store(fit.clamp(Self::ROWS_MIN, Self::ROWS_MAX), Ordering::Relaxed);
        }
    }
}

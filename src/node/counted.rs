//! How many keys are left behind a page of a list with a selector: counted once for the first page, and not by looking
//! at all that is left again for each page that follows.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    model::{Key, KeyRange, KeyValue, Revision, key::successor},
    select::Selector,
    store::Query,
};

/// The lists that are remembered; one more is counted anew.
const LISTS_MAX: usize = 64;

/// What is left of lists under way.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<VecDeque<Left>>);

/// What one list has left from the beginning of a range on.
#[derive(Debug)]
struct Left {
    range: KeyRange,
    revision: Revision,
    selector: Arc<Selector>,
    count: u64,
}

// === impl Counted ===

impl Counted {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Left>> {
        // Nothing behind the lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many keys a query finds, where a page before it has told.
    pub(super) fn get(&self, query: &Query) -> Option<u64> {
        let is_it = |left: &&Left| {
            left.range == query.range
                && left.revision == query.revision
                && query.selector.as_ref() == Some(&left.selector)
        };
        self.lock().iter().find(is_it).map(|left| left.count)
    }

    /// Remembers what is left behind a page of a query that finds `count` keys.
    pub(super) fn note(&self, query: &Query, count: u64, page: &[KeyValue]) {
        let (Some(selector), Some(last)) = (&query.selector, page.last()) else { return };
        let start: Key = successor(&last.key);
        let range = KeyRange { start, end: query.range.end.clone() };
        let (revision, selector) = (query.revision, selector.clone());
        let count = count.saturating_sub(page.len() as u64);
        let mut lists = self.lock();
        if lists.len() == LISTS_MAX {
            lists.pop_front();
        }
        lists.push_back(Left { range, revision, selector, count });
    }
}

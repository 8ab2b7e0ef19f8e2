//! What a read costs each store, for who asks: `pleach explain --node`.

use std::sync::{Mutex, PoisonError};

pub use crate::proto::tree::StoreRead;

/// The most stores that are told of: what others say is bounded.
const STORES_MAX: usize = 1_024;

/// What stores did for one read, whichever parts it was split into.
#[derive(Debug, Default)]
pub struct Explanation(Mutex<Vec<StoreRead>>);

// === impl Explanation ===

impl Explanation {
    /// Adds what a store did.
    pub fn note(&self, done: StoreRead) {
        // Nothing panics while it has the lock.
        let mut stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = stores.len() == STORES_MAX;
        match stores.iter_mut().find(|store| store.path == done.path) {
            Some(store) => {
                store.pages = store.pages.saturating_add(done.pages);
                store.pages_by_index = store.pages_by_index.saturating_add(done.pages_by_index);
                store.rows_read = store.rows_read.saturating_add(done.rows_read);
                store.rows_returned = store.rows_returned.saturating_add(done.rows_returned);
                store.seconds += done.seconds;
            }
            None if is_full => {}
            None => stores.push(done),
        }
    }

    /// Adds what was done below the route of this name.
    pub fn note_below(&self, route: &str, done: Vec<StoreRead>) {
        for store in done.into_iter().take(STORES_MAX) {
            self.note(StoreRead { path: format!("{route}/{}", store.path), ..store });
        }
    }

    /// What each store did, in the order in which they were first heard of.
    pub fn stores(&self) -> Vec<StoreRead> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_one_store_are_added_up_and_those_below_a_route_stand_behind_its_name() {
        let done = |path: &str, rows_read| StoreRead {
            path: path.to_owned(),
            pages: 1,
            rows_read,
            ..StoreRead::default()
        };
        let explanation = Explanation::default();
        explanation.note(done("eu", 0));
        explanation.note_below("eu", vec![done("main", 5), done("pods", 7)]);
        explanation.note_below("eu", vec![done("pods", 2)]);
        let stores = explanation.stores();
        let said = stores.iter().map(|it| (&*it.path, it.pages, it.rows_read)).collect::<Vec<_>>();
        assert_eq!(said, [("eu", 1, 0), ("eu/main", 1, 5), ("eu/pods", 2, 9)]);
    }
}

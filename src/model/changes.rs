//! What a transaction may change, whatever branches it takes.

use super::{
    Key, KeyRange,
    txn::{Op, Txn},
};

/// Keys and ranges that may change.
#[derive(Debug, Default)]
pub struct Changes {
    /// Keys that may be put.
    pub puts: Vec<Key>,
    /// Ranges that may be deleted.
    pub deletes: Vec<KeyRange>,
}

// === impl Changes ===

impl Changes {
    /// Those of a transaction and all transactions within.
    pub fn of(txn: &Txn) -> Self {
        let mut changes = Self::default();
        changes.collect(txn);
        changes
    }

    fn collect(&mut self, txn: &Txn) {
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Range(_) => {}
                Op::Put(put) => self.puts.push(put.key.clone()),
                Op::Delete(delete) => self.deletes.push(delete.range.clone()),
                Op::Txn(inner) => self.collect(inner),
            }
        }
    }
}

//! A deletion that spans stores, carried out store by store: each deletes at a revision of its own, and one that
//! fails leaves undone what is its own and what comes behind it. Only where an operator allows it.

use super::{Router, Table};
use crate::{
    model::{
        KeyRange, KeyValue, Revision, StoreError,
        error::Result,
        txn::{DeleteOp, Op, OpResult, Txn, TxnResult},
    },
    store::{Query, Written},
};

/// Deletions of single keys in one transaction: no more than a child takes of anybody.
const KEYS_AT_ONCE: usize = 100;

impl Router {
    /// Deletes the keys of a range in every store that holds some, one store after the other. Returns the
    /// greatest of the revisions at which keys were deleted.
    ///
    /// # Errors
    /// That of the first store that fails: `UnknownOutcome` once others have deleted theirs.
    pub async fn delete_in_each(&self, delete: &DeleteOp, present: Revision) -> Result<Written> {
        self.delete_each(std::slice::from_ref(delete), present).await
    }

    /// The same of several ranges, one after the other, with a result for each.
    ///
    /// # Errors
    /// As [`Router::delete_in_each`].
    pub async fn delete_each(&self, deletes: &[DeleteOp], present: Revision) -> Result<Written> {
        let (mut newest, mut before, mut results) = (0, 0, Vec::new());
        for delete in deletes {
            let mut done = Done { revision: 0, deleted: 0, prevs: Vec::new() };
            for at in self.touched(&delete.range) {
                let deleted = delete_in(&self.table, at, delete, present, &mut done).await;
                deleted.map_err(|error| match before + done.deleted {
                    0 => error,
                    deleted => StoreError::UnknownOutcome {
                        store: self.table.stores[at].name().clone(),
                        reason: format!("{deleted} keys were deleted, and then: {error}").into(),
                    },
                })?;
            }
            let Done { revision, deleted, mut prevs } = done;
            prevs.sort_by(|a, b| a.key.cmp(&b.key));
            (newest, before) = (revision.max(newest), before + deleted);
            results.push(OpResult::Delete { revision, deleted, prevs });
        }
        let revision = newest.max(if before == 0 { present } else { 0 });
        for result in &mut results {
            if let OpResult::Delete { revision: told, .. } = result {
                *told = revision;
            }
        }
        Ok(Written { revision, result: TxnResult { succeeded: true, results } })
    }
}

struct Done {
    revision: Revision,
    deleted: i64,
    prevs: Vec<KeyValue>,
}

/// Deletes what one store owns of a range: by ranges where it holds nothing else there, else key by key.
async fn delete_in(
    table: &Table,
    at: usize,
    delete: &DeleteOp,
    present: Revision,
    done: &mut Done,
) -> Result<()> {
    let mut ops = Vec::new();
    for part in table.parts(at, &delete.range) {
        if table.is_pure(at, &part, present) {
            ops.push(DeleteOp { range: part, ..delete.clone() });
            continue;
        }
        let mut read = Query { keys_only: true, ..Query::new(part, 0) };
        loop {
            let page = table.stores[at].read(&read).await?;
            let owned = page.kvs.into_iter().filter(|kv| table.owner(&kv.key) == at);
            ops.extend(
                owned.map(|kv| DeleteOp { range: KeyRange::single(kv.key), ..delete.clone() }),
            );
            let Some(next) = page.next else { break };
            read.range.start = next;
        }
    }
    for ops in ops.chunks(KEYS_AT_ONCE) {
        let success = ops.iter().cloned().map(Op::Delete).collect();
        // A child may have several stores itself.
        let txn = Txn { success, may_split: true, ..Txn::default() };
        let Written { revision, result } = table.stores[at].apply(txn, Vec::new()).await?;
        let mut deleted_here = 0;
        for result in result.results {
            if let OpResult::Delete { deleted, prevs, .. } = result {
                deleted_here += deleted;
                done.prevs.extend(prevs);
            }
        }
        if deleted_here > 0 {
            done.deleted += deleted_here;
            done.revision = done.revision.max(revision);
        }
    }
    Ok(())
}

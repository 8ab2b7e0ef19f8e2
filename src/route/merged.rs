//! Tails that span stores: their logs merged into one, in the order of revisions.
//!
//! What one store has committed waits until the others have closed its revision. A store that has
//! nothing to say is asked to close it, so an idle one holds up nobody.

use std::sync::Arc;

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, FuturesUnordered, SelectAll},
};

use super::Table;
use crate::{
    clock::Merge,
    model::{Commit, Revision, error::Result},
    store::{Batch, Tail},
};

/// The merged log of the stores of `members`, from behind `after`.
pub(super) fn tail(table: Arc<Table>, members: &[usize], after: Revision) -> Tail {
    let tails = members.iter().enumerate().map(|(source, at)| {
        table.stores[*at].tail(after).map(move |batch| (source, batch)).boxed()
    });
    let merged = Merged {
        merge: Merge::new(members.len(), after),
        tails: stream::select_all(tails),
        members: members.to_vec(),
        asked: vec![after; members.len()],
        syncs: FuturesUnordered::new(),
        yielded: after,
        table,
    };
    stream::try_unfold(merged, |mut merged| async move {
        let batch = merged.next().await?;
        Ok(batch.map(|batch| (batch, merged)))
    })
    .boxed()
}

type SourceTail = stream::BoxStream<'static, (usize, Result<Batch>)>;

struct Merged {
    table: Arc<Table>,
    members: Vec<usize>,
    merge: Merge<Arc<Commit>>,
    tails: SelectAll<SourceTail>,
    /// The revision that each source was last asked to close.
    asked: Vec<Revision>,
    syncs: FuturesUnordered<BoxFuture<'static, Result<Revision>>>,
    yielded: Revision,
}

// === impl Merged ===

impl Merged {
    async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            let (ready, closed) = self.merge.drain();
            if closed > self.yielded {
                self.yielded = closed;
                let commits = ready.into_iter().map(|(_, commit)| commit).collect();
                return Ok(Some(Batch { commits, closed }));
            }
            self.ask();
            tokio::select! {
                Some((source, batch)) = self.tails.next() => self.push(source, batch?),
                Some(closed) = self.syncs.next() => drop(closed?),
                else => return Ok(None),
            }
        }
    }

    fn push(&mut self, source: usize, batch: Batch) {
        let at = self.members[source];
        let owned = batch.commits.into_iter().filter_map(|commit| self.table.owned(at, commit));
        let entries: Vec<_> = owned.map(|commit| (commit.revision, commit)).collect();
        // No source is ever detached here, so none can be late.
        let _late = self.merge.push(source, entries, batch.closed);
    }

    /// Asks the sources that hold up what is waiting to close it; their tails will say when.
    fn ask(&mut self) {
        let Some(wanted) = self.merge.waiting() else { return };
        let open: Vec<usize> = self.merge.open_below(wanted).collect();
        for source in open {
            if self.asked[source] < wanted {
                self.asked[source] = wanted;
                let store = self.table.stores[self.members[source]].clone();
                self.syncs.push(async move { store.sync(wanted).await }.boxed());
            }
        }
    }
}

// === impl Table ===

impl Table {
    /// The part of a store's commit that routes to it; `None` where nothing does.
    fn owned(&self, at: usize, commit: Arc<Commit>) -> Option<Arc<Commit>> {
        if commit.events.iter().all(|event| self.owner(&event.kv.key) == at) {
            return Some(commit);
        }
        let is_owned = |key: &[u8]| self.owner(key) == at;
        let mut events = commit.events.clone();
        events.retain(|event| is_owned(&event.kv.key));
        let commit = Commit { revision: commit.revision, events };
        (!commit.events.is_empty()).then(|| Arc::new(commit))
    }
}

//! Tails that span stores: their logs merged into one, in the order of revisions.
//!
//! What one store has committed waits until the others have closed its revision. A store that has
//! nothing to say is asked to close it, so an idle one holds up nobody. One that is detached
//! ([`crate::store::attach`]) is passed over; what it did meanwhile comes late, when it is back.

use std::{sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, pending},
    stream::{self, FuturesUnordered, SelectAll},
};
use tokio::time::{sleep, timeout};
use tokio_stream::{StreamMap, wrappers::WatchStream};

use super::{Table, attach_state};
use crate::{
    clock::{self, Gap, Merge},
    model::{Commit, Revision, error::Result},
    store::{Backfill, LogBatch, Store, Tail, attach::AttachState},
};

/// How long to wait before a store that is there and did not close a revision is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long to wait before it is tried again to leave a store, which must be noted.
const LEAVE_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The merged log of the stores of `members`, from behind `after`.
pub(super) fn tail(table: Arc<Table>, members: &[usize], after: Revision) -> Tail {
    let mut tails = StreamMap::new();
    let mut changes = SelectAll::new();
    let mut merge = Merge::new(members.len(), after);
    let sources = members.iter().enumerate().map(|(index, at)| {
        let store = table.stores[*at].clone();
        let attach_state = attach_state(&store).cloned();
        if let Some(attach_state) = &attach_state {
            changes.push(WatchStream::from_changes(attach_state.changes()));
        }
        // Known from the beginning, not from when this is first asked: the store may be back by then, and
        // what it did meanwhile must come late.
        let standing =
            attach_state.as_ref().map(|attach_state| attach_state.standing()).unwrap_or_default();
        let is_detached = standing.detached_at.is_some_and(|left| left <= after);
        if is_detached {
            merge.detach(index);
        } else {
            tails.insert(index, store.tail(after));
        }
        let detach_epoch = standing.gone_through(is_detached);
        let (closed, asked, backfill) = (after, after, Backfill::default());
        let gap = Gap { after, floor: 0 };
        Source {
            at: *at,
            store,
            attach_state,
            closed,
            is_detached,
            detach_epoch,
            asked,
            backfill,
            gap,
        }
    });
    let sources = sources.collect();
    let merged = Merged {
        merge,
        sources,
        tails,
        changes,
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

struct Merged {
    table: Arc<Table>,
    sources: Vec<Source>,
    merge: Merge<Arc<Commit>>,
    /// By source; none for one that is detached.
    tails: StreamMap<usize, Tail>,
    /// Tell when a store comes or goes.
    changes: SelectAll<WatchStream<()>>,
    /// Sources that were asked to close something, and whether they have.
    syncs: FuturesUnordered<BoxFuture<'static, (usize, bool)>>,
    yielded: Revision,
}

struct Source {
    /// Its place in the table.
    at: usize,
    store: Arc<dyn Store>,
    attach_state: Option<Arc<AttachState>>,
    /// What its tail has said to be closed.
    closed: Revision,
    is_detached: bool,
    /// How many of the store's detachments were gone through here, and so are behind, or this one.
    detach_epoch: u64,
    /// The revision that it was last asked to close.
    asked: Revision,
    /// What came late and is not told yet.
    backfill: Backfill,
    /// When it was last away: where it was left, and the floor of those who went on without it.
    gap: Gap,
}

// === impl Merged ===

impl Merged {
    async fn next(&mut self) -> Result<Option<LogBatch>> {
        loop {
            let mut is_held_up = false;
            for index in 0..self.sources.len() {
                is_held_up |= self.detach_or_attach(index).await.is_err();
            }
            let mut sources = self.sources.iter_mut();
            if let Some(source) = sources.find(|source| !source.backfill.commits.is_empty()) {
                let backfill = std::mem::take(&mut source.backfill);
                return Ok(Some(LogBatch { commits: Vec::new(), closed: self.yielded, backfill }));
            }
            let closed = self.merge.closed();
            if closed > self.yielded && self.may_pass(closed) {
                let (ready, closed) = self.merge.drain();
                self.yielded = closed;
                return Ok(Some(LogBatch::new(joined(ready), closed)));
            }
            self.ask();
            tokio::select! {
                Some((source, batch)) = self.tails.next() => self.push(source, batch?),
                Some(()) = self.changes.next() => {}
                Some((source, is_closed)) = self.syncs.next() => {
                    if !is_closed {
                        self.sources[source].asked = 0;
                    }
                }
                () = sleep(LEAVE_AGAIN_AFTER), if is_held_up => {}
                else => return Ok(None),
            }
        }
    }

    /// Passes over a store that is detached, once all is here that it had closed before, or that can
    /// be had here. When it is back, what was passed over comes late: what was here, and what was by others
    /// whose followers may have joined those of this.
    ///
    /// # Errors
    /// Where it can't be noted that the store is left.
    async fn detach_or_attach(&mut self, index: usize) -> Result<()> {
        let source = &mut self.sources[index];
        let Some(attach_state) = source.attach_state.clone() else { return Ok(()) };
        let standing = attach_state.standing();
        let is_back = source.is_detached && standing.detached_at.is_none();
        if is_back || source.detach_epoch != standing.gone_through(source.is_detached) {
            // Not from what is closed, which may be a promise far above all that was said.
            let tail = source.come_back(&attach_state, source.closed.min(self.yielded));
            source.detach_epoch = standing.gone_through(false);
            self.merge.attach(index, source.closed);
            self.tails.insert(index, tail);
        }
        let Some(left) = standing.detached_at.filter(|_| !source.is_detached) else {
            return Ok(());
        };
        if source.closed < left {
            if source.store.covers(source.closed) {
                return Ok(());
            }
            // Where nobody here knows what it did before it was left, it was left earlier.
            attach_state.detach_at(source.closed).await?;
        }
        source.is_detached = true;
        source.detach_epoch = standing.gone_through(true);
        self.merge.detach(index);
        self.tails.remove(&index);
        Ok(())
    }

    /// Whether all up to `revision` may be said without the stores that are passed over.
    fn may_pass(&self, revision: Revision) -> bool {
        let mut detached = self.sources.iter().filter(|source| source.is_detached);
        detached.all(|source| {
            let attach_state = source.attach_state.as_ref();
            attach_state.is_none_or(|attach_state| attach_state.pass(revision, source.detach_epoch))
        })
    }

    fn push(&mut self, index: usize, batch: LogBatch) {
        let source = &mut self.sources[index];
        let (table, at) = (&self.table, source.at);
        let entries = |commits: Vec<Arc<Commit>>| {
            let owned = commits.into_iter().filter_map(move |commit| table.owned(at, commit));
            owned.map(|commit| (commit.revision, commit))
        };
        // Behind a return the tail begins where the store was left: that was passed over, or is here.
        let passed_over = self.merge.push(index, entries(batch.commits), batch.closed);
        // Late for whoever was told without it, which is nobody here where another store holds things up.
        let told = self.merge.push(index, entries(batch.backfill.commits), batch.closed);
        source.closed = source.closed.max(batch.closed);
        // At least above all that was said here.
        let (after, floor) = (source.gap.after, source.gap.floor.max(self.yielded + 1));
        source.backfill.join(Backfill { commits: commits(passed_over), after, floor });
        // What the store itself says to come late has a floor of its own.
        let Backfill { after, floor, .. } = batch.backfill;
        source.backfill.join(Backfill { commits: commits(told), after, floor });
    }

    /// Asks the sources that hold up what is waiting to close it; their tails will say when.
    fn ask(&mut self) {
        let Some(wanted) = self.merge.waiting() else { return };
        let open: Vec<usize> = self.merge.open_below(wanted).collect();
        for index in open {
            let source = &mut self.sources[index];
            if source.asked >= wanted {
                continue;
            }
            source.asked = wanted;
            let (store, attach_state) = (source.store.clone(), source.attach_state.clone());
            self.syncs.push(
                async move {
                    let is_closed = store.advance_closed(wanted, 0).await.is_ok();
                    if !is_closed {
                        let mut changes = attach_state.map(|attach_state| attach_state.changes());
                        let comes_or_goes = async {
                            match &mut changes {
                                Some(changes) => drop(changes.changed().await),
                                None => pending().await,
                            }
                        };
                        let _ = timeout(ASK_AGAIN_AFTER, comes_or_goes).await;
                    }
                    (index, is_closed)
                }
                .boxed(),
            );
        }
    }
}

// === impl Source ===

impl Source {
    /// The log from `after` on, or from where the gaps begin that reach above.
    fn come_back(&mut self, attach_state: &AttachState, after: Revision) -> Tail {
        (self.is_detached, self.asked) = (false, 0);
        self.gap = attach_state.gaps_above(after);
        loop {
            let tail = self.store.tail(self.gap.after);
            // What comes late from here on the tail tells; what came late before is noted by now.
            let gap = attach_state.gaps_above(after);
            if gap == self.gap {
                self.closed = gap.after;
                return tail;
            }
            self.gap = gap;
        }
    }
}

fn commits(late: Vec<clock::PassedOver<Arc<Commit>>>) -> Vec<Arc<Commit>> {
    late.into_iter().map(|late| late.entry).collect()
}

/// The commits of what is ready. Those of one revision are one: stores that were no part of a tree may
/// have counted alike.
fn joined(ready: Vec<(Revision, Arc<Commit>)>) -> Vec<Arc<Commit>> {
    let mut commits: Vec<Arc<Commit>> = Vec::with_capacity(ready.len());
    for (revision, commit) in ready {
        match commits.last_mut().filter(|last| last.revision == revision) {
            Some(last) => Arc::make_mut(last).join(&commit),
            None => commits.push(commit),
        }
    }
    commits
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

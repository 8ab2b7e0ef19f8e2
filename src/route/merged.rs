//! Tails that span stores: their logs merged into one, in the order of revisions.
//!
//! What one store has committed waits until the others have closed its revision. A store that has
//! nothing to say is asked to close it, so an idle one holds up nobody. One that is detached
//! ([`crate::store::presence`]) is passed over; what it did meanwhile comes late, when it is back.

use std::{sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, pending},
    stream::{self, BoxStream, FuturesUnordered, SelectAll},
};
use tokio::time::timeout;
use tokio_stream::wrappers::WatchStream;

use super::Table;
use crate::{
    clock::Merge,
    model::{Commit, Revision, error::Result},
    store::{Batch, Late, Tail, presence::Presence},
};

/// How long to wait before a store that is there and did not close a revision is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The merged log of the stores of `members`, from behind `after`.
pub(super) fn tail(table: Arc<Table>, members: &[usize], after: Revision) -> Tail {
    let mut merge = Merge::new(members.len(), after);
    let mut sources = Vec::new();
    let mut tails = Vec::new();
    let mut changes = SelectAll::new();
    for (source, at) in members.iter().enumerate() {
        let store = &table.stores[*at];
        let presence = store.presence().cloned();
        if let Some(presence) = &presence {
            changes.push(WatchStream::from_changes(presence.changes()));
        }
        // Where it was left, and not later: what lies between may be what this reader lacks.
        let left = presence.as_ref().and_then(|presence| presence.left_at());
        let left = left.filter(|left| *left <= after);
        if left.is_some() {
            merge.detach(source);
        }
        let tail = store.tail(left.unwrap_or(after));
        tails.push(tail.map(move |batch| (source, batch)).boxed());
        sources.push(Source {
            at: *at,
            presence,
            closed: left.unwrap_or(after),
            is_detached: left.is_some(),
            asked: after,
            late: Late::default(),
        });
    }
    let merged = Merged {
        merge,
        sources,
        tails: stream::select_all(tails),
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

type SourceTail = BoxStream<'static, (usize, Result<Batch>)>;

struct Merged {
    table: Arc<Table>,
    sources: Vec<Source>,
    merge: Merge<Arc<Commit>>,
    tails: SelectAll<SourceTail>,
    /// Tell when a store comes or goes.
    changes: SelectAll<WatchStream<()>>,
    /// Sources that were asked to close something, and whether they have.
    syncs: FuturesUnordered<BoxFuture<'static, (usize, bool)>>,
    yielded: Revision,
}

struct Source {
    /// Its place in the table.
    at: usize,
    presence: Option<Arc<Presence>>,
    closed: Revision,
    is_detached: bool,
    /// The revision that it was last asked to close.
    asked: Revision,
    /// What came late and is not told yet.
    late: Late,
}

// === impl Merged ===

impl Merged {
    async fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            self.detach_and_attach();
            if let Some(late) = self.late() {
                return Ok(Some(Batch { commits: Vec::new(), closed: self.yielded, late }));
            }
            let closed = self.merge.closed();
            if closed > self.yielded && self.may_pass(closed) {
                let (ready, closed) = self.merge.drain();
                self.yielded = closed;
                return Ok(Some(Batch::new(joined(ready), closed)));
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
                else => return Ok(None),
            }
        }
    }

    /// Passes over the stores that are detached, once all is here that they had closed.
    fn detach_and_attach(&mut self) {
        for (index, source) in self.sources.iter_mut().enumerate() {
            let Some(presence) = &source.presence else { continue };
            let left = presence.left_at();
            if source.is_detached && left.is_none() {
                source.is_detached = false;
                source.asked = 0;
                self.merge.attach(index);
            } else if !source.is_detached && left.is_some_and(|left| source.closed >= left) {
                source.is_detached = true;
                self.merge.detach(index);
            }
        }
    }

    /// Whether all up to `revision` may be said without the stores that are passed over.
    fn may_pass(&self, revision: Revision) -> bool {
        let mut detached = self.sources.iter().filter(|source| source.is_detached);
        detached.all(|source| source.presence.as_ref().is_none_or(|it| it.pass(revision)))
    }

    /// What came late from a store that is attached again, so that its floor is known.
    fn late(&mut self) -> Option<Late> {
        let is_due = |source: &&mut Source| !source.is_detached && !source.late.commits.is_empty();
        let source = self.sources.iter_mut().find(is_due)?;
        let mut late = std::mem::take(&mut source.late);
        if let Some(presence) = &source.presence {
            let (after, floor) = presence.newest_gap();
            late.after = if late.floor == 0 { after } else { late.after.min(after) };
            late.floor = late.floor.max(floor);
        }
        Some(late)
    }

    fn push(&mut self, index: usize, batch: Batch) {
        let source = &mut self.sources[index];
        let owned = |commit| self.table.owned(source.at, commit);
        let entries: Vec<_> = batch.commits.into_iter().filter_map(owned).collect();
        let entries = entries.into_iter().map(|commit| (commit.revision, commit));
        source.closed = source.closed.max(batch.closed);
        let late = self.merge.push(index, entries, batch.closed);
        source.late.commits.extend(late.into_iter().map(|late| late.entry));
        // What the store itself says to be late has its floor.
        let told = batch.late;
        let told_commits: Vec<_> = told
            .commits
            .into_iter()
            .filter_map(|commit| self.table.owned(source.at, commit))
            .collect();
        if !told_commits.is_empty() {
            source.late.commits.extend(told_commits);
            (source.late.after, source.late.floor) = (told.after, told.floor);
        }
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
            let store = self.table.stores[source.at].clone();
            let presence = source.presence.clone();
            self.syncs.push(
                async move {
                    let is_closed = store.sync(wanted, 0).await.is_ok();
                    if !is_closed {
                        let mut changes = presence.map(|presence| presence.changes());
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

/// The commits of what is ready. Those of one revision are one: stores that were no part of a tree may
/// have counted alike.
fn joined(ready: Vec<(Revision, Arc<Commit>)>) -> Vec<Arc<Commit>> {
    let mut commits: Vec<Arc<Commit>> = Vec::with_capacity(ready.len());
    for (revision, commit) in ready {
        match commits.last_mut().filter(|last| last.revision == revision) {
            Some(last) => Arc::make_mut(last).events.extend(commit.events.iter().cloned()),
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

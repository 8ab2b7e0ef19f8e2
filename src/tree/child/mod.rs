//! A child: another node, as a store.
//!
//! ```text
//!                       calls  ──> apply, read, count, read index … one request, one answer
//!   NodeStore ── Wire ──┤
//!                       live   ──> its log ──> ChildLog ──> tails    one for all who follow it here
//!                       past   ──> its log ──> a tail that is far behind
//! ```
//!
//! Its numbers are its own, out of its own lane, so nothing is mapped. Each request takes along the
//! revision that this node has reached, and the child moves up to it first; what the child answers, this
//! node takes up before anyone hears of it.
//!
//! A child that is away answers nothing: its keys are refused at once. Its tails wait; who merges them may
//! go on without it ([`crate::store::attach`]).

mod link;
mod log;
mod wire;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Streaming;

pub use self::wire::Connections;
use self::{
    log::{ChildLog, Next, Position},
    wire::{Wire, WireError},
};
use super::membership::Membership;
use crate::{
    clock::SharedClock,
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    proto::tree as pb,
    store::{
        Coverage, Described, Head, LogBatch, Page, Query, Size, Store, Tail, Written,
        attach::AttachState,
        meter::{Lasting, Meters},
        selected,
    },
    wire as words,
};

/// The version of the protocol between nodes.
pub const PROTOCOL: u32 = 2;

/// How far a child that has nothing in flight is asked to close ahead at most, unless its terms say
/// otherwise; and how far it does.
pub const AHEAD_MAX: Revision = 1 << 22;

/// How far it is asked to close ahead at first. Each promise that the child breaks off by a write of its own
/// costs the numbers that are left of it.
const AHEAD_FIRST: Revision = 1 << 14;

/// A node that says to be further ahead of another is taken to be out of its mind: numbers would run out,
/// for all. It takes years to get so far.
pub const LEAD_MAX: Revision = 1 << 50;

const PROBE_TIME_MAX: Duration = Duration::from_secs(4);

const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A child; see the module.
#[derive(Debug)]
pub struct NodeStore {
    shared: Arc<Shared>,
    link: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    wire: Wire,
    membership: Arc<Membership>,
    attach_state: Arc<AttachState>,
    terms: Terms,
    log: ChildLog,
    foresight: Mutex<Foresight>,
    compacted: AtomicI64,
    /// How far it has driven this node's clock, in the life of this process.
    driven: AtomicI64,
    /// How many lanes it wanted when it was last thought of, and when that was.
    lanes_asked: Mutex<Option<(u16, Instant)>>,
    /// Whether it said its greatest revision when it was attached.
    has_exact_newest: AtomicBool,
    /// Why it is away.
    trouble: watch::Sender<Option<Arc<str>>>,
    is_away: Lasting,
}

/// On what terms a child is attached.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How many of this node's lanes it gets; `None` for as many as usual.
    pub lanes: Option<u16>,
    /// How far it is asked to close ahead where it has nothing in flight.
    pub ahead: Revision,
    /// The keys that may be asked of it, whose changes it tells; all where there are none.
    pub ranges: Vec<KeyRange>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { lanes: None, ahead: AHEAD_MAX, ranges: Vec::new() }
    }
}

/// How far it pays to have a child close ahead: far where it has nothing to write.
#[derive(Clone, Copy, Debug)]
struct Foresight {
    ahead: Revision,
    /// The promise that was given last.
    promised: Revision,
}

/// What answers at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// A node.
    Node,
    /// Something else that speaks gRPC, most likely an etcd.
    Other,
}

/// Finds out what answers.
///
/// # Errors
/// Why nothing does.
pub async fn probe(connections: &Connections) -> Result<Answerer, String> {
    match timeout(PROBE_TIME_MAX, wire::answers(connections)).await {
        Ok(answerer) => answerer,
        Err(_) => Err("it does not answer".to_owned()),
    }
}

// === impl Foresight ===

impl Foresight {
    /// How far to have a child close ahead of `wanted` that has closed so much by now, `most` at most.
    fn next(&mut self, wanted: Revision, closed: Revision, most: Revision) -> Revision {
        if self.promised > 0 {
            // It has gone on by itself, or what it promised was needed.
            let is_broken = closed > self.promised;
            let next = if is_broken { self.ahead / 2 } else { self.ahead * 2 };
            if is_broken || wanted > self.promised {
                (self.ahead, self.promised) = (next.clamp(AHEAD_FIRST, AHEAD_MAX), 0);
            }
        }
        self.ahead.min(most)
    }

    /// Takes note of what was closed when so much was wanted.
    fn note(&mut self, wanted: Revision, closed: Revision) {
        if closed > wanted {
            self.promised = self.promised.max(closed);
        }
    }
}

// === impl NodeStore ===

impl NodeStore {
    /// The child behind `connections`, which is attached as soon as it can be reached, and from then
    /// on whenever it can. Call it in a runtime.
    pub fn open(
        name: &str,
        connections: Connections,
        membership: Arc<Membership>,
        attach_state: Arc<AttachState>,
        terms: Terms,
    ) -> Arc<Self> {
        let name: Arc<str> = name.into();
        let shared = Arc::new(Shared {
            wire: Wire::new(name.clone(), membership.clone(), connections),
            name,
            membership,
            attach_state,
            terms,
            log: ChildLog::default(),
            foresight: Mutex::new(Foresight { ahead: AHEAD_FIRST, promised: 0 }),
            compacted: AtomicI64::new(-1),
            driven: AtomicI64::new(0),
            lanes_asked: Mutex::default(),
            has_exact_newest: AtomicBool::new(false),
            trouble: watch::Sender::new(Some("it was not reached yet".into())),
            is_away: Lasting::default(),
        });
        shared.is_away.begin();
        let link = AbortOnDropHandle::new(tokio::spawn(shared.clone().keep_attached()));
        Arc::new(Self { shared, link: Mutex::new(Some(link)) })
    }

    /// A page, and whether the child heeded the selector.
    async fn read_page(&self, read: &Query) -> Result<(Page, bool)> {
        let (key, range_end) = words::range_to(&read.range);
        let (label_selector, field_selector) = words::selector_texts(read.selector.as_ref());
        let request = pb::ReadRequest {
            key,
            range_end,
            revision: read.revision,
            limit: read.limit as u64,
            keys_only: read.keys_only,
            lease: read.lease,
            label_selector,
            field_selector,
            explain: read.explanation.is_some(),
        };
        let answer = self.shared.asked(false, self.shared.wire.read(request)).await?;
        self.shared.advance_to(answer.revision).await?;
        if let Some(explanation) = &read.explanation {
            explanation.note_below(&self.shared.name, answer.stores);
        }
        let page = Page {
            kvs: answer.kvs.into_iter().map(words::kv).collect(),
            next: answer.more.then_some(answer.next),
            revision: answer.revision,
        };
        Ok((page, answer.is_selected))
    }
}

#[async_trait]
impl Store for NodeStore {
    fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        let may_split = txn.may_split;
        let txn = Some(words::txn_request(&txn));
        let leases_ended = self.shared.membership.leases_ended().load(Ordering::Acquire);
        let request = pb::ApplyRequest { txn, dead_leases, leases_ended, may_split };
        let answer = self.shared.asked(true, self.shared.wire.apply(request)).await?;
        self.shared.advance_to(answer.revision).await?;
        let result = answer.txn.and_then(words::txn_result);
        let result = result.ok_or_else(|| StoreError::UnknownOutcome {
            store: self.shared.name.clone(),
            reason: "its answer can't be read".into(),
        })?;
        Ok(Written { revision: answer.revision, result })
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        // Counted before it is sent: what is sent from now on knows of it.
        let ended = self.shared.membership.leases_ended();
        let leases_ended = ended.fetch_add(1, Ordering::AcqRel) + 1;
        let request = pb::EndLeaseRequest { lease, leases_ended };
        let answer = self.shared.asked(true, self.shared.wire.end_lease(request)).await?;
        self.shared.advance_to(answer.revision).await?;
        Ok((!answer.had_none).then_some(answer.revision))
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        let answer = self.shared.asked(false, self.shared.wire.leases()).await?;
        Ok(answer.leases.into_iter().collect())
    }

    async fn read(&self, read: &Query) -> Result<Page> {
        let (page, is_selected) = self.read_page(read).await?;
        if read.selector.is_none() || is_selected {
            return Ok(page);
        }
        // One of a version that does not know selectors.
        let read = Query { revision: page.revision, ..read.clone() };
        let all = |all| async move { Ok(self.read_page(&all).await?.0) };
        Ok(selected::read(&read, all).await?.0)
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        let (key, range_end) = words::range_to(&query.range);
        let (label_selector, field_selector) = words::selector_texts(query.selector.as_ref());
        let revision = query.revision;
        let request = pb::CountRequest { key, range_end, revision, label_selector, field_selector };
        let answer = self.shared.asked(false, self.shared.wire.count(request)).await?;
        if query.selector.is_none() || answer.is_selected {
            return Ok(answer.count);
        }
        selected::count(query, |all| async move { Ok(self.read_page(&all).await?.0) }).await
    }

    fn tail(&self, after: Revision) -> Tail {
        let position = self.shared.log.position(after);
        let cursor = Cursor { shared: self.shared.clone(), position, past: None };
        stream::try_unfold(cursor, |mut cursor| async move {
            let batch = cursor.next().await?;
            Ok(Some((batch, cursor)))
        })
        .boxed()
    }

    fn announce_closed(&self) -> Revision {
        self.shared.log.closed().max(self.shared.begun())
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        let closed = self.shared.log.closed();
        if closed >= revision + ahead {
            return Ok(closed);
        }
        let ahead = ahead.max(self.shared.look_ahead(revision, closed));
        let request = pb::AdvanceClosedRequest { revision, ahead };
        let closed =
            self.shared.asked(false, self.shared.wire.advance_closed(request)).await?.closed;
        self.shared.lock_foresight().note(revision, closed);
        Ok(closed)
    }

    async fn read_index(&self, range: &KeyRange, coverage: Coverage) -> Result<Revision> {
        let (key, range_end) = words::range_to(range);
        let without_detached = coverage == Coverage::Attached;
        let request = pb::ReadIndexRequest { key, range_end, without_detached };
        let answer = self.shared.asked(false, self.shared.wire.read_index(request)).await?;
        self.shared.advance_to(answer.revision).await?;
        Ok(answer.revision)
    }

    fn covers(&self, after: Revision) -> bool {
        self.shared.log.has_begun() && self.shared.has_here(after)
    }

    fn check_resume(&self, after: Revision) -> Result<()> {
        self.shared.attach_state.check_resume(after)
    }

    fn attach_states(&self) -> &[Arc<AttachState>] {
        std::slice::from_ref(&self.shared.attach_state)
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        let request = pb::CompactRequest { revision, wait };
        self.shared.asked(false, self.shared.wire.compact(request)).await?;
        self.shared.note_compacted(revision);
        Ok(())
    }

    fn compacted(&self) -> Revision {
        self.shared.compacted.load(Ordering::Acquire)
    }

    /// What a child takes on disk, it says itself.
    async fn size(&self) -> Result<Size> {
        Ok(Size::default())
    }

    fn head(&self) -> Head {
        let known = self.shared.attach_state.record().get();
        let newest = known.newest.max(self.shared.log.newest());
        let is_exact =
            self.shared.has_exact_newest.load(Ordering::Acquire) && self.shared.is_attached();
        Head { incarnation: known.incarnation, newest, is_exact, ..Head::default() }
    }

    /// What a child has in files, its own operator sees to.
    async fn defragment(&self) -> Result<bool> {
        Ok(false)
    }

    async fn close(&self) {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(link) = link {
            link.abort();
            // Either it was aborted or it had ended.
            let _ = link.await;
        }
        self.shared.trouble.send_replace(Some("this node is stopping".into()));
    }

    /// Asked whether it is attached or not: a loop is found by asking around it.
    async fn describe(&self) -> Vec<Described> {
        let name = self.shared.name.to_string();
        let trouble = self.shared.trouble.borrow().as_deref().unwrap_or_default().to_owned();
        let node = self.shared.wire.describe().await;
        let trouble_s = self.shared.is_away.age().as_secs_f64();
        vec![match node {
            Ok(node) => {
                Described { name, trouble, node: Some(node), trouble_s, ..Described::default() }
            }
            Err(error) => {
                let trouble = if trouble.is_empty() { error.to_string() } else { trouble };
                Described { name, trouble, trouble_s, ..Described::default() }
            }
        }]
    }

    fn meters(&self) -> Vec<Meters> {
        let trouble = self.shared.trouble.borrow().as_deref().map(str::to_owned);
        let name = self.shared.name.clone();
        vec![Meters::new(name, trouble)]
    }
}

// === impl Shared ===

impl Shared {
    fn clock(&self) -> &SharedClock {
        self.membership.clock()
    }

    /// Where this life of the node began; 0 where it has not yet.
    fn begun(&self) -> Revision {
        self.clock().begun().unwrap_or(0)
    }

    /// Whether who has got to `after` finds the rest here. Who got there in a life before this one, or
    /// further than the child's log has come, may have got there without what is here, or will be: whether
    /// it was so, the child knows.
    fn has_here(&self, after: Revision) -> bool {
        after >= self.begun() && self.log.has_all_behind(after)
    }

    /// Whether nobody asks the child any more who has got to `after`.
    fn is_recent(&self, after: Revision) -> bool {
        after >= self.begun() && after >= self.log.complete_above()
    }

    /// What is next for a tail.
    fn next(&self, position: Position) -> Next {
        match self.log.next(position) {
            Next::Batch(_) | Next::Wait if position.after < self.begun() => Next::Past,
            next => next,
        }
    }

    /// Asks the child, where it is there and for as long as it is. `changes` says that it may do
    /// something that can't be asked for twice.
    async fn asked<T>(
        &self,
        changes: bool,
        answer: impl Future<Output = wire::WireResult<T>>,
    ) -> Result<T> {
        let mut trouble = self.trouble.subscribe();
        if let Some(reason) = trouble.borrow_and_update().clone() {
            return Err(StoreError::Unavailable { store: self.name.clone(), reason });
        }
        let error = tokio::select! {
            answer = answer => match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            },
            Ok(reason) = trouble.wait_for(Option::is_some) => {
                WireError::Lost(reason.as_deref().unwrap_or("it is away").to_owned())
            }
        };
        Err(match error {
            WireError::Said(error) => error,
            error if changes => StoreError::UnknownOutcome {
                store: self.name.clone(),
                reason: error.to_string().into(),
            },
            error => StoreError::Unavailable {
                store: self.name.clone(),
                reason: error.to_string().into(),
            },
        })
    }

    fn lock_foresight(&self) -> MutexGuard<'_, Foresight> {
        // Nothing panics while it changes what is behind the lock.
        self.foresight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_ahead(&self, wanted: Revision, closed: Revision) -> Revision {
        self.lock_foresight().next(wanted, closed, self.terms.ahead)
    }

    fn is_attached(&self) -> bool {
        self.trouble.borrow().is_none()
    }

    async fn advance_to(&self, revision: Revision) -> Result<()> {
        let now = self.clock().now();
        let lead = (revision - now).max(0);
        // All its leads together: one that can't leap there may not walk there either.
        if self.driven.load(Ordering::Relaxed).saturating_add(lead) > LEAD_MAX {
            let reason = format!("it says to be at revision {revision}, and this node is at {now}");
            return Err(StoreError::Unavailable {
                store: self.name.clone(),
                reason: reason.into(),
            });
        }
        self.driven.fetch_add(lead, Ordering::Relaxed);
        let taken = self.clock().advance_to(revision).await;
        taken.map_err(|full| StoreError::Unavailable {
            store: self.name.clone(),
            reason: full.to_string().into(),
        })
    }

    async fn follow_from(
        &self,
        after: Revision,
        is_live: bool,
    ) -> wire::WireResult<Streaming<pb::FollowResponse>> {
        let ranges = self.terms.ranges.iter().map(|range| {
            let (key, range_end) = words::range_to(range);
            pb::Range { key, range_end }
        });
        let request = pb::FollowRequest { after, ranges: ranges.collect() };
        self.wire.follow(request, is_live).await
    }

    fn note_compacted(&self, revision: Revision) {
        self.compacted.fetch_max(revision, Ordering::AcqRel);
    }
}

/// A tail of the child's log: what it did of late from here, what was before over a connection.
struct Cursor {
    shared: Arc<Shared>,
    position: Position,
    past: Option<Streaming<pb::FollowResponse>>,
}

// === impl Cursor ===

impl Cursor {
    async fn next(&mut self) -> Result<LogBatch> {
        let shared = self.shared.clone();
        loop {
            let Some(past) = &mut self.past else {
                let changed = shared.log.changed();
                tokio::pin!(changed);
                changed.as_mut().enable();
                match shared.next(self.position) {
                    Next::Batch(batch) => {
                        self.position.after = self.position.after.max(batch.closed);
                        self.position.late += u64::from(!batch.backfill.commits.is_empty());
                        return Ok(batch);
                    }
                    Next::Wait => changed.await,
                    Next::Past => self.open_past().await?,
                    Next::Missed => {
                        return Err(StoreError::Compacted { compacted: shared.log.closed() });
                    }
                }
                continue;
            };
            let next = match shared.wire.next(past).await {
                Ok(next) if link::is_notice(&next) => continue,
                Ok(next) => shared.take_in(next).await,
                Err(error) => Err(error),
            };
            match next {
                Ok(batch) => {
                    let closed = self.position.after.max(batch.closed);
                    if shared.is_recent(closed) {
                        // The log as it happens may be behind, and bring in order what this batch was
                        // said without. So it is handed on once that log has come as far, and the child
                        // still stands by it.
                        self.ask_to_close(closed);
                        let mut trouble = shared.trouble.subscribe();
                        tokio::select! {
                            () = shared.log.reach(closed) => {}
                            // While the child is away that log stands still, as it has to.
                            _ = trouble.wait_for(Option::is_some) => {
                                self.past = None;
                                continue;
                            }
                        }
                        match shared.follow_from(closed, false).await {
                            Ok(_) => {}
                            Err(WireError::Said(error @ StoreError::Compacted { .. })) => {
                                return Err(error);
                            }
                            Err(_) => {
                                self.past = None;
                                sleep(RETRY_AFTER).await;
                                continue;
                            }
                        }
                        self.past = None;
                    }
                    self.position.after = closed;
                    return Ok(batch);
                }
                Err(WireError::Said(error @ StoreError::Compacted { .. })) => return Err(error),
                Err(_) => self.past = None,
            }
        }
    }

    /// Has the child say that it has closed a revision, also where nothing happens there.
    fn ask_to_close(&self, revision: Revision) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let request = pb::AdvanceClosedRequest { revision, ahead: 0 };
            // Where it can't, the log waits for what it can't close either.
            let _ = shared.asked(false, shared.wire.advance_closed(request)).await;
        });
    }

    /// Asks for the log behind the position, as soon as the child is there. Ends without, where the child is away and
    /// what it had said last before has come as far as this: those who go on without it wait for that.
    async fn open_past(&mut self) -> Result<()> {
        let mut changes = self.shared.attach_state.changes();
        loop {
            changes.mark_unchanged();
            if !self.shared.attach_state.is_reachable() {
                if !matches!(self.shared.next(self.position), Next::Past) {
                    return Ok(());
                }
                // It can't fail: the sender is in the state.
                let _ = changes.changed().await;
                continue;
            }
            // What comes late from here on is not in what is asked for now.
            let position = self.shared.log.position(self.position.after);
            match self.shared.follow_from(self.position.after, false).await {
                Ok(past) => {
                    (self.position, self.past) = (position, Some(past));
                    self.ask_to_close(self.shared.clock().shown());
                    return Ok(());
                }
                Err(WireError::Said(error @ StoreError::Compacted { .. })) => return Err(error),
                Err(_) => sleep(RETRY_AFTER).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_closes_far_ahead_while_it_writes_nothing_and_little_where_it_does() {
        let mut foresight = Foresight { ahead: AHEAD_FIRST, promised: 0 };
        let (mut wanted, mut last) = (10, 0);
        for _ in 0..12 {
            last = foresight.next(wanted, 0, AHEAD_MAX);
            foresight.note(wanted, wanted + last);
            // The parent uses up the promise.
            wanted += last + 1;
        }
        assert_eq!(last, AHEAD_MAX);
        assert_eq!(foresight.next(wanted, 0, 0), 0, "its terms say how far at most");
        for _ in 0..12 {
            foresight.note(wanted, wanted + last);
            // The child has written, above its promise.
            let closed = wanted + last + 1;
            wanted = closed;
            last = foresight.next(wanted, closed, AHEAD_MAX);
        }
        assert_eq!(last, AHEAD_FIRST);
    }
}

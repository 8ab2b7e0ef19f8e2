//! The connection to a child: made, kept, lost, and made again.
//!
//! ```text
//!   describe ──> loop? version? lanes? ──> join ──> follow ──> attached, until the log breaks off
//!       ^                                                              │
//!       └───────────────────────── after a pause ──────────────────────┘
//! ```
//!
//! While it is attached the child's log comes in, whatever it does; that it breaks off is how its absence
//! is noticed, and pings see to it that it does.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;

use super::{
    PROTOCOL, Shared,
    wire::{WireError, WireResult},
};
use crate::{
    clock::LaneBlock,
    model::{KeyRange, Revision, StoreError},
    proto::tree as pb,
    store::{Backfill, LogBatch},
    tree::{
        call::printed,
        lanes::{self, HeldLanes, LaneAssignment, LanesError},
        membership::AttachedChild,
    },
    wire::{self, Member},
};

/// How long an attempt may take.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(3);

/// How long a child may take to say that it has what it had.
const CHECK_TIME_MAX: Duration = Duration::from_millis(500);

/// How soon a child that wants more lanes than are left is thought of again.
const LANES_AGAIN_AFTER: Duration = Duration::from_secs(1);

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The reasons that are remembered, so that each is logged once.
const REASONS_MAX: usize = 16;

const OTHER_LANES: &str = "it is to have other lanes, since this node got others";

/// A child as it was attached.
struct Attached {
    child: Member,
    /// The lanes that it was given.
    blocks: Vec<LaneBlock>,
    log: Streaming<pb::FollowResponse>,
    _attached: AttachedChild,
}

/// Why a child is not attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Wire(WireError),
    #[error("it is no node any more, but most likely an etcd; start this node again for that")]
    Foreign,
    #[error("its answer names no node")]
    Nameless,
    #[error(
        "it speaks version {theirs} of the protocol between nodes ({version}), and this node version \
         {PROTOCOL} ({}); run the same version on both",
        env!("CARGO_PKG_VERSION")
    )]
    Version { theirs: u32, version: String },
    #[error("the routes form a loop: {0}; take one of them out")]
    Loop(String),
    #[error(transparent)]
    Lanes(#[from] LanesError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Foreign => Self::Foreign,
            error => Self::Wire(error),
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Keeps the child attached, for ever.
    pub(super) async fn keep_attached(self: Arc<Self>) {
        let mut pause = PAUSE_MIN;
        let mut said = HashSet::new();
        let mut has_missed = false;
        loop {
            let reason = match timeout(ATTEMPT_TIME_MAX, self.attach(has_missed)).await {
                Ok(Ok(Attached { child, blocks, log, _attached })) => {
                    tracing::info!(store = %self.name, %child, "the child is attached");
                    (pause, said) = (PAUSE_MIN, HashSet::new());
                    self.trouble.send_replace(None);
                    self.is_away.end();
                    self.attach_state.set_reachable(true);
                    let broken = tokio::select! {
                        broken = self.follow(&child, log) => broken,
                        () = self.has_other_lanes(&child, &blocks) => {
                            WireError::Lost(OTHER_LANES.to_owned())
                        }
                    };
                    has_missed = matches!(broken, WireError::Said(StoreError::Compacted { .. }));
                    broken.to_string()
                }
                Ok(Err(refusal)) => refusal.to_string(),
                Err(_) => "it does not answer".to_owned(),
            };
            self.trouble.send_replace(Some(reason.as_str().into()));
            self.is_away.begin();
            self.attach_state.set_reachable(false);
            if said.len() == REASONS_MAX {
                said.clear();
            }
            if said.insert(reason.clone()) {
                tracing::warn!(store = %self.name, reason, "the child is away");
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// `has_missed` says that the child no longer tells what this node needs of its log.
    async fn attach(&self, has_missed: bool) -> Result<Attached, Refusal> {
        let node = self.wire.describe().await?;
        let child = wire::member_of(node.member.as_ref().ok_or(Refusal::Nameless)?);
        if node.protocol != PROTOCOL {
            return Err(Refusal::Version { theirs: node.protocol, version: node.version });
        }
        if !node.r#loop.is_empty() {
            return Err(Refusal::Loop(node.r#loop));
        }
        let me = self.membership.me();
        if let Some(path) = path_to(me.id, &node) {
            return Err(Refusal::Loop(printed([me].into_iter().chain(&path))));
        }
        let attached = self.membership.attach(&self.name, &child, node.process)?;
        let held = wire::blocks_of(&node.lanes).map(|blocks| HeldLanes {
            blocks,
            giver: node.giver.as_ref().map(wire::member_of),
            ..HeldLanes::default()
        });
        let assigned = self.assign_lanes(&child, held.as_ref(), node.lanes_needed).await?;
        self.wire.set_credential(assigned.credential.clone());
        let blocks = assigned.blocks;
        // Each time: only the child knows whether it still takes this node for its parent.
        let lanes = blocks.iter().copied().map(wire::lanes).collect();
        let join = pb::JoinRequest { lanes, credential: assigned.credential };
        let joined = self.wire.join(join).await?;
        self.advance_to(joined.revision).await?;
        self.advance_to(node.revision).await?;
        if self.log.closed() == 0 {
            // What this node has not begun with it does not claim to have seen.
            self.log.begin(self.clock().begun().unwrap_or(node.closed));
        }
        self.note_compacted(node.compacted);
        let closed = self.log.closed();
        let is_another = self.is_another(&child, node.newest).await?;
        if !has_missed && !is_another {
            match self.follow_from(closed, true).await {
                Err(WireError::Said(StoreError::Compacted { .. })) => {}
                log => return Ok(Attached { child, blocks, log: log?, _attached: attached }),
            }
        }
        // Too long away, or others were told of what this node has missed: all who follow start
        // afresh. Who has got less far asks the child himself, unless that can't know; nobody has got
        // further than was shown.
        let told = if is_another { 1 } else { closed.min(self.clock().shown()) };
        let mut from = closed.max(node.closed).max(node.compacted);
        loop {
            self.attach_state.record_backfill(told - 1, from).await?;
            self.log.begin_anew(from);
            if is_another {
                self.remember_child(&child, node.newest).await?;
            }
            match self.follow_from(from, true).await {
                // The child itself lacks something up to there.
                Err(WireError::Said(StoreError::Compacted { compacted })) if compacted > from => {
                    from = compacted;
                }
                log => return Ok(Attached { child, blocks, log: log?, _attached: attached }),
            }
        }
    }

    async fn assign_lanes(
        &self,
        child: &Member,
        held: Option<&HeldLanes>,
        needed: u32,
    ) -> Result<LaneAssignment, LanesError> {
        let needed = u16::try_from(needed).unwrap_or(u16::MAX);
        self.membership.assign(child, held, self.terms.lanes, needed).await
    }

    /// Whether the child is not the one that was attached here before, or is as it was before that.
    async fn is_another(&self, child: &Member, newest: Revision) -> Result<bool, StoreError> {
        let slot = self.attach_state.record().get();
        let known = slot.incarnation;
        self.has_exact_newest.store(newest > 0, Ordering::Release);
        if known == 0 {
            self.remember_child(child, newest).await?;
            return Ok(false);
        }
        if known != child.id {
            tracing::warn!(store = %self.name, %child, "another child than before: all watches start afresh");
            return Ok(true);
        }
        if newest > 0 && newest < slot.newest {
            tracing::warn!(
                store = %self.name, %child, newest, before = slot.newest,
                "the child has gone back: what it did between is lost, and all watches start afresh"
            );
            return Ok(true);
        }
        let checks = self.log.last_puts().into_iter().map(|(key, revision)| async move {
            let range = KeyRange::single(key);
            let (key, range_end) = wire::range_to(&range);
            let (limit, lease, keys_only) = (1, 0, true);
            let read = pb::ReadRequest {
                key,
                range_end,
                revision,
                limit,
                keys_only,
                lease,
                ..Default::default()
            };
            // What it does not say in time, nobody knows better.
            let found = timeout(CHECK_TIME_MAX, self.wire.read(read)).await.ok()?.ok()?;
            let is_there = found.kvs.iter().any(|kv| kv.mod_revision == revision);
            (!is_there).then_some(revision)
        });
        let lacking = join_all(checks).await.into_iter().flatten().next();
        if let Some(revision) = lacking {
            tracing::warn!(
                store = %self.name, %child, revision,
                "the child has gone back behind what it had done: all watches start afresh"
            );
        }
        self.log.note_newest(newest);
        Ok(lacking.is_some())
    }

    /// `newest` is its greatest revision; 0 where that is not known.
    async fn remember_child(&self, child: &Member, newest: Revision) -> Result<(), StoreError> {
        self.log.forget(newest);
        let id = child.id;
        let update = self.attach_state.record().update(|slot| {
            slot.incarnation = id;
            slot.newest = newest;
        });
        update.await
    }

    /// Takes in the child's log until it breaks off. Returns why.
    async fn follow(&self, child: &Member, mut log: Streaming<pb::FollowResponse>) -> WireError {
        loop {
            let taken = match self.wire.next(&mut log).await {
                Ok(next) => self.take(child, next).await,
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }

    /// Gives a child the lanes that it wants, as many again as it has, where the route does not say how many
    /// it gets. Where this node has too few left, it wants more itself.
    async fn give_lanes(&self, child: &Member, wanted: u32) {
        let wanted = u16::try_from(wanted).unwrap_or(u16::MAX);
        let lanes = self.membership.lanes();
        let has = lanes.of_child(child).map_or(0, |it| lanes::count(&it.blocks));
        if wanted == 0 || self.terms.lanes.is_some_and(|most| has >= most) {
            return;
        }
        let is_new = {
            // Nothing panics while it holds the lock.
            let mut asked = self.lanes_asked.lock().unwrap_or_else(PoisonError::into_inner);
            let before = asked.replace((wanted, Instant::now()));
            let same = before.filter(|(before, _)| *before == wanted);
            if let Some((_, at)) = same.filter(|(_, at)| at.elapsed() < LANES_AGAIN_AFTER) {
                *asked = Some((wanted, at));
                return;
            }
            same.is_none()
        };
        let left = lanes.left();
        let more = if left >= wanted { has.max(wanted).min(left) } else { wanted };
        match self.membership.grow(child, more).await {
            Ok(()) => tracing::info!(store = %self.name, %child, more, "the child gets more lanes"),
            Err(error) if is_new => {
                tracing::warn!(store = %self.name, %error, "the child gets no more lanes")
            }
            Err(_) => {}
        }
    }

    /// Waits until a child is to have other lanes than these, since this node got others.
    async fn has_other_lanes(&self, child: &Member, blocks: &[LaneBlock]) {
        let mut lanes = self.membership.watch_lanes();
        // It can't fail: the membership holds the sender.
        let _ = lanes
            .wait_for(|lanes| lanes.of_child(child).is_none_or(|it| it.blocks != blocks))
            .await;
    }

    async fn take(&self, child: &Member, next: pb::FollowResponse) -> WireResult<()> {
        self.give_lanes(child, next.lanes_wanted).await;
        if is_notice(&next) {
            return Ok(());
        }
        self.note_compacted(next.compacted);
        let batch = self.take_in(next).await?;
        self.log.take(batch);
        Ok(())
    }

    /// A piece of the child's log, with what comes late noted.
    pub(super) async fn take_in(&self, next: pb::FollowResponse) -> WireResult<LogBatch> {
        let mut batch = self.batch(next).await?;
        if !batch.backfill.commits.is_empty() {
            // Durable before anyone hears of them: a client that is away now may come back much later.
            let closed = self.log.closed().max(batch.closed);
            let noted = self.attach_state.record_backfill(batch.backfill.after, closed).await;
            batch.backfill.floor = noted.map_err(WireError::Said)?;
        }
        Ok(batch)
    }

    /// A piece of the child's log, above which this node allocates from now on, and above what is compacted
    /// there: who may not go on from below finds something to go on from.
    async fn batch(&self, next: pb::FollowResponse) -> WireResult<LogBatch> {
        let commits = |commits: Vec<pb::Commit>| -> Vec<Arc<_>> {
            commits.into_iter().map(|commit| Arc::new(wire::commit_of(commit))).collect()
        };
        let backfill =
            Backfill { commits: commits(next.late), after: next.late_after, floor: Revision::MAX };
        let batch = LogBatch { commits: commits(next.commits), closed: next.closed, backfill };
        let all = batch.commits.iter().chain(&batch.backfill.commits);
        let revisions = all.map(|commit| commit.revision).chain([next.compacted]);
        self.advance_to(revisions.max().unwrap_or(0)).await.map_err(WireError::Said)?;
        Ok(batch)
    }
}

/// Whether this says nothing of the log.
pub(super) fn is_notice(next: &pb::FollowResponse) -> bool {
    next.closed == 0 && next.commits.is_empty() && next.late.is_empty()
}

/// The nodes from `node` down to the one with this id.
fn path_to(id: u64, node: &pb::Node) -> Option<Vec<Member>> {
    let member = wire::member_of(node.member.as_ref()?);
    if member.id == id {
        return Some(vec![member]);
    }
    let below = node.routes.iter().filter_map(|route| route.node.as_ref());
    let mut path = below.into_iter().find_map(|below| path_to(id, below))?;
    path.insert(0, member);
    Some(path)
}

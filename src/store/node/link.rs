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
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::{sleep, timeout};
use tonic::Streaming;

use super::{
    PROTOCOL, Shared,
    call::printed,
    wire::{WireError, WireResult},
};
use crate::{
    clock::LaneBlock,
    model::{KeyRange, Revision, StoreError},
    proto::tree as pb,
    store::{
        Batch, Late,
        membership::{Attachment, Held, LanesError},
    },
    wire::{self, Member},
};

/// How long an attempt may take.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(3);

/// How long a child may take to say that it has what it had.
const CHECK_TIME_MAX: Duration = Duration::from_millis(500);

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The reasons that are remembered, so that each is logged once.
const REASONS_MAX: usize = 16;

const OTHER_LANES: &str = "it is to have other lanes, since this node got others";

/// A child as it was attached.
struct Attached {
    child: Member,
    /// The lanes that it was given.
    block: LaneBlock,
    log: Streaming<pb::FollowResponse>,
    _attachment: Attachment,
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
    #[error(
        "{child} has another parent since: {giver}; take its route out of one, and start this node again"
    )]
    OtherParent { child: Member, giver: Member },
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
        let (mut has_missed, mut was_attached) = (false, false);
        loop {
            let attached = self.attach(has_missed, was_attached);
            let reason = match timeout(ATTEMPT_TIME_MAX, attached).await {
                Ok(Ok(Attached { child, block, log, _attachment })) => {
                    tracing::info!(store = %self.name, %child, "the child is attached");
                    (pause, said, was_attached) = (PAUSE_MIN, HashSet::new(), true);
                    self.trouble.send_replace(None);
                    self.presence.set_there(true);
                    let broken = tokio::select! {
                        broken = self.follow(log) => broken,
                        () = self.has_other_lanes(&child, block) => {
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
            self.presence.set_there(false);
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

    /// `has_missed` says that the child no longer tells what this node needs of its log; `was_attached`, that
    /// this process took it for its child before, and does not take it from another.
    async fn attach(&self, has_missed: bool, was_attached: bool) -> Result<Attached, Refusal> {
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
        let attachment = self.membership.attach(&self.name, &child, node.process)?;
        let held = node
            .lanes
            .and_then(wire::lanes_of)
            .map(|block| Held { block, giver: node.giver.as_ref().map(wire::member_of) });
        let giver = held.as_ref().and_then(|held| held.giver.clone());
        if let Some(giver) = giver.filter(|giver| was_attached && giver.id != me.id) {
            return Err(Refusal::OtherParent { child, giver });
        }
        let block = self.membership.hand_out(&child, held.as_ref(), self.terms.lanes).await?;
        if !held.is_some_and(|held| held.block == block && held.giver.as_ref() == Some(me)) {
            let join =
                pb::JoinRequest { giver: Some(wire::member(me)), lanes: Some(wire::lanes(block)) };
            let joined = self.wire.join(join).await?;
            self.take_up(joined.revision).await?;
        }
        self.take_up(node.revision).await?;
        if self.record.closed() == 0 {
            // What this node has not begun with it does not claim to have seen.
            self.record.begin(self.clock().begun().unwrap_or(node.closed));
        }
        self.note_compacted(node.compacted);
        let closed = self.record.closed();
        let is_another = self.is_another(&child).await?;
        if !has_missed && !is_another {
            match self.follow_from(closed, true).await {
                Err(WireError::Said(StoreError::Compacted { .. })) => {}
                log => return Ok(Attached { child, block, log: log?, _attachment: attachment }),
            }
        }
        // Too long away, or others were told of what this node has missed: all who follow start
        // afresh. Who has got less far asks the child himself, unless that can't know; nobody has got
        // further than was shown.
        let told = if is_another { 1 } else { closed.min(self.clock().shown()) };
        let mut from = closed.max(node.closed).max(node.compacted);
        loop {
            self.presence.note_late(told - 1, from).await?;
            self.record.begin_anew(from);
            if is_another {
                self.remember_child(&child).await?;
            }
            match self.follow_from(from, true).await {
                // The child itself lacks something up to there.
                Err(WireError::Said(StoreError::Compacted { compacted })) if compacted > from => {
                    from = compacted;
                }
                log => return Ok(Attached { child, block, log: log?, _attachment: attachment }),
            }
        }
    }

    /// Whether the child is not the one that was attached here before, or is as it was before that.
    async fn is_another(&self, child: &Member) -> Result<bool, StoreError> {
        let known = match self.child.load(Ordering::Acquire) {
            0 => self.recall_child().await?,
            known => Some(known),
        };
        let Some(known) = known else {
            self.remember_child(child).await?;
            return Ok(false);
        };
        self.child.store(known, Ordering::Release);
        if known != child.id {
            tracing::warn!(store = %self.name, %child, "another child than before: all watches start afresh");
            return Ok(true);
        }
        let checks = self.record.last_puts().into_iter().map(|(key, revision)| async move {
            let range = KeyRange::single(key);
            let (key, range_end) = wire::range_to(&range);
            let (limit, lease, keys_only) = (1, 0, true);
            let read = pb::ReadRequest { key, range_end, revision, limit, keys_only, lease };
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
        Ok(lacking.is_some())
    }

    async fn recall_child(&self) -> Result<Option<u64>, StoreError> {
        let name = child_record(&self.name);
        let found = self.membership.store().recall(&name).await?;
        let found = found.into_iter().find(|(found, _)| *found == name);
        Ok(found.and_then(|(_, id)| Some(u64::from_be_bytes(id[..].try_into().ok()?))))
    }

    async fn remember_child(&self, child: &Member) -> Result<(), StoreError> {
        self.record.forget_puts();
        let (name, id) = (child_record(&self.name), child.id.to_be_bytes());
        let id_bytes = Bytes::copy_from_slice(&id);
        self.membership.store().remember(&name, Some(id_bytes)).await?;
        self.child.store(child.id, Ordering::Release);
        Ok(())
    }

    /// Takes in the child's log until it breaks off. Returns why.
    async fn follow(&self, mut log: Streaming<pb::FollowResponse>) -> WireError {
        loop {
            let taken = match self.wire.next(&mut log).await {
                Ok(next) => self.take(next).await,
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }

    /// Waits until a child is to have other lanes than these, since this node got others.
    async fn has_other_lanes(&self, child: &Member, block: LaneBlock) {
        let mut lanes = self.membership.watch_lanes();
        // It can't fail: the membership holds the sender.
        let _ = lanes.wait_for(|lanes| lanes.of_child(child) != Some(block)).await;
    }

    async fn take(&self, next: pb::FollowResponse) -> WireResult<()> {
        self.note_compacted(next.compacted);
        let batch = self.take_in(next).await?;
        self.record.take(batch);
        Ok(())
    }

    /// A piece of the child's log, with what comes late noted.
    pub(super) async fn take_in(&self, next: pb::FollowResponse) -> WireResult<Batch> {
        let mut batch = self.batch(next).await?;
        if !batch.late.commits.is_empty() {
            // Durable before anyone hears of them: a client that is away now may come back much later.
            let closed = self.record.closed().max(batch.closed);
            let noted = self.presence.note_late(batch.late.after, closed).await;
            batch.late.floor = noted.map_err(WireError::Said)?;
        }
        Ok(batch)
    }

    /// A piece of the child's log, above which this node allocates from now on, and above what is compacted
    /// there: who may not go on from below finds something to go on from.
    async fn batch(&self, next: pb::FollowResponse) -> WireResult<Batch> {
        let commits = |commits: Vec<pb::Commit>| -> Vec<Arc<_>> {
            commits.into_iter().map(|commit| Arc::new(wire::commit_of(commit))).collect()
        };
        let late =
            Late { commits: commits(next.late), after: next.late_after, floor: Revision::MAX };
        let batch = Batch { commits: commits(next.commits), closed: next.closed, late };
        let all = batch.commits.iter().chain(&batch.late.commits);
        let revisions = all.map(|commit| commit.revision).chain([next.compacted]);
        self.take_up(revisions.max().unwrap_or(0)).await.map_err(WireError::Said)?;
        Ok(batch)
    }
}

/// The record in which it is kept who was attached at a route.
fn child_record(route: &str) -> String {
    format!("child/{route}")
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

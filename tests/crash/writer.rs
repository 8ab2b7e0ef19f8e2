//! A client under load: creates, guarded updates and deletions, one after the other, until its node
//! dies in the middle of one.

use std::{
    collections::HashMap,
    error::Error as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{
    self as pb, compare::CompareTarget, compare::TargetUnion, kv_client::KvClient,
    request_op::Request as Op,
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    ledger::{Change, Ledger},
    support::rng::Rng,
};

/// Keys that a client has at most, so that a full comparison after each crash stays cheap.
const LIVE_MAX: usize = 24;
/// What a transaction writes whose guard is false; it must never be seen.
const REFUSED: &str = "refused";

/// What all clients of a node know together.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The greatest revision that any answer had.
    pub(crate) floor: AtomicI64,
    /// Which key's transaction has which revision.
    revisions: Mutex<HashMap<i64, String>>,
    /// Whether calls may fail: the node was killed, or told to stop.
    pub(crate) is_doomed: AtomicBool,
    /// Whether a call may fail in no other way than by UNAVAILABLE.
    pub(crate) is_graceful: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) prefix: String,
    pub(crate) ledger: Ledger,
    /// The greatest revision that was known when the transaction without an answer was sent.
    pub(crate) unknown_floor: i64,
    shared: Arc<Shared>,
    rng: Rng,
    /// Makes each key and each value unlike all others.
    counter: u64,
}

/// Whether the client's library gave a call back that met the closing of its connection: it had not
/// gone out, or its stream lies behind the last that the node took. etcd's own client tries again.
fn is_never_taken(error: &Status) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            // h2's error is no dependency of ours, so its text has to do.
            let is_goodbye = format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)");
            return error.is_canceled() || is_goodbye;
        }
        cause = error.source();
    }
    false
}

// === impl Shared ===

impl Shared {
    /// Books a revision, which must be nobody else's.
    pub(crate) fn claim(&self, revision: i64, key: &str) -> Result<()> {
        let mut revisions = self.revisions.lock().expect("nobody panics with it");
        let before = revisions.insert(revision, key.to_owned());
        ensure!(
            before.is_none(),
            "revision {revision} was given twice, to {before:?} and to {key}"
        );
        Ok(())
    }
}

// === impl Writer ===

impl Writer {
    pub(crate) fn new(prefix: String, shared: Arc<Shared>, seed: u64) -> Self {
        let (ledger, rng) = (Ledger::default(), Rng::new(seed));
        Self { prefix, ledger, unknown_floor: 0, shared, rng, counter: 0 }
    }

    /// Writes until a call fails, which must be the node's end.
    pub(crate) async fn run(mut self, channel: Channel) -> Result<Self> {
        let mut client = KvClient::new(channel);
        loop {
            let changes = self.next_changes();
            let is_stale = self.rng.below(20) == 0;
            if !self.send(&mut client, changes, is_stale).await? {
                return Ok(self);
            }
        }
    }

    /// The last write of a test, by which those who watch know that they have seen everything.
    pub(crate) async fn finish(&mut self, channel: Channel) -> Result<()> {
        let change = Change { key: format!("{}last", self.prefix), value: Some("end".to_owned()) };
        let is_sent = self.send(&mut KvClient::new(channel), vec![change], false).await?;
        ensure!(is_sent, "the last write of {} failed", self.prefix);
        Ok(())
    }

    fn next_changes(&mut self) -> Vec<Change> {
        self.counter += 1;
        let value = Some(format!("{}{}", self.prefix, self.counter));
        let create = Change { key: format!("{}k{}", self.prefix, self.counter), value };
        let choice = self.rng.below(10);
        if self.ledger.live.len() < LIVE_MAX / 2 || choice < 3 && self.ledger.live.len() < LIVE_MAX
        {
            return vec![create];
        }
        let index = self.rng.below(self.ledger.live.len());
        let key = self.ledger.live.keys().nth(index).expect("below the length").clone();
        let update = Change { key: key.clone(), value: create.value.clone() };
        match choice {
            // Two keys in one transaction: after a crash both are there, or neither.
            3 => vec![update, create],
            // A deletion leaves no row that could tell its revision, so a put is with it.
            4..=5 => vec![Change { key, value: None }, create],
            _ => vec![update],
        }
    }

    /// Sends a guarded transaction and books its answer. False where there was none.
    async fn send(
        &mut self,
        client: &mut KvClient<Channel>,
        changes: Vec<Change>,
        is_stale: bool,
    ) -> Result<bool> {
        let floor = self.shared.floor.load(Ordering::SeqCst);
        let answer = client.txn(self.txn(&changes, is_stale)).await;
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(error) => {
                let is_doomed = self.shared.is_doomed.load(Ordering::SeqCst);
                ensure!(is_doomed, "a call failed although the node was not killed: {error}");
                let is_graceful = self.shared.is_graceful.load(Ordering::SeqCst);
                let is_said = error.code() == Code::Unavailable || is_never_taken(&error);
                ensure!(!is_graceful || is_said, "not UNAVAILABLE: {error:?}");
                if !is_stale {
                    (self.ledger.unknown, self.unknown_floor) = (changes, floor);
                }
                return Ok(false);
            }
        };
        let revision = answer.header.context("an answer without a header")?.revision;
        ensure!(revision >= floor, "the revision went back from {floor} to {revision}");
        ensure!(answer.succeeded != is_stale, "a guard was judged wrongly: {changes:?}");
        if answer.succeeded {
            ensure!(revision > floor, "a write took revision {revision}, which was seen before");
            self.shared.claim(revision, &changes[0].key)?;
            self.ledger.book(changes, revision);
            self.ledger.acknowledged += 1;
        }
        self.shared.floor.fetch_max(revision, Ordering::SeqCst);
        Ok(true)
    }

    /// Puts and deletes, if each key is as the ledger has it; a stale one asks for what is not.
    fn txn(&self, changes: &[Change], is_stale: bool) -> pb::TxnRequest {
        let guards = changes.iter().map(|change| {
            let modified = self.ledger.live.get(&change.key).map_or(0, |row| row.modified);
            pb::Compare {
                target: CompareTarget::Mod as i32,
                key: change.key.clone().into(),
                target_union: Some(TargetUnion::ModRevision(modified + i64::from(is_stale))),
                ..Default::default()
            }
        });
        let op = |Change { key, value }: &Change| match value {
            Some(value) => {
                let value = if is_stale { REFUSED } else { value };
                let (key, value) = (key.clone().into(), value.to_owned().into());
                Op::RequestPut(pb::PutRequest { key, value, ..Default::default() })
            }
            None => Op::RequestDeleteRange(pb::DeleteRangeRequest {
                key: key.clone().into(),
                ..Default::default()
            }),
        };
        let ops = changes.iter().map(|change| pb::RequestOp { request: Some(op(change)) });
        pb::TxnRequest { compare: guards.collect(), success: ops.collect(), failure: Vec::new() }
    }
}

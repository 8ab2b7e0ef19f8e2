//! Writes its own keys, each guarded by what it was before.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{
    self as pb, compare::CompareTarget, compare::TargetUnion, request_op::Request as Op,
    response_op::Response as Answered,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{Connection, expected, paced, patience};
use crate::{
    call::client,
    history::{Change, History, Keys, Outcome, Read, Span, Write},
    support::{changes::Row, rng::Rng},
};

const KEYS: usize = 4;
const PAUSE_MAX: Duration = Duration::from_millis(200);
const RETRY_AFTER: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Writer {
    connection: Connection,
    /// All its keys are below this path, and nobody else writes there.
    path: String,
    /// Its keys as it last knew them: when they were changed, where they are there.
    live: BTreeMap<String, i64>,
    rng: Rng,
    count: u64,
    history: History,
}

// === impl Writer ===

impl Writer {
    pub(crate) fn new(connection: Connection, path: String, rng: Rng) -> Self {
        let (live, history) = (BTreeMap::new(), History::default());
        Self { connection, path, live, rng, count: 0, history }
    }

    /// Writes until it is done, and then once more, which must be applied within `bound`.
    pub(crate) async fn run(mut self, done: CancellationToken, bound: Duration) -> Result<History> {
        while paced(&mut self.rng, PAUSE_MAX, &done).await {
            if self.write().await? == Outcome::Unknown && self.rng.chance(50) {
                self.look().await?;
            }
        }
        let until = Instant::now() + bound;
        loop {
            if let Outcome::Applied(_) = self.write().await? {
                return Ok(self.history);
            }
            let (node, path) = (self.connection.node, &self.path);
            ensure!(Instant::now() < until, "node {node} takes no writes below {path} any more");
            sleep(RETRY_AFTER).await;
        }
    }

    async fn write(&mut self) -> Result<Outcome> {
        let changes = self.next_changes();
        let asked = self.connection.now();
        let mut kv = client(&self.connection.channel);
        let answer = timeout(patience(&mut self.rng), Box::pin(kv.txn(txn(&changes)))).await;
        let span = Span { asked, answered: self.connection.now() };
        let outcome = match answer {
            Ok(Ok(answer)) => self.learn(&changes, &answer.into_inner(), span)?,
            Ok(Err(status)) => outcome_of(&status)?,
            Err(_) => Outcome::Unknown,
        };
        let node = self.connection.node;
        self.history.writes.push(Write { node, span, changes, outcome });
        Ok(outcome)
    }

    /// One to three keys, of which the first gets a value that nothing else has.
    fn next_changes(&mut self) -> Vec<Change> {
        self.count += 1;
        let first = self.rng.below(KEYS);
        let count = 1 + self.rng.below(3);
        let change = |at: usize| {
            let key = format!("{}k{}", self.path, (first + at) % KEYS);
            let before = self.live.get(&key).copied().unwrap_or(0);
            let is_deleted = at > 0 && before > 0 && self.rng.chance(50);
            let value = format!("{}{}.{at}", self.path, self.count);
            Change { key, before, value: (!is_deleted).then_some(value) }
        };
        (0..count).map(change).collect()
    }

    /// Books what an answer says of the keys.
    fn learn(
        &mut self,
        changes: &[Change],
        answer: &pb::TxnResponse,
        span: Span,
    ) -> Result<Outcome> {
        let revision = answer.header.context("an answer without a header")?.revision;
        if answer.succeeded {
            for Change { key, value, .. } in changes {
                self.know(key, value.is_some().then_some(revision));
            }
            return Ok(Outcome::Applied(revision));
        }
        for (change, response) in changes.iter().zip(&answer.responses) {
            let Some(Answered::ResponseRange(found)) = &response.response else { continue };
            let row = found.kvs.first().map(Row::from);
            self.know(&change.key, row.as_ref().map(|row| row.modified));
            let keys = Keys::one(&change.key);
            let rows = row.map(|row| (change.key.clone(), row)).into_iter().collect();
            let node = self.connection.node;
            self.history.reads.push(Read { node, span, keys, revision, rows });
        }
        Ok(Outcome::Refused(revision))
    }

    /// Reads its keys, to know what became of a write without an answer.
    async fn look(&mut self) -> Result<()> {
        let keys = Keys::below(&self.path);
        let patience = patience(&mut self.rng);
        let Some(read) = self.connection.read(&keys, patience).await? else { return Ok(()) };
        self.live = read.rows.iter().map(|(key, row)| (key.clone(), row.modified)).collect();
        self.history.reads.push(read);
        Ok(())
    }

    fn know(&mut self, key: &str, modified: Option<i64>) {
        match modified {
            Some(modified) => self.live.insert(key.to_owned(), modified),
            None => self.live.remove(key),
        };
    }
}

/// Only a node that says so itself is sure not to have applied a write.
fn outcome_of(status: &Status) -> Result<Outcome> {
    expected(status)?;
    let is_refusal = status.code() == Code::Unavailable
        && status.message().starts_with("pleach: store `")
        && status.message().contains("` is unavailable: ");
    Ok(if is_refusal { Outcome::Failed } else { Outcome::Unknown })
}

/// Applies the changes if each key is as it was; says how they are if not.
fn txn(changes: &[Change]) -> pb::TxnRequest {
    let guard = |change: &Change| pb::Compare {
        target: CompareTarget::Mod as i32,
        key: change.key.clone().into(),
        target_union: Some(TargetUnion::ModRevision(change.before)),
        ..Default::default()
    };
    let apply = |Change { key, value, .. }: &Change| match value {
        Some(value) => Op::RequestPut(pb::PutRequest {
            key: key.clone().into(),
            value: value.clone().into(),
            ..Default::default()
        }),
        None => Op::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.clone().into(),
            ..Default::default()
        }),
    };
    let get = |change: &Change| {
        Op::RequestRange(pb::RangeRequest { key: change.key.clone().into(), ..Default::default() })
    };
    let op = |op: Op| pb::RequestOp { request: Some(op) };
    pb::TxnRequest {
        compare: changes.iter().map(guard).collect(),
        success: changes.iter().map(|change| op(apply(change))).collect(),
        failure: changes.iter().map(|change| op(get(change))).collect(),
    }
}

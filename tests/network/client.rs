//! Clients that write and read, each at its node, over etcd's API.

use std::time::Duration;

use bytes::Bytes;
use pleach::{
    model::{Key, KeyRange, Revision},
    proto::etcdserverpb::{
        self as pb, compare::CompareTarget, compare::TargetUnion, kv_client::KvClient,
        request_op::Request, response_op::Response,
    },
    wire,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, transport::Channel};

use crate::{
    history::{Operation, Outcome, Read, SharedHistory, Write},
    rng::Rng,
    socket,
    tree::{self, KEYS, NODES, NodeId, is_below},
};

/// How long a client waits for an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(4);

/// The most keys of one page.
const PAGE_KEYS_MAX: usize = 4;

/// Between two requests of a client.
const PAUSE_MILLIS: (i64, i64) = (20, 400);

/// A client of a node.
pub(crate) struct Client {
    /// Told apart in the values it writes.
    name: String,
    node: NodeId,
    kv: KvClient<Channel>,
    rng: Rng,
    history: SharedHistory,
    written: u64,
}

// === impl Client ===

impl Client {
    pub(crate) fn new(name: String, node: NodeId, rng: Rng, history: SharedHistory) -> Self {
        let kv = KvClient::new(socket::channel(NODES[node].name));
        Self { name, node, kv, rng, history, written: 0 }
    }

    pub(crate) async fn pause(&mut self) {
        let (low, high) = PAUSE_MILLIS;
        sleep(Duration::from_millis(self.rng.between(low, high) as u64)).await;
    }

    /// Writes until the history settles.
    pub(crate) async fn write(mut self) {
        while !self.history.borrow().is_settling {
            let choices = [(50, Self::CAS), (25, Self::PUT), (12, Self::DELETE), (13, Self::PAIR)];
            match self.rng.weighted(&choices) {
                Self::CAS => self.compare_and_put().await,
                Self::PUT => {
                    let changes = vec![(self.key(), Some(self.value()))];
                    self.change(changes).await;
                }
                Self::DELETE => {
                    let changes = vec![(self.key(), None)];
                    self.change(changes).await;
                }
                _ => {
                    let node = self.below();
                    let at = self.rng.below(KEYS);
                    let keys = [at, (at + 1) % KEYS].map(|at| tree::key(node, at));
                    let changes = keys.map(|key| (key, Some(self.value()))).to_vec();
                    self.change(changes).await;
                }
            }
            self.pause().await;
        }
    }

    const CAS: u8 = 0;
    const PUT: u8 = 1;
    const DELETE: u8 = 2;
    const PAIR: u8 = 3;

    /// Reads keys and lists ranges, for ever.
    pub(crate) async fn read(mut self) {
        loop {
            let percent = if self.history.borrow().is_settling { 100 } else { 60 };
            if self.rng.chance(percent) {
                let node = if self.rng.chance(60) { self.node } else { self.below() };
                let pages = self.rng.chance(30);
                self.list(NODES[node].range(), pages).await;
            } else {
                let key = self.key();
                self.get(key).await;
            }
            self.pause().await;
        }
    }

    /// Compacts what is old, now and then.
    pub(crate) async fn compact(mut self, every: Duration) {
        let mut reached = 0;
        loop {
            sleep(every).await;
            if reached > 1 {
                self.history.borrow_mut().compacted.insert(reached);
                let request = pb::CompactionRequest { revision: reached, physical: false };
                if answered(self.kv.compact(request)).await.is_ok() {
                    self.history.borrow_mut().seen.compactions += 1;
                }
            }
            let key = self.key();
            reached = self.get(key).await.map_or(reached, |got| got.1);
        }
    }

    /// A node at or below the client's.
    fn below(&mut self) -> NodeId {
        let below: Vec<NodeId> =
            (0..NODES.len()).filter(|node| is_below(*node, self.node)).collect();
        self.rng.pick(&below)
    }

    fn key(&mut self) -> Key {
        let node = self.below();
        tree::key(node, self.rng.below(KEYS))
    }

    /// A value that nobody else writes.
    fn value(&mut self) -> Bytes {
        self.written += 1;
        Bytes::from(format!("{}-{}", self.name, self.written))
    }

    /// Reads one key: the revision it was changed at, 0 where it does not exist, and as of which
    /// revision that is so.
    async fn get(&mut self, key: Key) -> Option<(Revision, Revision)> {
        let page = self.page(KeyRange::single(key), 0, 0).await.ok()?;
        self.history.borrow_mut().seen.reads += 1;
        let changed = page.kvs.first().map_or(0, |kv| kv.mod_revision);
        Some((changed, revision(page.header)))
    }

    /// Lists a range, whole or page by page. Returns as of which revision.
    pub(crate) async fn list(&mut self, range: KeyRange, pages: bool) -> Option<Revision> {
        let limit = if pages { 1 + self.rng.below(PAGE_KEYS_MAX) } else { 0 };
        let page = self.page(range.clone(), limit, 0).await.ok()?;
        let at = revision(page.header);
        let mut last = page.kvs.last().map(|kv| kv.key.clone()).filter(|_| page.more);
        while let Some(key) = last {
            let page = self.page(range.after(&key), limit, at).await.ok()?;
            last = page.kvs.last().map(|kv| kv.key.clone()).filter(|_| page.more);
        }
        self.history.borrow_mut().seen.lists += 1;
        Some(at)
    }

    async fn page(
        &mut self,
        range: KeyRange,
        limit: usize,
        at: Revision,
    ) -> Result<pb::RangeResponse, Status> {
        let (key, range_end) = wire::range_to(&range);
        let limited = limit as i64;
        let request =
            pb::RangeRequest { key, range_end, limit: limited, revision: at, ..Default::default() };
        let began = turmoil::sim_elapsed().unwrap_or_default();
        let page = answered(self.kv.range(request)).await?;
        let is_past = at != 0;
        let at = if is_past { at } else { revision(page.header) };
        let asked = Read { range, at, is_past, limit, kvs: Vec::new(), count: 0 };
        self.saw(began, asked, &page);
        Ok(page)
    }

    fn saw(&self, began: Duration, asked: Read, page: &pb::RangeResponse) {
        let kvs = page.kvs.iter().cloned().map(wire::kv).collect();
        let count = page.count as usize;
        self.note(began, Outcome::Read(Read { kvs, count, ..asked }));
    }

    fn note(&self, began: Duration, outcome: Outcome) {
        let ended = turmoil::sim_elapsed().unwrap_or_default();
        let operation = Operation { node: self.node, began, ended, outcome };
        self.history.borrow_mut().operations.push(operation);
    }

    /// Changes a key where nobody else has since it was read.
    async fn compare_and_put(&mut self) {
        let key = self.key();
        let Some((found, _)) = self.get(key.clone()).await else { return };
        let changes = vec![(key, Some(self.value()))];
        self.transact(Write { changes, guard: Some(found) }).await;
    }

    async fn change(&mut self, changes: Vec<(Key, Option<Bytes>)>) {
        self.transact(Write { changes, guard: None }).await;
    }

    async fn transact(&mut self, write: Write) {
        let key = write.changes[0].0.clone();
        let compare = write.guard.map(|guard| pb::Compare {
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(guard)),
            ..Default::default()
        });
        let success = write.changes.iter().cloned().map(|(key, value)| match value {
            Some(value) => Request::RequestPut(pb::PutRequest { key, value, ..Default::default() }),
            None => {
                Request::RequestDeleteRange(pb::DeleteRangeRequest { key, ..Default::default() })
            }
        });
        let get =
            Request::RequestRange(pb::RangeRequest { key: key.clone(), ..Default::default() });
        let op = |request| pb::RequestOp { request: Some(request) };
        let request = pb::TxnRequest {
            compare: compare.into_iter().collect(),
            success: success.map(op).collect(),
            failure: vec![op(get)],
        };
        let began = turmoil::sim_elapsed().unwrap_or_default();
        let answer = answered(self.kv.txn(request)).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => {
                let is_refused = status.code() == Code::Unavailable
                    && status.message().starts_with("pleach: store ");
                let outcome =
                    if is_refused { Outcome::Refused(write) } else { Outcome::Unknown(write) };
                return self.note(began, outcome);
            }
        };
        let at = revision(answer.header);
        let range = KeyRange::single(key);
        let found = Read { range, at, is_past: false, limit: 0, kvs: Vec::new(), count: 0 };
        match answer.responses.into_iter().next().and_then(|op| op.response) {
            Some(Response::ResponseRange(page)) => {
                self.history.borrow_mut().seen.lost_races += 1;
                self.saw(began, found, &page);
            }
            // There was nothing to delete.
            Some(Response::ResponseDeleteRange(gone)) if gone.deleted == 0 => {
                self.note(began, Outcome::Read(found));
            }
            _ => self.note(began, Outcome::Written { at, write }),
        }
    }
}

pub(crate) fn revision(header: Option<pb::ResponseHeader>) -> Revision {
    header.map_or(0, |header| header.revision)
}

async fn answered<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(ANSWER_TIME_MAX, answer).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("nobody answered in time")),
    }
}

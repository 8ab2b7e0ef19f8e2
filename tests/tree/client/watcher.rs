//! Lists, watches from there, resumes behind the last that it was told, and lists afresh where it is
//! ended as compacted: what a Kubernetes client does.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pleach::proto::etcdserverpb::{self as pb, WatchResponse, watch_request::RequestUnion};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tonic::Streaming;

use super::{Connection, patience};
use crate::{
    history::{Generation, History, Keys, Life, NodeId, Told, Watcher},
    support::{
        changes::{Event, open_watch},
        rng::Rng,
    },
};

const RETRY_AFTER: Duration = Duration::from_millis(50);
const PROGRESS_EVERY: Duration = Duration::from_millis(700);
const CREATED_WITHIN: Duration = Duration::from_secs(8);

/// Up to which revision each node's watchers are to be told before they end; empty until then.
pub(crate) type Ends = watch::Receiver<Vec<i64>>;

#[derive(Debug)]
pub(crate) struct Watching {
    connection: Connection,
    watcher: Watcher,
    rng: Rng,
    history: History,
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The stream broke off, or the client closed it.
    Broken,
    Compacted,
    /// It was told all that there is.
    Complete,
}

// === impl Watching ===

impl Watching {
    pub(crate) fn new(
        connection: Connection,
        keys: Keys,
        is_of_own_stores: bool,
        rng: Rng,
    ) -> Self {
        let node: NodeId = connection.node;
        let watcher = Watcher { node, keys, is_of_own_stores, generations: Vec::new() };
        Self { connection, watcher, rng, history: History::default() }
    }

    /// Watches until it was told all there is, within `bound` of being asked to end.
    pub(crate) async fn run(mut self, ends: Ends, bound: Duration) -> Result<History> {
        let mut asked = ends.clone();
        let overdue = async {
            // It ends only with the test.
            let _ = asked.wait_for(|ends| !ends.is_empty()).await;
            sleep(bound).await;
        };
        let told = tokio::select! {
            told = Box::pin(self.watch(ends)) => told.map(|()| true),
            () = overdue => Ok(false),
        }?;
        let Watcher { node, keys, .. } = &self.watcher;
        let position = self.watcher.generations.last().map(Generation::told);
        ensure!(told, "the watcher of {keys:?} at node {node} got to {position:?} and no further");
        self.history.watchers.push(self.watcher);
        Ok(self.history)
    }

    async fn watch(&mut self, ends: Ends) -> Result<()> {
        loop {
            // Some want only what comes from now on.
            let listed = if self.rng.chance(20) { 0 } else { self.list().await? };
            let begun = Generation { listed, lives: Vec::new(), is_compacted: false };
            self.watcher.generations.push(begun);
            loop {
                match self.live(ends.clone()).await? {
                    End::Broken => sleep(RETRY_AFTER).await,
                    End::Compacted => {
                        self.generation().is_compacted = true;
                        break;
                    }
                    End::Complete => return Ok(()),
                }
            }
        }
    }

    /// Lists until it is answered. As of which revision it was.
    async fn list(&mut self) -> Result<i64> {
        loop {
            let patience = patience(&mut self.rng);
            if let Some(read) = self.connection.read(&self.watcher.keys, patience).await? {
                let revision = read.revision;
                self.history.reads.push(read);
                return Ok(revision);
            }
            sleep(RETRY_AFTER).await;
        }
    }

    fn generation(&mut self) -> &mut Generation {
        self.watcher.generations.last_mut().expect("it began with a list")
    }

    /// One watch stream.
    async fn live(&mut self, mut ends: Ends) -> Result<End> {
        let told = self.generation().told();
        let start = if told == 0 { 0 } else { told + 1 };
        let create = pb::WatchCreateRequest {
            key: self.watcher.keys.from.clone().into(),
            range_end: self.watcher.keys.end.clone().into(),
            start_revision: start,
            prev_kv: true,
            progress_notify: true,
            ..Default::default()
        };
        let opened = timeout(CREATED_WITHIN, async {
            let opened = open_watch(self.connection.channel.clone(), create).await;
            let Ok((requests, mut responses)) = opened else { return Ok(None) };
            let Ok(Some(created)) = responses.message().await else { return Ok(None) };
            ensure!(created.created && !created.canceled, "not created: {created:?}");
            Ok(Some((requests, responses, created)))
        });
        let Ok(opened) = Box::pin(opened).await else { return Ok(End::Broken) };
        let Some((requests, responses, created)) = opened? else { return Ok(End::Broken) };
        let created = created.header.context("no header")?.revision;
        self.generation().lives.push(Life { start, created, told: Vec::new() });
        // Now and then the client goes by itself.
        let leaves = Instant::now() + Duration::from_millis(self.rng.below(30_000) as u64);
        let ended = tokio::select! {
            ended = self.follow(requests, responses, &mut ends) => ended,
            () = tokio::time::sleep_until(leaves) => Ok(End::Broken),
        };
        ended
    }

    async fn follow(
        &mut self,
        requests: mpsc::Sender<pb::WatchRequest>,
        mut responses: Streaming<WatchResponse>,
        ends: &mut Ends,
    ) -> Result<End> {
        let node = self.connection.node;
        let mut tick = tokio::time::interval(PROGRESS_EVERY);
        loop {
            let end = ends.borrow().get(node).copied();
            if end.is_some_and(|end| self.generation().told() >= end) {
                return Ok(End::Complete);
            }
            let response = tokio::select! {
                response = responses.message() => response,
                _ = tick.tick() => {
                    if end.is_some() || self.rng.chance(50) {
                        let progress = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                        let progress = pb::WatchRequest { request_union: Some(progress) };
                        // Where the stream has broken, its answers say so.
                        let _ = requests.try_send(progress);
                    }
                    continue;
                }
            };
            let Ok(Some(response)) = response else { return Ok(End::Broken) };
            if response.canceled {
                if response.compact_revision == 0 {
                    bail!("canceled for no reason: {response:?}");
                }
                return Ok(End::Compacted);
            }
            let revision = response.header.context("no header")?.revision;
            let events = response.events.iter().map(Event::try_from).collect::<Result<_>>()?;
            let life = self.generation().lives.last_mut().context("no life")?;
            life.told.push(Told { revision, events });
        }
    }
}

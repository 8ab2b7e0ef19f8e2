//! Clients that watch: they list, watch from there, resume behind the last that they were told, and list
//! again where they are told that this is compacted.

use std::time::Duration;

use pleach::{
    model::{KeyRange, Revision},
    proto::etcdserverpb::{
        self as pb, watch_client::WatchClient, watch_create_request::FilterType,
        watch_request::RequestUnion,
    },
    wire,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    client::{Client, revision},
    history::{Operation, Outcome, SharedHistory, Stretch, Watcher},
    rng::Rng,
    socket,
    tree::{NODES, NodeId},
};

/// How long a watcher stays on one stream, in milliseconds. It may come back elsewhere in time.
const STAY_MILLIS: (i64, i64) = (500, 6_000);

/// How long it stays away.
const AWAY_MILLIS: (i64, i64) = (10, 3_000);

/// How long it waits for the watch to be there.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(4);

/// A client that watches.
pub(crate) struct Watching {
    /// Its place in the history.
    at: usize,
    node: NodeId,
    range: KeyRange,
    no_delete: bool,
    client: Client,
    watch: WatchClient<Channel>,
    rng: Rng,
    history: SharedHistory,
}

/// Why a watcher left its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It goes on where it was.
    Cut,
    /// It must list again.
    Compacted,
}

// === impl Watching ===

impl Watching {
    pub(crate) fn new(
        node: NodeId,
        range: KeyRange,
        no_delete: bool,
        mut rng: Rng,
        history: SharedHistory,
    ) -> Self {
        let at = {
            let watchers = &mut history.borrow_mut().watchers;
            let range = range.clone();
            watchers.push(Watcher { node, range, no_delete, stretches: Vec::new() });
            watchers.len() - 1
        };
        let client = Client::new("watcher".to_owned(), node, Rng::new(rng.next()), history.clone());
        let watch = WatchClient::new(socket::channel(NODES[node].name));
        Self { at, node, range, no_delete, client, watch, rng, history }
    }

    /// Watches for ever.
    pub(crate) async fn run(mut self) {
        loop {
            let Some(base) = self.client.list(self.range.clone(), false).await else {
                self.client.pause().await;
                continue;
            };
            let stretch = Stretch { base, told: base, events: Vec::new(), is_over: false };
            self.history.borrow_mut().watchers[self.at].stretches.push(stretch);
            while self.stay().await == Left::Cut {
                self.history.borrow_mut().seen.resumed += 1;
                let is_settling = self.history.borrow().is_settling;
                let (low, high) = AWAY_MILLIS;
                let high = if is_settling { low } else { high };
                sleep(Duration::from_millis(self.rng.between(low, high) as u64)).await;
            }
            let mut history = self.history.borrow_mut();
            history.seen.relisted += 1;
            if let Some(stretch) = history.watchers[self.at].stretches.last_mut() {
                stretch.is_over = true;
            }
        }
    }

    fn told(&self) -> Revision {
        let history = self.history.borrow();
        history.watchers[self.at].stretches.last().map_or(0, |stretch| stretch.told)
    }

    /// Watches until the stream ends, or the watcher has enough of it.
    async fn stay(&mut self) -> Left {
        let (requests, asked) = mpsc::channel(4);
        let (key, range_end) = wire::range_to(&self.range);
        let filters = if self.no_delete { vec![FilterType::Nodelete as i32] } else { Vec::new() };
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: self.told() + 1,
            progress_notify: true,
            prev_kv: true,
            filters,
            ..Default::default()
        };
        let send = |it| pb::WatchRequest { request_union: Some(it) };
        let _ = requests.send(send(RequestUnion::CreateRequest(create))).await;
        let (low, high) = STAY_MILLIS;
        let now = Instant::now();
        let until = now + Duration::from_millis(self.rng.between(low, high) as u64);
        let opened = self.watch.watch(ReceiverStream::new(asked));
        let Ok(Ok(opened)) = timeout_at(now + ANSWER_TIME_MAX, opened).await else {
            return Left::Cut;
        };
        let mut responses: Streaming<pb::WatchResponse> = opened.into_inner();
        loop {
            let is_settling = self.history.borrow().is_settling;
            let next = if is_settling {
                responses.message().await
            } else {
                let Ok(next) = timeout_at(until, responses.message()).await else {
                    return Left::Cut;
                };
                next
            };
            let Ok(Some(response)) = next else { return Left::Cut };
            if response.canceled {
                if response.compact_revision == 0 {
                    self.broken(format!("it was canceled: {response:?}"));
                }
                return Left::Compacted;
            }
            if !response.created {
                self.take(response);
            }
            if self.rng.chance(20) {
                let progress = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                let _ = requests.try_send(send(progress));
            }
        }
    }

    /// Takes events, whole revisions in order, or progress.
    fn take(&mut self, response: pb::WatchResponse) {
        let header = revision(response.header);
        let told = self.told();
        let mut last = told;
        let mut changes = Vec::new();
        for kv in response.events.iter().filter_map(|event| event.kv.as_ref()) {
            let changed = kv.mod_revision;
            if changed <= told || changed < last {
                self.broken(format!("event {changed} comes after {last} was told"));
            }
            last = last.max(changed);
            changes.push((kv.key.clone(), changed));
        }
        if response.events.is_empty() {
            last = last.max(header);
        }
        let mut history = self.history.borrow_mut();
        history.seen.events += response.events.len() as u64;
        history.seen.progress += u64::from(response.events.is_empty());
        if let Some(stretch) = history.watchers[self.at].stretches.last_mut() {
            stretch.told = last;
            stretch.events.extend(response.events);
        }
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let outcome = Outcome::Told { changes, at: last };
        let operation = Operation { node: self.node, began: now, ended: now, outcome };
        history.operations.push(operation);
    }

    fn broken(&self, what: String) {
        let name = NODES[self.node].name;
        let what = format!("a watcher of {:?} at {name}: {what}", self.range);
        self.history.borrow_mut().broken.push(what);
    }
}

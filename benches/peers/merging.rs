//! Writers to many groups of keys, and one watcher of all: what comes out of one merged log, how long after
//! it was sent, and how fast the same is told again from the log.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{WatchResponse, kv_client::KvClient};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Streaming, transport::Channel};

use crate::{
    client::{Connections, Trouble},
    keys::Set,
    load::{self, Refusals, Work},
    meter::Processes,
    options::Plan,
    report::{Figures, Metric, median, quantile},
    rows::MERGED_CLIENTS,
    shapes,
    watching::{EVENT_TIME_MAX, current_revision, open_stream},
    writing::accepted,
};

/// A revision, and when it was sent or told.
type Moment = (i64, Instant);

/// A writer that creates keys of all groups in turn.
struct Writer {
    kv: KvClient<Channel>,
    set: Set,
    next: u64,
    done: mpsc::UnboundedSender<Moment>,
}

impl Work for Writer {
    async fn turn(&mut self) -> Result<(), Trouble> {
        let key = self.set.key(self.next);
        self.next += 1;
        let sent = Instant::now();
        let answer = self.kv.txn(shapes::write(&key, 0)).await?.into_inner();
        // Nobody listens only when the row has failed.
        let _ = self.done.send((accepted(&key, &answer)?, sent));
        Ok(())
    }
}

/// The row's figures.
pub(crate) async fn measure(
    plan: &Plan,
    port: u16,
    processes: Processes,
    groups: usize,
) -> Result<(Figures, Refusals)> {
    let set = Set::Spread { groups };
    let connections = Connections::open(port, MERGED_CLIENTS).await?;
    let start = current_revision(&mut connections.kv(0)).await? + 1;
    let (done, mut written) = mpsc::unbounded_channel();
    let writer = |index| {
        let next = (index as u64) << 32;
        Writer { kv: connections.kv(index), set, next, done: done.clone() }
    };
    let writers: Vec<_> = (0..MERGED_CLIENTS).map(writer).collect();
    drop(done);

    let watching = Connections::open(port, 1).await?;
    let (tell, mut told) = mpsc::unbounded_channel();
    let events = open_stream(watching.watch(0), set, 1, start).await?;
    let _task = AbortOnDropHandle::new(tokio::spawn(receive(events, tell)));
    let (mut figures, refusals) = load::run(plan, processes, writers).await?;

    let mut sent = BTreeMap::new();
    while let Some((revision, at)) = written.recv().await {
        sent.insert(revision, at);
    }
    ensure!(refusals.is_empty(), "writes were refused, whose events nobody can count");
    let mut delays = Vec::with_capacity(sent.len());
    for (expected, at) in &sent {
        let (revision, now) = next(&mut told).await?;
        ensure!(revision == *expected, "an event of {revision} where {expected} was next");
        delays.push((now - *at).as_secs_f64() * 1e3);
    }
    figures.push((Metric::EventMedian, median(&delays)));
    figures.push((Metric::EventP99, quantile(&delays, 0.99)));

    let begun = Instant::now();
    let (tell, mut told) = mpsc::unbounded_channel();
    let events = open_stream(watching.watch(0), set, 1, start).await?;
    let _task = AbortOnDropHandle::new(tokio::spawn(receive(events, tell)));
    for expected in sent.keys() {
        let (revision, _) = next(&mut told).await?;
        ensure!(revision == *expected, "{revision} was told again where {expected} was next");
    }
    figures.push((Metric::Replay, sent.len() as f64 / begun.elapsed().as_secs_f64()));
    Ok((figures, refusals))
}

async fn next(told: &mut mpsc::UnboundedReceiver<Moment>) -> Result<Moment> {
    let told = timeout(EVENT_TIME_MAX, told.recv()).await.context("an event did not come")?;
    told.context("the watch has ended")
}

async fn receive(mut events: Streaming<WatchResponse>, tell: mpsc::UnboundedSender<Moment>) {
    while let Ok(Some(answer)) = events.message().await {
        let now = Instant::now();
        for kv in answer.events.iter().filter_map(|event| event.kv.as_ref()) {
            if tell.send((kv.mod_revision, now)).is_err() {
                return;
            }
        }
    }
}

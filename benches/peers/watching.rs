//! Watchers, and the time from a write to its event at each of them.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use pleach::proto::etcdserverpb::{
    WatchRequest, WatchResponse, kv_client::KvClient, watch_client::WatchClient,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    client::{Connections, Trouble, revision},
    keys::{Key, Set, prefix_end},
    load::{Refusals, Tally},
    meter::{self, Meter, Processes},
    options::Plan,
    report::{Figures, Metric, median, quantile},
    shapes,
    writing::accepted,
};

/// Watchers on one stream, as the Go client shares one among all watches of a connection.
const WATCHERS_PER_STREAM: usize = 100;

/// Streams on one connection.
const STREAMS_PER_CONNECTION: usize = 4;

/// Bounds the samples of one turn: writes times watchers.
const WRITES_MAX: usize = 20_000;

const OPEN_TIME_MAX: Duration = Duration::from_secs(60);
/// How long no event may come while some are still to come.
pub(crate) const EVENT_TIME_MAX: Duration = Duration::from_secs(10);

/// An event's revision and the moment at which a watcher's task held it decoded.
type Receipt = Result<(i64, Instant), Trouble>;

/// Open watchers. Dropping them ends their streams.
pub(crate) struct Watchers {
    receipts: mpsc::Receiver<Receipt>,
    _tasks: JoinSet<()>,
    _connections: Connections,
}

/// What the writes of one turn showed, in milliseconds.
#[derive(Default)]
struct Times {
    since_sent: Vec<f64>,
    since_answer: Vec<f64>,
    last_since_sent: Vec<f64>,
}

// === impl Watchers ===

impl Watchers {
    /// Opens watchers on the watched prefix and returns when the server has confirmed all.
    pub(crate) async fn open(port: u16, count: usize) -> Result<Self> {
        let streams = count.div_ceil(WATCHERS_PER_STREAM);
        let connections = Connections::open(port, streams * 32 / STREAMS_PER_CONNECTION).await?;
        // One write reaches every watcher once, and writes wait for that: the queue cannot fill up.
        let (sender, receipts) = mpsc::channel(count);
        let start = current_revision(&mut connections.kv(0)).await? + 1;
        let mut tasks = JoinSet::new();
        for index in 0..streams {
            let watchers = WATCHERS_PER_STREAM.min(count - index * WATCHERS_PER_STREAM);
            let opening = open_stream(connections.watch(index), Set::Watched, watchers, start);
            let events = timeout(OPEN_TIME_MAX, opening)
                .await
                .context("watchers were not confirmed in time")??;
            tasks.spawn(deliver(events, sender.clone()));
        }
        Ok(Watchers { receipts, _tasks: tasks, _connections: connections })
    }
}

/// Watchers of a set on one stream, each confirmed.
pub(crate) async fn open_stream(
    mut client: WatchClient<Channel>,
    set: Set,
    watchers: usize,
    start: i64,
) -> Result<Streaming<WatchResponse>> {
    let prefix = set.prefix();
    let (from, end): (Bytes, _) = (prefix.clone().into(), prefix_end(&prefix));
    let creates: Vec<WatchRequest> =
        (0..watchers).map(|_| shapes::watch(from.clone(), end.clone(), start)).collect();
    // The stream of requests stays open: its end would end the watches.
    let requests = stream::iter(creates).chain(stream::pending());
    let mut events = client.watch(requests).await?.into_inner();
    for _ in 0..watchers {
        let answer = events.message().await?.context("a watch stream ended")?;
        ensure!(answer.created && !answer.canceled, "a watch was turned down: {answer:?}");
    }
    Ok(events)
}

/// Hands on the events of a stream, and its end as an error.
async fn deliver(mut events: Streaming<WatchResponse>, sender: mpsc::Sender<Receipt>) {
    loop {
        let answer = events.message().await;
        let now = Instant::now();
        let receipts = match answer {
            Ok(Some(answer)) if answer.canceled => {
                let reason = format!("a watch was cancelled: {}", answer.cancel_reason);
                Err(Status::cancelled(reason).into())
            }
            Ok(Some(answer)) => revisions(&answer).map_err(Trouble::from),
            Ok(None) => Err(Status::unavailable("a watch stream ended").into()),
            Err(status) => Err(status.into()),
        };
        match receipts {
            Ok(revisions) => {
                for revision in revisions {
                    if sender.send(Ok((revision, now))).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                sender.send(Err(error)).await.ok();
                return;
            }
        }
    }
}

/// The revisions of an answer's events, each event checked to be whole. Progress has none.
fn revisions(answer: &WatchResponse) -> Result<Vec<i64>> {
    let prefix = Set::Watched.prefix();
    answer
        .events
        .iter()
        .map(|event| {
            let kv = event.kv.as_ref().context("an event without a key")?;
            ensure!(kv.key.starts_with(prefix.as_bytes()), "an event of another prefix");
            let created = kv.create_revision == kv.mod_revision;
            ensure!(created || event.prev_kv.is_some(), "an update's event without prev_kv");
            Ok(kv.mod_revision)
        })
        .collect()
}

pub(crate) async fn current_revision(kv: &mut KvClient<Channel>) -> Result<i64> {
    let answer = kv.range(shapes::get(&Set::Watched.key(0))).await?.into_inner();
    revision(answer.header.as_ref())
}

/// Writes one key over and over, and waits after each write until every watcher has its event.
pub(crate) async fn measure(
    plan: &Plan,
    port: u16,
    processes: Processes,
    count: usize,
) -> Result<(Figures, Refusals)> {
    let mut watchers = Watchers::open(port, count).await?;
    let connections = Connections::open(port, 1).await?;
    let mut writer = Writer::new(&connections).await?;
    let mut tally = Tally::default();
    let mut times = Times::default();

    let warm = Instant::now() + plan.warm_up;
    let mut going = true;
    while going && Instant::now() < warm {
        going = writer.write(&mut watchers, count, &mut Times::default(), &mut tally).await?;
    }
    let meter = Meter::start(processes)?;
    let closes = Instant::now() + plan.window;
    while going && Instant::now() < closes && times.last_since_sent.len() < WRITES_MAX {
        going = writer.write(&mut watchers, count, &mut times, &mut tally).await?;
    }
    let cpu = meter.read()?;
    Ok((times.figures(count, cpu), tally.refusals))
}

struct Writer {
    kv: KvClient<Channel>,
    key: Key,
    revision: i64,
}

impl Writer {
    async fn new(connections: &Connections) -> Result<Self> {
        let (mut kv, key) = (connections.kv(0), Set::Watched.key(0));
        let answer = kv.range(shapes::get(&key)).await?.into_inner();
        let revision = answer.kvs.first().map_or(0, |kv| kv.mod_revision);
        Ok(Writer { kv, key, revision })
    }

    /// False after a refusal, which ends the turn: whether the write took place, and so which
    /// events to wait for, is then unknown, or a watcher is gone.
    async fn write(
        &mut self,
        watchers: &mut Watchers,
        count: usize,
        times: &mut Times,
        tally: &mut Tally,
    ) -> Result<bool> {
        match self.write_once(watchers, count, times).await {
            Ok(()) => Ok(true),
            Err(Trouble::Refused(status)) => {
                tally.refuse(&status);
                Ok(false)
            }
            Err(Trouble::Wrong(error)) => Err(error),
        }
    }

    async fn write_once(
        &mut self,
        watchers: &mut Watchers,
        count: usize,
        times: &mut Times,
    ) -> Result<(), Trouble> {
        let sent = Instant::now();
        let answer = self.kv.txn(shapes::write(&self.key, self.revision)).await?.into_inner();
        let answered = Instant::now();
        self.revision = accepted(&self.key, &answer)?;
        let mut last = sent;
        for _ in 0..count {
            let receipt = timeout(EVENT_TIME_MAX, watchers.receipts.recv()).await;
            let receipt = receipt.context("an event did not come")?;
            let (revision, at) = receipt.context("all watch streams ended")??;
            if revision != self.revision {
                let wrong = anyhow!("an event of {revision} after the write of {}", self.revision);
                return Err(wrong.into());
            }
            times.since_sent.push(milliseconds(sent, at));
            times.since_answer.push(milliseconds(answered, at));
            last = last.max(at);
        }
        times.last_since_sent.push(milliseconds(sent, last));
        Ok(())
    }
}

// === impl Times ===

impl Times {
    fn figures(&self, watchers: usize, cpu: meter::Times) -> Figures {
        let writes = self.last_since_sent.len() as f64;
        if writes == 0.0 {
            return Figures::new();
        }
        let mut figures = vec![
            (Metric::EventMedian, median(&self.since_sent)),
            (Metric::EventP99, quantile(&self.since_sent, 0.99)),
            (Metric::AfterAnswerMedian, median(&self.since_answer)),
            (Metric::AfterAnswerP99, quantile(&self.since_answer, 0.99)),
        ];
        if watchers > 1 {
            figures.push((Metric::LastEventMedian, median(&self.last_since_sent)));
        }
        figures.extend(cpu.figures(writes));
        figures
    }
}

/// Signed: an event may come before the answer of its own write.
fn milliseconds(from: Instant, to: Instant) -> f64 {
    if to >= from { (to - from).as_secs_f64() * 1e3 } else { -(from - to).as_secs_f64() * 1e3 }
}

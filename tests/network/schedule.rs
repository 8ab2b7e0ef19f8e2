//! One random run of the tree: trouble, then rest, then the checks.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, SystemTime},
};

use futures::{
    FutureExt as _,
    future::{LocalBoxFuture, join_all},
};
use pleach::{clock::Entropy, store::memory::Kept};
use turmoil::Sim;

use crate::{
    check::check,
    client::Client,
    fault::Fault,
    history::{Outcome, Seen, SharedHistory},
    node::Start,
    panics,
    rng::Rng,
    tree::{NODES, NodeId, ROOT},
    truth::Truth,
    watcher::Watching,
};

/// What the simulated network and its hosts move on by at once.
const TICK: Duration = Duration::from_millis(5);

/// The nodes are left alone at first: what they did before they were one tree would be nobody's business.
const PEACE: Duration = Duration::from_secs(3);

/// How long there is trouble.
const TROUBLE: Duration = Duration::from_secs(20);

/// How long it may take after the last trouble until everyone knows everything.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(30);

/// How long it takes at least: what was asked before is answered or given up by then.
const SETTLE_TIME_MIN: Duration = Duration::from_secs(5);

/// Between two troubles.
const PAUSE_MILLIS: (i64, i64) = (100, 2_500);

/// How long one lasts.
const LAST_MILLIS: (i64, i64) = (100, 9_000);

const LATENCY_MILLIS: (i64, i64) = (2, 60);
const SLOW_LATENCY_MILLIS: (i64, i64) = (100, 800);
const GRACE_MILLIS: (i64, i64) = (200, 2_000);
const COMPACT_EVERY_MILLIS: (i64, i64) = (1_000, 8_000);

/// The nodes that have clients of their own, with how many of each kind.
const CLIENTS: [Clients; 5] = [
    Clients { node: 0, writers: 2, readers: 2, watched: &[0, 0, 1, 2, 3] },
    Clients { node: 1, writers: 1, readers: 1, watched: &[1, 1, 3] },
    Clients { node: 2, writers: 1, readers: 1, watched: &[2] },
    Clients { node: 3, writers: 1, readers: 1, watched: &[3] },
    Clients { node: 5, writers: 1, readers: 0, watched: &[] },
];

struct Clients {
    node: NodeId,
    writers: usize,
    readers: usize,
    /// The nodes whose keys are watched.
    watched: &'static [NodeId],
}

/// Something in the way, and until when.
struct Trouble {
    until: Duration,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Partition(Link),
    /// From the first to the second only.
    OneWay(Link),
    Hold(Link),
    Slow(Link),
    Crash(NodeId),
}

/// Two hosts, by name.
type Link = (&'static str, &'static str);

/// A run under way.
struct Run<'a> {
    sim: Sim<'a>,
    rng: Rng,
    history: SharedHistory,
    kept: Vec<Kept>,
    compact_every: Duration,
    truth: Truth,
    troubles: Vec<Trouble>,
}

/// Runs one schedule. What is wrong comes as a sentence.
pub(crate) fn run(seed: u64, fault: Option<Fault>) -> Result<Seen, String> {
    panics::note();
    let ran = catch_unwind(AssertUnwindSafe(|| Run::new(seed, fault).run()));
    match panics::take() {
        Some(panic) => Err(panic),
        None => ran.unwrap_or_else(|_| Err("it panicked".to_owned())),
    }
}

// === impl Run ===

impl Run<'_> {
    fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut rng = Rng::new(seed);
        let mut millis = |(low, high)| Duration::from_millis(rng.between(low, high) as u64);
        let (latency, grace) = (millis(LATENCY_MILLIS), millis(GRACE_MILLIS));
        let compact_every = millis(COMPACT_EVERY_MILLIS);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH)
            .tick_duration(TICK)
            .simulation_duration(PEACE + TROUBLE + 2 * SETTLE_TIME_MAX)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(latency)
            .tcp_capacity(1_024)
            .enable_random_order()
            .build();
        let history = SharedHistory::default();
        let kept: Vec<Kept> = NODES.iter().map(|_| Kept::default()).collect();
        for (node, kept) in kept.iter().enumerate() {
            let (kept, history) = (kept.clone(), history.clone());
            let entropy = Entropy::seeded(rng.next() ^ node as u64);
            let start = Start { node, kept, grace, fault, history, entropy };
            sim.host(NODES[node].name, move || start.clone().run());
        }
        Self {
            sim,
            rng,
            history,
            kept,
            compact_every,
            truth: Truth::default(),
            troubles: Vec::new(),
        }
    }

    fn admit_clients(&mut self) {
        let compact_every = self.compact_every;
        for clients in &CLIENTS {
            let mut tasks: Vec<LocalBoxFuture<'static, ()>> = Vec::new();
            let name = NODES[clients.node].name;
            // Made on their host, whose time and network they use.
            let mut client = |kind: &str, at: usize| {
                let name = format!("{kind}-{at}-at-{name}");
                let (rng, history) = (Rng::new(self.rng.next()), self.history.clone());
                async move { Client::new(name, clients.node, rng, history) }
            };
            for at in 0..clients.writers {
                let client = client("writer", at);
                tasks.push(async { client.await.write().await }.boxed_local());
            }
            for at in 0..clients.readers {
                let client = client("reader", at);
                tasks.push(async { client.await.read().await }.boxed_local());
            }
            if clients.node == ROOT {
                let client = client("compactor", 0);
                let compact = async move { client.await.compact(compact_every).await };
                tasks.push(compact.boxed_local());
            }
            for (at, watched) in clients.watched.iter().enumerate() {
                let (range, no_delete) = (NODES[*watched].range(), at % 2 == 1);
                let (rng, history) = (Rng::new(self.rng.next()), self.history.clone());
                let watch = async move {
                    Watching::new(clients.node, range, no_delete, rng, history).run().await;
                };
                tasks.push(watch.boxed_local());
            }
            self.sim.client(host_of_clients(clients.node), async move {
                join_all(tasks).await;
                Ok(())
            });
        }
    }

    fn run(mut self) -> Result<Seen, String> {
        let end = PEACE + TROUBLE;
        let mut next = PEACE;
        while self.sim.elapsed() < PEACE {
            self.step()?;
        }
        self.admit_clients();
        while self.sim.elapsed() < end {
            self.step()?;
            let now = self.sim.elapsed();
            self.end_troubles(now);
            if now >= next {
                self.begin_trouble(now);
                next = now + self.millis(PAUSE_MILLIS);
            }
        }
        self.end_troubles(Duration::MAX);
        self.history.borrow_mut().is_settling = true;
        while self.sim.elapsed() < end + SETTLE_TIME_MIN || !self.is_settled(end) {
            if self.sim.elapsed() > end + SETTLE_TIME_MAX {
                return Err(self.unsettled(end));
            }
            self.step()?;
        }
        let mut history = self.history.borrow_mut();
        let unknown_and_done = check(&history, &self.truth)?;
        let count = |is_counted: fn(&Outcome) -> bool| {
            history.operations.iter().filter(|it| is_counted(&it.outcome)).count() as u64
        };
        let writes = count(|outcome| matches!(outcome, Outcome::Written { .. }));
        let refused = count(|outcome| matches!(outcome, Outcome::Refused(_)));
        let unknown = count(|outcome| matches!(outcome, Outcome::Unknown(_)));
        let seen = &mut history.seen;
        (seen.writes, seen.refused) = (writes, refused);
        (seen.unknown, seen.unknown_and_done) = (unknown, unknown_and_done);
        Ok(*seen)
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| format!("a host ended: {error}"))?;
        self.truth.collect(&self.kept)?;
        match self.history.borrow().broken.first() {
            Some(broken) => Err(broken.clone()),
            None => Ok(()),
        }
    }

    fn millis(&mut self, (low, high): (i64, i64)) -> Duration {
        Duration::from_millis(self.rng.between(low, high) as u64)
    }

    fn begin_trouble(&mut self, now: Duration) {
        let link = {
            let between = (1..NODES.len())
                .filter_map(|node| Some((NODES[NODES[node].parent?].name, NODES[node].name)));
            let clients = CLIENTS
                .iter()
                .map(|clients| (host_of_clients(clients.node), NODES[clients.node].name));
            // What is between nodes is what this is about.
            let links: Vec<Link> = between.clone().chain(between).chain(clients).collect();
            self.rng.pick(&links)
        };
        let node = self.rng.below(NODES.len());
        let what = self.rng.weighted(&[
            (3, What::Partition(link)),
            (1, What::OneWay(link)),
            (1, What::OneWay((link.1, link.0))),
            (2, What::Hold(link)),
            (1, What::Slow(link)),
            (3, What::Crash(node)),
        ]);
        if self.troubles.iter().any(|trouble| trouble.what.is_at_same(what)) {
            return;
        }
        let until = now + self.millis(LAST_MILLIS);
        tracing::info!(?now, ?until, ?what, "trouble");
        let seen = &mut self.history.borrow_mut().seen;
        match what {
            What::Partition((a, b)) => {
                seen.partitions += 1;
                self.sim.partition(a, b);
            }
            What::OneWay((a, b)) => {
                seen.partitions += 1;
                self.sim.partition_oneway(a, b);
            }
            What::Hold((a, b)) => {
                seen.holds += 1;
                self.sim.hold(a, b);
            }
            What::Slow((a, b)) => {
                seen.slow_links += 1;
                let (low, high) = SLOW_LATENCY_MILLIS;
                let latency = Duration::from_millis(self.rng.between(low, high) as u64);
                self.sim.set_link_max_message_latency(a, b, latency);
            }
            What::Crash(node) => {
                seen.crashes += 1;
                self.sim.crash(NODES[node].name);
            }
        }
        self.troubles.push(Trouble { until, what });
    }

    fn end_troubles(&mut self, now: Duration) {
        let (over, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.troubles).into_iter().partition(|it| it.until <= now);
        self.troubles = rest;
        for trouble in over {
            tracing::info!(?now, what = ?trouble.what, "trouble is over");
            match trouble.what {
                What::Partition((a, b)) => self.sim.repair(a, b),
                What::OneWay((a, b)) => self.sim.repair_oneway(a, b),
                What::Hold((a, b)) => self.sim.release(a, b),
                What::Slow((a, b)) => {
                    let (_, high) = LATENCY_MILLIS;
                    let latency = Duration::from_millis(high as u64);
                    self.sim.set_link_max_message_latency(a, b, latency);
                }
                What::Crash(node) => self.sim.bounce(NODES[node].name),
            }
        }
    }

    /// Whether every watcher knows all changes, and lists at all levels show them.
    fn is_settled(&self, since: Duration) -> bool {
        self.open(since).is_empty()
    }

    /// Who does not know everything yet.
    fn open(&self, since: Duration) -> Vec<String> {
        let history = self.history.borrow();
        let mut open = Vec::new();
        for watcher in &history.watchers {
            let last = self.truth.last(&watcher.range);
            let told = watcher.stretches.last().map_or(0, |stretch| stretch.told);
            // Who wants no deletions hears of the last change by a progress notification.
            if told < last {
                let (name, range) = (NODES[watcher.node].name, &watcher.range);
                let filter = if watcher.no_delete { " but for deletions" } else { "" };
                open.push(format!("a watcher of {range:?}{filter} at {name} has {told} of {last}"));
            }
        }
        for clients in CLIENTS.iter().filter(|clients| clients.readers > 0) {
            let range = NODES[clients.node].range();
            let last = self.truth.last(&range);
            let has_listed = history.operations.iter().rev().any(|operation| {
                operation.node == clients.node
                    && operation.began > since
                    && matches!(&operation.outcome, Outcome::Read(read)
                        if read.range == range && read.at >= last)
            });
            if !has_listed {
                open.push(format!("{} lists nothing at {last}", NODES[clients.node].name));
            }
        }
        open
    }

    fn unsettled(&self, since: Duration) -> String {
        format!("after {SETTLE_TIME_MAX:?} of rest: {}", self.open(since).join("; "))
    }
}

// === impl What ===

impl What {
    /// Whether two can't be at once.
    fn is_at_same(self, other: Self) -> bool {
        match (self.link(), other.link()) {
            (Some((a, b)), Some((c, d))) => (a, b) == (c, d) || (a, b) == (d, c),
            (None, None) => self == other,
            _ => false,
        }
    }

    fn link(self) -> Option<Link> {
        match self {
            Self::Partition(link) | Self::OneWay(link) | Self::Hold(link) | Self::Slow(link) => {
                Some(link)
            }
            Self::Crash(_) => None,
        }
    }
}

/// The host of a node's clients.
fn host_of_clients(node: NodeId) -> &'static str {
    [
        "clients-of-root",
        "clients-of-west",
        "clients-of-east",
        "clients-of-one",
        "",
        "clients-of-three",
    ][node]
}

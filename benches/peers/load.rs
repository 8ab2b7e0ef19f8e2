//! The closed loop: so many clients, each with one request in flight, for so long.
//!
//! Operations count when they end inside the window. The warm-up before it and the stragglers after
//! it are load, too, but only the longest wait takes stragglers in: a server that starves some
//! clients for longer than the window would hide it otherwise.

use std::{collections::BTreeMap, future::Future, time::Duration};

use anyhow::Result;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    client::Trouble,
    meter::{Meter, Processes},
    options::Plan,
    report::{Figures, Metric, median, quantile},
};

/// What one client does over and over.
pub(crate) trait Work: Send + 'static {
    /// One operation, its answer checked.
    fn turn(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send;
}

/// Refused requests by message.
pub(crate) type Refusals = BTreeMap<String, u64>;

/// What a window saw.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) milliseconds: Vec<f64>,
    longest: f64,
    pub(crate) refusals: Refusals,
}

#[derive(Clone, Copy)]
struct Window {
    opens: Instant,
    closes: Instant,
}

/// After a refusal a client pauses, so that a server that refuses at once is not hammered.
pub(crate) const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(5);

/// Runs the clients and returns the row's figures.
pub(crate) async fn run<W: Work>(
    plan: &Plan,
    processes: Processes,
    clients: Vec<W>,
) -> Result<(Figures, Refusals)> {
    let opens = Instant::now() + plan.warm_up;
    let window = Window { opens, closes: opens + plan.window };
    let alone = clients.len() == 1;
    let mut tasks: JoinSet<Result<Tally>> =
        clients.into_iter().map(|client| repeat(client, window)).collect();

    sleep_until(window.opens).await;
    let meter = Meter::start(processes)?;
    sleep_until(window.closes).await;
    let times = meter.read()?;

    let mut tally = Tally::default();
    while let Some(part) = tasks.join_next().await {
        tally.absorb(part??);
    }
    let operations = tally.milliseconds.len() as f64;
    let mut figures = Vec::new();
    if operations > 0.0 {
        if !alone {
            figures.push((Metric::Throughput, operations / plan.window.as_secs_f64()));
        }
        figures.push((Metric::Median, median(&tally.milliseconds)));
        figures.push((Metric::P99, quantile(&tally.milliseconds, 0.99)));
        if !alone {
            figures.push((Metric::Longest, tally.longest));
        }
        figures.extend(times.figures(operations));
    }
    Ok((figures, tally.refusals))
}

async fn repeat<W: Work>(mut client: W, window: Window) -> Result<Tally> {
    let mut tally = Tally::default();
    loop {
        let begun = Instant::now();
        if begun >= window.closes {
            return Ok(tally);
        }
        let outcome = client.turn().await;
        let ended = Instant::now();
        let counts = (window.opens..window.closes).contains(&ended);
        let milliseconds = (ended - begun).as_secs_f64() * 1e3;
        if ended >= window.opens {
            tally.longest = tally.longest.max(milliseconds);
        }
        match outcome {
            Ok(()) if counts => tally.milliseconds.push(milliseconds),
            Ok(()) => {}
            Err(Trouble::Refused(status)) => {
                if counts {
                    tally.refuse(&status);
                }
                sleep(PAUSE_AFTER_REFUSAL).await;
            }
            Err(Trouble::Wrong(error)) => return Err(error),
        }
    }
}

// === impl Tally ===

impl Tally {
    pub(crate) fn refuse(&mut self, status: &tonic::Status) {
        let message = format!("{:?}: {}", status.code(), status.message());
        *self.refusals.entry(message).or_default() += 1;
    }

    pub(crate) fn absorb(&mut self, part: Tally) {
        self.milliseconds.extend(part.milliseconds);
        self.longest = self.longest.max(part.longest);
        for (message, times) in part.refusals {
            *self.refusals.entry(message).or_default() += times;
        }
    }
}

//! `pleach bench`: a small load on a node or an etcd, and how it bears it.
//!
//! It writes below [`PREFIX`] alone and deletes what it wrote, also where it is interrupted. Each kind of
//! request has a time and a number of samples as its bound, whatever the server does.

mod load;

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use self::load::{Load, Measured};
use super::{
    Outcome,
    client::{Target, Unreachable},
    output::{self, Format, Output, Table, print},
    signals::Signals,
};
use crate::topology::parse_duration;

/// Nothing else is written or deleted.
const PREFIX: &str = "/pleach-bench/";

const EXAMPLES: &str = "\
Examples:
  pleach bench                                  five seconds of each kind on the node on this machine
  pleach bench http://etcd:2379 --what put,get --clients 100 --for 30s
  pleach bench -o json > before.json

It works on nodes and on etcds. It writes below /pleach-bench/, through whichever route that is, and deletes
what it wrote. Run it beside nothing that matters: it takes what it gets.
Exit codes: 0 measured, 1 requests failed, 2 nobody answers. Fields of -o json: docs/src/commands.md.";

/// Puts a small load on a node or an etcd: requests a second, and how long they take.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Bench {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
    /// What is done, one kind after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get,range,watch")]
    what: Vec<What>,
    /// How long each kind goes on, 10m at most.
    #[arg(long = "for", default_value = "5s", value_parser = duration)]
    time: Duration,
    /// How many clients do it at once, each waiting for its answer.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// How many keys there are.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keys: u32,
    /// The bytes of a value.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    value_bytes: u32,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum What {
    /// Writes of a key.
    Put,
    /// Reads of a key.
    Get,
    /// Lists of a hundred keys.
    Range,
    /// Writes, until a watch has told of them.
    Watch,
}

/// How one kind went.
#[derive(Debug, Serialize)]
struct Row {
    what: What,
    requests: usize,
    failed: u64,
    per_s: f64,
    p50_s: f64,
    p90_s: f64,
    p99_s: f64,
    max_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(600);
    let parsed = parse_duration(text).filter(|it| !it.is_zero() && *it <= MOST);
    parsed.ok_or_else(|| "expected a duration up to 10m, such as 5s".to_owned())
}

// === impl Bench ===

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let rows = runtime.block_on(self.measure())?;
        let text = match self.output.format.structured(&rows)? {
            Some(text) => text,
            None => table(&rows, self.output.format == Format::Wide),
        };
        print(&text);
        let has_failed = rows.iter().any(|row| row.failed > 0);
        Ok(if has_failed { Outcome::Trouble } else { Outcome::Fine })
    }

    async fn measure(&self) -> anyhow::Result<Vec<Row>> {
        let sizes = load::Sizes {
            clients: self.clients,
            keys: self.keys,
            value_bytes: self.value_bytes,
            time: self.time,
        };
        let prefix = format!("{PREFIX}{}/", std::process::id());
        let load = Load::connect(&self.target, prefix.clone(), sizes)?;
        eprintln!("writing below {prefix}, which is deleted at the end");
        let mut signals = Signals::new()?;
        let measured = tokio::select! {
            rows = self.rows(&load) => rows,
            _ = signals.next() => Err(anyhow::anyhow!("interrupted")),
        };
        match measured {
            // Where nobody answered, nothing was written.
            Err(error) if error.is::<Unreachable>() => Err(error),
            measured => {
                load.delete().await?;
                measured
            }
        }
    }

    async fn rows(&self, load: &Load) -> anyhow::Result<Vec<Row>> {
        load.fill(&self.target).await?;
        let mut rows = Vec::new();
        for what in &self.what {
            eprintln!("{what:?} for {:?}", self.time);
            let measured = match what {
                What::Put => load.puts().await,
                What::Get => load.gets().await,
                What::Range => load.ranges().await,
                What::Watch => load.watched().await?,
            };
            rows.push(Row::of(*what, measured));
        }
        Ok(rows)
    }
}

// === impl Row ===

impl Row {
    fn of(what: What, mut measured: Measured) -> Self {
        measured.took.sort_unstable();
        let took = &measured.took;
        let part = |share: f64| {
            let at = (took.len() as f64 * share) as usize;
            took.get(at.min(took.len().saturating_sub(1))).map_or(0.0, Duration::as_secs_f64)
        };
        Self {
            what,
            requests: took.len(),
            failed: measured.failed,
            per_s: took.len() as f64 / measured.lasted.as_secs_f64().max(f64::MIN_POSITIVE),
            p50_s: part(0.5),
            p90_s: part(0.9),
            p99_s: part(0.99),
            max_s: part(1.0),
            last_error: measured.last_error,
        }
    }
}

fn table(rows: &[Row], is_wide: bool) -> String {
    let mut head = vec!["what", "per s", "p50", "p90", "p99", "max", "failed"];
    if is_wide {
        head.push("requests");
    }
    let mut table = Table::with_head(&[&head[..], &["last error"]].concat());
    for row in rows {
        table.row();
        table.cell(format!("{:?}", row.what).to_lowercase(), None);
        table.number(Some(output::rate(row.per_s)));
        for time in [row.p50_s, row.p90_s, row.p99_s, row.max_s] {
            table.number(Some(output::seconds(time)));
        }
        table.number(Some(row.failed.to_string()));
        if is_wide {
            table.number(Some(row.requests.to_string()));
        }
        table.cell(row.last_error.clone().unwrap_or_default(), None);
    }
    table.printed()
}

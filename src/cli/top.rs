//! `pleach top`: the routes of a tree or the kinds of keys of a node, the busiest first.

mod prefixes;

use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::prefixes::Counted;
use super::{
    Outcome,
    client::Target,
    output::{self, Colour, Format, Output, Table, is_watched_by_a_person, print, print_picture},
    walk::{self, Place},
};
use crate::proto::tree as pb;

/// How often it is asked again.
const EVERY: Duration = Duration::from_secs(2);

/// Once in so many times the keys are counted.
const COUNT_EVERY: usize = 30;

const EXAMPLES: &str = "\
Examples:
  pleach top                                    the routes of the node on this machine, and below it
  pleach top http://root:2379 --sort keys       those with the most keys first
  pleach top --prefixes                         the kinds of keys: /registry/pods/, /registry/leases/, …
  pleach top --once -o json | jq '.[0]'         the busiest

On a terminal it goes on until it is interrupted; into a file or a pipe it prints once.
Exit codes: 0 printed, 2 no node answers. Fields of -o json: docs/src/commands.md.";

/// Prints the routes of a tree, the busiest first: reads, writes, errors, time, keys, bytes; or the kinds of keys of a
/// node.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Top {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
    /// Print once, also on a terminal.
    #[arg(long)]
    once: bool,
    /// What comes first.
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// The kinds of keys of the node that is asked, instead of routes: how often each is read and written, how many
    /// keys it has, and about how many bytes.
    #[arg(long)]
    prefixes: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// What is read and written most often.
    #[default]
    Rate,
    /// What fails most often.
    Errors,
    /// What takes longest.
    Time,
    /// What has the most keys.
    Keys,
    /// What is the largest.
    Bytes,
}

/// A route of one of the nodes. What is not known is left out.
#[derive(Debug, Serialize)]
struct Row {
    route: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    rule: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reads_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    writes_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_p99_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_p99_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    trouble: String,
}

// === impl Top ===

impl Top {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        if self.prefixes && matches!(self.sort, Sort::Errors | Sort::Time) {
            bail!(
                "--prefixes can be sorted by rate, keys or bytes: errors and times are counted by route"
            );
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let is_live = is_watched_by_a_person() && !self.once;
        runtime.block_on(async {
            let mut counted = Counted::default();
            // The first answer tells whether the address is right; later it may come back.
            let mut picture = self.picture(0, &mut counted).await?;
            if !is_live {
                print(&picture);
                return Ok(Outcome::Fine);
            }
            print("\x1b[2J");
            for at in 1.. {
                if !print_picture(&picture) {
                    break;
                }
                tokio::time::sleep(EVERY).await;
                let next = self.picture(at, &mut counted).await;
                picture = next.unwrap_or_else(|away| format!("{away:#}\n"));
            }
            Ok(Outcome::Fine)
        })
    }

    /// The picture of a moment. Keys are counted now and then: that costs the node something.
    async fn picture(&self, at: usize, counted: &mut Counted) -> anyhow::Result<String> {
        if !self.prefixes {
            return self.printed(&self.target.describe().await?);
        }
        let is_counted = at.is_multiple_of(COUNT_EVERY);
        let mut kinds = prefixes::ask(&self.target, is_counted, counted).await?;
        let weight = |row: &prefixes::Row| row.weight(self.sort).unwrap_or(-1.0);
        kinds.rows.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        Ok(match self.output.format.structured(&kinds.rows)? {
            Some(text) => text,
            None => prefixes::table(&kinds),
        })
    }

    fn printed(&self, node: &pb::Node) -> anyhow::Result<String> {
        let places = walk::nodes(node);
        let mut rows: Vec<Row> = places.iter().flat_map(rows_of).collect();
        rows.sort_by(|a, b| self.sort.of(b).total_cmp(&self.sort.of(a)));
        Ok(match self.output.format.structured(&rows)? {
            Some(text) => text,
            None => table(&rows, self.output.format == Format::Wide),
        })
    }
}

// === impl Sort ===

impl Sort {
    /// What a row weighs; what is not known is last.
    fn of(self, row: &Row) -> f64 {
        let sum = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (None, None) => None,
            _ => Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)),
        };
        let weight = match self {
            Self::Rate => sum(row.reads_per_s, row.writes_per_s),
            Self::Errors => row.errors_per_s,
            Self::Time => [row.read_p99_s, row.write_p99_s].into_iter().flatten().reduce(f64::max),
            Self::Keys => row.keys.map(|keys| keys as f64),
            Self::Bytes => row.bytes.map(|bytes| bytes as f64),
        };
        weight.unwrap_or(-1.0)
    }
}

fn rows_of(place: &Place<'_>) -> Vec<Row> {
    place.node.routes.iter().map(|route| row(place, route)).collect()
}

fn row(place: &Place<'_>, route: &pb::Route) -> Row {
    let (reads, writes) = (route.reads.as_ref(), route.writes.as_ref());
    let slowest = |it: Option<&pb::Activity>| {
        it.filter(|it| it.recent > 0).map(|it| it.recent_p99_s).filter(|time| *time > 0.0)
    };
    let failed = [reads, writes].map(|it| walk::rate(it, |it| it.recent_failed));
    Row {
        route: place.of(route),
        rule: route.rule.clone(),
        kind: route.kind.clone(),
        reads_per_s: walk::rate(reads, |it| it.recent),
        writes_per_s: walk::rate(writes, |it| it.recent),
        errors_per_s: failed.into_iter().flatten().reduce(|a, b| a + b),
        read_p99_s: slowest(reads),
        write_p99_s: slowest(writes),
        keys: route.keys,
        bytes: (route.bytes > 0).then_some(route.bytes),
        trouble: route.trouble.clone(),
    }
}

fn table(rows: &[Row], is_wide: bool) -> String {
    let mut head =
        vec!["route", "reads/s", "writes/s", "errors/s", "read p99", "write p99", "keys", "bytes"];
    if is_wide {
        head.extend(["kind", "rule"]);
    }
    let mut table = Table::with_head(&[&head[..], &["trouble"]].concat());
    for row in rows {
        table.row();
        table.cell(row.route.clone(), None);
        for per_s in [row.reads_per_s, row.writes_per_s, row.errors_per_s] {
            table.number(per_s.map(output::rate));
        }
        for time in [row.read_p99_s, row.write_p99_s] {
            table.number(time.map(output::seconds));
        }
        table.number(row.keys.map(|keys| keys.to_string()));
        table.number(row.bytes.map(output::bytes));
        if is_wide {
            table.cell(row.kind.clone(), None);
            table.cell(row.rule.clone(), None);
        }
        table.cell(row.trouble.clone(), Some(Colour::Bad));
    }
    table.printed()
}

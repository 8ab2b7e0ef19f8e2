//! The kinds of keys of a node: which are asked for most often, and which are many or large.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Serialize;

use super::Sort;
use crate::{
    cli::{
        client::Target,
        output::{self, Table},
    },
    proto::tree as pb,
};

/// A kind of keys. What is not known is left out.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// The prefix of its keys; empty for all that have none as API servers write them.
    prefix: String,
    /// Pages and counts that stores were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    reads_per_s: Option<f64>,
    /// Puts and deletions.
    #[serde(skip_serializing_if = "Option::is_none")]
    writes_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<u64>,
    /// By the sizes of some of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_about: Option<u64>,
}

/// What was counted when it was asked for last.
#[derive(Debug, Default)]
pub(super) struct Counted {
    counts: Vec<pb::PrefixCount>,
    is_cut_short: bool,
}

/// What a picture is made of.
#[derive(Debug)]
pub(super) struct Kinds {
    pub(super) rows: Vec<Row>,
    pub(super) is_cut_short: bool,
}

/// The kinds of keys of the node, counted anew where that is asked for.
///
/// # Errors
/// Where no node answers, or the node is of a version that does not tell.
pub(super) async fn ask(
    target: &Target,
    counts: bool,
    counted: &mut Counted,
) -> anyhow::Result<Kinds> {
    let told = target.prefixes(counts).await?;
    let pb::PrefixesResponse { rates: told, counts: fresh, is_cut_short } =
        told.ok_or_else(|| anyhow::anyhow!("the node is of a version that tells no prefixes"))?;
    if counts {
        *counted = Counted { counts: fresh, is_cut_short };
    }
    let mut rates: BTreeMap<&Bytes, (f64, f64)> = BTreeMap::new();
    for rate in &told {
        let sum = rates.entry(&rate.prefix).or_default();
        *sum = (sum.0 + rate.reads_per_s, sum.1 + rate.writes_per_s);
    }
    let by_prefix: BTreeMap<_, _> = counted.counts.iter().map(|it| (&it.prefix, it)).collect();
    let prefixes: BTreeSet<&Bytes> = by_prefix.keys().chain(rates.keys()).copied().collect();
    let row = |prefix: &Bytes| {
        let rate = rates.get(prefix).copied().unwrap_or_default();
        let count = by_prefix.get(prefix);
        Row {
            prefix: printable(prefix),
            reads_per_s: Some(rate.0),
            writes_per_s: Some(rate.1),
            keys: count.map(|count| count.keys),
            bytes_about: count.and_then(|count| count.bytes_about),
        }
    };
    let is_any = |row: &Row| row.keys != Some(0) || !row.prefix.is_empty();
    let rows = prefixes.into_iter().map(row).filter(is_any).collect();
    Ok(Kinds { rows, is_cut_short: counted.is_cut_short })
}

pub(super) fn table(kinds: &Kinds) -> String {
    let mut table = Table::with_head(&["prefix", "reads/s", "writes/s", "keys", "bytes about"]);
    for row in &kinds.rows {
        table.row();
        let prefix = if row.prefix.is_empty() { "(all others)" } else { &row.prefix };
        table.cell(prefix.to_owned(), None);
        table.number(row.reads_per_s.map(output::rate));
        table.number(row.writes_per_s.map(output::rate));
        table.number(row.keys.map(|keys| keys.to_string()));
        table.number(row.bytes_about.map(output::bytes));
    }
    let mut text = table.printed();
    if kinds.is_cut_short {
        text += "not all kinds were counted: they are among the others\n";
    }
    text
}

/// Keys are anybody's bytes.
fn printable(prefix: &[u8]) -> String {
    String::from_utf8_lossy(prefix).replace(char::is_control, "\u{fffd}")
}

// === impl Row ===

impl Row {
    /// What it weighs in an order; `None` where that is not known.
    pub(super) fn weight(&self, sort: Sort) -> Option<f64> {
        match sort {
            Sort::Rate => Some(self.reads_per_s? + self.writes_per_s?),
            Sort::Keys => self.keys.map(|keys| keys as f64),
            Sort::Bytes => self.bytes_about.map(|bytes| bytes as f64),
            Sort::Errors | Sort::Time => None,
        }
    }
}

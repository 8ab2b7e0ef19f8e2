//! The kinds of keys of a node: which are asked for most often, and which are many or large.
//!
//! How often is what the node counted of late. How many keys there are is asked for as any client would: a key of
//! each kind, the next one behind it, and a count.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    time::Duration,
};

use anyhow::bail;
use bytes::Bytes;
use serde::Serialize;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::Sort;
use crate::{
    cli::{
        client::Target,
        output::{self, Table},
    },
    model::{
        KeyRange,
        key::{kind_prefix, successor},
    },
    net::{connect::connect, status},
    proto::etcdserverpb::{self as pb, kv_client::KvClient},
    wire,
};

/// So many kinds, and keys without one, are looked at.
const STEPS_MAX: usize = 1_000;

/// The keys of a kind whose sizes are taken for those of all.
const SAMPLE_KEYS: i64 = 50;

/// Of one request.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

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

/// The keys of each kind, by their prefix.
pub(super) type Counted = BTreeMap<Bytes, Count>;

/// How many keys there are, and about how many bytes they take, where that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    keys: u64,
    bytes_about: Option<u64>,
}

/// The node that is asked.
struct Node<'t> {
    target: &'t Target,
    kv: KvClient<Channel>,
}

/// Counts the keys of each kind, one kind behind the other.
///
/// # Errors
/// Where no node answers, or the node refuses.
pub(super) async fn count(target: &Target) -> anyhow::Result<Counted> {
    let mut node = Node { target, kv: KvClient::new(connect(&target.endpoint()?)) };
    let all = KeyRange { start: Bytes::from_static(&[0]), end: None };
    let (mut counted, mut rest) = (Counted::new(), all.clone());
    // Keys without a kind are passed over one by one; where there are many, the rest is counted with them.
    for _ in 0..STEPS_MAX {
        let Some(first) = node.keys(&rest, 1).await?.kvs.pop() else { break };
        let Some(prefix) = kind_prefix(&KeyRange::single(first.key.clone())) else {
            rest.start = successor(&first.key);
            continue;
        };
        let kind = KeyRange::prefix(prefix.clone());
        rest.start = kind.end.clone().unwrap_or_default();
        let some = node.values(&kind, SAMPLE_KEYS).await?;
        let bytes: usize = some.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        let each = bytes as f64 / some.kvs.len().max(1) as f64;
        let keys = u64::try_from(some.count).unwrap_or(0);
        counted.insert(prefix, Count { keys, bytes_about: Some((each * keys as f64) as u64) });
    }
    let known: u64 = counted.values().map(|count| count.keys).sum();
    let keys = u64::try_from(node.keys(&all, 1).await?.count).unwrap_or(0).saturating_sub(known);
    if keys > 0 {
        counted.insert(Bytes::new(), Count { keys, bytes_about: None });
    }
    Ok(counted)
}

/// The rows of what was counted and of what is asked for.
///
/// # Errors
/// As [`count`].
pub(super) async fn rows(target: &Target, counted: &Counted) -> anyhow::Result<Vec<Row>> {
    let mut rates: BTreeMap<Bytes, (f64, f64)> = BTreeMap::new();
    let told = target.prefixes().await?;
    for rate in told.iter().flatten() {
        let sum = rates.entry(rate.prefix.clone()).or_default();
        *sum = (sum.0 + rate.reads_per_s, sum.1 + rate.writes_per_s);
    }
    let is_told = told.is_some();
    let prefixes: BTreeSet<&Bytes> = counted.keys().chain(rates.keys()).collect();
    let row = |prefix: &Bytes| {
        let (rate, count) = (rates.get(prefix).copied().unwrap_or_default(), counted.get(prefix));
        Row {
            prefix: printable(prefix),
            reads_per_s: is_told.then_some(rate.0),
            writes_per_s: is_told.then_some(rate.1),
            keys: count.map(|count| count.keys),
            bytes_about: count.and_then(|count| count.bytes_about),
        }
    };
    Ok(prefixes.into_iter().map(row).collect())
}

pub(super) fn table(rows: &[Row]) -> String {
    let mut table = Table::with_head(&["prefix", "reads/s", "writes/s", "keys", "bytes about"]);
    for row in rows {
        table.row();
        let prefix = if row.prefix.is_empty() { "(all others)" } else { &row.prefix };
        table.cell(prefix.to_owned(), None);
        table.number(row.reads_per_s.map(output::rate));
        table.number(row.writes_per_s.map(output::rate));
        table.number(row.keys.map(|keys| keys.to_string()));
        table.number(row.bytes_about.map(output::bytes));
    }
    table.printed()
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

// === impl Node ===

impl Node<'_> {
    async fn keys(&mut self, range: &KeyRange, limit: i64) -> anyhow::Result<pb::RangeResponse> {
        self.range(range, pb::RangeRequest { limit, keys_only: true, ..Default::default() }).await
    }

    async fn values(&mut self, range: &KeyRange, limit: i64) -> anyhow::Result<pb::RangeResponse> {
        self.range(range, pb::RangeRequest { limit, ..Default::default() }).await
    }

    async fn range(
        &mut self,
        range: &KeyRange,
        request: pb::RangeRequest,
    ) -> anyhow::Result<pb::RangeResponse> {
        let (key, range_end) = wire::range_to(range);
        let request = pb::RangeRequest { key, range_end, ..request };
        match timeout(ANSWER_WITHIN, self.kv.range(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // The connection failed; else it is an answer.
            Ok(Err(status)) if status.source().is_some() => {
                Err(self.target.explain(&status).await.into())
            }
            Ok(Err(status)) => bail!("the node refuses: {}", status::said(&status)),
            Err(_) => bail!("the keys were not counted within {} s", ANSWER_WITHIN.as_secs()),
        }
    }
}

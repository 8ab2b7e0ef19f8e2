//! `pleach explain`: which route a key takes, and why; or what a read costs the stores of a node that runs.

use std::path::{Path, PathBuf};

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use super::{
    client::{self, Security},
    output::{self, Output, Table, print},
    read_topology,
};
use crate::{
    model::KeyRange,
    proto::tree as pb,
    route::rule::Reach,
    topology::{Backend, DEFAULT_NAME, Topology},
    wire,
};

const EXAMPLES: &str = "\
Examples:
  pleach explain /registry/pods/default/web --topology topology.yaml
  pleach explain /registry/pods/ --topology topology.yaml        which stores hold keys of a prefix
  pleach explain /registry/pods/ --node http://127.0.0.1:2379    what a list of them costs each store
  pleach explain /registry/pods/ --node 127.0.0.1:2379 -l app=web --limit 500

Exit codes: 0 explained, 1 the topology can't be used or the node refuses, 2 no node answers. Fields of -o json:
docs/src/commands.md.";

/// Says which route a key, or the keys of a prefix, take, and why; that opens no store. With --node, reads them
/// there, and says what that cost each store.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Explain {
    /// A key, or, where it ends with a slash, a prefix.
    key: String,
    /// The topology file.
    #[arg(long, env = "TOPOLOGY_CONFIG")]
    topology: Option<PathBuf>,
    /// A node that runs: http(s)://HOST:PORT.
    #[arg(long, value_name = "URL")]
    node: Option<String>,
    #[command(flatten)]
    security: Security,
    /// Read only what this label selector matches.
    #[arg(short = 'l', long, value_name = "SELECTOR", requires = "node", default_value = "")]
    label_selector: String,
    /// Read only what this field selector matches.
    #[arg(long, value_name = "SELECTOR", requires = "node", default_value = "")]
    field_selector: String,
    /// The most keys to read; 0 for all.
    #[arg(long, requires = "node", default_value_t)]
    limit: u64,
    /// Read as of this revision; 0 for the present.
    #[arg(long, requires = "node", default_value_t)]
    revision: i64,
    #[command(flatten)]
    output: Output,
}

/// What a read cost.
#[derive(Debug, Serialize)]
struct Cost {
    revision: i64,
    keys: u64,
    took_s: f64,
    stores: Vec<StoreCost>,
}

/// What it cost one store.
#[derive(Debug, Serialize)]
struct StoreCost {
    store: String,
    pages: u64,
    /// Left out, as `rows_read`, where another node has it, or is of a version that does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_by_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_read: Option<u64>,
    rows_returned: u64,
    took_s: f64,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match (&self.node, &self.topology) {
            (Some(url), _) => self.explain_cost(url),
            (None, Some(path)) => self.explain_routes(path),
            (None, None) => bail!(
                "give --topology FILE to see which route the key takes, or --node URL to see what reading it costs"
            ),
        }
    }

    fn range(&self) -> KeyRange {
        let key = Bytes::copy_from_slice(self.key.as_bytes());
        if self.key.ends_with('/') { KeyRange::prefix(key) } else { KeyRange::single(key) }
    }

    fn explain_cost(&self, url: &str) -> anyhow::Result<()> {
        let (key, range_end) = wire::range_to(&self.range());
        let read = pb::ExplainRequest {
            key,
            range_end,
            revision: self.revision,
            limit: self.limit,
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cost = Cost::from(runtime.block_on(client::explain(url, &self.security, read))?);
        let text = match self.output.format.structured(&cost)? {
            Some(text) => text,
            None => cost.table(),
        };
        print(&text);
        Ok(())
    }

    fn explain_routes(&self, path: &Path) -> anyhow::Result<()> {
        let topology = read_topology(path)?;
        match self.key.strip_suffix('/') {
            Some(_) => self.explain_prefix(&topology),
            None => self.explain_key(&topology),
        }
        Ok(())
    }

    fn explain_key(&self, topology: &Topology) {
        let key = self.key.as_bytes();
        for backend in &topology.backends {
            if backend.rule.matches(key) {
                println!("{}: {} -> {}", backend.name, backend.rule, backend.endpoint);
                return;
            }
            println!("  not {}: {}", backend.name, backend.rule);
        }
        println!("{DEFAULT_NAME}: no route matches");
    }

    fn explain_prefix(&self, topology: &Topology) {
        let range = self.range();
        for backend in &topology.backends {
            let Backend { name, rule, endpoint, .. } = backend;
            match rule.reach(&range) {
                Reach::None => println!("  not {name}: {rule}"),
                Reach::Part => println!("{name}: some keys, by {rule} -> {endpoint}"),
                Reach::Whole => {
                    println!("{name}: all that is left, by {rule} -> {endpoint}");
                    return;
                }
            }
        }
        println!("{DEFAULT_NAME}: the rest");
    }
}

// === impl Cost ===

impl Cost {
    fn table(&self) -> String {
        let head = ["store", "pages", "by index", "rows read", "rows returned", "took"];
        let mut table = Table::with_head(&head);
        for store in &self.stores {
            table.row();
            table.cell(store.store.clone(), None);
            table.number(Some(store.pages.to_string()));
            table.number(store.pages_by_index.map(|pages| pages.to_string()));
            table.number(store.rows_read.map(|rows| rows.to_string()));
            table.number(Some(store.rows_returned.to_string()));
            table.number(Some(output::seconds(store.took_s)));
        }
        let Self { revision, keys, took_s, .. } = self;
        let took = output::seconds(*took_s);
        let keys = if *keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") };
        format!("{keys} at revision {revision} in {took}\n{}", table.printed())
    }
}

impl From<pb::ExplainResponse> for Cost {
    fn from(answer: pb::ExplainResponse) -> Self {
        let pb::ExplainResponse { revision, keys, seconds, stores } = answer;
        let has_below = |path: &str| {
            let below = format!("{path}/");
            stores.iter().any(|store| store.path.starts_with(&below))
        };
        let of_store = |store: &pb::StoreRead| {
            let is_silent = store.rows_read == 0 && store.rows_returned > 0;
            let is_known = !is_silent && !has_below(&store.path);
            StoreCost {
                store: store.path.clone(),
                pages: store.pages,
                pages_by_index: is_known.then_some(store.pages_by_index),
                rows_read: is_known.then_some(store.rows_read),
                rows_returned: store.rows_returned,
                took_s: store.seconds,
            }
        };
        Self { revision, keys, took_s: seconds, stores: stores.iter().map(of_store).collect() }
    }
}

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
    route::rule::{self, Reach},
    topology::{DEFAULT_NAME, Topology},
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

/// Which routes take a key, or the keys of a prefix.
#[derive(Debug, Serialize)]
struct Routes {
    key: String,
    routes: Vec<RouteReach>,
}

/// How much of them a route takes.
#[derive(Debug, Serialize)]
struct RouteReach {
    route: String,
    /// Left out of the default store, which takes what no rule does.
    #[serde(skip_serializing_if = "String::is_empty")]
    rule: String,
    reach: &'static str,
    /// Where it leads; a node that is asked does not tell.
    #[serde(skip_serializing_if = "String::is_empty")]
    place: String,
}

/// What a read cost.
#[derive(Debug, Serialize)]
struct Cost {
    #[serde(flatten)]
    routes: Routes,
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
        let answer = runtime.block_on(client::explain(url, &self.security, read))?;
        let cost = Cost::new(self.key.clone(), answer);
        let text = match self.output.format.structured(&cost)? {
            Some(text) => text,
            None => cost.routes.lines() + &cost.table(),
        };
        print(&text);
        Ok(())
    }

    fn explain_routes(&self, path: &Path) -> anyhow::Result<()> {
        let routes = Routes::of(&self.key, &self.range(), &read_topology(path)?);
        let text = match self.output.format.structured(&routes)? {
            Some(text) => text,
            None => routes.lines(),
        };
        print(&text);
        Ok(())
    }
}

// === impl Routes ===

impl Routes {
    fn of(key: &str, range: &KeyRange, topology: &Topology) -> Self {
        let Topology { backends, default, .. } = topology;
        let reaches = rule::reaches(backends.iter().map(|backend| &backend.rule), range);
        let mut routes: Vec<_> = backends
            .iter()
            .zip(&reaches)
            .map(|(backend, reach)| RouteReach {
                route: backend.name.clone(),
                rule: backend.rule.to_string(),
                reach: word(*reach),
                place: backend.endpoint.to_string(),
            })
            .collect();
        if reaches.last() != Some(&Reach::Whole) {
            let takes_all = reaches.iter().all(|reach| *reach == Reach::None);
            routes.push(RouteReach {
                route: DEFAULT_NAME.to_owned(),
                rule: String::new(),
                reach: word(if takes_all { Reach::Whole } else { Reach::Part }),
                place: default.as_ref().map(ToString::to_string).unwrap_or_default(),
            });
        }
        Self { key: key.to_owned(), routes }
    }

    /// A line for each route: which keys, and where.
    fn lines(&self) -> String {
        let is_prefix = self.key.ends_with('/');
        let line = |it: &RouteReach| {
            let RouteReach { route, rule, reach, place } = it;
            let keys = match (*reach, rule.as_str()) {
                ("none", rule) => return format!("  not {route}: {rule}\n"),
                (_, "") if is_prefix => "the rest".to_owned(),
                (_, "") => "no route matches".to_owned(),
                (_, rule) if !is_prefix => rule.to_owned(),
                ("part", rule) => format!("some keys, by {rule}"),
                (_, rule) => format!("all that is left, by {rule}"),
            };
            match place.as_str() {
                "" => format!("{route}: {keys}\n"),
                place => format!("{route}: {keys} -> {place}\n"),
            }
        };
        self.routes.iter().map(line).collect()
    }
}

fn word(reach: Reach) -> &'static str {
    match reach {
        Reach::None => "none",
        Reach::Part => "part",
        Reach::Whole => "whole",
    }
}

// === impl Cost ===

impl Cost {
    fn new(key: String, answer: pb::ExplainResponse) -> Self {
        let pb::ExplainResponse { revision, keys, seconds, stores, routes } = answer;
        let of_route = |it: pb::RouteReach| RouteReach {
            reach: match it.reach() {
                pb::Reach::None => "none",
                pb::Reach::Part => "part",
                pb::Reach::Whole => "whole",
            },
            route: it.name,
            rule: it.rule,
            place: String::new(),
        };
        let routes = Routes { key, routes: routes.into_iter().map(of_route).collect() };
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
        let stores = stores.iter().map(of_store).collect();
        Self { routes, revision, keys, took_s: seconds, stores }
    }

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

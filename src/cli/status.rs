//! `pleach status`: a line for each node, and an exit code for scripts.

use clap::Args;
use futures::future::join_all;
use serde::Serialize;

use super::{
    Outcome,
    client::{self, Security, Unreachable},
    output::{self, Colour, Format, Output, Table, print},
    walk::{self, Place},
};
use crate::proto::tree as pb;

const EXAMPLES: &str = "\
Examples:
  pleach status                                 the node on this machine, and those below it
  pleach status http://a:2379 http://b:2379     these nodes, and those below them
  pleach status -o json
  until pleach status; do sleep 1; done         wait until all is well

Exit codes: 0 all is well, 1 something is in trouble, 2 a node does not answer.";

/// Prints a line for each node: whether all is well, and what is not.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Status {
    /// Where the nodes serve their clients: http(s)://HOST:PORT each.
    #[arg(env = "PLEACH_URL", default_value = "http://127.0.0.1:2379")]
    urls: Vec<String>,
    #[command(flatten)]
    security: Security,
    #[command(flatten)]
    output: Output,
}

/// What is said of a node.
#[derive(Debug, Serialize)]
struct Line {
    node: String,
    /// `ok`, `trouble` or `unreachable`.
    state: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    troubles: Vec<String>,
    #[serde(flatten)]
    known: Option<Known>,
}

/// What is known of a node that answers.
#[derive(Debug, Serialize)]
struct Known {
    version: String,
    revision: i64,
    routes: usize,
    routes_ok: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watchers: Option<u64>,
}

// === impl Status ===

impl Status {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = self.urls.iter().map(|url| client::describe(url, &self.security));
        let answers = runtime.block_on(join_all(asked));
        let lines: Vec<Line> = answers.iter().flat_map(lines_of).collect();
        let text = match self.output.format.structured(&lines)? {
            Some(text) => text,
            None => table(&lines, self.output.format == Format::Wide),
        };
        print(&text);
        let has = |state| lines.iter().any(|line| line.state == state);
        Ok(match (has("unreachable"), has("trouble")) {
            (true, _) => Outcome::Unreachable,
            (false, true) => Outcome::Trouble,
            (false, false) => Outcome::Fine,
        })
    }
}

fn lines_of(answer: &Result<pb::Node, Unreachable>) -> Vec<Line> {
    match answer {
        Ok(node) => walk::nodes(node).iter().map(line).collect(),
        Err(away) => {
            let (node, troubles) = (away.url().to_owned(), vec![away.reason()]);
            vec![Line { node, state: "unreachable", troubles, known: None }]
        }
    }
}

fn line(place: &Place<'_>) -> Line {
    let node = place.node;
    let troubles = troubles(node);
    let is_away = |route: &&pb::Route| route.trouble.is_empty();
    let is_measured = node.uptime_s > 0.0;
    Line {
        node: place.path.clone(),
        state: if troubles.is_empty() { "ok" } else { "trouble" },
        troubles,
        known: Some(Known {
            version: node.version.clone(),
            revision: node.revision,
            routes: node.routes.len(),
            routes_ok: node.routes.iter().filter(is_away).count(),
            uptime_s: is_measured.then_some(node.uptime_s),
            requests_per_s: walk::rate(node.requests.as_ref(), |it| it.recent),
            memory_bytes: is_measured.then_some(node.memory_bytes),
            watchers: is_measured.then_some(node.watchers + node.watchers_behind),
        }),
    }
}

/// What makes a node's clients wait or fail.
fn troubles(node: &pb::Node) -> Vec<String> {
    let in_loop =
        (!node.r#loop.is_empty()).then(|| format!("the routes form a loop: {}", node.r#loop));
    let alarms = node.alarms.iter().map(|alarm| format!("alarm {alarm}"));
    let stores = node.routes.iter().filter_map(|route| match route.trouble.as_str() {
        "" if route.is_full => Some(format!("{}: the store is full", route.name)),
        "" => None,
        trouble => Some(format!("{}: {trouble}", route.name)),
    });
    in_loop.into_iter().chain(alarms).chain(stores).collect()
}

fn table(lines: &[Line], is_wide: bool) -> String {
    let mut head = vec!["node", "state", "version", "revision", "routes", "uptime", "requests/s"];
    if is_wide {
        head.extend(["memory", "watchers"]);
    }
    let mut table = Table::with_head(&[&head[..], &["trouble"]].concat());
    for line in lines {
        let colour = if line.state == "ok" { Colour::Good } else { Colour::Bad };
        let known = line.known.as_ref();
        table.row();
        table.cell(line.node.clone(), None);
        table.cell(line.state, Some(colour));
        table.cell(known.map_or_else(|| "-".to_owned(), |it| it.version.clone()), None);
        table.number(known.map(|it| it.revision.to_string()));
        table.number(known.map(|it| format!("{}/{}", it.routes_ok, it.routes)));
        table.number(known.and_then(|it| it.uptime_s).map(output::seconds));
        table.number(known.and_then(|it| it.requests_per_s).map(output::rate));
        if is_wide {
            table.number(known.and_then(|it| it.memory_bytes).map(output::bytes));
            table.number(known.and_then(|it| it.watchers).map(|it| it.to_string()));
        }
        table.cell(line.troubles.join("; "), None);
    }
    table.printed()
}

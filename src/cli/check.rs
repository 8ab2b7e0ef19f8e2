//! `pleach check`: every mistake of a topology file at once.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{
    Outcome,
    output::{Format, Output, print},
    parse_topology, read_topology,
};
use crate::topology::{DEFAULT_NAME, Mistake, Mistakes, Topology};

const EXAMPLES: &str = "\
Examples:
  pleach check topology.yaml                    the routes, or every mistake with its place
  pleach check topology.yaml && systemctl restart pleach
  pleach check topology.yaml -o json | jq -r '.routes[].place'

Exit codes: 0 it can be used (warnings are printed), 1 it can't. Fields of -o json: docs/src/commands.md.";

/// What a topology says.
#[derive(Debug, Default, Serialize)]
struct Checked {
    routes: Vec<CheckedRoute>,
    warnings: Vec<Told>,
    /// Why it can't be used; then there are no routes.
    mistakes: Vec<Told>,
}

/// A mistake or a doubt, and where in the file.
#[derive(Debug, Serialize)]
struct Told {
    line: usize,
    column: usize,
    message: String,
}

/// A route, or last the default store.
#[derive(Debug, Serialize)]
struct CheckedRoute {
    route: String,
    /// Left out of the default store, which takes what no rule does.
    #[serde(skip_serializing_if = "String::is_empty")]
    rule: String,
    /// Left out of a default store that the topology does not name.
    #[serde(skip_serializing_if = "String::is_empty")]
    place: String,
}

/// Reads a topology file and reports every mistake in it.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    /// The file.
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

// === impl Check ===

impl Check {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        if !matches!(self.output.format, Format::Json | Format::Yaml) {
            let topology = read_topology(&self.file)?;
            if !topology.warnings.is_empty() {
                eprintln!("{}", topology.warnings);
            }
            print(&Checked::of(&topology).lines());
            return Ok(Outcome::Fine);
        }
        let checked = match parse_topology(&self.file)? {
            Ok(topology) => Checked::of(&topology),
            Err(mistakes) => Checked { mistakes: told(&mistakes), ..Checked::default() },
        };
        print(&self.output.format.structured(&checked)?.unwrap_or_default());
        Ok(if checked.mistakes.is_empty() { Outcome::Fine } else { Outcome::Trouble })
    }
}

fn told(mistakes: &Mistakes) -> Vec<Told> {
    let told = |it: &Mistake| Told { line: it.line, column: it.column, message: it.to_string() };
    mistakes.iter().map(told).collect()
}

// === impl Checked ===

impl Checked {
    fn of(topology: &Topology) -> Self {
        let routes = topology.backends.iter().map(|backend| CheckedRoute {
            route: backend.name.clone(),
            rule: backend.rule.to_string(),
            place: backend.endpoint.to_string(),
        });
        let default = CheckedRoute {
            route: DEFAULT_NAME.to_owned(),
            rule: String::new(),
            place: topology.default.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let (routes, warnings) = (routes.chain([default]).collect(), told(&topology.warnings));
        Self { routes, warnings, mistakes: Vec::new() }
    }

    fn lines(&self) -> String {
        let line = |it: &CheckedRoute| {
            let rule = if it.rule.is_empty() { "the rest" } else { &it.rule };
            let place = match it.place.as_str() {
                "" => "--endpoint, or SQLite in --data-dir",
                place => place,
            };
            format!("{}: {rule} -> {place}\n", it.route)
        };
        self.routes.iter().map(line).collect()
    }
}

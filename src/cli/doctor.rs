//! `pleach doctor`: looks at a tree that runs, and says what is wrong with it and what to do.
//!
//! It reads what the nodes tell of themselves, and changes nothing. [`examine`] is a function of that alone.

mod checks;
#[cfg(test)]
mod tests;

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use self::checks::{Asked, examine};
use super::{
    Outcome,
    client::Target,
    output::{Colour, Format, Output, print},
    walk,
};
use crate::server::unix_time;

const EXAMPLES: &str = "\
Examples:
  pleach doctor                                 the tree below the node on this machine
  pleach doctor https://root:2379 --ca-file ca.pem
  pleach doctor -o json | jq -r '.findings[] | select(.severity == \"error\") | .place'

It looks at stores that are away, full, slow or not durable, at pools of connections, errors of late, misrouted keys,
lanes, versions, clocks, alarms, quotas, certificates that end, watchers that are behind, connections and open files.
It asks the nodes only, and changes nothing. Alerts are those of deploy/prometheus.
Exit codes: 0 nothing is wrong, 1 warnings or errors, 2 no node answers. Fields of -o json: docs/src/commands.md.";

/// Looks at a tree that runs: what is wrong, what it means, and what to do.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Clients notice it, or will soon.
    Error,
    /// It is not as it should be.
    Warning,
    /// Worth to know.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    severity: Severity,
    /// The check that found it; stays the same from version to version.
    check: &'static str,
    /// The node or the route, as a way from the node that was asked.
    place: String,
    /// What is so.
    what: String,
    /// What it means for clients.
    meaning: &'static str,
    /// What to do.
    remedy: String,
    /// The alert of deploy/prometheus that fires where it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<&'static str>,
}

/// All that is said.
#[derive(Debug, Serialize)]
struct Report {
    nodes: usize,
    routes: usize,
    findings: Vec<Finding>,
}

// === impl Doctor ===

impl Doctor {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let begun = Instant::now();
        let node = runtime.block_on(self.target.describe())?;
        let asked = Asked { took: begun.elapsed(), unix_time: unix_time() };
        let nodes = walk::nodes(&node);
        let routes = nodes.iter().map(|place| place.node.routes.len()).sum();
        let report = Report { nodes: nodes.len(), routes, findings: examine(&node, &asked) };
        let text = match self.output.format.structured(&report)? {
            Some(text) => text,
            None => report.printed(self.output.format == Format::Wide),
        };
        print(&text);
        let is_sound = report.findings.iter().all(|it| it.severity == Severity::Note);
        Ok(if is_sound { Outcome::Fine } else { Outcome::Trouble })
    }
}

// === impl Report ===

impl Report {
    fn printed(&self, is_wide: bool) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let (word, colour) = match finding.severity {
                Severity::Error => ("error", Colour::Bad),
                Severity::Warning => ("warning", Colour::Doubtful),
                Severity::Note => ("note", Colour::Faint),
            };
            let check = if is_wide { format!(" [{}]", finding.check) } else { String::new() };
            let (place, what) = (&finding.place, &finding.what);
            text += &format!("{} {place}: {what}{check}\n", colour.paint(&format!("{word}:")));
            text += &format!("  means: {}\n  do:    {}\n", finding.meaning, finding.remedy);
            if let Some(alert) = finding.alert {
                text += &format!("  alert: {alert}, where it lasts\n");
            }
        }
        let count = |severity| self.findings.iter().filter(|it| it.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let looked_at =
            format!("{} and {}", counted(self.nodes, "node"), counted(self.routes, "route"));
        let verdict = match errors + warnings {
            0 => Colour::Good.paint("nothing is wrong"),
            _ => format!("{}, {}", counted(errors, "error"), counted(warnings, "warning")),
        };
        text += &format!("{looked_at}: {verdict}\n");
        text
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

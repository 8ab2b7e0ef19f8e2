//! The commands: `serve` (which is what no command means), `check`, `explain`, `tree`, `repair`.

mod check;
mod explain;
mod repair;
mod serve;
mod tree;

use std::path::Path;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

pub use self::{check::Check, explain::Explain, repair::Repair, serve::Serve, tree::Tree};

use crate::topology::Topology;

/// Reads a topology file.
fn read_topology(path: &Path) -> anyhow::Result<Topology> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).with_context(|| format!("can't read the topology {name}"))?;
    let topology = Topology::parse(&text, &name).map_err(|mistakes| anyhow::anyhow!("{mistakes}"));
    topology.with_context(|| format!("the topology {name} can't be used"))
}

/// A tree of routing proxies that speak etcd v3.
#[derive(Debug, Parser)]
#[command(name = "pleach", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node.
    Serve(Box<Serve>),
    /// Read a topology file and report every mistake in it.
    Check(Check),
    /// Say which route a key, or the keys of a prefix, take, and why.
    Explain(Explain),
    /// Print the nodes behind a node, as they are now.
    Tree(Tree),
    /// Mend what a node keeps, while it is stopped.
    Repair(Repair),
}

// === impl Cli ===

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What a person must act on; printed as it is.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::Serve(serve)) => serve.run(),
            Some(Command::Check(check)) => check.run(),
            Some(Command::Explain(explain)) => explain.run(),
            Some(Command::Tree(tree)) => tree.run(),
            Some(Command::Repair(repair)) => repair.run(),
            None => self.serve.run(),
        }
    }
}

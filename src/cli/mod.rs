//! The commands: `serve` (which is what no command means), `check`, `explain`,
//! `tree`.

mod build;
mod check;
mod explain;
mod serve;
mod tree;

use clap::{Parser, Subcommand};

pub use self::{check::Check, explain::Explain, serve::Serve, tree::Tree};

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
            None => self.serve.run(),
        }
    }
}

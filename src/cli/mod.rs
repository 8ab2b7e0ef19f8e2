//! The commands: `serve` (which is what no command means), and those that look, ask and mend.
//!
//! What a person typed is answered with what to type instead. What a command found is its exit code, for
//! scripts; docs/src/commands.md has both.

mod bench;
mod check;
mod client;
mod completion;
mod doctor;
mod explain;
mod foreign;
mod man;
mod output;
mod repair;
mod serve;
mod signals;
mod status;
mod top;
mod traces;
mod tree;
mod view;
mod walk;

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

pub use self::{
    bench::Bench, check::Check, completion::Completion, doctor::Doctor, explain::Explain, man::Man,
    repair::Repair, serve::Serve, status::Status, top::Top, traces::Traces, tree::Tree,
};

use self::client::Unreachable;
use crate::topology::{Mistakes, Topology};

/// How a command ended that did what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// All is well, or nothing was looked for.
    Fine,
    /// Something was looked for, and found.
    Trouble,
    /// A node does not answer.
    Unreachable,
}

/// Reads a topology file, and what is wrong with it.
fn parse_topology(path: &Path) -> anyhow::Result<Result<Topology, Mistakes>> {
    let name = path.to_string_lossy();
    // HariKube writes it as a URL.
    let name = name.strip_prefix("file://").unwrap_or(&name).to_owned();
    if name.starts_with("http://") || name.starts_with("https://") {
        bail!("can't read the topology {name}: it must be a file; download it first");
    }
    let text = std::fs::read_to_string(&name)
        .with_context(|| format!("can't read the topology {name}"))?;
    Ok(Topology::parse(&text, &name))
}

/// Reads a topology file that can be used.
fn read_topology(path: &Path) -> anyhow::Result<Topology> {
    let topology = parse_topology(path)?.map_err(|mistakes| anyhow::anyhow!("{mistakes}"));
    topology.with_context(|| format!("the topology {} can't be used", path.display()))
}

const EXAMPLES: &str = "\
Examples:
  pleach                                        a node at http://127.0.0.1:2379, with its data in pleach-data
  pleach --topology topology.yaml               a node with routes
  pleach check topology.yaml                    every mistake of a file at once
  pleach status                                 whether all is well
  pleach doctor                                 what is wrong, and what to do

`pleach COMMAND --help` has the examples and exit codes of each.";

/// A tree of routing proxies that speak etcd v3.
#[derive(Debug, Parser)]
#[command(name = "pleach", version, about, args_conflicts_with_subcommands = true)]
#[command(after_help = EXAMPLES)]
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
    /// Say in a line for each node whether all is well.
    Status(Status),
    /// Print the routes of a tree, the busiest first.
    Top(Top),
    /// Look at a tree that runs: what is wrong, and what to do.
    Doctor(Doctor),
    /// Receive traces, and print them.
    Traces(Traces),
    /// Put a small load on a node or an etcd, and measure it.
    Bench(Bench),
    /// Mend what a node keeps, while it is stopped.
    Repair(Repair),
    /// Print what completes commands in a shell.
    Completion(Completion),
    /// Print the manual, or write its pages.
    Man(Man),
}

/// A command line that names its command: what `serve` reads of its environment is not looked at for others.
#[derive(Debug, Parser)]
#[command(name = "pleach", version, about, after_help = EXAMPLES)]
struct Named {
    #[command(subcommand)]
    command: Command,
}

/// Does what the command line says, and says how it went.
pub fn run() -> ExitCode {
    let command = match parsed() {
        Ok(command) => command,
        Err(error) => {
            let arguments: Vec<String> = std::env::args().skip(1).collect();
            let strange = (error.kind() == ErrorKind::UnknownArgument)
                .then(|| foreign::explained(&arguments))
                .flatten();
            if let Some(strange) = strange {
                eprintln!("pleach: {strange}");
                return ExitCode::from(2);
            }
            error.exit()
        }
    };
    match command.run() {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Trouble) => ExitCode::from(1),
        Ok(Outcome::Unreachable) => ExitCode::from(2),
        Err(error) => {
            eprintln!("pleach: {error:#}");
            ExitCode::from(if error.is::<Unreachable>() { 2 } else { 1 })
        }
    }
}

/// What the command line says: `serve`, where it names no command.
fn parsed() -> Result<Command, clap::Error> {
    let first = std::env::args().nth(1);
    if first.is_some_and(|first| Named::command().find_subcommand(first).is_some()) {
        return Named::try_parse().map(|named| named.command);
    }
    let Cli { command, serve } = Cli::try_parse()?;
    Ok(command.unwrap_or_else(|| Command::Serve(Box::new(serve))))
}

// === impl Command ===

impl Command {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What a person must act on; printed as it is.
    fn run(self) -> anyhow::Result<Outcome> {
        let done = match self {
            Self::Serve(serve) => serve.run(),
            Self::Check(check) => return check.run(),
            Self::Explain(explain) => explain.run(),
            Self::Tree(tree) => return tree.run(),
            Self::Status(status) => return status.run(),
            Self::Top(top) => return top.run(),
            Self::Doctor(doctor) => return doctor.run(),
            Self::Bench(bench) => return bench.run(),
            Self::Traces(traces) => traces.run(),
            Self::Repair(repair) => repair.run(),
            Self::Completion(completion) => completion.run(),
            Self::Man(man) => man.run(),
        };
        done.map(|()| Outcome::Fine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What clap finds out only when a command is used: flags twice, references to none.
    #[test]
    fn the_commands_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_command_teaches_with_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let name = command.get_name();
            assert!(help.contains(&format!("pleach {name}")), "{name}: {help}");
        }
    }
}

//! `pleach check`: every mistake of a topology file at once.

use std::path::PathBuf;

use clap::Args;

use super::read_topology;
use crate::topology::DEFAULT_NAME;

const EXAMPLES: &str = "\
Examples:
  pleach check topology.yaml                    the routes, or every mistake with its place
  pleach check topology.yaml && systemctl restart pleach

Exit codes: 0 it can be used (warnings are printed), 1 it can't.";

/// Reads a topology file and reports every mistake in it.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    /// The file.
    file: PathBuf,
}

// === impl Check ===

impl Check {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let topology = read_topology(&self.file)?;
        if !topology.warnings.is_empty() {
            eprintln!("{}", topology.warnings);
        }
        for backend in &topology.backends {
            println!("{}: {} -> {}", backend.name, backend.rule, backend.endpoint);
        }
        match &topology.default {
            Some(default) => println!("{DEFAULT_NAME}: the rest -> {default}"),
            None => println!("{DEFAULT_NAME}: the rest -> --endpoint, or SQLite in --data-dir"),
        }
        Ok(())
    }
}

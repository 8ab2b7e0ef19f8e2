//! `pleach repair`: mends what a node keeps, while it is stopped.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::read_topology;
use crate::{
    assembly::{self, Endpoints, Plan, StorePlan},
    topology::{Endpoint, Topology},
};

const EXAMPLES: &str = "\
Examples:
  pleach repair clock --topology topology.yaml  after a clock that was driven up; with the flags of the node

Exit codes: 0 mended, 1 it could not be.";

/// Mends what a node keeps, while it is stopped.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Repair {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Has the next start go on at the greatest revision in the stores, whatever was reserved: for a clock
    /// that was driven up. All stores of the topology must be reachable; nodes in it are left out.
    Clock(Stores),
}

/// Where a node's stores are, as `pleach serve` is told.
#[derive(Args, Debug)]
struct Stores {
    /// Where the embedded default store lives.
    #[arg(long, env = "PLEACH_DATA_DIR", default_value = "pleach-data")]
    data_dir: PathBuf,
    /// The default store, with or without multi:// before it.
    #[arg(long, env = "PLEACH_ENDPOINT")]
    endpoint: Option<String>,
    /// The topology file.
    #[arg(long, env = "TOPOLOGY_CONFIG")]
    topology: Option<PathBuf>,
}

// === impl Repair ===

impl Repair {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let What::Clock(stores) = self.what;
        let reset = runtime.block_on(async {
            let topology = match &stores.topology {
                Some(path) => read_topology(path)?,
                None => Topology::default(),
            };
            let endpoint = stores.endpoint.as_deref().map(Endpoint::parse).transpose();
            let plan = Plan::new(topology, endpoint.context("--endpoint")?, &stores.data_dir)?;
            let owner = format!("`pleach repair` (process {})", std::process::id());
            let opens = Endpoints { owner, adopts_default: false };
            // Each may be waited for: its last owner may not be known to be gone yet.
            let looking_at = |store: &StorePlan| {
                eprintln!("looking at store `{}`, {}", store.name, store.endpoint);
            };
            anyhow::Ok(assembly::reset_clock(plan, &opens, looking_at).await?)
        })?;
        println!("the clock stood at {}, and goes on at {}", reset.before, reset.after);
        Ok(())
    }
}

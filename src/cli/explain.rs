//! `pleach explain`: which route a key takes, and why.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;

use super::read_topology;
use crate::{
    model::KeyRange,
    route::rule::Reach,
    topology::{Backend, DEFAULT_NAME, Topology},
};

const EXAMPLES: &str = "\
Examples:
  pleach explain /registry/pods/default/web --topology topology.yaml
  pleach explain /registry/pods/ --topology topology.yaml        which stores hold keys of a prefix

Exit codes: 0 explained, 1 the topology can't be used.";

/// Says which route a key, or the keys of a prefix, take, and why. Opens no store.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Explain {
    /// A key, or, where it ends with a slash, a prefix.
    key: String,
    /// The topology file.
    #[arg(long, env = "TOPOLOGY_CONFIG")]
    topology: PathBuf,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let topology = read_topology(&self.topology)?;
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
        let range = KeyRange::prefix(Bytes::copy_from_slice(self.key.as_bytes()));
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

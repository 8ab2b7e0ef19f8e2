//! What is asked on the command line, and the plan of sizes and times that follows from it.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use clap::Parser;

use crate::{peer::Peer, rows::Row};

/// Compare a node with its peers on this machine.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Peers to measure, in the order of the first round.
    #[arg(long, value_delimiter = ',', default_value = "etcd,kine,pleach")]
    peers: Vec<Peer>,
    /// Rows to measure, by name or by the start of a name (`create`, `list-all`); all if absent.
    #[arg(long, env = "PLEACH_BENCH_ONLY", value_delimiter = ',')]
    only: Vec<String>,
    /// How often each row visits each peer [default: 5, quick: 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Length of one measurement [default: 4, quick: 1].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: Option<u64>,
    /// Keys in the store of the rows `keys`, `stream` and `start-loaded` [default: 100000, quick: 2000].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: Option<u64>,
    /// The core of the programs that hold the data, etcd's and nodes' on files: as if on another machine.
    /// The bench and the nodes in front stay where the bench is, so put it elsewhere:
    /// `taskset -c 1 cargo bench …`.
    #[arg(long, value_name = "CORE")]
    stores_on: Option<usize>,
    /// Also write the table as Markdown: between `<!-- figures -->` and `<!-- /figures -->` of an
    /// existing file, or as a new file.
    #[arg(long)]
    pub(crate) markdown: Option<PathBuf>,
    /// A smoke test of the bench itself, about a minute: its figures mean little.
    #[arg(long, env = "PLEACH_BENCH_QUICK", value_parser = clap::builder::FalseyValueParser::new())]
    quick: bool,
    /// Set by `cargo bench`.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

/// Every size and time of a run. Labels are made from it, so that no label can lie.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) peers: Vec<Peer>,
    pub(crate) rows: Vec<Row>,
    pub(crate) rounds: u32,
    pub(crate) window: Duration,
    pub(crate) warm_up: Duration,
    /// How long a process is left alone before its memory is read.
    pub(crate) settle: Duration,
    /// Keys, and writes of each key, that lists and counts read.
    pub(crate) listed_keys: usize,
    pub(crate) listed_revisions: usize,
    /// Keys in the store when memory and start-up are read.
    pub(crate) stored_keys: usize,
    /// Watchers that are open when memory is read.
    pub(crate) idle_watchers: usize,
    pub(crate) peers_directory: PathBuf,
    /// The core of the programs that hold the data, where it is theirs alone.
    pub(crate) stores_on: Option<usize>,
    /// Where the servers keep their data: below `target/`, so on the disk that holds the sources.
    pub(crate) directory: PathBuf,
    pub(crate) total_max: Duration,
    pub(crate) quick: bool,
}

// === impl Options ===

impl Options {
    pub(crate) fn plan(&self) -> Result<Plan> {
        let rows = self.rows()?;
        ensure!(!self.peers.is_empty(), "no peers named");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let peers_directory =
            env::var_os("PLEACH_PEERS_DIR").map_or_else(|| root.join("target/peers"), Into::into);
        for peer in &self.peers {
            peer.program().require(&peers_directory)?;
            ensure!(
                self.stores_on.is_none() || peer.store().is_none_or(|store| !store.is_database()),
                "--stores-on moves no database; leave out {}",
                peer.name()
            );
        }
        let sized = |full: usize, quick: usize| if self.quick { quick } else { full };
        let rounds = self.rounds.unwrap_or(sized(5, 1) as u32);
        let window = Duration::from_secs(self.seconds.unwrap_or(sized(4, 1) as u64));
        Ok(Plan {
            rounds,
            window,
            warm_up: Duration::from_millis(sized(500, 200) as u64),
            settle: Duration::from_millis(sized(2000, 300) as u64),
            listed_keys: sized(20_000, 2_000),
            listed_revisions: sized(5, 2),
            stored_keys: self.keys.map_or(sized(100_000, 2_000), |keys| keys as usize),
            idle_watchers: sized(10_000, 1_000),
            peers_directory,
            stores_on: self.stores_on,
            directory: root.join(format!("target/bench/peers-{}", std::process::id())),
            // Enough for a peer that writes 200 keys a second; one that stands still is ended.
            total_max: Duration::from_secs(3600)
                + (window + Duration::from_secs(5))
                    * rounds
                    * (rows.len() * self.peers.len()) as u32,
            peers: self.peers.clone(),
            rows,
            quick: self.quick,
        })
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let all = Row::all();
        for name in &self.only {
            if !all.iter().any(|row| row.is_named(name)) {
                let names: Vec<_> = all.iter().map(Row::id).collect();
                bail!("no row is named {name:?}; the rows are {}", names.join(", "));
            }
        }
        Ok(all
            .into_iter()
            .filter(|row| self.only.is_empty() || self.only.iter().any(|name| row.is_named(name)))
            .collect())
    }
}

// === impl Plan ===

impl Plan {
    /// The peers in the order of a round: forwards, then backwards.
    pub(crate) fn order(&self, round: u32) -> Vec<Peer> {
        let mut order = self.peers.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        order
    }

    pub(crate) fn asks_for(&self, row: Row) -> bool {
        self.rows.contains(&row)
    }
}

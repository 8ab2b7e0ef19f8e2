//! The same API-server-shaped load on etcd, kine and nodes, in turn, on one machine.
//!
//! Rounds visit the peers forwards, then backwards, row by row, so that a drift of the machine
//! falls on all alike. Every answer is checked: a wrong one ends the bench with an error. An answer
//! that is a gRPC error is counted and shown. Only loopback is used, and every loop ends by time or
//! by count.
//!
//! ```text
//!  idle     fresh process, alone    ─▶ start-up, idle memory, memory with many watchers
//!  load     fresh, all side by side ─▶ create, update, get, commit-to-watcher
//!  listing  loaded once, all alive  ─▶ pages, whole lists, counts
//!  loaded   many keys               ─▶ memory, start-up with data
//! ```
//!
//! See benches/README.md for the rows and how to read them.

mod client;
mod disk;
mod keys;
mod listing;
mod load;
mod loopback;
mod machine;
mod merging;
mod meter;
mod options;
mod peer;
mod process;
mod program;
mod report;
mod rows;
mod scraping;
mod sections;
mod selecting;
mod server;
mod serving;
mod shapes;
mod store;
mod streaming;
#[path = "../../tests/support/mod.rs"]
mod support;
mod watching;
mod writing;

use std::{fs, io::Write as _};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::{machine::Machine, options::Options, report::Report, sections::Bench};

fn main() -> Result<()> {
    let options = Options::parse();
    // `cargo test --all-targets` runs bench binaries too, without this flag: half an hour of load
    // is not what it asked for.
    if !options.bench {
        println!("nothing measured: run `cargo bench --bench peers`");
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench(options))
}

async fn bench(options: Options) -> Result<()> {
    let plan = options.plan()?;
    let machine = Machine::read(&plan)?;
    let mut report = Report::new(&plan);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let mut bench = Bench::new(&plan, &mut report);
    // Dropping the run kills the servers that it started; a plain exit would leave them behind.
    let outcome = tokio::select! {
        outcome = timeout(plan.total_max, bench.run()) =>
            outcome.context("the bench did not end in the time it was given").flatten(),
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("terminated")),
    };
    // A run that failed late has figures worth a look, but none to publish.
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}{}", machine.text(), report.text())?;
    outcome?;
    fs::remove_dir_all(&plan.directory)?;
    if let Some(path) = &options.markdown {
        report::publish(path, &format!("{}{}", machine.markdown(), report.markdown()))?;
    }
    Ok(())
}

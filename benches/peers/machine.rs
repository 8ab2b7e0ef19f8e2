//! What the figures were taken on, without which they say nothing.

use std::{fs, process::Command, thread};

use anyhow::Result;

use crate::{disk, options::Plan};

/// Facts as name and value.
#[derive(Debug)]
pub(crate) struct Machine(Vec<(&'static str, String)>);

impl Machine {
    /// Also refuses a directory on which durability costs nothing, and a store that is not installed.
    pub(crate) fn read(plan: &Plan) -> Result<Self> {
        fs::create_dir_all(&plan.directory)?;
        let cores = thread::available_parallelism()?;
        let cpu = field("/proc/cpuinfo", "model name");
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let profile = if cfg!(debug_assertions) { "debug: not comparable" } else { "release" };
        let mut facts = vec![
            ("cores", shared(cores.get(), plan)),
            ("CPU", cpu),
            ("memory", field("/proc/meminfo", "MemTotal")),
            ("kernel", kernel.trim().to_owned()),
            ("file system", disk::file_system(&plan.directory)?),
            ("load before", load_before(cores.get())),
            ("date", said_by("date", &["-u", "+%F"])),
            ("commit", said_by("git", &["describe", "--always", "--dirty"])),
            ("build", profile.to_owned()),
            ("run", run(plan)),
        ];
        for peer in &plan.peers {
            facts.push((peer.name(), peer.version(&plan.peers_directory)?));
        }
        for store in plan.peers.iter().filter_map(|peer| peer.store()) {
            if facts.iter().all(|(name, _)| *name != store.name()) {
                facts.push((store.name(), store.version(&plan.peers_directory)?));
            }
        }
        Ok(Machine(facts))
    }

    pub(crate) fn text(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0.iter().map(|(name, value)| format!("{name:>width$}  {value}\n")).collect()
    }

    pub(crate) fn markdown(&self) -> String {
        self.0.iter().map(|(name, value)| format!("- {name}: {value}\n")).collect()
    }
}

fn shared(cores: usize, plan: &Plan) -> String {
    match plan.stores_on {
        None => format!("{cores}, shared by the load and the servers"),
        Some(core) => {
            format!(
                "{cores} for the load and the nodes in front; what holds the data has core {core}"
            )
        }
    }
}

/// Others' work falls on one peer more than on another, so it is named where the figures are.
fn load_before(cores: usize) -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN);
    let busy = if load > cores as f64 / 2.0 { " (BUSY: do not compare)" } else { "" };
    format!("{load:.2}{busy}")
}

fn run(plan: &Plan) -> String {
    let kind = if plan.quick { "QUICK, a smoke test: " } else { "" };
    let (rounds, seconds) = (plan.rounds, plan.window.as_secs());
    format!("{kind}{rounds} rounds of {seconds} s a row and peer; medians over rounds (min..max)")
}

/// The first value of a name in a file of `name : value` lines.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
    value.unwrap_or("unknown").to_owned()
}

/// A program's first line, or `unknown`: facts are no reason to fail.
fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()
        .filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|| "unknown".to_owned())
}

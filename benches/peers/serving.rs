//! A process that serves etcd's API: how it is started, waited for, and ended.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use pleach::proto::etcdserverpb::RangeRequest;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{client, options::Plan, program::Program};

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) port: u16,
    pub(crate) pid: u32,
    /// From the start of the process to the first answered Range.
    pub(crate) started_in: Duration,
    child: Child,
    directory: PathBuf,
}

const START_TIME_MAX: Duration = Duration::from_secs(120);
/// An etcd without a leader keeps a Range for seconds before it fails it; a new one is answered at
/// once when there is a leader. So a start is not counted longer than it was.
const START_ASK_TIME_MAX: Duration = Duration::from_millis(200);

const STOP_TIME_MAX: Duration = Duration::from_secs(30);

/// A Range is asked again this often until one is answered, so start-up times are this fine.
const START_POLL: Duration = Duration::from_millis(1);

// === impl Serving ===

impl Serving {
    /// Starts a program on a directory of its own of the run, which keeps its data between starts.
    /// Without a `store` the data is its own.
    pub(crate) async fn start(
        plan: &Plan,
        program: Program,
        name: &str,
        store: Option<&str>,
    ) -> Result<Self> {
        let directory = plan.directory.join(name);
        fs::create_dir_all(directory.join("data"))?;
        let log = File::options().create(true).append(true).open(directory.join("log"))?;
        let port = free_port()?;
        let begun = Instant::now();
        let path = program.path(&plan.peers_directory);
        let mut command = match plan.stores_on.filter(|_| store.is_none()) {
            None => Command::new(path),
            Some(core) => {
                let mut command = Command::new("taskset");
                command.arg("--cpu-list").arg(core.to_string()).arg(path);
                command
            }
        };
        let child = command
            .args(program.arguments(port, &directory.join("data"), store)?)
            // ETCD_*, KINE_* and GO* of the caller would change what is measured.
            .env_clear()
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let pid = child.id().context("a process that ended at once")?;
        let mut serving = Serving { port, pid, started_in: Duration::ZERO, child, directory };
        if let Err(error) = serving.answered().await {
            bail!("{name} did not start: {error:#}\n{}", serving.log_tail());
        }
        serving.started_in = begun.elapsed();
        Ok(serving)
    }

    /// Returns when a linearizable Range has been answered.
    async fn answered(&mut self) -> Result<()> {
        let ask = async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    bail!("the process ended with {status}");
                }
                if let Ok(Ok(())) = timeout(START_ASK_TIME_MAX, range_once(self.port)).await {
                    return Ok(());
                }
                sleep(START_POLL).await;
            }
        };
        timeout(START_TIME_MAX, ask).await.context("no answer in time")?
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Ends the process as an administrator would, so that the next start is not a recovery.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let kill = format!("kill -TERM {}", self.pid);
        Command::new("sh").args(["-c", &kill]).status().await?;
        if timeout(STOP_TIME_MAX, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }

    /// Ends the process and removes its data.
    pub(crate) async fn discard(mut self) -> Result<()> {
        self.child.kill().await?;
        fs::remove_dir_all(&self.directory)?;
        Ok(())
    }
}

async fn range_once(port: u16) -> Result<()> {
    let channel = client::endpoint(port)?.connect().await?;
    let request = RangeRequest { key: "/registry/health".into(), ..Default::default() };
    client::kv(channel).range(request).await?;
    Ok(())
}

/// A port that was free a moment ago. A server that loses the race for it fails to start.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

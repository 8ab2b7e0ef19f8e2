//! Peers as processes: how each is started durable, waited for, and ended.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use pleach::proto::etcdserverpb::RangeRequest;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{client, options::Plan, process};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Etcd,
    Kine,
    Pleach,
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) peer: Peer,
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

// === impl Peer ===

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Etcd => "etcd",
            Peer::Kine => "kine",
            Peer::Pleach => "pleach",
        }
    }

    pub(crate) fn require(self, peers_directory: &Path) -> Result<()> {
        ensure!(
            self.program(peers_directory).is_file(),
            "there is no {} binary: build it with `tests/peers/build {0}`, \
             or name the directory that holds it in PLEACH_PEERS_DIR",
            self.name()
        );
        Ok(())
    }

    fn program(self, peers_directory: &Path) -> PathBuf {
        match self {
            Peer::Pleach => env!("CARGO_BIN_EXE_pleach").into(),
            peer => peers_directory.join(peer.name()),
        }
    }

    /// What the binary says of itself, on one line.
    pub(crate) fn version(self, peers_directory: &Path) -> Result<String> {
        if self == Peer::Kine {
            return Ok(module_version(&fs::read(self.program(peers_directory))?));
        }
        let output = std::process::Command::new(self.program(peers_directory))
            .arg("--version")
            .output()
            .with_context(|| format!("asking {} for its version", self.name()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or("unknown").trim().to_owned())
    }

    /// The flags: durable on every side, nothing else tuned.
    fn arguments(self, port: u16, data: &Path) -> Result<Vec<String>> {
        let client = format!("http://127.0.0.1:{port}");
        let data = data.display();
        Ok(match self {
            Peer::Etcd => {
                let peer = format!("http://127.0.0.1:{}", free_port()?);
                vec![
                    "--name=bench".into(),
                    format!("--data-dir={data}"),
                    format!("--listen-client-urls={client}"),
                    format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"),
                    format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster=bench={peer}"),
                    // The default of 2 GiB could end a long run.
                    "--quota-backend-bytes=8589934592".into(),
                    "--log-level=warn".into(),
                ]
            }
            // kine's own DSN but for `_synchronous`, which it sets to NORMAL: then SQLite does not
            // sync the WAL on commit, and acknowledged writes are lost with the power.
            Peer::Kine => vec![
                format!(
                    "--endpoint=sqlite://{data}/state.db?_journal_mode=WAL&_busy_timeout=30000\
                     &_synchronous=FULL&_txlock=immediate&_stmt_cache_size=20&cache=shared"
                ),
                format!("--listen-address=127.0.0.1:{port}"),
                "--metrics-bind-address=0".into(),
            ],
            Peer::Pleach => vec![
                "serve".into(),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--data-dir={data}"),
            ],
        })
    }
}

// === impl Server ===

impl Server {
    /// Starts a peer on a directory of its own, which keeps its data between starts.
    pub(crate) async fn start(plan: &Plan, peer: Peer, name: &str) -> Result<Self> {
        let directory = plan.directory.join(format!("{name}-{}", peer.name()));
        fs::create_dir_all(directory.join("data"))?;
        let log = File::options().create(true).append(true).open(directory.join("log"))?;
        let port = free_port()?;
        let begun = Instant::now();
        let child = Command::new(peer.program(&plan.peers_directory))
            .args(peer.arguments(port, &directory.join("data"))?)
            // ETCD_*, KINE_* and GO* of the caller would change what is measured.
            .env_clear()
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", peer.name()))?;
        let pid = child.id().context("a process that ended at once")?;
        let mut server = Server { peer, port, pid, started_in: Duration::ZERO, child, directory };
        if let Err(error) = server.answered().await {
            bail!("{} did not start: {error:#}\n{}", peer.name(), server.log_tail());
        }
        server.started_in = begun.elapsed();
        Ok(server)
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

    pub(crate) fn memory(&self) -> Result<process::Memory> {
        process::memory(self.pid)
    }

    /// Ends the process as an administrator would, so that the next start is not a recovery.
    pub(crate) async fn stop(mut self) -> Result<()> {
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

/// kine calls itself `dev` unless its own build script made it, but Go records the version of the
/// module in the binary: path, tab, version.
fn module_version(binary: &[u8]) -> String {
    let mark = b"github.com/k3s-io/kine\tv";
    let found = binary.windows(mark.len()).position(|window| window == mark);
    let version = found.map_or(&b"unknown"[..], |at| {
        let rest = &binary[at + mark.len() - 1..];
        rest.split(u8::is_ascii_whitespace).next().unwrap_or(rest)
    });
    format!("{}, SQLite with synchronous=FULL", String::from_utf8_lossy(version))
}

async fn range_once(port: u16) -> Result<()> {
    let channel = client::endpoint(port)?.connect().await?;
    let request = RangeRequest { key: "/registry/health".into(), ..Default::default() };
    client::kv(channel).range(request).await?;
    Ok(())
}

/// A port that was free a moment ago. A server that loses the race for it fails to start.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

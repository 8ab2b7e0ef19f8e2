//! A node that a test starts, signals, kills and starts again on the same data and port.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use pleach::proto::etcdserverpb::{self as pb, kv_client::KvClient};
use tonic::transport::{Channel, Endpoint};

use super::peers::free_port;

/// A start takes some ten milliseconds; the rest is for a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(20);
const END_WITHIN: Duration = Duration::from_secs(20);
/// Shorter than what is waited for, so that hundreds of restarts cost nothing but themselves.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
const LOG_TAIL_BYTES: usize = 4_000;

/// Where a node lives. It may run or not.
#[derive(Debug)]
pub(crate) struct Node {
    folder: PathBuf,
    data_dir: PathBuf,
    port: u16,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    /// What a shell does first, in the same process.
    before: Option<String>,
    child: Option<Child>,
}

// === impl Node ===

impl Node {
    /// A node whose data, topology and log are in `folder`. Nothing runs yet.
    pub(crate) fn new(folder: &Path, flags: &[&str]) -> Result<Self> {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let (folder, data_dir) = (folder.to_owned(), folder.join("data"));
        Ok(Self {
            folder,
            data_dir,
            port: free_port()?,
            flags,
            env: Vec::new(),
            before: None,
            child: None,
        })
    }

    /// Gives it a route for each prefix, to a file of its own.
    pub(crate) fn with_routes(self, prefixes: &[&str]) -> Result<Self> {
        let file = |index: usize| self.folder.join(format!("store-{index}.db"));
        let endpoint = |index| format!("sqlite://{}", file(index).display());
        let routes: Vec<_> = prefixes.iter().copied().zip((0..).map(endpoint)).collect();
        self.with_routes_to(&routes)
    }

    /// Gives it a route for each prefix and endpoint.
    pub(crate) fn with_routes_to(self, routes: &[(&str, String)]) -> Result<Self> {
        let mut text = String::from("backends:\n");
        for (index, (prefix, endpoint)) in routes.iter().enumerate() {
            text += &format!("- name: store-{index}\n  endpoint: {endpoint}\n");
            text += &format!("  prefix:\n    prefix: {prefix}\n");
        }
        self.with_topology(&text)
    }

    /// Gives it a topology file of its own.
    pub(crate) fn with_topology(mut self, text: &str) -> Result<Self> {
        self.set_topology(text)?;
        Ok(self)
    }

    /// Gives it another topology. A start after this reads it.
    pub(crate) fn set_topology(&mut self, text: &str) -> Result<()> {
        let path = self.folder.join("topology.yaml");
        fs::write(&path, text)?;
        let flag = format!("--topology={}", path.display());
        if !self.flags.contains(&flag) {
            self.flags.push(flag);
        }
        Ok(())
    }

    /// Gives it a further flag. A start after this knows it.
    pub(crate) fn add_flag(&mut self, flag: &str) {
        self.flags.push(flag.to_owned());
    }

    /// Keeps its data elsewhere than its log.
    pub(crate) fn with_data_dir(mut self, data_dir: &Path) -> Self {
        self.data_dir = data_dir.to_owned();
        self
    }

    /// Has a shell do something first in the node's process, such as set its limits.
    pub(crate) fn under(mut self, before: &str) -> Self {
        self.before = Some(before.to_owned());
        self
    }

    /// Sets a variable of its environment from the next start on.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What it has logged until now, in all its lives.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.folder.join("node.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    pub(crate) fn id(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the node does not run")?.id())
    }

    /// Starts the process and does not wait for it.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the node runs already");
        let log = File::options().create(true).append(true).open(self.folder.join("node.log"))?;
        let program = env!("CARGO_BIN_EXE_pleach");
        let mut command = match &self.before {
            None => Command::new(program),
            Some(before) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\""), program]);
                shell
            }
        };
        command.arg("serve").arg(format!("--listen-client-urls={}", self.url()));
        command.arg(format!("--data-dir={}", self.data_dir.display())).args(&self.flags);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("the node does not start")?);
        Ok(())
    }

    /// Starts the process, and returns a connection to it once it answers a read.
    pub(crate) async fn start(&mut self) -> Result<Channel> {
        self.spawn()?;
        let begin = Instant::now();
        let endpoint = Endpoint::from_shared(self.url())?.tcp_nodelay(true);
        loop {
            self.ensure_running()?;
            if let Ok(channel) = endpoint.connect().await
                && is_ready(&channel).await
            {
                return Ok(channel);
            }
            ensure!(begin.elapsed() < READY_WITHIN, "the node is not ready\n{}", self.log_tail());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// A connection that is made when it is first used, and made again when it broke.
    pub(crate) fn channel(&self) -> Result<Channel> {
        Ok(Endpoint::from_shared(self.url())?.tcp_nodelay(true).connect_lazy())
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        let child = self.child.as_mut().context("the node does not run")?;
        match child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the node has ended: {status}\n{}", self.log_tail()),
        }
    }

    /// Whether it has ended by itself, and how. If so it does not run any more.
    pub(crate) fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("the node does not run")?;
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// SIGKILL. The process is gone when this returns.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the node does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a signal by its name. The shell's own `kill` needs no unsafe code. One that is stopped does nothing any
    /// more when this returns.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        let kill = format!("kill -{name} {}", self.id()?);
        let status = Command::new("sh").args(["-c", &kill]).status()?;
        ensure!(status.success(), "SIG{name} did not reach the node: {status}");
        let begin = Instant::now();
        while name == "STOP" && !self.is_stopped()? {
            ensure!(begin.elapsed() < END_WITHIN, "the node does not stop");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Whether each of its threads is stopped, which on a busy machine takes a while.
    fn is_stopped(&self) -> Result<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()?))? {
            // One that has ended meanwhile does nothing either.
            let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else { continue };
            // Behind the name, which may hold anything, stands the state.
            if stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('T')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the process ends by itself; how, and after what time.
    pub(crate) async fn ended(&mut self) -> Result<(ExitStatus, Duration)> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.has_ended()? {
                return Ok((status, begin.elapsed()));
            }
            ensure!(begin.elapsed() < END_WITHIN, "the node does not end\n{}", self.log_tail());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The memory that the process has in use.
    pub(crate) fn memory_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
        Ok(kib.parse::<u64>()? << 10)
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        log.char_indices().find(|(at, _)| *at >= from).map_or("", |(at, _)| &log[at..]).to_owned()
    }
}

async fn is_ready(channel: &Channel) -> bool {
    let read = pb::RangeRequest { key: "ready".into(), ..Default::default() };
    KvClient::new(channel.clone()).range(read).await.is_ok()
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if thread::panicking() {
                eprintln!("the end of the node's log:\n{}", self.log_tail());
            }
            // Both fail only when the process has ended already, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

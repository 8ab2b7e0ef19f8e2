//! Server programs with data of their own, none of which outlives the test process, however that
//! ends: by a return, a panic, or SIGKILL.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::{
        fs::{MetadataExt as _, OpenOptionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::process::eventually;

/// A server that is told to end writes down what it has; the rest is for a busy machine.
const END_WITHIN: Duration = Duration::from_secs(60);
const LOG_TAIL_BYTES: usize = 4_000;

/// Signals a process and its children, and prints their ids. The parent is stopped first, so that
/// it has no more of them meanwhile. A process group would not do: PostgreSQL gives each of its
/// children a session of its own.
const SIGNAL_TREE: &str = r#"
signal_tree() {
    kill -STOP "$2" || return
    children=$(grep -lsx "PPid:[[:space:]]*$2" /proc/[0-9]*/status | cut -d/ -f3)
    for child in $children; do kill "-$1" "$child" 2>/dev/null; done
    kill "-$1" "$2" && echo $children "$2"
}
"#;

/// Reads the ids of the server's lives until its input ends, which happens at the latest when the
/// test process does. Then it kills the server, and takes away what that left in the system, and the
/// folder. What was just killed may still add a file to a folder that is being deleted, hence several
/// tries.
const GUARDIAN: &str = r#"
while read -r line; do server=$line; done
[ -z "$server" ] || signal_tree KILL "$server" >/dev/null
while read -r key segment permissions size creator rest; do
    [ "$creator" != "$server" ] || ipcrm -m "$segment"
done </proc/sysvipc/shm
for try in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" && break; sleep 0.1; done
"#;

/// A folder and the server program that has its data and its log in it. It may run or not.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    folder: PathBuf,
    user: Option<&'static str>,
    child: Option<Child>,
    guardian: Child,
}

// === impl Daemon ===

impl Daemon {
    /// An empty folder in `parent`. Where the test runs as root, the folder and its programs are
    /// those of `user`, since database servers refuse to run as root.
    pub(crate) fn new_in(
        parent: &Path,
        name: &'static str,
        user: Option<&'static str>,
    ) -> Result<Self> {
        let folder = TempDir::with_prefix_in(format!("pleach-{name}-"), parent)?;
        let user = user.filter(|_| is_root());
        if let Some(user) = user {
            let status = Command::new("chown").arg(user).arg(folder.path()).status()?;
            ensure!(status.success(), "a folder can't be given to `{user}`: {status}");
        }
        let mut guardian = Command::new("sh");
        guardian.args(["-c", &format!("{SIGNAL_TREE}{GUARDIAN}"), "guardian"]).arg(folder.path());
        // In a group of its own, it outlives Ctrl-C.
        guardian.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let guardian = guardian.spawn().context("the guardian does not start")?;
        Ok(Self { name, folder: folder.keep(), user, child: None, guardian })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file in the folder, as an argument.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// A program that is run in the folder, as its user.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = match self.user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={user}")).arg(format!("--regid={user}"));
                command.args(["--init-groups", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        // In a folder for temporary files that it shared, MariaDB would delete those of others.
        command.env("TMPDIR", &self.folder).env("HOME", &self.folder);
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Keeps a file that only the server's user can read.
    pub(crate) fn write_private(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        let mut file = File::options().create_new(true).write(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        chown(&path, Some(fs::metadata(&self.folder)?.uid()), None)?;
        Ok(())
    }

    /// Starts the server and does not wait for it. What it prints is appended to its log.
    pub(crate) fn spawn(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        command.process_group(0).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{} does not start", self.name))?;
        let id = child.id();
        self.child = Some(child);
        self.tell_guardian(&id.to_string())
    }

    pub(crate) fn id(&self) -> Result<u32> {
        Ok(self.child.as_ref().with_context(|| format!("{} does not run", self.name))?.id())
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
        match child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}\n{}", self.name, self.log_tail()),
        }
    }

    /// SIGKILL to all its processes, which are gone when this returns.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        let tree = signal_tree("KILL", self.id()?)?;
        self.ended().await?;
        eventually(&format!("{} is gone", self.name), END_WITHIN, async || {
            let left = tree.iter().find(|id| is_alive(**id));
            left.map_or(Ok(()), |id| bail!("process {id} is still there"))
        })
        .await
    }

    /// Sends a signal that asks the server to end, and waits until it has ended.
    pub(crate) async fn stop(&mut self, signal: &str) -> Result<ExitStatus> {
        let kill = format!("kill -{signal} {}", self.id()?);
        let status = Command::new("sh").args(["-c", &kill]).status()?;
        ensure!(status.success(), "SIG{signal} did not reach {}: {status}", self.name);
        self.ended().await
    }

    /// SIGSTOP to all its processes: connections stay open, and nothing answers.
    pub(crate) fn pause(&self) -> Result<()> {
        signal_tree("STOP", self.id()?).map(drop)
    }

    /// SIGCONT to all its processes.
    pub(crate) fn resume(&self) -> Result<()> {
        signal_tree("CONT", self.id()?).map(drop)
    }

    /// The end of what it has printed in all its lives.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }

    async fn ended(&mut self) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("it does not run")?;
        let name = self.name;
        let status = eventually(&format!("{name} ends"), END_WITHIN, async || {
            child.try_wait()?.context("it still runs")
        })
        .await?;
        self.child = None;
        // An id that is no longer its own may be given to another process.
        self.tell_guardian("")?;
        Ok(status)
    }

    fn tell_guardian(&mut self, line: &str) -> Result<()> {
        let input = self.guardian.stdin.as_mut().context("the guardian has no input")?;
        writeln!(input, "{line}").context("the guardian has ended")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the end of the log of {}:\n{}", self.name, self.log_tail());
        }
        // The end of its input is what the guardian waits for. It takes server and folder away.
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Whether there is a process of that id that is more than an entry its parent has yet to read.
pub(crate) fn is_alive(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// The ids of the processes that were signalled.
fn signal_tree(signal: &str, id: u32) -> Result<Vec<u32>> {
    let script = format!("{SIGNAL_TREE}signal_tree {signal} {id}");
    let output = Command::new("sh").args(["-c", &script]).output()?;
    ensure!(output.status.success(), "SIG{signal} did not reach process {id}");
    let ids = String::from_utf8(output.stdout)?;
    Ok(ids.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}

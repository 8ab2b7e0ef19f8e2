//! Child processes that write to a log file and never outlive the test, and waiting for a
//! condition.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// How long a wait pauses between two looks at its condition.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How much of each log is shown when a test fails.
const LOG_TAIL_LINES: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Terminate,
    Kill,
}

/// A running program. It is killed when dropped; when that happens because the test failed, the end
/// of its log is printed first.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

// === impl Process ===

impl Process {
    /// Starts `program`; what it prints is appended to `NAME.log` in `folder`.
    pub(crate) fn start(
        name: &str,
        program: &Path,
        folder: &Path,
        arguments: &[String],
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{} does not start", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Everything it has printed until now.
    pub(crate) fn output(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}", self.name),
        }
    }

    /// Sends the signal and waits until the process is gone.
    pub(crate) async fn stop(mut self, signal: Signal) -> Result<ExitStatus> {
        self.ensure_running()?;
        match signal {
            Signal::Terminate => self.terminate()?,
            Signal::Kill => self.child.kill()?,
        }
        let name = self.name.clone();
        eventually(&format!("{name} ends"), Duration::from_secs(20), async || {
            self.child.try_wait()?.context("it still runs")
        })
        .await
    }

    /// The standard library only knows SIGKILL; the shell's own `kill` needs no unsafe code.
    fn terminate(&self) -> Result<()> {
        let status =
            Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status()?;
        ensure!(status.success(), "SIGTERM did not reach {}: {status}", self.name);
        Ok(())
    }

    fn print_log_tail(&mut self) {
        let state = self.child.try_wait();
        let output = self.output().unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = output.lines().collect();
        eprintln!("==== {} ({state:?}), the end of its log:", self.name);
        for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
            eprintln!("{line}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_log_tail();
        }
        // Both fail only when the process is gone already, and that is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Repeats `probe` until it succeeds. After the deadline its last error says what was still
/// missing.
pub(crate) async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        // Boxed, since the futures of a gRPC client are too large to be held by every phase.
        match Box::pin(probe()).await {
            Ok(value) => return Ok(value),
            Err(error) if begin.elapsed() >= deadline => {
                return Err(error.context(format!("not within {deadline:?}: {what}")));
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

//! A small file system of its own, to be full or read-only. Needs the right to mount, which root
//! has on a developer's machine and in CI; without it the tests fail and say so.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

#[derive(Debug)]
pub(crate) struct Tmpfs {
    folder: TempDir,
}

// === impl Tmpfs ===

impl Tmpfs {
    pub(crate) fn mount(size: &str) -> Result<Self> {
        let folder = TempDir::with_prefix("pleach-tmpfs-")?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder.path());
        run(mount).context("a test mounts a tmpfs, which needs root")?;
        Ok(Self { folder })
    }

    /// With another size, or read-only.
    pub(crate) fn remount(&self, options: &str) -> Result<()> {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(self.path());
        run(mount)
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        // Lazily, since a test that failed may have left a process in it.
        umount.arg("-l").arg(self.path());
        if let Err(error) = run(umount) {
            eprintln!("{} stays mounted: {error}", self.path().display());
        }
    }
}

fn run(mut command: Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

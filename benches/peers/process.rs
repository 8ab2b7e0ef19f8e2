//! CPU time and memory of a process, as the kernel counts them.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Linux reports process times in units of 1/100 s on every architecture that this project runs on.
const TICKS_PER_SECOND: u64 = 100;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident_mib: f64,
    /// Without mapped files: etcd maps its database, whose pages the kernel may take back.
    pub(crate) anonymous_mib: f64,
    /// The most that was resident since the last [`forget_peak`].
    pub(crate) peak_mib: f64,
}

/// The fields of interest in a process's `stat`.
struct Stat {
    parent: u32,
    own_ticks: u64,
    /// Of the children that have ended and that it has waited for.
    ended_children_ticks: u64,
}

// === impl Stat ===

impl Stat {
    fn read(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).context("the server has gone")?;
        // The second field is the program's name in parentheses, and may hold blanks and
        // parentheses. The indexes count from the field after it, which is the third of the line.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let field = |index: usize| -> Result<u64> {
            let field = fields.split_whitespace().nth(index);
            Ok(field.with_context(|| format!("{path} is short"))?.parse()?)
        };
        Ok(Stat {
            parent: u32::try_from(field(1)?)?,
            own_ticks: field(11)? + field(12)?,
            ended_children_ticks: field(13)? + field(14)?,
        })
    }
}

/// User and system time of all threads so far, those that have ended included.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    Ok(time(Stat::read(pid)?.own_ticks))
}

/// The same of a process and all its children, those that have ended included: PostgreSQL makes
/// each connection a process, and kine opens and closes many.
pub(crate) fn cpu_of_all(pid: u32) -> Result<Duration> {
    let first = Stat::read(pid)?;
    let mut ticks = first.own_ticks + first.ended_children_ticks;
    for entry in fs::read_dir("/proc")? {
        let Some(other) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ends meanwhile is counted by its parent the next time.
        if let Ok(other) = Stat::read(other)
            && other.parent == pid
        {
            ticks += other.own_ticks;
        }
    }
    Ok(time(ticks))
}

fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("the server has gone")?;
    let mib = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next());
        Ok(kib.with_context(|| format!("no {name} in a process's status"))?.parse::<f64>()?
            / 1024.0)
    };
    let (resident_mib, anonymous_mib) = (mib("VmRSS:")?, mib("RssAnon:")?);
    Ok(Memory { resident_mib, anonymous_mib, peak_mib: mib("VmHWM:")? })
}

/// Has the kernel count a process's peak from now on.
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the server has gone")
}

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
}

/// User and system time of all threads so far, those that have ended included.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context("the server has gone")?;
    // The second field is the program's name in parentheses, and may hold blanks and parentheses.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |index: usize| -> Result<u64> {
        let field = fields.split_whitespace().nth(index);
        Ok(field.with_context(|| format!("{path} is short"))?.parse()?)
    };
    // utime and stime are fields 14 and 15 of the line: 11 and 12 after the name.
    let total = ticks(11)? + ticks(12)?;
    Ok(Duration::from_millis(total * 1000 / TICKS_PER_SECOND))
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
    Ok(Memory { resident_mib: mib("VmRSS:")?, anonymous_mib: mib("RssAnon:")? })
}

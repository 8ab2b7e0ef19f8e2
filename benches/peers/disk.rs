//! The disk's floor: what one durable write of 1 KiB costs with nothing around it.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::report::{Figures, Metric, median, quantile};

const WRITES_MAX: usize = 2_000;

/// Appends and overwrites, each made durable by fdatasync. An append also has to journal the file's
/// new length, as a log that grows does; an overwrite is what a preallocated log pays.
pub(crate) fn floor(directory: &Path, time_max: Duration) -> Result<Figures> {
    fs::create_dir_all(directory)?;
    let path = directory.join("floor");
    let appends = timed(&path, false, time_max / 2)?;
    let overwrites = timed(&path, true, time_max / 2)?;
    fs::remove_file(&path)?;
    Ok(vec![
        (Metric::AppendMedian, median(&appends)),
        (Metric::AppendP99, quantile(&appends, 0.99)),
        (Metric::OverwriteMedian, median(&overwrites)),
    ])
}

fn timed(path: &Path, overwrite: bool, time_max: Duration) -> Result<Vec<f64>> {
    let mut file = File::options().create(true).truncate(!overwrite).write(true).open(path)?;
    let length = file.metadata()?.len();
    ensure!(!overwrite || length > 0, "nothing to overwrite");
    let block = [0x5a_u8; 1024];
    let ends = Instant::now() + time_max;
    let mut milliseconds = Vec::new();
    while milliseconds.len() < WRITES_MAX && Instant::now() < ends {
        if overwrite {
            let at = milliseconds.len() as u64 * block.len() as u64 % length;
            file.seek(SeekFrom::Start(at))?;
        }
        let begun = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        milliseconds.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(milliseconds)
}

/// The kind of file system that holds a directory, from the mount with the longest matching path.
pub(crate) fn file_system(directory: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let directory = directory.canonicalize()?;
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(point, _)| directory.starts_with(point))
        .max_by_key(|(point, _)| point.len());
    let (_, kind) = mount.context("no mount holds the bench's directory")?;
    ensure!(
        !["tmpfs", "ramfs"].contains(&kind),
        "the bench's directory is on {kind}, where fsync costs nothing: use a disk"
    );
    Ok(kind.to_owned())
}

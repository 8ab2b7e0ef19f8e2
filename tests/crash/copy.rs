//! A copy of the files at a moment of the node's work: the node is stopped in whatever instruction
//! it was in, so its files are as a crash of the machine would leave them if the disk kept what it
//! was given. That a disk loses what was never synced, this can't show; but half of the copies have
//! a torn frame at the end of the log, as a write that was cut short leaves it.

use std::{fs, io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{
    ONE_AT_A_TIME, seed,
    support::{process::eventually, rng::Rng},
    world::{Stores, World},
};

const COPIES: u64 = 6;
const LOAD_MS_MAX: usize = 150;
const STOP_WAIT_MAX: Duration = Duration::from_secs(10);
/// A frame of the log is a page and its header; half of one is what a cut leaves.
const HALF_A_FRAME: usize = 2_060;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_files_has_every_write_that_was_acknowledged_before_it() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let seed = seed()?;
    println!("PLEACH_SEED={seed}");
    let mut rng = Rng::new(seed);
    for stores in [Stores::One, Stores::Four] {
        let mut world = World::new(stores, seed)?;
        for copy in 0..COPIES {
            let copied = copy_under_load(&mut world, &mut rng, copy % 2 == 1).await;
            copied.with_context(|| format!("copy {copy} of {stores:?}, PLEACH_SEED={seed}"))?;
        }
    }
    Ok(())
}

async fn copy_under_load(world: &mut World, rng: &mut Rng, is_damaged: bool) -> Result<()> {
    let channel = world.start().await?;
    let load = world.load(&channel);
    tokio::time::sleep(Duration::from_millis(30 + rng.below(LOAD_MS_MAX) as u64)).await;
    world.node.signal("STOP")?;
    wait_stopped(world.node.id()?).await?;
    let copy = TempDir::with_prefix("pleach-copy-")?;
    copy_databases(world.folder.path(), copy.path(), is_damaged)?;
    fs::create_dir(copy.path().join("data"))?;
    copy_databases(world.node.data_dir(), &copy.path().join("data"), is_damaged)?;
    // A stopped process does nothing more, so the originals stay as the copies are. Answers that
    // are still on their way were sent before it was stopped.
    world.kill()?;
    world.end_of(load).await?;

    let mut node = world.node_over(&copy)?;
    let channel = node.start().await?;
    world.settle(&channel).await.context("the copy")
}

/// A signal is on its way for a moment, in which the process goes on writing.
async fn wait_stopped(process: u32) -> Result<()> {
    eventually("every thread of the node is stopped", STOP_WAIT_MAX, async || {
        for task in fs::read_dir(format!("/proc/{process}/task"))? {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            // The state follows the name, which is in brackets and may hold anything.
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
            ensure!(state == Some('T'), "a thread is in state {state:?}");
        }
        Ok(())
    })
    .await
}

fn copy_databases(from: &Path, to: &Path, is_damaged: bool) -> Result<()> {
    let mut copied = 0;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name().into_string().ok().context("a name that is no text")?;
        if name.ends_with(".db") || name.ends_with(".db-wal") {
            fs::copy(from.join(&name), to.join(&name))?;
            copied += 1;
        }
        if is_damaged && name.ends_with(".db-wal") {
            fs::File::options()
                .append(true)
                .open(to.join(&name))?
                .write_all(&[0xa5; HALF_A_FRAME])?;
        }
    }
    // The folder of a lone node has its database one level below.
    let may_be_none = !from.ends_with("data");
    ensure!(copied > 0 || may_be_none, "there is no database in {}", from.display());
    Ok(())
}

//! The loss of power: what was not synced is gone, or there in part. A kill leaves what the kernel has, so only
//! this shows that a node syncs what it acknowledges before it does.
//!
//! The node runs over a layer that keeps what each file held at its last sync (`layer.rs`). When it is killed, its
//! files are put back to that, with any of the sectors that it wrote since, as a disk may have them. What is never
//! synced, the witness beside a database, is there, cut short, or gone.
//!
//! Not modelled: the names of files. A file that was synced once is found again, whether its folder was synced or
//! not.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tonic::transport::Channel;

use crate::{
    ONE_AT_A_TIME, seed,
    support::rng::Rng,
    world::{Stores, World},
};

/// Losses of power in each test, where `PLEACH_POWER_LOSSES` does not say.
const LOSSES: u64 = 12;
const LOAD_MS_MAX: usize = 200;
const SECTOR: usize = 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_with_the_power() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let seed = seed()?;
    println!("PLEACH_SEED={seed}");
    let losses = env::var("PLEACH_POWER_LOSSES").ok().and_then(|it| it.parse().ok());
    for stores in [Stores::One, Stores::Four] {
        let mut world = World::new(stores, seed)?;
        let power = Power::new(&mut world, None)?;
        let mut rng = Rng::new(seed);
        for loss in 0..losses.unwrap_or(LOSSES) {
            let lost = power.lose(&mut world, &mut rng).await;
            lost.with_context(|| format!("loss {loss} of {stores:?}, PLEACH_SEED={seed}"))?;
        }
        world.start().await.context("the last start")?;
        println!("{stores:?}: {} writes were acknowledged", world.acknowledged());
        ensure!(world.acknowledged() > 100, "hardly anything was written");
    }
    Ok(())
}

/// The same with a disk that does not do every third sync of a log that it says it has done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_is_left_out_is_noticed() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let seed = seed()?;
    println!("PLEACH_SEED={seed}");
    let mut world = World::new(Stores::One, seed)?;
    let power = Power::new(&mut world, Some(3))?;
    let mut rng = Rng::new(seed);
    for _ in 0..LOSSES * 8 {
        // The node starts, and the books do not balance.
        let channel = world.node.start().await?;
        if let Err(error) = world.settle(&channel).await {
            println!("{error:#}");
            return Ok(());
        }
        power.lose_with(&mut world, &mut rng, &channel).await?;
    }
    bail!("nothing was missed in {} losses, PLEACH_SEED={seed}", LOSSES * 8)
}

/// What the node's files would be after a loss of power.
struct Power {
    from: PathBuf,
    kept: PathBuf,
}

// === impl Power ===

impl Power {
    /// Has the world's node run over the layer.
    fn new(world: &mut World, lies: Option<u64>) -> Result<Self> {
        let library = layer()?;
        let from = world.folder.path().canonicalize()?;
        let kept = from.join("kept");
        fs::create_dir_all(&kept)?;
        let (library, folder) = (library.display().to_string(), from.display().to_string());
        world.node.set_env("LD_PRELOAD", &library);
        world.node.set_env("POWER_FROM", &folder);
        world.node.set_env("POWER_TO", &kept.display().to_string());
        if let Some(lies) = lies {
            world.node.set_env("POWER_LIES", &lies.to_string());
        }
        Ok(Self { from, kept })
    }

    /// A start, load, and the end of the power. What the next start finds is looked at there.
    async fn lose(&self, world: &mut World, rng: &mut Rng) -> Result<()> {
        let channel = world.start().await?;
        self.lose_with(world, rng, &channel).await
    }

    /// Load on a node that runs, and the end of the power.
    async fn lose_with(&self, world: &mut World, rng: &mut Rng, channel: &Channel) -> Result<()> {
        let load = world.load(channel);
        tokio::time::sleep(Duration::from_millis(20 + rng.below(LOAD_MS_MAX) as u64)).await;
        world.kill()?;
        world.end_of(load).await?;
        let folders = [self.from.clone(), world.node.data_dir().canonicalize()?];
        for folder in folders {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                let name = path.to_string_lossy();
                if name.ends_with(".db") || name.ends_with(".db-wal") {
                    self.put_back(&path, rng)?;
                } else if name.ends_with(".db-shm") {
                    // The memory that processes share is none any more.
                    fs::remove_file(&path)?;
                } else if name.ends_with(".db.lock") {
                    let text = fs::read(&path)?;
                    match rng.below(3) {
                        0 => {}
                        1 => fs::write(&path, &text[..rng.below(text.len() + 1)])?,
                        _ => fs::write(&path, vec![0; text.len()])?,
                    }
                }
            }
        }
        Ok(())
    }

    /// A file as it was synced last, with some of the sectors that were written since.
    fn put_back(&self, path: &Path, rng: &mut Rng) -> Result<()> {
        let kept = self.kept.join(path.strip_prefix(&self.from)?);
        let live = fs::read(path)?;
        let Ok(mut found) = fs::read(&kept) else {
            // Its very name was not synced.
            return Ok(fs::remove_file(path)?);
        };
        for (at, sector) in live.chunks(SECTOR).enumerate() {
            let at = at * SECTOR;
            if found.get(at..at + sector.len()) == Some(sector) || rng.below(2) == 0 {
                continue;
            }
            if found.len() < at + sector.len() {
                found.resize(at + sector.len(), 0);
            }
            found[at..at + sector.len()].copy_from_slice(sector);
        }
        fs::write(path, &found)?;
        // From here on this is what the disk has.
        Ok(fs::write(&kept, &found)?)
    }
}

/// Builds the layer.
fn layer() -> Result<PathBuf> {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libpower.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/power/layer.rs");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=cdylib", "-O", "-o"])
        .args([&library, &source])
        .output()
        .context("rustc does not start")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(library)
}

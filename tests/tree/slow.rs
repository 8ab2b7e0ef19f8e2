//! A child that is slow, or does not answer at all, and the keys of others.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    ONE_AT_A_TIME,
    call::{get, list, put},
    family::Family,
    support::proxy::Mode,
};

const SLOW: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_secs(4);
const CLIENTS: usize = 4;
/// Far below what the child takes, and far above what others take.
const OTHERS_WITHIN: Duration = Duration::from_millis(100);

/// The ninety-ninth of a hundred.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// How long puts and gets of other keys take, while clients use the child as much as they can.
async fn others(root: &Channel) -> Result<Duration> {
    let done = CancellationToken::new();
    let mut load = JoinSet::new();
    for client in 0..CLIENTS {
        let (channel, done) = (root.clone(), done.clone());
        let use_child = async move {
            loop {
                // What becomes of these is no matter here.
                let _ = get(&channel, &format!("/far/{client}")).await;
                let _ = put(&channel, &format!("/far/{client}"), "x").await;
                let _ = list(&channel).await;
                // A child that is away refuses at once.
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        load.spawn(async move { done.run_until_cancelled(use_child).await.unwrap_or(()) });
    }
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let channel = root.clone();
        clients.spawn(async move {
            let begin = Instant::now();
            let mut times = Vec::new();
            while begin.elapsed() < MEASURED {
                for path in ["/near", "/own"] {
                    let key = format!("{path}/{client}");
                    let asked = Instant::now();
                    put(&channel, &key, "x").await?;
                    times.push(asked.elapsed());
                    let asked = Instant::now();
                    get(&channel, &key).await?;
                    times.push(asked.elapsed());
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = clients.join_next().await {
        times.extend(ended??);
    }
    done.cancel();
    load.join_all().await;
    ensure!(times.len() > 100, "only {} requests", times.len());
    Ok(p99(times))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_or_silent_child_does_not_slow_down_the_keys_of_others() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let family = Family::start().await?;
    let well = others(&family.at_root).await?;
    family.link.set(Mode::Delay(SLOW)).await?;
    let slow = others(&family.at_root).await?;
    family.link.set(Mode::Pass).await?;
    family.far.signal("STOP")?;
    let silent = others(&family.at_root).await?;
    family.far.signal("CONT")?;
    family.reconnect().await?;
    // Nothing is taken off the link, so that it fills up.
    family.link.set(Mode::Stall).await?;
    let full = others(&family.at_root).await?;
    family.link.set(Mode::Pass).await?;
    println!(
        "p99 of others: {well:?}; beside a slow child {slow:?}, a silent one {silent:?}, one behind a \
         full pipe {full:?}"
    );
    // A machine that is busy with other things is slow by itself.
    let bound = OTHERS_WITHIN.max(well * 4);
    ensure!(slow.max(silent).max(full) < bound, "others wait for the child");
    Ok(())
}

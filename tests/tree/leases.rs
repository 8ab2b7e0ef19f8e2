//! Leases are the root's, and the keys under them are wherever their routes lead.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{self as pb, lease_client::LeaseClient};
use tonic::{Code, Status, transport::Channel};

use crate::{
    ONE_AT_A_TIME,
    call::{client, get},
    family::{Family, whole},
    support::process::eventually,
    watch::Watch,
};

const SECONDS: i64 = 4;
/// What may pass after its time until a lease is over: expiry looks twice a second.
const OVER_WITHIN: Duration = Duration::from_secs(5);
const LEASED: [&str; 3] = ["/near/leased", "/far/leased", "/own/leased"];

async fn grant(channel: &Channel) -> Result<i64, Status> {
    let grant = pb::LeaseGrantRequest { ttl: SECONDS, id: 0 };
    Ok(LeaseClient::new(channel.clone()).lease_grant(grant).await?.into_inner().id)
}

async fn put_leased(channel: &Channel, key: &str, lease: i64) -> Result<i64, Status> {
    let (key, value) = (key.to_owned().into(), "leased".into());
    let put = pb::PutRequest { key, value, lease, ..Default::default() };
    let answer = client(channel).put(put).await?.into_inner();
    Ok(answer.header.map_or(0, |header| header.revision))
}

/// Waits until no key of the lease is there any more. How long that took.
async fn gone(channel: &Channel, within: Duration) -> Result<Duration> {
    let begin = Instant::now();
    eventually("the keys of the lease are gone", within, async || {
        for key in LEASED {
            ensure!(get(channel, key).await?.is_none(), "{key} is still there");
        }
        Ok(())
    })
    .await?;
    Ok(begin.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_the_root_governs_keys_in_children_and_ends_after_a_restart() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut family = Family::start().await?;
    let lease = grant(&family.at_root).await?;
    let mut last = 0;
    for key in LEASED {
        last = put_leased(&family.at_root, key, lease).await?;
    }
    let mut at_far = Watch::open(&family.at_far, "/far/", "/far0", 1).await?;
    let mut spanning = Watch::all(&family.at_root, last + 1).await?;

    family.root.kill()?;
    drop(spanning);
    let root = family.root.start().await?;
    whole(&root).await?;
    spanning = Watch::all(&root, last + 1).await?;
    for key in LEASED {
        get(&root, key).await?.with_context(|| format!("{key} went with the root"))?;
    }
    let lived = gone(&root, Duration::from_secs(SECONDS as u64) + OVER_WITHIN).await?;
    println!("the keys were gone {lived:?} after the restart, with a lease of {SECONDS} s");

    // Their ends are told at every level.
    let (end, _) = crate::call::list(&root).await?;
    spanning.reach(end).await?;
    let mut ended: Vec<_> = spanning.events.iter().filter(|event| event.now.is_none()).collect();
    ended.sort_by(|a, b| a.key.cmp(&b.key));
    let keys: Vec<_> = ended.iter().map(|event| event.key.as_str()).collect();
    ensure!(keys == ["/far/leased", "/near/leased", "/own/leased"], "{keys:?}");
    let (end, _) = crate::call::list(&family.at_far).await?;
    at_far.reach(end).await?;
    let last = at_far.events.last().context("the child told nothing")?;
    ensure!(last.key == "/far/leased" && last.now.is_none(), "{last:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_revoked_takes_its_keys_in_children_with_it() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let family = Family::start().await?;
    let lease = grant(&family.at_root).await?;
    for key in LEASED {
        put_leased(&family.at_root, key, lease).await?;
    }
    let revoke = pb::LeaseRevokeRequest { id: lease };
    LeaseClient::new(family.at_root.clone()).lease_revoke(revoke).await?;
    for key in LEASED {
        ensure!(get(&family.at_root, key).await?.is_none(), "{key} is still there");
    }
    let refused = put_leased(&family.at_root, "/far/leased", lease).await;
    let status = refused.err().context("a key was put under a lease that is gone")?;
    let text = "etcdserver: requested lease not found";
    ensure!(status.code() == Code::NotFound && status.message() == text, "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ends_while_a_child_is_away_takes_its_keys_there_when_it_is_back() -> Result<()>
{
    let _turn = ONE_AT_A_TIME.lock().await;
    let family = Family::start().await?;
    let lease = grant(&family.at_root).await?;
    for key in LEASED {
        put_leased(&family.at_root, key, lease).await?;
    }
    family.cut_off().await?;
    let near = Duration::from_secs(SECONDS as u64) + OVER_WITHIN;
    eventually("the keys that can be reached are gone", near, async || {
        for key in ["/near/leased", "/own/leased"] {
            ensure!(get(&family.at_root, key).await?.is_none(), "{key} is still there");
        }
        Ok(())
    })
    .await?;
    let there = get(&family.at_far, "/far/leased").await?;
    ensure!(there.is_some(), "nobody could have ended it");
    family.reconnect().await?;
    gone(&family.at_root, OVER_WITHIN).await.map(drop)
}

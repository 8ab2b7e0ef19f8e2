//! Plain etcds.

use anyhow::{Result, ensure};
use etcd_client::Client;

use crate::support::etcd::Etcd;

#[tokio::test]
async fn an_etcd_keeps_its_data_and_its_users_through_a_kill() -> Result<()> {
    let mut etcd = Etcd::new()?;
    etcd.start().await?;
    etcd.client().await?.put("key", "value", None).await?;
    etcd.enable_auth().await?;
    etcd.kill().await?;
    etcd.start().await?;
    let kept = etcd.client().await?.get("key", None).await?;
    ensure!(kept.kvs().first().is_some_and(|kv| kv.value() == b"value"), "the value is gone");
    let mut stranger = Client::connect([etcd.url()], None).await?;
    let refused = stranger.get("key", None).await;
    ensure!(refused.is_err(), "it answers without a password");
    Ok(())
}

#[tokio::test]
async fn an_etcd_speaks_tls() -> Result<()> {
    let mut etcd = Etcd::new()?.with_tls()?;
    etcd.start().await?;
    etcd.client().await?.put("key", "value", None).await?;
    etcd.stop().await
}

#[tokio::test]
async fn a_cluster_survives_one_of_its_members() -> Result<()> {
    let mut members = Etcd::cluster(3)?;
    members.iter_mut().try_for_each(Etcd::spawn)?;
    for member in &mut members {
        member.ready().await?;
    }
    members[0].client().await?.put("key", "value", None).await?;
    members[0].kill().await?;
    members[1].ready().await?;
    let kept = members[1].client().await?.get("key", None).await?;
    ensure!(kept.kvs().len() == 1, "the value is gone");
    members[0].start().await
}

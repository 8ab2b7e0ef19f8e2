//! The etcd-client crate, which others wrote against etcd.

use anyhow::{Context as _, Result, ensure};
use etcd_client::{
    AlarmAction, AlarmType, Client, CompactionOptions, Compare, CompareOp, DeleteOptions,
    EventType, GetOptions, LockOptions, ProclaimOptions, PutOptions, ResignOptions, Txn, TxnOp,
    WatchOptions,
};
use tempfile::TempDir;

use crate::support::node::Node;

async fn connect() -> Result<(TempDir, Node, Client)> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    node.start().await?;
    let client = Client::connect([node.url()], None).await?;
    Ok((folder, node, client))
}

#[tokio::test]
async fn it_puts_gets_and_deletes() -> Result<()> {
    let (_folder, _node, mut client) = connect().await?;
    for index in 0..1_500 {
        client.put(format!("k/{index:04}"), format!("{index}"), None).await?;
    }
    let options = GetOptions::new().with_prefix().with_limit(10);
    let page = client.get("k/", Some(options)).await?;
    ensure!(page.kvs().len() == 10 && page.count() == 1_500 && page.more(), "{page:?}");
    let put = client.put("k/0000", "new", Some(PutOptions::new().with_prev_key())).await?;
    ensure!(put.prev_key().is_some_and(|kv| kv.value() == b"0"), "{put:?}");
    let options = DeleteOptions::new().with_prefix().with_prev_key();
    let deleted = client.delete("k/", Some(options)).await?;
    ensure!(deleted.deleted() == 1_500 && deleted.prev_kvs().len() == 1_500, "all");
    Ok(())
}

#[tokio::test]
async fn it_guards_transactions() -> Result<()> {
    let (_folder, _node, mut client) = connect().await?;
    let create = || {
        Txn::new()
            .when([Compare::create_revision("t", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("t", "1", None)])
            .or_else([TxnOp::get("t", None)])
    };
    ensure!(client.txn(create()).await?.succeeded(), "the first create is refused");
    let second = client.txn(create()).await?;
    ensure!(!second.succeeded() && second.op_responses().len() == 1, "{second:?}");
    Ok(())
}

#[tokio::test]
async fn it_watches_from_the_past_with_previous_values() -> Result<()> {
    let (_folder, _node, mut client) = connect().await?;
    let first = client.put("w", "1", None).await?.header().context("no header")?.revision();
    client.put("w", "2", None).await?;
    let options = WatchOptions::new().with_start_revision(first).with_prev_key();
    let mut watch = client.watch("w", Some(options)).await?;
    client.delete("w", None).await?;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let response = watch.message().await?.context("the watch ended")?;
        for event in response.events() {
            seen.push((event.event_type(), event.prev_kv().map(|kv| kv.value().to_vec())));
        }
    }
    let expected = [
        (EventType::Put, None),
        (EventType::Put, Some(b"1".to_vec())),
        (EventType::Delete, Some(b"2".to_vec())),
    ];
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn it_grants_keeps_and_revokes_leases() -> Result<()> {
    let (_folder, _node, mut client) = connect().await?;
    let lease = client.lease_grant(30, None).await?.id();
    client.put("l", "x", Some(PutOptions::new().with_lease(lease))).await?;
    let (mut keeper, mut kept) = client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    let answer = kept.message().await?.context("the stream ended")?;
    ensure!(answer.ttl() == 30, "{answer:?}");
    ensure!(client.leases().await?.leases().len() == 1, "not one lease");
    client.lease_revoke(lease).await?;
    ensure!(client.get("l", None).await?.kvs().is_empty(), "the key outlived its lease");
    ensure!(client.lease_time_to_live(lease, None).await?.ttl() == -1, "it has time left");
    Ok(())
}

#[tokio::test]
async fn it_locks_and_elects() -> Result<()> {
    let (_folder, _node, mut client) = connect().await?;
    let lease = client.lease_grant(30, None).await?.id();
    let options = LockOptions::new().with_lease(lease);
    let key = client.lock("door", Some(options)).await?.key().to_vec();
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.lock("door", None).await });
    client.unlock(key).await?;
    waiting.await??;

    let won = client.campaign("chair", "ann", lease).await?;
    let leader = client.leader("chair").await?;
    ensure!(leader.kv().is_some_and(|kv| kv.value() == b"ann"), "{leader:?}");
    let mut observed = client.observe("chair").await?;
    let seen = observed.message().await?.context("the stream ended")?;
    ensure!(seen.kv().is_some_and(|kv| kv.value() == b"ann"), "{seen:?}");
    let leader = won.leader().cloned().context("nobody leads")?;
    let options = ProclaimOptions::new().with_leader(leader.clone());
    client.proclaim("bob", Some(options)).await?;
    let seen = observed.message().await?.context("the stream ended")?;
    ensure!(seen.kv().is_some_and(|kv| kv.value() == b"bob"), "{seen:?}");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    ensure!(client.leader("chair").await.is_err(), "somebody leads an empty line");
    Ok(())
}

#[tokio::test]
async fn it_compacts_and_asks_for_the_state_of_things() -> Result<()> {
    let (_folder, node, mut client) = connect().await?;
    for _ in 0..5 {
        client.put("c", "x", None).await?;
    }
    client.compact(5, Some(CompactionOptions::new().with_physical())).await?;
    let old = client.get("c", Some(GetOptions::new().with_revision(4))).await;
    ensure!(old.is_err_and(|error| error.to_string().contains("compacted")), "it was answered");
    let status = client.status().await?;
    ensure!(status.version() == "3.7.3" && status.db_size() > 0, "{status:?}");
    ensure!(client.hash_kv(0).await?.hash() == client.hash_kv(6).await?.hash(), "hashes");
    client.hash().await?;
    client.defragment().await?;
    let members = client.member_list().await?;
    let url = members.members()[0].client_urls()[0].clone();
    ensure!(members.members().len() == 1 && url == node.url(), "{members:?}");
    let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
    ensure!(alarms.alarms().is_empty(), "{alarms:?}");
    Ok(())
}

//! Who may be a node's parent, and what a stranger can do: nothing.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::{
    etcdserverpb::{self as pb, kv_client::KvClient},
    tree::{self as tree, tree_client::TreeClient},
};
use tempfile::TempDir;
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

use crate::{
    call::{get, list, put},
    support::{node::Node, process::eventually},
};

const SOON: Duration = Duration::from_secs(20);

/// A number beyond which there are no revisions.
const REVISIONS_END: i64 = 1 << 53;

fn node(folder: &Path, name: &str, flags: &[&str]) -> Result<Node> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    let name = format!("--name={name}");
    Node::new(&folder, &[&[name.as_str()], flags].concat())
}

/// A root with everything below `/b/` in `child`.
fn root_of(folder: &Path, name: &str, child: &Node, flags: &[&str]) -> Result<Node> {
    node(folder, name, flags)?.with_routes_to(&[("/b/", child.url())])
}

async fn attached(channel: &Channel, value: &str) -> Result<i64> {
    eventually("the child is attached", SOON, async || Ok(put(channel, "/b/x", value).await?)).await
}

async fn refused_with(channel: &Channel, part: &str) -> Result<String> {
    eventually("it is refused", SOON, async || {
        let status = put(channel, "/b/x", "x").await.err().context("it is taken")?;
        ensure!(status.message().contains(part), "{status:?} does not say `{part}`");
        Ok(status.message().to_owned())
    })
    .await
}

/// A request as somebody sends it who knows all that can be asked for.
fn forged<T>(message: T, clock: i64, giver: u64) -> Request<T> {
    use prost::Message as _;
    let mut request = Request::new(message);
    let nodes = vec![tree::Member { id: giver, name: "root".to_owned() }];
    let path = tree::Path { nodes }.encode_to_vec();
    let metadata = request.metadata_mut();
    metadata.insert("pleach-clock", clock.into());
    metadata.insert_bin("pleach-path-bin", MetadataValue::from_bytes(&path));
    metadata.insert("pleach-process", "1".parse().expect("it is ASCII"));
    request
}

/// Everything that the tree service can be asked, each with a clock at the end of all revisions.
async fn attack(channel: &Channel, giver: u64) -> Result<Vec<(&'static str, Result<(), Status>)>> {
    let mut client = TreeClient::new(channel.clone());
    let far = REVISIONS_END - 1;
    let put = pb::PutRequest { key: "stranger".into(), value: "x".into(), ..Default::default() };
    let op = pb::request_op::Request::RequestPut(put);
    let success = vec![pb::RequestOp { request: Some(op) }];
    let txn = Some(pb::TxnRequest { success, ..Default::default() });
    let lanes = vec![tree::Lanes { first: 1, count: 1 }];
    let join = tree::JoinRequest { lanes, credential: "guessed".into() };
    let closed = tree::AdvanceClosedRequest { revision: far, ahead: far };
    let follow = tree::FollowRequest { after: far, ranges: Vec::new() };
    let apply = tree::ApplyRequest { txn, ..Default::default() };
    Ok(vec![
        ("Join", client.join(forged(join, far, giver)).await.map(drop)),
        (
            "Join, empty",
            client.join(forged(tree::JoinRequest::default(), far, giver)).await.map(drop),
        ),
        ("AdvanceClosed", client.advance_closed(forged(closed, far, giver)).await.map(drop)),
        (
            "ReadIndex",
            client
                .read_index(forged(tree::ReadIndexRequest::default(), far, giver))
                .await
                .map(drop),
        ),
        ("Apply", client.apply(forged(apply, far, giver)).await.map(drop)),
        (
            "EndLease",
            client
                .end_lease(forged(tree::EndLeaseRequest { lease: 7, leases_ended: 9 }, far, giver))
                .await
                .map(drop),
        ),
        ("Leases", client.leases(forged(tree::LeasesRequest {}, far, giver)).await.map(drop)),
        (
            "Read",
            client
                .read(forged(tree::ReadRequest { revision: far, ..Default::default() }, far, giver))
                .await
                .map(drop),
        ),
        (
            "Count",
            client
                .count(forged(
                    tree::CountRequest { revision: far, ..Default::default() },
                    far,
                    giver,
                ))
                .await
                .map(drop),
        ),
        (
            "Compact",
            client
                .compact(forged(tree::CompactRequest { revision: far, wait: false }, far, giver))
                .await
                .map(drop),
        ),
        ("Follow", client.follow(forged(follow, far, giver)).await.map(drop)),
    ])
}

/// Nothing that a stranger asks moves a clock: not of a root, and not of a child whose parent's id is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused_by_every_verb_and_moves_no_clock() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child", &[])?;
    let child_channel = child.start().await?;
    let mut root = root_of(folder.path(), "root", &child, &["--parent=nobody"])?;
    let root_channel = root.start().await?;
    attached(&root_channel, "before").await?;
    for channel in [&root_channel, &child_channel] {
        let mut asking = TreeClient::new(channel.clone());
        let described =
            asking.describe(forged(tree::DescribeRequest {}, REVISIONS_END - 1, 77)).await?;
        let described = described.into_inner();
        let giver = described.giver.as_ref().map_or(77, |giver| giver.id);
        for (verb, answer) in attack(channel, giver).await? {
            let status = answer.err().with_context(|| format!("{verb} is answered"))?;
            let is_told = ["answers only", "does not show", "--parent"];
            ensure!(is_told.iter().any(|it| status.message().contains(it)), "{verb}: {status:?}");
        }
        let explain = tree::ExplainRequest {
            key: "a".into(),
            revision: REVISIONS_END - 1,
            ..Default::default()
        };
        let explained = asking.explain(forged(explain, REVISIONS_END - 1, giver)).await;
        let status = explained.err().context("a stranger reads the future")?;
        ensure!(status.message().contains("future revision"), "{status:?}");
        let after = asking.describe(tree::DescribeRequest {}).await?.into_inner();
        ensure!(
            after.revision < described.revision + (1 << 30),
            "the clock leapt to {}",
            after.revision
        );
    }
    put(&root_channel, "a", "x").await?;
    put(&child_channel, "/b/own", "x").await?;
    ensure!(get(&root_channel, "stranger").await?.is_none(), "a stranger wrote");
    ensure!(get(&child_channel, "stranger").await?.is_none(), "a stranger wrote");
    // And both start again.
    root.kill()?;
    child.kill()?;
    child.start().await?;
    let root_channel = root.start().await?;
    let revision = attached(&root_channel, "after").await?;
    ensure!(revision < REVISIONS_END / 2, "revision {revision}");
    Ok(())
}

/// What may not be asked is refused before it is read: a large body takes no memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_of_strangers_take_no_memory() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = node(folder.path(), "alone", &[])?;
    let channel = node.start().await?;
    put(&channel, "a", "x").await?;
    let before = node.memory_bytes()?;
    let value = vec![b'v'; 64 << 20];
    let mut sending = Vec::new();
    for at in 0..4 {
        let channel = node.channel()?;
        let put =
            pb::PutRequest { key: "k".into(), value: value.clone().into(), ..Default::default() };
        sending.push(tokio::spawn(async move {
            if at % 2 == 0 {
                let op = pb::request_op::Request::RequestPut(put);
                let success = vec![pb::RequestOp { request: Some(op) }];
                let txn = Some(pb::TxnRequest { success, ..Default::default() });
                let apply = tree::ApplyRequest { txn, ..Default::default() };
                return TreeClient::new(channel).apply(apply).await.map(drop);
            }
            KvClient::new(channel).put(put).await.map(drop)
        }));
    }
    for sent in sending {
        sent.await?.err().context("it is taken")?;
    }
    let after = node.memory_bytes()?;
    // The windows of the connections, and what an allocator keeps; not what was sent.
    ensure!(after < before + (60 << 20), "{before} bytes before, {after} after");
    put(&channel, "a", "y").await?;
    Ok(())
}

/// Two parents: the first keeps its child, and the second hears its name; both say so in their logs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_parent_is_refused_until_the_childs_operator_names_it() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child", &[])?;
    child.start().await?;
    let mut first = root_of(folder.path(), "first", &child, &[])?;
    let first_channel = first.start().await?;
    attached(&first_channel, "of the first").await?;
    let mut second = root_of(folder.path(), "second", &child, &[])?;
    let second_channel = second.start().await?;
    let said = refused_with(&second_channel, "has the parent `first`").await?;
    ensure!(said.contains("--parent second:"), "the remedy is missing: {said}");
    put(&first_channel, "/b/x", "still of the first").await?;
    let in_log = |node: &Node| node.log().contains("has the parent `first`");
    eventually("both logs say so", SOON, async || {
        ensure!(in_log(&second) && in_log(&child), "a log does not say so");
        Ok(())
    })
    .await?;

    // Another restart of the child changes nothing; its operator's word does.
    child.kill()?;
    child.start().await?;
    attached(&first_channel, "after a restart").await?;
    refused_with(&second_channel, "has the parent `first`").await?;
    child.kill()?;
    child.add_flag("--parent=second");
    child.start().await?;
    attached(&second_channel, "of the second").await?;
    refused_with(&first_channel, "has the parent `second`").await?;
    Ok(())
}

/// A copy of a root's data, started beside the root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_root_is_refused_by_the_child_for_as_long_as_the_root_lives() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child", &[])?;
    child.start().await?;
    let mut root = root_of(folder.path(), "root", &child, &[])?;
    let channel = root.start().await?;
    attached(&channel, "before").await?;
    root.kill()?;
    let copied = folder.path().join("copy");
    fs::create_dir_all(copied.join("data"))?;
    for file in fs::read_dir(root.data_dir())? {
        let file = file?;
        fs::copy(file.path(), copied.join("data").join(file.file_name()))?;
    }
    let channel = root.start().await?;
    attached(&channel, "of the root").await?;
    let mut copy = Node::new(&copied, &["--name=root"])?.with_routes_to(&[("/b/", child.url())])?;
    let of_copy = copy.start().await?;
    refused_with(&of_copy, "has a copy of the other's data").await?;
    for at in 0..20 {
        put(&channel, "/b/x", &at.to_string()).await?;
        ensure!(put(&of_copy, "/b/x", "copy").await.is_err(), "the copy writes through the child");
    }
    ensure!(get(&channel, "/b/x").await?.as_deref() == Some("19"), "it is not the root's");
    // Whoever is left is the root.
    root.kill()?;
    attached(&of_copy, "of the copy").await?;
    Ok(())
}

/// A secret that both operators gave their nodes lets a parent in; without it nobody gets in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_lets_a_parent_in_and_may_be_replaced() -> Result<()> {
    let folder = TempDir::new()?;
    let secret = folder.path().join("secret");
    fs::write(&secret, "hush\n")?;
    let flag = format!("--tree-secret-file={}", secret.display());
    let wrong = folder.path().join("wrong");
    fs::write(&wrong, "hash\n")?;
    let mut child = node(folder.path(), "child", &[&flag])?;
    child.start().await?;
    let mut stranger = root_of(folder.path(), "stranger", &child, &[])?;
    let channel = stranger.start().await?;
    refused_with(&channel, "does not show the secret").await?;
    stranger.kill()?;
    let other = format!("--tree-secret-file={}", wrong.display());
    let mut guesser = root_of(folder.path(), "guesser", &child, &[&other])?;
    let channel = guesser.start().await?;
    refused_with(&channel, "does not show the secret").await?;
    guesser.kill()?;
    let mut root = root_of(folder.path(), "root", &child, &[&flag])?;
    let channel = root.start().await?;
    attached(&channel, "it knows").await?;
    // What was agreed upon at the first joining holds, whatever is in the file by then.
    fs::write(&secret, "another\n")?;
    child.kill()?;
    child.start().await?;
    attached(&channel, "after a restart").await?;
    let (_, kvs) = list(&channel).await?;
    ensure!(kvs.len() == 1, "{kvs:?}");
    for node in [&child, &root] {
        ensure!(!node.log().contains("hush"), "a secret stands in a log");
    }
    Ok(())
}

/// Who is let to ask and is refused for his lanes moves no clock either, however often he asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_is_refused_moves_no_clock() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child", &[])?;
    child.start().await?;
    let mut root = root_of(folder.path(), "root", &child, &[])?;
    let channel = root.start().await?;
    let before = attached(&channel, "before").await?;
    for step in 1..=8 {
        // Too few for the child that the root has.
        let lanes = vec![tree::Lanes { first: 5, count: 1 }];
        let join = tree::JoinRequest { lanes, credential: "agreed".into() };
        let asked = TreeClient::new(channel.clone()).join(forged(join, step << 49, 77)).await;
        let status = asked.err().context("a parent with too few lanes is taken")?;
        // From the third on it is so far ahead that it is refused for that.
        let is_told = ["lanes left", "was driven up"];
        ensure!(is_told.iter().any(|it| status.message().contains(it)), "{status:?}");
    }
    let after = put(&channel, "own", "x").await?;
    ensure!(after < before + (1 << 40), "the clock leapt from {before} to {after}");
    Ok(())
}

/// A parent that is let in asks for no more than its clients may: no lease that is none, nothing beyond what
/// either has reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_asks_for_nothing_that_no_client_may() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child", &["--parent=root"])?;
    let channel = child.start().await?;
    let written = put(&channel, "kept", "without a lease").await?;
    let mut client = TreeClient::new(channel.clone());
    let lanes = vec![tree::Lanes { first: 1, count: 16 }];
    let join = tree::JoinRequest { lanes, credential: "agreed".into() };
    client.join(forged(join, written, 77)).await?;
    fn shown<T>(message: T, clock: i64) -> Request<T> {
        let mut request = forged(message, clock, 77);
        let credential = MetadataValue::from_bytes(b"agreed");
        request.metadata_mut().insert_bin("pleach-credential-bin", credential);
        request
    }
    let before = client.leases(shown(tree::LeasesRequest {}, written)).await;
    before.context("the parent is not let in")?;
    let far = written + (1 << 30);
    let none = tree::EndLeaseRequest { lease: 0, leases_ended: 0 };
    let refused = client.end_lease(shown(none, written)).await.err();
    let refused = refused.context("the lease of keys without one was ended")?;
    ensure!(refused.code() == tonic::Code::InvalidArgument, "{refused:?}");
    // Clients may choose such an id.
    let chosen = tree::EndLeaseRequest { lease: -5, leases_ended: 0 };
    client.end_lease(shown(chosen, written)).await?;
    let read = tree::ReadRequest { revision: far, range_end: "\0".into(), ..Default::default() };
    let count = tree::CountRequest { revision: far, range_end: "\0".into(), ..Default::default() };
    let compact = tree::CompactRequest { revision: far, wait: false };
    for refused in [
        client.read(shown(read, written)).await.map(drop),
        client.count(shown(count, written)).await.map(drop),
        client.compact(shown(compact, written)).await.map(drop),
    ] {
        let refused = refused.err().context("what lies ahead of both was answered")?;
        ensure!(refused.code() == tonic::Code::OutOfRange, "{refused:?}");
    }
    ensure!(get(&channel, "kept").await?.is_some(), "a key without a lease is gone");
    let after = put(&channel, "own", "x").await?;
    ensure!(after < far, "the clock leapt from {written} to {after}");
    Ok(())
}

/// A clock that was driven up goes back with the documented command, where nothing was written there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_driven_up_is_mended_by_a_command() -> Result<()> {
    let folder = TempDir::new()?;
    let mut child = node(folder.path(), "child", &["--parent=root"])?;
    let channel = child.start().await?;
    put(&channel, "/b/own", "x").await?;
    // A parent that is let in, and whose clock is far ahead.
    let mut client = TreeClient::new(channel.clone());
    let lanes = vec![tree::Lanes { first: 1, count: 16 }];
    let join = tree::JoinRequest { lanes, credential: "agreed".into() };
    client.join(forged(join, 1 << 49, 77)).await?;
    let revision = put(&channel, "/b/own", "y").await?;
    ensure!(revision > 1 << 49, "the clock was not driven up: {revision}");
    // No write may lie there, or it stays.
    child.kill()?;
    let alone = folder.path().join("alone");
    fs::create_dir_all(&alone)?;
    let mut other = Node::new(&alone, &["--parent=root"])?;
    let channel = other.start().await?;
    let before = put(&channel, "own", "x").await?;
    let lanes = vec![tree::Lanes { first: 1, count: 16 }];
    let join = tree::JoinRequest { lanes, credential: "agreed".into() };
    TreeClient::new(channel.clone()).join(forged(join, 1 << 49, 77)).await?;
    other.signal("TERM")?;
    other.ended().await?;
    let data = format!("--data-dir={}", other.data_dir().display());
    let repaired = std::process::Command::new(env!("CARGO_BIN_EXE_pleach"))
        .args(["repair", "clock", &data])
        .output()?;
    let said = String::from_utf8_lossy(&repaired.stdout).into_owned();
    ensure!(repaired.status.success(), "{said} {}", String::from_utf8_lossy(&repaired.stderr));
    ensure!(said.contains(&format!("goes on at {before}")), "{said}");
    let channel = other.start().await?;
    let after = put(&channel, "own", "y").await?;
    ensure!(after > before && after < 1 << 40, "revision {after}");
    Ok(())
}

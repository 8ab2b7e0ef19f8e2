//! Short ways to read and write.

use anyhow::{Context as _, Result, ensure};
use pleach::proto::{
    etcdserverpb::{self as pb, kv_client::KvClient},
    mvccpb::KeyValue,
};
use tonic::{Code, Status, transport::Channel};

pub(crate) fn client(channel: &Channel) -> KvClient<Channel> {
    KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX)
}

pub(crate) async fn put(channel: &Channel, key: &str, value: &str) -> Result<i64, Status> {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    let put = pb::PutRequest { key, value, ..Default::default() };
    Ok(revision(client(channel).put(put).await?.into_inner().header))
}

/// The value of a key.
pub(crate) async fn get(channel: &Channel, key: &str) -> Result<Option<String>, Status> {
    let (_, mut kvs) = range(channel, key, "").await?;
    Ok(kvs.pop().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
}

/// All keys of a node, and the revision as of which they were read.
pub(crate) async fn list(channel: &Channel) -> Result<(i64, Vec<KeyValue>), Status> {
    range(channel, "\0", "\0").await
}

pub(crate) async fn range(
    channel: &Channel,
    key: &str,
    end: &str,
) -> Result<(i64, Vec<KeyValue>), Status> {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    let read = pb::RangeRequest { key, range_end, ..Default::default() };
    let answer = client(channel).range(read).await?.into_inner();
    Ok((revision(answer.header), answer.kvs))
}

fn revision(header: Option<pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// An answer that must say that a route can't be used, by its name.
pub(crate) fn ensure_away<T>(answer: Result<T, Status>, route: &str) -> Result<()> {
    let status = answer.err().with_context(|| format!("`{route}` is away, and was answered"))?;
    let is_named = status.message().contains(&format!("`{route}"));
    ensure!(status.code() == Code::Unavailable && is_named, "{status:?} does not name `{route}`");
    Ok(())
}

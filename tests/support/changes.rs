//! What happened to keys, as a watch must tell it, and watch streams that tell it.

use anyhow::{Context as _, Result, bail};
use pleach::proto::{
    etcdserverpb::{
        self as pb, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::{self, event::EventType},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

/// A key as it is, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) value: String,
    pub(crate) create: i64,
    pub(crate) modified: i64,
    pub(crate) version: i64,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) revision: i64,
    pub(crate) key: String,
    /// `None` for a deletion.
    pub(crate) now: Option<Row>,
    pub(crate) before: Option<Row>,
}

/// Opens a watch stream with one watch. It lasts as long as the sender.
pub(crate) async fn open_watch(
    channel: Channel,
    create: pb::WatchCreateRequest,
) -> Result<(mpsc::Sender<pb::WatchRequest>, Streaming<WatchResponse>)> {
    let (requests, sent) = mpsc::channel(1);
    let request_union = Some(RequestUnion::CreateRequest(create));
    requests.send(pb::WatchRequest { request_union }).await?;
    let answer = WatchClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .watch(ReceiverStream::new(sent))
        .await?;
    Ok((requests, answer.into_inner()))
}

// === impl Row ===

impl From<&mvccpb::KeyValue> for Row {
    fn from(kv: &mvccpb::KeyValue) -> Self {
        Self {
            value: String::from_utf8_lossy(&kv.value).into_owned(),
            create: kv.create_revision,
            modified: kv.mod_revision,
            version: kv.version,
        }
    }
}

// === impl Event ===

impl TryFrom<&mvccpb::Event> for Event {
    type Error = anyhow::Error;

    fn try_from(event: &mvccpb::Event) -> Result<Self> {
        let kv = event.kv.as_ref().context("an event without a key")?;
        let now = match event.r#type() {
            EventType::Put => Some(Row::from(kv)),
            EventType::Delete if kv.value.is_empty() && kv.version == 0 => None,
            EventType::Delete => bail!("a deletion with a value: {event:?}"),
        };
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        let before = event.prev_kv.as_ref().map(Row::from);
        Ok(Self { revision: kv.mod_revision, key, now, before })
    }
}

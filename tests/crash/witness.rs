//! A client that watches, and resumes behind the last revision it saw whenever its node dies.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pleach::proto::{
    etcdserverpb::{
        self as pb, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::{self, event::EventType},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::ledger::{Event, Row};

/// Between two attempts to reach a node that is down.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Witness {
    key: String,
    range_end: String,
    /// The first revision that it has not seen.
    next: i64,
    pub(crate) events: Vec<Event>,
    /// How many writers will write the key that ends what there is to see.
    lasts: usize,
}

// === impl Witness ===

impl Witness {
    pub(crate) fn new(key: &str, range_end: &str, lasts: usize) -> Self {
        let (key, range_end) = (key.to_owned(), range_end.to_owned());
        Self { key, range_end, next: 1, events: Vec::new(), lasts }
    }

    pub(crate) async fn run(mut self, channel: Channel) -> Result<Self> {
        loop {
            if let Ok((requests, mut responses)) = self.open(channel.clone()).await {
                // The request side stays open, since a watch ends with it.
                while let Ok(Some(response)) = responses.message().await {
                    self.take(response)?;
                    if self.lasts == 0 {
                        return Ok(self);
                    }
                }
                drop(requests);
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn open(
        &self,
        channel: Channel,
    ) -> Result<(tokio::sync::mpsc::Sender<pb::WatchRequest>, Streaming<WatchResponse>)> {
        let create = pb::WatchCreateRequest {
            key: self.key.clone().into(),
            range_end: self.range_end.clone().into(),
            start_revision: self.next,
            prev_kv: true,
            ..Default::default()
        };
        open_watch(channel, create).await
    }

    fn take(&mut self, response: WatchResponse) -> Result<()> {
        ensure!(!response.canceled, "the watch from {} was canceled: {response:?}", self.next);
        let mut newest = self.next;
        for event in &response.events {
            let event = Event::try_from(event)?;
            ensure!(event.revision >= newest, "{event:?} came after revision {newest}");
            newest = event.revision;
            self.lasts -= usize::from(event.key.ends_with("/last"));
            self.events.push(event);
        }
        if let Some(last) = self.events.last() {
            self.next = last.revision + 1;
        }
        Ok(())
    }
}

/// Opens a watch stream with one watch. It lasts as long as the sender.
pub(crate) async fn open_watch(
    channel: Channel,
    create: pb::WatchCreateRequest,
) -> Result<(tokio::sync::mpsc::Sender<pb::WatchRequest>, Streaming<WatchResponse>)> {
    let (requests, sent) = tokio::sync::mpsc::channel(1);
    let request_union = Some(RequestUnion::CreateRequest(create));
    requests.send(pb::WatchRequest { request_union }).await?;
    let answer = WatchClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .watch(ReceiverStream::new(sent))
        .await?;
    Ok((requests, answer.into_inner()))
}

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

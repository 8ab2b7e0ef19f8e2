//! A watch, from a revision on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{
    self as pb, watch_client::WatchClient, watch_request::RequestUnion,
};
use tokio::sync::mpsc;
use tonic::{Streaming, transport::Channel};

const SAID_WITHIN: Duration = Duration::from_secs(20);

pub(crate) struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watch {
    pub(crate) async fn start(channel: &Channel, revision: i64) -> Result<Self> {
        Self::open(channel, b"\0", b"\0", revision).await
    }

    /// A watch of the keys that begin with `prefix`.
    pub(crate) async fn below(channel: &Channel, prefix: &str, revision: i64) -> Result<Self> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().context("an empty prefix")? += 1;
        Self::open(channel, prefix.as_bytes(), &end, revision).await
    }

    async fn open(channel: &Channel, key: &[u8], end: &[u8], revision: i64) -> Result<Self> {
        let create = pb::WatchCreateRequest {
            key: key.to_vec().into(),
            range_end: end.to_vec().into(),
            start_revision: revision,
            ..Default::default()
        };
        let (requests, sent) = mpsc::channel(1);
        let request_union = Some(RequestUnion::CreateRequest(create));
        requests.send(pb::WatchRequest { request_union }).await?;
        let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
        let mut responses = WatchClient::new(channel.clone()).watch(sent).await?.into_inner();
        let created = responses.message().await?.context("the stream ended")?;
        ensure!(created.created, "{created:?}");
        Ok(Self { requests, responses })
    }

    /// Asks how far all watches of the stream are.
    pub(crate) async fn ask_progress(&self) -> Result<()> {
        let request_union = Some(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
        Ok(self.requests.send(pb::WatchRequest { request_union }).await?)
    }

    pub(crate) async fn next(&mut self) -> Result<pb::WatchResponse> {
        let next = tokio::time::timeout(SAID_WITHIN, self.responses.message()).await;
        next.context("nothing is said")??.context("the stream ended")
    }

    /// It is ended as compacted, whatever comes before that.
    pub(crate) async fn ensure_ends_compacted(mut self) -> Result<()> {
        while self.next().await?.compact_revision == 0 {}
        Ok(())
    }

    /// It is ended as compacted, with no event before that.
    pub(crate) async fn ensure_compacted(mut self) -> Result<()> {
        let next = self.next().await?;
        ensure!(next.compact_revision > 0 && next.events.is_empty(), "it goes on: {next:?}");
        Ok(())
    }
}

//! A client that watches, and resumes behind the last revision it saw whenever its node dies.

use std::time::Duration;

use anyhow::{Result, ensure};
use pleach::proto::etcdserverpb::{self as pb, WatchResponse};
use tonic::{Streaming, transport::Channel};

use crate::support::changes::{Event, open_watch};

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

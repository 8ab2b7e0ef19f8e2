//! A watch, read step by step.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pleach::proto::etcdserverpb::{self as pb, WatchResponse};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Streaming, transport::Channel};

use crate::support::changes::{Event, open_watch};

const TOLD_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Watch {
    /// A watch ends with it.
    _requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<WatchResponse>,
    /// It was told all up to here.
    pub(crate) told: i64,
    pub(crate) events: Vec<Event>,
    /// The revision that it was ended as compacted with.
    pub(crate) compacted: Option<i64>,
}

// === impl Watch ===

impl Watch {
    /// Watches from a revision on; from now on where that is 0.
    pub(crate) async fn open(channel: &Channel, key: &str, end: &str, start: i64) -> Result<Self> {
        let create = pb::WatchCreateRequest {
            key: key.to_owned().into(),
            range_end: end.to_owned().into(),
            start_revision: start,
            prev_kv: true,
            progress_notify: true,
            ..Default::default()
        };
        let (_requests, mut responses) = open_watch(channel.clone(), create).await?;
        let created = timeout(TOLD_WITHIN, responses.message()).await??;
        let created = created.context("the stream ended before the watch was created")?;
        ensure!(created.created && !created.canceled, "{created:?}");
        let now = created.header.map_or(0, |header| header.revision);
        let told = if start == 0 { now } else { start - 1 };
        Ok(Self { _requests, responses, told, events: Vec::new(), compacted: None })
    }

    /// Watches all keys of a node.
    pub(crate) async fn all(channel: &Channel, start: i64) -> Result<Self> {
        Self::open(channel, "\0", "\0", start).await
    }

    /// Reads the next response.
    async fn step(&mut self) -> Result<()> {
        let response = timeout(TOLD_WITHIN, self.responses.message()).await;
        let response = response.context("the watch says nothing")??;
        let response = response.context("the stream ended")?;
        if response.canceled {
            self.compacted = Some(response.compact_revision);
            return Ok(());
        }
        for event in &response.events {
            let event = Event::try_from(event)?;
            ensure!(event.revision > self.told, "{event:?} came after {}", self.told);
            self.events.push(event);
        }
        let header = response.header.map_or(0, |header| header.revision);
        let last = self.events.last().map_or(0, |event| event.revision);
        self.told = self.told.max(if response.events.is_empty() { header } else { last });
        Ok(())
    }

    /// Reads until all up to a revision was told, by events or by progress. How long that took.
    pub(crate) async fn reach(&mut self, revision: i64) -> Result<Duration> {
        let begin = Instant::now();
        while self.told < revision {
            ensure!(self.compacted.is_none(), "ended as compacted at {:?}", self.compacted);
            self.step().await.with_context(|| format!("waiting for {revision}"))?;
        }
        Ok(begin.elapsed())
    }

    /// Reads until it is ended as compacted. Returns the revision that it is told.
    pub(crate) async fn ended(&mut self) -> Result<i64> {
        let begin = Instant::now();
        loop {
            if let Some(compacted) = self.compacted {
                return Ok(compacted);
            }
            if begin.elapsed() > TOLD_WITHIN {
                bail!("not ended; told all up to {}", self.told);
            }
            self.step().await?;
        }
    }

    pub(crate) fn keys(&self) -> Vec<&str> {
        self.events.iter().map(|event| event.key.as_str()).collect()
    }
}

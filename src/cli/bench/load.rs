//! The load itself: clients that each wait for an answer before they ask again.

use std::{
    error::Error as _,
    future::Future,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, future::join_all, stream};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, transport::Channel};

use crate::{
    cli::client::Target,
    model::KeyRange,
    net::{connect::connect, status},
    proto::etcdserverpb::{
        self as pb, kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion,
    },
};

/// One connection holds some hundred requests; more of them spread the work of the client.
const CONNECTIONS: usize = 4;

/// Samples of one kind, all clients together: some 30 MB.
const SAMPLES_MAX: usize = 2_000_000;

/// How many keys a list has.
const LIST_KEYS: i64 = 100;

/// How long one request may take before it counts as failed.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// What is refused at once would else be asked for as often as the processor can.
const PAUSE: Duration = Duration::from_millis(10);

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) clients: u32,
    pub(super) keys: u32,
    pub(super) value_bytes: u32,
    pub(super) time: Duration,
}

/// Clients, and what they work on.
#[derive(Debug)]
pub(super) struct Load {
    channels: Vec<Channel>,
    prefix: String,
    sizes: Sizes,
    /// Which key is next: all are taken in turn.
    next: AtomicU32,
}

/// How it went.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) took: Vec<Duration>,
    pub(super) failed: u64,
    pub(super) lasted: Duration,
    pub(super) last_error: Option<String>,
}

// === impl Load ===

impl Load {
    /// Connections that are opened with the first request.
    pub(super) fn connect(target: &Target, prefix: String, sizes: Sizes) -> anyhow::Result<Self> {
        let endpoint = target.endpoint()?;
        let channels = (0..CONNECTIONS).map(|_| connect(&endpoint)).collect();
        Ok(Self { channels, prefix, sizes, next: AtomicU32::new(0) })
    }

    fn client(&self, at: usize) -> KvClient<Channel> {
        KvClient::new(self.channels[at % CONNECTIONS].clone())
    }

    fn key(&self) -> Bytes {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.sizes.keys;
        format!("{}{at:08}", self.prefix).into()
    }

    fn value(&self) -> Bytes {
        vec![b'x'; self.sizes.value_bytes as usize].into()
    }

    fn range(&self) -> KeyRange {
        KeyRange::prefix(Bytes::copy_from_slice(self.prefix.as_bytes()))
    }

    /// Writes each key once, so that reads find them.
    pub(super) async fn fill(&self, target: &Target) -> anyhow::Result<()> {
        let (key, value) = (self.key(), self.value());
        let first = pb::PutRequest { key, value, ..Default::default() };
        // Alone, so that what is wrong is said once.
        let put = timeout(REQUEST_WITHIN, self.client(0).put(first)).await.context("no answer")?;
        match put {
            // The connection failed; else it is an answer.
            Err(status) if status.source().is_some() => {
                return Err(target.explain(&status).await.into());
            }
            Err(status) => anyhow::bail!("{}", status::said(&status)),
            Ok(_) => {}
        }
        let puts = (1..self.sizes.keys).map(|at| async move {
            let (key, value) = (self.key(), self.value());
            let put = pb::PutRequest { key, value, ..Default::default() };
            self.client(at as usize).put(put).await
        });
        let mut puts = stream::iter(puts).buffer_unordered(self.sizes.clients as usize);
        while let Some(put) = puts.next().await {
            put.map_err(|status| anyhow::anyhow!("{}", status::said(&status)))?;
        }
        Ok(())
    }

    /// Deletes all that was written.
    pub(super) async fn delete(&self) -> anyhow::Result<()> {
        let KeyRange { start, end } = self.range();
        let range_end = end.unwrap_or_default();
        let delete = pb::DeleteRangeRequest { key: start, range_end, ..Default::default() };
        let mut client = self.client(0);
        let deleted = timeout(REQUEST_WITHIN, client.delete_range(delete)).await;
        let deleted = deleted.context("no answer").and_then(|it| Ok(it?));
        deleted.with_context(|| format!("what lies below {} was not deleted", self.prefix))?;
        Ok(())
    }

    pub(super) async fn puts(&self) -> Measured {
        self.repeat(|mut client| async move {
            let (key, value) = (self.key(), self.value());
            client.put(pb::PutRequest { key, value, ..Default::default() }).await.map(drop)
        })
        .await
    }

    pub(super) async fn gets(&self) -> Measured {
        self.repeat(|mut client| async move {
            let range = pb::RangeRequest { key: self.key(), ..Default::default() };
            client.range(range).await.map(drop)
        })
        .await
    }

    pub(super) async fn ranges(&self) -> Measured {
        let range_end = self.range().end.unwrap_or_default();
        self.repeat(|mut client| {
            let (key, range_end) = (self.key(), range_end.clone());
            let range = pb::RangeRequest { key, range_end, limit: LIST_KEYS, ..Default::default() };
            async move { client.range(range).await.map(drop) }
        })
        .await
    }

    /// How long it takes from a write until a watch tells of it. One at a time: what is measured is the way.
    pub(super) async fn watched(&self) -> anyhow::Result<Measured> {
        let KeyRange { start, end } = self.range();
        let create = pb::WatchCreateRequest {
            key: start,
            range_end: end.unwrap_or_default(),
            ..Default::default()
        };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = stream::iter([request]).chain(stream::pending());
        let mut client = WatchClient::new(self.channels[1 % CONNECTIONS].clone());
        let opened = timeout(REQUEST_WITHIN, client.watch(requests)).await;
        let mut told = opened.context("no answer to a watch")??.into_inner();
        let created = timeout(REQUEST_WITHIN, told.message()).await;
        created.context("a watch was not created")??;
        let (begin, mut measured) = (Instant::now(), Measured::default());
        let mut writer = self.client(0);
        while begin.elapsed() < self.sizes.time && measured.took.len() < SAMPLES_MAX {
            let (key, value) = (self.key(), self.value());
            let asked = Instant::now();
            let put = pb::PutRequest { key, value, ..Default::default() };
            let put = timeout(REQUEST_WITHIN, writer.put(put)).await;
            let answer = match put.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
                Ok(answer) => answer.into_inner(),
                Err(status) => {
                    measured.note_failure(&status).await;
                    continue;
                }
            };
            let revision = answer.header.map_or(0, |header| header.revision);
            let is_told = |told: &pb::WatchResponse| {
                let mut revisions = told.events.iter().filter_map(|event| event.kv.as_ref());
                revisions.any(|kv| kv.mod_revision >= revision)
            };
            loop {
                let next = timeout(REQUEST_WITHIN, told.message()).await;
                let next = next.context("a watch told nothing of a write")??;
                if is_told(&next.context("the watch ended")?) {
                    break;
                }
            }
            measured.took.push(asked.elapsed());
        }
        measured.lasted = begin.elapsed();
        Ok(measured)
    }

    /// Has each client ask again and again until the time is over.
    async fn repeat<F: Future<Output = Result<(), Status>>>(
        &self,
        ask: impl Fn(KvClient<Channel>) -> F,
    ) -> Measured {
        let begin = Instant::now();
        let samples_max = SAMPLES_MAX / self.sizes.clients as usize;
        let clients = (0..self.sizes.clients as usize).map(|at| {
            let (client, ask) = (self.client(at), &ask);
            async move {
                let mut measured = Measured::default();
                while begin.elapsed() < self.sizes.time && measured.took.len() < samples_max {
                    let asked = Instant::now();
                    let answer = timeout(REQUEST_WITHIN, ask(client.clone())).await;
                    match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
                        Ok(()) => measured.took.push(asked.elapsed()),
                        Err(status) => measured.note_failure(&status).await,
                    }
                }
                measured
            }
        });
        let mut all = Measured::default();
        for one in join_all(clients).await {
            all.took.extend(one.took);
            all.failed += one.failed;
            all.last_error = one.last_error.or(all.last_error);
        }
        all.lasted = begin.elapsed();
        all
    }
}

// === impl Measured ===

impl Measured {
    async fn note_failure(&mut self, status: &Status) {
        self.failed += 1;
        self.last_error = Some(status::said(status));
        sleep(PAUSE).await;
    }
}

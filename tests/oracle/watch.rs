//! One watch stream, its watchers and what each was told.
//!
//! What can be judged from a single message is judged when it comes: the guarantees Ordered,
//! Unique, Atomic and Bookmarkable. What needs the store's history is judged in `chronicle`.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use pleach::proto::{
    etcdserverpb::{self as pb, watch_client::WatchClient, watch_request::RequestUnion},
    mvccpb,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

/// etcd looks for watchers that lag ten times a second; the rest is for a busy machine.
const MESSAGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a progress request may stay without an answer before it is sent again: etcd answers
/// none while a watcher lags.
const PROGRESS_RETRY_PAUSE: Duration = Duration::from_millis(10);
const REQUESTS_QUEUED_MAX: usize = 64;

/// One stream of one server.
#[derive(Debug)]
pub struct Listener {
    requests: mpsc::Sender<pb::WatchRequest>,
    messages: mpsc::UnboundedReceiver<Result<pb::WatchResponse, Status>>,
    /// Every watcher that was ever created, in the order of creation.
    pub histories: Vec<History>,
    /// Watch IDs in use, with their place in `histories`.
    open: HashMap<i64, usize>,
    /// `created` and `canceled` messages that nobody has asked for yet.
    replies: VecDeque<pb::WatchResponse>,
    /// The last revision that a progress message for the whole stream promised.
    progress: i64,
    spoil: Option<Spoil>,
}

/// Changes a message before it is looked at, to prove that the oracle notices.
pub type Spoil = fn(&mut pb::WatchResponse);

/// What one watcher was told.
#[derive(Debug)]
pub struct History {
    pub create: pb::WatchCreateRequest,
    /// The revision of the header of its `created` message.
    pub opened_at: i64,
    pub events: Vec<mvccpb::Event>,
    /// Nothing at or below this may come any more.
    promised: i64,
    /// The last message was a fragment, so that the next may go on in the same revision.
    is_in_fragments: bool,
    pub is_ended: bool,
}

// === impl Listener ===

impl Listener {
    /// The stream opens with its first request: servers send no headers before their first message.
    pub fn new(mut client: WatchClient<Channel>, spoil: Option<Spoil>) -> Self {
        let (requests, queued) = mpsc::channel(REQUESTS_QUEUED_MAX);
        // Unbounded, so that the server never waits for a reader, as with a quick client.
        let (sender, messages) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            match client.watch(ReceiverStream::new(queued)).await {
                Ok(answer) => {
                    let mut stream = answer.into_inner();
                    while let Some(message) = stream.message().await.transpose() {
                        let is_last = message.is_err();
                        if sender.send(message).is_err() || is_last {
                            break;
                        }
                    }
                }
                Err(status) => _ = sender.send(Err(status)),
            }
        });
        Self {
            requests,
            messages,
            histories: Vec::new(),
            open: HashMap::new(),
            replies: VecDeque::new(),
            progress: 0,
            spoil,
        }
    }

    /// Creates a watcher and returns the server's reply. `dies` says that the reply is followed by
    /// the end of the watcher, since its start was compacted.
    pub async fn create(
        &mut self,
        create: &pb::WatchCreateRequest,
        dies: bool,
    ) -> Result<Vec<pb::WatchResponse>> {
        self.send(RequestUnion::CreateRequest(create.clone())).await?;
        let created = self.reply().await.with_context(|| format!("no reply to {create:?}"))?;
        if let Some(place) = self.open.get(&created.watch_id).filter(|_| !created.canceled) {
            self.histories[*place].create = create.clone();
        }
        let is_refused = created.canceled;
        let mut replies = vec![created];
        if dies && !is_refused {
            replies.push(self.reply().await.context("a compacted start did not end its watch")?);
        }
        Ok(replies)
    }

    /// Cancels a watcher that lives and returns the server's reply.
    pub async fn cancel(&mut self, watch_id: i64) -> Result<pb::WatchResponse> {
        self.cancel_unknown(watch_id).await?;
        self.reply().await.with_context(|| format!("no reply to the cancel of {watch_id}"))
    }

    /// Cancels a watcher that does not exist, which has no reply. If one comes all the same, it is
    /// taken for the next request's and differs from what the other side has.
    pub async fn cancel_unknown(&self, watch_id: i64) -> Result<()> {
        self.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id })).await
    }

    /// Asks for progress until the stream has promised `revision`. Then all events up to it are in
    /// the histories.
    pub async fn sync(&mut self, revision: i64) -> Result<()> {
        let deadline = Instant::now() + MESSAGE_WAIT_MAX;
        while self.progress < revision {
            ensure!(Instant::now() < deadline, "no progress message reached {revision}");
            self.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await?;
            let retry_at = Instant::now() + PROGRESS_RETRY_PAUSE;
            while self.progress < revision {
                match timeout_at(retry_at, self.messages.recv()).await {
                    Ok(message) => self.take(message)?,
                    Err(_) => break,
                }
            }
        }
        ensure!(self.progress == revision, "progress {} is beyond {revision}", self.progress);
        Ok(())
    }

    /// Reads until the watcher at `place` has been told at least `count` events.
    pub async fn events(&mut self, place: usize, count: usize) -> Result<&[mvccpb::Event]> {
        while self.histories[place].events.len() < count {
            let message = timeout(MESSAGE_WAIT_MAX, self.messages.recv()).await;
            self.take(message.with_context(|| {
                format!("{count} events wanted, but only {:?}", self.histories[place].events)
            })?)?;
        }
        Ok(&self.histories[place].events)
    }

    async fn send(&self, request: RequestUnion) -> Result<()> {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.requests.send(request).await.context("the watch stream has ended")
    }

    async fn reply(&mut self) -> Result<pb::WatchResponse> {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return Ok(reply);
            }
            let message = timeout(MESSAGE_WAIT_MAX, self.messages.recv()).await;
            self.take(message.context("nothing came on the watch stream")?)?;
        }
    }

    fn take(&mut self, message: Option<Result<pb::WatchResponse, Status>>) -> Result<()> {
        let mut message = message.context("the server ended the watch stream")??;
        if let Some(spoil) = self.spoil {
            spoil(&mut message);
        }
        if message.created || message.canceled {
            self.take_reply(message)
        } else if message.events.is_empty() {
            self.take_progress(&message)
        } else {
            self.take_events(message)
        }
    }

    fn take_reply(&mut self, message: pb::WatchResponse) -> Result<()> {
        ensure!(message.events.is_empty(), "events in a control message: {message:?}");
        let id = message.watch_id;
        if message.created && !message.canceled {
            let opened_at = message.header.as_ref().context("created without a header")?.revision;
            let before = self.open.insert(id, self.histories.len());
            ensure!(before.is_none(), "watch ID {id} was given out twice");
            self.histories.push(History::new(opened_at));
        } else if !message.created {
            let place =
                self.open.get(&id).with_context(|| format!("end of unknown {message:?}"))?;
            self.histories[*place].is_ended = true;
            // A watcher that compaction ended keeps its ID until the client cancels it as well.
            if message.compact_revision == 0 {
                self.open.remove(&id);
            }
        }
        self.replies.push_back(message);
        Ok(())
    }

    fn take_progress(&mut self, message: &pb::WatchResponse) -> Result<()> {
        let revision = message.header.as_ref().context("progress without a header")?.revision;
        ensure!(revision > 0, "progress without a revision: {message:?}");
        if message.watch_id == -1 {
            ensure!(revision >= self.progress, "progress went back to {revision}");
            self.progress = revision;
            self.open.values().try_for_each(|place| self.histories[*place].promise(revision))
        } else {
            let place = self.open.get(&message.watch_id).context("progress of an unknown watch")?;
            self.histories[*place].promise(revision)
        }
    }

    fn take_events(&mut self, message: pb::WatchResponse) -> Result<()> {
        let id = message.watch_id;
        let place = self.open.get(&id).with_context(|| format!("events for unknown watch {id}"))?;
        self.histories[*place].take(message).with_context(|| format!("watch {id}"))
    }
}

// === impl History ===

impl History {
    fn new(opened_at: i64) -> Self {
        Self {
            create: pb::WatchCreateRequest::default(),
            opened_at,
            events: Vec::new(),
            promised: 0,
            is_in_fragments: false,
            is_ended: false,
        }
    }

    /// Checks Ordered, Unique, Atomic and the events' side of Bookmarkable, then keeps the events.
    fn take(&mut self, message: pb::WatchResponse) -> Result<()> {
        ensure!(!self.is_ended, "events after the end: {:?}", message.events);
        let header = message.header.as_ref().context("events without a header")?;
        let last = self.events.last().map_or(0, revision_of);
        let mut previous = if self.is_in_fragments { last } else { last + 1 };
        for event in &message.events {
            let revision = revision_of(event);
            if revision < previous {
                bail!("not ordered or not atomic: {revision} after {last}: {message:?}");
            }
            ensure!(revision > self.promised, "{revision} after progress at {}", self.promised);
            previous = revision;
        }
        ensure!(header.revision >= previous, "header below its events: {message:?}");
        ensure!(has_no_twins(&message.events), "an event came twice: {message:?}");
        self.is_in_fragments = message.fragment;
        self.events.extend(message.events);
        Ok(())
    }

    /// The promise of a progress message: nothing at or below its revision will come any more.
    fn promise(&mut self, revision: i64) -> Result<()> {
        let last = self.events.last().map_or(0, revision_of);
        ensure!(revision >= last, "progress at {revision} is below an event at {last}");
        self.promised = self.promised.max(revision);
        Ok(())
    }
}

/// The revision of an event; also of a deletion.
pub fn revision_of(event: &mvccpb::Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// One transaction may delete a key and put it again, so (revision, key) may repeat, but never with
/// the same change twice in a row.
fn has_no_twins(events: &[mvccpb::Event]) -> bool {
    let mut last_of = HashMap::new();
    events.iter().all(|event| {
        let key = event.kv.as_ref().map(|kv| kv.key.clone());
        last_of.insert((revision_of(event), key), event.r#type) != Some(event.r#type)
    })
}

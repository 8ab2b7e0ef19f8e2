//! One client's stream of watchers: requests in, responses out, in the order that etcd keeps.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    Counted, Filters, Hub,
    feed::{Feed, Joined, Joining},
    inbox::{Inbox, Item, Tag},
    index::concerns,
};
use crate::{
    model::{Commit, Event, KeyRange, Revision, StoreError},
    select::{Selector, SelectorError},
    store::Backfill,
};

/// The bytes of events after which a response is sent, rather than joined by the next commit.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// The commits in one response.
const RESPONSE_COMMITS_MAX: usize = 1_000;

/// The watchers of a stream that read the log at once, each with a page of it in memory.
const READING_MAX: usize = 4;

/// How long one of them may wait for its log before the next has its turn.
const TURN_TIME_MAX: Duration = Duration::from_millis(100);

/// What a client asks.
#[derive(Debug)]
pub enum Request {
    /// Watch a range.
    Create(Create),
    /// End a watcher.
    Cancel(i64),
    /// Say how far all watchers of the stream are.
    Progress,
}

/// What is to be watched.
#[derive(Debug)]
pub struct Create {
    /// The id that the client chose; 0 for the next free one.
    pub watcher: i64,
    /// The keys.
    pub range: KeyRange,
    /// The first revision wanted; 0 for what comes from now on.
    pub start: Revision,
    /// Tell from time to time how far the watcher is.
    pub wants_progress: bool,
    /// Which events are wanted.
    pub filters: Filters,
    /// Send what was there before each event.
    pub prev_kv: bool,
    /// Cut large responses in pieces; carried along for who writes them to the wire.
    pub fragment: bool,
    /// Only events of objects that this may match, or may have matched before; `None` for all. One that can't be
    /// read refuses the watcher.
    pub selector: Result<Option<Arc<Selector>>, SelectorError>,
}

/// What a client hears. Revisions are those of the headers.
#[derive(Debug)]
#[allow(missing_docs, reason = "a variant's sentence says what it has")]
pub enum Response {
    /// The watcher is there; its events follow.
    Created { watcher: i64, revision: Revision },
    /// It could not be made.
    Refused { revision: Revision, reason: Cow<'static, str> },
    /// Whole commits, in order.
    Events { watcher: i64, revision: Revision, events: Vec<Event>, fragment: bool },
    /// All up to this revision was sent, for one watcher, or for all where there is none.
    Progress { watcher: Option<i64>, revision: Revision },
    /// The client ended it.
    Canceled { watcher: i64, revision: Revision },
    /// It wants what was compacted.
    Compacted { watcher: i64, compacted: Revision },
    /// Its store failed; the stream ends, and the client resumes.
    Failed(StoreError),
}

/// A stream; see the module.
#[derive(Debug)]
pub struct Stream {
    hub: Arc<Hub>,
    _counted: Counted,
    inbox: Arc<Inbox>,
    output: mpsc::Sender<Response>,
    watchers: HashMap<i64, Watcher>,
    next_id: i64,
    next_serial: u32,
    /// Lets so many watchers read the log at once.
    reading: Arc<Semaphore>,
    /// Counts the watchers that became live: what was asked before covers only those before.
    epoch: u64,
    /// Asked for progress while some watcher was behind.
    owes_progress: bool,
    progress_every: Duration,
}

#[derive(Debug)]
struct Watcher {
    tag: Tag,
    wanted: Wanted,
    start: Revision,
    wants_progress: bool,
    /// Whether events or progress were sent since the last tick.
    was_told: bool,
    /// It was sent all up to here, and maybe told so: no progress may go back behind it.
    told: Revision,
    state: State,
}

/// Which events a watcher wants, and how.
#[derive(Clone, Debug)]
struct Wanted {
    range: KeyRange,
    filters: Filters,
    selector: Option<Arc<Selector>>,
    prev_kv: bool,
    fragment: bool,
}

#[derive(Debug)]
enum State {
    /// Its feed puts into the inbox.
    Live(Joined),
    /// It reads the log.
    Behind(Reader),
    /// It was ended as compacted; its id stays taken until the client cancels it, as in etcd.
    Ended,
}

/// The task in which a watcher reads the log: of its own, since the stream waits for its client, and
/// must not hold up who reads, nor wait behind him.
#[derive(Debug)]
struct Reader {
    task: JoinHandle<()>,
    /// Held until the watcher has its place in it, which it may have got already.
    _feed: Arc<Feed>,
    _counted: Counted,
}

// === impl Reader ===

impl Reader {
    /// Ends the task; when this returns it sends nothing more.
    async fn end(&mut self) {
        self.task.abort();
        // Either it was aborted or it had ended.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The stream's client has gone.
#[derive(Debug)]
struct Gone;

// === impl Stream ===

impl Stream {
    /// A stream that answers to `output`, and tells progress every `progress_every`.
    pub fn new(hub: Arc<Hub>, output: mpsc::Sender<Response>, progress_every: Duration) -> Self {
        Self {
            _counted: hub.streams.clone(),
            hub,
            inbox: Arc::default(),
            output,
            watchers: HashMap::new(),
            next_id: 0,
            next_serial: 0,
            reading: Arc::new(Semaphore::new(READING_MAX)),
            epoch: 0,
            owes_progress: false,
            progress_every,
        }
    }

    /// Works until the client has gone, or `requests` end.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut tick = tokio::time::interval_at(
            tokio::time::Instant::now() + self.progress_every,
            self.progress_every,
        );
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let output = self.output.clone();
        loop {
            let inbox = self.inbox.clone();
            let step = tokio::select! {
                () = output.closed() => Err(Gone),
                request = requests.recv() => match request {
                    Some(request) => self.answer(request).await,
                    None => Err(Gone),
                },
                items = inbox.take() => self.pass_on(items).await,
                _ = tick.tick() => { self.tell_progress(); Ok(()) }
            };
            if let Err(Gone) = step {
                return;
            }
        }
    }

    async fn send(&mut self, response: Response) -> Result<(), Gone> {
        self.output.send(response).await.map_err(|_| Gone)
    }

    async fn answer(&mut self, request: Request) -> Result<(), Gone> {
        match request {
            Request::Create(create) => self.create(create).await,
            Request::Cancel(watcher) => self.cancel(watcher).await,
            Request::Progress => {
                self.ask_progress();
                Ok(())
            }
        }
    }

    async fn create(&mut self, create: Create) -> Result<(), Gone> {
        let revision = self.hub.current();
        if let Some(reason) = self.refusal(&create) {
            return self.send(Response::Refused { revision, reason }).await;
        }
        let watcher = self.choose_id(create.watcher);
        // Held until the watcher does.
        let feed = self.hub.feed(&create.range);
        let start = if create.start == 0 { feed.now().await + 1 } else { create.start };
        self.send(Response::Created { watcher, revision }).await?;
        let Create { range, filters, wants_progress, prev_kv, fragment, .. } = create;
        let selector = create.selector.unwrap_or_default();
        let wanted = Wanted { range, filters, selector, prev_kv, fragment };
        let state = State::Ended;
        let tag = Tag { id: watcher, serial: self.next_serial };
        self.next_serial = self.next_serial.wrapping_add(1);
        let made = Watcher { tag, wanted, start, wants_progress, was_told: true, told: 0, state };
        self.watchers.insert(watcher, made);
        self.catch_up(tag, start - 1, feed);
        Ok(())
    }

    /// Why a watcher can't be made, in the order in which etcd looks.
    fn refusal(&self, create: &Create) -> Option<Cow<'static, str>> {
        if create.start < 0 {
            Some("etcdserver: mvcc: required revision has been compacted".into())
        } else if create.range.is_empty() {
            Some("mvcc: watcher range is empty".into())
        } else if create.watcher != 0 && self.watchers.contains_key(&create.watcher) {
            Some("mvcc: duplicate watch ID provided on the WatchStream".into())
        } else {
            create.selector.as_ref().err().map(|error| format!("pleach: {error}").into())
        }
    }

    fn choose_id(&mut self, chosen: i64) -> i64 {
        if chosen != 0 {
            return chosen;
        }
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Joins the feed at once where that is possible, else begins to read the log.
    fn catch_up(&mut self, tag: Tag, after: Revision, feed: Arc<Feed>) {
        let Some(watcher) = self.watchers.get_mut(&tag.id).filter(|it| it.tag == tag) else {
            return;
        };
        let joining = Joining {
            inbox: self.inbox.clone(),
            watcher: tag,
            range: watcher.wanted.range.clone(),
            selector: watcher.wanted.selector.clone(),
            gets_all: watcher.wanted.gets_all(),
            wants_progress: watcher.wants_progress,
        };
        if let Some(joined) = feed.join(&joining, after) {
            watcher.state = State::Live(joined);
            self.epoch += 1;
            return;
        }
        let wanted = watcher.wanted.clone();
        let (output, turn) = (self.output.clone(), self.reading.clone());
        let hub = self.hub.clone();
        let reading = Reading { hub, feed: feed.clone(), joining, wanted, output, turn };
        let task = tokio::spawn(reading.run(after));
        let _counted = self.hub.behind.clone();
        watcher.state = State::Behind(Reader { task, _feed: feed, _counted });
    }

    /// Its feed had no more room for it.
    fn fall_behind(&mut self, tag: Tag, after: Revision) {
        let Some(watcher) = self.watchers.get(&tag.id).filter(|it| it.tag == tag) else { return };
        let feed = self.hub.feed(&watcher.wanted.range);
        self.catch_up(tag, after, feed);
    }

    fn caught_up(&mut self, tag: Tag, joined: Joined, after: Revision) {
        let Some(watcher) = self.watchers.get_mut(&tag.id).filter(|it| it.tag == tag) else {
            return;
        };
        watcher.state = State::Live(joined);
        watcher.told = watcher.told.max(after);
        self.epoch += 1;
        if self.owes_progress {
            self.ask_progress();
        }
    }

    async fn failed(&mut self, tag: Tag, error: StoreError) -> Result<(), Gone> {
        let Some(watcher) = self.watchers.get_mut(&tag.id).filter(|it| it.tag == tag) else {
            return Ok(());
        };
        let StoreError::Compacted { compacted } = error else {
            self.send(Response::Failed(error)).await?;
            return Err(Gone);
        };
        watcher.state = State::Ended;
        self.send(Response::Compacted { watcher: tag.id, compacted }).await?;
        if self.owes_progress {
            self.ask_progress();
        }
        Ok(())
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        let Some(mut watcher) = self.watchers.remove(&id) else { return Ok(()) };
        if let State::Behind(reader) = &mut watcher.state {
            reader.end().await;
        }
        drop(watcher);
        let revision = self.hub.current();
        self.send(Response::Canceled { watcher: id, revision }).await
    }

    /// Sends what the feeds have put in, joining commits of one watcher that follow each other.
    async fn pass_on(&mut self, items: VecDeque<Item>) -> Result<(), Gone> {
        let mut pending: Option<Pending> = None;
        for item in items {
            if let Item::Commit { watcher, commit } = item {
                if pending.as_ref().is_some_and(|pending| !pending.takes(watcher)) {
                    self.send_pending(pending.take()).await?;
                }
                pending.get_or_insert_with(|| Pending::new(watcher)).push(commit);
                continue;
            }
            self.send_pending(pending.take()).await?;
            match item {
                Item::Progress { watcher, revision } => self.progress(watcher, revision).await?,
                Item::ProgressAll { revision, epoch } => {
                    self.progress_all(revision, epoch).await?;
                }
                Item::CaughtUp { watcher, handoff, after } => {
                    if let Some(joined) = handoff.hold() {
                        self.caught_up(watcher, joined, after);
                    }
                }
                Item::Failed { watcher, error } => self.failed(watcher, error).await?,
                Item::Behind { watcher, after } => self.fall_behind(watcher, after),
                Item::Commit { .. } => {}
            }
        }
        self.send_pending(pending).await
    }

    async fn send_pending(&mut self, pending: Option<Pending>) -> Result<(), Gone> {
        let Some(Pending { watcher: tag, commits, .. }) = pending else { return Ok(()) };
        let Some(watcher) = self.watchers.get_mut(&tag.id).filter(|it| it.tag == tag) else {
            return Ok(());
        };
        let events = watcher.wanted.select(&commits, 0);
        let fragment = watcher.wanted.fragment;
        let Some(last) = events.last() else { return Ok(()) };
        watcher.was_told = true;
        let revision = last.kv.mod_revision;
        watcher.told = revision;
        self.hub.note_events(events.len());
        self.send(Response::Events { watcher: tag.id, revision, events, fragment }).await
    }

    async fn progress(&mut self, tag: Tag, revision: Revision) -> Result<(), Gone> {
        let Some(watcher) = self.watchers.get_mut(&tag.id).filter(|it| it.tag == tag) else {
            return Ok(());
        };
        if !matches!(watcher.state, State::Live(_)) || watcher.start > revision + 1 {
            return Ok(());
        }
        watcher.was_told = true;
        // What it was sent since is as certain.
        let revision = revision.max(watcher.told);
        watcher.told = revision;
        self.send(Response::Progress { watcher: Some(tag.id), revision }).await
    }

    /// Answers only where every watcher has got all up to `revision`; else once that is so.
    async fn progress_all(&mut self, revision: Revision, epoch: u64) -> Result<(), Gone> {
        let is_behind = |watcher: &Watcher| matches!(watcher.state, State::Behind(_));
        if self.watchers.values().any(is_behind) {
            self.owes_progress = true;
            return Ok(());
        }
        if epoch != self.epoch {
            // A watcher became live after the question, whose feed was not asked.
            self.ask_progress();
            return Ok(());
        }
        let is_asleep = |watcher: &Watcher| {
            matches!(watcher.state, State::Ended) || watcher.start > revision + 1
        };
        if self.watchers.is_empty() || self.watchers.values().any(is_asleep) {
            return Ok(());
        }
        if self.watchers.values().all(|watcher| watcher.told <= revision) {
            self.watchers.values_mut().for_each(|watcher| watcher.told = revision);
            return self.send(Response::Progress { watcher: None, revision }).await;
        }
        // Some have got events beyond it, behind which no progress may go back: to each its own.
        let tags: Vec<Tag> = self.watchers.values().map(|watcher| watcher.tag).collect();
        for tag in tags {
            self.progress(tag, revision).await?;
        }
        Ok(())
    }

    /// Has every feed of the stream put all up to now into the inbox, and the answer behind it.
    fn ask_progress(&mut self) {
        self.owes_progress = false;
        let revision = self.hub.current();
        let item = Item::ProgressAll { revision, epoch: self.epoch };
        self.when_reached(revision, self.feeds(), item);
    }

    /// The same for each watcher that wants to be told from time to time, and was not of late.
    fn tell_progress(&mut self) {
        let revision = self.hub.current();
        let mut due = Vec::new();
        for watcher in self.watchers.values_mut() {
            let was_told = std::mem::replace(&mut watcher.was_told, false);
            if let State::Live(joined) = &watcher.state
                && watcher.wants_progress
                && !was_told
            {
                due.push((watcher.tag, joined.feed().clone()));
            }
        }
        for (watcher, feed) in due {
            self.when_reached(revision, vec![feed], Item::Progress { watcher, revision });
        }
    }

    fn feeds(&self) -> Vec<Arc<Feed>> {
        let mut feeds: Vec<Arc<Feed>> = Vec::new();
        for watcher in self.watchers.values() {
            if let State::Live(joined) = &watcher.state
                && !feeds.iter().any(|feed| Arc::ptr_eq(feed, joined.feed()))
            {
                feeds.push(joined.feed().clone());
            }
        }
        feeds
    }

    fn when_reached(&self, revision: Revision, feeds: Vec<Arc<Feed>>, item: Item) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            for feed in feeds {
                // A store that can't close the revision leaves the question open, as etcd does.
                if feed.reach(revision).await.is_err() {
                    return;
                }
            }
            inbox.push(item);
        });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for item in self.inbox.close() {
            if let Item::CaughtUp { handoff, .. } = item {
                // Held, and so given up.
                drop(handoff.hold());
            }
        }
    }
}

/// Commits for one response.
struct Pending {
    watcher: Tag,
    commits: Vec<Arc<Commit>>,
    bytes: usize,
}

// === impl Pending ===

impl Pending {
    fn new(watcher: Tag) -> Self {
        Self { watcher, commits: Vec::new(), bytes: 0 }
    }

    fn takes(&self, watcher: Tag) -> bool {
        self.watcher == watcher
            && self.commits.len() < RESPONSE_COMMITS_MAX
            && self.bytes < RESPONSE_BYTES_MAX
    }

    fn push(&mut self, commit: Arc<Commit>) {
        self.bytes += commit.size();
        self.commits.push(commit);
    }
}

/// A watcher that reads the log.
struct Reading {
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    joining: Joining,
    wanted: Wanted,
    output: mpsc::Sender<Response>,
    turn: Arc<Semaphore>,
}

// === impl Reading ===

impl Reading {
    /// Sends what is behind `after` until the feed is reached; the stream hears how it ended.
    async fn run(self, mut after: Revision) {
        loop {
            self.feed.come_to(after).await;
            if self.feed.join_caught_up(&self.joining, after) {
                return;
            }
            match self.page(after).await {
                Ok(Some(closed)) => after = after.max(closed),
                Ok(None) => return,
                Err(error) => {
                    let watcher = self.joining.watcher;
                    self.joining.inbox.push(Item::Failed { watcher, error });
                    return;
                }
            }
        }
    }

    /// Sends the first of what is behind `after`; returns up to where that is complete, or `None` where
    /// there was nothing to send before the feed was reached.
    async fn page(&self, after: Revision) -> Result<Option<Revision>, StoreError> {
        // A tail of its own for each page: the first batch of a tail comes at once, and nothing is
        // kept while the client does not read. What comes late from here on it tells.
        let mut tail = self.feed.tail(after);
        self.feed.check_resume(after)?;
        let (batch, _turn) = loop {
            let Ok(turn) = self.turn.acquire().await else { return Ok(Some(after)) };
            match timeout(TURN_TIME_MAX, tail.next()).await {
                Ok(Some(batch)) => break (batch?, turn),
                Ok(None) => {
                    let (store, reason) = ("watch".into(), "its log ended".into());
                    return Err(StoreError::Unavailable { store, reason });
                }
                // A store is away that only knows what comes next: others may have their turn.
                Err(_) => drop(turn),
            }
            self.feed.close_shown().await;
            if self.feed.join_caught_up(&self.joining, after) {
                return Ok(None);
            }
            sleep(TURN_TIME_MAX).await;
        };
        if self.misses(&batch.backfill) {
            return Err(StoreError::Compacted { compacted: batch.backfill.floor });
        }
        let closed = self.feed.shown_of(batch.closed);
        self.send(&batch.commits, closed).await;
        Ok(Some(closed.max(after)))
    }

    /// Whether some of what comes late is wanted.
    fn misses(&self, late: &Backfill) -> bool {
        !self.wanted.select(&late.commits, 0).is_empty()
    }

    async fn send(&self, commits: &[Arc<Commit>], revision: Revision) {
        let mut rest = commits;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|commit| {
                let is_room = bytes < RESPONSE_BYTES_MAX;
                bytes += commit.size();
                is_room
            });
            let (now, later) = rest.split_at(fits.count());
            rest = later;
            let events = self.wanted.select(now, self.feed.compacted_everywhere());
            if !events.is_empty() {
                self.hub.note_events(events.len());
                let (watcher, fragment) = (self.joining.watcher.id, self.wanted.fragment);
                let events = Response::Events { watcher, revision, events, fragment };
                // Where the client has gone, the stream itself finds out.
                let _ = self.output.send(events).await;
            }
        }
    }
}

// === impl Wanted ===

impl Wanted {
    /// Whether every event of the range is.
    fn gets_all(&self) -> bool {
        self.selector.is_none() && self.filters == Filters::default()
    }

    /// The events that are wanted of some commits. What was before the compacted revision can't be had any
    /// more, so a watch that begins at it has no previous values there, as from etcd.
    fn select(&self, commits: &[Arc<Commit>], compacted: Revision) -> Vec<Event> {
        let mut events = Vec::new();
        for event in commits.iter().flat_map(|commit| &commit.events) {
            let is_delete = event.is_delete();
            let is_filtered = if is_delete { self.filters.no_delete } else { self.filters.no_put };
            let is_selected = || self.selector.as_ref().is_none_or(|it| concerns(it, event));
            if !is_filtered && self.range.contains(&event.kv.key) && is_selected() {
                let has_prev = self.prev_kv && event.kv.mod_revision != compacted;
                let prev = event.prev.as_ref().filter(|_| has_prev).cloned();
                events.push(Event { kv: event.kv.clone(), prev });
            }
        }
        events
    }
}

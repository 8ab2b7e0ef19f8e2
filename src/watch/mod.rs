//! The hub: a few logs, many watchers.
//!
//! ```text
//!   store.tail ──> Feed ── index of watchers by key ──> Inbox of a stream ──> Stream ──> client
//!                   │ position                              │ full              │
//!                   └──────────── joins again <── catches up from the log <─────┘
//! ```
//!
//! A `Feed` follows the log of one store, or of several merged, for all who watch ranges that lie
//! there. A watcher that is up to date is an entry in its index; one that starts in the past, or whose
//! client is slow, reads the log by itself until it has reached the feed, and joins it under the feed's
//! lock: no gap, no duplicate. Commits are handed on whole. An event costs work only for those who
//! watch its key and, where their selectors require a value of a label or field, may want its object. What
//! waits for a client is bounded, whatever the client does.
//!
//! Progress at R is said only when the feed has handed on all events up to R, behind them in the same
//! queue: it can't overtake an event.

mod feed;
mod inbox;
mod index;
mod stream;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use self::feed::Feed;
pub use self::stream::{Create, Request, Response, Stream};
use crate::{
    clock::SharedClock,
    model::{KeyRange, Revision},
    route::Router,
    store::Store as _,
};

/// All feeds of a node.
#[derive(Debug)]
pub struct Hub {
    root: Arc<Router>,
    clock: SharedClock,
    /// By the name of the stores they follow. Their watchers hold them: a feed ends with its last.
    feeds: Mutex<Feeds>,
    /// Feeds end with the hub.
    stopped: CancellationToken,
    streams: Counted,
    /// Watchers that read the log.
    behind: Counted,
    events: AtomicU64,
}

/// Who holds a copy is counted.
#[derive(Clone, Debug, Default)]
struct Counted(Arc<()>);

type Feeds = HashMap<Arc<str>, Weak<Feed>>;

// === impl Hub ===

impl Hub {
    /// A hub over what `root` holds.
    pub fn new(root: Arc<Router>, clock: SharedClock) -> Arc<Self> {
        Arc::new(Self {
            root,
            clock,
            feeds: Mutex::default(),
            stopped: CancellationToken::new(),
            streams: Counted::default(),
            behind: Counted::default(),
            events: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Feeds> {
        // A map that nothing panics in.
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The feed that serves watchers of a range; made where there is none. Call it in a runtime.
    fn feed(&self, range: &KeyRange) -> Arc<Feed> {
        let store = self.root.narrow(range);
        let mut feeds = self.lock();
        if let Some(feed) = feeds.get(store.name()).and_then(Weak::upgrade) {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let name = store.name().clone();
        let feed = Feed::start(store, self.clock.clone(), self.stopped.clone());
        feeds.insert(name, Arc::downgrade(&feed));
        feed
    }

    /// Tells the watchers of the prefix `key` + `/` that asked for progress that all up to `revision`
    /// was delivered: an API server that gets `key`, which does not exist, is about to wait for it.
    pub fn push_progress(&self, key: &[u8], revision: Revision) {
        let mut prefix = BytesMut::with_capacity(key.len() + 1);
        prefix.put_slice(key);
        prefix.put_u8(b'/');
        let range = KeyRange::prefix(prefix.freeze());
        let name = self.root.narrow(&range).name().clone();
        let feed = self.lock().get(&name).and_then(Weak::upgrade);
        if let Some(feed) = feed {
            feed.push_progress(&range, revision);
        }
    }

    /// Watchers that are up to date, over all feeds.
    pub fn watchers(&self) -> usize {
        let feeds: Vec<Arc<Feed>> = self.lock().values().filter_map(Weak::upgrade).collect();
        feeds.iter().map(|feed| feed.watchers()).sum()
    }

    /// Watchers that are up to date, by the stores that they are told of; one over several counts at each.
    pub fn watchers_by_store(&self) -> HashMap<Arc<str>, usize> {
        let feeds: Vec<Arc<Feed>> = self.lock().values().filter_map(Weak::upgrade).collect();
        let mut by_store = HashMap::new();
        for feed in feeds {
            let watchers = feed.watchers();
            for store in feed.stores() {
                *by_store.entry(store).or_default() += watchers;
            }
        }
        by_store
    }

    /// Watchers that read the log, since they begin in the past or their client is slow.
    pub fn watchers_behind(&self) -> usize {
        self.behind.count()
    }

    /// Streams that clients have open.
    pub fn streams(&self) -> usize {
        self.streams.count()
    }

    /// Events that were sent to watchers.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    fn note_events(&self, count: usize) {
        self.events.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The logs that are followed.
    pub fn feeds(&self) -> usize {
        self.lock().values().filter(|feed| feed.strong_count() > 0).count()
    }

    fn current(&self) -> Revision {
        self.clock.shown()
    }
}

// === impl Counted ===

impl Counted {
    fn count(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

/// A filter on the kind of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
}

/// The key that etcd takes an empty one for.
pub fn watched_key(key: Bytes) -> Bytes {
    if key.is_empty() { Bytes::from_static(b"\0") } else { key }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        clock::{Clock, Lane},
        model::txn::{DeleteOp, Op, PutOp},
        select::Selector,
        store::memory::Memory,
    };

    fn create(start: Revision) -> Request {
        let (filters, prev_kv, fragment) = (Filters::default(), false, false);
        let (range, wants_progress) = (KeyRange::all(), false);
        Request::Create(Create {
            watcher: 7,
            range,
            start,
            wants_progress,
            filters,
            prev_kv,
            fragment,
            selector: Ok(None),
        })
    }

    /// An object with a label, where it has one.
    fn object(app: &str) -> Bytes {
        let labels = if app.is_empty() { String::new() } else { format!(r#""app":"{app}""#) };
        let object = r#"{"apiVersion":"a.b/v1","kind":"C","metadata":{"labels":{LABELS}}}"#;
        Bytes::from(object.replace("LABELS", &labels))
    }

    async fn put(store: &Memory, name: &'static str, app: Option<&str>) -> Revision {
        let key = Bytes::from_static(name.as_bytes());
        let op = match app {
            Some(app) => Op::Put(PutOp {
                key,
                value: object(app),
                lease: 0,
                prev_kv: false,
                keep_value: false,
                keep_lease: false,
            }),
            None => Op::Delete(DeleteOp { range: KeyRange::single(key), prev_kv: false }),
        };
        store.apply(op.into(), Vec::new()).await.expect("memory takes it").revision
    }

    /// What a watch tells until it has told all up to a revision: the events' revisions.
    async fn told(responses: &mut mpsc::Receiver<Response>, until: Revision) -> Vec<Revision> {
        let mut told = Vec::new();
        loop {
            match responses.recv().await {
                Some(Response::Events { events, .. }) => {
                    told.extend(events.iter().map(|event| event.kv.mod_revision));
                }
                Some(Response::Progress { revision, .. }) if revision >= until => return told,
                Some(Response::Progress { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_watch_with_a_selector_tells_what_matches_or_did_before_and_how_far_it_is() {
        let clock = SharedClock::new(Clock::new(0, 100, Lane::ALL));
        let store = Memory::new("m", clock.clone());
        let hub = Hub::new(Router::single(store.clone()), clock);
        // By a value that is required, by one that is not, and in the past as in the present.
        for (labels, start) in [("app=a", 0), ("app=a", 1), ("app,app!=b", 0), ("app,app!=b", 1)] {
            let (output, mut responses) = mpsc::channel(64);
            let (requests, asked) = mpsc::channel(8);
            tokio::spawn(Stream::new(hub.clone(), output, Duration::from_secs(60)).run(asked));
            let before = hub.current();
            let selector = Selector::parse(labels, "").map(|selector| selector.map(Arc::new));
            let Request::Create(it) = create(start.min(1) * (before + 1)) else {
                panic!("it is one")
            };
            let it = Create { range: KeyRange::prefix("k".into()), selector, ..it };
            requests.send(Request::Create(it)).await.expect("the stream runs");
            let made = responses.recv().await;
            assert!(matches!(made, Some(Response::Created { .. })), "{made:?}");
            let mut expected = Vec::new();
            for (name, app, is_told) in [
                ("k1", Some("a"), true),
                ("k2", Some("b"), false),
                ("k1", Some("b"), true), // It leaves …
                ("k1", Some("b"), false),
                ("k1", Some("a"), true), // … and comes back.
                ("k3", Some(""), false),
                ("k2", None, false),
                ("other", Some("a"), false),
                ("k1", None, true),
                ("k3", None, false),
            ] {
                let revision = put(&store, name, app).await;
                expected.extend(is_told.then_some(revision));
            }
            requests.send(Request::Progress).await.expect("the stream runs");
            let last = hub.current();
            assert_eq!(told(&mut responses, last).await, expected, "{labels} from {start}");
        }
    }

    #[tokio::test]
    async fn a_selector_that_cannot_be_read_refuses_its_watch_and_no_other() {
        let clock = SharedClock::new(Clock::new(0, 100, Lane::ALL));
        let hub = Hub::new(Router::single(Memory::new("m", clock.clone())), clock);
        let (output, mut responses) = mpsc::channel(8);
        let (requests, asked) = mpsc::channel(8);
        tokio::spawn(Stream::new(hub, output, Duration::from_secs(60)).run(asked));
        let Request::Create(it) = create(0) else { panic!("it is one") };
        let selector = Selector::parse("app in (", "").map(|_| None);
        requests.send(Request::Create(Create { selector, ..it })).await.expect("it runs");
        match responses.recv().await {
            Some(Response::Refused { reason, .. }) => {
                assert!(reason.contains("the label selector can't be read at byte 8"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        requests.send(create(0)).await.expect("it runs");
        let made = responses.recv().await;
        assert!(matches!(made, Some(Response::Created { watcher: 7, .. })), "{made:?}");
    }

    #[tokio::test]
    async fn a_feed_ends_with_its_last_watcher_and_another_begins_with_the_next() {
        let clock = SharedClock::new(Clock::new(0, 100, Lane::ALL));
        let hub = Hub::new(Router::single(Memory::new("m", clock.clone())), clock);
        let (output, mut responses) = mpsc::channel(8);
        let (requests, asked) = mpsc::channel(8);
        let stream = Stream::new(hub.clone(), output, Duration::from_secs(60));
        let running = tokio::spawn(stream.run(asked));
        for start in [0, 1] {
            requests.send(create(start)).await.expect("the stream runs");
            let made = responses.recv().await;
            assert!(matches!(made, Some(Response::Created { watcher: 7, .. })), "{made:?}");
            while hub.watchers() == 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(hub.feeds(), 1);
            requests.send(Request::Cancel(7)).await.expect("the stream runs");
            let ended = responses.recv().await;
            assert!(matches!(ended, Some(Response::Canceled { watcher: 7, .. })), "{ended:?}");
            assert_eq!(hub.feeds(), 0);
        }
        // One that goes with its stream.
        requests.send(create(0)).await.expect("the stream runs");
        while hub.watchers() == 0 {
            tokio::task::yield_now().await;
        }
        drop(requests);
        running.await.expect("it does not panic");
        assert_eq!(hub.feeds(), 0);
    }
}

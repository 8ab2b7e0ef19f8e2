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
//! watch its key. What waits for a client is bounded, whatever the client does.
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
        })
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

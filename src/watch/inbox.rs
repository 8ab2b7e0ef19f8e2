//! What waits to be sent on one stream. Feeds put in without waiting; the stream takes out.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::feed::Handoff;
use crate::model::{Commit, Revision, StoreError};

/// The bytes of events that wait for one stream. Who is further behind reads the log by himself.
const INBOX_BYTES_MAX: usize = 4 << 20;

/// The commits that wait for one stream, likewise.
const INBOX_ITEMS_MAX: usize = 16_384;

/// A watcher of a stream. Ids may be used again, serials are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// Its id on the wire.
    pub id: i64,
    /// How many were made on the stream before it.
    pub serial: u32,
}

/// Something for the stream, in order.
#[derive(Debug)]
pub(super) enum Item {
    /// A commit with at least one event in the watcher's range.
    Commit { watcher: Tag, commit: Arc<Commit> },
    /// All up to this revision that the watcher wants is before this in the queue.
    Progress { watcher: Tag, revision: Revision },
    /// The same for all watchers that were live in the stream's `epoch`.
    ProgressAll { revision: Revision, epoch: u64 },
    /// The watcher has sent all of the log up to `after`, and its feed goes on from there.
    CaughtUp { watcher: Tag, handoff: Handoff, after: Revision },
    /// The watcher could not read the log.
    Failed { watcher: Tag, error: StoreError },
    /// The watcher left its feed: what is above `after` it must read from the log.
    Behind { watcher: Tag, after: Revision },
}

/// The queue of one stream.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    bytes: usize,
    /// The stream has gone.
    is_closed: bool,
}

// === impl Inbox ===

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No method panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a commit in; `false` where the stream is too far behind to take it.
    pub(super) fn push_commit(&self, watcher: Tag, commit: &Arc<Commit>) -> bool {
        {
            let mut waiting = self.lock();
            let is_full = waiting.bytes > INBOX_BYTES_MAX || waiting.items.len() > INBOX_ITEMS_MAX;
            if is_full || waiting.is_closed {
                return false;
            }
            waiting.bytes += commit.size();
            waiting.items.push_back(Item::Commit { watcher, commit: commit.clone() });
        }
        self.filled.notify_one();
        true
    }

    /// Puts in what is no commit. Progress that the client would not read is left out, as etcd
    /// does; how a watcher changes is said once for each change.
    /// Returns whether anyone may still take it out.
    pub(super) fn push(&self, item: Item) -> bool {
        {
            let mut waiting = self.lock();
            if waiting.is_closed {
                return false;
            }
            let is_progress = matches!(item, Item::Progress { .. } | Item::ProgressAll { .. });
            if is_progress && waiting.items.len() > INBOX_ITEMS_MAX {
                return true;
            }
            waiting.items.push_back(item);
        }
        self.filled.notify_one();
        true
    }

    /// Takes nothing in any more, and returns what is left.
    pub(super) fn close(&self) -> VecDeque<Item> {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        std::mem::take(&mut waiting.items)
    }

    /// Takes out all that waits, once there is something.
    pub(super) async fn take(&self) -> VecDeque<Item> {
        loop {
            {
                let mut waiting = self.lock();
                if !waiting.items.is_empty() {
                    waiting.bytes = 0;
                    return std::mem::take(&mut waiting.items);
                }
            }
            self.filled.notified().await;
        }
    }
}

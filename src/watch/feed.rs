//! One log, handed on to all who watch what lies in it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    inbox::{Inbox, Item, Tag},
    index::{Index, concerns},
};
use crate::{
    clock::SharedClock,
    model::{Commit, KeyRange, Revision, StoreError, error::Result},
    route::Router,
    select::Selector,
    store::{Backfill, LogBatch, Store as _, Tail},
};

/// How long a watch that begins, or reads the log, waits for stores to close what was shown.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// How long a feed waits before it follows a log again that broke off.
const RESUME_AFTER: Duration = Duration::from_millis(100);

/// A log and its watchers. It is followed for as long as anyone holds the feed.
#[derive(Debug)]
pub(super) struct Feed {
    store: Arc<Router>,
    clock: SharedClock,
    state: Mutex<State>,
    moved: Notify,
    _following: DropGuard,
}

#[derive(Debug)]
struct State {
    /// All up to here was handed on. May be above what clients were shown, where a store promised that.
    closed: Revision,
    index: Index,
    watchers: HashMap<u64, Entry>,
    next_id: u64,
}

/// A watcher that is up to date.
#[derive(Debug)]
struct Entry {
    inbox: Arc<Inbox>,
    watcher: Tag,
    range: KeyRange,
    selector: Option<Arc<Selector>>,
    gets_all: bool,
    /// The first revision that it wants.
    from: Revision,
    /// It knows that it has all up to here.
    told: Revision,
    wants_progress: bool,
}

/// Who wants to join a feed.
#[derive(Clone, Debug)]
pub(super) struct Joining {
    pub inbox: Arc<Inbox>,
    pub watcher: Tag,
    pub range: KeyRange,
    pub selector: Option<Arc<Selector>>,
    /// Whether it is sent every event of the range: then each tells it how far it is.
    pub gets_all: bool,
    pub wants_progress: bool,
}

/// A place in a feed on its way to the stream that will hold it. It lies in an inbox, which the feed
/// holds, so it must hold neither the feed nor the place.
#[derive(Debug)]
pub(super) struct Handoff {
    feed: Weak<Feed>,
    id: u64,
}

/// A watcher's place in a feed, until it is dropped.
#[derive(Debug)]
pub(super) struct Joined {
    feed: Arc<Feed>,
    id: u64,
}

// === impl Feed ===

impl Feed {
    /// A feed of what `store` commits from now on, until `stopped`, or until nobody holds it.
    pub(super) fn start(
        store: Arc<Router>,
        clock: SharedClock,
        stopped: CancellationToken,
    ) -> Arc<Self> {
        // Not what was shown: a commit below that may be in flight in this store. The tail is made before
        // anyone joins: what came late until then is noted, and what comes late from then on it tells.
        let closed = store.announce_closed();
        let tail = store.tail(closed);
        let state = State { closed, index: Index::default(), watchers: HashMap::new(), next_id: 0 };
        let following = stopped.child_token();
        let feed = Arc::new(Self {
            store,
            clock,
            state: Mutex::new(state),
            moved: Notify::new(),
            _following: following.clone().drop_guard(),
        });
        let follow = follow(Arc::downgrade(&feed), tail);
        tokio::spawn(async move { following.run_until_cancelled(follow).await });
        feed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing behind the lock panics, and if it did, the index would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log behind `after`, for who catches up.
    pub(super) fn tail(&self, after: Revision) -> Tail {
        self.store.tail(after)
    }

    /// Up to where all that it follows is compacted.
    pub(super) fn compacted_everywhere(&self) -> Revision {
        self.store.compacted_everywhere()
    }

    /// Behind which revision a watch begins that wants what comes from now on. Numbers of other nodes
    /// may be below what was shown here: they close that first, or, where they can't, the watch begins
    /// behind all that they have closed.
    pub(super) async fn now(&self) -> Revision {
        let shown = self.clock.shown();
        if self.store.is_own() || timeout(CLOSE_WITHIN, self.close(shown)).await == Ok(true) {
            return shown;
        }
        self.store.announce_closed().min(shown)
    }

    /// Has the store close what was shown, so that whoever reads its log hears how far it is.
    pub(super) async fn close_shown(&self) {
        let _ = timeout(CLOSE_WITHIN, self.close(self.clock.shown())).await;
    }

    async fn close(&self, revision: Revision) -> bool {
        self.store.advance_closed(revision, 0).await.is_ok()
    }

    /// Up to where a piece of the log is complete, as far as clients may hear of it.
    pub(super) fn shown_of(&self, closed: Revision) -> Revision {
        closed.min(self.clock.shown())
    }

    /// Whether a watch may go on behind `after`.
    ///
    /// # Errors
    /// `Compacted` where it may not.
    pub(super) fn check_resume(&self, after: Revision) -> Result<()> {
        let compacted = self.store.compacted();
        if after + 1 < compacted {
            return Err(StoreError::Compacted { compacted });
        }
        self.store.check_resume(after)
    }

    /// The names of the stores that it follows.
    pub(super) fn stores(&self) -> Vec<Arc<str>> {
        self.store.stores().map(|store| store.name().clone()).collect()
    }

    pub(super) fn watchers(&self) -> usize {
        self.lock().watchers.len()
    }

    /// Joins where all up to `after` was delivered and the feed has handed on that and no more: from
    /// then on every commit above `after` comes. `None` where the feed is elsewhere.
    pub(super) fn join(self: &Arc<Self>, joining: &Joining, after: Revision) -> Option<Joined> {
        let mut state = self.lock();
        // Under the lock: changes that came late before are noted by now, and those that come later
        // find the watcher here.
        self.check_resume(after).ok()?;
        let id = self.join_in(&mut state, joining, after)?;
        Some(Joined { feed: self.clone(), id })
    }

    /// The same for who catches up: the stream is told in its inbox, before any commit.
    pub(super) fn join_caught_up(self: &Arc<Self>, joining: &Joining, after: Revision) -> bool {
        let mut state = self.lock();
        if self.check_resume(after).is_err() {
            return false;
        }
        let Some(id) = self.join_in(&mut state, joining, after) else { return false };
        let handoff = Handoff { feed: Arc::downgrade(self), id };
        let item = Item::CaughtUp { watcher: joining.watcher, handoff, after };
        if !joining.inbox.push(item) {
            // The stream has gone, and nobody else would leave the feed for it.
            state.leave(id);
        }
        true
    }

    /// `shown` is read under the lock: what was handed on was shown before.
    fn join_in(&self, state: &mut State, joining: &Joining, after: Revision) -> Option<u64> {
        let shown = self.clock.shown();
        // Who got further than the feed may have got there without a store for which the feed still
        // waits, and what that one has done comes to the feed in order. Who waits for what nobody was
        // shown yet lacks nothing.
        let is_ahead = after > state.closed && after <= shown && !self.store.is_own();
        if state.closed.min(shown) > after || is_ahead {
            return None;
        }
        Some(state.join(joining, after))
    }

    /// Has the feed come to who is ahead of it, where its stores can close that soon.
    pub(super) async fn come_to(&self, after: Revision) {
        if after <= self.clock.shown() {
            let _ = timeout(CLOSE_WITHIN, self.reach(after)).await;
        }
    }

    /// Waits until all up to `revision` was handed on.
    pub(super) async fn reach(&self, revision: Revision) -> Result<()> {
        if self.lock().closed >= revision {
            return Ok(());
        }
        self.store.advance_closed(revision, 0).await?;
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.lock().closed >= revision {
                return Ok(());
            }
            moved.await;
        }
    }

    /// See [`super::Hub::push_progress`].
    pub(super) fn push_progress(self: &Arc<Self>, range: &KeyRange, revision: Revision) {
        {
            let mut state = self.lock();
            if !state.is_behind(range, revision) {
                return;
            }
            if state.closed >= revision {
                state.tell_prefix(range, revision);
                return;
            }
        }
        let (feed, range) = (self.clone(), range.clone());
        tokio::spawn(async move {
            // Where the store can't close the revision, there is no progress to tell.
            if feed.reach(revision).await.is_ok() {
                feed.lock().tell_prefix(&range, revision);
            }
        });
    }

    /// A log to go on with: from where the feed is, or, where the log does not say what was before, from
    /// what was shown: from beyond that nobody comes who reads for himself. Watchers that may lack something
    /// then are sent to find out.
    fn resume(&self, is_compacted: bool) -> Tail {
        let closed = self.lock().closed;
        let after = if is_compacted { closed.max(self.clock.shown()) } else { closed };
        let tail = self.store.tail(after);
        {
            let mut state = self.lock();
            // Behind the tail's beginning: what came late before is noted by now, the rest the tail tells.
            if is_compacted || self.store.check_resume(closed).is_err() {
                state.send_away(self.shown_of(closed));
            }
            state.closed = after;
        }
        self.moved.notify_waiters();
        tail
    }

    fn hand_on(&self, batch: LogBatch) {
        {
            let mut state = self.lock();
            for commit in &batch.commits {
                state.hand_on(commit);
            }
            state.end_for(&batch.backfill);
            state.closed = state.closed.max(batch.closed);
        }
        self.moved.notify_waiters();
    }
}

/// Hands on what a log yields, and goes on where it broke off, for as long as anyone holds the feed.
async fn follow(feed: Weak<Feed>, mut tail: Tail) {
    let mut is_lost = false;
    loop {
        let next = tail.next().await;
        let Some(held) = feed.upgrade() else { return };
        let error = match next {
            Some(Ok(batch)) => {
                is_lost = false;
                held.hand_on(batch);
                continue;
            }
            Some(Err(error)) => error,
            None => {
                let store = held.store.name().clone();
                StoreError::Unavailable { store, reason: "its log ended".into() }
            }
        };
        if !is_lost {
            tracing::warn!(store = %held.store.name(), %error, "a feed lost its log, and resumes");
        }
        is_lost = true;
        drop(held);
        tokio::time::sleep(RESUME_AFTER).await;
        let Some(held) = feed.upgrade() else { return };
        tail = held.resume(matches!(error, StoreError::Compacted { .. }));
    }
}

// === impl State ===

impl State {
    fn join(&mut self, joining: &Joining, after: Revision) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.index.insert(&joining.range, joining.selector.as_ref(), id);
        let entry = Entry {
            inbox: joining.inbox.clone(),
            watcher: joining.watcher,
            range: joining.range.clone(),
            selector: joining.selector.clone(),
            gets_all: joining.gets_all,
            from: after + 1,
            told: 0,
            wants_progress: joining.wants_progress,
        };
        self.watchers.insert(id, entry);
        id
    }

    fn leave(&mut self, id: u64) {
        drop(self.take(id));
    }

    fn take(&mut self, id: u64) -> Option<Entry> {
        let entry = self.watchers.remove(&id)?;
        self.index.remove(&entry.range, entry.selector.as_ref(), id);
        Some(entry)
    }

    fn hand_on(&mut self, commit: &Arc<Commit>) {
        let mut touched = Vec::new();
        for event in &commit.events {
            self.index.watching(event, &mut |id| touched.push(id));
        }
        if commit.events.len() > 1 || self.index.finds_twice() {
            touched.sort_unstable();
            touched.dedup();
        }
        for id in touched {
            let Some(entry) = self.watchers.get_mut(&id) else { continue };
            if commit.revision < entry.from {
                continue;
            }
            if entry.gets_all {
                entry.told = commit.revision;
            }
            if !entry.inbox.push_commit(entry.watcher, commit) {
                self.send_behind(id, commit.revision - 1);
            }
        }
    }

    fn send_behind(&mut self, id: u64, after: Revision) {
        if let Some(entry) = self.take(id) {
            let after = after.max(entry.from - 1);
            entry.inbox.push(Item::Behind { watcher: entry.watcher, after });
        }
    }

    /// Ends the watchers that lack changes which come late: their clients start afresh.
    fn end_for(&mut self, late: &Backfill) {
        let mut touched = Vec::new();
        for event in late.commits.iter().flat_map(|commit| &commit.events) {
            let lacks = |entry: &Entry| {
                let selector = entry.selector.as_ref();
                entry.from <= late.floor && selector.is_none_or(|it| concerns(it, event))
            };
            self.index.watching(event, &mut |id| {
                touched.extend(self.watchers.get(&id).filter(|it| lacks(it)).map(|_| id));
            });
        }
        for id in touched {
            if let Some(entry) = self.take(id) {
                let error = StoreError::Compacted { compacted: late.floor };
                entry.inbox.push(Item::Failed { watcher: entry.watcher, error });
            }
        }
    }

    fn send_away(&mut self, after: Revision) {
        let ids: Vec<u64> = self.watchers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.send_behind(id, after));
    }

    /// Whether a watcher of this prefix waits to be told about `revision`.
    fn is_behind(&self, range: &KeyRange, revision: Revision) -> bool {
        let ids = self.index.watching_prefix(&range.start);
        let mut entries = ids.filter_map(|id| self.watchers.get(&id));
        entries.any(|entry| entry.wants_progress && entry.told < revision)
    }

    fn tell_prefix(&mut self, range: &KeyRange, revision: Revision) {
        for id in self.index.watching_prefix(&range.start) {
            let Some(entry) = self.watchers.get_mut(&id) else { continue };
            if entry.wants_progress && entry.told < revision && entry.from <= revision + 1 {
                entry.told = revision;
                entry.inbox.push(Item::Progress { watcher: entry.watcher, revision });
            }
        }
    }
}

// === impl Handoff ===

impl Handoff {
    /// Holds the place; `None` where the feed has gone.
    pub(super) fn hold(self) -> Option<Joined> {
        Some(Joined { feed: self.feed.upgrade()?, id: self.id })
    }
}

// === impl Joined ===

impl Joined {
    /// The feed.
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.feed.lock().leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, Lane},
        store::memory::Memory,
    };

    fn joining(inbox: &Arc<Inbox>) -> Joining {
        Joining {
            inbox: inbox.clone(),
            watcher: Tag { id: 0, serial: 0 },
            range: KeyRange::all(),
            selector: None,
            gets_all: true,
            wants_progress: false,
        }
    }

    #[tokio::test]
    async fn a_stream_that_goes_while_it_is_told_leaves_no_watcher_behind() {
        let clock = SharedClock::new(Clock::new(0, 100, Lane::ALL));
        let store = Memory::new("m", clock.clone());
        let feed = Feed::start(Router::single(store), clock, CancellationToken::new());
        let inbox = Arc::<Inbox>::default();
        assert!(feed.join_caught_up(&joining(&inbox), 1));
        assert_eq!(feed.watchers(), 1);
        for item in inbox.close() {
            if let Item::CaughtUp { handoff, .. } = item {
                drop(handoff.hold());
            }
        }
        assert_eq!(feed.watchers(), 0);
        assert!(feed.join_caught_up(&joining(&inbox), 1));
        assert_eq!(feed.watchers(), 0);
    }
}

//! Watching: each watcher merges its sources and gives out what all of them have closed.

use std::collections::VecDeque;

use pleach::{clock::Merge, model::Revision};

use crate::{
    CHILD, ROOT, StoreId,
    fault::Fault,
    history::Stage,
    node::{CHILD_SOURCE, Feed, Sink, Tail, Watcher},
    world::World,
};

/// How a client is given what is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// Its connection breaks after so many events.
    pub(crate) events_max: usize,
    /// Whether the revision up to which it has everything is told.
    pub(crate) progress: bool,
}

// === impl Delivery ===

impl Delivery {
    pub(crate) const ALL: Self = Self { events_max: usize::MAX, progress: true };
}

// === impl World ===

impl World {
    /// A client watches from the revision after the last that it was told of.
    pub(crate) fn watch(&mut self, client: usize) {
        let (node, told) = (self.clients[client].node, self.clients[client].told);
        if !self.nodes[node].up {
            return;
        }
        let watcher = self.new_watcher(node, Sink::Client(client), self.clients[client].mask, told);
        let floor = &self.nodes[node].durable.floor;
        if watcher.spans() && watcher.feeds.iter().any(|feed| told < floor[feed.source]) {
            self.note(|| format!("client {client} may lack changes up to {told}: it is refused"));
            self.history.seen.refused += 1;
            self.clients[client].stage = Stage::Fresh;
            return;
        }
        self.note(|| format!("client {client} watches from {} by node {node}", told + 1));
        self.history.seen.resumed += u64::from(told > self.clients[client].base);
        self.clients[client].stage = Stage::Watching;
        self.nodes[node].watchers.push(watcher);
    }

    fn new_watcher(&mut self, node: usize, sink: Sink, mask: u8, told: Revision) -> Watcher {
        let feed =
            |source| Feed { source, cursor: told, promise: told, detached: false, stream: None };
        let feeds: Vec<Feed> = Self::sources(node, mask).map(feed).collect();
        let merge = Merge::new(feeds.len(), told);
        let (id, drained) = (self.new_id(), told);
        let mut watcher =
            Watcher { id, sink, mask, merge, feeds, exact: true, drained, sent: told };
        if watcher.may_go_without() {
            self.go_without_detached(node, &mut watcher);
        }
        watcher
    }

    /// A watch that is opened while a source is detached may be that of a client which was told of
    /// revisions without it: all that the source had not closed for everybody is to be checked.
    fn go_without_detached(&mut self, node: usize, watcher: &mut Watcher) {
        let trusts = self.has(Fault::TrustingResumedWatches);
        for (index, feed) in watcher.feeds.iter_mut().enumerate() {
            let Some(complete) = &mut self.nodes[node].complete[feed.source] else {
                continue;
            };
            if !trusts {
                *complete = feed.cursor.min(*complete);
                feed.cursor = *complete;
            }
            feed.detached = true;
            watcher.exact = false;
            watcher.merge.detach(index);
        }
    }

    /// Takes what a watcher's sources have, and gives out what is ready.
    pub(crate) fn pump(
        &mut self,
        node: usize,
        index: usize,
        delivery: Delivery,
    ) -> Result<(), String> {
        let mut watcher = self.nodes[node].watchers.swap_remove(index);
        let is_late = self.feed(node, &mut watcher);
        if is_late && !self.has(Fault::ReattachingWithoutEnding) {
            return self.end(watcher);
        }
        let (entries, closed) = watcher.merge.drain();
        watcher.drained = closed;
        let goes_on = match watcher.sink {
            Sink::Client(client) => self.deliver(node, client, &entries, closed, delivery)?,
            Sink::Parent(parent) => self.send(&mut watcher, parent, entries, closed),
        };
        if goes_on {
            self.nodes[node].watchers.push(watcher);
        } else {
            self.close_stream(watcher.id);
        }
        Ok(())
    }

    fn feed(&mut self, node: usize, watcher: &mut Watcher) -> bool {
        let mut is_late = false;
        for (index, feed) in watcher.feeds.iter_mut().enumerate() {
            if feed.detached || !self.reachable(node, feed.source) {
                continue;
            }
            if feed.source == CHILD_SOURCE {
                if feed.stream.is_none() {
                    feed.stream = Some(VecDeque::new());
                    self.open_stream(watcher.id, watcher.mask, feed.cursor);
                }
                let closed = self.capped(node, feed.promise);
                is_late |= !watcher.merge.push(index, [], closed).is_empty();
                continue;
            }
            let store = 2 * node + feed.source;
            // The promise is taken before the log is read: the other way round, a commit between
            // the two would be closed and not seen.
            let closed = self.closed(node, store);
            let entries = self.stores[store].since(feed.cursor).iter().map(|(r, _)| (*r, store));
            let last = self.stores[store].greatest();
            is_late |= !watcher.merge.push(index, entries, closed).is_empty();
            feed.cursor = feed.cursor.max(closed).max(last);
        }
        is_late
    }

    /// What a node makes of its child's promise: no client is told of more than a read would show.
    fn capped(&self, node: usize, promise: Revision) -> Revision {
        match self.has(Fault::TellingThePromise) {
            true => promise,
            false => promise.min(self.nodes[node].clock.shown()),
        }
    }

    fn open_stream(&mut self, parent: u64, mask: u8, after: Revision) {
        let shown = self.nodes[ROOT].clock.shown();
        if !self.has(Fault::NotObservingTheParent) {
            self.observe(CHILD, shown);
        }
        let watcher = self.new_watcher(CHILD, Sink::Parent(parent), mask & 0b1100, after);
        self.nodes[CHILD].watchers.push(watcher);
    }

    /// The connection of a client that watches is gone.
    pub(crate) fn cut(&mut self, client: usize) {
        self.note(|| format!("the connection of client {client} breaks"));
        let watchers = &mut self.nodes[self.clients[client].node].watchers;
        let index = watchers.iter().position(|watcher| watcher.sink == Sink::Client(client));
        if let Some(index) = index {
            let watcher = watchers.swap_remove(index);
            self.close_stream(watcher.id);
        }
        self.clients[client].stage = Stage::Cut;
    }

    pub(crate) fn close_stream(&mut self, parent: u64) {
        self.nodes[CHILD].watchers.retain(|watcher| watcher.sink != Sink::Parent(parent));
    }

    fn deliver(
        &mut self,
        node: usize,
        client: usize,
        entries: &[(Revision, StoreId)],
        closed: Revision,
        delivery: Delivery,
    ) -> Result<bool, String> {
        let events_max = delivery.events_max.min(entries.len());
        for (revision, _) in &entries[..events_max] {
            self.note(|| format!("client {client} gets the event {revision}"));
            self.clients[client].event(*revision)?;
            self.tell(node, *revision);
        }
        self.history.seen.events += events_max as u64;
        if events_max < entries.len() {
            self.note(|| format!("the connection of client {client} breaks"));
            self.clients[client].stage = Stage::Cut;
            return Ok(false);
        }
        let told = &mut self.clients[client].told;
        if delivery.progress && closed > *told {
            *told = closed;
            self.note(|| format!("client {client} is told of progress up to {closed}"));
            self.tell(node, closed);
            self.history.seen.progress += 1;
        }
        Ok(true)
    }

    /// The child sends its parent what is closed, and a promise as great as it can make it.
    fn send(
        &mut self,
        watcher: &mut Watcher,
        parent: u64,
        entries: Vec<(Revision, StoreId)>,
        closed: Revision,
    ) -> bool {
        let promise = self.close_ahead().unwrap_or(closed).max(closed);
        if entries.is_empty() && promise <= watcher.sent {
            return true;
        }
        watcher.sent = promise;
        self.note(|| format!("the child sends {entries:?}, closed up to {promise}"));
        let watchers = &mut self.nodes[ROOT].watchers;
        let to = watchers.iter_mut().find(|watcher| watcher.id == parent);
        let feed = to.and_then(|to| to.feeds.iter_mut().find(|feed| feed.source == CHILD_SOURCE));
        let Some(stream) = feed.and_then(|feed| feed.stream.as_mut()) else {
            return false;
        };
        stream.push_back(Tail { entries, promise });
        true
    }

    fn close_ahead(&mut self) -> Option<Revision> {
        let ahead = self.config.ahead;
        let stores = &self.stores[2 * CHILD..];
        if ahead == 0 || stores.iter().any(|store| !store.reachable || !store.in_flight.is_empty())
        {
            return None;
        }
        let clock = &self.nodes[CHILD].clock;
        if clock.shown() + ahead > clock.limit() {
            self.reserve(CHILD, clock.shown() + ahead);
        }
        self.history.seen.closed_ahead += 1;
        self.nodes[CHILD].clock.close_ahead(ahead)
    }

    /// The root takes the next message of one of the child's streams.
    pub(crate) fn take_tail(&mut self, index: usize) -> Result<(), String> {
        let mut watcher = self.nodes[ROOT].watchers.swap_remove(index);
        let position = watcher.feed_of(CHILD_SOURCE).expect("it has a stream of the child's");
        let feed = &mut watcher.feeds[position];
        let tail = feed.stream.as_mut().and_then(|stream| stream.pop_front());
        let Tail { entries, promise } = tail.expect("the stream is not empty");
        if let Some((last, _)) = entries.last() {
            self.observe(ROOT, *last);
            feed.cursor = feed.cursor.max(*last);
        }
        feed.promise = feed.promise.max(promise);
        feed.cursor = feed.cursor.max(promise);
        self.note(|| format!("the root takes {entries:?}, closed up to {promise}"));
        let closed = self.capped(ROOT, watcher.feeds[position].promise);
        let late = watcher.merge.push(position, entries, closed);
        if !late.is_empty() && !self.has(Fault::ReattachingWithoutEnding) {
            return self.end(watcher);
        }
        self.nodes[ROOT].watchers.push(watcher);
        Ok(())
    }

    /// A watcher is ended as compacted, since changes came too late for it.
    fn end(&mut self, watcher: Watcher) -> Result<(), String> {
        let Sink::Client(client) = watcher.sink else {
            return Err("a stream to the parent waits for every store, and can miss nothing".into());
        };
        self.note(|| format!("the watch of client {client} is ended as compacted"));
        self.close_stream(watcher.id);
        self.history.seen.ended += 1;
        let mut given = self.clients[client].clone();
        self.clients[client].stage = Stage::Fresh;
        given.told = watcher.drained.max(given.told);
        if watcher.exact && given.check(&self.stores).is_ok() {
            return Err(format!("the watch of client {client} was ended and had missed nothing"));
        }
        Ok(())
    }
}

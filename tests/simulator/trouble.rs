//! What goes wrong: crashes, partitions, stores out of reach; and how a node comes back from it.

use pleach::{clock::Clock, model::Revision};

use crate::{
    CHILD, ROOT, StoreId,
    fault::Fault,
    history::Stage,
    node::{CHILD_SOURCE, Reader, Sink},
    store::Store,
    world::{World, lane},
};

// === impl World ===

impl World {
    /// A node dies. What was in flight is durable or not; that of a store out of reach shows later.
    pub(crate) fn crash(&mut self, node: usize, durable: bool) {
        if !self.nodes[node].up {
            return;
        }
        self.note(|| format!("node {node} dies; what was in flight is durable: {durable}"));
        self.nodes[node].up = false;
        for store in &mut self.stores[2 * node..2 * node + 2] {
            let in_flight = std::mem::take(&mut store.in_flight);
            if store.reachable {
                store.settle(&in_flight, durable);
            } else {
                store.unknown.extend(in_flight);
            }
        }
        for watcher in std::mem::take(&mut self.nodes[node].watchers) {
            if let Sink::Client(client) = watcher.sink {
                self.clients[client].stage = Stage::Cut;
            }
        }
        self.fail_lists(node, |_| true);
        self.nodes[node].unanswered.clear();
        self.nodes[node].complete = [None; 3];
        self.hang_up();
    }

    /// The connection between root and child is gone, with all that was on its way.
    fn hang_up(&mut self) {
        self.network.clear();
        for feed in self.nodes[ROOT].watchers.iter_mut().flat_map(|watcher| &mut watcher.feeds) {
            feed.stream = None;
        }
        self.nodes[CHILD].watchers.retain(|watcher| matches!(watcher.sink, Sink::Client(_)));
        self.nodes[CHILD].lists.retain(|list| matches!(list.reader, Reader::Client(_)));
        self.fail_lists(ROOT, |list| Self::part(ROOT, CHILD_SOURCE, list.mask) != 0);
        self.disown_writes();
    }

    pub(crate) fn partition(&mut self, partitioned: bool) {
        if self.partitioned != partitioned {
            let outcome = if partitioned { "cut off" } else { "back" };
            self.note(|| format!("the child is {outcome}"));
            self.partitioned = partitioned;
            self.hang_up();
        }
    }

    /// The second store of a node is out of reach; the first, which holds what the node must
    /// remember, is not, or the node could neither start nor detach anything.
    pub(crate) fn lose_store(&mut self, store: StoreId) {
        if !self.stores[store].reachable {
            return;
        }
        self.note(|| format!("store {store} is out of reach"));
        self.stores[store].reachable = false;
        self.fail_lists(store / 2, |list| list.missing & (1 << store) != 0);
    }

    /// The store is back. If its node lives, it first makes sure that no commit of an earlier life
    /// can still arrive, and so what was unknown is settled.
    pub(crate) fn find_store(&mut self, store: StoreId, durable: bool) {
        if self.stores[store].reachable {
            return;
        }
        self.note(|| format!("store {store} is back; what was unknown is durable: {durable}"));
        self.stores[store].reachable = true;
        let unknown = std::mem::take(&mut self.stores[store].unknown);
        self.stores[store].settle(&unknown, durable);
    }

    pub(crate) fn restart(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.nodes[node].up = true;
        let (start, at_greatest) = self.start(node);
        let seen = &mut self.history.seen;
        seen.restarts_at_greatest += u64::from(at_greatest);
        seen.restarts_at_limit += u64::from(!at_greatest);
        let limit = start + self.config.reserve;
        let mut clock = Clock::new(start, limit, lane(self.fault, node));
        for store in &mut self.stores[2 * node..2 * node + 2] {
            store.slot = clock.add_store();
        }
        let state = &mut self.nodes[node];
        state.clock = clock;
        state.durable.limit = limit;
        state.durable.start = start;
        // Up to where everyone was complete without it, the last life has not written down.
        state.complete = state.durable.detached.map(|detached| detached.then_some(0));
        self.note(|| format!("node {node} begins again at {start}, all reached: {at_greatest}"));
    }

    /// Where a node begins again, and whether that is the greatest revision of all it can reach.
    ///
    /// A child always begins at its limit: what its parent told it, and what it closed ahead, no
    /// store holds.
    fn start(&self, node: usize) -> (Revision, bool) {
        let durable = &self.nodes[node].durable;
        let own = &self.stores[2 * node..2 * node + 2];
        let all_reached = own.iter().all(|store| store.reachable)
            && (node == CHILD || self.connected())
            && (node == ROOT || self.has(Fault::ChildRestartingAtGreatest));
        if !all_reached && !self.has(Fault::NoReservedLimit) {
            return (durable.limit, false);
        }
        let reached = own.iter().filter(|store| store.reachable).map(Store::greatest).max();
        let childs = match node == ROOT && self.connected() {
            true => self.nodes[CHILD].clock.shown(),
            false => 0,
        };
        let remembered = match self.has(Fault::ForgettingTheStart) {
            true => 0,
            false => durable.start.max(durable.floor.into_iter().max().unwrap_or(0)),
        };
        (reached.unwrap_or(0).max(childs).max(remembered), true)
    }

    /// The grace is over: from now on the spanning watches go on without a source. That is made
    /// durable first, since it outlives the node: a client may come back much later.
    pub(crate) fn detach(&mut self, node: usize, source: usize) {
        let state = &mut self.nodes[node];
        if !state.up || state.complete[source].is_some() {
            return;
        }
        if self.fault != Some(Fault::ForgettingTheDetached) {
            state.durable.detached[source] = true;
        }
        let mut complete = Revision::MAX;
        for watcher in &mut state.watchers {
            let Some(index) = watcher.feed_of(source) else {
                continue;
            };
            if watcher.may_go_without() {
                watcher.merge.detach(index);
                watcher.feeds[index].detached = true;
                complete = complete.min(watcher.feeds[index].cursor);
            }
        }
        state.complete[source] = Some(complete);
        self.history.seen.detached += 1;
        self.note(|| format!("node {node} goes on without source {source}"));
    }

    /// A detached source is back: it first closes all that this node has shown. If it has changes
    /// in there that someone may have missed, then watches that come back from there are refused
    /// from now on, and those that are open learn it from their merge.
    pub(crate) fn attach(&mut self, node: usize, source: usize) {
        let Some(complete) = self.nodes[node].complete[source] else {
            return;
        };
        let shown = self.nodes[node].clock.shown();
        if !self.reachable(node, source) || !self.has_closed(node, source, shown) {
            return;
        }
        let is_late = Self::stores_of(node, source).any(|store| {
            let after = self.stores[store].since(complete);
            after.first().is_some_and(|(revision, _)| *revision <= shown)
        });
        if is_late && !self.has(Fault::ReattachingWithoutEnding) {
            self.raise_floor(node, source, shown + 1);
        }
        let state = &mut self.nodes[node];
        state.complete[source] = None;
        state.durable.detached[source] = false;
        for watcher in &mut state.watchers {
            let Some(index) = watcher.feed_of(source) else {
                continue;
            };
            if watcher.feeds[index].detached {
                watcher.feeds[index].detached = false;
                watcher.merge.attach(index, watcher.drained);
            }
        }
        let seen = &mut self.history.seen;
        seen.attached_late += u64::from(is_late);
        seen.attached_unnoticed += u64::from(!is_late);
        self.note(|| format!("node {node} attaches source {source}, missed something: {is_late}"));
    }

    /// Whoever was told of less may have missed something; whoever lists from now on has not, and
    /// shall not be taken for the other.
    fn raise_floor(&mut self, node: usize, source: usize, floor: Revision) {
        if !self.has(Fault::AttachingWithoutMovingOn) {
            self.observe(node, floor);
        }
        if !self.has(Fault::ForgettingTheFloor) {
            self.nodes[node].durable.floor[source] = floor;
        }
    }

    fn has_closed(&mut self, node: usize, source: usize, revision: Revision) -> bool {
        let owner = if source == CHILD_SOURCE { CHILD } else { node };
        self.observe(owner, revision);
        if self.has(Fault::AttachingBeforeClosed) {
            return true;
        }
        Self::stores_of(node, source)
            .all(|store| self.stores[store].reachable && self.closed(owner, store) >= revision)
    }
}

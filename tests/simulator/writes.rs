//! Writing: allocate, in flight, durable or given up, and later answered.

use pleach::model::Revision;

use crate::{
    CHILD, Rpc, StoreId,
    store::{Origin, Write},
    world::{Call, Message, World},
};

// === impl World ===

impl World {
    /// A client writes to a store of the node that it is connected to.
    pub(crate) fn write(&mut self, node: usize, store: StoreId, key: usize) {
        let told_before = self.nodes[node].told;
        self.begin(node, Write { revision: 0, store, key, origin: Origin::Client, told_before });
    }

    /// A client of the root writes to a store of the child.
    pub(crate) fn write_through(&mut self, store: StoreId, key: usize) {
        if self.connected() {
            let rpc = self.new_id();
            self.note(|| format!("a client of the root writes to store {store} by call {rpc}"));
            self.call(rpc, Call::Write { store, key });
        }
    }

    pub(crate) fn take_write(&mut self, rpc: Rpc, store: StoreId, key: usize, told: Revision) {
        let origin = Origin::Parent(rpc);
        self.begin(CHILD, Write { revision: 0, store, key, origin, told_before: told });
    }

    fn begin(&mut self, node: usize, mut write: Write) {
        if !self.nodes[node].up || !self.stores[write.store].reachable {
            return;
        }
        write.revision = self.allocate(node, write.store);
        self.note(|| format!("node {node} allocates {} in store {}", write.revision, write.store));
        self.stores[write.store].in_flight.push(write);
    }

    /// The batch in flight in a store becomes durable, or is given up.
    pub(crate) fn commit(&mut self, store: StoreId, durable: bool) {
        let (node, state) = (store / 2, &mut self.stores[store]);
        let Some(last) = state.in_flight.last().map(|write| write.revision) else {
            return;
        };
        if !state.reachable {
            return;
        }
        let batch = std::mem::take(&mut state.in_flight);
        state.settle(&batch, durable);
        let slot = state.slot;
        if durable {
            self.nodes[node].clock.commit(slot, last);
            self.nodes[node].unanswered.extend(batch);
        } else {
            self.nodes[node].clock.abort(slot);
        }
        let outcome = if durable { "commits" } else { "gives up" };
        self.note(|| format!("node {node} {outcome} what is in flight in store {store}: {last}"));
    }

    /// One of the writes that are durable is answered.
    pub(crate) fn answer(&mut self, node: usize, index: usize) -> Result<(), String> {
        let write = self.nodes[node].unanswered.swap_remove(index);
        match write.origin {
            Origin::Nobody => Ok(()),
            Origin::Parent(_) if node == CHILD => {
                self.network.push(Message::Written(write));
                Ok(())
            }
            Origin::Client | Origin::Parent(_) => self.acknowledge(node, write),
        }
    }

    fn acknowledge(&mut self, node: usize, write: Write) -> Result<(), String> {
        let Write { revision, store, told_before, .. } = write;
        self.note(|| format!("node {node} acknowledges {revision}"));
        if revision <= told_before {
            return Err(format!(
                "a write by node {node} is acknowledged as {revision}, but {told_before} was told \
                 before it was asked for"
            ));
        }
        self.tell(node, revision);
        self.history.acknowledged.push((revision, store));
        self.history.seen.writes += 1;
        Ok(())
    }

    /// The parent that asked for these writes has hung up: they go on, and nobody is answered.
    pub(crate) fn disown_writes(&mut self) {
        let stores = &mut self.stores[2 * CHILD..];
        let in_flight = stores.iter_mut().flat_map(|store| &mut store.in_flight);
        for write in in_flight.chain(&mut self.nodes[CHILD].unanswered) {
            if let Origin::Parent(_) = write.origin {
                write.origin = Origin::Nobody;
            }
        }
    }
}

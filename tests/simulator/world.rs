//! The tree: a root with two stores and a child, the child with two stores, clients at both.

use std::ops::Range;

use pleach::{
    clock::{Lane, LaneBlock},
    model::Revision,
};

use crate::{
    CHILD, KEYS, Mask, ROOT, Rpc, STORES, Snapshot, StoreId,
    fault::Fault,
    history::{Client, History},
    node::{CHILD_SOURCE, Node, SOURCES},
    rng::Rng,
    store::{Store, Write},
};

/// What may differ from one tree to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// How many numbers are reserved at a time: so few that the limit matters, or plenty.
    pub(crate) reserve: Revision,
    /// How far a child closes ahead.
    pub(crate) ahead: Revision,
    /// Whether nodes die; where none does, what is open lives long enough to see more.
    pub(crate) crashes: bool,
}

/// What the root asks of its child.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Write {
        store: StoreId,
        key: usize,
    },
    /// At the revision of the list that this is part of, or at the child's own.
    List {
        mask: Mask,
        at: Option<Revision>,
    },
    /// No more than the number that travels with every call.
    Sync,
}

/// What is on its way between root and child, each on a stream of its own: it may overtake all else.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Call { rpc: Rpc, call: Call, shown: Revision, told_before: Revision },
    Written(Write),
    Listed { rpc: Rpc, at: Revision, state: Snapshot },
    Refused { rpc: Rpc },
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) fault: Option<Fault>,
    pub(crate) nodes: [Node; 2],
    pub(crate) stores: [Store; STORES],
    pub(crate) partitioned: bool,
    pub(crate) network: Vec<Message>,
    pub(crate) clients: Vec<Client>,
    pub(crate) history: History,
    pub(crate) last_id: u64,
    /// What happened, in sentences; kept for the schedule that is printed only.
    pub(crate) story: Option<Vec<String>>,
}

/// Where a node allocates.
pub(crate) fn lane(fault: Option<Fault>, node: usize) -> Lane {
    let block = LaneBlock::ALL.assign(&[], 16).expect("the root holds every lane");
    match fault {
        Some(Fault::NoLanes) => Lane::ALL,
        _ if node == ROOT => LaneBlock::ALL.own(),
        _ => block.own(),
    }
}

// === impl Config ===

impl Config {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let (reserve, ahead) = (rng.pick(&[2_048, 1 << 21]), rng.pick(&[0, 3_000, 1 << 20]));
        Self { reserve, ahead, crashes: rng.chance(60) }
    }
}

// === impl World ===

impl World {
    pub(crate) fn new(config: Config, fault: Option<Fault>) -> Self {
        let (root, [a, b]) = Node::new(config.reserve, lane(fault, ROOT));
        let (child, [c, d]) = Node::new(config.reserve, lane(fault, CHILD));
        Self {
            config,
            fault,
            nodes: [root, child],
            stores: [a, b, c, d].map(Store::new),
            partitioned: false,
            network: Vec::new(),
            clients: Vec::new(),
            history: History::default(),
            last_id: 0,
            story: None,
        }
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(crate) fn note(&mut self, sentence: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(sentence());
        }
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn connected(&self) -> bool {
        self.nodes[ROOT].up && self.nodes[CHILD].up && !self.partitioned
    }

    /// The stores behind a source of a node.
    pub(crate) fn stores_of(node: usize, source: usize) -> Range<StoreId> {
        if source == CHILD_SOURCE { 2..4 } else { node * 2 + source..node * 2 + source + 1 }
    }

    /// The part of `mask` that a source of a node holds.
    pub(crate) fn part(node: usize, source: usize, mask: Mask) -> Mask {
        if source == CHILD_SOURCE && node == CHILD {
            return 0;
        }
        Self::stores_of(node, source).fold(0, |part, store| part | 1 << store) & mask
    }

    /// The sources of a node that hold any of `mask`.
    pub(crate) fn sources(node: usize, mask: Mask) -> impl Iterator<Item = usize> {
        (0..SOURCES).filter(move |source| Self::part(node, *source, mask) != 0)
    }

    pub(crate) fn reachable(&self, node: usize, source: usize) -> bool {
        match source {
            CHILD_SOURCE => node == ROOT && self.connected(),
            own => self.stores[node * 2 + own].reachable,
        }
    }

    /// The promise for a store, as its node makes it to itself.
    pub(crate) fn closed(&self, node: usize, store: StoreId) -> Revision {
        let (clock, store) = (&self.nodes[node].clock, &self.stores[store]);
        match self.fault {
            Some(Fault::EmittingWithoutClosing) => clock.shown(),
            Some(Fault::ClosingAboveShown) if node == ROOT => {
                store.in_flight.first().map_or(clock.now(), |first| first.revision - 1)
            }
            // What is promised ahead is for a parent only.
            _ => clock.closed(store.slot).min(clock.shown()),
        }
    }

    /// Makes a greater limit durable, and only then uses it.
    pub(crate) fn reserve(&mut self, node: usize, least: Revision) {
        let limit = least + self.config.reserve;
        let in_memory_only = self.has(Fault::ReservingInMemoryOnly);
        let node = &mut self.nodes[node];
        if !in_memory_only {
            node.durable.limit = limit;
        }
        node.clock.reserve(limit);
    }

    pub(crate) fn observe(&mut self, node: usize, revision: Revision) {
        if self.nodes[node].clock.observe(revision).is_err() {
            self.reserve(node, revision);
            self.nodes[node].clock.observe(revision).expect("the limit was raised above it");
        }
    }

    pub(crate) fn allocate(&mut self, node: usize, store: StoreId) -> Revision {
        let slot = self.stores[store].slot;
        if let Ok(revision) = self.nodes[node].clock.allocate(slot) {
            return revision;
        }
        self.reserve(node, self.nodes[node].clock.now());
        self.nodes[node].clock.allocate(slot).expect("a reserve holds more than one turn of lanes")
    }

    /// A client learns of `revision` from this node: no later answer may be older.
    pub(crate) fn tell(&mut self, node: usize, revision: Revision) {
        let told = &mut self.nodes[node].told;
        *told = revision.max(*told);
    }

    pub(crate) fn call(&mut self, rpc: Rpc, call: Call) {
        let (shown, told_before) = (self.nodes[ROOT].clock.shown(), self.nodes[ROOT].told);
        self.network.push(Message::Call { rpc, call, shown, told_before });
    }

    /// Takes a message off the network: any of them, whatever was sent first.
    pub(crate) fn receive(&mut self, index: usize) -> Result<(), String> {
        match self.network.swap_remove(index) {
            Message::Call { rpc, call, shown, told_before } => {
                self.note(|| format!("the child takes call {rpc}, {call:?}, sent at {shown}"));
                if !self.has(Fault::NotObservingTheParent) {
                    self.observe(CHILD, shown);
                }
                self.serve(rpc, call, told_before)
            }
            Message::Written(write) => {
                self.note(|| format!("the root takes the child's answer {}", write.revision));
                self.observe(ROOT, write.revision);
                self.nodes[ROOT].unanswered.push(write);
                Ok(())
            }
            Message::Listed { rpc, at, state } => self.take_listed(rpc, at, state),
            Message::Refused { rpc } => {
                self.fail_lists(ROOT, |list| list.id == rpc);
                Ok(())
            }
        }
    }

    fn serve(&mut self, rpc: Rpc, call: Call, told_before: Revision) -> Result<(), String> {
        match call {
            Call::Write { store, key } => self.take_write(rpc, store, key % KEYS, told_before),
            Call::List { mask, at } => self.take_list(rpc, mask, at)?,
            Call::Sync => {}
        }
        Ok(())
    }
}

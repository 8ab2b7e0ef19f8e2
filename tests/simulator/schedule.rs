//! Schedules: what is drawn at each step, how a run ends, and how one that failed is made shorter.

use crate::{
    CHILD, KEYS, Mask, ROOT, STORES, StoreId,
    fault::Fault,
    history::{Client, Seen, Stage},
    rng::Rng,
    watches::Delivery,
    world::{Call, Config, Message, World},
};

/// Enough for each other, few enough to be quick.
const CLIENTS_MAX: usize = 5;

/// By then everything has drained, or it never will.
const ROUNDS_MAX: usize = 60;

/// One run, given whole by its draws: each step takes its decisions from its own, so that a run
/// with some steps left out is a run too.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    config: Config,
    fault: Option<Fault>,
    draws: Vec<u64>,
}

/// What a client saw and should not have seen.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) seed: u64,
    pub(crate) what: String,
    pub(crate) story: Vec<String>,
}

// === impl Schedule ===

impl Schedule {
    pub(crate) fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut rng = Rng::new(seed);
        let config = Config::draw(&mut rng);
        let steps = 30 + rng.below(50);
        Self { config, fault, draws: (0..steps).map(|_| rng.next()).collect() }
    }

    fn run(&self, story: Option<Vec<String>>) -> (Result<(), String>, World) {
        let mut world = World::new(self.config, self.fault);
        world.story = story;
        let steps = self.draws.iter().try_for_each(|draw| world.step(&mut Rng::new(*draw)));
        (steps.and_then(|()| world.settle()), world)
    }

    /// Leaves out as many steps as it can and still fails, halves first.
    fn shrink(&mut self) {
        let mut length = self.draws.len() / 2;
        while length > 0 {
            let mut from = 0;
            while from + length <= self.draws.len() {
                let mut shorter = self.clone();
                shorter.draws.drain(from..from + length);
                if shorter.run(None).0.is_err() {
                    *self = shorter;
                } else {
                    from += length;
                }
            }
            length /= 2;
        }
    }
}

/// Runs the schedule of `seed`.
pub(crate) fn run(seed: u64, fault: Option<Fault>) -> Result<Seen, Box<Violation>> {
    let mut schedule = Schedule::new(seed, fault);
    let (outcome, world) = schedule.run(None);
    if outcome.is_ok() {
        return Ok(world.history.seen);
    }
    schedule.shrink();
    let (outcome, world) = schedule.run(Some(vec![format!("{:?}", schedule.config)]));
    let what = outcome.expect_err("a shrunk schedule still fails");
    Err(Box::new(Violation { seed, what, story: world.story.unwrap_or_default() }))
}

// === impl World ===

impl World {
    fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        let node = rng.pick(&[ROOT, CHILD]);
        match rng.below(100) {
            0..=10 => self.step_write(node, rng),
            11..=20 => self.commit(rng.below(STORES), rng.chance(80)),
            21..=24 => return self.step_answer(node, rng),
            25..=40 => return self.step_client(rng),
            41..=45 => return self.step_list(node, rng),
            46..=63 => return self.step_pump(node, rng),
            64..=80 => return self.step_network(rng),
            _ => self.step_trouble(node, rng),
        }
        Ok(())
    }

    fn step_write(&mut self, node: usize, rng: &mut Rng) {
        let through = node == ROOT && rng.chance(50);
        for _ in 0..rng.pick(&[1, 1, 2, 3]) {
            let (store, key) = (rng.below(2), rng.below(KEYS));
            if through {
                self.write_through(2 * CHILD + store, key);
            } else {
                self.write(node, 2 * node + store, key);
            }
        }
    }

    fn step_answer(&mut self, node: usize, rng: &mut Rng) -> Result<(), String> {
        match self.nodes[node].unanswered.len() {
            0 => Ok(()),
            count => self.answer(node, rng.below(count)),
        }
    }

    fn step_client(&mut self, rng: &mut Rng) -> Result<(), String> {
        let next = rng.below(CLIENTS_MAX);
        if next >= self.clients.len() {
            self.clients.push(self.new_client(rng));
        }
        let client = next.min(self.clients.len() - 1);
        if self.clients[client].stage == Stage::Watching && rng.chance(25) {
            self.cut(client);
        }
        self.advance_client(client)
    }

    fn advance_client(&mut self, client: usize) -> Result<(), String> {
        match self.clients[client].stage {
            Stage::Fresh => return self.list(client),
            Stage::Cut => self.watch(client),
            Stage::Listing | Stage::Watching => {}
        }
        Ok(())
    }

    /// A client of some range, which begins with a list, or in the past with one of another.
    fn new_client(&self, rng: &mut Rng) -> Client {
        const MASKS: [[Mask; 8]; 2] = [
            [0b0001, 0b0010, 0b0011, 0b0100, 0b1100, 0b0101, 0b1111, 0b1111],
            [0b0100, 0b1000, 0b1100, 0b1100, 0b1100, 0b0100, 0b1000, 0b1100],
        ];
        let node = rng.pick(&[ROOT, ROOT, CHILD]);
        let mask = rng.pick(&MASKS[node]);
        let lists = &self.history.lists;
        let past = (!lists.is_empty() && rng.chance(30)).then(|| &lists[rng.below(lists.len())]);
        let (node, mask, stage, base) = match past {
            Some(list) => (list.node, list.mask, Stage::Cut, list.at),
            None => (node, mask, Stage::Fresh, 0),
        };
        Client { node, mask, stage, base, told: base, events: Vec::new() }
    }

    fn step_list(&mut self, node: usize, rng: &mut Rng) -> Result<(), String> {
        match self.nodes[node].lists.len() {
            0 => Ok(()),
            count => self.advance_list(node, rng.below(count)),
        }
    }

    fn step_pump(&mut self, node: usize, rng: &mut Rng) -> Result<(), String> {
        let count = self.nodes[node].watchers.len();
        if count == 0 {
            return Ok(());
        }
        let events_max = if rng.chance(20) { rng.below(3) } else { usize::MAX };
        self.pump(node, rng.below(count), Delivery { events_max, progress: rng.chance(60) })
    }

    /// One message arrives; which one is anybody's guess, but those of a stream keep their order.
    fn step_network(&mut self, rng: &mut Rng) -> Result<(), String> {
        let streams = self.streams();
        match self.network.len() + streams.len() {
            0 => Ok(()),
            count => match rng.below(count).checked_sub(self.network.len()) {
                Some(stream) => self.take_tail(streams[stream]),
                None => self.receive(rng.below(self.network.len())),
            },
        }
    }

    /// The root's watchers that have something to take from the child.
    fn streams(&self) -> Vec<usize> {
        let watchers = self.nodes[ROOT].watchers.iter().enumerate();
        let has_more = watchers.filter(|(_, watcher)| {
            let mut streams = watcher.feeds.iter().filter_map(|feed| feed.stream.as_ref());
            streams.any(|stream| !stream.is_empty())
        });
        has_more.map(|(index, _)| index).collect()
    }

    fn step_trouble(&mut self, node: usize, rng: &mut Rng) {
        let (store, luck) = (2 * node + 1, rng.chance(50));
        let source = if node == ROOT { rng.pick(&[1, 2]) } else { 1 };
        match rng.below(20) {
            0..=1 if self.config.crashes => self.crash(node, luck),
            2..=4 => self.restart(node),
            5 => self.partition(true),
            6..=7 => self.partition(false),
            8..=9 => self.lose_store(store),
            10..=11 => self.find_store(store, luck),
            12..=15 if !self.reachable(node, source) => self.detach(node, source),
            16..=18 => self.attach(node, source),
            19 if self.connected() => {
                let rpc = self.new_id();
                self.call(rpc, Call::Sync);
            }
            _ => {}
        }
    }

    /// The trouble stops: everything drains, and what every client saw is checked.
    fn settle(&mut self) -> Result<(), String> {
        self.note(|| "the trouble stops".into());
        for store in [1, 3] {
            self.find_store(store, true);
        }
        self.partition(false);
        self.restart(CHILD);
        self.restart(ROOT);
        for store in [0, 2] as [StoreId; 2] {
            self.write(store / 2, store, 0);
        }
        for _ in 0..ROUNDS_MAX {
            if self.round()? {
                return self.check();
            }
        }
        Err(format!("it never comes to rest: {:?}", self.clients))
    }

    /// Everything that can happen happens once. Whether all has come to rest.
    fn round(&mut self) -> Result<bool, String> {
        for store in 0..STORES {
            self.commit(store, true);
        }
        for (node, source) in [(ROOT, 1), (ROOT, 2), (CHILD, 1)] {
            self.attach(node, source);
        }
        let rpc = self.new_id();
        self.call(rpc, Call::Sync);
        while !self.network.is_empty() {
            self.receive(0)?;
        }
        for node in [CHILD, ROOT] {
            while !self.nodes[node].unanswered.is_empty() {
                self.answer(node, 0)?;
            }
            for list in (0..self.nodes[node].lists.len()).rev() {
                self.advance_list(node, list)?;
            }
            for watcher in (0..self.nodes[node].watchers.len()).rev() {
                self.pump(node, watcher, Delivery::ALL)?;
            }
        }
        while let Some(stream) = self.streams().last() {
            self.take_tail(*stream)?;
        }
        (0..self.clients.len()).try_for_each(|client| self.advance_client(client))?;
        Ok(self.rests())
    }

    fn rests(&self) -> bool {
        let is_sync = |message: &Message| matches!(message, Message::Call { call: Call::Sync, .. });
        self.network.iter().all(is_sync)
            && self.streams().is_empty()
            && self.nodes.iter().all(|node| node.unanswered.is_empty())
            && self.stores.iter().all(|store| store.in_flight.is_empty())
            && self.clients.iter().all(|client| {
                let shown = self.nodes[client.node].clock.shown();
                let stores = self.stores.iter().enumerate();
                let mut touched = stores.filter(|(id, _)| client.mask & (1 << id) != 0);
                client.stage == Stage::Watching
                    && client.told == shown
                    && touched.all(|(_, store)| store.greatest() <= client.told)
            })
    }

    fn check(&self) -> Result<(), String> {
        self.history.check(&self.stores)?;
        self.clients.iter().try_for_each(|client| client.check(&self.stores))
    }
}

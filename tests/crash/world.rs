//! A node with its clients, and what must hold whenever it is back.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{self as pb, kv_client::KvClient};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::{
    support::{
        changes::{Event, Row},
        databases::{DatabaseServer, Kind},
        etcd::Etcd,
        node::Node,
        process::eventually,
    },
    witness::Witness,
    writer::{Shared, Writer},
};

/// All keys of the writers lie from here …
pub(crate) const FIRST: &str = "/s";
/// … to before here.
pub(crate) const END: &str = "/t";
/// Below this a stranger writes.
const STRANGE: &str = "/x/";
/// Prefixes that have a store of their own, where the node has several. The fourth has none.
const ROUTED: [&str; 3] = ["/s0", "/s1", "/s2"];
const WRITERS: u64 = 16;
/// How long a store may take to come back when its server has.
const SERVES_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    One,
    Four,
    /// One, in a server that may be killed, too.
    Database(Kind),
    /// The same in a plain etcd, to which a stranger writes as well.
    Etcd,
    /// One of each kind, all but the embedded one in servers that may be killed, too.
    OfAllKinds,
}

/// The server that has the store.
#[derive(Debug)]
pub(crate) enum Behind {
    Database(DatabaseServer),
    Etcd(Etcd),
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) writers: Vec<Writer>,
    pub(crate) shared: Arc<Shared>,
    stores: Stores,
    /// Where stores are, all but embedded ones.
    pub(crate) behind: Vec<Behind>,
    pub(crate) folder: TempDir,
}

/// Writers at work. They end when the node does.
pub(crate) type Load = JoinSet<Result<Writer>>;

// === impl World ===

impl World {
    pub(crate) fn new(stores: Stores, seed: u64) -> Result<Self> {
        let folder = TempDir::with_prefix("pleach-crash-")?;
        let node = node_in(&folder, stores, &[])?;
        let shared = Arc::new(Shared::default());
        let writer = |index| {
            let prefix = format!("/s{}/w{index}/", index % 4);
            Writer::new(prefix, shared.clone(), seed ^ (index << 32))
        };
        let writers = (0..WRITERS).map(writer).collect();
        Ok(Self { node, writers, shared, stores, behind: Vec::new(), folder })
    }

    /// A node whose store is in a server of its own.
    pub(crate) async fn in_database(kind: Kind, seed: u64) -> Result<Self> {
        let mut server = DatabaseServer::new(kind)?.without_sync();
        server.start().await?;
        server.create_database("crash").await?;
        let mut world = Self::new(Stores::Database(kind), seed)?;
        let endpoint = format!("--endpoint={}", server.url("crash"));
        world.node = node_in(&world.folder, world.stores, &[&endpoint])?;
        world.behind.push(Behind::Database(server));
        Ok(world)
    }

    /// A node whose store is in an etcd of its own.
    pub(crate) async fn in_etcd(seed: u64) -> Result<Self> {
        // Killed, it has what it wrote all the same: only the machine's own end would take that.
        let mut etcd = Etcd::hasty()?;
        etcd.start().await?;
        let mut world = Self::new(Stores::Etcd, seed)?;
        let endpoint = format!("--endpoint={}", etcd.url());
        world.node = node_in(&world.folder, world.stores, &[&endpoint])?;
        world.behind.push(Behind::Etcd(etcd));
        Ok(world)
    }

    /// A node with a store of each kind.
    pub(crate) async fn of_all_kinds(seed: u64) -> Result<Self> {
        let mut world = Self::new(Stores::OfAllKinds, seed)?;
        let mut routes = Vec::new();
        for kind in [Kind::Postgres, Kind::MariaDb] {
            let mut server = DatabaseServer::new(kind)?.without_sync();
            server.start().await?;
            server.create_database("crash").await?;
            routes.push(server.url("crash"));
            world.behind.push(Behind::Database(server));
        }
        let mut etcd = Etcd::hasty()?;
        etcd.start().await?;
        routes.push(etcd.url());
        world.behind.push(Behind::Etcd(etcd));
        let routes: Vec<_> = ROUTED.into_iter().zip(routes).collect();
        let node = node_in(&world.folder, world.stores, &[])?;
        world.node = node.with_routes_to(&routes)?;
        Ok(world)
    }

    /// Writes to the etcd behind the node, as a stranger does: few keys, one of them ours, and none
    /// that a writer has. Returns what they are.
    pub(crate) async fn strange(&self, round: u64) -> Result<BTreeMap<String, String>> {
        let mut written = BTreeMap::new();
        let Some(Behind::Etcd(etcd)) = self.behind.last() else { return Ok(written) };
        let mut client = Box::pin(etcd.client()).await?;
        for at in 0..6 {
            let (key, value) = (format!("{STRANGE}{}", at % 3), format!("{round}-{at}"));
            Box::pin(client.put(key.clone(), value.clone(), None)).await?;
            written.insert(key, value);
        }
        Ok(written)
    }

    /// What the stranger wrote must be there, for the node's clients too.
    pub(crate) async fn has(
        &self,
        channel: &Channel,
        wanted: &BTreeMap<String, String>,
    ) -> Result<()> {
        eventually("what a stranger wrote is shown", SERVES_WITHIN, async || {
            let end = format!("{}0", STRANGE.trim_end_matches('/'));
            let read = pb::RangeRequest {
                key: STRANGE.into(),
                range_end: end.into(),
                ..Default::default()
            };
            let answer = KvClient::new(channel.clone()).range(read).await?.into_inner();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let found = answer.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value)));
            let found: BTreeMap<_, _> = found.collect();
            ensure!(found == *wanted, "{found:?}, not {wanted:?}");
            Ok(())
        })
        .await
    }

    /// SIGKILL for a server, which is started again. The node lives on, and serves when this
    /// returns.
    pub(crate) async fn kill_behind(&mut self, channel: &Channel, at: usize) -> Result<()> {
        self.shared.is_doomed.store(true, Ordering::SeqCst);
        match self.behind.get_mut(at).context("there is no such server")? {
            Behind::Database(server) => {
                server.kill().await?;
                server.start().await?;
            }
            Behind::Etcd(etcd) => {
                etcd.kill().await?;
                etcd.start().await?;
            }
        }
        eventually("the node serves again", SERVES_WITHIN, async || {
            everything(channel).await.map(drop)
        })
        .await
    }

    /// Watchers of each writer's keys, and one of all.
    pub(crate) fn watch(&self) -> Result<JoinSet<Result<Witness>>> {
        let mut tasks = JoinSet::new();
        for writer in &self.writers {
            let end = format!("{}0", writer.prefix.trim_end_matches('/'));
            tasks.spawn(Witness::new(&writer.prefix, &end, 1).run(self.node.channel()?));
        }
        let all = Witness::new(FIRST, END, self.writers.len());
        tasks.spawn(all.run(self.node.channel()?));
        Ok(tasks)
    }

    pub(crate) fn load(&mut self, channel: &Channel) -> Load {
        self.shared.is_doomed.store(false, Ordering::SeqCst);
        self.shared.is_graceful.store(false, Ordering::SeqCst);
        let mut load = Load::new();
        for writer in self.writers.drain(..) {
            load.spawn(writer.run(channel.clone()));
        }
        load
    }

    pub(crate) async fn end_of(&mut self, mut load: Load) -> Result<()> {
        while let Some(writer) = load.join_next().await {
            self.writers.push(writer??);
        }
        Ok(())
    }

    /// SIGKILL, under load or not.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.shared.is_doomed.store(true, Ordering::SeqCst);
        self.node.kill()
    }

    /// Starts the node, and finds every acknowledged write there and nothing else.
    pub(crate) async fn start(&mut self) -> Result<Channel> {
        let channel = self.node.start().await?;
        self.settle(&channel).await?;
        Ok(channel)
    }

    /// Balances all books with what the node at the other end of `channel` has.
    pub(crate) async fn settle(&mut self, channel: &Channel) -> Result<()> {
        let (revision, mut found) = everything(channel).await?;
        let floor = self.shared.floor.fetch_max(revision, Ordering::SeqCst);
        ensure!(revision >= floor, "the revision went back from {floor} to {revision}");
        for writer in &mut self.writers {
            let events = writer.ledger.events.len();
            let (own, rest) =
                found.into_iter().partition(|(key, _)| key.starts_with(&writer.prefix));
            found = rest;
            writer.ledger.settle(&own, writer.unknown_floor)?;
            if let Some(first) = writer.ledger.events.get(events) {
                self.shared.claim(first.revision, &first.key)?;
            }
        }
        ensure!(found.is_empty(), "nobody wrote {found:?}");
        Ok(())
    }

    /// Ends the story: the last writes, and every witness has seen the whole of it, and so does one
    /// that comes late.
    pub(crate) async fn finish(
        &mut self,
        channel: &Channel,
        mut witnesses: JoinSet<Result<Witness>>,
    ) -> Result<()> {
        for writer in &mut self.writers {
            writer.finish(channel.clone()).await?;
        }
        let late = Witness::new(FIRST, END, self.writers.len());
        witnesses.spawn(late.run(channel.clone()));
        let mut seen = 0;
        while let Some(witness) = witnesses.join_next().await {
            self.compare(&witness??.events)?;
            seen += 1;
        }
        ensure!(seen == self.writers.len() + 2, "only {seen} watchers came to the end");
        Ok(())
    }

    fn compare(&self, seen: &[Event]) -> Result<()> {
        let first = seen.first().context("a watcher saw nothing")?;
        let last = seen.last().context("a watcher saw nothing")?;
        let is_of_one = |writer: &&Writer| {
            first.key.starts_with(&writer.prefix) && last.key.starts_with(&writer.prefix)
        };
        let is_all = seen.iter().filter(|event| event.key.ends_with("/last")).count() > 1;
        let one = self.writers.iter().find(is_of_one).filter(|_| !is_all);
        let writers: Vec<_> = one.map_or_else(|| self.writers.iter().collect(), |one| vec![one]);
        let mut expected: Vec<_> =
            writers.iter().flat_map(|writer| &writer.ledger.events).collect();
        expected.sort_by_key(|event| event.revision);
        for (index, wanted) in expected.iter().enumerate() {
            let got = seen.get(index);
            ensure!(got == Some(wanted), "event {index}: a watcher saw {got:?}, not {wanted:?}");
        }
        ensure!(seen.len() == expected.len(), "{:?} never happened", seen.get(expected.len()));
        Ok(())
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.writers.iter().map(|writer| writer.ledger.acknowledged).sum()
    }

    /// A node of the same form over a copy of the data, for which `copy` is an empty folder.
    pub(crate) fn node_over(&self, copy: &TempDir) -> Result<Node> {
        node_in(copy, self.stores, &[])
    }
}

fn node_in(folder: &TempDir, stores: Stores, more: &[&str]) -> Result<Node> {
    let node = Node::new(folder.path(), &[&["--log-level=warn"], more].concat())?;
    if stores == Stores::Four { node.with_routes(&ROUTED) } else { Ok(node) }
}

async fn everything(channel: &Channel) -> Result<(i64, BTreeMap<String, Row>)> {
    let read = pb::RangeRequest { key: FIRST.into(), range_end: END.into(), ..Default::default() };
    let mut client = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let answer = client.range(read).await?.into_inner();
    let rows = answer.kvs.iter().map(|kv| {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        (key, Row::from(kv))
    });
    Ok((answer.header.context("a read without a header")?.revision, rows.collect()))
}

//! Creates, guarded updates, gets, and the filling of a store before it is read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::kv_client::KvClient;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Status, transport::Channel};

use crate::{
    client::{Connections, Trouble, revision},
    keys::{Key, Set, prefix_end, scatter},
    load::{PAUSE_AFTER_REFUSAL, Refusals, Tally, Work},
    shapes,
};

/// Keys that updates and gets share, enough for the largest number of clients to have four each.
const UPDATED_KEYS: usize = 1024;

/// Clients that fill a store. Few: among many, kine's SQLite starves some beyond its busy timeout.
const FILLERS: usize = 8;

const FILL_RETRIES_MAX: usize = 20;

const FILL_TIME_MAX: Duration = Duration::from_secs(1200);

/// A key that one client owns, and the revision that its next write must name.
#[derive(Debug)]
struct Guarded {
    key: Key,
    revision: i64,
    /// After a refused write it is unknown whether the write took place.
    unsure: bool,
    /// A refused write may even take place after the read that looked for it.
    doubtful: bool,
}

pub(crate) struct Creates {
    kv: KvClient<Channel>,
    next: u64,
    created: Arc<Created>,
}

/// What all clients of a create row have created.
pub(crate) struct Created {
    set: Set,
    acknowledged: AtomicU64,
}

pub(crate) struct Updates {
    kv: KvClient<Channel>,
    owned: Vec<Guarded>,
    next: usize,
}

pub(crate) struct Gets {
    kv: KvClient<Channel>,
    next: u64,
}

/// One client per element, each with numbers of its own from `first` on, and what they will have created of a set.
pub(crate) fn creates(
    connections: &Connections,
    clients: usize,
    set: Set,
    first: u64,
) -> (Vec<Creates>, Arc<Created>) {
    let created = Arc::new(Created { set, acknowledged: AtomicU64::new(0) });
    let client = |index| Creates {
        kv: connections.kv(index),
        next: first + ((index as u64) << 32),
        created: Arc::clone(&created),
    };
    ((0..clients).map(client).collect(), created)
}

pub(crate) async fn updates(connections: &Connections, clients: usize) -> Result<Vec<Updates>> {
    let mut all = Vec::new();
    for index in 0..clients {
        let owned = (index..UPDATED_KEYS)
            .step_by(clients)
            // What earlier rows have done to the key is found out by the first read.
            .map(|number| Guarded {
                key: Set::Updated.key(number as u64),
                revision: 0,
                unsure: true,
                doubtful: false,
            })
            .collect();
        all.push(Updates { kv: connections.kv(index), owned, next: 0 });
    }
    for client in &mut all {
        for guarded in &mut client.owned {
            guarded.learn(&mut client.kv).await.map_err(Trouble::into_error)?;
        }
    }
    Ok(all)
}

pub(crate) fn gets(connections: &Connections, clients: usize) -> Vec<Gets> {
    let client = |index| Gets { kv: connections.kv(index), next: (index as u64) << 32 };
    (0..clients).map(client).collect()
}

/// The keys that updates and gets work on.
pub(crate) async fn prepare(port: u16) -> Result<Refusals> {
    fill(port, Set::Updated, UPDATED_KEYS, 1).await
}

/// Writes every key of a set `revisions` times, in whole passes, so that a key's versions lie apart
/// as they do in a cluster. Returns what was refused on the way.
pub(crate) async fn fill(port: u16, set: Set, keys: usize, revisions: usize) -> Result<Refusals> {
    let connections = Connections::open(port, FILLERS).await?;
    let mut tasks: JoinSet<Result<Tally>> = JoinSet::new();
    for filler in 0..FILLERS {
        let mut kv = connections.kv(filler);
        let numbers = (filler..keys).step_by(FILLERS);
        let mut owned: Vec<_> = numbers.map(|n| Guarded::new(set.key(n as u64))).collect();
        tasks.spawn(async move {
            let mut tally = Tally::default();
            for _ in 0..revisions {
                for guarded in &mut owned {
                    guarded.write_at_last(&mut kv, &mut tally).await?;
                }
            }
            Ok(tally)
        });
    }
    let all = async {
        let mut tally = Tally::default();
        while let Some(ended) = tasks.join_next().await {
            tally.absorb(ended??);
        }
        anyhow::Ok(tally.refusals)
    };
    timeout(FILL_TIME_MAX, all).await.context("filling the store took too long")?
}

/// How many of the acknowledged creates cannot be found.
pub(crate) async fn lost(connections: &Connections, creates: &Created) -> Result<u64> {
    let prefix = creates.set.prefix();
    let request = shapes::count(prefix.clone().into(), prefix_end(&prefix));
    let found = connections.kv(0).range(request).await?.into_inner().count;
    let acknowledged = creates.acknowledged.load(Ordering::Relaxed);
    Ok(acknowledged.saturating_sub(u64::try_from(found)?))
}

// === impl Guarded ===

impl Guarded {
    fn new(key: Key) -> Self {
        Guarded { key, revision: 0, unsure: false, doubtful: false }
    }

    async fn write(&mut self, kv: &mut KvClient<Channel>) -> Result<(), Trouble> {
        if self.unsure {
            self.learn(kv).await?;
        }
        self.unsure = true;
        let doubtful = std::mem::replace(&mut self.doubtful, true);
        let answer = kv.txn(shapes::write(&self.key, self.revision)).await?.into_inner();
        if doubtful && !answer.succeeded {
            return Err(Status::aborted("a refused write took place later").into());
        }
        (self.unsure, self.doubtful) = (false, false);
        let written = accepted(&self.key, &answer)?;
        let before = self.revision;
        let grows = written > before;
        if !grows {
            let name = &self.key.name;
            return Err(anyhow::anyhow!("{name:?} went from {before} to {written}").into());
        }
        self.revision = written;
        Ok(())
    }

    /// A write that is tried again when it is refused or turned down, since a store must be filled
    /// whole. Each such answer is counted and shown.
    async fn write_at_last(&mut self, kv: &mut KvClient<Channel>, tally: &mut Tally) -> Result<()> {
        for _ in 0..FILL_RETRIES_MAX {
            let status = match self.write(kv).await {
                Ok(()) => return Ok(()),
                Err(Trouble::Refused(status)) => status,
                Err(Trouble::Wrong(error)) => Status::aborted(format!("{error:#}")),
            };
            tally.refuse(&status);
            self.unsure = true;
            sleep(PAUSE_AFTER_REFUSAL).await;
        }
        self.write(kv).await.map_err(Trouble::into_error)
    }

    /// Reads the revision that the next write must name.
    async fn learn(&mut self, kv: &mut KvClient<Channel>) -> Result<(), Trouble> {
        let answer = kv.range(shapes::get(&self.key)).await?.into_inner();
        self.revision = answer.kvs.first().map_or(0, |kv| kv.mod_revision);
        self.unsure = false;
        Ok(())
    }
}

/// The revision of a write whose guard held.
pub(crate) fn accepted(
    key: &Key,
    answer: &pleach::proto::etcdserverpb::TxnResponse,
) -> Result<i64> {
    ensure!(answer.succeeded, "the guarded write of {:?} was turned down", key.name);
    ensure!(answer.responses.len() == 1, "a write with {} answers", answer.responses.len());
    revision(answer.header.as_ref())
}

// === impl Work ===

impl Work for Creates {
    async fn turn(&mut self) -> Result<(), Trouble> {
        let key = self.created.set.key(self.next);
        // A refused create may have taken place: its key is not used again.
        self.next += 1;
        let answer = self.kv.txn(shapes::write(&key, 0)).await?.into_inner();
        accepted(&key, &answer)?;
        self.created.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Work for Updates {
    async fn turn(&mut self) -> Result<(), Trouble> {
        let next = self.next % self.owned.len();
        self.next += 1;
        self.owned[next].write(&mut self.kv).await
    }
}

impl Work for Gets {
    async fn turn(&mut self) -> Result<(), Trouble> {
        let key = Set::Updated.key(scatter(self.next) % UPDATED_KEYS as u64);
        self.next += 1;
        let answer = self.kv.range(shapes::get(&key)).await?.into_inner();
        checked(&key, &answer)?;
        Ok(())
    }
}

fn checked(key: &Key, answer: &pleach::proto::etcdserverpb::RangeResponse) -> Result<()> {
    let [kv] = answer.kvs.as_slice() else {
        anyhow::bail!("a get of {:?} found {} keys", key.name, answer.kvs.len());
    };
    ensure!(kv.key == key.name && key.owns(&kv.value), "a get of {:?} found another", key.name);
    ensure!(answer.count == 1, "a get counted {}", answer.count);
    revision(answer.header.as_ref())?;
    Ok(())
}

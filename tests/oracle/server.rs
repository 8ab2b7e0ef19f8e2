//! Servers of the test's own: a real etcd, or the node under test.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use pleach::proto::etcdserverpb as pb;
use tempfile::TempDir;

use crate::{
    nested::NestedNode,
    request::{Answer, Client, Request},
    support::{
        databases::{self, DatabaseServer},
        etcd::Etcd,
        peers::{free_port, peer},
    },
};

/// A single etcd elects itself after a second; the rest is for a busy machine.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
const START_POLL_PAUSE: Duration = Duration::from_millis(20);

/// Which program answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Etcd,
    /// Differs from other etcds in one known way, to prove what the oracle does with a difference.
    EtcdWithSmallTxns,
    Node,
    /// A node whose routes send four prefixes to stores of their own.
    NodeOfFiveStores,
    /// The same, with three of the five in PostgreSQL, MariaDB and a plain etcd.
    NodeOfMixedStores,
    /// A node whose one store is in a database.
    NodeInDatabase(databases::Kind),
    /// A node whose one store is in a plain etcd.
    NodeInEtcd,
    /// The same five stores behind routers whose stores are routers.
    NodeOfNestedRouters,
}

/// A running server with fresh data. It ends when this value goes.
#[derive(Debug)]
pub struct Server {
    host: Host,
    log: PathBuf,
    url: String,
    /// The etcd that has the keys of a store; it outlives the node.
    _behind: Option<Etcd>,
    _data: TempDir,
}

/// Where a server runs.
#[derive(Debug)]
enum Host {
    /// In a process of its own. It is killed, by its process id, when this value goes.
    Process(Child),
    /// In this one.
    Here { _node: NestedNode },
}

// === impl Kind ===

impl Kind {
    /// `kind`, unless the environment asks to prove the oracle itself with etcd on both sides.
    pub fn or_as_asked(self) -> Self {
        match env::var("PLEACH_TEST_SERVER").as_deref() {
            Ok("etcd") => Self::Etcd,
            _ => self,
        }
    }

    /// Whether some of it lies in an etcd.
    fn has_etcd(self) -> bool {
        matches!(self, Self::NodeInEtcd | Self::NodeOfMixedStores)
    }

    /// Whether it knows selectors.
    pub fn selects(self) -> bool {
        !matches!(self, Self::Etcd | Self::EtcdWithSmallTxns)
    }

    /// Whether its store has indexes of keys of Kubernetes.
    pub fn has_indexes(self) -> bool {
        matches!(self, Self::Node | Self::NodeInDatabase(_))
    }

    /// Whether mutations over two stores are refused.
    pub fn is_routed(self) -> bool {
        matches!(self, Self::NodeOfFiveStores | Self::NodeOfMixedStores | Self::NodeOfNestedRouters)
    }
}

// === impl Server ===

impl Server {
    /// Starts a server and waits until it answers.
    pub async fn start(kind: Kind) -> Result<(Self, Client)> {
        let data = TempDir::new()?;
        let log = data.path().join("log");
        let address = format!("127.0.0.1:{}", free_port()?);
        let url = format!("http://{address}");
        let behind = if kind.has_etcd() { Some(etcd_behind().await?) } else { None };
        let host = match kind {
            Kind::Etcd => Host::spawn(etcd(data.path(), &url)?, &log)?,
            Kind::EtcdWithSmallTxns => {
                let mut command = etcd(data.path(), &url)?;
                command.args(["--max-txn-ops", "3"]);
                Host::spawn(command, &log)?
            }
            Kind::Node => {
                let mut command = node(data.path(), &url);
                command.arg("--topology").arg(write_indexes(data.path())?);
                Host::spawn(command, &log)?
            }
            Kind::NodeOfFiveStores => {
                let topology = write_topology(data.path(), &BTreeMap::new())?;
                let mut command = node(data.path(), &url);
                command.arg("--topology").arg(topology);
                Host::spawn(command, &log)?
            }
            Kind::NodeOfMixedStores => {
                let mut elsewhere = BTreeMap::new();
                elsewhere.insert("b", database(databases::Kind::Postgres).await?);
                elsewhere.insert("d", database(databases::Kind::MariaDb).await?);
                elsewhere.extend(behind.iter().map(|etcd| ("c", etcd.url())));
                let mut command = node(data.path(), &url);
                command.arg("--topology").arg(write_topology(data.path(), &elsewhere)?);
                Host::spawn(command, &log)?
            }
            Kind::NodeInDatabase(kind) => {
                let mut command = node(data.path(), &url);
                command.arg("--endpoint").arg(database(kind).await?);
                command.arg("--topology").arg(write_indexes(data.path())?);
                Host::spawn(command, &log)?
            }
            Kind::NodeInEtcd => {
                let mut command = node(data.path(), &url);
                command.args(behind.iter().flat_map(|etcd| ["--endpoint".to_owned(), etcd.url()]));
                Host::spawn(command, &log)?
            }
            Kind::NodeOfNestedRouters => {
                Host::Here { _node: NestedNode::start(data.path(), &address, &url).await? }
            }
        };
        let mut server = Self { host, log, url, _behind: behind, _data: data };
        let client = server.ready().await?;
        Ok((server, client))
    }

    async fn ready(&mut self) -> Result<Client> {
        let deadline = Instant::now() + START_WAIT_MAX;
        let probe = Request::Range(pb::RangeRequest { key: "ready".into(), ..Default::default() });
        loop {
            if let Host::Process(process) = &mut self.host
                && let Some(status) = process.try_wait()?
            {
                bail!("the server ended with {status} at its start:\n{}", self.last_words());
            }
            if let Ok(mut client) = Client::connect(&self.url).await
                && matches!(client.ask(&probe).await, Answer::Range(_))
            {
                return Ok(client);
            }
            if Instant::now() > deadline {
                bail!("no answer from the server at {}:\n{}", self.url, self.last_words());
            }
            tokio::time::sleep(START_POLL_PAUSE).await;
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The end of what the process wrote, for the report of a failure. What runs here writes
    /// nothing.
    pub fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(3000)..];
        String::from_utf8_lossy(tail).into_owned()
    }
}

// === impl Host ===

impl Host {
    fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self::Process(process))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Self::Process(process) = self {
            // Both fail only when the process has ended already, which is what is wanted.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn etcd(data: &Path, url: &str) -> Result<Command> {
    let peer_url = format!("http://127.0.0.1:{}", free_port()?);
    let mut command = Command::new(peer("etcd")?);
    command.args(["--name", "oracle", "--log-level", "error", "--unsafe-no-fsync"]);
    command.arg("--data-dir").arg(data.join("etcd"));
    command.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("oracle={peer_url}")]);
    Ok(command)
}

fn node(data: &Path, url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.args(["serve", "--listen-client-urls", url, "--advertise-client-urls", url]);
    command.arg("--data-dir").arg(data.join("node"));
    command
}

/// The routes of a routed node: names, and the prefixes below which they take all keys. What is
/// left goes to the default store, which is called `main`. The prefixes lie so that routers can
/// stand behind one another.
pub const ROUTES: [(&str, &str); 4] =
    [("a", "/a"), ("b", "/n/b"), ("c", "/n/m/c"), ("d", "/n/m/d")];

/// The endpoint of a new database. Made on a thread of its own, since the compiler can't see that the
/// future is `Send`, as whoever starts servers ahead needs it.
async fn database(kind: databases::Kind) -> Result<String> {
    let runtime = tokio::runtime::Handle::current();
    let make = move || {
        runtime.block_on(async {
            let server = Box::pin(DatabaseServer::shared(kind)).await?;
            Ok(server.url(&Box::pin(server.new_database()).await?))
        })
    };
    tokio::task::spawn_blocking(make).await?
}

/// A fresh etcd that elects itself at once. Started on a thread of its own, for the same reason.
async fn etcd_behind() -> Result<Etcd> {
    let runtime = tokio::runtime::Handle::current();
    let start = move || {
        runtime.block_on(async {
            let mut etcd = Etcd::hasty()?;
            etcd.start().await?;
            Ok(etcd)
        })
    };
    tokio::task::spawn_blocking(start).await?
}

/// A topology without routes, whose default store finds keys of Kubernetes by labels.
fn write_indexes(data: &Path) -> Result<PathBuf> {
    let path = data.join("indexes.yaml");
    let text = "indexes:\n- {prefix: /registry/pods/, labels: [app, tier]}\n- {prefix: /registry/leases/, labels: [app]}\n";
    fs::write(&path, text)?;
    Ok(path)
}

/// `elsewhere` has the endpoints of the routes that lie in no file.
fn write_topology(data: &Path, elsewhere: &BTreeMap<&str, String>) -> Result<PathBuf> {
    let mut text = String::from("backends:\n");
    for (name, prefix) in ROUTES {
        let file = || format!("sqlite://{}", data.join(name).with_extension("db").display());
        let endpoint = elsewhere.get(name).cloned().unwrap_or_else(file);
        text +=
            &format!("- name: {name}\n  endpoint: {endpoint}\n  prefix:\n    prefix: {prefix}\n");
    }
    let path = data.join("topology.yaml");
    fs::write(&path, text)?;
    Ok(path)
}

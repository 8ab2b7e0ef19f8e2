//! What the suite can open: leaves, and routers over them.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pleach::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    model::KeyRange,
    net::connect::Address,
    route::{Route, Router, rule::Rule},
    store::{
        RecordStore, Store, etcd,
        memory::Memory,
        sql::{mysql::Mysql, postgres::Postgres, remote, sqlite},
    },
    topology::Endpoint,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{
    children::{Counting, membership, open_child, settle},
    follow::soon,
    support::{
        databases::{DatabaseServer, Kind as Server},
        etcd::Etcd,
    },
};

/// What stores are told that ask who has theirs.
const OWNER: &str = "the conformance suite";
/// The database of the suite in each server.
pub(crate) const DATABASE: &str = "conformance";

/// A store, or stores and how routers hold them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Composition {
    Memory,
    Sqlite,
    Postgres,
    MariaDb,
    Etcd,
    MemoryRouter,
    SqliteRouter,
    /// A router over two routers and a leaf; their leaves are files and memory.
    RouterOfRouters,
    /// A router over one leaf of each kind.
    MixedRouter,
    /// A router over leaves, a child, and a child that has a child. All count by one.
    Tree,
    /// The same, each node in its own lane.
    LaneTree,
}

/// What a leaf is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    File,
    Database(Server),
    Etcd,
    /// A node with so many nodes in a row, which keep all in memory.
    Child(usize),
}

/// Where a durable leaf keeps its rows.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    File(PathBuf),
    /// The tables of this prefix in the server's database for the suite.
    Tables(Server, String),
    /// An etcd of its own.
    Etcd(Arc<Etcd>),
}

/// An open composition, with its leaves at hand.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    /// The default leaf, which keeps records.
    pub(crate) records: Arc<dyn RecordStore>,
    is_wrapped: bool,
    pub(crate) clock: SharedClock,
    pub(crate) composition: Composition,
    /// The routers, the outermost first.
    pub(crate) routers: Vec<Arc<Router>>,
    pub(crate) leaves: Vec<Leaf>,
    folder: TempDir,
}

/// A store that holds keys itself.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) store: Arc<dyn Store>,
    /// There where it can be a default store.
    pub(crate) records: Option<Arc<dyn RecordStore>>,
    /// There where it is durable.
    pub(crate) place: Option<Place>,
}

/// A clock as a lone node has it.
pub(crate) fn fresh_clock() -> SharedClock {
    SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL))
}

// === impl Composition ===

impl Composition {
    /// The names and kinds of the leaves.
    fn plan(self) -> &'static [(&'static str, Kind)] {
        use Kind::{Child, Database, Etcd, File, Memory};
        match self {
            Self::Memory => &[("memory", Memory)],
            Self::Sqlite => &[("sqlite", File)],
            Self::Postgres => &[("postgres", Database(Server::Postgres))],
            Self::MariaDb => &[("mariadb", Database(Server::MariaDb))],
            Self::Etcd => &[("etcd", Etcd)],
            Self::MemoryRouter => {
                &[("main", Memory), ("pods", Memory), ("shirts", Memory), ("blue", Memory)]
            }
            Self::SqliteRouter => {
                &[("main", File), ("pods", File), ("shirts", File), ("blue", File)]
            }
            Self::RouterOfRouters => &[
                ("main", File),
                ("pods", Memory),
                ("pods-blue", File),
                ("shirts", Memory),
                ("blue", Memory),
            ],
            Self::MixedRouter => &[
                ("main", File),
                ("pods", Database(Server::Postgres)),
                ("shirts", Database(Server::MariaDb)),
                ("blue", Etcd),
            ],
            Self::Tree | Self::LaneTree => {
                &[("main", Memory), ("pods", Child(1)), ("shirts", Child(2)), ("blue", Memory)]
            }
        }
    }

    /// Which leaf each of [`crate::words::FAMILIES`] lives in.
    pub(crate) fn leaf_of(self, family: usize) -> usize {
        match self {
            Self::Memory | Self::Sqlite | Self::Postgres | Self::MariaDb | Self::Etcd => 0,
            Self::MemoryRouter
            | Self::SqliteRouter
            | Self::MixedRouter
            | Self::Tree
            | Self::LaneTree => [0, 1, 1, 2, 3][family],
            Self::RouterOfRouters => family,
        }
    }

    /// Whether all that it holds outlives the process.
    pub(crate) fn is_durable(self) -> bool {
        self.plan().iter().all(|(_, kind)| !matches!(kind, Kind::Memory | Kind::Child(_)))
    }

    /// Whether the second of [`crate::words::FAMILIES`] lies where there are indexes for selectors.
    pub(crate) fn has_indexes(self) -> bool {
        matches!(self.plan()[self.leaf_of(1)].1, Kind::File | Kind::Database(_))
    }

    /// What one of it costs, in files.
    pub(crate) fn cost(self) -> u32 {
        let costs = self.plan().iter().map(|(_, kind)| match kind {
            Kind::Memory => 0,
            Kind::File => 1,
            Kind::Database(_) => 8,
            Kind::Etcd => 16,
            Kind::Child(depth) => 2 * *depth as u32,
        });
        costs.sum()
    }

    fn compose(self, leaves: &[Leaf]) -> (Arc<dyn Store>, Vec<Arc<Router>>) {
        let leaf = |at: usize| leaves[at].store.clone();
        match self {
            Self::Memory | Self::Sqlite | Self::Postgres | Self::MariaDb | Self::Etcd => {
                (leaf(0), Vec::new())
            }
            Self::MemoryRouter
            | Self::SqliteRouter
            | Self::MixedRouter
            | Self::Tree
            | Self::LaneTree => {
                let shared = |at: usize| matches!(self.plan()[at].1, Kind::Etcd | Kind::Child(_));
                let to =
                    |rule, at| Route { has_other_writers: shared(at), ..route(rule, leaf(at)) };
                let routes = vec![to(pods(), 1), to(shirts(), 2), to(blue(), 3)];
                let router = Router::new(routes, leaf(0));
                (router.clone(), vec![router])
            }
            Self::RouterOfRouters => {
                let of_pods = Router::new(vec![route(blue(), leaf(2))], leaf(1));
                let of_rest = Router::new(vec![route(blue(), leaf(4))], leaf(0));
                let routes = vec![route(pods(), of_pods.clone()), route(shirts(), leaf(3))];
                let root = Router::new(routes, of_rest.clone());
                (root.clone(), vec![root, of_pods, of_rest])
            }
        }
    }
}

/// A route to a store that only this node writes, as far as anybody says.
pub(crate) fn route(rule: Rule, store: Arc<dyn Store>) -> Route {
    Route { rule, store, has_other_writers: false }
}

pub(crate) fn pods() -> Rule {
    Rule::prefix("pods").expect("a good rule")
}

pub(crate) fn shirts() -> Rule {
    Rule::custom_resource("stable.example.com", Some("shirts")).expect("a good rule")
}

pub(crate) fn blue() -> Rule {
    Rule::namespace("blue", &[] as &[&str]).expect("a good rule")
}

// === impl Place ===

impl Place {
    /// Whether SQL can look at its rows.
    pub(crate) fn has_tables(&self) -> bool {
        !matches!(self, Self::Etcd(_))
    }
}

// === impl Leaf ===

impl Leaf {
    /// Whether others than the node of the suite may write there.
    pub(crate) fn has_other_writers(&self) -> bool {
        self.records.is_none() || matches!(self.place, Some(Place::Etcd(_)))
    }
}

// === impl World ===

impl World {
    /// A fresh one.
    pub(crate) async fn open(composition: Composition) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let clock = fresh_clock();
        let mut leaves = Vec::new();
        let (mut parent, mut clocks) = (None, vec![clock.clone()]);
        let counting = match composition {
            Composition::LaneTree => Counting::InLanes,
            _ => Counting::ByOne,
        };
        for (name, kind) in composition.plan() {
            let place = match kind {
                Kind::Memory => None,
                Kind::Child(depth) => {
                    let parent = match &parent {
                        Some(parent) => parent,
                        None => parent.insert(membership("parent", &clock).await),
                    };
                    let store = open_child(name, parent, *depth, counting, &mut clocks).await;
                    leaves.push(Leaf { store, records: None, place: None });
                    continue;
                }
                Kind::File => Some(Place::File(folder.path().join(name))),
                Kind::Database(server) => Some(Place::Tables(*server, new_prefix())),
                Kind::Etcd => Some(Place::Etcd(Arc::new(start_etcd().await))),
            };
            leaves.push(open_leaf(name, place, &clock).await);
        }
        if parent.is_some() {
            let stores: Vec<_> = leaves.iter().map(|leaf| leaf.store.clone()).collect();
            settle(&stores, counting, &clocks).await;
        }
        Self::over(composition, leaves, clock, folder)
    }

    fn over(
        composition: Composition,
        leaves: Vec<Leaf>,
        clock: SharedClock,
        folder: TempDir,
    ) -> Self {
        let (store, routers) = composition.compose(&leaves);
        let records = leaves[0].records.clone().expect("the first leaf is the default one");
        Self { store, records, is_wrapped: false, clock, composition, routers, leaves, folder }
    }

    /// The same with something between it and the suite.
    pub(crate) fn wrapped(
        mut self,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
        records: Arc<dyn RecordStore>,
    ) -> Self {
        self.store = wrap(self.store.clone());
        (self.records, self.is_wrapped) = (records, true);
        self
    }

    /// The leaves that may hold keys of a range, as one store.
    pub(crate) fn narrow(&self, range: &KeyRange) -> Arc<dyn Store> {
        match self.routers.first().filter(|_| !self.is_wrapped) {
            Some(router) => router.narrow(range),
            None => self.store.clone(),
        }
    }

    /// Closes all durable leaves and opens them again, as the next process would: with a clock of its own.
    /// What is only in memory lives on, and so does the clock then. Whoever still holds a store
    /// would keep it locked.
    pub(crate) async fn reopened(self) -> Self {
        let Self { store, records, clock, composition, routers, leaves, folder, .. } = self;
        let clock = if composition.is_durable() { fresh_clock() } else { clock };
        let kept = leaves.into_iter().map(|leaf| match leaf.place {
            None => Ok(leaf),
            Some(place) => Err(place),
        });
        let kept: Vec<Result<Leaf, Place>> = kept.collect();
        drop((store, records, routers));
        let mut leaves = Vec::new();
        for (kept, (name, _)) in kept.into_iter().zip(composition.plan()) {
            leaves.push(match kept {
                Ok(leaf) => leaf,
                Err(place) => open_leaf(name, Some(place), &clock).await,
            });
        }
        Self::over(composition, leaves, clock, folder)
    }
}

pub(crate) async fn start_etcd() -> Etcd {
    let mut etcd = Etcd::hasty().expect("there is an etcd");
    etcd.start().await.expect("the etcd runs");
    etcd
}

/// How an etcd is reached.
pub(crate) fn address(url: String) -> Address {
    Address { urls: vec![url], ..Address::default() }
}

/// Tables that no other world of this process has.
pub(crate) fn new_prefix() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("world{}_", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The server that all worlds share, with its database for the suite.
pub(crate) async fn server(kind: Server) -> &'static DatabaseServer {
    static MADE: [OnceCell<()>; 2] = [OnceCell::const_new(), OnceCell::const_new()];
    let server = Box::pin(DatabaseServer::shared(kind)).await.expect("the server runs");
    let made = &MADE[usize::from(kind == Server::MariaDb)];
    let make = async || server.create_database(DATABASE).await.expect("a database can be made");
    made.get_or_init(make).await;
    server
}

/// Opens a leaf, once whoever has it has let it go: a writer ends behind the last that holds it.
async fn open_leaf(name: &str, place: Option<Place>, clock: &SharedClock) -> Leaf {
    let clock = clock.clone();
    let store: Arc<dyn RecordStore> = match &place {
        None => Memory::new(name, clock),
        Some(Place::File(path)) => {
            let open = async {
                loop {
                    match sqlite::open(name, path, OWNER, clock.clone()).await {
                        Err(sqlite::OpenError::InUse { .. }) => tokio::task::yield_now().await,
                        opened => return opened.expect("the file can be opened"),
                    }
                }
            };
            soon("letting a file go", open).await
        }
        Some(Place::Etcd(server)) => {
            let address = address(server.url());
            let open = async {
                loop {
                    match etcd::open(name, &server.url(), &address, OWNER, clock.clone()).await {
                        Err(etcd::OpenError::InUse { .. }) => tokio::task::yield_now().await,
                        opened => return opened.expect("the etcd can be opened"),
                    }
                }
            };
            soon("letting an etcd go", Box::pin(open)).await
        }
        Some(Place::Tables(kind, prefix)) => {
            let url = server(*kind).await.url(DATABASE);
            let join = if url.contains('?') { '&' } else { '?' };
            let endpoint = Endpoint::parse(&format!("{url}{join}table_prefix={prefix}"));
            let endpoint = endpoint.expect("a good endpoint");
            let open = async {
                loop {
                    match open_database(name, &endpoint, &clock).await {
                        Err(remote::OpenError::InUse { .. }) => tokio::task::yield_now().await,
                        opened => return opened.expect("the database can be opened"),
                    }
                }
            };
            // What drivers do when they connect is large, and belongs on the heap.
            soon("letting tables go", Box::pin(open)).await
        }
    };
    Leaf { store: store.clone(), records: Some(store), place }
}

/// Opens what is behind the endpoint of a database.
pub(crate) async fn open_database(
    name: &str,
    endpoint: &Endpoint,
    clock: &SharedClock,
) -> Result<Arc<dyn RecordStore>, remote::OpenError> {
    let readers = remote::Readers {
        open_max: 4,
        idle_max: 4,
        life_time_max: Duration::MAX,
        idle_time_max: Duration::from_secs(600),
    };
    open_pooled(name, endpoint, clock, readers).await
}

/// The same with so many connections that read.
pub(crate) async fn open_pooled(
    name: &str,
    endpoint: &Endpoint,
    clock: &SharedClock,
    readers: remote::Readers,
) -> Result<Arc<dyn RecordStore>, remote::OpenError> {
    let (place, clock) = (endpoint.to_string(), clock.clone());
    match endpoint.clone() {
        Endpoint::Postgres(database) => {
            let driver = Postgres::new(database);
            Ok(remote::open(name, &place, driver, readers, OWNER, clock).await?)
        }
        Endpoint::Mysql(database) => {
            let driver = Mysql::new(database);
            Ok(remote::open(name, &place, driver, readers, OWNER, clock).await?)
        }
        other => panic!("{other} is no database"),
    }
}

//! From a topology to stores that are open.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use futures::{
    FutureExt as _,
    future::{select_ok, try_join_all},
};
use tokio::time::timeout;

use crate::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    route::{Route, Router},
    store::{
        Store, etcd,
        late::{self, Opened, Opener, Refusal},
        membership::Membership,
        node::{self, Answerer, Connections, NodeStore, Terms},
        presence::Presence,
        sql::{
            mysql::Mysql,
            postgres::Postgres,
            remote::{self, Driver, READERS_MAX, Readers},
            sqlite,
        },
    },
    topology::{
        BackendTls, Endpoint, Pool, Topology,
        endpoint::{Database, Login, TlsMode},
    },
};

/// The name of the store that takes what no route does.
pub(super) const DEFAULT_STORE: &str = "main";

/// How long a connection that reads is used, where the topology does not say: servers behind a
/// balancer are spread anew.
const READER_LIFE_TIME_MAX: Duration = Duration::from_secs(30 * 60);

/// Reads a topology file.
pub(super) fn read_topology(path: &Path) -> anyhow::Result<Topology> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).with_context(|| format!("can't read the topology {name}"))?;
    let topology = Topology::parse(&text, &name).map_err(|mistakes| anyhow::anyhow!("{mistakes}"));
    topology.with_context(|| format!("the topology {name} can't be used"))
}

/// How long a start waits for a child to be attached.
const CHILD_WAIT_MAX: Duration = Duration::from_secs(3);

/// All that a node serves, and its place in its tree.
pub(super) struct Built {
    pub root: Arc<dyn Store>,
    /// There where the topology has routes.
    pub router: Option<Arc<Router>>,
    pub membership: Arc<Membership>,
    /// The stores that come and go by themselves.
    pub presences: Vec<(Arc<Presence>, Arc<dyn Store>)>,
    /// The stores that are not there yet.
    pub late: Vec<Arc<str>>,
}

/// Where a store is, and what its route says beside that.
struct Site<'a> {
    name: &'a str,
    endpoint: &'a Endpoint,
    tls: &'a BackendTls,
    pool: &'a Pool,
    /// There where the store may be a child.
    child: Option<Child>,
}

/// What a child needs of this node.
#[derive(Clone)]
struct Child {
    membership: Arc<Membership>,
    presence: Arc<Presence>,
    terms: Terms,
}

/// Opens the default store and one for each route of the node called `name`. `owner` is what another
/// process is told that tries to open one of them.
pub(super) async fn build(
    topology: Topology,
    endpoint: Option<Endpoint>,
    data_dir: &Path,
    name: &str,
    owner: &str,
) -> anyhow::Result<Built> {
    let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
    let default = match (endpoint, topology.default) {
        (Some(_), Some(_)) => bail!(
            "the default store is given twice, by --endpoint and by `default` in the topology; \
             leave one out"
        ),
        (endpoint, default) => endpoint.or(default),
    };
    let endpoint = &default.unwrap_or(Endpoint::Sqlite { path: None, ignored: Vec::new() });
    let (tls, pool) = (&BackendTls::default(), &Pool::default());
    let site = Site { name: DEFAULT_STORE, endpoint, tls, pool, child: None };
    let default = site.open(data_dir, owner, &clock).await?;
    let membership = Membership::recall(default.clone(), clock.clone(), name).await;
    let membership = membership.context("the default store")?;
    // At once, so that silent ones are waited for together.
    let opening = topology.backends.iter().map(|backend| {
        let (name, endpoint) = (&*backend.name, &backend.endpoint);
        let (clock, membership) = (&clock, &membership);
        async move {
            let child = match endpoint {
                Endpoint::Etcd { .. } => {
                    let memory = membership.store().clone();
                    let presence = Presence::recall(name, memory, clock.clone()).await?;
                    let membership = membership.clone();
                    let (lanes, ranges) = (backend.lanes, backend.rule.extent());
                    let terms = Terms { lanes, ranges, ..Terms::default() };
                    Some(Child { membership, presence, terms })
                }
                _ => None,
            };
            let site = Site { name, endpoint, tls: &backend.tls, pool: &backend.pool, child };
            site.open_or_wait(data_dir, owner, clock).await
        }
    });
    let opened = try_join_all(opening).await?;
    let stores = opened.iter().map(|opened| &opened.store);
    let presences = stores.filter_map(|store| Some((store.presence()?.clone(), store.clone())));
    let presences: Vec<_> = presences.collect();
    let late = opened.iter().filter(|opened| opened.is_late);
    let late = late.map(|opened| opened.store.name().clone()).collect();
    let rules = topology.backends.into_iter().map(|backend| backend.rule);
    let routes = rules.zip(opened).map(|(rule, opened)| Route { rule, store: opened.store });
    let routes: Vec<_> = routes.collect();
    if routes.is_empty() {
        return Ok(Built { root: default, router: None, membership, presences, late });
    }
    let router = Router::new(routes, default);
    Ok(Built { root: router.clone(), router: Some(router), membership, presences, late })
}

// === impl Site ===

impl Site<'_> {
    /// Opens the store.
    async fn open(
        &self,
        data_dir: &Path,
        owner: &str,
        clock: &SharedClock,
    ) -> anyhow::Result<Arc<dyn Store>> {
        let store = || format!("store `{}`", self.name);
        if let Some(mut opener) = self.opener(owner, clock) {
            let opened = opener().await;
            return opened
                .map_err(|refusal| anyhow::Error::from_boxed(refusal.reason).context(store()));
        }
        match self.endpoint {
            Endpoint::Sqlite { path, .. } => {
                let path = path.clone().unwrap_or_else(|| data_dir.join("pleach.db"));
                let opened = sqlite::open(self.name, &path, owner, clock.clone()).await;
                Ok(opened.with_context(store)?)
            }
            _ => unreachable!("what is behind a socket has an opener"),
        }
    }

    /// Opens the store; where it is behind a socket and can't be reached, later.
    async fn open_or_wait(
        &self,
        data_dir: &Path,
        owner: &str,
        clock: &SharedClock,
    ) -> anyhow::Result<Opened> {
        let Some(opener) = self.opener(owner, clock) else {
            let store = self.open(data_dir, owner, clock).await?;
            return Ok(Opened { store, is_late: false });
        };
        let presence = self.child.as_ref().map(|child| child.presence.clone());
        let opened = late::open(self.name, clock, presence, opener).await;
        opened.map_err(anyhow::Error::from_boxed).with_context(|| format!("store `{}`", self.name))
    }

    /// What opens a store behind a socket.
    fn opener(&self, owner: &str, clock: &SharedClock) -> Option<Opener> {
        match self.endpoint {
            Endpoint::Postgres(database) => {
                let database = protected(database, self.tls);
                Some(self.remote(owner, clock, move || Postgres::new(database.clone())))
            }
            Endpoint::Mysql(database) => {
                let database = protected(database, self.tls);
                Some(self.remote(owner, clock, move || Mysql::new(database.clone())))
            }
            Endpoint::Etcd { urls, login, .. } => {
                let address = etcd_address(urls, login.clone(), self.tls);
                Some(self.etcd_or_node(owner, clock, address))
            }
            Endpoint::Sqlite { .. } => None,
        }
    }

    /// What opens what speaks etcd's protocol, once it is known whether that is a node.
    fn etcd_or_node(&self, owner: &str, clock: &SharedClock, address: etcd::Address) -> Opener {
        let (name, place) = (self.name.to_owned(), self.endpoint.to_string());
        let (owner, clock, child) = (owner.to_owned(), clock.clone(), self.child.clone());
        Box::new(move || {
            let (name, place, owner) = (name.clone(), place.clone(), owner.clone());
            let (address, clock, child) = (address.clone(), clock.clone(), child.clone());
            Box::pin(async move {
                let (connections, answers) = answerer(&place, &address).await?;
                if answers == Answerer::Node {
                    let Some(Child { membership, presence, terms }) = child else {
                        return Err(refusal(&place, DEFAULT_IS_A_NODE, false));
                    };
                    if address.urls.len() > 1 {
                        return Err(refusal(&place, NODE_OF_MANY, false));
                    }
                    if address.login.is_some() {
                        return Err(refusal(&place, NODE_WITH_LOGIN, false));
                    }
                    let store =
                        NodeStore::open(&name, connections, membership, presence.clone(), terms);
                    // Where it can't be attached it is away, and says why.
                    let _ = timeout(CHILD_WAIT_MAX, presence.there()).await;
                    return Ok(store as Arc<dyn Store>);
                }
                // An etcd is not pinged as often as a node.
                drop(connections);
                match etcd::open(&name, &place, &address, &owner, clock).await {
                    Ok(store) => Ok(store as Arc<dyn Store>),
                    Err(error) => {
                        Err(Refusal { may_pass: error.may_pass(), reason: Box::new(error) })
                    }
                }
            })
        })
    }

    fn remote<D: Driver>(
        &self,
        owner: &str,
        clock: &SharedClock,
        driver: impl Fn() -> D + Send + 'static,
    ) -> Opener {
        let (name, place) = (self.name.to_owned(), self.endpoint.to_string());
        let (owner, clock, readers) = (owner.to_owned(), clock.clone(), readers(self.pool));
        Box::new(move || {
            let (name, place, owner) = (name.clone(), place.clone(), owner.clone());
            let (driver, clock) = (driver(), clock.clone());
            Box::pin(async move {
                let opened = remote::open(&name, &place, driver, readers, &owner, clock).await;
                match opened {
                    Ok(store) => Ok(store as Arc<dyn Store>),
                    Err(error) => {
                        Err(Refusal { may_pass: error.may_pass(), reason: Box::new(error) })
                    }
                }
            })
        })
    }
}

const DEFAULT_IS_A_NODE: &str = "it is another node, and the default store keeps what is this node's \
     own; take a file, a database or an etcd, and send all keys to the node by a route";

const NODE_OF_MANY: &str = "it is another node, and several addresses are those of one etcd's members; \
     name one address";

const NODE_WITH_LOGIN: &str = "it is another node, which asks for no password; take `user:password@` out \
     of the endpoint";

/// What answers first at one of the addresses, and how it is reached.
async fn answerer(
    place: &str,
    address: &etcd::Address,
) -> Result<(Connections, Answerer), Refusal> {
    let asked = address.urls.iter().map(|url| {
        let connections = Connections::new(url, address);
        async move {
            let connections = connections.map_err(|reason| refusal(place, reason, false))?;
            let answers = node::probe(&connections).await;
            let answers = answers.map_err(|reason| refusal(place, reason, true))?;
            Ok((connections, answers))
        }
        .boxed()
    });
    Ok(select_ok(asked).await?.0)
}

fn refusal(place: &str, reason: impl std::fmt::Display, may_pass: bool) -> Refusal {
    Refusal { reason: format!("{place} can't be used: {reason}").into(), may_pass }
}

/// An etcd as its endpoint and its route together want it reached.
fn etcd_address(urls: &[String], login: Option<Login>, tls: &BackendTls) -> etcd::Address {
    let identity = tls.cert_file.clone().zip(tls.key_file.clone());
    etcd::Address {
        urls: urls.to_vec(),
        login,
        ca_file: tls.ca_file.clone(),
        identity,
        is_unverified: tls.skip_verify,
    }
}

/// A database as its endpoint and its route together want it reached.
fn protected(database: &Database, tls: &BackendTls) -> Database {
    let mut database = database.clone();
    let is_given = tls.ca_file.is_some() || tls.cert_file.is_some();
    if let Some(file) = &tls.ca_file {
        database.ca_file = Some(file.clone());
    }
    if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
        database.cert_file = Some(cert.clone());
        database.key_file = Some(key.clone());
    }
    let at_least = match (is_given, tls.skip_verify) {
        (_, true) => TlsMode::Require,
        (true, false) => TlsMode::VerifyFull,
        (false, false) => return database,
    };
    // What the endpoint says stands where it asks for TLS itself.
    if matches!(database.tls, TlsMode::Disable | TlsMode::Prefer) {
        database.tls = at_least;
    }
    database
}

fn readers(pool: &Pool) -> Readers {
    let open_max = pool.open_max.filter(|max| *max > 0).and_then(|max| usize::try_from(max).ok());
    // One of them writes.
    let open_max = open_max.map_or(READERS_MAX, |max| max.saturating_sub(1).max(1));
    let life_time_max = pool.life_time_max.filter(|time| !time.is_zero());
    Readers { open_max, life_time_max: life_time_max.unwrap_or(READER_LIFE_TIME_MAX) }
}

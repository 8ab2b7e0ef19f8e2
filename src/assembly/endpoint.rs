//! How the stores of a topology are opened: files, databases, etcds and nodes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt as _, future::select_ok};
use tokio::time::timeout;

use super::{Context, DEFAULT_FILE, Opens, RoutePlan, StorePlan};
use crate::{
    clock::SharedClock,
    net::{
        address::{Database, Login, TlsMode},
        connect::Address,
    },
    store::{
        Expected, RecordStore, etcd,
        slot::{Occupant, Opener, Refusal},
        sql::{
            mysql::Mysql,
            postgres::Postgres,
            remote::{self, Driver, READERS_MAX, Readers, Usage},
            sqlite,
        },
    },
    topology::{BackendTls, Endpoint, Pool},
    tree::child::{self, Answerer, Connections, NodeStore, Terms},
};

/// How long a connection that reads is used, where the topology does not say: servers behind a
/// balancer are spread anew.
const READER_LIFE_TIME_MAX: Duration = Duration::from_secs(30 * 60);

/// How long one is kept that nobody needs, likewise.
const READER_IDLE_TIME_MAX: Duration = Duration::from_secs(10 * 60);

/// How long a start waits for a child to be attached.
const CHILD_WAIT_MAX: Duration = Duration::from_secs(3);

/// The stores that endpoints name.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// What another process is told that tries to open one of them.
    pub owner: String,
    /// Whether the default store may be another than the last one.
    pub adopts_default: bool,
}

/// A store that this node owns and writes alone, once it is open.
type Led = Result<Arc<dyn RecordStore>, Refusal>;

// === impl Endpoints ===

#[async_trait]
impl Opens for Endpoints {
    async fn open_default(&self, plan: &StorePlan, clock: &SharedClock) -> Led {
        let adopts = self.adopts_default;
        let expected = Expected { incarnation: None, adopts };
        let at =
            At { plan: plan.clone(), owner: self.owner.clone(), clock: clock.clone(), expected };
        if let Endpoint::Etcd { urls, login, .. } = &plan.endpoint {
            let address = etcd_address(urls, login.clone(), &plan.tls);
            let place = plan.endpoint.to_string();
            if let (_, Answerer::Node) = answerer(&place, &address).await? {
                return Err(refusal(&place, DEFAULT_IS_A_NODE, false));
            }
        }
        at.open_led().await
    }

    fn opener(&self, route: &RoutePlan, context: Context) -> Opener {
        let (plan, owner) = (route.store.clone(), self.owner.clone());
        let ranges = route.rule.extent();
        Box::new(move |expected| {
            let clock = context.clock.clone();
            let at = At { plan: plan.clone(), owner: owner.clone(), clock, expected };
            let (context, ranges) = (context.clone(), ranges.clone());
            Box::pin(async move {
                match &at.plan.endpoint {
                    Endpoint::Etcd { urls, login, .. } => {
                        let address = etcd_address(urls, login.clone(), &at.plan.tls);
                        let lanes = at.plan.lanes;
                        let terms = Terms { lanes, ranges, ..Terms::default() };
                        at.open_etcd_or_node(&address, context, terms).await
                    }
                    _ => Ok(Occupant::owned(at.open_led().await?)),
                }
            })
        })
    }
}

/// One store, and who opens it.
struct At {
    plan: StorePlan,
    owner: String,
    clock: SharedClock,
    expected: Expected,
}

// === impl At ===

impl At {
    /// The store that it must be.
    fn incarnation(&self) -> Option<u64> {
        self.expected.incarnation.filter(|_| !self.expected.adopts)
    }

    /// A database that is known is never made: it would be another one.
    fn database(&self, database: &Database) -> Database {
        let must_exist = self.incarnation().is_some();
        Database { must_exist, ..protected(database, &self.plan.tls) }
    }

    /// Opens a store that this node writes alone.
    async fn open_led(&self) -> Led {
        match &self.plan.endpoint {
            Endpoint::Sqlite { path, .. } => {
                let path = path.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
                let opened = sqlite::open_known(
                    &self.plan.name,
                    &path,
                    &self.owner,
                    self.clock.clone(),
                    self.expected,
                    self.plan.indexing.clone(),
                );
                opened.await.map_err(|error| Refusal::of(error.may_pass(), error))
            }
            Endpoint::Postgres(database) => {
                self.open_remote(Postgres::new(self.database(database))).await
            }
            Endpoint::Mysql(database) => {
                self.open_remote(Mysql::new(self.database(database))).await
            }
            Endpoint::Etcd { urls, login, .. } => {
                self.open_etcd(&etcd_address(urls, login.clone(), &self.plan.tls)).await
            }
        }
    }

    async fn open_remote<D: Driver>(&self, driver: D) -> Led {
        let (name, place) = (&self.plan.name, self.plan.endpoint.to_string());
        let usage =
            Usage { readers: readers(&self.plan.pool), indexing: self.plan.indexing.clone() };
        let clock = self.clock.clone();
        let opened =
            remote::open_known(name, &place, driver, usage, &self.owner, clock, self.incarnation());
        Box::pin(opened).await.map_err(|error| Refusal::of(error.may_pass(), error))
    }

    async fn open_etcd(&self, address: &Address) -> Led {
        let (name, place) = (&self.plan.name, self.plan.endpoint.to_string());
        let clock = self.clock.clone();
        let opened =
            etcd::open_known(name, &place, address, &self.owner, clock, self.incarnation());
        Box::pin(opened).await.map_err(|error| Refusal::of(error.may_pass(), error))
    }

    /// What speaks etcd's protocol, once it is known whether that is a node.
    async fn open_etcd_or_node(
        &self,
        address: &Address,
        context: Context,
        terms: Terms,
    ) -> Result<Occupant, Refusal> {
        let (name, place) = (&self.plan.name, self.plan.endpoint.to_string());
        let (connections, answers) = answerer(&place, address).await?;
        let Some(attach_state) = context.attach_state.filter(|_| answers == Answerer::Node) else {
            // An etcd is not pinged as often as a node.
            drop(connections);
            return Ok(Occupant::owned(self.open_led().await?));
        };
        if address.urls.len() > 1 {
            return Err(refusal(&place, NODE_OF_MANY, false));
        }
        if address.login.is_some() {
            return Err(refusal(&place, NODE_WITH_LOGIN, false));
        }
        let membership = context.membership;
        let store = NodeStore::open(name, connections, membership, attach_state.clone(), terms);
        // Where it can't be attached it is away, and says why.
        let _ = timeout(CHILD_WAIT_MAX, attach_state.reachable()).await;
        Ok(Occupant::child(store))
    }
}

const DEFAULT_IS_A_NODE: &str = "it is another node, and the default store keeps what is this node's \
     own; take a file, a database or an etcd, and send all keys to the node by a route";

const NODE_OF_MANY: &str = "it is another node, and several addresses are those of one etcd's members; \
     name one address";

const NODE_WITH_LOGIN: &str = "it is another node, which asks for no password; take `user:password@` out \
     of the endpoint";

/// What answers first at one of the addresses, and how it is reached.
async fn answerer(place: &str, address: &Address) -> Result<(Connections, Answerer), Refusal> {
    let asked = address.urls.iter().map(|url| {
        let connections = Connections::new(url, address);
        async move {
            let connections = connections.map_err(|reason| refusal(place, reason, false))?;
            let answers = child::probe(&connections).await;
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
fn etcd_address(urls: &[String], login: Option<Login>, tls: &BackendTls) -> Address {
    let identity = tls.cert_file.clone().zip(tls.key_file.clone());
    Address {
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
    let idle_max = pool.idle_max.filter(|max| *max > 0).and_then(|max| usize::try_from(max).ok());
    let time = |time: Option<Duration>| time.filter(|time| !time.is_zero());
    Readers {
        open_max,
        idle_max: idle_max.unwrap_or(open_max),
        life_time_max: time(pool.life_time_max).unwrap_or(READER_LIFE_TIME_MAX),
        idle_time_max: time(pool.idle_time_max).unwrap_or(READER_IDLE_TIME_MAX),
    }
}

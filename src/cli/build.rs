//! From a topology to stores that are open.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use futures::future::try_join_all;

use crate::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    route::{Route, Router},
    store::{
        Store, etcd,
        late::{self, Opened, Opener, Refusal},
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

/// All that a node serves, and its clock.
pub(super) struct Built {
    pub root: Arc<dyn Store>,
    /// There where the topology has routes.
    pub router: Option<Arc<Router>>,
    pub clock: SharedClock,
    /// The stores that are not there yet.
    pub late: Vec<Arc<str>>,
}

/// Where a store is, and what its route says beside that.
struct Site<'a> {
    name: &'a str,
    endpoint: &'a Endpoint,
    tls: &'a BackendTls,
    pool: &'a Pool,
}

/// Opens the default store and one for each route. `owner` is what another process is told that
/// tries to open one of them.
pub(super) async fn build(
    topology: Topology,
    endpoint: Option<Endpoint>,
    data_dir: &Path,
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
    let site = Site { name: DEFAULT_STORE, endpoint, tls, pool };
    let default = site.open(data_dir, owner, &clock).await?;
    // At once, so that silent ones are waited for together.
    let opening = topology.backends.iter().map(|backend| {
        let (name, endpoint) = (&*backend.name, &backend.endpoint);
        let site = Site { name, endpoint, tls: &backend.tls, pool: &backend.pool };
        let clock = &clock;
        async move { site.open_or_wait(data_dir, owner, clock).await }
    });
    let opened = try_join_all(opening).await?;
    let late = opened.iter().filter(|opened| opened.is_late);
    let late = late.map(|opened| opened.store.name().clone()).collect();
    let rules = topology.backends.into_iter().map(|backend| backend.rule);
    let routes = rules.zip(opened).map(|(rule, opened)| Route { rule, store: opened.store });
    let routes: Vec<_> = routes.collect();
    if routes.is_empty() {
        return Ok(Built { root: default, router: None, clock, late });
    }
    let router = Router::new(routes, default);
    Ok(Built { root: router.clone(), router: Some(router), clock, late })
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
        if let Some(mut opener) = self.opener(owner, clock).with_context(store)? {
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
        let opener = self.opener(owner, clock);
        let Some(opener) = opener.with_context(|| format!("store `{}`", self.name))? else {
            let store = self.open(data_dir, owner, clock).await?;
            return Ok(Opened { store, is_late: false });
        };
        let opened = late::open(self.name, clock, opener).await.map_err(anyhow::Error::from_boxed);
        opened.with_context(|| format!("store `{}`", self.name))
    }

    /// What opens a store behind a socket.
    fn opener(&self, owner: &str, clock: &SharedClock) -> anyhow::Result<Option<Opener>> {
        Ok(match self.endpoint {
            Endpoint::Postgres(database) => {
                let database = protected(database, self.tls);
                Some(self.remote(owner, clock, move || Postgres::new(database.clone())))
            }
            Endpoint::Mysql(database) => {
                let database = protected(database, self.tls);
                Some(self.remote(owner, clock, move || Mysql::new(database.clone())))
            }
            Endpoint::Etcd { urls, login, .. } => {
                let address = etcd_address(urls, login.clone(), self.tls)?;
                Some(self.etcd(owner, clock, address))
            }
            Endpoint::Sqlite { .. } => None,
        })
    }

    fn etcd(&self, owner: &str, clock: &SharedClock, address: etcd::Address) -> Opener {
        let (name, place) = (self.name.to_owned(), self.endpoint.to_string());
        let (owner, clock) = (owner.to_owned(), clock.clone());
        Box::new(move || {
            let (name, place, owner) = (name.clone(), place.clone(), owner.clone());
            let (address, clock) = (address.clone(), clock.clone());
            Box::pin(async move {
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

/// An etcd as its endpoint and its route together want it reached.
fn etcd_address(
    urls: &[String],
    login: Option<Login>,
    tls: &BackendTls,
) -> anyhow::Result<etcd::Address> {
    // Without TLS there is nothing to verify.
    if tls.skip_verify && urls.iter().any(|url| url.starts_with("https:")) {
        bail!(
            "`skipVerify` is not known for an etcd; name the authority that signed its \
             certificate in `caFile`"
        );
    }
    let identity = tls.cert_file.clone().zip(tls.key_file.clone());
    Ok(etcd::Address { urls: urls.to_vec(), login, ca_file: tls.ca_file.clone(), identity })
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

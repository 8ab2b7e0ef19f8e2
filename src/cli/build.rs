//! From a topology to stores that are open.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};

use crate::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    route::{Route, Router},
    store::{
        Store,
        sql::{
            mysql::Mysql,
            postgres::Postgres,
            remote::{self, READERS_MAX, Readers},
            sqlite,
        },
    },
    topology::{
        BackendTls, Endpoint, Pool, Topology,
        endpoint::{Database, TlsMode},
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
    let default = default.unwrap_or(Endpoint::Sqlite { path: None, ignored: Vec::new() });
    let here = (data_dir, owner);
    let plain = (&BackendTls::default(), &Pool::default());
    let default = open(DEFAULT_STORE, &default, plain, here, &clock).await?;
    let mut routes = Vec::new();
    for backend in topology.backends {
        let protection = (&backend.tls, &backend.pool);
        let store = open(&backend.name, &backend.endpoint, protection, here, &clock).await?;
        routes.push(Route { rule: backend.rule, store });
    }
    if routes.is_empty() {
        return Ok(Built { root: default, router: None, clock });
    }
    let router = Router::new(routes, default);
    Ok(Built { root: router.clone(), router: Some(router), clock })
}

/// Opens one store. `tls` and `pool` are what its route says beside its endpoint.
async fn open(
    name: &str,
    endpoint: &Endpoint,
    (tls, pool): (&BackendTls, &Pool),
    (data_dir, owner): (&Path, &str),
    clock: &SharedClock,
) -> anyhow::Result<Arc<dyn Store>> {
    let store = || format!("store `{name}`");
    match endpoint {
        Endpoint::Sqlite { path, .. } => {
            let path = path.clone().unwrap_or_else(|| data_dir.join("pleach.db"));
            let opened = sqlite::open(name, &path, owner, clock.clone()).await;
            Ok(opened.with_context(store)?)
        }
        Endpoint::Postgres(database) => {
            let driver = Postgres::new(protected(database, tls));
            let place = endpoint.to_string();
            let opened =
                remote::open(name, &place, driver, readers(pool), owner, clock.clone()).await;
            Ok(opened.with_context(store)?)
        }
        Endpoint::Mysql(database) => {
            let driver = Mysql::new(protected(database, tls));
            let place = endpoint.to_string();
            let opened =
                remote::open(name, &place, driver, readers(pool), owner, clock.clone()).await;
            Ok(opened.with_context(store)?)
        }
        Endpoint::Etcd { .. } => bail!(
            "store `{name}` is at {endpoint}, but this version opens databases only; \
             give it a sqlite://, postgres:// or mysql:// endpoint"
        ),
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

//! From a topology to stores that are open.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};

use crate::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    route::{Route, Router},
    store::{Store, sql::sqlite},
    topology::{Endpoint, Topology},
};

/// The name of the store that takes what no route does.
pub(super) const DEFAULT_STORE: &str = "main";

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
    let default = open(DEFAULT_STORE, &default, data_dir, owner, &clock).await?;
    let mut routes = Vec::new();
    for backend in topology.backends {
        let store = open(&backend.name, &backend.endpoint, data_dir, owner, &clock).await?;
        routes.push(Route { rule: backend.rule, store });
    }
    if routes.is_empty() {
        return Ok(Built { root: default, router: None, clock });
    }
    let router = Router::new(routes, default);
    Ok(Built { root: router.clone(), router: Some(router), clock })
}

async fn open(
    name: &str,
    endpoint: &Endpoint,
    data_dir: &Path,
    owner: &str,
    clock: &SharedClock,
) -> anyhow::Result<Arc<dyn Store>> {
    let Endpoint::Sqlite { path, .. } = endpoint else {
        bail!(
            "store `{name}` is at {endpoint}, but this version opens SQLite only; \
             give it a sqlite:// endpoint"
        );
    };
    let path = path.clone().unwrap_or_else(|| default_path(data_dir));
    let store = sqlite::open(name, &path, owner, clock.clone()).await;
    Ok(store.with_context(|| format!("store `{name}`"))?)
}

fn default_path(data_dir: &Path) -> PathBuf {
    data_dir.join("pleach.db")
}

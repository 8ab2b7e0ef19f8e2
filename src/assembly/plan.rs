//! What a node is to be made of: data, read off a topology, that opens nothing.

use std::path::{Path, PathBuf};

use super::AutoCompaction;
use crate::{
    route::rule::Rule,
    store::sql::{Demanded, Indexing},
    topology::{
        Backend, BackendTls, DEFAULT_NAME, Endpoint, Filtering, Pool, Topology, WantedIndex,
    },
};

/// The file of the default store, where nobody names another.
pub const DEFAULT_FILE: &str = "pleach.db";

/// A store and how it is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct StorePlan {
    /// The route's name; [`DEFAULT_NAME`] for the default store.
    pub name: String,
    /// Where it is.
    pub endpoint: Endpoint,
    /// How its connections are protected, beside what the endpoint says.
    pub tls: BackendTls,
    /// How many connections it may have, and for how long.
    pub pool: Pool,
    /// How it compacts by itself; `None` where only clients have it compacted.
    pub compaction: Option<AutoCompaction>,
    /// Where it is a node: how many lanes it gets.
    pub lanes: Option<u16>,
    /// Where it is a database: which indexes it has for selectors.
    pub indexing: Indexing,
}

/// A file with certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreCertificates {
    /// What names it.
    pub setting: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it holds those whose signatures are believed, and not the node's own chain.
    pub is_authority: bool,
    /// Whether the node goes on with what was in it at the start.
    pub is_read_once: bool,
}

/// A route: which keys, and where they live.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutePlan {
    /// Which keys it takes of those that no route before it took.
    pub rule: Rule,
    /// Where they live.
    pub store: StorePlan,
}

/// A node's stores.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The store that takes what no route does, and keeps what the node must not forget.
    pub default: StorePlan,
    /// The routes, in the order in which they are tried.
    pub routes: Vec<RoutePlan>,
}

/// What can't be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The default store is named twice.
    #[error(
        "the default store is given twice, by --endpoint and by `default` in the topology; leave one out"
    )]
    TwoDefaults,
    /// A route goes where the default store is.
    #[error(
        "the route `{route}` goes to {place}, which is the default store; give it a store of its own"
    )]
    DefaultTaken {
        /// The route.
        route: String,
        /// Where both are.
        place: String,
    },
}

// === impl StorePlan ===

impl StorePlan {
    fn of(backend: Backend) -> Self {
        let Backend { name, endpoint, tls, pool, compaction, filtering, lanes, .. } = backend;
        let (compaction, indexing) = (AutoCompaction::of(&compaction), indexing(filtering));
        Self { name, endpoint, tls, pool, compaction, lanes, indexing }
    }

    /// What two that mean the same store share.
    fn place(&self) -> String {
        match &self.endpoint {
            Endpoint::Sqlite { path: Some(path), .. } => {
                // A file that is not there yet is itself.
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                path.components().collect::<std::path::PathBuf>().display().to_string()
            }
            Endpoint::Postgres(database) | Endpoint::Mysql(database) => database.identity(),
            other => other.to_string(),
        }
    }

    /// Whether the store may be a node, which has a life of its own: what speaks etcd's protocol is found
    /// out when it is reached.
    pub fn may_be_a_node(&self) -> bool {
        matches!(self.endpoint, Endpoint::Etcd { .. })
    }
}

fn indexing(filtering: Filtering) -> Indexing {
    if filtering.is_disabled {
        return Indexing::Never;
    }
    let demanded = |WantedIndex { prefix, attribute }| Demanded { prefix, attribute };
    Indexing::WhereUsed(filtering.indexes.into_iter().map(demanded).collect())
}

// === impl Plan ===

impl Plan {
    /// The same with the whole path of each file of a store: that says which file it is, wherever it is read.
    #[must_use]
    pub fn with_absolute_paths(mut self) -> Self {
        let routes = self.routes.iter_mut().map(|route| &mut route.store);
        for store in routes.chain([&mut self.default]) {
            if let Endpoint::Sqlite { path: Some(path), .. } = &mut store.endpoint
                && let Ok(absolute) = std::path::absolute(&*path)
            {
                *path = absolute;
            }
        }
        self
    }

    /// Each file with certificates that a store is reached with.
    pub fn certificate_files(&self) -> Vec<StoreCertificates> {
        let stores = self.routes.iter().map(|route| &route.store).chain([&self.default]);
        let files = stores.flat_map(|store| {
            let of_database = match &store.endpoint {
                Endpoint::Postgres(it) | Endpoint::Mysql(it) => [&it.ca_file, &it.cert_file],
                _ => [&None, &None],
            };
            let BackendTls { ca_file, cert_file, .. } = &store.tls;
            // What `backendTLS` says counts, where both say something.
            let used = [ca_file, cert_file].into_iter().zip(of_database).zip(["ca", "cert"]);
            used.filter_map(|((said, of_endpoint), kind)| {
                let (field, path) = match (said, of_endpoint) {
                    (Some(path), _) => (format!("backendTLS.{kind}File"), path),
                    (None, Some(path)) => (format!("endpoint's {kind} file"), path),
                    (None, None) => return None,
                };
                Some(StoreCertificates {
                    setting: format!("store {}: {field}", store.name),
                    path: path.clone(),
                    is_authority: kind == "ca",
                    // Drivers of databases read theirs for each connection.
                    is_read_once: store.may_be_a_node(),
                })
            })
        });
        files.collect()
    }

    /// The plan of a topology, with the default store that the command line names; where nobody does, it
    /// is a file in `data_dir`.
    ///
    /// # Errors
    /// Where the default store is named twice, or a route goes there.
    pub fn new(
        topology: Topology,
        endpoint: Option<Endpoint>,
        data_dir: &Path,
    ) -> Result<Self, PlanError> {
        let endpoint = match (endpoint, topology.default) {
            (Some(_), Some(_)) => return Err(PlanError::TwoDefaults),
            (endpoint, default) => endpoint.or(default),
        };
        let default = StorePlan {
            name: DEFAULT_NAME.to_owned(),
            endpoint: match endpoint {
                None | Some(Endpoint::Sqlite { path: None, .. }) => Endpoint::Sqlite {
                    path: Some(data_dir.join(DEFAULT_FILE)),
                    ignored: Vec::new(),
                },
                Some(endpoint) => endpoint,
            },
            tls: BackendTls::default(),
            pool: Pool::default(),
            compaction: None,
            lanes: None,
            indexing: indexing(topology.filtering),
        };
        let routes = topology
            .backends
            .into_iter()
            .map(|backend| RoutePlan { rule: backend.rule.clone(), store: StorePlan::of(backend) });
        let routes: Vec<RoutePlan> = routes.collect();
        let place = default.place();
        match routes.iter().find(|route| route.store.place() == place) {
            Some(route) => Err(PlanError::DefaultTaken { route: route.store.name.clone(), place }),
            None => Ok(Self { default, routes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_becomes_a_plan_with_one_default_store() {
        let text = "default: sqlite:///a.db\nbackends:\n- {name: pods, endpoint: \"http://h:1\", \
                    prefix: {prefix: pods}, lanes: 4}\n";
        let data = Path::new("data");
        let topology = || Topology::parse(text, "t.yaml").expect("it is a good one");
        let plan = Plan::new(topology(), None, data).expect("one default");
        assert_eq!(plan.default.name, DEFAULT_NAME);
        assert_eq!(plan.routes.len(), 1);
        assert!(plan.routes[0].store.may_be_a_node() && !plan.default.may_be_a_node());
        assert_eq!(plan.routes[0].store.lanes, Some(4));
        let endpoint = Endpoint::parse("sqlite:///b.db").expect("a good endpoint");
        let two = Plan::new(topology(), Some(endpoint), data);
        assert_eq!(two, Err(PlanError::TwoDefaults));
        let alone = Plan::new(Topology::default(), None, data).expect("one default");
        let file = Some(data.join("pleach.db"));
        assert!(matches!(alone.default.endpoint, Endpoint::Sqlite { path, .. } if path == file));
        let text = "backends:\n- {name: same, endpoint: \"sqlite://./d/../d/pleach.db\", prefix: {prefix: a}}\n";
        let same = Topology::parse(text, "t.yaml").expect("it is a good one");
        let refused = Plan::new(same, None, Path::new("./d/../d")).expect_err("it is taken");
        assert!(refused.to_string().contains("`same`"), "{refused}");
    }
}

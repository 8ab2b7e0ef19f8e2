//! The topology file: which stores a node has, and which keys go to which.
//!
//! The schema is HariKube's, and its files run as they are; `default`, `lanes`, `indexes`, and what is said of the
//! default store are our additions.
//!
//! ```yaml
//! default: sqlite://./data/main.db        # or given on the command line
//! backends:                               # from top to bottom, the first match wins
//! - name: pods
//!   endpoint: postgres://pleach@db/pods
//!   prefix:                               # or regexp, namespace, customresource
//!     prefix: pods
//! ```
//!
//! A file is read whole: a bad one gets every mistake at once, each with its place, what was
//! expected and the nearest valid name. A good one becomes types that need no further checks.
//! Nothing here opens a store or reads a file, and nothing that is printed holds a password.

use std::{path::PathBuf, time::Duration};

use crate::{model::Key, route::rule::Rule, select::Attribute};

mod duration;
pub mod endpoint;
mod message;
mod schema;
#[cfg(test)]
mod tests;
mod walk;
mod yaml;

pub use self::duration::parse as parse_duration;
pub use self::{
    endpoint::{Endpoint, EndpointError, Secret},
    message::{Mistake, Mistakes},
};

/// The name of the default store, which no backend may have.
pub const DEFAULT_NAME: &str = "main";

/// A node's default store and routes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// Where keys go that no backend takes, where the file says so.
    pub default: Option<Endpoint>,
    /// The routes, in the order in which they are tried.
    pub backends: Vec<Backend>,
    /// What the default store does about selectors.
    pub filtering: Filtering,
    /// What works, but most likely not as it was meant.
    pub warnings: Mistakes,
}

/// One route: a rule, and the store it sends its keys to.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its name in logs, metrics and errors; unique in its file.
    pub name: String,
    /// Where the store is; unique in its file.
    pub endpoint: Endpoint,
    /// Which keys it takes from those that no earlier backend took.
    pub rule: Rule,
    /// How its connections are protected; adds to what the endpoint says.
    pub tls: BackendTls,
    /// How many connections it may have, and for how long.
    pub pool: Pool,
    /// When its history is compacted.
    pub compaction: Compaction,
    /// What the store does about selectors.
    pub filtering: Filtering,
    /// Where the store is a node: how many lanes it gets, for itself and its children.
    pub lanes: Option<u16>,
}

/// `backendTLS`: the files and switches of a route's connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendTls {
    /// The authority that signed the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate; given together with its key.
    pub cert_file: Option<PathBuf>,
    /// The client certificate's key.
    pub key_file: Option<PathBuf>,
    /// Whether any certificate will do.
    pub skip_verify: bool,
}

/// What a store that is a database does about selectors: it heeds them, with or without indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filtering {
    /// `disableStorageLevelFiltering`: whether it has no indexes.
    pub is_disabled: bool,
    /// `indexes`: those that it has from its start on, used or not.
    pub indexes: Vec<WantedIndex>,
}

/// An index of one label or field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedIndex {
    /// The prefix of the keys of one kind.
    pub prefix: Key,
    /// The label or field.
    pub attribute: Attribute,
}

/// `connectionPool`: `None` and zero leave the decision to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// How many idle connections are kept.
    pub idle_max: Option<u32>,
    /// How many connections are open at once.
    pub open_max: Option<u32>,
    /// How long a connection is used.
    pub life_time_max: Option<Duration>,
    /// How long an idle connection is kept.
    pub idle_time_max: Option<Duration>,
}

/// `compact…`: `None` leaves the decision to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// How often the store compacts; zero for never by itself.
    pub interval: Option<Duration>,
    /// How far the interval varies, in thousandths (0 to 1000).
    pub interval_jitter: Option<u32>,
    /// How long one compaction may take.
    pub timeout: Option<Duration>,
    /// How many revisions are kept at least (10 to 10,000).
    pub retain_min: Option<u32>,
    /// How many rows are deleted in one transaction (10 to 10,000).
    pub batch_size: Option<u32>,
}

// === impl Topology ===

impl Topology {
    /// Reads a file's `text`. `file_name` is what messages call the file.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, Mistakes> {
        schema::parse(text, file_name)
    }
}

//! Settings of the default store: kine's flags for its datastore, which do here what they do there.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    assembly::{AutoCompaction, Plan},
    topology::{BackendTls, Compaction, Endpoint, Pool, parse_duration},
};

/// How the default store is connected to, and when it compacts by itself. A route says it in the topology.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The default store")]
pub(super) struct Datastore {
    /// The authority that signed the certificate of the default store's server (PEM).
    #[arg(long, env = "PLEACH_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// The certificate to show the default store's server (PEM). kine calls it --cert-file, which is the node's
    /// own here, as in etcd.
    #[arg(long, env = "PLEACH_DATASTORE_CERT_FILE", requires = "datastore_key_file")]
    datastore_cert_file: Option<PathBuf>,
    /// That certificate's key (PEM).
    #[arg(long, env = "PLEACH_DATASTORE_KEY_FILE", requires = "datastore_cert_file")]
    datastore_key_file: Option<PathBuf>,
    /// Take any certificate of the default store's server.
    #[arg(long, env = "PLEACH_SKIP_VERIFY")]
    skip_verify: bool,
    /// How many idle connections to the default store's database are kept.
    #[arg(long, env = "PLEACH_DATASTORE_MAX_IDLE_CONNECTIONS")]
    datastore_max_idle_connections: Option<u32>,
    /// How many connections to the default store's database there are at most; 0 leaves it to the node.
    #[arg(long, env = "PLEACH_DATASTORE_MAX_OPEN_CONNECTIONS")]
    datastore_max_open_connections: Option<u32>,
    /// How long a connection to the default store's database is used.
    #[arg(long, env = "PLEACH_DATASTORE_CONNECTION_MAX_LIFETIME", value_parser = duration)]
    datastore_connection_max_lifetime: Option<Duration>,
    /// How long an idle connection to the default store's database is kept.
    #[arg(long, env = "PLEACH_DATASTORE_CONNECTION_MAX_IDLE_LIFETIME", value_parser = duration)]
    datastore_connection_max_idle_lifetime: Option<Duration>,
    /// How often the default store compacts by itself, beside what clients have compacted; 0 for never, which
    /// is so unless it is given.
    #[arg(long, env = "PLEACH_COMPACT_INTERVAL", value_parser = duration)]
    compact_interval: Option<Duration>,
    /// How far that interval varies, in percent.
    #[arg(long, env = "PLEACH_COMPACT_INTERVAL_JITTER", requires = "compact_interval",
          value_parser = clap::value_parser!(u32).range(0..=100))]
    compact_interval_jitter: Option<u32>,
    /// How long one compaction may take before the log says so.
    #[arg(long, env = "PLEACH_COMPACT_TIMEOUT", requires = "compact_interval", value_parser = duration)]
    compact_timeout: Option<Duration>,
    /// How many revisions stay at least.
    #[arg(long, env = "PLEACH_COMPACT_MIN_RETAIN", requires = "compact_interval",
          value_parser = clap::value_parser!(u32).range(10..))]
    compact_min_retain: Option<u32>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as 5m, 30s or 0".to_owned())
}

// === impl Datastore ===

impl Datastore {
    /// Puts the settings into a plan. Returns what has no effect on such a store, for a warning.
    pub(super) fn set(&self, plan: &mut Plan) -> Vec<String> {
        let default = &mut plan.default;
        default.tls = BackendTls {
            ca_file: self.ca_file.clone(),
            cert_file: self.datastore_cert_file.clone(),
            key_file: self.datastore_key_file.clone(),
            skip_verify: self.skip_verify,
        };
        default.pool = Pool {
            idle_max: self.datastore_max_idle_connections,
            open_max: self.datastore_max_open_connections,
            life_time_max: self.datastore_connection_max_lifetime,
            idle_time_max: self.datastore_connection_max_idle_lifetime,
        };
        default.compaction = AutoCompaction::of(&Compaction {
            interval: self.compact_interval,
            // The topology counts thousandths.
            interval_jitter: self.compact_interval_jitter.map(|percent| percent * 10),
            timeout: self.compact_timeout,
            retain_min: self.compact_min_retain,
            batch_size: None,
        });
        let is_file = matches!(default.endpoint, Endpoint::Sqlite { .. });
        let is_database = matches!(default.endpoint, Endpoint::Postgres(_) | Endpoint::Mysql(_));
        let tls = self.ca_file.is_some() || self.datastore_cert_file.is_some() || self.skip_verify;
        let unused = [
            (
                tls && is_file,
                "the default store is a file, which has no connection: --ca-file, \
                              --datastore-cert-file and --skip-verify have no effect",
            ),
            (
                default.pool != Pool::default() && !is_database,
                "only PostgreSQL, MySQL and MariaDB have \
                              connections to pool: --datastore-max-… and --datastore-connection-… have no effect",
            ),
            (
                self.ca_file.is_some() && self.skip_verify,
                "--ca-file has no effect: --skip-verify takes any \
                              certificate",
            ),
            (
                default.indexing != Default::default()
                    && matches!(default.endpoint, Endpoint::Etcd { .. }),
                "only databases have indexes for selectors: `indexes` and `disableStorageLevelFiltering` of the \
                              topology have no effect on the default store",
            ),
        ];
        unused.into_iter().filter(|(is_so, _)| *is_so).map(|(_, text)| text.to_owned()).collect()
    }
}

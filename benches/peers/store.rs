//! Servers behind a peer that hold its data, each one's own: of a database, an etcd, or nodes in a row.
//!
//! Both sides of a comparison get the same settings: durable, nothing else tuned.

use std::path::Path;

use anyhow::Result;

use crate::{
    options::Plan,
    program::Program,
    serving::Serving,
    support::{
        databases::{self, DatabaseServer},
        otlp::Receiver,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    MariaDb,
    Etcd,
    /// So many nodes, each but the last in front of the next.
    Nodes(usize),
    /// What takes traces, in this process: no data.
    Receiver,
}

/// A running server. Dropping it kills all its processes, and takes a database's data away.
#[derive(Debug)]
pub(crate) enum Store {
    Database {
        server: DatabaseServer,
        name: String,
    },
    Etcd(Serving),
    /// The one that holds the data first.
    Nodes(Vec<Serving>),
    Receiver(Receiver),
}

/// What durability asks for. These are the defaults, said aloud so that no other default of a
/// package or a later version is measured.
const POSTGRES_SETTINGS: [(&str, &str); 2] = [("fsync", "on"), ("synchronous_commit", "on")];
const MARIADB_SETTINGS: [(&str, &str); 1] = [("innodb-flush-log-at-trx-commit", "1")];

// === impl Kind ===

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Postgres => "PostgreSQL",
            Kind::MariaDb => "MariaDB",
            Kind::Etcd => "etcd (store)",
            Kind::Nodes(_) => "nodes behind",
            Kind::Receiver => "traces",
        }
    }

    /// Its version and settings on one line, or why it can't be started here.
    pub(crate) fn version(self, peers_directory: &Path) -> Result<String> {
        if self == Kind::Receiver {
            return Ok("one request of a hundred, taken by the bench's process".to_owned());
        }
        let Some((database, settings)) = self.database() else {
            let program = if self == Kind::Etcd { Program::Etcd } else { Program::Pleach };
            program.require(peers_directory)?;
            return program.version(peers_directory);
        };
        let settings: Vec<_> =
            settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Ok(format!("{}, {}", database.version()?, settings.join(", ")))
    }

    pub(crate) fn is_database(self) -> bool {
        self.database().is_some()
    }

    /// Whether it does a part of the work of a request.
    pub(crate) fn shares_work(self) -> bool {
        self != Kind::Receiver
    }

    fn database(self) -> Option<(databases::Kind, &'static [(&'static str, &'static str)])> {
        match self {
            Kind::Postgres => Some((databases::Kind::Postgres, &POSTGRES_SETTINGS)),
            Kind::MariaDb => Some((databases::Kind::MariaDb, &MARIADB_SETTINGS)),
            Kind::Etcd | Kind::Nodes(_) | Kind::Receiver => None,
        }
    }
}

// === impl Store ===

impl Store {
    /// An empty one, its files in the run's directory and so on its disk.
    pub(crate) async fn start(plan: &Plan, kind: Kind, name: &str) -> Result<Self> {
        if kind == Kind::Receiver {
            return Ok(Store::Receiver(Receiver::start().await?));
        }
        if let Kind::Nodes(count) = kind {
            let mut nodes: Vec<Serving> = Vec::new();
            for at in 0..count {
                let child = nodes.last().map(url);
                let program = if at == 0 { Program::Pleach } else { Program::Hop { below: at } };
                let name = format!("{name}-{at}");
                nodes.push(Serving::start(plan, program, &name, child.as_deref()).await?);
            }
            return Ok(Store::Nodes(nodes));
        }
        let Some((database, settings)) = kind.database() else {
            return Ok(Store::Etcd(Serving::start(plan, Program::Etcd, name, None).await?));
        };
        let mut server = DatabaseServer::new_in(&plan.directory, database)?;
        for (name, value) in settings {
            server = server.with_setting(name, value);
        }
        server.start().await?;
        let name = server.new_database().await?;
        Ok(Store::Database { server, name })
    }

    /// Where a kine and a node find it.
    pub(crate) fn endpoint(&self) -> String {
        match self {
            Store::Database { server, name } => server.url(name),
            Store::Etcd(etcd) => url(etcd),
            Store::Nodes(nodes) => nodes.last().map(url).unwrap_or_default(),
            Store::Receiver(receiver) => receiver.url(),
        }
    }

    /// The processes whose children all others of the server are.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        match self {
            Store::Database { server, .. } => Ok(vec![server.id()?]),
            Store::Etcd(etcd) => Ok(vec![etcd.pid]),
            Store::Nodes(nodes) => Ok(nodes.iter().map(|node| node.pid).collect()),
            Store::Receiver(_) => Ok(Vec::new()),
        }
    }

    /// Ends its processes and removes its data.
    pub(crate) async fn discard(self) -> Result<()> {
        match self {
            Store::Database { mut server, .. } => server.kill().await,
            Store::Etcd(etcd) => etcd.discard().await,
            Store::Nodes(nodes) => {
                for node in nodes.into_iter().rev() {
                    node.discard().await?;
                }
                Ok(())
            }
            Store::Receiver(_) => Ok(()),
        }
    }
}

fn url(serving: &Serving) -> String {
    format!("http://127.0.0.1:{}", serving.port)
}

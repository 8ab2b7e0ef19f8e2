//! What is measured: a program, with its data in files of its own or in a server behind it; and
//! which of them are held against each other.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;

use crate::{program::Program, store};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Etcd,
    Kine,
    Pleach,
    KinePostgres,
    PleachPostgres,
    KineMariadb,
    PleachMariadb,
    PleachEtcd,
    /// etcd's own `grpc-proxy` in front of an etcd.
    EtcdProxy,
    /// A node whose one route sends all keys to another node, which has them.
    PleachHop1,
    /// With one more node between.
    PleachHop2,
    /// With two.
    PleachHop3,
    /// A node with a route and a file for each group of keys of the merged rows.
    PleachRoutes,
    /// A node with 500 routes, each to a file.
    PleachRoutes500,
    /// A node of whose requests one of a hundred is traced, for a receiver in the bench's process.
    PleachTraced,
}

/// Two columns of the table: the first is said to be so many times better than the second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) subject: usize,
    pub(crate) other: usize,
}

// === impl Peer ===

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Etcd => "etcd",
            Peer::Kine => "kine",
            Peer::Pleach => "pleach",
            Peer::KinePostgres => "kine-postgres",
            Peer::PleachPostgres => "pleach-postgres",
            Peer::KineMariadb => "kine-mariadb",
            Peer::PleachMariadb => "pleach-mariadb",
            Peer::PleachEtcd => "pleach-etcd",
            Peer::EtcdProxy => "etcd-proxy",
            Peer::PleachHop1 => "pleach-hop1",
            Peer::PleachHop2 => "pleach-hop2",
            Peer::PleachHop3 => "pleach-hop3",
            Peer::PleachRoutes => "pleach-routes",
            Peer::PleachRoutes500 => "pleach-routes500",
            Peer::PleachTraced => "pleach-traced",
        }
    }

    /// What answers the load.
    pub(crate) fn program(self) -> Program {
        match self {
            Peer::Etcd => Program::Etcd,
            Peer::Kine | Peer::KinePostgres | Peer::KineMariadb => Program::Kine,
            Peer::Pleach | Peer::PleachPostgres | Peer::PleachMariadb | Peer::PleachEtcd => {
                Program::Pleach
            }
            Peer::EtcdProxy => Program::EtcdProxy,
            Peer::PleachHop1 => Program::Hop { below: 1 },
            Peer::PleachHop2 => Program::Hop { below: 2 },
            Peer::PleachHop3 => Program::Hop { below: 3 },
            Peer::PleachRoutes => Program::Routes,
            Peer::PleachRoutes500 => Program::Routes500,
            Peer::PleachTraced => Program::Traced,
        }
    }

    /// The server behind it that holds its data. None where its own files do.
    pub(crate) fn store(self) -> Option<store::Kind> {
        match self {
            Peer::Etcd | Peer::Kine | Peer::Pleach | Peer::PleachRoutes | Peer::PleachRoutes500 => {
                None
            }
            Peer::KinePostgres | Peer::PleachPostgres => Some(store::Kind::Postgres),
            Peer::KineMariadb | Peer::PleachMariadb => Some(store::Kind::MariaDb),
            Peer::PleachEtcd | Peer::EtcdProxy => Some(store::Kind::Etcd),
            Peer::PleachHop1 => Some(store::Kind::Nodes(1)),
            Peer::PleachHop2 => Some(store::Kind::Nodes(2)),
            Peer::PleachHop3 => Some(store::Kind::Nodes(3)),
            Peer::PleachTraced => Some(store::Kind::Receiver),
        }
    }

    fn is_node(self) -> bool {
        self.program().is_node()
    }

    /// What the binary says of itself, and what matters of how it is started.
    pub(crate) fn version(self, peers_directory: &Path) -> Result<String> {
        let version = self.program().version(peers_directory)?;
        Ok(match self {
            Peer::Kine => format!("{version}, SQLite with synchronous=FULL"),
            Peer::KinePostgres | Peer::KineMariadb => format!("{version}, its default pool"),
            _ => version,
        })
    }

    /// Whether it is an answer to the other: a node in its place on the same kind of store, or
    /// something in front of it.
    fn answers(self, other: Peer) -> bool {
        match self.program() {
            Program::EtcdProxy => return other == Peer::Etcd,
            Program::Hop { .. } | Program::Routes | Program::Routes500 | Program::Traced => {
                return other == Peer::Pleach;
            }
            _ => {}
        }
        let in_place = other.store() == self.store();
        let in_front = other == Peer::Etcd && self.store() == Some(store::Kind::Etcd);
        let is_direct = !other.is_node() && other != Peer::EtcdProxy;
        self.is_node() && is_direct && (in_place || in_front)
    }
}

// === impl Pair ===

impl Pair {
    /// Each node with the peers that it answers; where there are none, with all that are no nodes, or
    /// else with the other nodes. Without a node, the first peer is compared with all others.
    pub(crate) fn of(peers: &[Peer]) -> Vec<Pair> {
        let columns = || 0..peers.len();
        let is_subject = |peer: Peer| peer.is_node() || peer == Peer::EtcdProxy;
        let mut subjects: Vec<_> = columns().filter(|&column| is_subject(peers[column])).collect();
        if subjects.is_empty() {
            subjects.push(0);
        }
        let mut pairs = Vec::new();
        for subject in subjects {
            let those = |of: &dyn Fn(Peer) -> bool| -> Vec<usize> {
                columns().filter(|&other| other != subject && of(peers[other])).collect()
            };
            let choices = [
                those(&|other| peers[subject].answers(other)),
                those(&|other| !other.is_node()),
                those(&|_| true),
            ];
            let others = choices.into_iter().find(|others| !others.is_empty());
            let pair = |other| Pair { subject, other };
            pairs.extend(others.into_iter().flatten().map(pair));
        }
        pairs
    }
}

//! Connections to a server, and what can go wrong with a request.

use std::time::Duration;

use anyhow::{Context as _, Result};
use pleach::proto::etcdserverpb::{ResponseHeader, kv_client::KvClient, watch_client::WatchClient};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// How many clients share a connection, all of whose frames pass through one task.
const CLIENTS_PER_CONNECTION: usize = 32;

/// Longer than any peer's slowest answer that was seen; a server that stands still ends the wait.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);

/// Connections for a number of clients.
#[derive(Debug)]
pub(crate) struct Connections(Vec<Channel>);

/// Why a request did not do its work.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The server answered with an error, or not at all: counted and shown.
    Refused(Status),
    /// The server answered with something untrue: the bench ends.
    Wrong(anyhow::Error),
}

// === impl Connections ===

impl Connections {
    pub(crate) async fn open(port: u16, clients: usize) -> Result<Self> {
        let mut channels = Vec::new();
        for _ in 0..clients.div_ceil(CLIENTS_PER_CONNECTION) {
            channels.push(endpoint(port)?.connect().await.context("connecting to a server")?);
        }
        Ok(Connections(channels))
    }

    pub(crate) fn kv(&self, client: usize) -> KvClient<Channel> {
        kv(self.channel(client))
    }

    pub(crate) fn watch(&self, client: usize) -> WatchClient<Channel> {
        WatchClient::new(self.channel(client)).max_decoding_message_size(usize::MAX)
    }

    fn channel(&self, client: usize) -> Channel {
        self.0[client % self.0.len()].clone()
    }
}

pub(crate) fn endpoint(port: u16) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?;
    Ok(endpoint.timeout(REQUEST_TIME_MAX).connect_timeout(Duration::from_secs(10)))
}

/// tonic's own limit of 4 MiB would refuse a long list.
pub(crate) fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

pub(crate) fn revision(header: Option<&ResponseHeader>) -> Result<i64> {
    let revision = header.context("an answer without a header")?.revision;
    anyhow::ensure!(revision > 0, "an answer at revision {revision}");
    Ok(revision)
}

// === impl Trouble ===

impl From<Status> for Trouble {
    fn from(status: Status) -> Self {
        Trouble::Refused(status)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Trouble::Wrong(error)
    }
}

impl Trouble {
    /// For preparations, where either kind ends the bench.
    pub(crate) fn into_error(self) -> anyhow::Error {
        match self {
            Trouble::Refused(status) => anyhow::Error::new(status),
            Trouble::Wrong(error) => error,
        }
    }
}

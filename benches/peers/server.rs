//! A peer that runs: what answers the load, and what holds its data behind it.

use anyhow::{Context as _, Result};

use crate::{
    meter::Processes,
    options::Plan,
    peer::Peer,
    process::{self, Memory},
    serving::Serving,
    store::Store,
};

/// Dropping it kills all its processes.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) peer: Peer,
    pub(crate) serving: Serving,
    name: String,
    store: Option<Store>,
}

// === impl Server ===

impl Server {
    /// Starts a peer on empty directories of its own. Its store runs before its start is timed.
    pub(crate) async fn start(plan: &Plan, peer: Peer, section: &str) -> Result<Self> {
        let name = format!("{section}-{}", peer.name());
        let store = match peer.store() {
            Some(kind) => {
                let store = Store::start(plan, kind, &format!("{name}-store")).await;
                Some(store.with_context(|| format!("the store of {name} did not start"))?)
            }
            None => None,
        };
        let serving = serve(plan, peer, &name, store.as_ref()).await?;
        Ok(Server { peer, serving, name, store })
    }

    /// Starts it again after a stop, on the data that it had.
    pub(crate) async fn start_again(&mut self, plan: &Plan) -> Result<()> {
        self.serving = serve(plan, self.peer, &self.name, self.store.as_ref()).await?;
        Ok(())
    }

    pub(crate) fn port(&self) -> u16 {
        self.serving.port
    }

    pub(crate) fn processes(&self) -> Result<Processes> {
        let store = self.store.as_ref().map(Store::pids).transpose()?.unwrap_or_default();
        Ok(Processes { server: self.serving.pid, store })
    }

    /// That of its own process, without the store.
    pub(crate) fn memory(&self) -> Result<Memory> {
        process::memory(self.serving.pid)
    }

    /// Ends it as an administrator would. Its store stays.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.serving.stop().await
    }

    /// Ends all its processes and removes its data.
    pub(crate) async fn discard(self) -> Result<()> {
        self.serving.discard().await?;
        match self.store {
            Some(store) => store.discard().await,
            None => Ok(()),
        }
    }
}

async fn serve(plan: &Plan, peer: Peer, name: &str, store: Option<&Store>) -> Result<Serving> {
    let endpoint = store.map(Store::endpoint);
    Serving::start(plan, peer.program(), name, endpoint.as_deref()).await
}

//! Reads one key, the keys of a store, or all that lie below a node.

use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use super::{Connection, paced, patience};
use crate::{
    history::{History, Keys},
    support::rng::Rng,
};

const PAUSE_MAX: Duration = Duration::from_millis(150);

#[derive(Debug)]
pub(crate) struct Reader {
    connection: Connection,
    /// The keys of single reads.
    keys: Vec<String>,
    /// The ranges of lists.
    lists: Vec<Keys>,
    rng: Rng,
    history: History,
}

// === impl Reader ===

impl Reader {
    pub(crate) fn new(
        connection: Connection,
        keys: Vec<String>,
        lists: Vec<Keys>,
        rng: Rng,
    ) -> Self {
        Self { connection, keys, lists, rng, history: History::default() }
    }

    pub(crate) async fn run(mut self, done: CancellationToken) -> Result<History> {
        while paced(&mut self.rng, PAUSE_MAX, &done).await {
            let keys = match self.rng.chance(70) {
                true => Keys::one(&self.rng.pick(&self.keys)),
                false => self.rng.pick(&self.lists),
            };
            let patience = patience(&mut self.rng);
            self.history.reads.extend(self.connection.read(&keys, patience).await?);
        }
        Ok(self.history)
    }
}

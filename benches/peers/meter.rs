//! What a stretch of load cost in CPU time, on each side.

use std::time::Duration;

use anyhow::Result;

use crate::{
    process,
    report::{Figures, Metric},
};

/// The processes of a peer: what answers the load, and the first ones of the store behind it.
#[derive(Clone, Debug)]
pub(crate) struct Processes {
    pub(crate) server: u32,
    pub(crate) store: Vec<u32>,
}

/// CPU times at the start of the stretch, to be subtracted.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    processes: Processes,
    before: Times,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    server: Duration,
    /// Of all processes of the store.
    store: Option<Duration>,
    client: Duration,
}

// === impl Meter ===

impl Meter {
    pub(crate) fn start(processes: Processes) -> Result<Self> {
        let before = Times::read(&processes)?;
        Ok(Meter { processes, before })
    }

    /// The times since the start.
    pub(crate) fn read(&self) -> Result<Times> {
        let (now, before) = (Times::read(&self.processes)?, self.before);
        let since = |now: Duration, before| now.saturating_sub(before);
        Ok(Times {
            server: since(now.server, before.server),
            store: now.store.zip(before.store).map(|(now, before)| since(now, before)),
            client: since(now.client, before.client),
        })
    }
}

// === impl Times ===

impl Times {
    fn read(processes: &Processes) -> Result<Self> {
        let store: Result<Duration> =
            processes.store.iter().map(|pid| process::cpu_of_all(*pid)).sum();
        let store = store?;
        Ok(Times {
            server: process::cpu(processes.server)?,
            store: (!processes.store.is_empty()).then_some(store),
            client: process::cpu(std::process::id())?,
        })
    }

    pub(crate) fn figures(&self, operations: f64) -> Figures {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / operations;
        let mut figures = vec![(Metric::ServerCpu, each(self.server))];
        figures.extend(self.store.map(|store| (Metric::StoreCpu, each(store))));
        figures.push((Metric::ClientCpu, each(self.client)));
        figures
    }
}

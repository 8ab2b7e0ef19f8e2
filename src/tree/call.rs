//! What goes with a request through a tree: where it came through, how long it may take, and its trace.
//!
//! It belongs to the task that serves the request, so that no store has to hand it on.

use std::{future::Future, sync::Arc};

use tokio::time::Instant;

use crate::wire::{Member, trace};

/// The metadata that carries the revision which a parent has reached.
pub const CLOCK: &str = "pleach-clock";
/// The metadata that carries the path, as a message.
pub const PATH: &str = "pleach-path-bin";
/// The metadata that carries the number of the caller's process, in hexadecimal.
pub const PROCESS: &str = "pleach-process";
/// The metadata that carries what parent and child agreed upon.
pub const CREDENTIAL: &str = "pleach-credential-bin";
/// The metadata that carries the secret of who joins.
pub const SECRET: &str = "pleach-secret-bin";

tokio::task_local! {
    static CALL: Call;
}

/// A request under way.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The nodes it came through, the outermost first, without this one.
    pub path: Arc<[Member]>,
    /// When whoever asked stops waiting.
    pub deadline: Option<Instant>,
    /// Its trace, as it came from outside or is told on.
    pub trace: Option<trace::Context>,
}

// === impl Call ===

impl Call {
    /// The request that this task serves.
    pub fn current() -> Self {
        CALL.try_with(Clone::clone).unwrap_or_default()
    }

    /// Runs what serves the request.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CALL.scope(self, work).await
    }
}

/// Nodes as a loop is printed: each behind the one that asks it.
pub fn printed<'m>(nodes: impl IntoIterator<Item = &'m Member>) -> String {
    let names: Vec<String> = nodes.into_iter().map(ToString::to_string).collect();
    names.join(" -> ")
}

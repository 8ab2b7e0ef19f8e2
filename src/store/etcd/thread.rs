//! The thread that the writer has to itself, with the connection that its transactions take.
//!
//! On the threads that serve clients each step of a transaction would wait for requests to be read and
//! answers to be sent, and longest where most is written.

use std::{io, sync::mpsc, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// A runtime of one thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Thread {
    runtime: Handle,
    _needed: oneshot::Sender<()>,
}

// === impl Thread ===

impl Thread {
    /// Starts the thread of the store `name`.
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let (tell, told) = mpsc::sync_channel(1);
        let (needed, dropped) = oneshot::channel::<()>();
        // A runtime may not be dropped where this is called from, so the thread makes it.
        let work = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = tell.send(Ok(runtime.handle().clone()));
                // It ends with an error, since nothing is ever sent.
                let _ = runtime.block_on(dropped);
            }
            Err(error) => drop(tell.send(Err(error))),
        };
        thread::Builder::new().name(format!("write-{name}")).spawn(work)?;
        let runtime = told.recv().map_err(io::Error::other)??;
        Ok(Self { runtime, _needed: needed })
    }

    /// Where the writer and its connection are spawned.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_runs_there_ends_with_it() {
        let thread = Thread::start("test").expect("a thread starts");
        let (working, ended) = oneshot::channel::<()>();
        let work = thread.runtime().spawn(async move {
            let _working = working;
            std::future::pending::<()>().await;
        });
        drop(thread);
        assert!(ended.await.is_err());
        assert!(work.await.expect_err("it is not done").is_cancelled());
    }
}

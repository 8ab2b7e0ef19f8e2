//! The thread that the writer has to itself, with the connection that its transactions take.
//!
//! On the threads that serve clients each step of a transaction would wait for requests to be read and
//! answers to be sent, and most of them where most is written.

use std::{io, thread};

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
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (needed, dropped) = oneshot::channel::<()>();
        // It ends with an error, since nothing is ever sent.
        let work = move || drop(runtime.block_on(dropped));
        thread::Builder::new().name(format!("write-{name}")).spawn(work)?;
        Ok(Self { runtime: handle, _needed: needed })
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

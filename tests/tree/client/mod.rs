//! Clients at a node, each of which keeps the history of what it did and was told.

mod reader;
mod watcher;
mod writer;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pleach::proto::mvccpb::KeyValue;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

pub(crate) use self::{reader::Reader, watcher::Watching, writer::Writer};
use crate::{
    call::range,
    history::{Keys, NodeId, Read, Span},
    support::{changes::Row, rng::Rng},
};

/// A node as a client has it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) node: NodeId,
    pub(crate) channel: Channel,
    /// When the history began.
    pub(crate) begin: Instant,
}

// === impl Connection ===

impl Connection {
    /// It is made when it is first used, and again when it broke, and a silent one breaks.
    pub(crate) fn new(node: NodeId, url: &str, begin: Instant) -> Result<Self> {
        let channel = Endpoint::from_shared(url.to_owned())?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(2))
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true)
            .connect_lazy();
        Ok(Self { node, channel, begin })
    }

    pub(crate) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Reads keys as of the present; `None` where that is not answered.
    pub(crate) async fn read(&self, keys: &Keys, patience: Duration) -> Result<Option<Read>> {
        let asked = self.now();
        let read = range(&self.channel, &keys.from, &keys.end);
        let answer = match timeout(patience, Box::pin(read)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => {
                expected(&status)?;
                return Ok(None);
            }
            Err(_) => return Ok(None),
        };
        let (revision, kvs) = answer;
        let row = |kv: &KeyValue| (String::from_utf8_lossy(&kv.key).into_owned(), Row::from(kv));
        let rows = kvs.iter().map(row).collect();
        let span = Span { asked, answered: self.now() };
        Ok(Some(Read { node: self.node, span, keys: keys.clone(), revision, rows }))
    }
}

/// Trouble has these codes; all others would say that the request was wrong.
fn expected(status: &Status) -> Result<()> {
    let wrong = [
        Code::InvalidArgument,
        Code::OutOfRange,
        Code::NotFound,
        Code::FailedPrecondition,
        Code::ResourceExhausted,
        Code::Unimplemented,
        Code::DeadlineExceeded,
    ];
    ensure!(!wrong.contains(&status.code()), "an answer that never fits: {status:?}");
    Ok(())
}

/// How long a client waits for an answer: some longer than a node takes to notice a silent child.
fn patience(rng: &mut Rng) -> Duration {
    Duration::from_millis(rng.pick(&[500, 1_500, 4_000, 8_000]))
}

/// Pauses between two requests. `false` where there is to be no other.
async fn paced(rng: &mut Rng, most: Duration, done: &CancellationToken) -> bool {
    let pause = most * rng.below(100) as u32 / 100;
    done.run_until_cancelled(sleep(pause)).await.is_some()
}

//! A TCP proxy that does to connections what networks, and servers at the wrong moment, do.
//!
//! It listens on a port of its own and forwards to the upstream. What it does to the bytes can be
//! changed while they flow:
//!
//! ```text
//!   set(Mode)             how connections fare from now on, those that are open as well as new ones
//!   cut()                 all that are open are reset, once
//!   truncate(way, n)      n more bytes pass; the connection of the last of them is closed
//!   trigger(needle, act)  once, on the connection whose client sends the needle, such as COMMIT
//!   redirect(upstream)    where new connections go, such as to a replica
//! ```
//!
//! A connection that breaks on one side is reset on the other. Needles are not found under TLS.

use std::{
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{peers::free_port, rng::Rng};

const CHUNK_BYTES_MAX: usize = 16 << 10;
/// How long a random fault lasts at most.
const TROUBLE_MS_MAX: usize = 100;

/// How connections fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Each chunk of bytes is that much later.
    Delay(Duration),
    /// Connections stay open, and new ones are accepted, but nothing comes through: neither bytes,
    /// nor that the other side has closed.
    Stall,
    /// Only what the client sends comes through, or only what it is answered.
    StallOf(Way),
    /// New connections are refused, as by a server that does not run. Open ones go on.
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the upstream.
    Requests,
    /// From the upstream to the client.
    Answers,
}

/// What happens to the connection whose client sends a needle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// It is reset before the upstream has the needle.
    CutBefore,
    /// It is reset as soon as the needle is forwarded. What the upstream made of it is unknown.
    CutAfter,
    /// It is reset when the upstream answers, and the client has nothing of the answer. The client
    /// must have read all answers before, as one that speaks in turns has.
    DropAnswer,
    /// It freezes before the upstream has the needle.
    StallBefore,
    /// It freezes when the needle is forwarded: no answer, and no end.
    StallAfter,
}

/// See the module. The connections are reset, and the port is closed, when it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    is_listening: watch::Receiver<bool>,
    _accepting: AbortOnDropHandle<()>,
}

/// What the connections ask about each chunk.
#[derive(Debug)]
struct Shared {
    mode: watch::Sender<Mode>,
    once: Mutex<Once>,
}

#[derive(Debug)]
struct Once {
    upstream: SocketAddr,
    open: Open,
    truncation: Option<(Way, usize)>,
    trigger: Option<Trigger>,
}

/// The connections since the last cut.
#[derive(Clone, Debug, Default)]
struct Open {
    cut: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Trigger {
    needle: Vec<u8>,
    act: Act,
    fired: oneshot::Sender<()>,
}

/// What becomes of the next answer on one connection. Set before a needle is forwarded.
#[derive(Debug, Default)]
enum Fate {
    #[default]
    Passes,
    IsDropped(oneshot::Sender<()>),
    IsHeld,
}

/// How a connection ends that does not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

// === impl Proxy ===

impl Proxy {
    /// Listens, and passes all on.
    pub(crate) async fn start(upstream: SocketAddr) -> Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, free_port()?).into();
        let once = Once { upstream, open: Open::default(), truncation: None, trigger: None };
        let mode = watch::Sender::new(Mode::Pass);
        let shared = Arc::new(Shared { mode, once: Mutex::new(once) });
        let (listening, is_listening) = watch::channel(false);
        let accepting = tokio::spawn(accept(shared.clone(), address, listening));
        let accepting = AbortOnDropHandle::new(accepting);
        let proxy = Self { address, shared, is_listening, _accepting: accepting };
        proxy.set(Mode::Pass).await?;
        Ok(proxy)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The mode holds when this returns.
    pub(crate) async fn set(&self, mode: Mode) -> Result<()> {
        self.shared.mode.send_replace(mode);
        let mut is_listening = self.is_listening.clone();
        let as_wanted = is_listening.wait_for(|is| *is == (mode != Mode::Refuse)).await;
        as_wanted.map(drop).with_context(|| format!("{} can't be listened on", self.address))
    }

    /// Resets all open connections. They are gone when this returns; how many there were.
    pub(crate) async fn cut(&self) -> usize {
        let open = std::mem::take(&mut self.shared.once().open);
        let count = open.tasks.len();
        open.cut.cancel();
        open.tasks.close();
        open.tasks.wait().await;
        count
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.shared.once().open.tasks.len()
    }

    /// Lets that many bytes pass, on all connections together. With the last of them its connection
    /// is closed: the other side reads them, and then the end.
    pub(crate) fn truncate(&self, way: Way, bytes: usize) {
        self.shared.once().truncation = Some((way, bytes));
    }

    /// What happens, once, to the first connection whose client sends the needle, which is not
    /// empty. A later trigger takes the place of one that has not fired. The receiver is told when
    /// it has.
    pub(crate) fn trigger(&self, needle: impl Into<Vec<u8>>, act: Act) -> oneshot::Receiver<()> {
        let (fired, is_fired) = oneshot::channel();
        self.shared.once().trigger = Some(Trigger { needle: needle.into(), act, fired });
        is_fired
    }

    /// Connects new clients with another upstream. Open connections stay with theirs.
    pub(crate) fn redirect(&self, upstream: SocketAddr) {
        self.shared.once().upstream = upstream;
    }

    /// Makes trouble of some kind for some time, which the seed decides and the answer tells. All
    /// is well again when this returns.
    pub(crate) async fn trouble(&self, rng: &mut Rng) -> Result<String> {
        let lasting = Duration::from_millis(rng.below(TROUBLE_MS_MAX) as u64);
        let way = if rng.below(2) == 0 { Way::Requests } else { Way::Answers };
        let is_cut = rng.below(2) == 0;
        let mode = match rng.below(6) {
            0 => Mode::Delay(Duration::from_millis(1 + rng.below(20) as u64)),
            1 => Mode::Stall,
            2 => Mode::StallOf(way),
            3 => Mode::Refuse,
            4 => {
                let bytes = rng.below(2_000);
                self.truncate(way, bytes);
                sleep(lasting).await;
                self.shared.once().truncation = None;
                return Ok(format!("{way:?} truncated after {bytes} bytes"));
            }
            _ => return Ok(format!("{} connections cut", self.cut().await)),
        };
        self.set(mode).await?;
        sleep(lasting).await;
        let cut = if is_cut { self.cut().await } else { 0 };
        self.set(Mode::Pass).await?;
        Ok(format!("{mode:?} for {lasting:?}, then {cut} connections cut"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.once().open.cut.cancel();
    }
}

// === impl Shared ===

impl Shared {
    fn once(&self) -> MutexGuard<'_, Once> {
        lock(&self.once)
    }

    /// Waits until a chunk may pass.
    async fn pass(&self, way: Way) {
        let mut mode = self.mode.subscribe();
        let now = *mode.borrow_and_update();
        if let Mode::Delay(time) = now {
            // A delay that is called off is over.
            let _ = timeout(time, mode.changed()).await;
        }
        let is_held = |mode: &Mode| *mode == Mode::Stall || *mode == Mode::StallOf(way);
        // It can't fail, since the sender is here.
        let _ = mode.wait_for(|mode| !is_held(mode)).await;
    }

    /// How many bytes of a chunk may pass before its connection is closed.
    fn truncated(&self, way: Way, bytes: usize) -> Option<usize> {
        let mut once = self.once();
        let (_, left) = once.truncation.as_mut().filter(|truncation| truncation.0 == way)?;
        if bytes < *left {
            *left -= bytes;
            return None;
        }
        let rest = *left;
        once.truncation = None;
        Some(rest)
    }

    /// The trigger that these bytes fire.
    fn triggered(&self, bytes: &[u8]) -> Option<Trigger> {
        let has = |trigger: &Trigger| {
            bytes.windows(trigger.needle.len()).any(|window| window == trigger.needle)
        };
        let mut once = self.once();
        if once.trigger.as_ref().is_some_and(has) { once.trigger.take() } else { None }
    }

    /// How much of what has passed is kept, for a needle that comes in two chunks.
    fn overlap(&self) -> usize {
        self.once().trigger.as_ref().map_or(0, |trigger| trigger.needle.len() - 1)
    }
}

/// Listens while connections are not refused.
async fn accept(shared: Arc<Shared>, address: SocketAddr, listening: watch::Sender<bool>) {
    let mut mode = shared.mode.subscribe();
    while mode.wait_for(|mode| *mode != Mode::Refuse).await.is_ok() {
        let Ok(listener) = TcpListener::bind(address).await else {
            return;
        };
        listening.send_replace(true);
        loop {
            tokio::select! {
                accepted = listener.accept() => if let Ok((client, _)) = accepted {
                    let open = shared.once().open.clone();
                    open.tasks.spawn(connection(shared.clone(), client, open.cut.clone()));
                },
                _ = mode.wait_for(|mode| *mode == Mode::Refuse) => break,
            }
        }
        drop(listener);
        listening.send_replace(false);
    }
}

/// One connection, from its first byte to its end.
async fn connection(shared: Arc<Shared>, mut client: TcpStream, cut: CancellationToken) {
    let connecting = async {
        shared.pass(Way::Requests).await;
        let upstream = shared.once().upstream;
        TcpStream::connect(upstream).await
    };
    let connected = tokio::select! {
        connected = connecting => connected.ok(),
        () = cut.cancelled() => None,
    };
    let Some(mut upstream) = connected else {
        let _ = client.set_zero_linger();
        return;
    };
    // Neither fails on a socket that is connected, and one that is not any more shows it below.
    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
    let end = tokio::select! {
        end = relay(&shared, &mut client, &mut upstream) => end,
        () = cut.cancelled() => End::Reset,
    };
    if end == End::Reset {
        let _ = (client.set_zero_linger(), upstream.set_zero_linger());
    }
}

/// Both ways at once, until both have ended, or one has broken.
async fn relay(shared: &Shared, client: &mut TcpStream, upstream: &mut TcpStream) -> End {
    let fate = Mutex::default();
    let (client_reads, client_writes) = client.split();
    let (upstream_reads, upstream_writes) = upstream.split();
    let requests = requests(shared, &fate, client_reads, upstream_writes);
    let answers = answers(shared, &fate, upstream_reads, client_writes);
    tokio::try_join!(requests, answers).err().unwrap_or(End::Closed)
}

async fn requests(
    shared: &Shared,
    fate: &Mutex<Fate>,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> Result<(), End> {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    let mut passed = Vec::new();
    loop {
        let count = from.read(&mut buffer).await.map_err(|_| End::Reset)?;
        shared.pass(Way::Requests).await;
        let chunk = &buffer[..count];
        passed.extend(chunk);
        if let Some(trigger) = shared.triggered(&passed) {
            spring(trigger, fate, chunk, &mut to).await?;
        } else {
            forward(shared, Way::Requests, chunk, &mut to).await?;
        }
        passed.drain(..passed.len() - passed.len().min(shared.overlap()));
        if count == 0 {
            return Ok(());
        }
    }
}

async fn answers(
    shared: &Shared,
    fate: &Mutex<Fate>,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> Result<(), End> {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    loop {
        let read = from.read(&mut buffer).await;
        let fate = std::mem::take(&mut *lock(fate));
        match fate {
            Fate::Passes => {}
            Fate::IsDropped(fired) => {
                let _ = fired.send(());
                return Err(End::Reset);
            }
            Fate::IsHeld => pending().await,
        }
        let count = read.map_err(|_| End::Reset)?;
        shared.pass(Way::Answers).await;
        forward(shared, Way::Answers, &buffer[..count], &mut to).await?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Does to the connection what its needle asks for; `chunk` is what has the end of it. Whether
/// anybody waits to hear of it is no matter.
async fn spring(
    Trigger { act, fired, .. }: Trigger,
    fate: &Mutex<Fate>,
    chunk: &[u8],
    to: &mut WriteHalf<'_>,
) -> Result<(), End> {
    match act {
        Act::CutBefore => {
            let _ = fired.send(());
            Err(End::Reset)
        }
        Act::CutAfter => {
            to.write_all(chunk).await.map_err(|_| End::Reset)?;
            let _ = fired.send(());
            Err(End::Reset)
        }
        Act::DropAnswer => {
            *lock(fate) = Fate::IsDropped(fired);
            to.write_all(chunk).await.map_err(|_| End::Reset)
        }
        Act::StallBefore => {
            *lock(fate) = Fate::IsHeld;
            let _ = fired.send(());
            pending().await
        }
        Act::StallAfter => {
            *lock(fate) = Fate::IsHeld;
            to.write_all(chunk).await.map_err(|_| End::Reset)?;
            let _ = fired.send(());
            pending().await
        }
    }
}

/// Passes a chunk on, or as much of it as may pass. An empty one is the end of its way.
async fn forward(
    shared: &Shared,
    way: Way,
    chunk: &[u8],
    to: &mut WriteHalf<'_>,
) -> Result<(), End> {
    let truncated = shared.truncated(way, chunk.len());
    let chunk = truncated.map_or(chunk, |bytes| &chunk[..bytes]);
    to.write_all(chunk).await.map_err(|_| End::Reset)?;
    if truncated.is_some() {
        return Err(End::Closed);
    }
    if chunk.is_empty() {
        to.shutdown().await.map_err(|_| End::Reset)?;
    }
    Ok(())
}

/// Nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

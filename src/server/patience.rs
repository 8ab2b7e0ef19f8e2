//! How long a client may take to say what it wants, and how many may be connected: requests that stop half-way end
//! after a time and hold nothing for ever; connections for which there is no place end at once, so that their clients
//! go elsewhere, and stores have the files that they need.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes, HttpBody};
use futures::{Stream, StreamExt as _};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

/// What a client may take to begin, and to send a whole request.
pub(super) const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

/// How long nothing is accepted where that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often is said that there is no place.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// The methods whose requests are streams, which last as long as the client likes.
const STREAMED: [&str; 4] = [
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// A connection that has a place, and whose bytes are counted.
#[derive(Debug)]
pub(super) struct Placed<S> {
    stream: S,
    _place: OwnedSemaphorePermit,
    traffic: Traffic,
}

/// The bytes that went through connections, with all that stands around what was said. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic(Arc<Passed>);

#[derive(Debug, Default)]
struct Passed {
    received: AtomicU64,
    sent: AtomicU64,
}

/// The body of a request that must be whole in time.
struct InTime {
    body: Body,
    /// There once it is waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The places for connections of all listeners. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    count: usize,
    free: Arc<Semaphore>,
    refused: Arc<Mutex<Refused>>,
}

/// What was refused, and when that was said.
#[derive(Debug, Default)]
struct Refused {
    since: u64,
    said: Option<Instant>,
}

/// Connections, each of which has a place. One that can't be accepted is none: the next may be.
pub(super) fn placed<S>(
    incoming: impl Stream<Item = io::Result<S>>,
    places: Places,
    traffic: Traffic,
) -> impl Stream<Item = io::Result<Placed<S>>> {
    incoming.filter_map(move |stream| {
        let (is_failed, taken, traffic) = (stream.is_err(), places.take(stream), traffic.clone());
        async move {
            if is_failed {
                // What keeps one from being accepted keeps the next, too, for a moment.
                sleep(ACCEPT_PAUSE).await;
            }
            let (stream, place) = taken?;
            Some(Ok(Placed { stream, _place: place, traffic }))
        }
    })
}

/// The request, which must be whole in time unless it is a stream.
pub(super) fn in_time(request: axum::extract::Request) -> axum::extract::Request {
    if STREAMED.contains(&request.uri().path()) || request.body().is_end_stream() {
        return request;
    }
    request.map(|body| Body::new(InTime { body, deadline: None }))
}

// === impl Places ===

impl Places {
    pub(super) fn new(count: usize) -> Self {
        let count = count.min(Semaphore::MAX_PERMITS);
        Self { count, free: Arc::new(Semaphore::new(count)), refused: Arc::default() }
    }

    /// How many are taken, and how many there are.
    pub(super) fn taken(&self) -> (usize, usize) {
        (self.count - self.free.available_permits(), self.count)
    }

    /// A place for a connection; without one it ends.
    fn take<S>(&self, stream: io::Result<S>) -> Option<(S, OwnedSemaphorePermit)> {
        match stream {
            Ok(stream) => match self.free.clone().try_acquire_owned() {
                Ok(place) => Some((stream, place)),
                Err(_) => self.refuse("as many are open as open files allow (ulimit -n)"),
            },
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    fn refuse<T>(&self, reason: &str) -> Option<T> {
        // Nothing panics while it holds the lock.
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.since += 1;
        if refused.said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            refused.said = Some(Instant::now());
            let count = std::mem::take(&mut refused.since);
            tracing::warn!(count, reason, "connections were refused");
        }
        None
    }
}

// === impl Traffic ===

impl Traffic {
    /// The bytes that came, and those that went.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.0.received.load(Ordering::Relaxed), self.0.sent.load(Ordering::Relaxed))
    }

    fn note_sent(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = written {
            self.0.sent.fetch_add(*count as u64, Ordering::Relaxed);
        }
    }
}

// === impl Placed ===

impl<S: Connected> Connected for Placed<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        self.traffic.0.received.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.traffic.note_sent(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.traffic.note_sent(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// === impl InTime ===

impl HttpBody for InTime {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                let deadline =
                    self.deadline.get_or_insert_with(|| Box::pin(sleep(REQUEST_TIME_MAX)));
                deadline.as_mut().poll(context).map(|()| {
                    let late =
                        io::Error::new(io::ErrorKind::TimedOut, "the request did not come in time");
                    Some(Err(axum::Error::new(late)))
                })
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    #[tokio::test]
    async fn who_finds_no_place_is_let_go_and_the_next_may_find_one() {
        let places = Places::new(2);
        let connections = || (0..4).map(|at| tokio::io::duplex(at + 1).0).map(Ok);
        let failed = || [Err(io::Error::other("too many open files"))];
        let all = || {
            Box::pin(placed(
                stream::iter(failed().into_iter().chain(connections())),
                places.clone(),
                Traffic::default(),
            ))
        };
        let taken: Vec<_> = all().collect().await;
        assert!(taken.len() == 2 && taken.iter().all(Result::is_ok));
        assert_eq!(all().count().await, 0, "there are two");
        drop(taken);
        assert_eq!(all().collect::<Vec<_>>().await.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_stops_half_way_ends_and_a_stream_does_not() {
        let half = || {
            Body::from_stream(stream::iter([Ok::<_, io::Error>("half")]).chain(stream::pending()))
        };
        let request = |path: &str| {
            axum::extract::Request::builder().uri(path).body(half()).expect("it is a request")
        };
        let ended = axum::body::to_bytes(in_time(request("/etcdserverpb.KV/Put")).into_body(), 100);
        assert!(ended.await.is_err(), "half of it is enough");
        let streamed = in_time(request(STREAMED[0])).into_body();
        let waited =
            tokio::time::timeout(REQUEST_TIME_MAX * 10, axum::body::to_bytes(streamed, 100));
        assert!(waited.await.is_err(), "it was ended");
    }
}

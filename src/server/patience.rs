//! How long a client may take to say what it wants: connections that send nothing, and requests that stop
//! half-way, end after a time and hold nothing for ever.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use futures::{Stream, StreamExt as _};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

/// What a client may take to send its first bytes, and to send a whole request.
pub(super) const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

/// The methods whose requests are streams, which last as long as the client likes.
const STREAMED: [&str; 4] = [
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// A connection that ends where nothing comes at first.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    /// Until the first bytes have come.
    waiting: Option<Pin<Box<Sleep>>>,
}

/// The body of a request that must be whole in time.
struct InTime {
    body: Body,
    /// There once it is waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Connections, each of which must send something in time.
pub(super) fn patient<S>(
    incoming: impl Stream<Item = io::Result<S>>,
) -> impl Stream<Item = io::Result<Patient<S>>> {
    incoming.map(|stream| {
        stream.map(|stream| Patient { stream, waiting: Some(Box::pin(sleep(REQUEST_TIME_MAX))) })
    })
}

/// The request, which must be whole in time unless it is a stream.
pub(super) fn in_time(request: axum::extract::Request) -> axum::extract::Request {
    if STREAMED.contains(&request.uri().path()) || request.body().is_end_stream() {
        return request;
    }
    request.map(|body| Body::new(InTime { body, deadline: None }))
}

// === impl Patient ===

impl<S: Connected> Connected for Patient<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some(waiting) = &mut self.waiting else { return polled };
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        waiting.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
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
    use futures::stream;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_ends_and_one_that_has_said_something_stays() {
        let (silent, _their_end) = tokio::io::duplex(64);
        let mut connections = Box::pin(patient(stream::iter([Ok(silent)])));
        let mut silent = connections.next().await.expect("it came").expect("it is one");
        let error = silent.read_u8().await.expect_err("nothing was said");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (spoke, mut their_end) = tokio::io::duplex(64);
        let mut connections = Box::pin(patient(stream::iter([Ok(spoke)])));
        let mut spoke = connections.next().await.expect("it came").expect("it is one");
        tokio::io::AsyncWriteExt::write_u8(&mut their_end, 7).await.expect("it is open");
        assert_eq!(spoke.read_u8().await.expect("it was said"), 7);
        let waited = tokio::time::timeout(REQUEST_TIME_MAX * 10, spoke.read_u8()).await;
        assert!(waited.is_err(), "it was ended all the same");
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

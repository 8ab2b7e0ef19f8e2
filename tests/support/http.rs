//! A client for the Kubernetes API in JSON, over plain HTTP/1.1: `kubectl proxy` does the TLS.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::body::{Body, BodyDataStream, to_bytes};
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, client::conn::http1, rt};
use serde_json::Value;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};

/// The API server gives up on a request after 60 seconds, so its answer always comes before this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// A list of 10,000 small objects is about 4 MB.
const BODY_BYTES_MAX: usize = 256 << 20;

/// Where the API is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api {
    address: SocketAddr,
}

/// One connection, for one request after the other. One that the other side closed after an answer
/// is opened anew.
pub(crate) struct Connection {
    api: Api,
    sender: http1::SendRequest<Body>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

/// The events of a watch, one JSON document a line.
pub(crate) struct Lines {
    chunks: BodyDataStream,
    partial: Vec<u8>,
    whole: VecDeque<Vec<u8>>,
}

/// hyper's view of a TCP stream.
struct Wire(TcpStream);

// === impl Api ===

impl Api {
    pub(crate) fn at_port(port: u16) -> Self {
        Self { address: (Ipv4Addr::LOCALHOST, port).into() }
    }

    pub(crate) async fn connect(&self) -> Result<Connection> {
        Ok(Connection { api: *self, sender: self.open().await? })
    }

    /// One request on a connection of its own, whatever the answer's status.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        self.connect().await?.send(method, path, body).await
    }

    /// An answer that must be a success.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.send(Method::GET, path, None).await?.success(path)
    }

    pub(crate) async fn watch(&self, path: &str) -> Result<Lines> {
        let mut connection = self.connect().await?;
        let response =
            timeout(REQUEST_TIMEOUT, connection.start(Method::GET, path, None)).await??;
        let status = response.status();
        ensure!(status.is_success(), "GET {path}: {status}");
        let chunks = Body::new(response.into_body()).into_data_stream();
        Ok(Lines { chunks, partial: Vec::new(), whole: VecDeque::new() })
    }

    async fn open(&self) -> Result<http1::SendRequest<Body>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(Wire(stream)).await?;
        // It ends with the sender, and what breaks it is reported by the request in flight.
        tokio::spawn(connection);
        Ok(sender)
    }
}

// === impl Connection ===

impl Connection {
    /// Sends a request and reads the whole answer, whatever its status.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let exchange = async {
            let response = self.start(method, path, body).await?;
            let status = response.status();
            let bytes = to_bytes(Body::new(response.into_body()), BODY_BYTES_MAX).await?;
            // What is not JSON, such as the "ok" of a health check, is kept as a string.
            let body = serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
            anyhow::Ok(Answer { status, body })
        };
        timeout(REQUEST_TIMEOUT, exchange).await.with_context(|| format!("no answer: {path}"))?
    }

    async fn start(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>> {
        let content_type = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "127.0.0.1")
            .header(header::CONTENT_TYPE, content_type)
            .body(body.map_or_else(Body::empty, |value| Body::from(value.to_string())))?;
        if self.sender.ready().await.is_err() {
            self.sender = self.api.open().await?;
        }
        Ok(self.sender.send_request(request).await?)
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn success(self, what: &str) -> Result<Value> {
        ensure!(self.status.is_success(), "{what}: {} {}", self.status, self.body);
        Ok(self.body)
    }
}

// === impl Lines ===

impl Lines {
    /// The next event, or nothing when the server has ended the watch.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(line) = self.whole.pop_front() {
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let Some(chunk) = self.chunks.next().await else {
                return Ok(None);
            };
            for byte in chunk? {
                match byte {
                    b'\n' => self.whole.push_back(std::mem::take(&mut self.partial)),
                    _ => self.partial.push(byte),
                }
            }
        }
    }
}

// === impl Wire ===

impl rt::Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut space = [0; 16 << 10];
        let room = cursor.remaining().min(space.len());
        let mut buffer = ReadBuf::new(&mut space[..room]);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
        cursor.put_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl rt::Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

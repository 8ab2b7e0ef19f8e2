//! gRPC over the simulated network.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, Uri, server::Connected};
use tower::service_fn;
use turmoil::net::{TcpListener, TcpStream};

/// The port of every node.
pub(crate) const PORT: u16 = 2379;

/// A silent connection is given up after these, as the product does.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIME_MAX: Duration = Duration::from_millis(1_500);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// A connection that a server has taken.
#[derive(Debug)]
pub(crate) struct Accepted(TcpStream);

/// A connection to a node, made with the first call.
pub(crate) fn channel(host: &str) -> Channel {
    let address = format!("http://{host}:{PORT}");
    let endpoint = Endpoint::from_shared(address).expect("it is an address");
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIME_MAX)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIME_MAX)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector_lazy(service_fn(|uri: Uri| async move {
        let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(PORT));
        Ok::<_, io::Error>(TokioIo::new(TcpStream::connect((host, port)).await?))
    }))
}

/// What connects to this host.
pub(crate) async fn incoming() -> io::Result<impl Stream<Item = io::Result<Accepted>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    Ok(stream::try_unfold(listener, |listener| async move {
        let (stream, _) = listener.accept().await?;
        Ok(Some((Accepted(stream), listener)))
    }))
}

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
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

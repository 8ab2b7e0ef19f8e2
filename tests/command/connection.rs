//! Connections that are not what they seem: silent, half-open, garbage. The others don't notice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{
    self as pb, watch_client::WatchClient, watch_request::RequestUnion,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    call::{get, put},
    support::{node::Node, process::eventually},
};

/// The opening words of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SILENT: usize = 200;
/// What an answer may take beside all that.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

#[tokio::test]
async fn silent_and_half_open_connections_hold_up_nobody() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let mut held = Vec::new();
    for index in 0..SILENT {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port())).await?;
        match index % 4 {
            0 => {}
            1 => stream.write_all(&PREFACE[..10]).await?,
            2 => stream.write_all(PREFACE).await?,
            // It will never write again, but could still read.
            _ => stream.shutdown().await?,
        }
        held.push(stream);
    }
    let begin = Instant::now();
    put(&channel, "answered", "yes").await?;
    ensure!(begin.elapsed() < ANSWERED_WITHIN, "it took {:?}", begin.elapsed());
    let fresh = node.channel()?;
    put(&fresh, "answered", "yes").await?;
    drop(held);
    node.ensure_running()
}

/// Clients that take all open files there are end where a place is missing, are told of in the log, and leave the
/// stores what they need.
#[tokio::test]
async fn more_clients_than_open_files_are_let_go_and_stores_have_theirs() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node =
        Node::new(folder.path(), &[])?.with_routes(&["/a/", "/b/"])?.under("ulimit -n 256");
    let channel = node.start().await?;
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(TcpStream::connect(("127.0.0.1", node.port())).await?);
    }
    // Those behind the last place end, and are not left to wait.
    let last = held.last_mut().context("there are some")?;
    let ended = tokio::time::timeout(Duration::from_secs(10), last.read(&mut [0; 1])).await?;
    ensure!(ended.is_err() || ended.is_ok_and(|count| count == 0), "it has a place");
    for key in ["/a/1", "/b/1", "/c/1"] {
        put(&channel, key, vec![b'v'; 100_000]).await?;
        ensure!(get(&channel, key).await?.is_some(), "{key} is not there");
    }
    let log = node.log();
    for said in ["few clients can be connected at once", "connections were refused"] {
        ensure!(log.contains(said), "`{said}` is not in {log}");
    }
    drop(held);
    eventually("there are places again", Duration::from_secs(10), async || {
        Ok(put(&node.channel()?, "again", "yes").await?)
    })
    .await?;
    node.ensure_running()
}

/// Half the head of a request of HTTP/1, and half of HTTP/2's first words.
#[tokio::test]
async fn what_stops_before_it_is_a_request_is_not_waited_for_for_ever() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let mut held = Vec::new();
    for begun in [
        &b""[..],
        b"GET /health HT",
        b"GET /health HTTP/1.1\r\nHost: a\r\n",
        &PREFACE[..9],
        PREFACE,
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port())).await?;
        stream.write_all(begun).await?;
        held.push((begun, stream));
    }
    for (begun, mut stream) in held {
        let mut said = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(90), stream.read_to_end(&mut said));
        // A reset is as good an answer as an end.
        let _ = ended.await.with_context(|| format!("{:?} is left open", begun.escape_ascii()))?;
    }
    put(&channel, "alive", "yes").await?;
    node.ensure_running()
}

#[tokio::test]
async fn garbage_closes_its_connection_and_no_other() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    let huge_frame = [PREFACE, &[0xff; 64]].concat();
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        &[0; 4_096],
        b"GET\r\n\r\n",
        &huge_frame,
        b"quit\r\n\r\n",
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port())).await?;
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut said = Vec::new();
        let closed = stream.read_to_end(&mut said);
        // A reset is as good an answer as an end.
        let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
        let _ = closed.with_context(|| format!("{bytes:?} is left open"))?;
        put(&channel, "alive", "yes").await?;
    }
    ensure!(!node.log().contains("panicked"), "{}", node.log_tail());
    node.ensure_running()
}

#[tokio::test]
async fn a_stream_that_is_dropped_in_the_middle_takes_nothing_with_it() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    for _ in 0..100 {
        let create = pb::WatchCreateRequest { key: "a".into(), ..Default::default() };
        let request_union = Some(RequestUnion::CreateRequest(create));
        let sent = tokio_stream::StreamExt::chain(
            tokio_stream::iter([pb::WatchRequest { request_union }]),
            tokio_stream::pending(),
        );
        let own = node.channel()?;
        let mut watch = WatchClient::new(own).watch(sent).await?.into_inner();
        watch.message().await?.context("the stream ended")?;
    }
    put(&channel, "a", "1").await?;
    node.ensure_running()
}

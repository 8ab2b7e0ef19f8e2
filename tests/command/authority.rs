//! Clients that name no host as what they have reached: whole generations of gRPC's do.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use loona_hpack::{Decoder, Encoder};
use pleach::proto::etcdserverpb as pb;
use prost::Message as _;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::{
    call::put,
    support::{
        certificates::{authority, write_certificates},
        etcd::Etcd,
        node::Node,
        peers::free_port,
    },
    tls,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// What has been sent as `:authority`, by Go's client 3.5.0, of sockets, of targets that are paths, and a host.
const AUTHORITIES: [&str; 7] = [
    "#initially=[127.0.0.1:2379;127.0.0.1:22379]",
    "%2Frun%2Fetcd%2Fetcd.sock/",
    "/run/etcd/etcd.sock",
    "a/b/c",
    "",
    "etcd-endpoints://0xc000123456/10.0.0.1:2379",
    "127.0.0.1:2379",
];

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let [_, length @ ..] = u32::try_from(payload.len())?.to_be_bytes();
    Ok([&length[..], &[kind, flags, 0, 0, 0, stream], payload].concat())
}

/// A get of `key`, as a client sends it that calls its server so.
fn get(encoder: &mut Encoder<'_>, stream: u8, authority: &str, key: &str) -> Result<Vec<u8>> {
    let headers: [(&[u8], &[u8]); 6] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/etcdserverpb.KV/Range"),
        (b":authority", authority.as_bytes()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ];
    let message = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len())?.to_be_bytes();
    let body = [&[0][..], &length, &message].concat();
    let headers = frame(HEADERS, END_HEADERS, stream, &encoder.encode(headers))?;
    Ok([headers, frame(DATA, END_STREAM, stream, &body)?].concat())
}

/// Reads up to the end of a stream: its message, and its status.
async fn answer(
    connection: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder<'_>,
) -> Result<(pb::RangeResponse, Vec<u8>)> {
    let (mut body, mut status) = (Vec::new(), None);
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length)?];
        connection.read_exact(&mut payload).await?;
        match head[3] {
            DATA => body.extend(payload),
            HEADERS => {
                let headers = decoder.decode(&payload)?;
                let found = headers.into_iter().find(|(name, _)| name == b"grpc-status");
                status = status.or(found.map(|(_, value)| value));
            }
            RST_STREAM | GOAWAY => bail!("frame {}: {payload:?}", head[3]),
            _ => {}
        }
        if matches!(head[3], DATA | HEADERS) && head[4] & END_STREAM != 0 {
            let message = body.get(5..).context("no message")?;
            return Ok((pb::RangeResponse::decode(message)?, status.context("no status")?));
        }
    }
}

/// Three gets on one connection: what was said at first stands for itself later.
async fn ask(mut connection: impl AsyncRead + AsyncWrite + Unpin, authority: &str) -> Result<()> {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    connection.write_all(PREFACE).await?;
    connection.write_all(&frame(SETTINGS, 0, 0, &[])?).await?;
    for stream in [1, 3, 5] {
        connection.write_all(&get(&mut encoder, stream, authority, "key")?).await?;
        connection.flush().await?;
        let (range, status) = answer(&mut connection, &mut decoder).await?;
        let found = range.kvs.first().map(|kv| kv.value.as_ref());
        ensure!(found == Some(b"value") && status == b"0", "{range:?}, status {status:?}");
    }
    Ok(())
}

async fn ask_all(address: &str) -> Result<()> {
    for authority in AUTHORITIES {
        let asking = ask(TcpStream::connect(address).await?, authority);
        let asked = tokio::time::timeout(ANSWERS_WITHIN, asking).await;
        let asked = asked.with_context(|| format!("no answer for `{authority}`"))?;
        asked.with_context(|| format!("`{authority}`"))?;
    }
    Ok(())
}

#[tokio::test]
async fn an_etcd_does_not_look_at_what_it_is_called() -> Result<()> {
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let url = etcd.url();
    let channel = Endpoint::from_shared(url.clone())?.connect_lazy();
    put(&channel, "key", "value").await?;
    ask_all(url.strip_prefix("http://").context("no URL")?).await
}

#[tokio::test]
async fn nor_does_a_node() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    put(&channel, "key", "value").await?;
    ask_all(&format!("127.0.0.1:{}", node.port())).await
}

#[tokio::test]
async fn nor_does_it_over_tls() -> Result<()> {
    let folder = TempDir::new()?;
    let port = free_port()?;
    write_certificates(folder.path(), &authority()?)?;
    let _node = tls::start(folder.path(), port, &[])?;
    let channel = tls::ready(folder.path(), port, None).await?;
    put(&channel, "key", "value").await?;
    let connector = TlsConnector::from(client_config(folder.path())?);
    for authority in AUTHORITIES {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
        let asked = tokio::time::timeout(ANSWERS_WITHIN, ask(stream, authority)).await;
        asked.with_context(|| format!("no answer for `{authority}`"))??;
    }
    Ok(())
}

fn client_config(folder: &Path) -> Result<Arc<ClientConfig>> {
    let mut known = RootCertStore::empty();
    known.add(CertificateDer::from_pem_slice(&fs::read(folder.join("ca.pem"))?)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(known).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

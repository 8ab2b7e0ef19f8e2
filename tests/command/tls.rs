//! TLS and mutual TLS, with certificates that are made here.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::{Request, StatusCode};
use pleach::proto::etcdserverpb::{self as pb, kv_client::KvClient};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tower::{Service as _, ServiceExt as _};

use crate::{
    call::{put, run},
    support::{
        certificates::{authority, certificate, write_certificates},
        peers::{free_port, peer},
        process::{Process, eventually},
    },
};

fn start(folder: &Path, port: u16, more: &[&str]) -> Result<Process> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut arguments = vec![
        "serve".to_owned(),
        format!("--listen-client-urls=https://127.0.0.1:{port}"),
        format!("--data-dir={}", file("data")),
        format!("--cert-file={}", file("localhost.pem")),
        format!("--key-file={}", file("localhost.key")),
    ];
    let absolute = |flag: &&str| flag.replace("=ca.pem", &format!("={}", file("ca.pem")));
    arguments.extend(more.iter().map(absolute));
    Process::start("pleach", Path::new(env!("CARGO_BIN_EXE_pleach")), folder, &arguments)
}

/// What has clients show a certificate of the authority.
const MUTUAL: [&str; 2] = ["--trusted-ca-file=ca.pem", "--client-cert-auth"];

/// A connection that trusts the authority, with a certificate of its own or without.
async fn connect(folder: &Path, port: u16, identity: Option<Identity>) -> Result<Channel> {
    let authority = Certificate::from_pem(fs::read(folder.join("ca.pem"))?);
    let mut tls = ClientTlsConfig::new().ca_certificate(authority);
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?.tls_config(tls)?;
    let channel = endpoint.connect().await?;
    // Under TLS 1.3 a client learns that it is refused from its first answer.
    KvClient::new(channel.clone())
        .range(pb::RangeRequest { key: "k".into(), ..Default::default() })
        .await?;
    Ok(channel)
}

fn identity(folder: &Path, name: &str) -> Result<Identity> {
    let read = |ending| fs::read(folder.join(format!("{name}.{ending}")));
    Ok(Identity::from_pem(read("pem")?, read("key")?))
}

async fn ready(folder: &Path, port: u16, identity: Option<&Identity>) -> Result<Channel> {
    eventually("the node answers over TLS", Duration::from_secs(10), async || {
        connect(folder, port, identity.cloned()).await
    })
    .await
}

#[tokio::test]
async fn clients_that_trust_the_authority_are_served_over_tls_and_plain_ones_are_not() -> Result<()>
{
    let folder = TempDir::new()?;
    let port = free_port()?;
    write_certificates(folder.path(), &authority()?)?;
    let _node = start(folder.path(), port, &[])?;
    let mut channel = ready(folder.path(), port, None).await?;
    put(&channel, "key", "value").await?;

    let health = Request::get("/health").body(tonic::body::Body::empty())?;
    let answer = channel.ready().await?.call(health).await?;
    ensure!(answer.status() == StatusCode::OK, "https health: {}", answer.status());

    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.connect_lazy();
    ensure!(put(&plain, "key", "plain").await.is_err(), "a plain client was served");
    let strange = authority()?;
    fs::write(folder.path().join("ca.pem"), strange.pem())?;
    let trusted = connect(folder.path(), port, None).await;
    ensure!(trusted.is_err(), "a client that trusts another authority was served");
    Ok(())
}

#[tokio::test]
async fn clients_are_asked_for_certificates_as_by_etcd() -> Result<()> {
    // Whatever is said besides: as soon as there is an authority, etcd asks for its certificates.
    for (flags, is_mutual) in [
        (&[][..], false),
        (&["--client-cert-auth=false"], false),
        (&["--trusted-ca-file=ca.pem"], true),
        (&["--trusted-ca-file=ca.pem", "--client-cert-auth=false"], true),
        (&MUTUAL, true),
    ] {
        let folder = TempDir::new()?;
        let port = free_port()?;
        write_certificates(folder.path(), &authority()?)?;
        let mut node = start(folder.path(), port, flags)?;
        let own = identity(folder.path(), "client")?;
        let channel = ready(folder.path(), port, Some(&own)).await?;
        put(&channel, "key", "value").await?;

        let without = connect(folder.path(), port, None).await;
        ensure!(without.is_err() == is_mutual, "{flags:?}: without a certificate: {without:?}");
        let (certificate, key) = certificate(&authority()?, "client")?;
        let stranger = Identity::from_pem(certificate, key);
        let stranger = connect(folder.path(), port, Some(stranger)).await;
        ensure!(stranger.is_err() == is_mutual, "{flags:?}: of another authority: {stranger:?}");
        put(&channel, "key", "still").await?;
        node.ensure_running()?;
    }
    Ok(())
}

#[tokio::test]
async fn etcdctl_talks_mutual_tls() -> Result<()> {
    let folder = TempDir::new()?;
    let port = free_port()?;
    write_certificates(folder.path(), &authority()?)?;
    let _node =
        start(folder.path(), port, &["--trusted-ca-file=ca.pem", "--client-cert-auth=true"])?;
    let own = identity(folder.path(), "client")?;
    ready(folder.path(), port, Some(&own)).await?;
    let endpoint = format!("--endpoints=https://127.0.0.1:{port}");
    let flags = [&endpoint, "--cacert=ca.pem", "--cert=client.pem", "--key=client.key"];
    let etcdctl = peer("etcdctl")?;
    let arguments = [&flags[..], &["endpoint", "health"]].concat();
    let ended = run(&etcdctl, folder.path(), &arguments).await?;
    let said = format!("{}{}", ended.stdout, ended.stderr);
    ensure!(ended.is_success && said.contains("is healthy"), "{said}");
    let ended = run(&etcdctl, folder.path(), &[flags[0], flags[1], "get", "key"]).await;
    ensure!(!ended.context("etcdctl")?.is_success, "etcdctl without a certificate was admitted");
    Ok(())
}

#[tokio::test]
async fn a_client_that_never_agrees_on_tls_is_not_waited_for() -> Result<()> {
    let folder = TempDir::new()?;
    let port = free_port()?;
    write_certificates(folder.path(), &authority()?)?;
    let _node = start(folder.path(), port, &[])?;
    ready(folder.path(), port, None).await?;
    let mut silent = TcpStream::connect(("127.0.0.1", port)).await?;
    let closed = timeout(Duration::from_secs(60), silent.read(&mut [0])).await;
    ensure!(closed.context("the node waits")?.is_ok_and(|bytes| bytes == 0), "something was said");
    Ok(())
}

#[tokio::test]
async fn certificates_that_are_none_are_refused_at_the_start() -> Result<()> {
    let folder = TempDir::new()?;
    write_certificates(folder.path(), &authority()?)?;
    fs::write(folder.path().join("bad.pem"), "not a certificate")?;
    let url = "--listen-client-urls=https://127.0.0.1:0";
    for (certificate, key, authority, said) in [
        ("bad.pem", "localhost.key", "ca.pem", "--cert-file bad.pem: it holds no certificate"),
        ("missing.pem", "localhost.key", "ca.pem", "--cert-file missing.pem: "),
        ("localhost.pem", "bad.pem", "ca.pem", "--key-file bad.pem: it holds no private key"),
        ("localhost.pem", "client.key", "ca.pem", "--key-file client.key: it is not the key of"),
        ("localhost.pem", "localhost.key", "bad.pem", "--trusted-ca-file bad.pem: it holds no"),
    ] {
        let flags = [
            format!("--cert-file={certificate}"),
            format!("--key-file={key}"),
            format!("--trusted-ca-file={authority}"),
        ];
        let arguments = ["serve", url, &flags[0], &flags[1], &flags[2]];
        let ended = crate::call::pleach(folder.path(), &arguments).await?;
        let (found, is_early) = (&ended.stderr, !ended.stderr.contains("serving"));
        ensure!(!ended.is_success && found.contains(said) && is_early, "{said}: {found}");
        ensure!(!folder.path().join("pleach-data").exists(), "{said}: a store was made");
    }
    for flag in ["--trusted-ca-file=ca.pem", "--client-cert-auth"] {
        let ended = crate::call::pleach(folder.path(), &["serve", flag]).await?;
        let found = &ended.stderr;
        ensure!(!ended.is_success && found.contains("needs --cert-file"), "{flag}: {found}");
    }
    Ok(())
}

//! TLS and mutual TLS, with certificates that are made here.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

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

pub(crate) fn start(folder: &Path, port: u16, more: &[&str]) -> Result<Process> {
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

pub(crate) async fn ready(
    folder: &Path,
    port: u16,
    identity: Option<&Identity>,
) -> Result<Channel> {
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

/// Who is admitted: one with a certificate of the authority, one without, one of another authority, and one that
/// speaks no TLS.
#[derive(Debug, PartialEq, Eq)]
struct Admitted {
    own: bool,
    without: bool,
    stranger: bool,
    plain: bool,
}

async fn admitted(folder: &Path, port: u16) -> Result<Admitted> {
    let own = connect(folder, port, Some(identity(folder, "client")?)).await;
    let without = connect(folder, port, None).await;
    let (certificate, key) = certificate(&authority()?, "client")?;
    let stranger = connect(folder, port, Some(Identity::from_pem(certificate, key))).await;
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.connect_lazy();
    let plain = KvClient::new(plain)
        .range(pb::RangeRequest { key: "k".into(), ..Default::default() })
        .await;
    Ok(Admitted {
        own: own.is_ok(),
        without: without.is_ok(),
        stranger: stranger.is_ok(),
        plain: plain.is_ok(),
    })
}

/// Waits until a server admits or refuses, and has it tell whom.
async fn settled(folder: &Path, port: u16) -> Result<Admitted> {
    let listens = async || Ok(TcpStream::connect(("127.0.0.1", port)).await?);
    eventually("it listens", Duration::from_secs(60), listens).await?;
    let serves = async || {
        let found = admitted(folder, port).await?;
        ensure!(found.own, "it admits nobody: {found:?}");
        Ok(found)
    };
    // Where nobody is admitted, that is what there is to tell.
    match eventually("it serves", Duration::from_secs(10), serves).await {
        Ok(found) => Ok(found),
        Err(_) => admitted(folder, port).await,
    }
}

/// Each of etcd's flags of TLS, as etcd takes it.
#[tokio::test]
async fn who_is_admitted_is_who_an_etcd_admits() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    write_certificates(folder, &authority()?)?;
    let file = |name: &str| folder.join(name).display().to_string();
    let ca = format!("--trusted-ca-file={}", file("ca.pem"));
    let with_ca = "--trusted-ca-file=ca.pem";
    for (at, flags) in [
        &[][..],
        &["--client-cert-auth=false"],
        &[with_ca],
        &[with_ca, "--client-cert-auth=false"],
        &[with_ca, "--client-cert-auth"],
        &[with_ca, "--client-cert-auth=true"],
    ]
    .into_iter()
    .enumerate()
    {
        let (etcd_port, peer_port, port) = (free_port()?, free_port()?, free_port()?);
        let etcd_url = format!("https://127.0.0.1:{etcd_port}");
        let mut arguments = vec![
            format!("--data-dir={}", file(&format!("etcd-{at}"))),
            format!("--listen-client-urls={etcd_url}"),
            format!("--advertise-client-urls={etcd_url}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
            "--unsafe-no-fsync".to_owned(),
            format!("--cert-file={}", file("localhost.pem")),
            format!("--key-file={}", file("localhost.key")),
        ];
        arguments.extend(flags.iter().map(|flag| flag.replace(with_ca, &ca)));
        let _etcd = Process::start("etcd", &peer("etcd")?, folder, &arguments)?;
        let mut node = start(folder, port, flags)?;
        let (of_etcd, of_node) = (settled(folder, etcd_port).await?, settled(folder, port).await?);
        ensure!(of_etcd == of_node, "{flags:?}: etcd {of_etcd:?}, a node {of_node:?}");
        ensure!(of_node.own && !of_node.plain, "{flags:?}: {of_node:?}");
        ensure!(of_node.without != flags.contains(&with_ca), "{flags:?}: {of_node:?}");
        node.ensure_running()?;
    }
    Ok(())
}

/// A client that is not admitted learns little; whoever reads the log learns why.
#[tokio::test]
async fn why_a_client_is_not_admitted_is_in_the_log() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let port = free_port()?;
    let own = authority()?;
    write_certificates(folder, &own)?;
    let node = start(folder, port, &[MUTUAL[0]])?;
    ready(folder, port, Some(&identity(folder, "client")?)).await?;
    ensure!(connect(folder, port, None).await.is_err(), "it was admitted without a certificate");
    is_said(&node, "it has shown no certificate").await?;
    let (stranger, key) = certificate(&authority()?, "client")?;
    let stranger = connect(folder, port, Some(Identity::from_pem(stranger, key))).await;
    ensure!(stranger.is_err(), "it was admitted with a certificate of another authority");
    is_said(&node, "not of an authority").await?;

    // As home-made authorities make them: of version 1, and with a key on the largest curve.
    fs::write(folder.join("own.pem"), own.pem())?;
    fs::write(folder.join("own.key"), own.key().serialize_pem())?;
    for (name, curve, is_v1) in [("v1", "prime256v1", true), ("p521", "secp521r1", false)] {
        made_by_openssl(folder, name, curve, is_v1)?;
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        // Clients of the same library as the node would not load these, and the same is said but once in a while.
        let port = free_port()?;
        let own_folder = folder.join(name);
        fs::create_dir(&own_folder)?;
        write_certificates(&own_folder, &own)?;
        let node = start(&own_folder, port, &[MUTUAL[0]])?;
        ready(folder, port, Some(&identity(folder, "client")?)).await?;
        let connect = format!("s_client -connect 127.0.0.1:{port} -cert {certificate} -key {key}");
        openssl(folder, &format!("{connect} -CAfile ca.pem -alpn h2"))?;
        let said = if is_v1 { "X.509 version 3" } else { "no certificate with a key of RSA" };
        is_said(&node, said).await?;
        // For itself a node takes none, and says so at the start, by the file.
        let flags = [format!("--cert-file={certificate}"), format!("--key-file={key}")];
        let arguments = ["serve", "--listen-client-urls=https://127.0.0.1:0", &flags[0], &flags[1]];
        let ended = crate::call::pleach(folder, &arguments).await?;
        let said = &ended.stderr;
        let names = said.contains(&certificate) || said.contains(&key);
        ensure!(!ended.is_success && names && said.contains("P-384"), "{name}: {said}");
    }
    Ok(())
}

/// Whoever renews certificates does not start nodes: new connections are made with what the files have now.
#[tokio::test]
async fn certificates_that_are_renewed_are_taken_and_broken_ones_are_not() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let port = free_port()?;
    write_certificates(folder, &authority()?)?;
    let mut node = start(folder, port, &[MUTUAL[0]])?;
    let before = ready(folder, port, Some(&identity(folder, "client")?)).await?;

    // Another authority, and certificates of it.
    write_certificates(folder, &authority()?)?;
    let after = ready(folder, port, Some(&identity(folder, "client")?)).await?;
    for channel in [&before, &after] {
        put(channel, "key", "value").await?;
    }
    ensure!(node.output()?.contains("certificates were read anew"), "{}", node.output()?);

    fs::write(folder.join("localhost.pem"), "half of it")?;
    let still = ready(folder, port, Some(&identity(folder, "client")?)).await?;
    put(&still, "key", "value").await?;
    let log = node.output()?;
    ensure!(log.contains("the old ones go on") && log.contains("localhost.pem"), "{log}");
    node.ensure_running()
}

/// An authority that nobody could be admitted by is named at the start, and one that shows its own certificate told.
#[tokio::test]
async fn authorities_that_admit_nobody_are_named() -> Result<()> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let own = authority()?;
    write_certificates(folder, &own)?;
    openssl_ok(folder, "ecparam -name secp521r1 -genkey -noout -out p521.key")?;
    openssl_ok(folder, "req -x509 -new -key p521.key -subj /CN=p521 -days 2 -out p521.pem")?;
    let both = [fs::read(folder.join("ca.pem"))?, fs::read(folder.join("p521.pem"))?].concat();
    fs::write(folder.join("both.pem"), both)?;
    let rsa =
        "req -x509 -newkey rsa:1024 -nodes -keyout rsa.key -subj /CN=rsa -days 2 -out rsa.pem";
    openssl_ok(folder, rsa)?;
    for (file, at) in
        [("p521.pem", "certificate 1"), ("both.pem", "certificate 2"), ("rsa.pem", "certificate 1")]
    {
        let flags = ["--cert-file=localhost.pem", "--key-file=localhost.key"];
        let authority = format!("--trusted-ca-file={file}");
        let url = "--listen-client-urls=https://127.0.0.1:0";
        let ended =
            crate::call::pleach(folder, &["serve", url, flags[0], flags[1], &authority]).await?;
        let said = &ended.stderr;
        let is_named = said.contains(&format!("--trusted-ca-file {file}: {at} in it has a key"));
        ensure!(!ended.is_success && is_named, "{said}");
    }

    openssl_ok(folder, "ecparam -name prime256v1 -genkey -noout -out self.sec1")?;
    openssl_ok(folder, "pkcs8 -topk8 -nocrypt -in self.sec1 -out self.key")?;
    openssl_ok(folder, "req -x509 -new -key self.key -subj /CN=self -days 2 -out ca2.pem")?;
    let server_ca = fs::read(folder.join("ca.pem"))?;
    let port = free_port()?;
    let node_folder = folder.join("node");
    fs::create_dir(&node_folder)?;
    write_certificates(&node_folder, &own)?;
    let both = [server_ca, fs::read(folder.join("ca2.pem"))?].concat();
    fs::write(node_folder.join("ca.pem"), both)?;
    let node = start(&node_folder, port, &[MUTUAL[0]])?;
    ready(&node_folder, port, Some(&identity(&node_folder, "client")?)).await?;
    let connect = format!("s_client -connect 127.0.0.1:{port} -cert ca2.pem -key self.key");
    openssl(folder, &format!("{connect} -CAfile ca.pem -alpn h2"))?;
    is_said(&node, "an authority's own").await
}

fn openssl_ok(folder: &Path, arguments: &str) -> Result<()> {
    let done = openssl(folder, arguments)?;
    ensure!(done.status.success(), "openssl {arguments}: {done:?}");
    Ok(())
}

async fn is_said(node: &Process, said: &str) -> Result<()> {
    eventually("it is said", Duration::from_secs(10), async || {
        let log = node.output()?;
        ensure!(log.contains("no TLS with a client") && log.contains(said), "{said}: {log}");
        Ok(())
    })
    .await
}

fn openssl(folder: &Path, arguments: &str) -> Result<Output> {
    let mut command = std::process::Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(folder).stdin(Stdio::null());
    command.output().context("openssl is not installed")
}

/// A certificate of the authority in `own.pem`.
fn made_by_openssl(folder: &Path, name: &str, curve: &str, is_v1: bool) -> Result<()> {
    let openssl = |arguments: &str| openssl_ok(folder, arguments);
    openssl(&format!("ecparam -name {curve} -genkey -noout -out {name}.sec1"))?;
    openssl(&format!("pkcs8 -topk8 -nocrypt -in {name}.sec1 -out {name}.key"))?;
    openssl(&format!("req -new -key {name}.key -subj /CN=localhost -out {name}.csr"))?;
    fs::write(folder.join("names.ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n")?;
    // Without extensions it is of version 1.
    let extensions = if is_v1 { "" } else { " -extfile names.ext" };
    openssl(&format!(
        "x509 -req -in {name}.csr -CA own.pem -CAkey own.key -CAcreateserial -days 2 -out {name}.pem{extensions}"
    ))
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

//! Routes over TLS and mutual TLS.

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    ONE_AT_A_TIME,
    call::{ensure_away, get, put},
    family::{node, whole},
    route::{Route, topology},
    support::{
        certificates::{authority, write_certificates},
        peers::free_port,
        process::Process,
    },
    watch::Watch,
};

/// What a child asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Nothing,
    ACertificate,
}

/// A child that is served over TLS only, with the certificates in its folder.
fn child(folder: &TempDir, port: u16, asks: Asks) -> Result<Process> {
    let file = |name: &str| folder.path().join(name).display().to_string();
    let mut arguments = vec![
        "serve".to_owned(),
        "--name=child".to_owned(),
        format!("--listen-client-urls=https://127.0.0.1:{port}"),
        format!("--data-dir={}", file("child-data")),
        format!("--cert-file={}", file("localhost.pem")),
        format!("--key-file={}", file("localhost.key")),
        format!("--trusted-ca-file={}", file("ca.pem")),
    ];
    if asks == Asks::ACertificate {
        arguments.push("--client-cert-auth".to_owned());
    }
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_pleach"));
    Process::start("child", program, folder.path(), &arguments)
}

async fn ensure_served(root: &Channel) -> Result<()> {
    whole(root).await.context("the child over TLS")?;
    let first = put(root, "/x/k", "over TLS").await?;
    let mut watch = Watch::open(root, "/x/", "/x0", first).await?;
    watch.reach(put(root, "/x/k", "again").await?).await?;
    anyhow::ensure!(watch.keys() == ["/x/k"; 2], "{:?}", watch.keys());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_over_tls_trusts_its_authority_and_shows_its_certificate() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    for asks in [Asks::Nothing, Asks::ACertificate] {
        let folder = TempDir::new()?;
        let strange = TempDir::new()?;
        write_certificates(folder.path(), &authority()?)?;
        write_certificates(strange.path(), &authority()?)?;
        let port = free_port()?;
        let _child = child(&folder, port, asks)?;
        let file = |folder: &TempDir, name: &str| folder.path().join(name).display().to_string();
        let trusted = ("caFile", file(&folder, "ca.pem"));
        let own = |folder: &TempDir| {
            let name = |ending: &str| file(folder, &format!("client.{ending}"));
            [("certFile", name("pem")), ("keyFile", name("key"))]
        };
        let url = format!("https://127.0.0.1:{port}");
        let route = |files: &[(&str, String)]| Route::new("child", "/x", &*url).with_tls(files);
        let with = |folder: &TempDir| [std::slice::from_ref(&trusted), &own(folder)[..]].concat();

        let mut root = node(folder.path(), "root", &[])?;
        root.set_topology(&topology(&[route(&with(&folder))]))?;
        ensure_served(&root.start().await?).await.with_context(|| format!("{asks:?}"))?;

        let any = [&[("skipVerify", "true".to_owned())], &own(&folder)[..]].concat();
        root.kill()?;
        root.set_topology(&topology(&[route(&any)]))?;
        ensure_served(&root.start().await?).await.with_context(|| format!("anybody, {asks:?}"))?;

        let mut refused = vec![
            ("without TLS", Route::new("child", "/x", format!("http://127.0.0.1:{port}"))),
            ("of another authority", route(&[("caFile", file(&strange, "ca.pem"))])),
        ];
        if asks == Asks::ACertificate {
            refused.push(("without a certificate", route(std::slice::from_ref(&trusted))));
            refused.push(("with a stranger's certificate", route(&with(&strange))));
        }
        for (how, route) in refused {
            root.kill()?;
            root.set_topology(&topology(&[route]))?;
            let channel = root.start().await.context(how)?;
            ensure_away(get(&channel, "/x/k").await, "child").context(how)?;
        }
    }
    Ok(())
}

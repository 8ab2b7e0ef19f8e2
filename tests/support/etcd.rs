//! Real etcds to be stores: alone or as a cluster, with users or TLS.

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use etcd_client::{Certificate, Client, ConnectOptions, TlsOptions};

use super::{
    certificates,
    daemon::Daemon,
    peers::{free_port, peer},
    process::eventually,
};

/// The user that may do everything, once `enable_auth` was called.
pub(crate) const USER: &str = "root";
pub(crate) const PASSWORD: &str = "the-password-of-root";
/// A single etcd elects itself after a second; the rest is for a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// One etcd, or one member of a cluster, that can be stopped, and started again on the same ports
/// and data. It is killed and its data deleted when it is dropped, and at the latest when the test
/// process ends.
#[derive(Debug)]
pub(crate) struct Etcd {
    daemon: Daemon,
    program: PathBuf,
    name: String,
    port: u16,
    peer_url: String,
    /// All members, as etcd's own flag takes them.
    members: String,
    flags: Vec<String>,
    authority: Option<String>,
    has_auth: bool,
}

// === impl Etcd ===

impl Etcd {
    /// An etcd of its own. Nothing runs yet.
    pub(crate) fn new() -> Result<Self> {
        let mut members = Self::cluster(1)?;
        members.pop().context("a cluster of one has one member")
    }

    /// One that elects itself at once, and keeps nothing over a crash of the machine.
    pub(crate) fn hasty() -> Result<Self> {
        let etcd = Self::new()?.with_flag("--heartbeat-interval=10");
        Ok(etcd.with_flag("--election-timeout=100").with_flag("--unsafe-no-fsync"))
    }

    /// The members of one cluster. They answer once most of them run: start them all by `spawn`,
    /// then wait with `ready`.
    pub(crate) fn cluster(count: usize) -> Result<Vec<Self>> {
        let program = peer("etcd")?;
        let mut etcds = Vec::new();
        for index in 0..count {
            etcds.push(Self {
                daemon: Daemon::new_in(&env::temp_dir(), "etcd", None)?,
                program: program.clone(),
                name: format!("member-{index}"),
                port: free_port()?,
                peer_url: format!("http://127.0.0.1:{}", free_port()?),
                members: String::new(),
                flags: Vec::new(),
                authority: None,
                has_auth: false,
            });
        }
        let members: Vec<_> =
            etcds.iter().map(|etcd| format!("{}={}", etcd.name, etcd.peer_url)).collect();
        for etcd in &mut etcds {
            etcd.members = members.join(",");
        }
        Ok(etcds)
    }

    /// Runs another etcd than that of `tests/peers`, such as an older release.
    pub(crate) fn with_program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// One of etcd's own flags. A start after this has it.
    pub(crate) fn with_flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Takes clients only over TLS, with a certificate for 127.0.0.1 and `localhost`.
    pub(crate) fn with_tls(mut self) -> Result<Self> {
        let authority = certificates::authority()?;
        let (certificate, key) = certificates::certificate(&authority, "localhost")?;
        self.daemon.write_private("ca.pem", &authority.pem())?;
        self.daemon.write_private("server.pem", &certificate)?;
        self.daemon.write_private("server.key", &key)?;
        self.flags.push(format!("--cert-file={}", self.daemon.file("server.pem")));
        self.flags.push(format!("--key-file={}", self.daemon.file("server.key")));
        self.authority = Some(authority.pem());
        Ok(self)
    }

    /// Starts it, and waits until it answers.
    pub(crate) async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Starts it and does not wait.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let (url, peer_url) = (self.url(), &self.peer_url);
        let mut etcd = self.daemon.command(&self.program);
        etcd.arg(format!("--name={}", self.name)).arg("--data-dir=data");
        etcd.arg(format!("--listen-client-urls={url}"));
        etcd.arg(format!("--advertise-client-urls={url}"));
        etcd.arg(format!("--listen-peer-urls={peer_url}"));
        etcd.arg(format!("--initial-advertise-peer-urls={peer_url}"));
        etcd.arg(format!("--initial-cluster={}", self.members)).args(&self.flags);
        self.daemon.spawn(etcd)
    }

    /// Waits until it answers a read.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        eventually("etcd answers", READY_WITHIN, async || {
            self.daemon.ensure_running()?;
            self.client().await?.get("ready", None).await?;
            Ok(())
        })
        .await
        .with_context(|| self.daemon.log_tail())
    }

    /// From now on it takes nobody without a password. `client()` has that of `USER`. For a
    /// cluster, it is enough to ask one member; the others are told by `knows_auth`.
    pub(crate) async fn enable_auth(&mut self) -> Result<()> {
        let mut client = self.client().await?;
        client.user_add(USER, PASSWORD, None).await?;
        client.role_add("root").await?;
        client.user_grant_role(USER, "root").await?;
        client.auth_enable().await?;
        self.knows_auth();
        Ok(())
    }

    /// `client()` logs in, since another member enabled it.
    pub(crate) fn knows_auth(&mut self) {
        self.has_auth = true;
    }

    /// A new connection, for what a test does to it behind the store's back.
    pub(crate) async fn client(&self) -> Result<Client> {
        let mut options = ConnectOptions::new();
        if let Some(authority) = &self.authority {
            let authority = Certificate::from_pem(authority);
            options = options.with_tls(TlsOptions::new().ca_certificate(authority));
        }
        if self.has_auth {
            options = options.with_user(USER, PASSWORD);
        }
        Ok(Client::connect([self.url()], Some(options)).await?)
    }

    /// SIGKILL. It is gone when this returns, and `start` brings it back.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.daemon.kill().await
    }

    /// SIGTERM, and waits until it has ended.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.daemon.stop("TERM").await.map(drop)
    }

    /// SIGSTOP: connections stay open, and nothing answers.
    pub(crate) fn pause(&self) -> Result<()> {
        self.daemon.pause()
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.daemon.resume()
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        self.daemon.ensure_running()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The data of all its lives. To copy them while it is stopped, and to put the copy back later,
    /// is what a restore from an old snapshot does.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.daemon.folder().join("data")
    }

    /// The file with the authority that signed the certificate of an etcd with TLS.
    pub(crate) fn authority(&self) -> String {
        self.daemon.file("ca.pem")
    }

    pub(crate) fn log_tail(&self) -> String {
        self.daemon.log_tail()
    }
}

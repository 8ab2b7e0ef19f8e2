//! The etcd server under test: real etcd, which is the reference, a Pleach node, or the root of a tree.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    databases::{self, DatabaseServer},
    etcd::Etcd,
    node::Node,
    peers::{free_port, peer},
    process::{Process, Signal, eventually},
    tree::Tree,
};

/// The name of each route's database.
pub(crate) const DATABASE: &str = "kubernetes";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    Etcd,
    /// A node with one embedded store.
    LoneNode,
    /// A node whose routes send pods of a namespace, leases and widgets to stores of their own.
    FourStores,
    /// The same, with the pods in PostgreSQL, the leases in MariaDB, and what else a second namespace
    /// has in a plain etcd.
    MixedStores,
    /// The root of a [`Tree`].
    Tree,
    /// Whatever serves there already, which is somebody else's.
    Borrowed,
}

/// A server that can be stopped, and started again on the same port and data.
pub(crate) struct Server {
    flavour: Flavour,
    folder: PathBuf,
    client_url: String,
    peer_url: String,
    process: Option<Process>,
    behind: Vec<Behind>,
    tree: Option<Tree>,
}

/// What has the keys of a route.
pub(crate) enum Behind {
    Database(DatabaseServer),
    Etcd(Etcd),
}

/// A child whose keys only are refused while it is away.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Child {
    RegionA,
    TenantA,
}

// === impl Flavour ===

impl Flavour {
    /// `PLEACH_TEST_SERVER=etcd` tells the story to real etcd, which proves the story itself.
    pub(crate) fn etcd_is_asked_for() -> bool {
        env::var("PLEACH_TEST_SERVER").is_ok_and(|server| server == "etcd")
    }
}

// === impl Server ===

impl Server {
    /// Chooses ports and writes what the server needs into the folder. Nothing runs yet.
    pub(crate) fn new(flavour: Flavour, folder: &Path) -> Result<Self> {
        if flavour == Flavour::FourStores {
            let file = |name: &str| format!("sqlite://{}/{name}.db", folder.display());
            write_topology(folder, &file("pods"), &file("leases"), None)?;
        }
        let client_url = format!("http://127.0.0.1:{}", free_port()?);
        Ok(Self { flavour, client_url, ..Self::borrowed("", folder)? })
    }

    /// The server of that URL, which somebody else has started.
    pub(crate) fn borrowed(client_url: &str, folder: &Path) -> Result<Self> {
        Ok(Self {
            flavour: Flavour::Borrowed,
            folder: folder.to_owned(),
            client_url: client_url.to_owned(),
            peer_url: format!("http://127.0.0.1:{}", free_port()?),
            process: None,
            behind: Vec::new(),
            tree: None,
        })
    }

    pub(crate) fn flavour(&self) -> Flavour {
        self.flavour
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.client_url
    }

    /// Starts the process and waits until it answers a read.
    pub(crate) async fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the server runs already");
        let process = match self.flavour {
            Flavour::Etcd => self.start_etcd()?,
            Flavour::LoneNode | Flavour::FourStores => self.start_pleach()?,
            Flavour::MixedStores => {
                self.start_behind().await?;
                self.start_pleach()?
            }
            Flavour::Tree => {
                self.start_tree().await?;
                self.start_pleach()?
            }
            Flavour::Borrowed => return Ok(()),
        };
        let process = self.process.insert(process);
        let endpoint = &self.client_url;
        eventually("the server answers", Duration::from_secs(30), async || {
            process.ensure_running()?;
            etcd_client::Client::connect([endpoint], None).await?.get("health", None).await?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn stop(&mut self, signal: Signal) -> Result<()> {
        let process = self.process.take().context("the server does not run")?;
        process.stop(signal).await?;
        Ok(())
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        if self.flavour == Flavour::Borrowed {
            return Ok(());
        }
        self.tree.as_mut().map_or(Ok(()), Tree::ensure_running)?;
        self.process.as_mut().context("the server does not run")?.ensure_running()
    }

    /// The servers of the routes; they run as long as this server is kept.
    async fn start_behind(&mut self) -> Result<()> {
        if !self.behind.is_empty() {
            return Ok(());
        }
        let mut urls = Vec::new();
        for kind in [databases::Kind::Postgres, databases::Kind::MariaDb] {
            let mut database = DatabaseServer::new(kind)?;
            database.start().await?;
            database.create_database(DATABASE).await?;
            urls.push(database.url(DATABASE));
            self.behind.push(Behind::Database(database));
        }
        let mut etcd = Etcd::new()?;
        etcd.start().await?;
        write_topology(&self.folder, &urls[0], &urls[1], Some(&etcd.url()))?;
        self.behind.push(Behind::Etcd(etcd));
        Ok(())
    }

    /// Where the stores of [`Flavour::MixedStores`] are: PostgreSQL, MariaDB, then etcd.
    pub(crate) fn behind(&mut self) -> &mut [Behind] {
        &mut self.behind
    }

    /// The nodes below the root; they run as long as this server is kept.
    async fn start_tree(&mut self) -> Result<()> {
        if self.tree.is_none() {
            let tree = Box::pin(Tree::start(&self.folder)).await?;
            fs::write(self.folder.join("topology.yaml"), tree.routes())?;
            self.tree = Some(tree);
        }
        Ok(())
    }

    /// What is below the root of [`Flavour::Tree`].
    pub(crate) fn tree(&self) -> Result<&Tree> {
        self.tree.as_ref().context("there is no tree")
    }

    pub(crate) fn child(&mut self, child: Child) -> Result<&mut Node> {
        let tree = self.tree.as_mut().context("there is no tree")?;
        Ok(match child {
            Child::RegionA => &mut tree.region_a,
            Child::TenantA => &mut tree.tenant_a,
        })
    }

    fn start_etcd(&self) -> Result<Process> {
        let Self { client_url, peer_url, folder, .. } = self;
        let arguments = [
            format!("--data-dir={}", folder.join("data").display()),
            format!("--listen-client-urls={client_url}"),
            format!("--advertise-client-urls={client_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster=default={peer_url}"),
        ];
        Process::start("etcd", &peer("etcd")?, folder, &arguments)
    }

    fn start_pleach(&self) -> Result<Process> {
        let Self { client_url, folder, .. } = self;
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--listen-client-urls={client_url}"),
            format!("--advertise-client-urls={client_url}"),
            format!("--data-dir={}", folder.join("data").display()),
        ];
        if matches!(self.flavour, Flavour::FourStores | Flavour::MixedStores | Flavour::Tree) {
            arguments.push(format!("--topology={}", folder.join("topology.yaml").display()));
        }
        Process::start("pleach", Path::new(env!("CARGO_BIN_EXE_pleach")), folder, &arguments)
    }
}

// === impl Behind ===

impl Behind {
    /// SIGKILL to all its processes.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        match self {
            Self::Database(database) => database.kill().await,
            Self::Etcd(etcd) => etcd.kill().await,
        }
    }

    /// Starts it again, and waits until it answers.
    pub(crate) async fn start(&mut self) -> Result<()> {
        match self {
            Self::Database(database) => database.start().await,
            Self::Etcd(etcd) => etcd.start().await,
        }
    }
}

/// Routes in HariKube's form; the default store takes the rest.
fn write_topology(folder: &Path, pods: &str, leases: &str, namespace: Option<&str>) -> Result<()> {
    let shown = folder.display();
    let mut text = format!(
        "\
backends:
  - name: team-a-pods
    endpoint: {pods}
    namespace: {{ namespace: team-a, kinds: [pods] }}
  - name: leases
    endpoint: {leases}
    prefix: {{ prefix: leases }}
  - name: widgets
    endpoint: sqlite://{shown}/widgets.db
    customresource: {{ group: pleach.example.com, kind: widgets }}
"
    );
    if let Some(endpoint) = namespace {
        text += &format!(
            "  - name: team-b\n    endpoint: {endpoint}\n    namespace: {{ namespace: team-b }}\n"
        );
    }
    Ok(fs::write(folder.join("topology.yaml"), text)?)
}

//! The nodes below a root, each a process with stores of its own, of every kind there is:
//!
//! ```text
//!   root ──────────── main: a file; leases: MariaDB
//!    ├─ region-a ──── what is in namespace team-a: a file
//!    │   └─ tenant-a  its pods: PostgreSQL
//!    └─ region-b ──── what is in namespace team-b: a plain etcd
//!        └─ tenant-b  its widgets: a file
//! ```
//!
//! The two links down to tenant-a can be broken.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::Result;

use super::{
    databases::{self, DatabaseServer},
    etcd::Etcd,
    node::Node,
    proxy::{Mode, Proxy},
    server::DATABASE,
};

/// See the module. Nodes are dropped before the stores they use.
pub(crate) struct Tree {
    pub(crate) region_a: Node,
    pub(crate) tenant_a: Node,
    pub(crate) region_b: Node,
    pub(crate) tenant_b: Node,
    to_region_a: Proxy,
    to_tenant_a: Proxy,
    leases: DatabaseServer,
    _pods: DatabaseServer,
    _etcd: Etcd,
}

// === impl Tree ===

impl Tree {
    /// Starts all nodes but the root, and their stores. Each node is a folder in `folder`.
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let mut pods = DatabaseServer::new(databases::Kind::Postgres)?;
        let mut leases = DatabaseServer::new(databases::Kind::MariaDb)?;
        for database in [&mut pods, &mut leases] {
            database.start().await?;
            database.create_database(DATABASE).await?;
        }
        let mut etcd = Etcd::new()?;
        etcd.start().await?;

        let node = |name: &str, flags: &[&str]| {
            let folder = folder.join(name);
            fs::create_dir(&folder)?;
            let name = format!("--name={name}");
            Node::new(&folder, &[&[name.as_str()], flags].concat())
        };
        let pods_in = format!("--endpoint={}", pods.url(DATABASE));
        let mut tenant_a = node("tenant-a", &[&pods_in])?;
        tenant_a.start().await?;
        let to_tenant_a = Proxy::start(address(&tenant_a)).await?;
        let mut region_a = node("region-a", &[])?.with_topology(&format!(
            "\
backends:
  - name: team-a-pods
    endpoint: http://{}
    namespace: {{ namespace: team-a, kinds: [pods] }}
",
            to_tenant_a.address()
        ))?;
        region_a.start().await?;
        let to_region_a = Proxy::start(address(&region_a)).await?;

        let mut tenant_b = node("tenant-b", &[])?;
        tenant_b.start().await?;
        let all_in = format!("--endpoint={}", etcd.url());
        let mut region_b = node("region-b", &[&all_in])?.with_topology(&format!(
            "\
backends:
  - name: team-b-widgets
    endpoint: {}
    customresource: {{ group: pleach.example.com, kind: widgets }}
",
            tenant_b.url()
        ))?;
        region_b.start().await?;
        Ok(Self {
            region_a,
            tenant_a,
            region_b,
            tenant_b,
            to_region_a,
            to_tenant_a,
            leases,
            _pods: pods,
            _etcd: etcd,
        })
    }

    /// The root's routes. Those of the regions come first: a region has its namespace's leases too.
    pub(crate) fn routes(&self) -> String {
        format!(
            "\
backends:
  - name: region-a
    endpoint: http://{}
    namespace: {{ namespace: team-a }}
  - name: region-b
    endpoint: {}
    namespace: {{ namespace: team-b }}
  - name: leases
    endpoint: {}
    prefix: {{ prefix: leases }}
",
            self.to_region_a.address(),
            self.region_b.url(),
            self.leases.url(DATABASE)
        )
    }

    /// Cuts region-a off from its tenant: connections break, and new ones are refused.
    pub(crate) async fn cut_off_tenant_a(&self) -> Result<()> {
        self.to_tenant_a.set(Mode::Refuse).await?;
        self.to_tenant_a.cut().await;
        Ok(())
    }

    pub(crate) async fn mend(&self) -> Result<()> {
        self.to_tenant_a.set(Mode::Pass).await
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        let Self { region_a, tenant_a, region_b, tenant_b, .. } = self;
        [region_a, tenant_a, region_b, tenant_b].into_iter().try_for_each(Node::ensure_running)
    }
}

fn address(node: &Node) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, node.port()).into()
}

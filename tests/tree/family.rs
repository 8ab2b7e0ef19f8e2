//! A small tree: a root with two children, one of them behind a proxy.
//!
//! ```text
//!   root ─┬─────────> near    /near
//!         ├─ link ──> far     /far
//!         └ its own store     all else
//! ```

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    call::{list, put},
    route::{Route, topology},
    support::{
        node::Node,
        process::eventually,
        proxy::{Mode, Proxy},
    },
};

/// How long a child may take to be attached; the rest is for a busy machine.
pub(crate) const ATTACHED_WITHIN: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) root: Node,
    _near: Node,
    pub(crate) far: Node,
    pub(crate) link: Proxy,
    /// Connections to the nodes of the same names.
    pub(crate) at_root: Channel,
    pub(crate) at_far: Channel,
    _folder: TempDir,
}

/// A node in a folder of its own, named like it.
pub(crate) fn node(parent: &Path, name: &str, flags: &[&str]) -> Result<Node> {
    let folder = parent.join(name);
    fs::create_dir(&folder)?;
    let name = format!("--name={name}");
    let all = ["--watch-progress-notify-interval=500ms", name.as_str()];
    Node::new(&folder, &[&all[..], flags].concat())
}

/// Waits until a node answers a list of all that lies below it.
pub(crate) async fn whole(channel: &Channel) -> Result<()> {
    eventually("the node answers for all below it", ATTACHED_WITHIN, async || {
        Ok(list(channel).await.map(drop)?)
    })
    .await
}

// === impl Family ===

impl Family {
    pub(crate) async fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("pleach-tree-")?;
        let mut near = node(folder.path(), "near-node", &[])?;
        let mut far = node(folder.path(), "far-node", &[])?;
        let mut root = node(folder.path(), "root-node", &[])?;
        let link = Proxy::start(([127, 0, 0, 1], far.port()).into()).await?;
        near.start().await?;
        let at_far = far.start().await?;
        let routes = [
            Route::new("near", "/near", near.url()),
            Route::new("far", "/far", format!("http://{}", link.address())),
        ];
        root.set_topology(&topology(&routes))?;
        let at_root = root.start().await?;
        whole(&at_root).await?;
        Ok(Self { root, _near: near, far, link, at_root, at_far, _folder: folder })
    }

    /// The child can't be reached from now on, and this is known: its keys are refused.
    pub(crate) async fn cut_off(&self) -> Result<()> {
        self.link.set(Mode::Refuse).await?;
        self.link.cut().await;
        eventually("the root notices that its child is away", ATTACHED_WITHIN, async || {
            ensure!(list(&self.at_root).await.is_err(), "its list is whole");
            Ok(())
        })
        .await
    }

    /// The child can be reached again, and is there.
    pub(crate) async fn reconnect(&self) -> Result<()> {
        self.link.set(Mode::Pass).await?;
        whole(&self.at_root).await
    }

    /// A value for a key of each store, written through the root.
    pub(crate) async fn put_everywhere(&self, value: &str) -> Result<Vec<i64>> {
        let mut revisions = Vec::new();
        for key in ["/near/k", "/far/k", "/own/k"] {
            revisions.push(put(&self.at_root, key, value).await?);
        }
        Ok(revisions)
    }
}

//! The tree: which nodes there are, and which keys go where.
//!
//! ```text
//!                    root  /
//!                   ╱      ╲
//!           west  /west     east  /east
//!          ╱     ╲             ╲
//!      one        two           three           each with a default store of its own
//!      /west/one  /west/two     /east/three
//! ```

use bytes::Bytes;
use pleach::model::{Key, KeyRange};

/// A node's place in [`NODES`].
pub(crate) type NodeId = usize;

/// The keys that lie in each node's own store.
pub(crate) const KEYS: usize = 3;

/// A node of the tree.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its host, and the name of the route to it.
    pub(crate) name: &'static str,
    pub(crate) parent: Option<NodeId>,
    /// What its parent sends to it.
    pub(crate) path: &'static str,
}

pub(crate) const ROOT: NodeId = 0;

pub(crate) const NODES: [Node; 6] = [
    Node { name: "root", parent: None, path: "" },
    Node { name: "west", parent: Some(ROOT), path: "/west" },
    Node { name: "east", parent: Some(ROOT), path: "/east" },
    Node { name: "one", parent: Some(1), path: "/west/one" },
    Node { name: "two", parent: Some(1), path: "/west/two" },
    Node { name: "three", parent: Some(2), path: "/east/three" },
];

// === impl Node ===

impl Node {
    /// All keys of the node and of those below it.
    pub(crate) fn range(&self) -> KeyRange {
        KeyRange::prefix(Bytes::from(format!("{}/", self.path)))
    }
}

pub(crate) fn children(node: NodeId) -> impl Iterator<Item = NodeId> {
    (0..NODES.len()).filter(move |child| NODES[*child].parent == Some(node))
}

/// Whether `node` is `top`, or lies below it.
pub(crate) fn is_below(node: NodeId, top: NodeId) -> bool {
    node == top || NODES[node].parent.is_some_and(|parent| is_below(parent, top))
}

/// A key of the node's own store.
pub(crate) fn key(node: NodeId, at: usize) -> Key {
    Bytes::from(format!("{}/key{at}", NODES[node].path))
}

/// The node whose own store a key belongs to.
pub(crate) fn owner(key: &[u8]) -> Option<NodeId> {
    (0..NODES.len()).find(|node| (0..KEYS).any(|at| self::key(*node, at) == key))
}

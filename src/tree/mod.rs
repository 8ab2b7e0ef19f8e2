//! Nodes behind nodes: who a node is, which lanes it has, whom it answers, and its children as stores.
//!
//! ```text
//!   parent ── child/ (a store) ── Tree service ──> server/tree ──> membership ── lanes, parent
//! ```
//!
//! What is said between nodes is `proto/pleach/tree.proto`. Nothing a caller sends moves a clock, takes
//! memory or changes state before it is known who asks, and whether they may: [`parent`].

pub mod call;
pub mod child;
pub mod lanes;
pub mod membership;
pub mod parent;

use crate::{
    clock::Entropy,
    model::error::Result,
    proto::records as pb,
    store::records::{Changes, Records},
};

/// The numbers by which a node's answers name it. Kept in its default store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The same for as long as the default store lives; never 0.
    pub cluster: u64,
    /// Likewise.
    pub member: u64,
}

// === impl Identity ===

impl Identity {
    /// The identity that is kept; a new one in a fresh store.
    ///
    /// # Errors
    /// `Damaged` where it can't be read, and those of the default store.
    pub async fn load(records: &Records, entropy: &Entropy) -> Result<Self> {
        if let Some(pb::Identity { cluster, member }) = records.get().await? {
            return Ok(Self { cluster, member });
        }
        let identity = Self { cluster: entropy.id(), member: entropy.id() };
        let Self { cluster, member } = identity;
        records.write(Changes::default().put(&pb::Identity { cluster, member })).await?;
        Ok(identity)
    }
}

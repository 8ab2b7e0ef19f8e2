//! What nodes say about each other.

use crate::{
    clock::LaneBlock,
    model::{Commit, Event},
    proto::{mvccpb, tree},
};

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The same for as long as its default store lives; never 0.
    pub id: u64,
    /// What its operator calls it.
    pub name: String,
}

// === impl Member ===

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ({:x})", self.name, self.id)
    }
}

/// A node in a message.
pub fn member(member: &Member) -> tree::Member {
    tree::Member { id: member.id, name: member.name.clone() }
}

/// A node of a message.
pub fn member_of(member: &tree::Member) -> Member {
    Member { id: member.id, name: member.name.clone() }
}

/// Lanes in a message.
pub fn lanes(block: LaneBlock) -> tree::Lanes {
    tree::Lanes { first: block.first.into(), count: block.count.into() }
}

/// The lanes of a message; `None` where there are none such.
pub fn lanes_of(lanes: tree::Lanes) -> Option<LaneBlock> {
    let (first, count) = (u16::try_from(lanes.first).ok()?, u16::try_from(lanes.count).ok()?);
    LaneBlock::new(first, count)
}

/// The lanes of a message; `None` where there are none, none such, or one twice.
pub fn blocks_of(lanes: &[tree::Lanes]) -> Option<Vec<LaneBlock>> {
    let blocks: Option<Vec<LaneBlock>> = lanes.iter().copied().map(lanes_of).collect();
    blocks.filter(|blocks| !blocks.is_empty() && LaneBlock::are_disjoint(blocks))
}

/// The events of a commit that are wanted, in a message.
pub fn commit(commit: &Commit, is_wanted: impl Fn(&Event) -> bool) -> tree::Commit {
    let events = commit.events.iter().filter(|event| is_wanted(event));
    let events = events.cloned().map(super::event).collect();
    tree::Commit { revision: commit.revision, events }
}

/// The commit of a message. Shares its memory.
pub fn commit_of(commit: tree::Commit) -> Commit {
    Commit { revision: commit.revision, events: commit.events.into_iter().map(event).collect() }
}

fn event(event: mvccpb::Event) -> Event {
    Event { kv: event.kv.map(super::kv).unwrap_or_default(), prev: event.prev_kv.map(super::kv) }
}

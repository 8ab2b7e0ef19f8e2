//! What really happened: the logs of all stores, taken together.

use std::{collections::BTreeMap, sync::Arc};

use pleach::{
    model::{Commit, Event, Key, KeyRange, KeyValue, Revision},
    store::memory::Kept,
};

use crate::tree::{NODES, NodeId, owner};

/// The commits of all stores.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// In order, once all is collected.
    pub(crate) commits: BTreeMap<Revision, (NodeId, Arc<Commit>)>,
    /// Each key as it was after each change; `None` where it did not exist.
    pub(crate) keys: BTreeMap<Key, Vec<(Revision, Option<KeyValue>)>>,
    /// Up to where the log of each store is collected.
    collected: [Revision; NODES.len()],
}

// === impl Truth ===

impl Truth {
    /// Takes what the stores have committed since. To be called before that is compacted.
    pub(crate) fn collect(&mut self, kept: &[Kept]) -> Result<(), String> {
        for (node, kept) in kept.iter().enumerate() {
            for commit in kept.commits(self.collected[node]) {
                self.collected[node] = commit.revision;
                self.take(node, commit)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, node: NodeId, commit: Arc<Commit>) -> Result<(), String> {
        let revision = commit.revision;
        if let Some((other, _)) = self.commits.get(&revision) {
            let (one, other) = (NODES[node].name, NODES[*other].name);
            return Err(format!("revision {revision} was allocated by {other} and by {one}"));
        }
        for event in &commit.events {
            if owner(&event.kv.key) != Some(node) {
                return Err(format!("{} has {event:?}, which is not its own", NODES[node].name));
            }
            self.follow(revision, event)?;
        }
        self.commits.insert(revision, (node, commit));
        Ok(())
    }

    /// Whether a change follows from the one before.
    fn follow(&mut self, revision: Revision, event: &Event) -> Result<(), String> {
        let states = self.keys.entry(event.kv.key.clone()).or_default();
        let before = states.last().and_then(|(_, kv)| kv.clone());
        let created = before.as_ref().map_or(revision, |kv| kv.create_revision);
        let version = before.as_ref().map_or(1, |kv| kv.version + 1);
        let is_right = event.kv.mod_revision == revision
            && event.prev == before
            && states.last().is_none_or(|(last, _)| *last < revision)
            && (event.is_delete()
                || (event.kv.create_revision == created && event.kv.version == version));
        if !is_right {
            return Err(format!("{event:?} at {revision} does not follow from {before:?}"));
        }
        states.push((revision, (!event.is_delete()).then(|| event.kv.clone())));
        Ok(())
    }

    /// The last change of a key at or below a revision.
    pub(crate) fn changed(&self, key: &[u8], at: Revision) -> Revision {
        self.state(key, at).map_or(0, |(revision, _)| *revision)
    }

    fn state(&self, key: &[u8], at: Revision) -> Option<&(Revision, Option<KeyValue>)> {
        let states = self.keys.get(key)?;
        states[..states.partition_point(|(revision, _)| *revision <= at)].last()
    }

    /// The rows of a range as of a revision.
    pub(crate) fn rows(&self, range: &KeyRange, at: Revision) -> Vec<KeyValue> {
        let keys = self.keys.keys().filter(|key| range.contains(key));
        keys.filter_map(|key| self.state(key, at)?.1.clone()).collect()
    }

    /// The changes of a range behind one revision and up to another, in order.
    pub(crate) fn events<'t>(
        &'t self,
        range: &'t KeyRange,
        after: Revision,
        through: Revision,
    ) -> impl Iterator<Item = &'t Event> {
        let commits = self.commits.range(after + 1..=through.max(after + 1));
        let commits = commits.filter(move |(revision, _)| **revision <= through);
        let events = commits.flat_map(|(_, (_, commit))| &commit.events);
        events.filter(|event| range.contains(&event.kv.key))
    }

    /// The last change of a range.
    pub(crate) fn last(&self, range: &KeyRange) -> Revision {
        let last = self.keys.iter().filter(|(key, _)| range.contains(key));
        last.filter_map(|(_, states)| Some(states.last()?.0)).max().unwrap_or(0)
    }
}

//! A server's history as one watcher over all keys saw it, and what the others should have seen.
//!
//! Checks the guarantees that need history: PrevKV and IsCreate on the chronicle itself, Reliable,
//! Resumable and Filter on every other watcher.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use pleach::proto::{
    etcdserverpb as pb,
    mvccpb::{self, event::EventType},
};

use crate::watch::{History, revision_of};

#[derive(Debug, Default)]
pub struct Chronicle {
    events: Vec<mvccpb::Event>,
    /// The live keys after the last event.
    live: BTreeMap<Bytes, mvccpb::KeyValue>,
}

// === impl Chronicle ===

impl Chronicle {
    /// Replays the events that the watcher over all keys has seen since the last call.
    pub fn extend(&mut self, all: &[mvccpb::Event]) -> Result<()> {
        let new = &all[self.events.len()..];
        for group in new.chunk_by(|a, b| revision_of(a) == revision_of(b)) {
            self.replay(group).with_context(|| format!("in the chronicle: {group:?}"))?;
            self.events.extend_from_slice(group);
        }
        Ok(())
    }

    /// Replays one revision. `prev_kv` is the key before the revision, whatever else the revision
    /// did to the key; the other fields follow from the change just before.
    fn replay(&mut self, group: &[mvccpb::Event]) -> Result<()> {
        let before: Vec<_> = group.iter().map(|event| self.live_before(event)).collect();
        for (event, before) in group.iter().zip(before) {
            let kv = event.kv.as_ref().context("an event without a key")?;
            let last = self.live.get(&kv.key);
            let is_create = kv.create_revision == kv.mod_revision;
            if event.r#type == i32::from(EventType::Put) {
                let created = last.map_or(kv.mod_revision, |last| last.create_revision);
                ensure!(kv.create_revision == created, "create revision is not {created}");
                let version = last.map_or(1, |last| last.version + 1);
                ensure!(kv.version == version, "version is not {version}");
                let expected = if is_create { None } else { before };
                ensure!(event.prev_kv == expected, "prev_kv is not {expected:?}");
                self.live.insert(kv.key.clone(), kv.clone());
            } else {
                ensure!(last.is_some(), "the deletion of a key that was not there");
                let bare = mvccpb::KeyValue {
                    key: kv.key.clone(),
                    mod_revision: kv.mod_revision,
                    ..Default::default()
                };
                ensure!(*kv == bare, "a deletion has more than key and revision");
                ensure!(event.prev_kv == before, "prev_kv is not {before:?}");
                self.live.remove(&kv.key);
            }
        }
        Ok(())
    }

    fn live_before(&self, event: &mvccpb::Event) -> Option<mvccpb::KeyValue> {
        self.live.get(&event.kv.as_ref()?.key).cloned()
    }

    /// Checks what a watcher was told of the revisions from `from` on: all that match, in order,
    /// and nothing else. `compacted` is what was compacted when the watcher was opened: prev_kv
    /// may be missing there, and of several changes of one key only the last is kept.
    pub fn check(&self, history: &History, from: i64, compacted: i64) -> Result<()> {
        let create = &history.create;
        let start = match create.start_revision {
            0 => history.opened_at + 1,
            given => given,
        };
        let from = from.max(start).max(compacted.saturating_add(1));
        let is_new = |event: &&mvccpb::Event| revision_of(event) >= from;
        let told: Vec<_> = history.events.iter().filter(is_new).collect();
        let due: Vec<_> =
            self.events.iter().filter(is_new).filter(|event| matches(create, event)).collect();
        for (told, due) in told.iter().zip(&due) {
            ensure!(told.r#type == due.r#type && told.kv == due.kv, "told {told:?}, due {due:?}");
            let prev_kv = if create.prev_kv { &due.prev_kv } else { &None };
            ensure!(told.prev_kv == *prev_kv, "prev_kv of {told:?}, due {due:?}");
        }
        ensure!(told.len() == due.len(), "{} events were told, {} due", told.len(), due.len());
        Ok(())
    }
}

fn matches(create: &pb::WatchCreateRequest, event: &mvccpb::Event) -> bool {
    let is_filtered = create.filters.contains(&event.r#type);
    event.kv.as_ref().is_some_and(|kv| !is_filtered && holds(create, &kv.key))
}

/// Whether the range of a watch holds a key, in the words of etcd's API.
fn holds(create: &pb::WatchCreateRequest, key: &[u8]) -> bool {
    let start = if create.key.is_empty() { &b"\0"[..] } else { &create.key };
    match &create.range_end[..] {
        b"" => key == start,
        b"\0" => key >= start,
        end => key >= start && key < end,
    }
}

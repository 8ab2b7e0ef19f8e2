//! The log of a whole tree: the logs of all its stores, each as its own node tells it.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::{
    history::Keys,
    support::changes::{Event, Row},
};

/// The commits of all stores, by revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    commits: BTreeMap<i64, Vec<Event>>,
    /// For each key what it was changed to, and when.
    keys: BTreeMap<String, Vec<(i64, Option<Row>)>>,
    /// Revisions that more than one store has.
    shared: Vec<i64>,
}

// === impl Log ===

impl Log {
    /// Takes in the whole log of a store.
    pub(crate) fn add_store(&mut self, events: Vec<Event>) {
        let mut commits: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        for event in events {
            let changes = self.keys.entry(event.key.clone()).or_default();
            changes.push((event.revision, event.now.clone()));
            commits.entry(event.revision).or_default().push(event);
        }
        for (revision, events) in commits {
            match self.commits.entry(revision) {
                Entry::Vacant(entry) => drop(entry.insert(events)),
                Entry::Occupied(mut entry) => {
                    entry.get_mut().extend(events);
                    self.shared.push(revision);
                }
            }
        }
    }

    pub(crate) fn commits(&self) -> impl Iterator<Item = (i64, &[Event])> {
        self.commits.iter().map(|(revision, events)| (*revision, &events[..]))
    }

    /// The commits above one revision and up to another.
    pub(crate) fn between(&self, after: i64, last: i64) -> impl Iterator<Item = (i64, &[Event])> {
        let range = after.saturating_add(1)..=last.max(after.saturating_add(1));
        let commits = self.commits.range(range).filter(move |(revision, _)| **revision <= last);
        commits.map(|(revision, events)| (*revision, &events[..]))
    }

    pub(crate) fn commit(&self, revision: i64) -> &[Event] {
        self.commits.get(&revision).map_or(&[], |events| &events[..])
    }

    /// The last change of a key at or below a revision: when, and to what.
    pub(crate) fn last_change(&self, key: &str, revision: i64) -> (i64, Option<&Row>) {
        let changes = self.keys.get(key).map_or(&[][..], |changes| &changes[..]);
        let count = changes.partition_point(|(changed, _)| *changed <= revision);
        count.checked_sub(1).map_or((0, None), |at| (changes[at].0, changes[at].1.as_ref()))
    }

    pub(crate) fn keys_in<'a>(&'a self, keys: &'a Keys) -> impl Iterator<Item = &'a str> {
        let from = self.keys.range(keys.from.clone()..).map(|(key, _)| key.as_str());
        from.take_while(|key| keys.contain(key))
    }

    /// The keys that are there as of a revision.
    pub(crate) fn rows(&self, keys: &Keys, revision: i64) -> Vec<(String, Row)> {
        let row = |key: &str| Some((key.to_owned(), self.last_change(key, revision).1?.clone()));
        self.keys_in(keys).filter_map(row).collect()
    }

    /// Each revision is one commit's, and each event follows from those before.
    pub(super) fn violations(&self) -> Vec<String> {
        let shared = self.shared.iter();
        let mut found: Vec<_> =
            shared.map(|revision| format!("two stores have revision {revision}")).collect();
        let mut live: BTreeMap<&str, &Row> = BTreeMap::new();
        for (revision, events) in self.commits() {
            for event in events {
                let before = live.get(&*event.key).copied();
                if event.before.as_ref() != before {
                    found.push(format!("the log's {event:?} came after {before:?}"));
                }
                if event.now.as_ref().is_some_and(|now| !follows(now, before, revision)) {
                    found.push(format!("the numbers of {event:?} do not follow {before:?}"));
                }
                match &event.now {
                    Some(row) => live.insert(&event.key, row),
                    None => live.remove(&*event.key),
                };
            }
        }
        found
    }
}

fn follows(now: &Row, before: Option<&Row>, revision: i64) -> bool {
    now.modified == revision
        && now.create == before.map_or(revision, |row| row.create)
        && now.version == before.map_or(1, |row| row.version + 1)
}

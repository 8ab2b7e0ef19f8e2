//! What a client knows of its keys: what was acknowledged, and what may have happened.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use crate::support::changes::{Event, Row};

/// A change of one key: a new value, or none for a deletion.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

/// The books of one client. Nobody else writes its keys, so they must balance to the letter.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) live: BTreeMap<String, Row>,
    /// All that happened, in order.
    pub(crate) events: Vec<Event>,
    /// The changes of the one transaction whose call failed.
    pub(crate) unknown: Vec<Change>,
    pub(crate) acknowledged: usize,
}

// === impl Ledger ===

impl Ledger {
    /// Books an acknowledged transaction.
    pub(crate) fn book(&mut self, changes: Vec<Change>, revision: i64) {
        for Change { key, value } in changes {
            let before = self.live.remove(&key);
            let now = value.map(|value| Row {
                value,
                create: before.as_ref().map_or(revision, |row| row.create),
                modified: revision,
                version: before.as_ref().map_or(1, |row| row.version + 1),
            });
            if let Some(row) = &now {
                self.live.insert(key.clone(), row.clone());
            }
            self.events.push(Event { revision, key, now, before });
        }
    }

    /// Compares the books with what a node that was restarted has, and learns what became of the
    /// transaction that got no answer: all of it or nothing. `revision` is the one of the read, and
    /// `floor` one that the unknown transaction must lie above.
    pub(crate) fn settle(&mut self, found: &BTreeMap<String, Row>, floor: i64) -> Result<()> {
        let changes = std::mem::take(&mut self.unknown);
        if let Some(first) = changes.first() {
            let is_applied = found.get(&first.key) != self.live.get(&first.key);
            if is_applied {
                let revision = applied_at(&changes, found, floor)?;
                self.book(changes, revision);
            }
        }
        if *found == self.live {
            return Ok(());
        }
        for (key, row) in &self.live {
            ensure!(found.get(key) == Some(row), "{key}: {:?}, not {row:?}", found.get(key));
        }
        let stray = found.iter().find(|(key, _)| !self.live.contains_key(*key));
        bail!("{stray:?} was never written")
    }
}

/// The revision of a transaction that got no answer but took place. Each unknown transaction puts
/// at least one key, and that says the revision.
fn applied_at(changes: &[Change], found: &BTreeMap<String, Row>, floor: i64) -> Result<i64> {
    let put = changes.iter().find(|change| change.value.is_some());
    let row = put.and_then(|change| found.get(&change.key));
    let Some(row) = row else { bail!("half of {changes:?} was applied") };
    ensure!(row.modified > floor, "{row:?} took a revision at or below {floor}, which was used");
    Ok(row.modified)
}

//! The ledger: all that was acknowledged happened, as it was asked for, and nothing else happened but
//! what may have.

use std::collections::HashMap;

use super::Log;
use crate::{
    history::{History, Outcome, Write},
    support::changes::Event,
};

pub(super) fn violations(history: &History, log: &Log) -> Vec<String> {
    let mut found = Vec::new();
    let mut by_value: HashMap<&str, usize> = HashMap::new();
    for (at, write) in history.writes.iter().enumerate() {
        for value in write.changes.iter().filter_map(|change| change.value.as_deref()) {
            by_value.insert(value, at);
        }
    }
    let mut applied: HashMap<usize, i64> = HashMap::new();
    for (revision, events) in log.commits() {
        let value = events.iter().find_map(|event| event.now.as_ref());
        let at = value.and_then(|row| by_value.get(&*row.value)).copied();
        let Some(at) = at else {
            found.push(format!("nobody wrote what is at {revision}: {events:?}"));
            continue;
        };
        let write = &history.writes[at];
        if let Some(first) = applied.insert(at, revision) {
            found.push(format!("applied twice, at {first} and at {revision}: {write:?}"));
        }
        if !is_done(write, events, log, revision) {
            found.push(format!("{write:?} is {events:?} at {revision}"));
        }
        match write.outcome {
            Outcome::Unknown => {}
            Outcome::Applied(said) if said == revision => {}
            _ => found.push(format!("it is at {revision}, but its client was told {write:?}")),
        }
    }
    for (at, write) in history.writes.iter().enumerate() {
        match write.outcome {
            Outcome::Applied(_) if !applied.contains_key(&at) => {
                found.push(format!("lost, though it was acknowledged: {write:?}"));
            }
            Outcome::Refused(revision) if holds(write, log, revision) => {
                found.push(format!("its guards held at {revision}: {write:?}"));
            }
            _ => {}
        }
    }
    found
}

/// Whether a commit is what a write asks for, all of it, on what it was to be guarded by.
fn is_done(write: &Write, events: &[Event], log: &Log, revision: i64) -> bool {
    let is_there = |event: &Event| {
        let change = write.changes.iter().find(|change| change.key == event.key);
        let value = event.now.as_ref().map(|row| &row.value);
        change.is_some_and(|change| change.value.as_ref() == value)
    };
    events.len() == write.changes.len()
        && events.iter().all(is_there)
        && holds(write, log, revision - 1)
}

fn holds(write: &Write, log: &Log, revision: i64) -> bool {
    write.changes.iter().all(|change| {
        let (modified, row) = log.last_change(&change.key, revision);
        row.map_or(0, |_| modified) == change.before
    })
}

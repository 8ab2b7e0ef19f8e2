//! The guarantees of a watch, by the names that etcd's robustness tests give them: Ordered, Unique,
//! Atomic, Reliable, Resumable, Bookmarkable, `PrevKV`, `IsCreate` and Filter.
//!
//! Events are compared whole with those of the log, which has its own check: so `PrevKV`, `IsCreate`
//! and Filter hold where a revision's events are exactly those of the log in the watched keys.

use std::collections::BTreeSet;

use super::Log;
use crate::{
    history::{Generation, History, Life, Watcher},
    support::changes::Event,
};

pub(super) fn violations(history: &History, log: &Log) -> Vec<String> {
    let mut found = Vec::new();
    for (at, watcher) in history.watchers.iter().enumerate() {
        let who = format!("watcher {at} of {:?} at node {}", watcher.keys, watcher.node);
        let mut say = |violation: String| found.push(format!("{who}: {violation}"));
        for (generation, is_last) in generations(watcher) {
            check(watcher, generation, log, &mut say);
            if generation.is_compacted && watcher.is_of_own_stores {
                say(format!("ended at {}, though it lacks nothing", generation.told()));
            }
            if generation.is_compacted && is_last {
                say("it never began again".to_owned());
            }
        }
    }
    found
}

fn generations(watcher: &Watcher) -> impl Iterator<Item = (&Generation, bool)> {
    let count = watcher.generations.len();
    let numbered = watcher.generations.iter().enumerate();
    numbered.map(move |(at, generation)| (generation, at + 1 == count))
}

fn check(watcher: &Watcher, generation: &Generation, log: &Log, say: &mut impl FnMut(String)) {
    let mut told = generation.listed;
    let mut seen = BTreeSet::new();
    let mut begin = told;
    for (at, life) in generation.lives.iter().enumerate() {
        if life.start == 0 && at == 0 {
            begin = life.created;
            told = begin;
        } else if life.start != told + 1 {
            say(format!("it resumed at {}, though it was told all up to {told}", life.start));
        }
        told = check_life(watcher, life, told, log, &mut seen, say);
    }
    // Reliable, Resumable and Bookmarkable: nothing at or below what it was told is missing.
    for (revision, events) in log.between(begin, told) {
        let is_missing = !seen.contains(&revision) && !watched(watcher, events).is_empty();
        if is_missing && (!generation.is_compacted || watcher.is_of_own_stores) {
            say(format!("a gap: told all up to {told}, and not of {revision}: {events:?}"));
        }
    }
}

/// Ordered, Unique, Atomic, and all that an event itself says.
fn check_life(
    watcher: &Watcher,
    life: &Life,
    mut told: i64,
    log: &Log,
    seen: &mut BTreeSet<i64>,
    say: &mut impl FnMut(String),
) -> i64 {
    for response in &life.told {
        if response.events.is_empty() {
            if response.revision < told {
                say(format!("progress went back from {told} to {}", response.revision));
            }
            told = told.max(response.revision);
            continue;
        }
        for events in response.events.chunk_by(|a, b| a.revision == b.revision) {
            let revision = events[0].revision;
            if revision <= told {
                say(format!("told all up to {told}, and then of {revision}: {events:?}"));
            }
            if !seen.insert(revision) {
                say(format!("told twice of {revision}"));
            }
            let expected = watched(watcher, log.commit(revision));
            if events.iter().collect::<Vec<_>>() != expected {
                say(format!("told of {revision} as {events:?}, which is {expected:?}"));
            }
            told = told.max(revision);
        }
        if response.revision < told {
            say(format!("a header of {} with events up to {told}", response.revision));
        }
    }
    told
}

fn watched<'l>(watcher: &Watcher, events: &'l [Event]) -> Vec<&'l Event> {
    events.iter().filter(|event| watcher.keys.contain(&event.key)).collect()
}

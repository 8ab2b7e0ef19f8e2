//! Whether the clients could have seen what they saw.
//!
//! All answers carry revisions, and the logs say what happened at each. So a read is right where it
//! shows what the logs hold as of its revision. It is linearizable, key by key, where also what was done
//! or seen before it was asked lies at or below that revision, and what was asked later lies above.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use pleach::{
    model::{Key, Revision},
    proto::mvccpb,
    wire,
};

use crate::{
    history::{History, Operation, Outcome, Read, Stretch, Watcher, Write},
    tree::{NODES, owner},
    truth::Truth,
};

/// Holds a history against the logs. Tells how many writes of unknown outcome were done.
pub(crate) fn check(history: &History, truth: &Truth) -> Result<u64, String> {
    if let Some(broken) = history.broken.first() {
        return Err(broken.clone());
    }
    let done = Ledger::of(truth)?;
    let mut known = 0;
    for operation in &history.operations {
        let checked = match &operation.outcome {
            Outcome::Read(read) => read.check(truth),
            Outcome::Written { at, write } => write.check_done(*at, truth),
            Outcome::Refused(write) => match done.revision(write) {
                Some(at) => Err(format!("it was refused, and done at {at}")),
                None => Ok(()),
            },
            Outcome::Unknown(write) => {
                known += u64::from(done.revision(write).is_some());
                Ok(())
            }
            Outcome::Told { .. } => Ok(()),
        };
        checked.map_err(|what| format!("{what}: {operation:?}"))?;
    }
    done.check_known(history)?;
    check_order(history, truth, &done)?;
    for watcher in &history.watchers {
        watcher
            .stretches
            .iter()
            .try_for_each(|stretch| watcher.check(stretch, truth, &history.compacted))?;
    }
    Ok(known)
}

/// The values in the logs, each with the revision that wrote it.
struct Ledger(HashMap<Bytes, Revision>);

// === impl Ledger ===

impl Ledger {
    fn of(truth: &Truth) -> Result<Self, String> {
        let mut values = HashMap::new();
        for (revision, (_, commit)) in &truth.commits {
            for event in commit.events.iter().filter(|event| !event.is_delete()) {
                let value = &event.kv.value;
                if let Some(before) = values.insert(value.clone(), *revision) {
                    return Err(format!("{value:?} was written at {before} and at {revision}"));
                }
            }
        }
        Ok(Self(values))
    }

    /// When a write was done.
    fn revision(&self, write: &Write) -> Option<Revision> {
        write.changes.iter().find_map(|(_, value)| self.0.get(value.as_ref()?).copied())
    }

    /// Whether somebody asked for all that was done.
    fn check_known(&self, history: &History) -> Result<(), String> {
        let mut unknown = self.0.clone();
        for operation in &history.operations {
            if let Outcome::Written { write, .. } | Outcome::Unknown(write) = &operation.outcome {
                for value in write.changes.iter().filter_map(|(_, value)| value.as_ref()) {
                    unknown.remove(value);
                }
            }
        }
        match unknown.into_iter().next() {
            Some((value, at)) => Err(format!("nobody has written {value:?}, done at {at}")),
            None => Ok(()),
        }
    }
}

// === impl Read ===

impl Read {
    fn check(&self, truth: &Truth) -> Result<(), String> {
        let mut rows = truth.rows(&self.range, self.at);
        let count = rows.len();
        if self.limit > 0 {
            rows.truncate(self.limit);
        }
        if self.kvs == rows && self.count == count {
            return Ok(());
        }
        Err(format!("as of {} these {count} were there: {rows:?}", self.at))
    }
}

// === impl Write ===

impl Write {
    fn check_done(&self, at: Revision, truth: &Truth) -> Result<(), String> {
        let Some((_, commit)) = truth.commits.get(&at) else {
            return Err(format!("nothing was done at {at}"));
        };
        let done: Vec<(Key, Option<Bytes>)> = commit
            .events
            .iter()
            .map(|it| (it.kv.key.clone(), (!it.is_delete()).then(|| it.kv.value.clone())))
            .collect();
        if done != self.changes {
            return Err(format!("at {at} it was {done:?} that was done"));
        }
        let before = commit.events[0].prev.as_ref().map_or(0, |kv| kv.mod_revision);
        if self.guard.is_some_and(|guard| guard != before) {
            return Err(format!("its key was of {before}"));
        }
        Ok(())
    }
}

// === impl Watcher ===

impl Watcher {
    /// Reliable, resumable, bookmarkable, with what was before and what was wanted: from its list to
    /// the last revision that it was told of it has every change, across all the watches it opened.
    /// Where it was told to begin anew it may lack changes of children.
    fn check(
        &self,
        stretch: &Stretch,
        truth: &Truth,
        compacted: &BTreeSet<Revision>,
    ) -> Result<(), String> {
        let Stretch { base, told, events, is_over } = stretch;
        let mut told_events = events.iter().peekable();
        for event in truth.events(&self.range, *base, *told) {
            if self.no_delete && event.is_delete() {
                continue;
            }
            let expected = wire::event(event.clone());
            let without = mvccpb::Event { prev_kv: None, ..expected.clone() };
            let may_lack = compacted.contains(&event.kv.mod_revision);
            let is_it = |told: &mvccpb::Event| *told == expected || may_lack && *told == without;
            let is_told = told_events.next_if(|told| is_it(told)).is_some();
            let is_own = owner(&event.kv.key) == Some(self.node);
            if !is_told && (is_own || !is_over) {
                return Err(format!("{} lacks {event:?}", self.named(stretch)));
            }
        }
        match told_events.next() {
            Some(event) => Err(format!("{} was told {event:?}", self.named(stretch))),
            None => Ok(()),
        }
    }

    fn named(&self, stretch: &Stretch) -> String {
        let Stretch { base, told, events, .. } = stretch;
        let revisions = events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision));
        let (range, name) = (&self.range, NODES[self.node].name);
        format!(
            "the watcher of {range:?} at {name} that began at {base}, was told of {told} and has {:?}",
            revisions.collect::<Vec<Revision>>()
        )
    }
}

/// What was known of each key, and told by each node, up to some time.
#[derive(Default)]
struct Known<'h> {
    keys: BTreeMap<&'h [u8], Revision>,
    nodes: [Revision; NODES.len()],
}

/// Nothing goes back: what was asked later is not older than what was answered before.
fn check_order(history: &History, truth: &Truth, done: &Ledger) -> Result<(), String> {
    let mut known = Known::default();
    let mut begun: Vec<&Operation> = history.operations.iter().collect();
    begun.sort_by_key(|operation| operation.began);
    let mut ended = begun.clone();
    ended.sort_by_key(|operation| operation.ended);
    let mut ended = ended.into_iter().peekable();
    for operation in begun {
        while let Some(before) = ended.next_if(|before| before.ended < operation.began) {
            known.learn(before, truth);
        }
        known.check(operation, truth, done).map_err(|what| format!("{what}: {operation:?}"))?;
    }
    Ok(())
}

// === impl Known ===

impl<'h> Known<'h> {
    fn learn(&mut self, operation: &'h Operation, truth: &'h Truth) {
        let at = match &operation.outcome {
            Outcome::Read(read) => {
                for key in truth.keys.keys().filter(|key| read.range.contains(key)) {
                    self.learn_key(key, read.at);
                }
                read.at
            }
            Outcome::Told { changes, at } => {
                changes.iter().for_each(|(key, changed)| self.learn_key(key, *changed));
                *at
            }
            Outcome::Written { at, write } => {
                write.changes.iter().for_each(|(key, _)| self.learn_key(key, *at));
                *at
            }
            Outcome::Refused(_) | Outcome::Unknown(_) => return,
        };
        let told = &mut self.nodes[operation.node];
        *told = at.max(*told);
    }

    fn learn_key(&mut self, key: &'h [u8], at: Revision) {
        let known = self.keys.entry(key).or_default();
        *known = at.max(*known);
    }

    fn check(&self, operation: &Operation, truth: &Truth, done: &Ledger) -> Result<(), String> {
        let told = self.nodes[operation.node];
        let (at, write) = match &operation.outcome {
            Outcome::Read(read) if read.is_past => return Ok(()),
            Outcome::Read(read) => {
                if read.at < told {
                    return Err(format!("{told} was told before by this node"));
                }
                for (key, known) in self.keys.iter().filter(|(key, _)| read.range.contains(key)) {
                    let changed = truth.changed(key, *known);
                    if changed > read.at {
                        return Err(format!("the change at {changed} was known before"));
                    }
                }
                return Ok(());
            }
            Outcome::Written { at, write } => (*at, write),
            Outcome::Unknown(write) => match done.revision(write) {
                Some(at) => (at, write),
                None => return Ok(()),
            },
            Outcome::Refused(_) | Outcome::Told { .. } => return Ok(()),
        };
        if at <= told {
            return Err(format!("{told} was told before by this node"));
        }
        for (key, _) in &write.changes {
            let known = self.keys.get(&**key).copied().unwrap_or(0);
            if at <= known {
                return Err(format!("{key:?} was known as of {known} before"));
            }
        }
        Ok(())
    }
}

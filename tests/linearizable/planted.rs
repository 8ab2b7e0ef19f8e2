//! Proof that the checker can fail: true histories that a model made, and what is wrong with them noticed.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    check::{Promises, violations},
    history::{Asked, Call, Change, Keys, Kv, Outcome, Place, Said},
    support::rng::Rng,
};

const CALLS: usize = 600;

/// A server that does one call after the other.
#[derive(Default)]
struct Model {
    revision: i64,
    rows: BTreeMap<String, Kv>,
    leases: Vec<i64>,
    log: Vec<Change>,
    calls: Vec<Call>,
}

impl Model {
    fn put(&mut self, key: &str, value: &str, lease: i64) {
        self.revision += 1;
        let before = self.rows.get(key).cloned();
        let now = Kv {
            key: key.to_owned(),
            value: value.to_owned(),
            create: before.as_ref().map_or(self.revision, |kv| kv.create),
            modified: self.revision,
            version: before.as_ref().map_or(1, |kv| kv.version + 1),
            lease,
        };
        self.rows.insert(key.to_owned(), now.clone());
        let (revision, key, now) = (self.revision, key.to_owned(), Some(now));
        self.log.push(Change { revision, key, now, before });
    }

    fn delete(&mut self, is_meant: impl Fn(&Kv) -> bool) -> Vec<Kv> {
        let gone: Vec<Kv> = self.rows.values().filter(|kv| is_meant(kv)).cloned().collect();
        if !gone.is_empty() {
            self.revision += 1;
        }
        for kv in &gone {
            self.rows.remove(&kv.key);
            let (revision, key) = (self.revision, kv.key.clone());
            self.log.push(Change { revision, key, now: None, before: Some(kv.clone()) });
        }
        gone
    }

    fn done(&mut self, asked: Asked, said: Said) {
        let at = Duration::from_millis(2 * self.calls.len() as u64);
        let (begin, end) = (at, at + Duration::from_millis(1));
        let outcome = Outcome::Said(self.revision, said);
        self.calls.push(Call { node: 0, begin, end, asked, outcome });
    }

    fn head(&self) -> Option<Kv> {
        let line = self.rows.values().filter(|kv| kv.key.starts_with("/a/line/"));
        line.min_by_key(|kv| kv.create).cloned()
    }

    /// Gives a lock to whoever asks.
    fn lock(&mut self, name: &str, lease: i64) {
        let key = format!("{name}/{lease:x}");
        self.put(&key, "", lease);
        let asked = Asked::Enter { name: name.to_owned(), lease, value: None };
        self.done(asked, Said::Head(Place { key, created: 0, lease }));
    }

    fn step(&mut self, rng: &mut Rng, at: usize) {
        let key = format!("/a/{}", rng.below(5));
        let value = format!("v{at}");
        let keys = if rng.chance(50) { Keys::below("/a/") } else { Keys::one(&key) };
        let lease = if self.leases.is_empty() { None } else { Some(rng.pick(&self.leases)) };
        match (rng.below(14), lease) {
            (0..=1, _) => {
                self.put(&key, &value, 0);
                self.done(Asked::Put { key, value, lease: 0 }, Said::Done);
            }
            (2..=3, Some(lease)) => {
                self.put(&key, &value, lease);
                self.done(Asked::Put { key, value, lease }, Said::Done);
            }
            (4, _) => {
                let gone = self.delete(|kv| keys.contain(&kv.key));
                self.done(Asked::Delete(keys), Said::Deleted(gone));
            }
            (5, _) => {
                let found = self.rows.get(&key).cloned();
                let modified = found.as_ref().map_or(0, |kv| kv.modified);
                let expected = if rng.chance(50) { modified } else { modified + 1 };
                let is_put = expected == modified;
                if is_put {
                    self.put(&key, &value, 0);
                }
                let found = found.filter(|_| !is_put);
                self.done(Asked::Guarded { key, value, expected }, Said::Guarded { is_put, found });
            }
            (6, _) => {
                self.leases.push(at as i64 + 1);
                self.done(Asked::Grant(at as i64 + 1), Said::Done);
            }
            (7, Some(lease)) => {
                self.leases.retain(|id| *id != lease);
                self.delete(|kv| kv.lease == lease);
                self.done(Asked::Revoke(lease), Said::Done);
            }
            (8, Some(lease)) => {
                let held = self.rows.values().filter(|kv| kv.lease == lease);
                let held = held.map(|kv| kv.key.clone()).collect();
                self.done(Asked::TimeToLive(lease), Said::Lease(Some(held)));
            }
            (9, Some(lease)) if self.head().is_none() => self.lock("/a/line", lease),
            (9..=10, _) => {
                let told = self.head().into_iter().collect();
                self.done(Asked::Leader("/a/line".to_owned()), Said::Read(told));
            }
            (13, _) => {
                let keys = ["/a/left".to_owned(), "/a/right".to_owned()];
                self.put(&keys[0], &value, 0);
                self.put(&keys[1], &value, 0);
                // Both at the second's revision.
                let first = self.log.len() - 2;
                self.log[first].revision = self.revision;
                for (at, key) in keys.iter().enumerate() {
                    let row = self.rows.get_mut(key).expect("it was put");
                    row.modified = self.revision;
                    if row.version == 1 {
                        row.create = self.revision;
                    }
                    self.log[first + at].now = Some(row.clone());
                }
                self.done(Asked::PutBoth { keys, value }, Said::Done);
            }
            (11, _) if self.head().is_some() => {
                let head = self.head().expect("it is there");
                self.delete(|kv| kv.key == head.key);
                self.done(Asked::Unlock(head.key), Said::Done);
            }
            _ => {
                let found = self.rows.values().filter(|kv| keys.contain(&kv.key)).cloned();
                let found = found.collect();
                self.done(Asked::Read { keys, revision: 0 }, Said::Read(found));
            }
        }
    }
}

fn history(seed: u64) -> (Vec<Call>, Vec<Change>) {
    let (mut model, mut rng) = (Model { revision: 1, ..Model::default() }, Rng::new(seed));
    (0..CALLS).for_each(|at| model.step(&mut rng, at));
    (model.calls, model.log)
}

/// Changes one call that `is_meant`, and says whether there was one.
fn change(calls: &mut [Call], is_meant: fn(&Call) -> bool, change: fn(&mut Call)) -> bool {
    calls.iter_mut().rev().find(|call| is_meant(call)).map(change).is_some()
}

fn later(call: &mut Call) {
    if let Outcome::Said(revision, _) = &mut call.outcome {
        *revision += 2;
    }
}

fn earlier(call: &mut Call) {
    if let Outcome::Said(revision, _) = &mut call.outcome {
        *revision -= 2;
    }
}

#[test]
fn true_histories_are_taken_and_what_is_wrong_with_one_is_noticed() {
    type Plant = fn(&mut Vec<Call>, &mut Vec<Change>) -> bool;
    let plants: [(&str, Plant); 12] = [
        ("a revoke says a revision above the one at which the keys went", |calls, log| {
            let at = calls.iter().rposition(|call| match call.asked {
                Asked::Revoke(lease) => log.iter().any(|it| {
                    let was_its = it.before.as_ref().is_some_and(|kv| kv.lease == lease);
                    Some(it.revision) == call.revision() && it.now.is_none() && was_its
                }),
                _ => false,
            });
            at.map(|at| later(&mut calls[at])).is_some()
        }),
        ("half of a transaction is lost", |calls, log| {
            let both = calls.iter().rev().find(|call| matches!(call.asked, Asked::PutBoth { .. }));
            let revision = both.and_then(Call::revision);
            log.retain(|change| Some(change.revision) != revision || change.key != "/a/left");
            revision.is_some()
        }),
        ("an unlock says a revision above the one at which the place went", |calls, _| {
            change(calls, |call| matches!(call.asked, Asked::Unlock(_)), later)
        }),
        ("a read says a revision above what it read", |calls, _| {
            change(
                calls,
                |call| matches!(call.asked, Asked::Read { .. }) && call.revision() < Some(80),
                later,
            )
        }),
        ("a read says a revision of before", |calls, _| {
            change(calls, |call| matches!(&call.outcome, Outcome::Said(_, Said::Read(_))), earlier)
        }),
        ("an answer to a grant goes back", |calls, _| {
            change(calls, |call| matches!(call.asked, Asked::Grant(_)), earlier)
        }),
        ("a read lacks a key", |calls, _| {
            let reads = |call: &Call| matches!(&call.outcome, Outcome::Said(_, Said::Read(kvs)) if !kvs.is_empty());
            change(calls, reads, |call| {
                if let Outcome::Said(_, Said::Read(kvs)) = &mut call.outcome {
                    kvs.pop();
                }
            })
        }),
        ("a write is lost", |calls, log| {
            let put = calls.iter().rev().find(|call| matches!(call.asked, Asked::Put { .. }));
            let revision = put.and_then(Call::revision);
            log.retain(|change| Some(change.revision) != revision);
            revision.is_some()
        }),
        ("something happens that nobody asked for", |_, log| {
            let mut change = log[log.len() / 2].clone();
            change.revision = log[log.len() - 1].revision + 1;
            change.before = None;
            "/b/new".clone_into(&mut change.key);
            log.push(change);
            true
        }),
        ("a lease has a key that it does not have", |calls, _| {
            let asks =
                |call: &Call| matches!(&call.outcome, Outcome::Said(_, Said::Lease(Some(_))));
            change(calls, asks, |call| {
                if let Outcome::Said(_, Said::Lease(Some(keys))) = &mut call.outcome {
                    keys.push("/a/more".to_owned());
                }
            })
        }),
        ("a lease is gone before anybody ends it", |calls, _| {
            let asks =
                |call: &Call| matches!(&call.outcome, Outcome::Said(_, Said::Lease(Some(_))));
            change(calls, asks, |call| {
                if let Outcome::Said(_, Said::Lease(keys)) = &mut call.outcome {
                    *keys = None;
                }
            })
        }),
        ("a guard lets pass what it must not", |calls, _| {
            let puts = |call: &Call| {
                matches!(&call.outcome, Outcome::Said(_, Said::Guarded { is_put: true, .. }))
            };
            change(calls, puts, |call| {
                if let Asked::Guarded { expected, .. } = &mut call.asked {
                    *expected += 7;
                }
            })
        }),
    ];
    for seed in 0..20 {
        let (calls, log) = history(seed);
        assert_eq!(violations(&calls, &log, Promises::ALL), Vec::<String>::new(), "seed {seed}");
        for (what, plant) in &plants {
            let (mut calls, mut log) = (calls.clone(), log.clone());
            assert!(plant(&mut calls, &mut log), "seed {seed}: nothing to plant: {what}");
            assert!(
                !violations(&calls, &log, Promises::ALL).is_empty(),
                "seed {seed}: not noticed: {what}"
            );
        }
    }
}

/// A lock that two hold, and one that is there after it was given up, are noticed.
#[test]
fn a_lock_that_two_hold_is_noticed() {
    let found = |model: &Model| violations(&model.calls, &model.log, Promises::ALL);
    let mut model = Model { revision: 1, ..Model::default() };
    for lease in [7, 8] {
        model.done(Asked::Grant(lease), Said::Done);
    }
    model.lock("/a/line", 7);
    let told = model.head().into_iter().collect();
    model.done(Asked::Leader("/a/line".to_owned()), Said::Read(told));
    assert_eq!(found(&model), Vec::<String>::new());
    model.lock("/a/line", 8);
    assert!(!found(&model).is_empty(), "two hold it");

    let mut model = Model { revision: 1, ..Model::default() };
    model.done(Asked::Grant(7), Said::Done);
    model.lock("/a/line", 7);
    model.done(Asked::Unlock("/a/line/7".to_owned()), Said::Done);
    assert!(!found(&model).is_empty(), "it is there");
}

/// A put under a lease that has ended, and a revoke that leaves a key, are noticed.
#[test]
fn a_lease_that_outlives_its_end_is_noticed() {
    let mut model = Model { revision: 1, ..Model::default() };
    model.done(Asked::Grant(7), Said::Done);
    model.put("/a/1", "x", 7);
    model.done(Asked::Put { key: "/a/1".to_owned(), value: "x".to_owned(), lease: 7 }, Said::Done);
    let mut left = Model { revision: model.revision, ..Model::default() };
    (left.calls, left.log) = (model.calls.clone(), model.log.clone());
    left.done(Asked::Revoke(7), Said::Done);
    assert!(
        !violations(&left.calls, &left.log, Promises::ALL).is_empty(),
        "the key is still there"
    );

    model.delete(|kv| kv.lease == 7);
    model.done(Asked::Revoke(7), Said::Done);
    assert!(violations(&model.calls, &model.log, Promises::ALL).is_empty());
    model.put("/a/2", "y", 7);
    model.done(Asked::Put { key: "/a/2".to_owned(), value: "y".to_owned(), lease: 7 }, Said::Done);
    assert!(
        !violations(&model.calls, &model.log, Promises::ALL).is_empty(),
        "it was taken under a lease that had ended"
    );
}

//! Whether a history is linearizable with revisions: each answer is true as of the revision in its header, and
//! revisions are in the order in which calls came one behind the other.
//!
//! The log says what happened at which revision, so nothing has to be searched for: what is to be shown for a
//! call is shown by looking. Between clients of one node every answer counts; between clients of two nodes of a
//! tree, what is about the same keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    history::{Asked, Call, Change, Keys, Kv, Outcome, Place, Said},
    lines::may_be_of_line,
};

/// What is promised beyond what always is.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// A lease ends at one revision: its keys lie in one store.
    pub ends_at_once: bool,
    /// The keys of a lease are those of the revision in the header. etcd looks at them beside its log.
    pub has_exact_leases: bool,
    /// Who gets a lock or wins an election is the first of its line as of the revision it is told. An etcd tells who is
    /// elected the one at which it came; and of two who wait with one lease, it takes one that gave up and came again
    /// for the other.
    pub has_exact_lines: bool,
}

impl Promises {
    pub const ALL: Self =
        Self { ends_at_once: true, has_exact_leases: true, has_exact_lines: true };
}

/// All that is wrong with a history; `log` has every change of its keys in order of revisions.
pub fn violations(calls: &[Call], log: &[Change], promises: Promises) -> Vec<String> {
    let mut check = Check::new(calls, log, promises);
    check.log();
    check.writes();
    check.reads();
    check.leases();
    check.lines();
    check.order();
    check.found
}

pub struct Check<'a> {
    pub calls: &'a [Call],
    commits: BTreeMap<i64, Vec<&'a Change>>,
    /// Of each key what it was from which revision on.
    past: BTreeMap<&'a str, Vec<(i64, Option<&'a Kv>)>>,
    /// Which call made a commit.
    made_by: HashMap<i64, usize>,
    /// The commits that were made by who stood in a line.
    of_lines: BTreeSet<i64>,
    /// The commits by which leases ended.
    ends: HashMap<i64, BTreeSet<i64>>,
    /// Those by which they may have ended, or a deletion that got no answer was carried out.
    maybe_ends: HashMap<i64, BTreeSet<i64>>,
    pub promises: Promises,
    found: Vec<String>,
}

impl<'a> Check<'a> {
    fn new(calls: &'a [Call], log: &'a [Change], promises: Promises) -> Self {
        let mut commits: BTreeMap<i64, Vec<&Change>> = BTreeMap::new();
        let mut past: BTreeMap<&str, Vec<(i64, Option<&Kv>)>> = BTreeMap::new();
        for change in log {
            commits.entry(change.revision).or_default().push(change);
            past.entry(&change.key).or_default().push((change.revision, change.now.as_ref()));
        }
        let (made_by, of_lines, ends, maybe_ends, found) = Default::default();
        Self { calls, commits, past, made_by, of_lines, ends, maybe_ends, promises, found }
    }

    pub fn wrong(&mut self, what: String) {
        self.found.push(what);
    }

    /// A key as of a revision.
    pub fn at(&self, key: &str, revision: i64) -> Option<&'a Kv> {
        let past = self.past.get(key)?;
        past[..past.partition_point(|(at, _)| *at <= revision)].last()?.1
    }

    fn all_at(&self, revision: i64, is_meant: impl Fn(&Kv) -> bool) -> Vec<&'a Kv> {
        let all = self.past.keys().filter_map(|key| self.at(key, revision));
        all.filter(|kv| is_meant(kv)).collect()
    }

    pub fn in_range_at(&self, keys: &Keys, revision: i64) -> Vec<&'a Kv> {
        self.all_at(revision, |kv| keys.contain(&kv.key))
    }

    /// The log itself: what was there before is what there was.
    fn log(&mut self) {
        for change in self.commits.values().flatten().copied().collect::<Vec<_>>() {
            let before = self.at(&change.key, change.revision - 1);
            if change.before.as_ref() != before {
                self.wrong(format!("{change:?}: there was {before:?} before"));
            }
        }
    }

    /// Every answer to a write has its commit, and every commit one call that made it.
    fn writes(&mut self) {
        for (at, call) in self.calls.iter().enumerate() {
            let Outcome::Said(revision, said) = &call.outcome else { continue };
            let changes = match (&call.asked, said) {
                (Asked::Put { key, value, lease }, _) => {
                    self.expect_put(call, *revision, key, value, Some(*lease));
                    true
                }
                (Asked::Proclaim(place, value), _) => {
                    let was = self.at(&place.key, revision - 1).map(|kv| kv.create);
                    if was != Some(place.created) {
                        self.wrong(format!("{call:?}: it had the place of {was:?}"));
                    }
                    self.expect_put(call, *revision, &place.key, value, Some(place.lease));
                    true
                }
                (Asked::PutBoth { keys, value }, _) => {
                    let commit = self.commits.get(revision).map_or(&[][..], Vec::as_slice);
                    if !is_of_both(keys, value, commit) {
                        let found = format!("{call:?}: at that revision there is {commit:?}");
                        self.wrong(found);
                    }
                    true
                }
                (Asked::Delete(keys), Said::Deleted(before)) => {
                    self.expect_deletion(call, *revision, keys, before)
                }
                (Asked::Guarded { key, value, expected }, Said::Guarded { is_put, found }) => {
                    let seen = self.at(key, if *is_put { revision - 1 } else { *revision });
                    if (seen.map_or(0, |kv| kv.modified) == *expected) != *is_put {
                        self.wrong(format!("{call:?}: it saw {seen:?}"));
                    }
                    match is_put {
                        true => self.expect_put(call, *revision, key, value, None),
                        false if found.as_ref() != seen => {
                            self.wrong(format!("{call:?}: there was {seen:?}"));
                        }
                        false => {}
                    }
                    *is_put
                }
                _ => false,
            };
            if changes && let Some(other) = self.made_by.insert(*revision, at) {
                self.wrong(format!("{call:?} and {:?} share a revision", self.calls[other]));
            }
        }
        self.unclaimed();
    }

    fn expect_put(
        &mut self,
        call: &Call,
        revision: i64,
        key: &str,
        value: &str,
        lease: Option<i64>,
    ) {
        let is_it = |kv: &Kv| {
            kv.key == key && kv.value == value && lease.is_none_or(|lease| kv.lease == lease)
        };
        let commit = self.commits.get(&revision).map(Vec::as_slice);
        let is_made = matches!(commit, Some([Change { now: Some(kv), .. }]) if is_it(kv));
        if !is_made {
            self.wrong(format!("{call:?}: at that revision there is {commit:?}"));
        }
    }

    fn expect_deletion(&mut self, call: &Call, revision: i64, keys: &Keys, told: &[Kv]) -> bool {
        if told.is_empty() {
            let there = self.in_range_at(keys, revision);
            if !there.is_empty() {
                self.wrong(format!("{call:?}: there was {there:?}"));
            }
            return false;
        }
        let there = self.in_range_at(keys, revision - 1);
        let gone = self.commits.get(&revision).into_iter().flatten();
        let gone: Vec<&str> =
            gone.filter(|it| it.now.is_none()).map(|change| change.key.as_str()).collect();
        let is_same = there.iter().copied().eq(told.iter())
            && there.iter().map(|kv| kv.key.as_str()).eq(gone.iter().copied());
        if !is_same {
            self.wrong(format!("{call:?}: there was {there:?}, and {gone:?} went"));
        }
        true
    }

    /// Commits that no answer names were made by calls without an answer, or are the end of a lease.
    fn unclaimed(&mut self) {
        let mut used = BTreeSet::new();
        // How often a place was put, and deleted, by key.
        let mut of_line: HashMap<bool, HashMap<&str, usize>> = HashMap::new();
        let commits: Vec<_> =
            self.commits.iter().map(|(revision, commit)| (*revision, commit.clone())).collect();
        for (revision, commit) in commits {
            if self.made_by.contains_key(&revision) {
                continue;
            }
            let is_by = |asked: &Asked| match (asked, &commit[..]) {
                (Asked::Proclaim(place, value), [Change { now: Some(kv), .. }]) => {
                    kv.key == place.key && kv.value == *value
                }
                (
                    Asked::Put { key, value, .. } | Asked::Guarded { key, value, .. },
                    [Change { now: Some(kv), .. }],
                ) => kv.key == *key && kv.value == *value,
                (Asked::PutBoth { keys, value }, both) => is_of_both(keys, value, both),
                (Asked::Delete(keys), gone) => {
                    let there = self.in_range_at(keys, revision - 1);
                    gone.iter().all(|it| it.now.is_none())
                        && there.iter().map(|kv| &kv.key).eq(gone.iter().map(|it| &it.key))
                }
                _ => false,
            };
            let lease = commit[0].before.as_ref().map_or(0, |kv| kv.lease);
            let is_end = lease != 0
                && commit.iter().all(|change| {
                    change.now.is_none()
                        && change.before.as_ref().is_some_and(|kv| kv.lease == lease)
                })
                && self.calls.iter().any(|call| {
                    matches!(call.asked, Asked::Revoke(id) if id == lease)
                        && !matches!(call.outcome, Outcome::Refused)
                });
            let maker = self.calls.iter().enumerate().position(|(at, call)| {
                matches!(call.outcome, Outcome::Unknown)
                    && is_by(&call.asked)
                    && !used.contains(&at)
            });
            let is_of_line =
                self.calls.iter().any(|call| may_be_of_line(call, &commit, self.promises));
            match maker {
                _ if is_end && (maker.is_some() || is_of_line) => {
                    self.maybe_ends.entry(lease).or_default().insert(revision);
                }
                // An answered deletion had nothing to delete, or was this one.
                _ if is_of_line => {
                    let counts = of_line.entry(commit[0].now.is_some()).or_default();
                    *counts.entry(&commit[0].key).or_default() += 1;
                    self.of_lines.insert(revision);
                }
                None if is_end => _ = self.ends.entry(lease).or_default().insert(revision),
                Some(at) => {
                    used.insert(at);
                    self.made_by.insert(revision, at);
                }
                None => self.wrong(format!("nobody made {commit:?}")),
            }
        }
        self.places(&of_line);
    }

    /// A place is put no more often than somebody entered it, and goes no more often than somebody left.
    fn places(&mut self, of_line: &HashMap<bool, HashMap<&str, usize>>) {
        for (is_put, counts) in of_line {
            for (key, count) in counts {
                let may = |call: &&Call| match &call.asked {
                    Asked::Enter { name, lease, .. } => {
                        *key == format!("{name}/{lease:x}") && (*is_put || !call.is_said())
                    }
                    Asked::Unlock(of) | Asked::Resign(Place { key: of, .. }) => {
                        of == key && !is_put
                    }
                    _ => false,
                };
                let calls = self.calls.iter().filter(may).count();
                if *count > calls {
                    let what = if *is_put { "put" } else { "deleted" };
                    self.wrong(format!("{key} was {what} {count} times, by {calls} calls"));
                }
            }
        }
    }

    /// What was read is what there was.
    fn reads(&mut self) {
        for call in self.calls {
            let (Asked::Read { keys, revision: asked }, Outcome::Said(revision, Said::Read(kvs))) =
                (&call.asked, &call.outcome)
            else {
                continue;
            };
            let there = self.in_range_at(keys, if *asked > 0 { *asked } else { *revision });
            if asked > revision || !there.iter().copied().eq(kvs.iter()) {
                self.wrong(format!("{call:?}: there was {there:?}"));
            }
        }
    }

    /// A lease lives until it is revoked, has the keys that it has, and ends with all of them.
    fn leases(&mut self) {
        for call in self.calls {
            match (&call.asked, &call.outcome) {
                (Asked::Revoke(lease), Outcome::Said(revision, _)) => {
                    let ends = self.ends.get(lease).cloned().unwrap_or_default();
                    let mut left = self.all_at(*revision, |kv| kv.lease == *lease);
                    if !self.promises.ends_at_once {
                        // Another store came later, and found that others had taken its keys.
                        left.retain(|kv| !self.is_taken_by_others(kv, *revision));
                    }
                    // An earlier revoke that got no answer may have ended it before.
                    let is_first = !self.calls.iter().any(|other| {
                        matches!(other.asked, Asked::Revoke(id) if id == *lease)
                            && matches!(other.outcome, Outcome::Unknown)
                    });
                    let maybe = self.maybe_ends.get(lease).is_some_and(|it| it.contains(revision));
                    let is_it = |last: &i64| match is_first && !maybe {
                        true => last == revision,
                        false => last <= revision,
                    };
                    if !ends.last().is_none_or(is_it) || !left.is_empty() {
                        self.wrong(format!("{call:?}: keys went at {ends:?}, and {left:?} stayed"));
                    }
                    let first = ends.first().unwrap_or(revision);
                    let later = self.commits.range(first..).flat_map(|(_, commit)| commit);
                    let later: Vec<_> = later
                        .filter(|it| it.now.as_ref().is_some_and(|kv| kv.lease == *lease))
                        .collect();
                    if !later.is_empty() {
                        self.wrong(format!("{call:?}: then came {later:?}"));
                    }
                }
                (Asked::TimeToLive(lease), Outcome::Said(revision, Said::Lease(held))) => {
                    let keys = self.all_at(*revision, |kv| kv.lease == *lease);
                    let is_same = held
                        .as_ref()
                        .is_none_or(|held| keys.iter().map(|kv| &kv.key).eq(held.iter()));
                    if self.promises.has_exact_leases && !is_same {
                        self.wrong(format!("{call:?}: it had {keys:?}"));
                    }
                    self.expect_lease(call, *lease, held.is_some());
                }
                (Asked::Look("leases"), Outcome::Said(_, Said::Leases(all))) => {
                    // Each node has leases of its own.
                    let here = self.calls.iter().filter(|other| other.node == call.node);
                    let granted = here.filter_map(|other| match other.asked {
                        Asked::Grant(lease) => Some(lease),
                        _ => None,
                    });
                    for lease in granted.collect::<BTreeSet<_>>() {
                        self.expect_lease(call, lease, all.contains(&lease));
                    }
                }
                (Asked::KeepAlive(lease), Outcome::Said(_, Said::Lease(held))) => {
                    self.expect_lease(call, *lease, held.is_some());
                }
                (Asked::Enter { lease, .. }, Outcome::Said(..)) => {
                    self.expect_lease(call, *lease, true);
                }
                (Asked::Put { lease, .. }, outcome) if *lease != 0 => match outcome {
                    Outcome::Said(..) => self.expect_lease(call, *lease, true),
                    Outcome::Refused => self.expect_lease(call, *lease, false),
                    Outcome::Unknown => {}
                },
                _ => {}
            }
        }
    }

    /// Whether what changed a key next was a call, and not the end of its lease.
    fn is_taken_by_others(&self, kv: &Kv, revision: i64) -> bool {
        let mut later = self.commits.range(revision + 1..);
        let next = later.find(|(_, commit)| commit.iter().any(|change| change.key == kv.key));
        next.is_some_and(|(revision, _)| {
            self.made_by.contains_key(revision) || self.of_lines.contains(revision)
        })
    }

    /// A lease may live during a call where no revoke had ended before, and may be gone where one had begun, or
    /// its grant had not ended.
    fn expect_lease(&mut self, call: &Call, lease: i64, lives: bool) {
        let of = |is_it: fn(&Asked, i64) -> bool| {
            self.calls.iter().filter(move |other| is_it(&other.asked, lease))
        };
        let mut grants = of(|asked, lease| matches!(asked, Asked::Grant(id) if *id == lease));
        let mut revokes = of(|asked, lease| matches!(asked, Asked::Revoke(id) if *id == lease));
        let is_possible = if lives {
            !revokes.any(|revoke| revoke.is_said() && revoke.end < call.begin)
        } else {
            let may_have_ended = |revoke: &Call| {
                !matches!(revoke.outcome, Outcome::Refused) && revoke.begin < call.end
            };
            revokes.any(may_have_ended)
                || !grants.any(|grant| grant.is_said() && grant.end < call.begin)
        };
        if !is_possible {
            self.wrong(format!(
                "{call:?}: that lease {}",
                if lives { "was gone" } else { "lived" }
            ));
        }
    }

    /// Calls that came one behind the other have revisions in that order; what changes something has a new one.
    fn order(&mut self) {
        let mut ended: Vec<&Call> = self.calls.iter().filter(|call| call.is_said()).collect();
        ended.sort_by_key(|call| call.end);
        let mut begun = self.calls.iter().enumerate().collect::<Vec<_>>();
        begun.sort_by_key(|(_, call)| call.begin);
        let mut before = ended.into_iter().peekable();
        // The greatest revision that was told: at each node, and of a change of each key.
        let mut at_node: HashMap<usize, i64> = HashMap::new();
        let mut of_key: HashMap<&str, i64> = HashMap::new();
        for (at, call) in begun {
            while let Some(earlier) = before.next_if(|earlier| earlier.end < call.begin) {
                let revision = earlier.revision().unwrap_or(0);
                let told = at_node.entry(earlier.node).or_default();
                *told = revision.max(*told);
                for change in self.commits.get(&revision).into_iter().flatten() {
                    let told = of_key.entry(&change.key).or_default();
                    *told = revision.max(*told);
                }
            }
            let Some(revision) = call.revision() else { continue };
            let told = at_node.get(&call.node).copied().unwrap_or(0);
            let is_new = self.made_by.get(&revision) == Some(&at);
            if revision < told || is_new && revision == told {
                self.wrong(format!("{call:?}: {told} was told before it began"));
            }
            let about = match &call.asked {
                Asked::Read { keys, revision: 0 } | Asked::Delete(keys) => Some(keys.clone()),
                Asked::Put { key, .. } | Asked::Guarded { key, .. } | Asked::Unlock(key) => {
                    Some(Keys::one(key))
                }
                Asked::PutBoth { keys, .. } => Some(Keys::one(&keys[0])),
                Asked::Proclaim(place, _) | Asked::Resign(place) => Some(Keys::one(&place.key)),
                Asked::Enter { name, .. } if self.promises.has_exact_lines => {
                    Some(Keys::below(&format!("{name}/")))
                }
                Asked::Leader(name) => Some(Keys::below(&format!("{name}/"))),
                _ => None,
            };
            if let Some(keys) = about {
                let newer =
                    of_key.iter().filter(|(key, told)| keys.contain(key) && **told > revision);
                let newer: Vec<_> = newer.collect();
                if !newer.is_empty() {
                    let newer = format!("{newer:?}");
                    self.wrong(format!("{call:?}: {newer} was told before it began"));
                }
            }
        }
    }
}

/// Whether a commit has these two keys with that value, and nothing else.
fn is_of_both(keys: &[String; 2], value: &str, commit: &[&Change]) -> bool {
    let put = commit.iter().filter_map(|change| change.now.as_ref());
    let put = put.filter(|kv| kv.value == value && keys.contains(&kv.key)).count();
    commit.len() == 2 && put == 2
}

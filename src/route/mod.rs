//! The composite: a store made of stores.
//!
//! ```text
//!              ┌ rule 1 ──> store        the first rule that matches a key decides;
//!   Router ────┼ rule 2 ──> store        what no rule matches goes to the default store
//!              └ default ─> store
//! ```
//!
//! A request that touches one store is that store's alone. A read that spans stores is made in all of
//! them as of one revision, and merged by key; a tail that spans stores is merged by revision. A store
//! may hold keys that route elsewhere, since rules change: such misrouted keys are never shown.
//!
//! What it never does: spread one transaction over two stores, answer with a part of a list, or keep
//! anything of its own. A deletion that an operator lets it split is no transaction.

mod fan;
mod merged;
pub mod rule;
mod split;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use futures::future::{join_all, try_join_all};

use self::rule::{Reach, Rule};
use crate::{
    clock::Standing,
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    store::{
        Coverage, Described, Head, Page, Query, Size, Store, Tail, Written, attach::AttachState,
        meter::Meters,
    },
};

/// A rule and the store it sends its keys to.
#[derive(Debug)]
pub struct Route {
    /// Decides which keys are meant.
    pub rule: Rule,
    /// Where they live. Its name is the route's.
    pub store: Arc<dyn Store>,
    /// Whether others than this node may write keys there.
    pub has_other_writers: bool,
}

/// A store made of stores; see the module.
#[derive(Clone, Debug)]
pub struct Router {
    table: Arc<Table>,
    /// The stores that this view spans, by their place in the table, in order.
    members: Vec<usize>,
    name: Arc<str>,
    /// Of all its stores that have a life of their own.
    attach_states: Vec<Arc<AttachState>>,
}

/// Routes in order, and last the default store.
#[derive(Debug)]
struct Table {
    rules: Vec<Rule>,
    /// One for each rule, then the default.
    stores: Vec<Arc<dyn Store>>,
    /// For each store whether others than this node write there.
    has_other_writers: Vec<bool>,
    /// For each store the revision since which it is known to hold no key that routes elsewhere.
    clean_since: Vec<AtomicI64>,
}

/// Where a key goes, and why.
#[derive(Debug)]
pub struct Explanation<'a> {
    /// The route's name.
    pub route: &'a Arc<str>,
    /// The rule that matched; `None` for the default.
    pub rule: Option<&'a Rule>,
}

// === impl Router ===

impl Router {
    /// Whether a route leads to the store of this incarnation, as far as is known.
    pub fn leads_to(&self, incarnation: u64) -> bool {
        self.stores().any(|store| store.head().incarnation == incarnation)
    }

    /// A router over `routes`, in order, with `default` for the rest.
    pub fn new(routes: Vec<Route>, default: Arc<dyn Store>) -> Arc<Self> {
        let has_other_writers = routes.iter().map(|route| route.has_other_writers);
        let has_other_writers = has_other_writers.chain([false]).collect();
        let (rules, mut stores): (Vec<_>, Vec<_>) =
            routes.into_iter().map(|route| (route.rule, route.store)).unzip();
        stores.push(default);
        let clean_since = stores.iter().map(|_| AtomicI64::new(Revision::MAX)).collect();
        let members = (0..stores.len()).collect();
        let table = Table { rules, stores, has_other_writers, clean_since };
        Arc::new(Self::view(Arc::new(table), members))
    }

    /// A router without routes: all keys go to `store`.
    pub fn single(store: Arc<dyn Store>) -> Arc<Self> {
        Self::new(Vec::new(), store)
    }

    fn view(table: Arc<Table>, members: Vec<usize>) -> Self {
        let stores = members.iter().map(|at| &table.stores[*at]);
        let names: Vec<&str> = stores.clone().map(|store| &**store.name()).collect();
        let name = names.join("+").into();
        let attach_states = stores.flat_map(|store| store.attach_states().to_vec()).collect();
        Self { table, members, name, attach_states }
    }

    /// The stores that may hold keys of a range, as one. Reads and tails of what it returns wait for no
    /// other store.
    pub fn narrow(self: &Arc<Self>, range: &KeyRange) -> Arc<Self> {
        let touched = self.touched(range);
        if touched.is_empty() || touched == self.members {
            return self.clone();
        }
        Arc::new(Self::view(self.table.clone(), touched))
    }

    /// Whether all its numbers are of this node's clock, so that what comes next is above all shown.
    pub fn is_own(&self) -> bool {
        self.attach_states.is_empty()
    }

    /// Up to where every store is compacted: less than [`Store::compacted`] where a child has done more
    /// by itself.
    pub fn compacted_everywhere(&self) -> Revision {
        self.stores().map(|store| store.compacted()).min().unwrap_or(-1)
    }

    /// Where `key` goes.
    pub fn explain(&self, key: &[u8]) -> Explanation<'_> {
        let at = self.table.owner(key);
        Explanation { route: self.table.stores[at].name(), rule: self.table.rules.get(at) }
    }

    /// How much of a range each route takes, as [`rule::reaches`]; the default store takes what all of them leave.
    pub fn reaches(&self, range: &KeyRange) -> Vec<(Explanation<'_>, Reach)> {
        let Table { rules, stores, .. } = &*self.table;
        let mut reaches = rule::reaches(rules, range);
        if reaches.last() != Some(&Reach::Whole) {
            let takes_all = reaches.iter().all(|reach| *reach == Reach::None);
            reaches.push(if takes_all { Reach::Whole } else { Reach::Part });
        }
        let named = stores.iter().enumerate().map(|(at, store)| {
            let (route, rule) = (store.name(), rules.get(at));
            Explanation { route, rule }
        });
        named.zip(reaches).collect()
    }

    /// The names of the routes that may hold keys of a range.
    pub fn names_for(&self, range: &KeyRange) -> Vec<&Arc<str>> {
        self.touched(range).into_iter().map(|at| self.table.stores[at].name()).collect()
    }

    /// Counts, in those of the stores at `places` in the table that this node alone writes, the keys that route
    /// elsewhere, as of `revision`; with the stores' places. Not again where there was none. Until then, and in
    /// stores that others write always, spanning reads look at each key. `unmeasured` are the table's stores, as
    /// they are read for this: nobody asked for it. Costs a scan of all keys.
    pub async fn survey(
        &self,
        unmeasured: &[Arc<dyn Store>],
        places: &[usize],
        revision: Revision,
    ) -> Vec<(usize, Result<u64>)> {
        let is_to_be_seen = |at: &&usize| {
            places.contains(at)
                && !self.table.has_other_writers[**at]
                && !self.table.is_clean(**at, revision)
        };
        let mut found = Vec::new();
        for &at in self.members.iter().filter(is_to_be_seen) {
            let misrouted = self.table.misrouted(&*unmeasured[at], at, revision).await;
            if matches!(misrouted, Ok(0)) {
                self.table.clean_since[at].fetch_min(revision, Ordering::Relaxed);
            }
            found.push((at, misrouted));
        }
        found
    }

    /// The stores of this view that may hold keys of a range, in order.
    fn touched(&self, range: &KeyRange) -> Vec<usize> {
        let mut touched = self.table.touched(range);
        touched.retain(|at| self.members.contains(at));
        touched
    }

    /// The stores of this view, the default store last.
    pub fn stores(&self) -> impl Iterator<Item = &Arc<dyn Store>> {
        self.members.iter().map(|at| &self.table.stores[*at])
    }

    /// The one store in which all keys of a transaction lie.
    fn place(&self, txn: &Txn) -> Result<&Arc<dyn Store>> {
        let mut touched = BTreeSet::new();
        txn.for_each_range(&mut |range| touched.extend(self.touched(range)));
        let mut touched = touched.into_iter();
        match (touched.next(), touched.next()) {
            (Some(first), Some(second)) => Err(StoreError::TwoStores {
                first: self.table.stores[first].name().clone(),
                second: self.table.stores[second].name().clone(),
            }),
            (Some(only), None) => Ok(&self.table.stores[only]),
            (None, _) => Ok(self.default_store()),
        }
    }

    fn default_store(&self) -> &Arc<dyn Store> {
        self.table.stores.last().expect("the default store is always there")
    }
}

#[async_trait]
impl Store for Router {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        self.place(&txn)?.apply(txn, dead_leases).await
    }

    /// One store after the other, so that revisions come in the stores' order; one that fails does not
    /// save the keys of the others.
    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>> {
        // All of them, also where one is away: what can go goes.
        let ended = join_all(self.stores().map(|store| store.end_lease(lease))).await;
        ended.into_iter().try_fold(None, |last, revision| Ok(revision?.max(last)))
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        let leases = try_join_all(self.stores().map(|store| store.leases())).await?;
        Ok(leases.into_iter().flatten().collect())
    }

    async fn read(&self, read: &Query) -> Result<Page> {
        match self.touched(&read.range)[..] {
            // No key lies there, but whether the revision can be read must be said all the same.
            [] => self.default_store().read(read).await,
            [only] => self.table.stores[only].read(read).await,
            ref several if read.revision == 0 => {
                let revision = self.read_index(&read.range, Coverage::All).await?;
                fan::read(&self.table, several, &read.at(revision)).await
            }
            ref several => fan::read(&self.table, several, read).await,
        }
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        match self.touched(&query.range)[..] {
            [] => self.default_store().count(query).await,
            [only] => self.table.stores[only].count(query).await,
            ref several => fan::count(&self.table, several, query).await,
        }
    }

    fn tail(&self, after: Revision) -> Tail {
        match self.members[..] {
            [only] => self.table.stores[only].tail(after),
            _ => merged::tail(self.table.clone(), &self.members, after),
        }
    }

    fn covers(&self, after: Revision) -> bool {
        self.stores().all(|store| store.covers(after))
    }

    fn check_resume(&self, after: Revision) -> Result<()> {
        self.stores().try_for_each(|store| store.check_resume(after))
    }

    fn attach_states(&self) -> &[Arc<AttachState>] {
        &self.attach_states
    }

    /// Passes over those that are detached, as its tails do: what they do meanwhile comes late.
    fn announce_closed(&self) -> Revision {
        let standing = |store: &Arc<dyn Store>| attach_state(store).map(|it| it.standing());
        let stands = self.stores().map(|store| (store, standing(store).unwrap_or_default()));
        let (away, there): (Vec<_>, Vec<_>) = stands.partition(|(_, it)| it.detached_at.is_some());
        let closed = there.iter().map(|(store, _)| store.announce_closed()).min();
        let passes = |(store, standing): &(&Arc<dyn Store>, Standing)| {
            let attached = attach_state(store).zip(closed);
            attached.is_some_and(|(state, closed)| state.pass(closed, standing.detach_epoch))
        };
        let held_up =
            away.iter().filter(|it| !passes(it)).map(|(store, _)| store.announce_closed()).min();
        closed.into_iter().chain(held_up).min().unwrap_or(0)
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        // All of them, also where one can't: who goes on without that one hears from the others.
        let closed =
            join_all(self.stores().map(|store| store.advance_closed(revision, ahead))).await;
        let closed: Vec<Revision> = closed.into_iter().collect::<Result<_>>()?;
        Ok(closed.into_iter().min().unwrap_or(revision))
    }

    /// The greatest of the presents: each store is read as of it, and closes it first.
    async fn read_index(&self, range: &KeyRange, coverage: Coverage) -> Result<Revision> {
        let touched = match self.touched(range) {
            none if none.is_empty() => {
                return self.default_store().read_index(range, coverage).await;
            }
            touched => touched,
        };
        let counts = |store: &&Arc<dyn Store>| {
            let left = attach_state(store).and_then(|state| state.detached_at());
            coverage == Coverage::All || left.is_none()
        };
        let stores = touched.iter().map(|at| &self.table.stores[*at]).filter(counts);
        let presents = stores.map(|store| store.read_index(range, coverage));
        Ok(try_join_all(presents).await?.into_iter().max().unwrap_or(0))
    }

    /// All of them, whichever fails.
    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        let compacted = join_all(self.stores().map(|store| store.compact(revision, wait))).await;
        compacted.into_iter().collect()
    }

    fn compacted(&self) -> Revision {
        self.stores().map(|store| store.compacted()).max().unwrap_or(-1)
    }

    async fn size(&self) -> Result<Size> {
        let sizes = try_join_all(self.stores().map(|store| store.size())).await?;
        let sum = |sum: Size, size: Size| Size {
            total: sum.total + size.total,
            in_use: sum.in_use + size.in_use,
        };
        Ok(sizes.into_iter().fold(Size::default(), sum))
    }

    /// How far the one has come that has come farthest.
    fn head(&self) -> Head {
        let all = Head { is_exact: true, ..Head::default() };
        self.stores().map(|store| store.head()).fold(all, |all, head| Head {
            newest: all.newest.max(head.newest),
            is_exact: all.is_exact && head.is_exact,
            is_full: all.is_full || head.is_full,
            ..all
        })
    }

    /// One store after the other: each waits for its disk. Those that are away are passed over.
    async fn defragment(&self) -> Result<bool> {
        let (mut has_files, mut failed) = (false, None);
        for store in self.stores() {
            match store.defragment().await {
                Ok(has) => has_files |= has,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(has_files), Err)
    }

    async fn close(&self) {
        join_all(self.stores().map(|store| store.close())).await;
    }

    async fn describe(&self) -> Vec<Described> {
        join_all(self.stores().map(|store| store.describe())).await.concat()
    }

    fn meters(&self) -> Vec<Meters> {
        self.stores().flat_map(|store| store.meters()).collect()
    }
}

/// Whether a store of a route is there, where it has a life of its own.
fn attach_state(store: &Arc<dyn Store>) -> Option<&Arc<AttachState>> {
    store.attach_states().first()
}

// === impl Table ===

impl Table {
    /// The store that owns a key.
    fn owner(&self, key: &[u8]) -> usize {
        self.rules.iter().position(|rule| rule.matches(key)).unwrap_or(self.rules.len())
    }

    /// The stores that may own keys of a range, in order.
    fn touched(&self, range: &KeyRange) -> Vec<usize> {
        if range.is_empty() {
            return Vec::new();
        }
        if let Some(key) = range.as_single() {
            return vec![self.owner(key)];
        }
        let mut touched = Vec::new();
        for (at, rule) in self.rules.iter().enumerate() {
            match rule.reach(range) {
                Reach::None => {}
                Reach::Part => touched.push(at),
                Reach::Whole => {
                    touched.push(at);
                    return touched;
                }
            }
        }
        touched.push(self.rules.len());
        touched
    }

    /// How many keys a store holds that route elsewhere.
    async fn misrouted(&self, store: &dyn Store, at: usize, revision: Revision) -> Result<u64> {
        let mut misrouted = 0;
        let mut read = Query { keys_only: true, ..Query::new(KeyRange::all(), revision) };
        loop {
            let page = store.read(&read).await?;
            misrouted += page.kvs.iter().filter(|kv| self.owner(&kv.key) != at).count() as u64;
            let Some(next) = page.next else { return Ok(misrouted) };
            read.range.start = next;
        }
    }

    /// The parts of a range in which a store may own keys, in order, none of which overlap.
    fn parts(&self, at: usize, range: &KeyRange) -> Vec<KeyRange> {
        let Some(rule) = self.rules.get(at) else { return vec![range.clone()] };
        let mut parts: Vec<KeyRange> =
            rule.extent().iter().map(|part| part.intersect(range)).collect();
        parts.retain(|part| !part.is_empty());
        parts.sort_unstable_by(|a, b| a.start.cmp(&b.start));
        parts.dedup_by(|later, first| {
            let is_apart = first.end.as_ref().is_some_and(|end| *end < later.start);
            if !is_apart {
                let ends = first.end.take().zip(later.end.take());
                first.end = ends.map(|(a, b)| a.max(b));
            }
            !is_apart
        });
        parts
    }

    /// Whether a store owns all keys of a range. A `true` is certain.
    fn owns(&self, at: usize, range: &KeyRange) -> bool {
        let (earlier, rule) = (&self.rules[..at], self.rules.get(at));
        earlier.iter().all(|earlier| earlier.reach(range) == Reach::None)
            && rule.is_none_or(|rule| rule.reach(range) == Reach::Whole)
    }

    /// Whether a store is known to have held no key that routes elsewhere, as of a revision. There
    /// may have been some before: what nothing routes to a store can go from it, and never come.
    fn is_clean(&self, at: usize, revision: Revision) -> bool {
        self.clean_since[at].load(Ordering::Relaxed) <= revision
    }

    /// Whether all keys that a store has in a range are its own.
    fn is_pure(&self, at: usize, range: &KeyRange, revision: Revision) -> bool {
        self.is_clean(at, revision) || self.owns(at, range)
    }
}

//! Transactions: what etcd's `Txn` means, as a function of the rows that it touches.
//!
//! A store loads the rows that [`Txn::needs`] names, calls [`execute`], and writes down the changes
//! that come back. Nothing here fails half-way: every check is made before the first change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Commit, Event, Key, KeyRange, KeyValue, LeaseId, Revision, StoreError, error::Result,
    key::successor,
};
use crate::select::Selector;

/// The live keys, as far as they matter to the transaction at hand.
pub type Rows = BTreeMap<Key, KeyValue>;

/// What reads in the past found, by what they asked.
pub type Past = HashMap<(KeyRange, Revision), Vec<KeyValue>>;

/// Compares, and what to do where they all hold or where one does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold; evaluated before anything is changed, those of nested transactions too.
    pub compares: Vec<Compare>,
    /// Done, in order, where all compares hold.
    pub success: Vec<Op>,
    /// Done, in order, where one does not.
    pub failure: Vec<Op>,
    /// Whether its deletions may be carried out store by store, each at a revision of its own: nobody has asked for
    /// all of them at once, and an operator allows it.
    pub may_split: bool,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read keys; sees the changes of the operations before it.
    Range(RangeOp),
    /// Write one key.
    Put(PutOp),
    /// Delete the keys of a range.
    Delete(DeleteOp),
    /// A transaction within.
    Txn(Txn),
}

/// A condition on every key of a range. A range without keys counts as one key of zeroes, which no
/// value condition holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The keys.
    pub range: KeyRange,
    /// How what is stored must relate to `against`.
    pub relation: Relation,
    /// What it is compared with.
    pub against: Against,
}

/// How two values relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Stored = given.
    Equal,
    /// Stored > given.
    Greater,
    /// Stored < given.
    Less,
    /// Stored ≠ given.
    NotEqual,
    /// A number that etcd does not define; it holds always.
    Unknown,
}

/// What a compare looks at, with the value to compare with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Against {
    /// The key's version.
    Version(i64),
    /// The revision that created it.
    Create(Revision),
    /// The revision that changed it last.
    Mod(Revision),
    /// Its value.
    Value(Bytes),
    /// Its lease.
    Lease(LeaseId),
    /// A number that etcd does not define; it compares as equal.
    Unknown,
}

/// A read of a range, with all that etcd's `RangeRequest` may say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeOp {
    /// The keys.
    pub range: KeyRange,
    /// The most keys wanted; 0 or less for all.
    pub limit: i64,
    /// As of which revision; 0 or less for now.
    pub revision: Revision,
    /// The order of the answer.
    pub order: Order,
    /// What the answer is ordered by.
    pub order_by: OrderBy,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Bounds on `mod_revision`; 0 for none.
    pub mod_revisions: Bounds,
    /// Bounds on `create_revision`; 0 for none.
    pub create_revisions: Bounds,
    /// Only objects that this may match, in the answer and in its count; `None` for all keys.
    pub selector: Option<Arc<Selector>>,
}

/// An inclusive interval of revisions; 0 means no bound on that side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The least, or 0.
    pub min: Revision,
    /// The greatest, or 0.
    pub max: Revision,
}

/// The direction of a sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Not asked for: ascending, but cut to the limit before it is sorted.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Greatest first.
    Descend,
}

/// What a sort compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum OrderBy {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// A write of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutOp {
    /// The key.
    pub key: Key,
    /// The new value, unless the old one is kept.
    pub value: Bytes,
    /// The lease to attach it to, 0 to detach it, unless the old one is kept.
    pub lease: LeaseId,
    /// Answer with what was there before.
    pub prev_kv: bool,
    /// Keep the value; an error where the key does not exist.
    pub keep_value: bool,
    /// Keep the lease; an error where the key does not exist.
    pub keep_lease: bool,
}

/// A deletion of the keys of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteOp {
    /// The keys.
    pub range: KeyRange,
    /// Answer with what was there before.
    pub prev_kv: bool,
}

/// What a transaction answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResult {
    /// Whether all compares held.
    pub succeeded: bool,
    /// One for each operation of the branch that was taken.
    pub results: Vec<OpResult>,
}

/// What an operation answers. `revision` is the header's: that of the state which it saw or made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are those of etcd's answers")]
pub enum OpResult {
    Range { revision: Revision, found: Found },
    Put { revision: Revision, prev: Option<KeyValue> },
    Delete { revision: Revision, deleted: i64, prevs: Vec<KeyValue> },
    Txn(TxnResult),
}

/// What a read of a range found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The keys that were asked for, in the order asked for.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut the answer.
    pub more: bool,
    /// The keys in the range that the selector may match, whatever limit and bounds say.
    pub count: i64,
}

/// What a transaction did.
#[derive(Debug)]
pub struct Outcome {
    /// The revision of the answer: that of the changes, or the one it was evaluated at.
    pub revision: Revision,
    /// The answer.
    pub result: TxnResult,
    /// The changes, if any.
    pub commit: Option<Commit>,
}

/// What must be loaded before a transaction can be executed.
#[derive(Debug, Default)]
pub struct Needs {
    /// Single keys.
    pub keys: BTreeSet<Key>,
    /// Ranges at present.
    pub ranges: Vec<KeyRange>,
    /// Ranges in the past.
    pub past: Vec<(KeyRange, Revision)>,
}

/// Where a transaction is executed.
#[derive(Debug)]
pub struct Workspace<'a> {
    /// The live rows, at least those that are needed; left as the transaction leaves them.
    pub rows: &'a mut Rows,
    /// What reads in the past found.
    pub past: &'a Past,
    /// The revision of the state in `rows`.
    pub before: Revision,
    /// Leases which the transaction names, and which do not exist.
    pub dead_leases: &'a [LeaseId],
}

// === impl Txn ===

impl Txn {
    /// Whether some branch may change something.
    pub fn is_mutating(&self) -> bool {
        self.ops().any(|op| match op {
            Op::Range(_) => false,
            Op::Put(_) | Op::Delete(_) => true,
            Op::Txn(txn) => txn.is_mutating(),
        })
    }

    /// Every range that the transaction names, nested ones included.
    pub fn for_each_range(&self, visit: &mut dyn FnMut(&KeyRange)) {
        self.compares.iter().for_each(|compare| visit(&compare.range));
        for op in self.ops() {
            match op {
                Op::Range(range) => visit(&range.range),
                Op::Put(put) => visit(&KeyRange::single(put.key.clone())),
                Op::Delete(delete) => visit(&delete.range),
                Op::Txn(txn) => txn.for_each_range(visit),
            }
        }
    }

    /// The bytes of the longest key that it may put; 0 where it puts none.
    pub fn longest_put(&self) -> usize {
        let longest = self.ops().map(|op| match op {
            Op::Put(put) => put.key.len(),
            Op::Txn(txn) => txn.longest_put(),
            Op::Range(_) | Op::Delete(_) => 0,
        });
        longest.max().unwrap_or(0)
    }

    /// The bytes of the longest key and value that it may put; 0 where it puts none.
    pub fn largest_put(&self) -> usize {
        let largest = self.ops().map(|op| match op {
            Op::Put(put) => put.key.len() + put.value.len(),
            Op::Txn(txn) => txn.largest_put(),
            Op::Range(_) | Op::Delete(_) => 0,
        });
        largest.max().unwrap_or(0)
    }

    /// Whether it does nothing but delete, whatever is there.
    pub fn is_deletions(&self) -> bool {
        self.compares.is_empty()
            && self.failure.is_empty()
            && self.success.iter().all(|op| matches!(op, Op::Delete(_)))
    }

    /// What it deletes where its compares hold, in order.
    pub fn deletions(&self) -> impl Iterator<Item = &DeleteOp> {
        self.success.iter().filter_map(|op| match op {
            Op::Delete(delete) => Some(delete),
            _ => None,
        })
    }

    /// Every lease that a put of the transaction names.
    pub fn leases(&self) -> BTreeSet<LeaseId> {
        let mut leases = BTreeSet::new();
        for op in self.ops() {
            match op {
                Op::Put(put) if put.lease != 0 => drop(leases.insert(put.lease)),
                Op::Txn(txn) => leases.extend(txn.leases()),
                _ => {}
            }
        }
        leases
    }

    /// The bytes that it carries, about.
    pub fn size(&self) -> usize {
        let ops = self.ops().map(|op| match op {
            Op::Put(put) => put.key.len() + put.value.len(),
            Op::Txn(txn) => txn.size(),
            Op::Range(_) | Op::Delete(_) => 0,
        });
        64 + ops.sum::<usize>()
    }

    /// What [`execute`] must be given.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        self.collect_needs(&mut needs);
        needs
    }

    fn collect_needs(&self, needs: &mut Needs) {
        self.compares.iter().for_each(|compare| needs.add(&compare.range));
        for op in self.ops() {
            match op {
                Op::Range(read) if read.revision > 0 => {
                    needs.past.push((read.range.clone(), read.revision));
                }
                Op::Range(read) => needs.add(&read.range),
                Op::Put(put) => drop(needs.keys.insert(put.key.clone())),
                Op::Delete(delete) => needs.add(&delete.range),
                Op::Txn(txn) => txn.collect_needs(needs),
            }
        }
    }

    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.success.iter().chain(&self.failure)
    }
}

impl From<Op> for Txn {
    fn from(op: Op) -> Self {
        Self { success: vec![op], ..Self::default() }
    }
}

// === impl Needs ===

impl Needs {
    fn add(&mut self, range: &KeyRange) {
        match range.as_single() {
            Some(key) => drop(self.keys.insert(key.clone())),
            None if range.is_empty() => {}
            None => self.ranges.push(range.clone()),
        }
    }
}

// === impl Compare ===

impl Compare {
    /// The key that it says does not exist, where that is what it says.
    pub fn absent(&self) -> Option<&Key> {
        let is_zero =
            matches!(self.against, Against::Version(0) | Against::Create(0) | Against::Mod(0));
        self.range.as_single().filter(|_| is_zero && self.relation == Relation::Equal)
    }

    fn holds(&self, rows: &Rows) -> bool {
        let mut kvs = in_range(rows, &self.range).peekable();
        if kvs.peek().is_none() {
            let is_value = matches!(self.against, Against::Value(_));
            return !is_value && self.holds_for(&KeyValue::default());
        }
        kvs.all(|kv| self.holds_for(kv))
    }

    fn holds_for(&self, kv: &KeyValue) -> bool {
        let ordering = match &self.against {
            Against::Version(version) => kv.version.cmp(version),
            Against::Create(revision) => kv.create_revision.cmp(revision),
            Against::Mod(revision) => kv.mod_revision.cmp(revision),
            Against::Value(value) => kv.value.cmp(value),
            Against::Lease(lease) => kv.lease.cmp(lease),
            Against::Unknown => std::cmp::Ordering::Equal,
        };
        match self.relation {
            Relation::Equal => ordering.is_eq(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
            Relation::NotEqual => ordering.is_ne(),
            Relation::Unknown => true,
        }
    }
}

// === impl Bounds ===

impl Bounds {
    fn admit(&self, revision: Revision) -> bool {
        (self.min == 0 || revision >= self.min) && (self.max == 0 || revision <= self.max)
    }

    fn is_given(&self) -> bool {
        self.min != 0 || self.max != 0
    }
}

// === impl RangeOp ===

impl RangeOp {
    /// All keys of a range, as they are now.
    pub fn all(range: KeyRange) -> Self {
        Self {
            range,
            limit: 0,
            revision: 0,
            order: Order::None,
            order_by: OrderBy::Key,
            keys_only: false,
            count_only: false,
            mod_revisions: Bounds::default(),
            create_revisions: Bounds::default(),
            selector: None,
        }
    }

    /// Whether the answer is more than the first keys of the range in key order, so that all of
    /// them must be fetched before the limit applies.
    pub fn needs_whole_range(&self) -> bool {
        self.order == Order::Descend
            || (self.order == Order::Ascend && self.order_by != OrderBy::Key)
            || self.mod_revisions.is_given()
            || self.create_revisions.is_given()
    }

    /// Whether values matter even where only keys are wanted.
    pub fn needs_values(&self) -> bool {
        self.order_by == OrderBy::Value
    }

    /// The answer, given keys of the range in key order: all of them, or where
    /// [`RangeOp::needs_whole_range`] says no, at least one more than the limit.
    ///
    /// Bounds first, then the order, then the limit, as etcd does it. Where no order is asked for
    /// but something other than the key to order by, etcd cuts before it sorts: so do we.
    pub fn shape(&self, mut kvs: Vec<KeyValue>, count: i64) -> Found {
        if self.count_only {
            return Found { count, ..Found::default() };
        }
        let limit = usize::try_from(self.limit).unwrap_or(0);
        kvs.retain(|kv| {
            self.mod_revisions.admit(kv.mod_revision)
                && self.create_revisions.admit(kv.create_revision)
        });
        let cuts_first = self.order == Order::None && !self.needs_whole_range();
        let mut more = false;
        if cuts_first && limit > 0 && kvs.len() > limit {
            // One more than the limit is what etcd fetches, sorts, and then cuts.
            kvs.truncate(limit + 1);
        }
        self.sort(&mut kvs);
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            more = true;
        }
        if self.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
                // etcd leaves the lease where it has fetched the values to sort by them.
                if self.order_by != OrderBy::Value {
                    kv.lease = 0;
                }
            }
        }
        Found { kvs, more, count }
    }

    fn sort(&self, kvs: &mut [KeyValue]) {
        let compare = |a: &KeyValue, b: &KeyValue| match self.order_by {
            OrderBy::Key => a.key.cmp(&b.key),
            OrderBy::Version => a.version.cmp(&b.version),
            OrderBy::Create => a.create_revision.cmp(&b.create_revision),
            OrderBy::Mod => a.mod_revision.cmp(&b.mod_revision),
            OrderBy::Value => a.value.cmp(&b.value),
        };
        match (self.order, self.order_by) {
            (Order::None | Order::Ascend, OrderBy::Key) => {}
            (Order::None | Order::Ascend, _) => kvs.sort_by(compare),
            (Order::Descend, _) => kvs.sort_by(|a, b| compare(b, a)),
        }
    }
}

/// Gives the revision of a change; fails where none can be given.
pub type Allocate<'a> = &'a mut dyn FnMut() -> Result<Revision>;

/// Executes a transaction on `place`.
///
/// `allocate` is called at most once, when the first change is certain, and gives its revision.
///
/// # Errors
/// Where the branches that will be taken name a missing lease, want to keep the value or lease of a
/// missing key, or read at a revision that can't be read; then nothing was changed.
pub fn execute(
    txn: &Txn,
    place: Workspace<'_>,
    compacted: Revision,
    allocate: Allocate<'_>,
) -> Result<Outcome> {
    let mut path = Vec::new();
    choose(txn, place.rows, &mut path);
    check(txn, &place, compacted, &mut path.iter())?;
    let mut run = Run { place, allocate, after: None, events: Vec::new() };
    let result = run.txn(txn, &mut path.iter())?;
    let commit = run.after.map(|revision| Commit { revision, events: run.events });
    let revision = commit.as_ref().map_or(run.place.before, |commit| commit.revision);
    Ok(Outcome { revision, result, commit })
}

/// Deletes every key of `rows`, as the end of a lease does: one revision, in key order.
///
/// # Errors
/// Those of `allocate`.
pub fn delete_all(rows: &mut Rows, allocate: Allocate<'_>) -> Result<Option<Commit>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let revision = allocate()?;
    let events = std::mem::take(rows)
        .into_values()
        .map(|kv| Event { kv: KeyValue::tombstone(kv.key.clone(), revision), prev: Some(kv) })
        .collect();
    Ok(Some(Commit { revision, events }))
}

/// Decides the branches: one bool for each transaction that will be executed, outermost first.
fn choose(txn: &Txn, rows: &Rows, path: &mut Vec<bool>) {
    let holds = txn.compares.iter().all(|compare| compare.holds(rows));
    path.push(holds);
    for op in if holds { &txn.success } else { &txn.failure } {
        if let Op::Txn(inner) = op {
            choose(inner, rows, path);
        }
    }
}

type Path<'a> = std::slice::Iter<'a, bool>;

fn taken<'t>(txn: &'t Txn, path: &mut Path<'_>) -> (bool, &'t [Op]) {
    let succeeded = *path.next().expect("`choose` made one decision for each transaction");
    (succeeded, if succeeded { &txn.success } else { &txn.failure })
}

/// Checks the operations that will be executed, in order; the first that can't be is the error.
fn check(txn: &Txn, place: &Workspace<'_>, compacted: Revision, path: &mut Path<'_>) -> Result<()> {
    for op in taken(txn, path).1 {
        match op {
            Op::Put(put) => {
                if place.dead_leases.contains(&put.lease) {
                    return Err(StoreError::LeaseNotFound(put.lease));
                }
                if (put.keep_value || put.keep_lease) && !place.rows.contains_key(&put.key) {
                    return Err(StoreError::KeyNotFound);
                }
            }
            Op::Range(read) if read.revision > place.before => {
                return Err(StoreError::FutureRevision { current: place.before });
            }
            Op::Range(read) if read.revision != 0 && read.revision < compacted => {
                return Err(StoreError::Compacted { compacted });
            }
            Op::Txn(inner) => check(inner, place, compacted, path)?,
            Op::Range(_) | Op::Delete(_) => {}
        }
    }
    Ok(())
}

/// A transaction being executed.
struct Run<'a, 'b> {
    place: Workspace<'a>,
    allocate: Allocate<'b>,
    after: Option<Revision>,
    events: Vec<Event>,
}

// === impl Run ===

impl Run<'_, '_> {
    fn txn(&mut self, txn: &Txn, path: &mut Path<'_>) -> Result<TxnResult> {
        let (succeeded, ops) = taken(txn, path);
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Range(read) => self.range(read),
                Op::Put(put) => self.put(put)?,
                Op::Delete(delete) => self.delete(delete)?,
                Op::Txn(inner) => OpResult::Txn(self.txn(inner, path)?),
            });
        }
        Ok(TxnResult { succeeded, results })
    }

    fn revision(&self) -> Revision {
        self.after.unwrap_or(self.place.before)
    }

    fn change(&mut self) -> Result<Revision> {
        if let Some(revision) = self.after {
            return Ok(revision);
        }
        let revision = (self.allocate)()?;
        self.after = Some(revision);
        Ok(revision)
    }

    /// An event's `prev` is the key before the whole transaction, which may touch a key twice; a put
    /// that creates the key has none.
    fn record(&mut self, kv: KeyValue, old: Option<KeyValue>) {
        if kv.version == 1 {
            self.events.push(Event { kv, prev: None });
            return;
        }
        let prev = match &old {
            Some(again) if again.mod_revision == kv.mod_revision => {
                let earlier = self.events.iter().find(|event| event.kv.key == kv.key);
                earlier.and_then(|event| event.prev.clone())
            }
            _ => old,
        };
        self.events.push(Event { kv, prev });
    }

    fn range(&self, read: &RangeOp) -> OpResult {
        let selector = read.selector.as_ref();
        let is_wanted = |kv: &&KeyValue| selector.is_none_or(|it| it.may_match(&kv.value));
        let kvs: Vec<KeyValue> = if read.revision > 0 {
            let asked = (read.range.clone(), read.revision);
            self.place.past.get(&asked).into_iter().flatten().filter(is_wanted).cloned().collect()
        } else {
            in_range(self.place.rows, &read.range).filter(is_wanted).cloned().collect()
        };
        let count = i64::try_from(kvs.len()).unwrap_or(i64::MAX);
        OpResult::Range { revision: self.revision(), found: read.shape(kvs, count) }
    }

    fn put(&mut self, put: &PutOp) -> Result<OpResult> {
        let revision = self.change()?;
        let old = self.place.rows.get(&put.key).cloned();
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: old.as_ref().map_or(0, |kv| kv.version) + 1,
            lease: match &old {
                Some(kv) if put.keep_lease => kv.lease,
                _ => put.lease,
            },
            value: match &old {
                Some(kv) if put.keep_value => kv.value.clone(),
                _ => put.value.clone(),
            },
        };
        self.place.rows.insert(kv.key.clone(), kv.clone());
        let prev = old.clone().filter(|_| put.prev_kv);
        self.record(kv, old);
        Ok(OpResult::Put { revision, prev })
    }

    fn delete(&mut self, delete: &DeleteOp) -> Result<OpResult> {
        let keys: Vec<Key> =
            in_range(self.place.rows, &delete.range).map(|kv| kv.key.clone()).collect();
        let mut prevs = Vec::with_capacity(keys.len());
        for key in keys {
            let revision = self.change()?;
            let old = self.place.rows.remove(&key);
            prevs.extend(old.clone());
            self.record(KeyValue::tombstone(key, revision), old);
        }
        let deleted = i64::try_from(prevs.len()).unwrap_or(i64::MAX);
        if !delete.prev_kv {
            prevs.clear();
        }
        Ok(OpResult::Delete { revision: self.revision(), deleted, prevs })
    }
}

/// The rows in a range, in key order.
pub fn in_range<'r>(
    rows: &'r Rows,
    range: &KeyRange,
) -> impl Iterator<Item = &'r KeyValue> + use<'r> {
    use std::ops::Bound;
    // `BTreeMap::range` panics on a reversed range, so an empty one is asked as [start, start).
    let end = match &range.end {
        None => Bound::Unbounded,
        Some(_) if range.is_empty() => Bound::Excluded(successor(&range.start)),
        Some(end) => Bound::Excluded(end.clone()),
    };
    let take = if range.is_empty() { 0 } else { usize::MAX };
    rows.range((Bound::Included(range.start.clone()), end)).map(|(_, kv)| kv).take(take)
}

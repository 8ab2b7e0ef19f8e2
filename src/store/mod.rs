//! The one interface, and its leaves.
//!
//! # Architecture
//!
//! ```text
//!   etcd's services ──> Node ──> Router ──> Store   (memory | sql | etcd | slot | child)
//!      server/          node/     route/    store/, tree/
//!                        │
//!                        └──> Hub: tails of stores, many watchers   (watch/)
//! ```
//!
//! A [`Store`] is one ordered log of revisions, and the live keys that the log adds up to. Leaves keep
//! one; a router is a store made of stores; another node is a store that is a router elsewhere. So a
//! tree is an `Arc<dyn Store>`, whatever it is made of.
//!
//! What every store promises:
//!
//! * **One order.** [`Store::apply`] takes its revision from the node's clock at the moment it commits.
//!   Revisions in a store only grow, and what shares a revision is applied whole.
//! * **Durable before answered.** `apply` returns after the change would survive a crash of the machine.
//! * **Reads are snapshots.** [`Store::read`] and [`Store::count`] at a revision see exactly the changes
//!   at or below it, first waiting until the store has closed it. Pages read at one revision fit
//!   together, however long a reader takes between them: no transaction is held open. A read of the
//!   present sees all that was answered, by whomever, before it was asked.
//! * **A tail has no gap.** [`Store::tail`] yields every commit behind where it started, in order, and
//!   says with each batch up to where it is complete. A reader that is slow makes nothing grow. What was
//!   said without a store that was away is set right when it is back: [`LogBatch::backfill`].
//! * **Compaction is a line.** At and above [`Store::compacted`] everything can be read; below, nothing.
//!
//! What a caller may rely on, whichever store it is:
//!
//! * **A dropped call.** A write whose future is dropped may still be applied, whole; a store that has it
//!   in its queue carries it out. Reads end with their future. Nothing is left half done.
//! * **Time.** A store that can't be reached refuses at once where that is known, else within the time
//!   limit of its connection (7 s for databases and etcds, the caller's deadline for a child). What waits
//!   for a revision to close waits as long as a write is in flight below it, and for no store in trouble.
//! * **Backpressure.** A queue that is full makes `apply` wait to be let in; it never drops and never grows.
//! * **Trying again.** [`crate::model::StoreError::is_retryable`] says whether the same request may be made
//!   again: never where the outcome is unknown.
//!
//! What no store does: poll, hold a lock across a database call, or retry a write whose outcome is not
//! known. Only those that are clients of others know gRPC.

pub mod attach;
pub mod etcd;
pub mod explained;
pub mod journal;
mod led;
pub mod memory;
pub mod meter;
pub mod metered;
pub mod pool;
pub mod prefixes;
pub mod records;
pub mod selected;
pub mod slot;
pub mod sql;

use std::{collections::BTreeSet, fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

pub use crate::proto::tree::Route as Described;

use self::{
    attach::AttachState,
    explained::{Explanation, StoreRead},
    meter::Meters,
};
use crate::{
    model::{
        Commit, Key, KeyRange, KeyValue, LeaseId, Revision,
        error::Result,
        txn::{Txn, TxnResult},
    },
    select::Selector,
};

/// The most rows that a page holds, whatever was asked for.
pub const PAGE_ROWS_MAX: usize = 10_000;

/// The bytes after which a page ends, so that what streams never needs more memory than this.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// One ordered log of revisions. The module says what its methods promise; none has a default, so that
/// what wraps a store can't forget one.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The route's name, as errors and metrics say it.
    fn name(&self) -> &Arc<str>;

    /// Applies a transaction that may change keys, all of it or nothing, and returns once it is durable.
    /// `dead_leases` are those that it names and that do not exist: putting a key under one is refused.
    ///
    /// # Errors
    /// Nothing was applied, unless the error is [`crate::model::StoreError::UnknownOutcome`].
    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written>;

    /// Deletes all keys of a lease, in key order: at one revision in each leaf that has some. Returns the
    /// greatest of these revisions; `None` where there was no key. It may be asked for again after an error,
    /// and then deletes what is left.
    ///
    /// # Errors
    /// The first of those of its leaves; the others are done all the same.
    async fn end_lease(&self, lease: LeaseId) -> Result<Option<Revision>>;

    /// The leases of its live keys, but for those that a node behind it granted itself.
    ///
    /// # Errors
    /// Where the store can't be reached.
    async fn leases(&self) -> Result<BTreeSet<LeaseId>>;

    /// The first keys of a range as of a revision that is not above what the clock has reached, or at
    /// present; the page says which that was.
    ///
    /// # Errors
    /// `Compacted` where the revision is too old, also where it becomes so meanwhile.
    async fn read(&self, query: &Query) -> Result<Page>;

    /// How many keys a query finds as of its revision, whatever its limit. Costs no more than reading
    /// the keys, or where there is a selector, their values.
    ///
    /// # Errors
    /// As [`Store::read`].
    async fn count(&self, query: &Query) -> Result<u64>;

    /// The commits behind `after`, from the log and then as they happen. The first batch comes at
    /// once where anything behind `after` is closed. The stream ends only with an error: `Compacted`
    /// where `after + 1` is compacted already.
    fn tail(&self, after: Revision) -> Tail;

    /// Whether a tail from behind `after` finds here all that the store had closed when it was last
    /// reached. True of every store that this node writes itself.
    fn covers(&self, after: Revision) -> bool;

    /// Whether a watch may go on behind `after`: all at or below was given out with every store there.
    ///
    /// # Errors
    /// `Compacted` where changes came late: whoever has got there must start afresh.
    fn check_resume(&self, after: Revision) -> Result<()>;

    /// The states of attachment of those of its leaves that have a life of their own: none for a store
    /// that only this node's clock numbers.
    fn attach_states(&self) -> &[Arc<AttachState>];

    /// Announces what is closed now: every commit at or below is in the log, and none is still to come.
    /// A store that is detached counts as passed over up to there, and is held to that when it is back.
    fn announce_closed(&self) -> Revision;

    /// Closes at least `revision`, and makes every tail say so. Where nothing is in flight it may close
    /// `ahead` more at once, for a parent. Returns what is closed.
    ///
    /// # Errors
    /// Where the store can't be reached.
    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision>;

    /// The read index of a range: a revision that is not below anything answered from it before this
    /// was asked, by the stores that count.
    ///
    /// # Errors
    /// Where that is not known here, and who knows it can't be reached.
    async fn read_index(&self, range: &KeyRange, coverage: Coverage) -> Result<Revision>;

    /// Gives up all that only reads below `revision` need. Returns when such reads are refused for
    /// good; the work is done behind, or before returning where `wait` says so.
    ///
    /// # Errors
    /// Where the store can't be reached. To an older revision it changes nothing.
    async fn compact(&self, revision: Revision, wait: bool) -> Result<()>;

    /// The oldest revision that can be read; -1 before the first compaction, as in etcd.
    fn compacted(&self) -> Revision;

    /// The bytes that it takes on disk; where it can't be reached in time, as last measured.
    ///
    /// # Errors
    /// None where that is known.
    async fn size(&self) -> Result<Size>;

    /// Which store it is, and how far it has come, as far as that is known here.
    fn head(&self) -> Head;

    /// The stores it is made of, as a node tells others: itself, unless it is composed.
    async fn describe(&self) -> Vec<Described>;

    /// What is measured of each of its leaves.
    fn meters(&self) -> Vec<Meters>;

    /// Gives what is free in its files back to the disk, where it has such files; says whether it has. Writes
    /// wait meanwhile, for as long as it takes to copy the store.
    ///
    /// # Errors
    /// Where there is no room for the copy, or the store can't be used.
    async fn defragment(&self) -> Result<bool>;

    /// Ends its tasks and gives it up, so that another process may have it at once. What is asked of it
    /// afterwards is refused. Returns when that is done, or can't be.
    async fn close(&self);
}

/// A store that can be a node's default store: it keeps what the node must not forget beside the keys.
/// [`crate::store::records`] says what that is. Records have no revisions, and reads and tails do not
/// see them.
#[async_trait]
pub trait RecordStore: Store {
    /// Keeps records durably, or forgets them, all or none.
    ///
    /// # Errors
    /// As [`Store::apply`].
    async fn put_records(&self, changes: Vec<(String, Option<Bytes>)>) -> Result<()>;

    /// The record of exactly this name.
    ///
    /// # Errors
    /// Where the store can't be reached.
    async fn get_record(&self, name: &str) -> Result<Option<Bytes>>;

    /// The records whose names begin with `prefix`, ordered by name. Costs what it finds.
    ///
    /// # Errors
    /// Where the store can't be reached.
    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>>;

    /// Ends when another node has taken the store: from then on it refuses everything, and its tails end.
    fn fenced(&self) -> BoxFuture<'static, ()>;
}

/// The commits of a store as they come; see [`Store::tail`].
pub type Tail = BoxStream<'static, Result<LogBatch>>;

/// A piece of a log.
#[derive(Clone, Debug)]
pub struct LogBatch {
    /// Commits in order; may be none.
    pub commits: Vec<Arc<Commit>>,
    /// Every commit at or below this revision is in this batch or was in one before.
    pub closed: Revision,
    /// Commits of a store that were passed over while it was away: by this tail, or by others whose
    /// followers go on here.
    pub backfill: Backfill,
}

/// Commits that come too late for some.
#[derive(Clone, Debug, Default)]
pub struct Backfill {
    /// In no order. Some revision at or above each was said to be closed before, to someone.
    pub commits: Vec<Arc<Commit>>,
    /// All that was said up to here was said with the store there.
    pub after: Revision,
    /// The resume floor: who was told of a revision above `after` and below it may lack them, and
    /// starts afresh.
    pub floor: Revision,
}

/// Which stores count in a read index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All.
    All,
    /// All but those that are detached, without which merged watches go on.
    Attached,
}

/// What applying a transaction did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The revision of the change; where nothing changed, the one that the write was evaluated at.
    pub revision: Revision,
    /// What the transaction answers.
    pub result: TxnResult,
}

/// Which keys are asked for.
#[derive(Clone, Debug)]
pub struct Query {
    /// The range they lie in.
    pub range: KeyRange,
    /// As of which revision; 0 for the present.
    pub revision: Revision,
    /// The most keys wanted; 0 for as many as a page holds.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only keys attached to this lease since no later than the revision; 0 for all keys.
    pub lease: LeaseId,
    /// Only objects that this may match as of the revision; `None` for all keys. Not together with a lease.
    pub selector: Option<Arc<Selector>>,
    /// Where stores say what they did for it; `None` where nobody asks.
    pub explanation: Option<Arc<Explanation>>,
}

/// The first keys of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys in order. May be none while more are to come, where a router or a selector left some out.
    pub kvs: Vec<KeyValue>,
    /// Where the rest of the range begins; `None` at its end.
    pub next: Option<Key>,
    /// As of which revision it was read.
    pub revision: Revision,
}

/// Which store it is, and how far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Made with the store and kept in it: an empty one at the same address is another. 0 where that is
    /// not known, or where it is made of several.
    pub incarnation: u64,
    /// The greatest revision that it holds, as far as is known.
    pub newest: Revision,
    /// Whether it certainly holds nothing above that: not where a part of it is away.
    pub is_exact: bool,
    /// The greatest revision that it is known to have held by what lies beside it; 0 where nothing does.
    pub witnessed: Revision,
    /// Whether it may have been made from a copy since it was last owned, as far as its server says. Who knows
    /// how far it had come knows better.
    pub is_suspect: bool,
    /// Whether it has said that there is no room for more, and not yet that there is some again.
    pub is_full: bool,
}

/// Which store is expected at an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The one of this incarnation; `None` for the one that was there before, where something says which.
    pub incarnation: Option<u64>,
    /// Whether any other will do too.
    pub adopts: bool,
}

/// Bytes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// All that the store takes.
    pub total: u64,
    /// Of these, what holds data.
    pub in_use: u64,
}

// === impl Backfill ===

impl Backfill {
    /// Takes in more of what comes late.
    pub fn join(&mut self, more: Self) {
        if self.commits.is_empty() {
            *self = more;
        } else if !more.commits.is_empty() {
            self.commits.extend(more.commits);
            self.after = self.after.min(more.after);
            self.floor = self.floor.max(more.floor);
        }
    }
}

// === impl LogBatch ===

impl LogBatch {
    /// Commits, and up to where they are complete.
    pub fn new(commits: Vec<Arc<Commit>>, closed: Revision) -> Self {
        Self { commits, closed, backfill: Backfill::default() }
    }
}

// === impl Query ===

impl Query {
    /// A query for all keys of a range with their values.
    pub fn new(range: KeyRange, revision: Revision) -> Self {
        let (limit, keys_only, lease) = (0, false, 0);
        Self { range, revision, limit, keys_only, lease, selector: None, explanation: None }
    }

    /// The same as of a revision, where it is one of the present.
    pub fn at(&self, present: Revision) -> Self {
        let revision = if self.revision == 0 { present } else { self.revision };
        Self { revision, ..self.clone() }
    }

    /// Whether the selector, where there is one, may match a key with its value.
    pub fn wants(&self, kv: &KeyValue) -> bool {
        self.selector.as_ref().is_none_or(|selector| selector.may_match(&kv.value))
    }

    /// Says what a store did for it, where anybody asks.
    pub fn explain(&self, done: impl FnOnce() -> StoreRead) {
        if let Some(explanation) = &self.explanation {
            explanation.note(done());
        }
    }

    /// The rows that one page of this read may hold.
    pub fn rows_max(&self) -> usize {
        if self.limit == 0 { PAGE_ROWS_MAX } else { self.limit.min(PAGE_ROWS_MAX) }
    }
}

/// Reads page after page until the range or the limit ends; the last page's `next` says which.
///
/// # Errors
/// As [`Store::read`].
pub async fn read_all(store: &dyn Store, query: &Query) -> Result<Page> {
    let mut read = query.clone();
    let mut whole = Page::default();
    loop {
        let page = store.read(&read).await?;
        let count = page.kvs.len();
        if whole.kvs.is_empty() {
            whole.kvs = page.kvs;
        } else {
            whole.kvs.extend(page.kvs);
        }
        whole.next = page.next;
        whole.revision = page.revision;
        read.revision = page.revision;
        let Some(next) = whole.next.clone() else { return Ok(whole) };
        if read.limit > 0 {
            read.limit -= count.min(read.limit);
            if read.limit == 0 {
                return Ok(whole);
            }
        }
        read.range.start = next;
    }
}

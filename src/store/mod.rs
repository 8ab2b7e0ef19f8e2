//! The one interface, and its leaves.
//!
//! # Architecture
//!
//! ```text
//!   etcd's services ──> Node ──> Router ──> Store   (memory | sql | etcd | node)
//!      server/          node/     route/    store/
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
//!   said without a store that was away is set right when it is back: [`Batch::late`].
//! * **Compaction is a line.** At and above [`Store::compacted`] everything can be read; below, nothing.
//!
//! What no store does: poll, hold a lock across a database call, or retry a write whose outcome is not
//! known. Only those that are clients of others know gRPC.

pub mod etcd;
mod guess;
pub mod journal;
pub mod late;
pub mod membership;
pub mod memory;
pub mod node;
pub mod presence;
mod queue;
pub mod sql;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use crate::proto::tree::Route as Described;

use self::presence::Presence;
use crate::model::{
    Commit, Key, KeyRange, KeyValue, LeaseId, Revision,
    error::Result,
    txn::{Txn, TxnResult},
};

/// The most rows that a page holds, whatever was asked for.
pub const PAGE_ROWS_MAX: usize = 10_000;

/// The bytes after which a page ends, so that what streams never needs more memory than this.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// One ordered log of revisions. The module says what its methods promise.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Applies a write, all of it or nothing, and returns once it is durable.
    ///
    /// # Errors
    /// Nothing was applied, unless the error is [`crate::model::StoreError::UnknownOutcome`].
    async fn apply(&self, write: Write) -> Result<Written>;

    /// The keys of a range as of a revision that is not above what the clock has reached, or at
    /// present; the page says which that was.
    ///
    /// # Errors
    /// `Compacted` where the revision is too old, also where it becomes so meanwhile.
    async fn read(&self, read: &Read) -> Result<Page>;

    /// How many keys a range holds as of a revision. Costs no more than reading the keys.
    ///
    /// # Errors
    /// As [`Store::read`].
    async fn count(&self, range: &KeyRange, revision: Revision) -> Result<u64>;

    /// The commits behind `after`, from the log and then as they happen. The first batch comes at
    /// once where anything behind `after` is closed. The stream ends only with an error: `Compacted`
    /// where `after + 1` is compacted already.
    fn tail(&self, after: Revision) -> Tail;

    /// What is closed now: every commit at or below is in the log, and none is still to come.
    fn closed(&self) -> Revision;

    /// Closes at least `revision`, and makes every tail say so. Where nothing is in flight it may close
    /// `ahead` more at once, for a parent. Returns what is closed.
    ///
    /// # Errors
    /// Where the store can't be reached.
    async fn sync(&self, revision: Revision, ahead: Revision) -> Result<Revision>;

    /// A revision that is not below anything answered from a range before this was asked, by the
    /// stores that count.
    ///
    /// # Errors
    /// Where that is not known here, and who knows it can't be reached.
    async fn present(&self, range: &KeyRange, whose: Whose) -> Result<Revision>;

    /// Whether a tail from behind `after` finds here all that the store had closed when it was last
    /// there.
    fn is_here(&self, _after: Revision) -> bool {
        true
    }

    /// Whether the store is there, where it has a life of its own; `None` for one that this node
    /// writes alone.
    fn presence(&self) -> Option<&Arc<Presence>> {
        None
    }

    /// Whether all its numbers are of this node's clock, so that what comes next is above all shown.
    fn is_own(&self) -> bool {
        self.presence().is_none()
    }

    /// Whether others than this node write keys there.
    fn has_other_writers(&self) -> bool {
        self.presence().is_some()
    }

    /// Whether a watch may go on behind `after`: all at or below was given out with every store there.
    ///
    /// # Errors
    /// `Compacted` where changes came late: whoever has got there must start afresh.
    fn check_resumed(&self, after: Revision) -> Result<()> {
        self.presence().map_or(Ok(()), |presence| presence.check_resumed(after))
    }

    /// Gives up all that only reads below `revision` need. Returns when such reads are refused for
    /// good; the work is done behind, or before returning where `wait` says so.
    ///
    /// # Errors
    /// Where the store can't be reached. To an older revision it changes nothing.
    async fn compact(&self, revision: Revision, wait: bool) -> Result<()>;

    /// The oldest revision that can be read; -1 before the first compaction, as in etcd.
    fn compacted(&self) -> Revision;

    /// Up to where every store in it is compacted: less than [`Store::compacted`] where a child has
    /// done more by itself.
    fn compacted_everywhere(&self) -> Revision {
        self.compacted()
    }

    /// Keeps a record of the node (a lease, an alarm) durably beside the keys, or forgets it.
    /// Records have no revisions and are not seen by reads or tails.
    ///
    /// # Errors
    /// As [`Store::apply`].
    async fn remember(&self, name: &str, value: Option<Bytes>) -> Result<()>;

    /// The records whose names begin with `prefix`, ordered by name.
    ///
    /// # Errors
    /// Where the store can't be reached.
    async fn recall(&self, prefix: &str) -> Result<Vec<(String, Bytes)>>;

    /// The bytes that it takes on disk; where it can't be reached in time, as last measured.
    ///
    /// # Errors
    /// None where that is known.
    async fn size(&self) -> Result<Size>;

    /// The stores it is made of, as a node tells others: itself, unless it is composed.
    async fn describe(&self) -> Vec<Described> {
        vec![Described { name: self.name().to_string(), ..Described::default() }]
    }

    /// The stores that hold the keys of a range, as one store. Reads and tails of what it returns
    /// wait for no other store.
    fn narrow(self: Arc<Self>, range: &KeyRange) -> Arc<dyn Store>;

    /// The route's name, as errors and metrics say it.
    fn name(&self) -> &Arc<str>;
}

/// The commits of a store as they come; see [`Store::tail`].
pub type Tail = BoxStream<'static, Result<Batch>>;

/// A piece of a log.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Commits in order; may be none.
    pub commits: Vec<Arc<Commit>>,
    /// Every commit at or below this revision is in this batch or was in one before.
    pub closed: Revision,
    /// Commits of a store that were passed over while it was away: by this tail, or by others whose
    /// followers go on here.
    pub late: Late,
}

/// Commits that come too late for some.
#[derive(Clone, Debug, Default)]
pub struct Late {
    /// In no order. Some revision at or above each was said to be closed before, to someone.
    pub commits: Vec<Arc<Commit>>,
    /// All that was said up to here was said with the store there.
    pub after: Revision,
    /// Who was told of a revision above `after` and below `floor` may lack them, and starts afresh.
    pub floor: Revision,
}

/// Which stores count in what is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// All.
    All,
    /// All but those that are detached, without which merged watches go on.
    Attached,
}

/// Something to apply.
#[derive(Clone, Debug)]
pub enum Write {
    /// A transaction that may change keys.
    Txn {
        /// What to do.
        txn: Txn,
        /// The leases it names that do not exist: putting a key under one is refused.
        dead_leases: Vec<LeaseId>,
    },
    /// Deletes all keys of a lease, in key order, at one revision.
    DeleteLeased(LeaseId),
}

/// What applying a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The revision of the change; where nothing changed, the one that the write was evaluated at.
    pub revision: Revision,
    /// What the transaction answers.
    pub result: TxnResult,
}

/// A read of a range.
#[derive(Clone, Debug)]
pub struct Read {
    /// The keys.
    pub range: KeyRange,
    /// As of which revision; 0 for the present.
    pub revision: Revision,
    /// The most keys wanted; 0 for as many as a page holds.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only keys attached to this lease since no later than the revision; 0 for all keys.
    pub lease: LeaseId,
}

/// The first keys of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys in order. May be none while more are to come, where a router left some out.
    pub kvs: Vec<KeyValue>,
    /// Where the rest of the range begins; `None` at its end.
    pub next: Option<Key>,
    /// As of which revision it was read.
    pub revision: Revision,
}

/// Bytes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// All that the store takes.
    pub total: u64,
    /// Of these, what holds data.
    pub in_use: u64,
}

// === impl Late ===

impl Late {
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

// === impl Batch ===

impl Batch {
    /// Commits, and up to where they are complete.
    pub fn new(commits: Vec<Arc<Commit>>, closed: Revision) -> Self {
        Self { commits, closed, late: Late::default() }
    }
}

// === impl Read ===

impl Read {
    /// A read of all keys of a range with their values.
    pub fn new(range: KeyRange, revision: Revision) -> Self {
        Self { range, revision, limit: 0, keys_only: false, lease: 0 }
    }

    /// The same as of a revision, where it is one of the present.
    pub fn at(&self, present: Revision) -> Self {
        let revision = if self.revision == 0 { present } else { self.revision };
        Self { revision, ..self.clone() }
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
pub async fn read_all(store: &dyn Store, read: &Read) -> Result<Page> {
    let mut read = read.clone();
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

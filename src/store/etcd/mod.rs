//! A store in a plain etcd, whose keys and values stay as they are for any other tool.
//!
//! ```text
//!   clients' keys      /registry/pods/…          as the etcd's own tools read and write them
//!   marks and log      pleach.store/…            our revisions, in the same transactions   (layout)
//!
//!   writer ── one transaction a batch, guarded ──> etcd <── others
//!      ^                                            │ watch
//!      └────── changes of others get revisions <── observer
//! ```
//!
//! Revisions come from the node's clock, and the etcd keeps which of its own they stand for: `layout`
//! says how, `history` and `past` find a state or a change by it. Keys that were there before keep the
//! etcd's revisions, so attaching an etcd costs the same whatever it holds. What others change is seen
//! in a watch, gets a revision then, and is served like any other change.
//!
//! What it never does: keep anything that the etcd has not, poll, or apply a write on a state that
//! somebody else has changed.

mod batch;
mod counted;
mod history;
mod layout;
mod observer;
mod owner;
mod past;
mod reader;
mod recent;
mod snapshot;
mod thread;
mod wire;
mod writer;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use self::{
    counted::Counted,
    history::{Entry, History},
    observer::Seen,
    owner::Tenure,
    past::Replay,
    recent::Recent,
    snapshot::Numbers,
    thread::Thread,
    wire::{Wire, WireError, WireResult},
    writer::Writer,
};
use super::{
    Head, LogBatch, PAGE_BYTES_MAX, Page, Query, RecordStore, Size,
    led::{self, Engine, Led, leaf::Leaf, mailbox::Task, page_sizer::PageSizer},
    pool::Pool,
};
use crate::{
    clock::SharedClock,
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    net::connect::Address,
};

/// The oldest etcd that compares ranges and nests transactions as this store needs it.
const VERSION_MIN: (u32, u32) = (3, 4);

/// What reads and the writer share.
#[derive(Debug)]
struct Shared {
    leaf: Leaf,
    wire: Arc<Wire>,
    numbers: Mutex<Arc<Numbers>>,
    history: History,
    recent: Recent,
    counted: Counted,
    seen: Arc<Seen>,
    tenure: Arc<Tenure>,
    page_sizer: PageSizer,
}

/// An etcd that can't be a store, or can't be one now.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another node has it.
    #[error("{place} is in use by {owner}; stop that node, or give this one another etcd")]
    InUse {
        /// The endpoint.
        place: String,
        /// What its owner wrote about itself.
        owner: String,
    },
    /// It has keys where this store keeps its own.
    #[error(
        "{place} has keys that begin with `{}`, and they are not Pleach's: what keeps its own there \
         can't be used beside it",
        layout::RESERVED_TEXT
    )]
    Foreign {
        /// The endpoint.
        place: String,
    },
    /// A newer version wrote it.
    #[error(
        "{place} has layout version {found}, which this version of Pleach does not know; run a newer one"
    )]
    TooNew {
        /// The endpoint.
        place: String,
        /// Its version.
        found: i64,
    },
    /// It is older than what is needed.
    #[error("{place} is an etcd {found}, and this store needs 3.4 or later; upgrade it")]
    TooOld {
        /// The endpoint.
        place: String,
        /// Its version.
        found: String,
    },
    /// It is another store than the one that was here.
    #[error(
        "{place} is another store than before: it was {expected:x} and is {}; put the endpoint right, or say \
         with --adopt ROUTE that it is meant",
        match found { 0 => "an etcd that was never used".to_owned(), found => format!("{found:x}") }
    )]
    Another {
        /// The endpoint.
        place: String,
        /// The incarnation that was here.
        expected: u64,
        /// The incarnation that is here; 0 where there is none yet.
        found: u64,
    },
    /// Anything else.
    #[error("{place} can't be opened: {reason}")]
    Failed {
        /// The endpoint.
        place: String,
        /// Why.
        reason: Reason,
    },
}

/// Why an etcd can't be opened.
#[derive(Debug)]
pub struct Reason {
    text: String,
    /// Whether it may be otherwise a moment later.
    may_pass: bool,
}

// === impl Reason ===

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<WireError> for Reason {
    fn from(error: WireError) -> Self {
        Self { text: error.to_string(), may_pass: matches!(error, WireError::Lost(_)) }
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self { text, may_pass: false }
    }
}

// === impl OpenError ===

impl OpenError {
    /// Whether the same etcd may be opened later, without anybody's help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::InUse { .. } => true,
            Self::Failed { reason, .. } => reason.may_pass,
            Self::Foreign { .. }
            | Self::TooNew { .. }
            | Self::TooOld { .. }
            | Self::Another { .. } => false,
        }
    }
}

/// Opens the store in the etcd at `address`, attaching it where it is not one yet, and takes it.
/// `place` and `owner` are what others are told about it. The clock is moved up to its revisions.
///
/// # Errors
/// Those of [`OpenError`].
pub async fn open(
    name: &str,
    place: &str,
    address: &Address,
    owner: &str,
    clock: SharedClock,
) -> Result<Arc<dyn RecordStore>, OpenError> {
    open_known(name, place, address, owner, clock, None).await
}

/// The same, where it must be the store of this incarnation: else nothing of it is changed.
///
/// # Errors
/// Those of [`OpenError`].
pub async fn open_known(
    name: &str,
    place: &str,
    address: &Address,
    owner: &str,
    clock: SharedClock,
    incarnation: Option<u64>,
) -> Result<Arc<dyn RecordStore>, OpenError> {
    let failed = |reason: Reason| OpenError::Failed { place: place.to_owned(), reason };
    let thread = Thread::start(name).map_err(|error| {
        failed(Reason {
            text: format!("the writer's thread does not start: {error}"),
            may_pass: true,
        })
    })?;
    let wire = Wire::new(name, address, thread).map_err(|error| failed(error.into()))?;
    let wire = Arc::new(wire);
    let version = wire.status().await.map_err(|error| failed(error.into()))?.version;
    if parsed(&version).is_none_or(|version| version < VERSION_MIN) {
        return Err(OpenError::TooOld { place: place.to_owned(), found: version });
    }
    let tenure = Arc::new(Tenure::new());
    let found = owner::claim(&wire, place, owner, &tenure, incarnation).await?;
    let about = found.about.unwrap_or_default();
    let (record, etcd) = (found.log, found.log_etcd);
    // Compaction may go beyond the last write.
    let newest = record.last.max(about.attached).max(about.compacted);
    // Others may have written it while this node went on without it: the slot sees to that.
    let joined = clock.join_apart(newest).await;
    let seat = joined.map_err(|error| failed(error.to_string().into()))?;
    let head = Head { incarnation: about.incarnation, newest, ..Head::default() };
    let compacted = if about.compacted == 0 { -1 } else { about.compacted };
    let known = found.known;
    let entry = Entry { etcd, base: record.base, last: record.last, ..Entry::default() };
    let seen = Seen::new(known);
    let shared = Arc::new(Shared {
        leaf: Leaf::new(name, clock, seat, head, compacted, Arc::default()),
        wire: wire.clone(),
        numbers: Mutex::new(Arc::new(Numbers {
            attached: about.attached,
            gaps: about.gaps.clone(),
            adopted: Default::default(),
        })),
        history: History::new(entry),
        recent: Recent::default(),
        counted: Counted::default(),
        seen: seen.clone(),
        tenure: tenure.clone(),
        page_sizer: PageSizer::new(true),
    });
    let (queue, tasks) = led::mailbox();
    let helpers = vec![
        tokio::spawn(observer::observe(wire.clone(), seen, record.epoch)),
        tokio::spawn(owner::keep(wire, tenure)),
    ];
    let mut writer = Writer {
        shared: shared.clone(),
        queue: tasks,
        note: owner.to_owned(),
        about,
        record,
        log_etcd: etcd,
        known,
        held: VecDeque::new(),
        one_by_one: 0,
        spare: VecDeque::new(),
        read_first: 0,
        helpers,
    };
    writer.begin().await.map_err(failed)?;
    let floor = shared.floor().await.map_err(|error| failed(error.into()))?;
    shared.leaf.raise_compacted(floor);
    shared.wire.writer_runtime().spawn(writer.run());
    Ok(Led::new(shared, queue))
}

fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[async_trait]
impl Engine for Shared {
    fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// All calls share one connection.
    fn pool(&self) -> Option<Arc<Pool>> {
        None
    }

    /// An etcd does not tell.
    fn hazards(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn check_txn(&self, _txn: &Txn) -> Result<()> {
        // The etcd itself says what it does not take.
        Ok(())
    }

    fn check_owned(&self) -> Result<()> {
        self.tenure.check().map_err(|error| self.error(&error))
    }

    async fn page_at(&self, query: &Query) -> Result<Page> {
        let page = self.page(query).await;
        self.answer(page).await
    }

    async fn selected_page_at(&self, _query: &Query) -> Result<Option<(Page, usize)>> {
        Ok(None)
    }

    fn index_for(&self, _query: &Query) -> Option<Task> {
        None
    }

    async fn count_at(&self, range: &KeyRange, revision: Revision) -> Result<u64> {
        let count = self.count(range, revision).await;
        self.answer(count).await
    }

    async fn log_after(&self, after: Revision, through: Revision) -> Result<LogBatch> {
        let page = self.log_page(after, through).await;
        self.answer(page).await
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        self.live_leases().await.map_err(|error| self.error(&error))
    }

    async fn get_record(&self, name: &str) -> Result<Option<Bytes>> {
        self.record(name).await.map_err(|error| self.error(&error))
    }

    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.records(prefix).await.map_err(|error| self.error(&error))
    }

    async fn measure(&self) -> Result<Size> {
        let found = self.wire.status().await.map_err(|error| self.error(&error))?;
        let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        Ok(Size { total: bytes(found.db_size), in_use: bytes(found.db_size_in_use) })
    }
}

// === impl Shared ===

impl Shared {
    fn lock_numbers(&self) -> MutexGuard<'_, Arc<Numbers>> {
        // Nothing panics while it changes what is behind the lock.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn numbers(&self) -> Arc<Numbers> {
        self.lock_numbers().clone()
    }

    /// What was found. Where somebody else compacted the etcd, the line is moved up to where it is now.
    async fn answer<T>(&self, found: WireResult<T>) -> Result<T> {
        if matches!(found, Err(WireError::Compacted))
            && let Ok(floor) = self.floor().await
        {
            self.leaf.raise_compacted(floor);
        }
        found.map_err(|error| self.error(&error))
    }

    fn error(&self, error: &WireError) -> StoreError {
        self.leaf.unavailable(error.to_string())
    }

    /// The commits of `after < revision <= through`, as many as a page holds, from the etcd's history.
    async fn log_page(&self, after: Revision, through: Revision) -> WireResult<LogBatch> {
        let (newest, _, last) = self.history.newest();
        let numbers = self.numbers();
        let (base, attached) = match self.history.below(after) {
            Some((base, _)) => (base, None),
            None if after < numbers.attached && numbers.attached > 1 => {
                (after, Some(numbers.attached))
            }
            None => {
                let (oldest, ..) = self.history.oldest();
                let around = past::around(&self.wire, after, numbers.attached, oldest).await?;
                (around.before.map_or(numbers.attached, |before| before.record.base), None)
            }
        };
        let mut commits = Vec::new();
        let mut bytes = 0;
        if let Some(attached) = attached {
            let through = attached.min(through);
            let closed =
                past::before_attached(&self.wire, &numbers, base, through, &mut commits).await?;
            return Ok(LogBatch::new(commits, closed));
        }
        if last <= after {
            return Ok(LogBatch::new(commits, through));
        }
        let mut replay = Replay::open(&self.wire, numbers, base, newest).await?;
        while let Some(replayed) = replay.next().await? {
            let is_inside = |revision: Revision| revision > after && revision <= through;
            for commit in replayed.commits.into_iter().filter(|it| is_inside(it.revision)) {
                bytes += commit.size();
                commits.push(commit);
            }
            if replayed.record.last >= through {
                break;
            }
            if bytes >= PAGE_BYTES_MAX {
                return Ok(LogBatch::new(commits, replayed.record.last.max(after)));
            }
        }
        Ok(LogBatch::new(commits, through))
    }
}

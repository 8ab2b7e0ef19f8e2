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
//! Revisions come from the node's clock, and the etcd keeps which of its own they stand for: [`layout`]
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
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

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
    Coverage, Described, Head, LogBatch, PAGE_BYTES_MAX, Page, Query, RecordStore, Size, Store,
    Tail, Written,
    attach::AttachState,
    journal::{Journal, Log},
    led::{
        mailbox::{Task, Ticket, Write},
        page_sizer::PageSizer,
    },
};
use crate::{
    clock::SharedClock,
    model::{KeyRange, LeaseId, Revision, StoreError, error::Result, txn::Txn},
    net::connect::Address,
};

/// The most writes that wait for the writer; who comes later waits to be let in.
const QUEUE_WRITES_MAX: usize = 1_024;

/// How long a measurement of the size may hold up whoever asks; then the last one has to do.
const SIZE_WAIT_MAX: Duration = Duration::from_secs(1);

/// The oldest etcd that compares ranges and nests transactions as this store needs it.
const VERSION_MIN: (u32, u32) = (3, 4);

/// A store in an etcd.
#[derive(Debug)]
pub struct EtcdStore {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Task>,
}

/// What reads and the writer share.
#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    wire: Arc<Wire>,
    clock: SharedClock,
    journal: Arc<Journal>,
    numbers: Mutex<Arc<Numbers>>,
    history: History,
    recent: Recent,
    counted: Counted,
    seen: Arc<Seen>,
    tenure: Arc<Tenure>,
    compacted: AtomicI64,
    page_sizer: PageSizer,
    incarnation: u64,
    /// Why it can't be used at present.
    trouble: watch::Sender<Option<StoreError>>,
    /// The size as it was last measured.
    size: Mutex<Size>,
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
) -> Result<Arc<EtcdStore>, OpenError> {
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
) -> Result<Arc<EtcdStore>, OpenError> {
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
    let slot = joined.map_err(|error| failed(error.to_string().into()))?;
    let known = found.known;
    let entry = Entry { etcd, base: record.base, last: record.last, ..Entry::default() };
    let seen = Seen::new(known);
    let shared = Arc::new(Shared {
        name: name.into(),
        wire: wire.clone(),
        journal: Arc::new(Journal::new(name, clock.clone(), slot, newest)),
        clock,
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
        compacted: AtomicI64::new(if about.compacted == 0 { -1 } else { about.compacted }),
        page_sizer: PageSizer::new(true),
        incarnation: about.incarnation,
        trouble: watch::Sender::new(None),
        size: Mutex::default(),
    });
    let (queue, tasks) = mpsc::channel(QUEUE_WRITES_MAX);
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
        spare: VecDeque::new(),
        read_first: 0,
        helpers,
    };
    writer.begin().await.map_err(failed)?;
    let floor = shared.floor().await.map_err(|error| failed(error.into()))?;
    shared.compacted.fetch_max(floor, Ordering::AcqRel);
    shared.wire.writer_runtime().spawn(writer.run());
    Ok(Arc::new(EtcdStore { shared, queue }))
}

fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

// === impl EtcdStore ===

impl EtcdStore {
    async fn ask<T>(&self, task: Task, answer: oneshot::Receiver<T>) -> Result<T> {
        let gone = || StoreError::Unavailable {
            store: self.shared.name.clone(),
            reason: "its writer has stopped".into(),
        };
        self.shared.check_usable()?;
        self.queue.send(task).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    async fn apply(&self, txn: Txn, dead_leases: Vec<LeaseId>) -> Result<Written> {
        let (answer, written) = Ticket::new();
        self.ask(Task::Write(Write::Txn { txn, dead_leases }, answer), written).await?
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<Revision> {
        let (answer, written) = Ticket::new();
        let written = self.ask(Task::Write(Write::EndLease(lease), answer), written).await??;
        Ok(written.revision)
    }

    async fn leases(&self) -> Result<BTreeSet<LeaseId>> {
        self.shared.leases().await.map_err(|error| self.shared.error(&error))
    }

    async fn read(&self, read: &Query) -> Result<Page> {
        let shared = &self.shared;
        let read = &read.at(shared.journal.shown());
        shared.wait_readable(read.revision).await?;
        let page = shared.page(read).await;
        shared.read_result(page, read.revision).await
    }

    async fn count(&self, query: &Query) -> Result<u64> {
        let (range, revision) = (&query.range, query.revision);
        let shared = &self.shared;
        shared.wait_readable(revision).await?;
        let count = shared.count_at(range, revision).await;
        shared.read_result(count, revision).await
    }

    fn tail(&self, after: Revision) -> Tail {
        self.shared.journal.clone().tail(after, self.shared.clone())
    }

    fn covers(&self, _after: Revision) -> bool {
        true
    }

    fn check_resume(&self, _after: Revision) -> Result<()> {
        Ok(())
    }

    fn attach_states(&self) -> &[Arc<AttachState>] {
        &[]
    }

    fn announce_closed(&self) -> Revision {
        self.shared.journal.closed()
    }

    async fn advance_closed(&self, revision: Revision, ahead: Revision) -> Result<Revision> {
        self.shared.journal.advance_closed(revision, ahead).await
    }

    async fn read_index(&self, _range: &KeyRange, _coverage: Coverage) -> Result<Revision> {
        Ok(self.shared.journal.shown())
    }

    async fn compact(&self, revision: Revision, wait: bool) -> Result<()> {
        let (answer, accepted) = oneshot::channel();
        let (done, finished) = oneshot::channel();
        self.ask(Task::Compact(revision, answer, done), accepted).await??;
        if wait { finished.await.unwrap_or(Ok(())) } else { Ok(()) }
    }

    fn compacted(&self) -> Revision {
        self.shared.compacted.load(Ordering::Acquire)
    }

    async fn size(&self) -> Result<Size> {
        let shared = &self.shared;
        let measure = tokio::time::timeout(SIZE_WAIT_MAX, shared.wire.status());
        let measured = match shared.check_usable() {
            Ok(()) => measure.await.ok().and_then(WireResult::ok),
            Err(_) => None,
        };
        let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let measured = measured
            .map(|found| Size { total: bytes(found.db_size), in_use: bytes(found.db_size_in_use) });
        let mut last = shared.size.lock().unwrap_or_else(PoisonError::into_inner);
        *last = measured.unwrap_or(*last);
        Ok(*last)
    }

    fn head(&self) -> Head {
        let Shared { incarnation, journal, .. } = &*self.shared;
        let (incarnation, newest) = (*incarnation, journal.newest());
        Head { incarnation, newest, is_exact: true, witnessed: 0 }
    }

    async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Task::Close(done)).await.is_ok() {
            // Where the writer has ended, there is nothing to close.
            let _ = closed.await;
        }
    }

    async fn describe(&self) -> Vec<Described> {
        let trouble = self.shared.check_usable().err().map(|error| error.to_string());
        let (name, trouble) = (self.name().to_string(), trouble.unwrap_or_default());
        vec![Described { name, trouble, node: None }]
    }
}

#[async_trait]
impl RecordStore for EtcdStore {
    async fn put_records(&self, changes: Vec<(String, Option<Bytes>)>) -> Result<()> {
        let (answer, done) = oneshot::channel();
        self.ask(Task::Records(changes, answer), done).await?
    }

    async fn get_record(&self, name: &str) -> Result<Option<Bytes>> {
        let found = self.shared.record(name).await;
        found.map_err(|error| self.shared.error(&error))
    }

    async fn scan_records(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        self.shared.records(prefix).await.map_err(|error| self.shared.error(&error))
    }
}

#[async_trait]
impl Log for Shared {
    async fn page(&self, after: Revision, through: Revision) -> Result<LogBatch> {
        self.check_readable(after + 1)?;
        let page = self.log_page(after, through).await;
        self.read_result(page, after + 1).await
    }

    fn compacted(&self) -> Revision {
        self.compacted.load(Ordering::Acquire)
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

    /// From now on nothing is asked of it: others may have it soon.
    fn stop(&self) {
        let (store, reason) = (self.name.clone(), "this node is stopping".into());
        self.trouble.send_replace(Some(StoreError::Unavailable { store, reason }));
    }

    fn check_usable(&self) -> Result<()> {
        self.trouble.borrow().clone().map_or(Ok(()), Err)
    }

    fn check_readable(&self, revision: Revision) -> Result<()> {
        let compacted = self.compacted.load(Ordering::Acquire);
        if revision < compacted { Err(StoreError::Compacted { compacted }) } else { Ok(()) }
    }

    /// Waits until the store has closed `revision`, but for no store that is in trouble or lost.
    async fn wait_readable(&self, revision: Revision) -> Result<()> {
        let mut trouble = self.trouble.subscribe();
        tokio::select! {
            biased;
            Ok(error) = trouble.wait_for(Option::is_some) => {
                return error.clone().map_or(Ok(()), Err);
            }
            closed = self.journal.wait_closed(revision) => drop(closed?),
        }
        self.tenure.check().map_err(|error| self.error(&error))?;
        self.check_readable(revision)
    }

    /// What a read found, unless compaction has passed it meanwhile: ours, or somebody else's.
    async fn read_result<T>(&self, found: WireResult<T>, revision: Revision) -> Result<T> {
        if matches!(found, Err(WireError::Compacted))
            && let Ok(floor) = self.floor().await
        {
            self.compacted.fetch_max(floor, Ordering::AcqRel);
        }
        self.check_readable(revision)?;
        found.map_err(|error| self.error(&error))
    }

    fn error(&self, error: &WireError) -> StoreError {
        StoreError::Unavailable { store: self.name.clone(), reason: error.to_string().into() }
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

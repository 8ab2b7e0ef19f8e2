//! The one writer of a store in an etcd: group commit, and revisions for what others do.
//!
//! ```text
//!   queue ──> batch ──> read at `known` ──> execute in order ──> one transaction ──> journal ──> answers
//!                 ^                                                │ a guard failed: others wrote
//!   observer ─────┘ changes of others, which come first            └──> see that, and begin again
//! ```
//!
//! Every transaction names the one before it, by the etcd revision of the log key. So a transaction whose
//! answer was lost is found out exactly: an empty one in its place either fails, since the lost one
//! was applied, or makes sure that it never will be.

mod prepare;
mod recovery;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::FutureExt as _;
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tracing::Instrument as _;

use super::{
    Reason, Shared,
    batch::{Batch, GUARDS_MAX, delete},
    history::{Entry, Overlay},
    layout::{About, EtcdRevision, LOG, LogRecord, OWNER},
    observer::Blind,
    owner::{Found, put, unchanged},
    past::{self, Replay},
    snapshot::{OPS_MAX, nested},
    wire::{WireError, WireResult},
};
use crate::{
    model::{Commit, Key, Revision, StoreError, error::Result},
    proto::etcdserverpb as pb,
    store::{
        Written,
        led::mailbox::{Task, shared_span},
    },
};

/// The bytes of the largest transaction that several writes share, and of the queue that is looked
/// through for it. The etcd takes 1.5 MiB.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// How often a batch begins again because others wrote what it looks at.
const ATTEMPTS_MAX: usize = 32;

/// How many batches read what they look at after one in which a key was guessed not to exist, and that
/// others overtook or that had one.
const READ_FIRST_AFTER: usize = 64;

/// How long a transaction that was applied may wait to see what others did just before it.
const SEE_WAIT_MAX: Duration = Duration::from_secs(7);

/// The shortest pause between attempts to get a lost store back.
const RECOVER_PAUSE_MIN: Duration = Duration::from_millis(100);

/// Far above all that a node can have given out since a snapshot was taken that is restored now.
const RESTORED_AHEAD: Revision = 1 << 30;

/// The writer.
#[derive(Debug)]
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub queue: mpsc::Receiver<Task>,
    /// What its owner tells others about itself.
    pub note: String,
    pub about: About,
    /// The newest record, and where it lies.
    pub record: LogRecord,
    pub log_etcd: EtcdRevision,
    /// Everything up to here is either the writer's own or waits to be adopted.
    pub known: EtcdRevision,
    /// Taken from the queue, and left for the next batch.
    pub held: VecDeque<Task>,
    /// How many of those are to be tried alone, since together they were refused.
    pub one_by_one: usize,
    /// Revisions of a batch that began again.
    pub spare: VecDeque<Revision>,
    /// How many batches read what they look at before keys are guessed not to exist again.
    pub read_first: usize,
    /// What works for the writer as long as it lives.
    pub helpers: Vec<JoinHandle<()>>,
}

/// What comes next.
enum Next {
    Tasks(VecDeque<Task>),
    /// Others changed something.
    Changes,
    /// The owner's lease is gone.
    LeaseLost,
    Trouble(Trouble),
    /// The store is to be let go.
    Close(oneshot::Sender<()>),
    /// Nobody will ask for anything any more.
    End,
}

/// How an attempt ended.
enum Attempt {
    /// Durable, at this etcd revision.
    Applied(EtcdRevision),
    /// Nothing was applied, since others wrote meanwhile: up to here.
    Overtaken(EtcdRevision),
}

/// What keeps the writer from working.
#[derive(Clone, Debug)]
enum Trouble {
    Wire(WireError),
    Blind(Blind),
    Fenced,
}

/// A batch with what its tasks get.
struct Work {
    batch: Batch,
    /// One for each task that was taken, in order.
    answers: Vec<Result<Written>>,
    compact: Option<Revision>,
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<Blind> for Trouble {
    fn from(blind: Blind) -> Self {
        match blind {
            Blind::Fenced => Self::Fenced,
            blind => Self::Blind(blind),
        }
    }
}

// === impl Writer ===

impl Writer {
    /// Takes note of what others did since the store was last owned.
    pub(super) async fn begin(&mut self) -> Result<(), Reason> {
        let shared = self.shared.clone();
        let is_restored = self.about.cluster != shared.wire.cluster();
        if is_restored {
            tracing::warn!(
                store = %shared.leaf.name,
                "the etcd was restored from a snapshot or moved: clients of before list anew"
            );
            let far = shared.leaf.clock.now() + RESTORED_AHEAD;
            shared
                .leaf
                .clock
                .advance_to(far)
                .await
                .map_err(|full| Reason::from(full.to_string()))?;
            self.about.cluster = shared.wire.cluster();
        }
        let begun = match is_restored {
            true => self.start_anew().await,
            false if self.known >= self.log_etcd => Ok(()),
            false => match self.see(self.log_etcd).await {
                Ok(()) => self.note_undo().await,
                Err(Trouble::Blind(_)) => self.start_anew().await,
                other => other,
            },
        };
        begun.map_err(|trouble| match trouble {
            Trouble::Wire(error) => error.into(),
            trouble => trouble.to_string().into(),
        })
    }

    /// The claim itself came behind changes that have no revision yet.
    async fn note_undo(&mut self) -> Result<(), Trouble> {
        let entry = self.entry(self.log_etcd, self.record.base, Vec::new()).await?;
        self.shared.history.push(entry);
        Ok(())
    }

    /// Works until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        loop {
            let goes_on = match self.next().await {
                Next::Tasks(tasks) => {
                    let span =
                        || tracing::info_span!("batch", pleach.route = &*self.shared.leaf.name);
                    let span = shared_span(&tasks, span);
                    self.process(tasks).instrument(span).await
                }
                Next::Changes => self.process(VecDeque::new()).await,
                Next::LeaseLost => match self.keep_ownership().await {
                    Ok(()) => true,
                    Err(trouble) => self.take_trouble(trouble).await,
                },
                Next::Trouble(trouble) => self.take_trouble(trouble).await,
                Next::Close(done) => {
                    self.shared.leaf.stop();
                    self.release().await;
                    let _ = done.send(());
                    return;
                }
                Next::End => break,
            };
            if !goes_on {
                return;
            }
        }
        self.release().await;
    }

    async fn next(&mut self) -> Next {
        let mut tasks = std::mem::take(&mut self.held);
        if self.shared.tenure.lost.notified().now_or_never().is_some() {
            self.held = tasks;
            return Next::LeaseLost;
        }
        if self.one_by_one > 0 && tasks.len() > 1 {
            self.one_by_one -= 1;
            self.held = tasks.split_off(1);
            return Next::Tasks(tasks);
        }
        self.one_by_one = 0;
        if tasks.is_empty() {
            let shared = self.shared.clone();
            tokio::select! {
                task = self.queue.recv() => match task {
                    Some(task) => tasks.push_back(task),
                    None => return Next::End,
                },
                waiting = shared.seen.has_waiting() => match waiting {
                    Ok(()) => return Next::Changes,
                    Err(blind) => return Next::Trouble(blind.into()),
                },
                () = shared.tenure.lost.notified() => return Next::LeaseLost,
            }
        }
        let mut bytes: usize = tasks.iter().map(Task::size).sum();
        while tasks.len() < GUARDS_MAX && bytes < BATCH_BYTES_MAX {
            let Ok(task) = self.queue.try_recv() else { break };
            bytes += task.size();
            tasks.push_back(task);
        }
        // What was asked before comes first.
        match tasks.pop_front() {
            Some(Task::Close(done)) => return Next::Close(done),
            Some(first) => tasks.push_front(first),
            None => {}
        }
        if let Some(at) = tasks.iter().position(|task| matches!(task, Task::Close(_))) {
            self.held = tasks.split_off(at);
        }
        Next::Tasks(tasks)
    }

    /// Does what is asked. Says whether there is more to do in this life.
    async fn process(&mut self, mut tasks: VecDeque<Task>) -> bool {
        let (mut attempts, begun) = (0, Instant::now());
        let trouble = loop {
            attempts += 1;
            let mut work = match self.prepare(&tasks).await {
                Ok(work) => work,
                // Others have compacted beyond what was seen: there is something newer to see.
                Err(Trouble::Wire(WireError::Compacted)) if attempts < ATTEMPTS_MAX => {
                    match self.see_newest().await {
                        Ok(()) => continue,
                        Err(trouble) => break trouble,
                    }
                }
                Err(trouble) => break trouble,
            };
            match self.apply(&mut work).await {
                Ok(Attempt::Applied(etcd)) => {
                    self.held = tasks.split_off(work.answers.len());
                    if etcd > 0 {
                        self.shared.leaf.commits.note(work.answers.len(), begun.elapsed(), false);
                    }
                    return self.conclude(work, tasks, etcd).await;
                }
                Ok(Attempt::Overtaken(_)) if attempts == ATTEMPTS_MAX => {
                    let reason = "others write the same keys all the time".to_owned();
                    break WireError::Failed(reason).into();
                }
                Ok(Attempt::Overtaken(etcd)) => {
                    self.spare = work.batch.revisions();
                    self.shared.recent.forget(work.batch.keys());
                    if work.batch.has_guessed() {
                        self.read_first = READ_FIRST_AFTER;
                    }
                    if let Err(trouble) = self.see(etcd).await {
                        break trouble;
                    }
                }
                Err(Trouble::Wire(WireError::Lost(reason))) => {
                    self.held = tasks.split_off(work.answers.len());
                    return Box::pin(self.settle(work, tasks, reason)).await;
                }
                Err(trouble) => {
                    self.held = tasks.split_off(work.answers.len());
                    break trouble;
                }
            }
        };
        if self.is_one_to_blame(&trouble, &tasks) {
            // One that can't be written takes no other along.
            self.give_up();
            self.one_by_one = tasks.len();
            tasks.append(&mut self.held);
            self.held = tasks;
            return true;
        }
        let error = self.shared.trouble_error(&trouble);
        if !tasks.is_empty() {
            self.shared.leaf.commits.note(tasks.len(), begun.elapsed(), true);
        }
        if tasks.is_empty() {
            // Nobody asked, so nobody slows this down.
            tracing::warn!(store = %self.shared.leaf.name, %error, "what others did was not taken up");
            tokio::time::sleep(RECOVER_PAUSE_MIN).await;
        }
        tasks.into_iter().for_each(|task| task.refuse(error.clone()));
        self.give_up();
        self.take_trouble(trouble).await
    }

    /// Whether the etcd refused several tasks of which one may be at fault.
    fn is_one_to_blame(&self, trouble: &Trouble, tasks: &VecDeque<Task>) -> bool {
        let is_refused = match trouble {
            Trouble::Wire(error) => {
                !matches!(error, WireError::Lost(_) | WireError::Compacted | WireError::Future)
            }
            Trouble::Blind(_) | Trouble::Fenced => false,
        };
        is_refused && tasks.len() > 1
    }

    fn give_up(&mut self) {
        self.spare.clear();
        self.shared.leaf.journal.abort();
    }

    /// Waits until all that others did up to an etcd revision was seen.
    async fn see(&mut self, etcd: EtcdRevision) -> Result<(), Trouble> {
        let late = || WireError::Lost("its watch did not say what others did".to_owned());
        let seen = timeout(SEE_WAIT_MAX, self.shared.seen.reach(etcd)).await;
        seen.map_err(|_| {
            self.shared.seen.reopen();
            late()
        })??;
        self.known = self.known.max(etcd);
        Ok(())
    }

    async fn see_newest(&mut self) -> Result<(), Trouble> {
        let found = Found::look(&self.shared.wire).await?;
        self.learn_log(found.log_etcd, found.log).await?;
        self.see(found.now).await
    }

    fn allocate(&mut self) -> Result<Revision> {
        match self.spare.pop_front() {
            Some(revision) => Ok(revision),
            None => self.shared.leaf.journal.allocate(),
        }
    }

    /// The whole batch as one transaction.
    async fn apply(&mut self, work: &mut Work) -> Result<Attempt, Trouble> {
        let Work { batch, .. } = work;
        if batch.is_empty() {
            // What it found is only true while nobody else can have taken the store.
            self.shared.tenure.check()?;
            self.give_up();
            self.shared.seen.adopted(batch.base);
            return Ok(Attempt::Applied(0));
        }
        let record = LogRecord {
            epoch: self.record.epoch,
            base: batch.base,
            last: batch.last().unwrap_or(self.record.last),
            commits: batch.marks(),
        };
        let mut compare = vec![unchanged(Key::from_static(LOG), self.log_etcd)];
        compare.extend(batch.compares());
        let mut ops = batch.ops();
        ops.push(put(Key::from_static(LOG), record.encode_to_vec(), 0));
        // Compares and operations of each level come off what the levels within may have.
        let width = match compare.len() {
            _ if ops.len() <= OPS_MAX => OPS_MAX,
            compares if compares <= OPS_MAX / 3 => OPS_MAX / 3,
            compares => OPS_MAX - compares,
        };
        let look = pb::RangeRequest { key: Key::from_static(LOG), ..Default::default() };
        let look = pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(look)) };
        let txn = pb::TxnRequest { compare, success: nested(ops, width), failure: vec![look] };
        let begun = Instant::now();
        let answer = self.shared.wire.write(&txn).await;
        // One that came too late made nothing durable.
        if answer.as_ref().is_ok_and(|answer| answer.succeeded) {
            self.shared.leaf.commits.syncs.note(begun.elapsed(), false);
        }
        let answer = answer?;
        let etcd = answer.header.as_ref().map_or(0, |header| header.revision);
        if answer.succeeded {
            self.record = record;
            self.log_etcd = etcd;
            return Ok(Attempt::Applied(etcd));
        }
        let found = super::wire::ranges(answer)?.pop();
        let log = found.and_then(|found| found.kvs.into_iter().next());
        let Some(log) = log else { return Err(Trouble::Fenced) };
        let record = LogRecord::decode(log.value);
        let record = record.map_err(|error| WireError::Failed(error.to_string()))?;
        self.learn_log(log.mod_revision, record).await?;
        Ok(Attempt::Overtaken(etcd))
    }

    /// A batch is durable: says so to all who wait for it.
    async fn conclude(
        &mut self,
        work: Work,
        mut tasks: VecDeque<Task>,
        etcd: EtcdRevision,
    ) -> bool {
        let Work { batch, answers, compact } = work;
        if etcd > 0 {
            let base = batch.base;
            let mut trouble = self.close(&batch, etcd).await.err();
            while let Some(again) = trouble {
                // It is durable, but what happened just before it can't be found out in time.
                let unknown = self.unknown(&again.to_string());
                tasks.drain(..).for_each(|task| task.refuse(unknown.clone()));
                if !self.take_trouble(again).await {
                    return false;
                }
                trouble = self.close(&batch, etcd).await.err();
            }
            self.shared.seen.adopted(base);
        }
        if let Some(revision) = compact {
            self.about.compacted = self.about.compacted.max(revision);
            self.shared.leaf.raise_compacted(revision);
        }
        for (task, answer) in tasks.into_iter().zip(answers) {
            match task {
                // Whoever asked may have gone; the write stands all the same.
                Task::Write(_, sender) => drop(sender.send(answer)),
                Task::Records(_, sender) => drop(sender.send(answer.map(drop))),
                Task::Close(done) => drop(done.send(())),
                // Its files are the etcd's affair.
                Task::Defragment(answer) => drop(answer.send(Ok(false))),
                // There is none in an etcd.
                Task::Index(..) => {}
                Task::Compact(revision, sender, done) => {
                    let _ = sender.send(answer.map(drop));
                    tokio::spawn(self.shared.clone().compact_etcd(revision, done));
                }
            }
        }
        true
    }

    /// Makes the commits of a transaction known, once all that others did before it is.
    async fn close(&mut self, batch: &Batch, etcd: EtcdRevision) -> Result<(), Trouble> {
        if self.shared.history.newest().0 >= etcd {
            return Ok(());
        }
        self.see_own(etcd).await?;
        if batch.depends_on_deleted(&self.shared.seen.waiting(batch.base, etcd)) {
            return Err(Blind::Overrun.into());
        }
        self.tell(batch, etcd).await.map_err(|trouble| match trouble {
            // What it needs of the past is gone for good.
            Trouble::Wire(WireError::Compacted | WireError::Failed(_)) => Blind::Compacted.into(),
            trouble => trouble,
        })
    }

    /// The commits of a transaction, to all who follow.
    async fn tell(&mut self, batch: &Batch, etcd: EtcdRevision) -> Result<(), Trouble> {
        let commits = if batch.is_exact() {
            batch.all()
        } else {
            // Keys that others deleted meanwhile were not deleted here: the etcd knows which.
            let wire = &self.shared.wire;
            let after = batch.adopted.first().map_or(batch.base, |(first, _)| first - 1);
            let mut replay = Replay::open(wire, self.shared.numbers(), after, etcd).await?;
            let mut commits = Vec::new();
            while let Some(replayed) = replay.next().await? {
                commits = replayed.commits;
            }
            commits
        };
        // Now, since what others did behind these may have replaced what they left.
        let adopted = batch.adopted.iter().map(|(etcd, commit)| (*etcd, commit.revision));
        if !batch.adopted.is_empty() {
            Arc::make_mut(&mut self.shared.lock_numbers()).adopted.extend(adopted);
        }
        let entry = self.entry(etcd, batch.base, commits.clone()).await?;
        let oldest = self.shared.history.push(entry);
        self.remember_rows(batch, etcd);
        {
            let mut numbers = self.shared.lock_numbers();
            if numbers.adopted.first_key_value().is_some_and(|(first, _)| *first < oldest) {
                let numbers = Arc::make_mut(&mut numbers);
                numbers.adopted = numbers.adopted.split_off(&oldest);
            }
        }
        self.spare.clear();
        if commits.is_empty() {
            self.shared.leaf.journal.abort();
        } else {
            self.shared.leaf.journal.publish(&commits);
        }
        Ok(())
    }

    /// Keeps what a transaction made of its keys.
    fn remember_rows(&self, batch: &Batch, etcd: EtcdRevision) {
        let recent = &self.shared.recent;
        if batch.is_exact() {
            recent.forget(batch.adopted_keys());
            recent.write(batch.latest(etcd));
        } else {
            // What others deleted meanwhile was not compared.
            recent.clear();
        }
    }

    async fn entry(
        &self,
        etcd: EtcdRevision,
        base: EtcdRevision,
        commits: Vec<Arc<Commit>>,
    ) -> Result<Entry, Trouble> {
        let theirs = self.shared.seen.waiting(base, etcd);
        let undo = match theirs.is_empty() {
            true => Overlay::new(),
            false => {
                let (wire, numbers) = (&self.shared.wire, self.shared.numbers());
                let undone = past::undone(wire, &numbers, &theirs, self.log_etcd).await;
                undone.map_err(|error| match error {
                    WireError::Compacted => Trouble::Blind(Blind::Compacted),
                    error => error.into(),
                })?
            }
        };
        let hidden = theirs.iter().map(|group| group.etcd).collect();
        Ok(Entry { etcd, base, last: self.record.last, commits, undo, hidden })
    }

    /// Knows all up to a transaction of its own.
    async fn see_own(&mut self, etcd: EtcdRevision) -> Result<(), Trouble> {
        if etcd == self.known + 1 {
            self.known = etcd;
            self.shared.seen.note_own(etcd);
            return Ok(());
        }
        self.see(etcd).await
    }

    /// Lets the store go, so that the next owner need not wait.
    async fn release(&mut self) {
        let wire = &self.shared.wire;
        let is_all_told = || self.shared.seen.waiting(self.record.base, self.known).is_empty();
        if self.known == self.log_etcd && is_all_told() {
            let record = LogRecord {
                base: self.known.max(self.record.base),
                commits: Vec::new(),
                ..self.record.clone()
            };
            let log = || Key::from_static(LOG);
            let txn = pb::TxnRequest {
                compare: vec![unchanged(log(), self.log_etcd)],
                success: vec![
                    put(log(), record.encode_to_vec(), 0),
                    delete(Key::from_static(OWNER)),
                ],
                failure: Vec::new(),
            };
            let _ = wire.write(&txn).await;
        }
        // Where this fails, the lease runs out by itself.
        let _ = wire.revoke_lease(self.shared.tenure.lease()).await;
    }
}

impl Drop for Writer {
    /// Whatever ends the writer, nothing it had in flight will come, and no read may wait for it.
    fn drop(&mut self) {
        self.helpers.iter().for_each(JoinHandle::abort);
        self.shared.leaf.journal.abort();
    }
}

// === impl Trouble ===

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wire(error) => error.fmt(f),
            Self::Blind(Blind::Overrun) => {
                f.write_str("others change it faster than it is followed")
            }
            Self::Blind(_) => f.write_str("somebody compacted the etcd while it was not followed"),
            Self::Fenced => f.write_str("another node has taken it"),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn trouble_error(&self, trouble: &Trouble) -> StoreError {
        let store = self.leaf.name.clone();
        match trouble {
            Trouble::Wire(WireError::TooLarge) => StoreError::TooLarge(store),
            Trouble::Wire(WireError::Full) => {
                StoreError::NoSpace(format!("store {store}: {}", WireError::Full).into())
            }
            Trouble::Fenced => StoreError::Fenced { store, owner: "another node".into() },
            trouble => StoreError::Unavailable { store, reason: trouble.to_string().into() },
        }
    }

    fn note_trouble(&self, trouble: &Trouble) {
        tracing::warn!(store = %self.leaf.name, error = %trouble, "the store can't be used");
        self.leaf.enter_trouble(self.trouble_error(trouble));
    }

    /// Lets the etcd forget what nobody may ask for any more.
    async fn compact_etcd(self: Arc<Self>, revision: Revision, done: oneshot::Sender<Result<()>>) {
        let compacted = match self.compact_below(revision).await {
            // Others may have compacted it further.
            Ok(()) | Err(WireError::Compacted) => Ok(()),
            Err(error) => {
                tracing::warn!(store = %self.leaf.name, %error, "the etcd was not compacted");
                Err(self.trouble_error(&error.into()))
            }
        };
        // Whoever asked may have gone.
        let _ = done.send(compacted);
    }

    async fn compact_below(&self, revision: Revision) -> WireResult<()> {
        let line = match self.history.below(revision - 1) {
            Some((base, _)) => base,
            None => {
                let numbers = self.numbers();
                let (oldest, ..) = self.history.oldest();
                if revision <= numbers.attached {
                    revision
                } else {
                    let low = numbers.attached;
                    let around = past::around(&self.wire, revision - 1, low, oldest).await?;
                    around.before.map_or(low, |before| before.record.base)
                }
            }
        };
        if line <= 1 { Ok(()) } else { self.wire.compact(line, true).await }
    }
}

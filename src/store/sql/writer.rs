//! The one writer of a store: group commit.
//!
//! ```text
//!   queue ──> batch ──> load rows ──> execute in order ──> write ──> COMMIT ──> journal ──> answers
//! ```
//!
//! All that waits in the queue becomes one database transaction, so its fsync is shared. Each write is
//! checked against the rows as the writes before it leave them, takes its revision when its first
//! change is certain, and is answered after the commit. Compaction runs here too, in small steps
//! between batches, so that no step waits for another connection's lock.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{
    Shared,
    compact::Compaction,
    reader::{self, Live},
    session::{Arg, DbError, DbResult, Session},
};
use crate::{
    model::{
        Commit, Key, KeyRange, Revision, StoreError,
        error::Result,
        txn::{Past, Place, Rows, Txn, delete_all, execute, in_range},
    },
    store::{PAGE_ROWS_MAX, Read, Write, Written},
};

/// The most writes in one commit. What waits longer than one commit is what the queue holds.
const BATCH_WRITES_MAX: usize = 512;

/// The bytes after which a batch is closed.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// What the writer is asked for. Each is answered when it is durable.
#[derive(Debug)]
pub(super) enum Task {
    /// Change keys.
    Write(Write, oneshot::Sender<Result<Written>>),
    /// Keep or forget a record.
    Remember(String, Option<Bytes>, oneshot::Sender<Result<()>>),
    /// Give up the past below a revision; the second channel hears when the work is done.
    Compact(Revision, oneshot::Sender<Result<()>>, oneshot::Sender<()>),
}

/// The writer.
#[derive(Debug)]
pub(super) struct Writer<S> {
    pub session: S,
    pub shared: Arc<Shared>,
    pub queue: mpsc::Receiver<Task>,
    /// The place of the next row in the log.
    pub next_seq: i64,
    pub compaction: Compaction,
    /// Taken from the queue, and left for a batch of its own.
    pub held: Option<Task>,
}

/// A batch on its way.
struct Run {
    rows: Rows,
    /// Keys whose row in `rows`, or absence there, is the truth.
    known: HashSet<Key>,
    /// The newest row in the log of each known key that has one.
    seqs: HashMap<Key, i64>,
    past: Past,
    commits: Vec<Arc<Commit>>,
    /// The revision of the state in `rows`.
    before: Revision,
}

/// An answer that waits for the commit.
enum Answer {
    Written(oneshot::Sender<Result<Written>>, Result<Written>),
    Done(oneshot::Sender<Result<()>>),
}

// === impl Writer ===

impl<S: Session> Writer<S> {
    /// Works until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        loop {
            let first = match self.held.take().map_or_else(|| self.queue.try_recv(), Ok) {
                Ok(task) => task,
                Err(mpsc::error::TryRecvError::Disconnected) => return,
                Err(mpsc::error::TryRecvError::Empty) if self.compaction.is_due() => {
                    self.compact_step().await;
                    continue;
                }
                Err(mpsc::error::TryRecvError::Empty) => match self.queue.recv().await {
                    Some(task) => task,
                    None => return,
                },
            };
            let batch = self.fill(first);
            self.process(batch).await;
            if self.compaction.is_due() {
                self.compact_step().await;
            }
        }
    }

    /// What waits in the queue, up to the bounds of a batch.
    fn fill(&mut self, first: Task) -> Vec<Task> {
        let mut bytes = size(&first);
        let is_alone = reads_past(&first);
        let mut batch = vec![first];
        while !is_alone && batch.len() < BATCH_WRITES_MAX && bytes < BATCH_BYTES_MAX {
            let Ok(task) = self.queue.try_recv() else { break };
            // A read in the past looks at the tables, where the writes before it must be.
            if reads_past(&task) {
                self.held = Some(task);
                break;
            }
            bytes += size(&task);
            batch.push(task);
        }
        batch
    }

    async fn process(&mut self, batch: Vec<Task>) {
        let mut answers = Vec::with_capacity(batch.len());
        match self.commit(batch, &mut answers).await {
            Ok(commits) => {
                self.shared.journal.publish(&commits);
                answers.into_iter().for_each(Answer::send);
            }
            Err((error, commits)) => {
                self.session.rollback().await;
                let error = self.settle(error, &commits).await;
                if error.is_none() {
                    self.shared.journal.publish(&commits);
                } else {
                    self.shared.journal.abort();
                }
                answers.into_iter().for_each(|answer| answer.send_or(error.clone()));
            }
        }
    }

    /// After a failed commit: asks the database whether it happened all the same. `None` where it did.
    async fn settle(&mut self, error: DbError, commits: &[Arc<Commit>]) -> Option<StoreError> {
        let name = &self.shared.name;
        tracing::error!(store = %name, %error, "a commit failed");
        let Some(last) = commits.last() else { return Some(self.shared.error(error)) };
        match super::last(&mut self.session, &self.shared.statements).await {
            Ok((seq, revision)) => {
                self.next_seq = seq + 1;
                (revision < last.revision).then(|| self.shared.error(error))
            }
            Err(second) => Some(StoreError::UnknownOutcome {
                store: name.clone(),
                reason: format!("{error}; then {second}").into(),
            }),
        }
    }

    /// The whole batch as one database transaction.
    async fn commit(
        &mut self,
        batch: Vec<Task>,
        answers: &mut Vec<Answer>,
    ) -> Result<Vec<Arc<Commit>>, (DbError, Vec<Arc<Commit>>)> {
        let mut run = Run::new(self.shared.clock.shown());
        let mut work = Work { records: Vec::new(), compact: None, compacted: Vec::new() };
        let prepared = self.prepare(&batch, &mut run).await;
        for task in batch {
            self.execute(task, &mut run, &mut work, prepared.is_ok(), answers).await;
        }
        let written = match prepared {
            Ok(()) => self.write(&run, &work).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                if let Some(revision) = work.compact {
                    self.shared.compacted.fetch_max(revision, Ordering::AcqRel);
                    self.compaction.aim(revision);
                }
                work.compacted.into_iter().for_each(|done| self.compaction.tell(done));
                Ok(run.commits)
            }
            Err(error) => Err((error, run.commits)),
        }
    }

    /// Begins the transaction and loads the single keys of all writes.
    async fn prepare(&mut self, batch: &[Task], run: &mut Run) -> DbResult<()> {
        self.session.begin().await?;
        for task in batch {
            if let Task::Write(Write::Txn { txn, .. }, _) = task {
                for key in txn.needs().keys {
                    self.load_key(run, key).await?;
                }
            }
        }
        Ok(())
    }

    async fn load_key(&mut self, run: &mut Run, key: Key) -> DbResult<()> {
        if !run.known.contains(&key) {
            let live = reader::newest(&mut self.session, &self.shared.statements, &key).await?;
            run.known.insert(key);
            run.learn(live);
        }
        Ok(())
    }

    /// Loads what is not a single key: ranges, now and in the past.
    async fn load_ranges(&mut self, run: &mut Run, txn: &Txn) -> DbResult<()> {
        let needs = txn.needs();
        for range in needs.ranges {
            let live =
                reader::newest_in(&mut self.session, &self.shared.statements, &range).await?;
            run.learn_new(live);
        }
        for (range, revision) in needs.past {
            let kvs = self.load_past(&range, revision).await?;
            run.past.insert((range, revision), kvs);
        }
        Ok(())
    }

    async fn load_past(
        &mut self,
        range: &KeyRange,
        revision: Revision,
    ) -> DbResult<Vec<crate::model::KeyValue>> {
        let mut read = Read::new(range.clone(), revision);
        let mut kvs = Vec::new();
        loop {
            let page = reader::page(&mut self.session, &self.shared.statements, &read).await?;
            kvs.extend(page.kvs);
            let Some(next) = page.next else { return Ok(kvs) };
            read.range.start = next;
            read.limit = PAGE_ROWS_MAX;
        }
    }

    async fn execute(
        &mut self,
        task: Task,
        run: &mut Run,
        work: &mut Work,
        is_prepared: bool,
        answers: &mut Vec<Answer>,
    ) {
        match task {
            Task::Write(write, answer) => {
                let written = if is_prepared {
                    self.execute_write(write, run).await
                } else {
                    // The answer is replaced by the reason why the batch failed.
                    Ok(Written { revision: 0, result: Default::default() })
                };
                answers.push(Answer::Written(answer, written));
            }
            Task::Remember(name, value, answer) => {
                work.records.push((name, value));
                answers.push(Answer::Done(answer));
            }
            Task::Compact(revision, answer, done) => {
                // The line never goes back: what is below is gone.
                if revision > self.shared.compacted.load(Ordering::Acquire) {
                    work.compact = work.compact.max(Some(revision));
                }
                work.compacted.push(done);
                answers.push(Answer::Done(answer));
            }
        }
    }

    async fn execute_write(&mut self, write: Write, run: &mut Run) -> Result<Written> {
        let shared = self.shared.clone();
        let mut allocate = || shared.journal.allocate();
        match write {
            Write::Txn { txn, dead_leases } => {
                self.load_ranges(run, &txn).await.map_err(|error| shared.error(error))?;
                let place = Place {
                    rows: &mut run.rows,
                    past: &run.past,
                    before: run.before,
                    dead_leases: &dead_leases,
                };
                let compacted = shared.compacted.load(Ordering::Acquire);
                let outcome = execute(&txn, place, compacted, &mut allocate)?;
                run.add(outcome.commit);
                Ok(Written { revision: outcome.revision, result: outcome.result })
            }
            Write::DeleteLeased(lease) => {
                let live = reader::leased(&mut self.session, &shared.statements, lease).await;
                run.learn_new(live.map_err(|error| shared.error(error))?);
                let leased = in_range(&run.rows, &KeyRange::all()).filter(|kv| kv.lease == lease);
                let mut rows: Rows = leased.map(|kv| (kv.key.clone(), kv.clone())).collect();
                let commit = delete_all(&mut rows, &mut allocate)?;
                for event in commit.iter().flat_map(|commit| &commit.events) {
                    run.rows.remove(&event.kv.key);
                }
                run.add(commit);
                Ok(Written { revision: run.before, result: Default::default() })
            }
        }
    }

    /// Writes what the batch changed, and commits.
    async fn write(&mut self, run: &Run, work: &Work) -> DbResult<()> {
        if run.commits.is_empty() && work.is_empty() {
            self.session.rollback().await;
            return Ok(());
        }
        let next_seq = self.write_commits(run).await?;
        self.write_work(work).await?;
        self.session.commit().await?;
        self.next_seq = next_seq;
        Ok(())
    }

    async fn write_commits(&mut self, run: &Run) -> DbResult<i64> {
        let mut seqs = run.seqs.clone();
        let mut next_seq = self.next_seq;
        let mut log = Vec::new();
        let mut newest: HashMap<&[u8], Vec<Arg<'_>>> = HashMap::new();
        for event in run.commits.iter().flat_map(|commit| &commit.events) {
            let kv = &event.kv;
            let prev_seq = seqs.insert(kv.key.clone(), next_seq).unwrap_or(0);
            let key = Arg::Bytes(&kv.key);
            let (create, modified) = (Arg::Int(kv.create_revision), Arg::Int(kv.mod_revision));
            let (version, lease) = (Arg::Int(kv.version), Arg::Int(kv.lease));
            let (seq, value) = (Arg::Int(next_seq), Arg::Bytes(&kv.value));
            log.push(vec![seq, modified, key, Arg::Int(prev_seq), create, version, lease, value]);
            newest.insert(&kv.key, vec![key, seq, create, modified, version, lease]);
            next_seq += 1;
        }
        let newest: Vec<_> = newest.into_values().collect();
        self.session.execute_many(&self.shared.statements.put_log, &log).await?;
        self.session.execute_many(&self.shared.statements.put_key, &newest).await?;
        Ok(next_seq)
    }

    async fn write_work(&mut self, work: &Work) -> DbResult<()> {
        let statements = &self.shared.statements;
        for (name, value) in &work.records {
            let name = Arg::Text(name);
            match value {
                Some(value) => {
                    let row = [vec![name, Arg::Bytes(value)]];
                    self.session.execute_many(&statements.put_record, &row).await?;
                }
                None => self.session.execute_many(&statements.drop_record, &[vec![name]]).await?,
            }
        }
        if let Some(revision) = work.compact {
            let row = [vec![Arg::Text("compacted"), Arg::Int(revision)]];
            self.session.execute_many(&statements.put_meta, &row).await?;
        }
        Ok(())
    }

    async fn compact_step(&mut self) {
        let step = self.compaction.step(&mut self.session, &self.shared.statements).await;
        if let Err(error) = step {
            self.session.rollback().await;
            tracing::warn!(store = %self.shared.name, %error, "a step of compaction failed");
            // The next compaction takes up where this one stopped.
            self.compaction.give_up();
        }
    }
}

impl<S> Drop for Writer<S> {
    /// Whatever ends the writer, nothing it had in flight will come, and no read may wait for it.
    fn drop(&mut self) {
        self.shared.journal.abort();
    }
}

/// What a batch does beside changing keys.
struct Work {
    records: Vec<(String, Option<Bytes>)>,
    compact: Option<Revision>,
    compacted: Vec<oneshot::Sender<()>>,
}

// === impl Work ===

impl Work {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.compact.is_none()
    }
}

// === impl Run ===

impl Run {
    fn new(before: Revision) -> Self {
        Self {
            rows: Rows::new(),
            known: HashSet::new(),
            seqs: HashMap::new(),
            past: Past::new(),
            commits: Vec::new(),
            before,
        }
    }

    fn learn(&mut self, live: impl IntoIterator<Item = Live>) {
        for live in live {
            self.seqs.insert(live.kv.key.clone(), live.seq);
            if !live.kv.is_tombstone() {
                self.rows.insert(live.kv.key.clone(), live.kv);
            }
        }
    }

    /// Takes rows from the tables, unless the batch knows better.
    fn learn_new(&mut self, live: Vec<Live>) {
        let new = live.into_iter().filter(|live| self.known.insert(live.kv.key.clone()));
        let new: Vec<_> = new.collect();
        self.learn(new);
    }

    fn add(&mut self, commit: Option<Commit>) {
        if let Some(commit) = commit {
            // Every key that was changed is known from now on, also one that a range put here.
            self.known.extend(commit.events.iter().map(|event| event.kv.key.clone()));
            self.before = self.before.max(commit.revision);
            self.commits.push(Arc::new(commit));
        }
    }
}

// === impl Answer ===

impl Answer {
    // Whoever asked may have gone; the write stands all the same.
    fn send(self) {
        match self {
            Self::Written(answer, written) => drop(answer.send(written)),
            Self::Done(answer) => drop(answer.send(Ok(()))),
        }
    }

    fn send_or(self, error: Option<StoreError>) {
        match (self, error) {
            (answer, None) => answer.send(),
            // Refusals too: they were worked out on changes that are not there.
            (Self::Written(answer, _), Some(error)) => drop(answer.send(Err(error))),
            (Self::Done(answer), Some(error)) => drop(answer.send(Err(error))),
        }
    }
}

fn size(task: &Task) -> usize {
    match task {
        Task::Write(Write::Txn { txn, .. }, _) => txn.size(),
        Task::Write(Write::DeleteLeased(_), _) | Task::Remember(..) | Task::Compact(..) => 64,
    }
}

fn reads_past(task: &Task) -> bool {
    let Task::Write(Write::Txn { txn, .. }, _) = task else { return false };
    !txn.needs().past.is_empty()
}

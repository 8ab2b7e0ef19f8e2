//! The one writer of a store: group commit.
//!
//! ```text
//!   queue ──> batch ──> load rows ──> execute in order ──> write ──> COMMIT ──> journal ──> answers
//! ```
//!
//! All that waits in the queue becomes one database transaction, so its fsync is shared. Each write is
//! checked against the rows as the writes before it leave them, takes its revision when its first
//! change is certain, and is answered after the commit. A batch that fails where its store does not is
//! tried again in halves: what can't be written takes nothing else along. Compaction runs here too, in small
//! steps between batches, so that no step waits for another connection's lock.

mod batch;
mod indexing;
mod trouble;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tracing::{Instrument as _, Span};

pub(super) use self::indexing::Building;

use self::batch::{Run, WriteBatch};
use super::{
    Shared,
    compact::Compaction,
    reader,
    session::{Arg, DbError, DbResult, Session, Sql},
};
use crate::{
    model::{
        Key, KeyRange, Revision,
        error::Result,
        txn::{Rows, Txn, TxnResult, Workspace, delete_all, execute, in_range},
    },
    store::{
        PAGE_ROWS_MAX, Query, Written,
        led::mailbox::{Task, Write, shared_span},
    },
};

/// The most writes in one commit. What waits longer than one commit is what the queue holds.
const BATCH_WRITES_MAX: usize = 512;

/// How long what was refused together is tried again in pieces.
const RETRY_TIME_MAX: Duration = Duration::from_secs(7);

/// The bytes after which a batch is closed.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// The writer.
#[derive(Debug)]
pub(super) struct Writer<S> {
    pub session: S,
    pub shared: Arc<Shared>,
    pub queue: mpsc::Receiver<Task>,
    /// The place of the next row in the log.
    pub next_seq: i64,
    /// The place of the newest row, as it was last seen: compaction may drop that row.
    pub last_seq: i64,
    /// The newest revision that the store is known to hold.
    pub newest: Revision,
    /// When the store was last kept for longer.
    pub kept: Instant,
    pub compaction: Compaction,
    /// Until when nothing is done about indexes, since something failed.
    pub index_paused: Option<Instant>,
    pub building: Building,
    /// Kept with the next compaction, which breaks off what was before; see [`super::Witnessed`].
    pub made_anew: Option<i64>,
    /// Taken from the queue, and left for a batch of its own.
    pub held: Option<Task>,
    /// What is to be tried again of a batch that failed, the next piece last.
    pub pieces: Vec<Vec<Task>>,
}

/// Where a batch failed.
enum Failure {
    /// Before anything of it was looked at.
    Beginning(DbError),
    /// Before its commit: nothing of it was applied.
    Before(DbError),
    /// In its commit: it may have been applied.
    Within(DbError),
}

// === impl Writer ===

impl<S: Session> Writer<S> {
    /// Works until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        loop {
            let first = match self.held.take().map_or_else(|| self.queue.try_recv(), Ok) {
                Ok(task) => task,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    return self.session.release().await;
                }
                Err(mpsc::error::TryRecvError::Empty) if self.compaction.is_due() => {
                    self.compact_step().await;
                    self.keep_where_due().await;
                    continue;
                }
                Err(mpsc::error::TryRecvError::Empty) if self.is_index_due() => {
                    self.index_step().await;
                    self.keep_where_due().await;
                    continue;
                }
                Err(mpsc::error::TryRecvError::Empty) => match self.next().await {
                    Some(task) => task,
                    None => return self.session.release().await,
                },
            };
            let batch = match first {
                Task::Close(done) => {
                    self.shared.leaf.stop();
                    self.session.release().await;
                    // With it goes what it holds of the database.
                    drop(self);
                    let _ = done.send(());
                    return;
                }
                Task::Defragment(done) => {
                    let given = self.session.defragment().await;
                    // Whoever asked may have gone.
                    let _ = done.send(given.map_err(|error| self.shared.error(error)));
                    continue;
                }
                Task::Index(prefix, attribute) => {
                    self.begin_index(&prefix, &attribute).await;
                    continue;
                }
                first => self.fill(first),
            };
            self.process(batch).await;
            if self.compaction.is_due() {
                self.compact_step().await;
            } else if self.is_index_due() {
                self.index_step().await;
            }
        }
    }

    /// The next task, keeping the store meanwhile. `None` when there will be none.
    async fn next(&mut self) -> Option<Task> {
        loop {
            let due = self.keep_due().into_iter().chain(self.index_due()).min();
            let Some(due) = due else { return self.queue.recv().await };
            if let Ok(task) = tokio::time::timeout_at(due, self.queue.recv()).await {
                return task;
            }
            self.keep_where_due().await;
            if self.is_index_due() {
                self.index_step().await;
            }
        }
    }

    /// When the store must be kept for longer, where that is needed at all.
    fn keep_due(&self) -> Option<Instant> {
        self.session.keep_interval().map(|interval| self.kept + interval)
    }

    async fn keep_where_due(&mut self) {
        if self.keep_due().is_some_and(|due| due <= Instant::now()) {
            self.keep().await;
        }
    }

    async fn keep(&mut self) {
        self.kept = Instant::now();
        let kept = match self.session.keep().await {
            // Something may have been put in its place, under the same owner.
            Ok(()) => self.newest_there().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            self.take_trouble(error).await;
        }
    }

    /// What waits in the queue, up to the bounds of a batch.
    fn fill(&mut self, first: Task) -> Vec<Task> {
        let mut bytes = first.size();
        let is_alone = first.reads_past();
        let mut batch = vec![first];
        while !is_alone && batch.len() < BATCH_WRITES_MAX && bytes < BATCH_BYTES_MAX {
            let Ok(task) = self.queue.try_recv() else { break };
            // A read in the past looks at the tables, where the writes before it must be.
            let is_another = matches!(task, Task::Close(_) | Task::Defragment(_) | Task::Index(..));
            if task.reads_past() || is_another {
                self.held = Some(task);
                break;
            }
            bytes += task.size();
            batch.push(task);
        }
        batch
    }

    async fn process(&mut self, tasks: Vec<Task>) {
        let until = Instant::now() + RETRY_TIME_MAX;
        self.pieces.push(tasks);
        while let Some(tasks) = self.pieces.pop() {
            let mut again = self.process_together(tasks).await;
            if Instant::now() >= until {
                let error = self.shared.leaf.unavailable("it refuses what it is given, one by one");
                let left = self.pieces.drain(..).flatten().chain(again.drain(..));
                left.for_each(|task| task.refuse(error.clone()));
            }
            self.keep_where_due().await;
            let later = again.split_off(again.len() / 2);
            self.pieces.extend([later, again].into_iter().filter(|tasks| !tasks.is_empty()));
        }
    }

    /// Returns the tasks that are to be tried again, in halves.
    async fn process_together(&mut self, tasks: Vec<Task>) -> Vec<Task> {
        let (count, begun) = (tasks.len(), Instant::now());
        let span = shared_span(&tasks, || self.shared.transaction_span(count));
        let mut batch = WriteBatch::new(tasks, self.shared.leaf.clock.shown(), self.next_seq);
        let attempted = self.attempt(&mut batch).instrument(span.clone()).await;
        if attempted.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        drop(span);
        self.note_batch(&batch, begun.elapsed(), attempted.is_err());
        match attempted {
            Ok(()) => {
                self.conclude(batch);
                Vec::new()
            }
            Err(Failure::Beginning(error)) => {
                let again = match &error {
                    DbError::Full(_) => self.refuse(batch, &error),
                    _ => self.refuse_all(batch, &error),
                };
                self.take_trouble(error).await;
                again
            }
            Err(Failure::Before(error)) => {
                let again = self.refuse(batch, &error);
                self.take_trouble(error).await;
                again
            }
            Err(Failure::Within(error)) => self.settle(batch, error).await,
        }
    }

    /// The whole batch as one database transaction.
    async fn attempt(&mut self, batch: &mut WriteBatch) -> Result<(), Failure> {
        let WriteBatch { tasks, run, written, compact, .. } = &mut *batch;
        self.prepare(tasks, run).await.map_err(Failure::Beginning)?;
        for task in tasks {
            match task {
                Task::Write(write, _) => {
                    let done = self.execute_write(write, run).await;
                    written.push(done.map_err(Failure::Before)?);
                }
                // The line never goes back: what is below is gone.
                Task::Compact(revision, ..) if *revision > self.shared.leaf.compacted() => {
                    *compact = (*compact).max(Some(*revision));
                }
                // Batches of their own, or nothing but to be written.
                Task::Compact(..)
                | Task::Records(..)
                | Task::Close(_)
                | Task::Defragment(_)
                | Task::Index(..) => {}
            }
        }
        self.write(batch).await
    }

    /// Counts what was to be made durable; not what changed nothing.
    fn note_batch(&self, batch: &WriteBatch, took: Duration, has_failed: bool) {
        if has_failed || !batch.is_empty() {
            self.shared.leaf.commits.note(batch.written.len(), took, has_failed);
        }
    }

    /// The batch is durable: says so to all who wait for it.
    fn conclude(&mut self, batch: WriteBatch) {
        self.next_seq = batch.next_seq;
        if let Some(last) = batch.run.commits.last() {
            self.last_seq = batch.next_seq - 1;
            self.newest = last.revision;
            self.session.witness(self.newest);
        }
        if batch.has_puts() {
            self.shared.found_room();
        }
        if let Some(revision) = batch.compact {
            self.shared.leaf.raise_compacted(revision);
            // It went with that, and stands there now.
            self.made_anew = None;
            self.compaction.aim(revision);
        }
        if let Some(index) = batch.index {
            self.shared.set_index(index);
        }
        self.shared.leaf.journal.publish(&batch.run.commits);
        let mut written = batch.written.into_iter();
        for task in batch.tasks {
            // Whoever asked may have gone; what was done stands all the same.
            match task {
                Task::Write(_, ticket) => drop(written.next().map(|written| ticket.send(written))),
                Task::Records(_, answer) => drop(answer.send(Ok(()))),
                Task::Compact(_, answer, done) => {
                    let _ = answer.send(Ok(()));
                    self.compaction.tell(done);
                }
                Task::Close(_) | Task::Defragment(_) | Task::Index(..) => {}
            }
        }
    }

    /// Nothing of the batch was applied. Returns those of its tasks that are to be tried again: where one of several
    /// may be to blame, all; where there is no room, those that need little.
    fn refuse(&mut self, mut batch: WriteBatch, error: &DbError) -> Vec<Task> {
        match error {
            DbError::Full(_) => {
                let has_room = self.find_room();
                let tasks = std::mem::take(&mut batch.tasks);
                let (puts, others): (Vec<_>, Vec<_>) = tasks.into_iter().partition(Task::has_puts);
                let is_smaller = has_room || !puts.is_empty();
                let (refused, again) = if is_smaller { (puts, others) } else { (others, puts) };
                batch.tasks = refused;
                self.refuse_all(batch, error);
                again
            }
            DbError::Failed(_) if batch.tasks.len() > 1 => {
                self.shared.leaf.journal.abort();
                batch.tasks
            }
            _ => self.refuse_all(batch, error),
        }
    }

    /// There was no room: says whether some is given up for what needs little.
    fn find_room(&mut self) -> bool {
        self.shared.leaf.note_full(true);
        self.session.make_room()
    }

    fn refuse_all(&mut self, batch: WriteBatch, error: &DbError) -> Vec<Task> {
        self.shared.leaf.journal.abort();
        tracing::error!(store = %self.shared.leaf.name, %error, "a batch of writes failed");
        let error = self.shared.error(error.clone());
        // Refusals too: they were worked out on changes that are not there.
        batch.tasks.into_iter().for_each(|task| task.refuse(error.clone()));
        Vec::new()
    }

    /// Begins the transaction and loads the single keys of all writes.
    async fn prepare(&mut self, tasks: &[Task], run: &mut Run) -> DbResult<()> {
        let last_seq = self.session.begin().await?;
        if last_seq != self.last_seq {
            // Compaction drops the newest row, where that was a deletion; nothing else does.
            self.newest_there().await?;
            self.last_seq = last_seq;
        }
        let writes = tasks.iter().filter_map(|task| match task {
            Task::Write(Write::Txn { txn, .. }, _) => Some(txn),
            _ => None,
        });
        let keys = writes.flat_map(|txn| txn.needs().keys);
        let new: Vec<Key> = keys.filter(|key| run.known.insert(key.clone())).collect();
        let live = reader::newest_of(&mut self.session, &self.shared.statements, &new).await?;
        run.learn(live);
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
        let mut read = Query::new(range.clone(), revision);
        let mut kvs = Vec::new();
        loop {
            let page = reader::page(
                &mut self.session,
                &self.shared.statements,
                &self.shared.page_sizer,
                &read,
            )
            .await?;
            kvs.extend(page.kvs);
            let Some(next) = page.next else { return Ok(kvs) };
            read.range.start = next;
            read.limit = PAGE_ROWS_MAX;
        }
    }

    /// One write on the rows of the batch; refused or not. Fails where the database does.
    async fn execute_write(&mut self, write: &Write, run: &mut Run) -> DbResult<Result<Written>> {
        let shared = self.shared.clone();
        let mut allocate = || shared.leaf.journal.allocate();
        match write {
            Write::Txn { txn, dead_leases } => {
                // It came before the store said so.
                if let Err(error) = shared.check_room(txn) {
                    return Ok(Err(error));
                }
                self.load_ranges(run, txn).await?;
                let place = Workspace {
                    rows: &mut run.rows,
                    past: &run.past,
                    before: run.before,
                    dead_leases,
                };
                let compacted = shared.leaf.compacted();
                let outcome = execute(txn, place, compacted, &mut allocate);
                Ok(outcome.map(|outcome| {
                    run.add(outcome.commit);
                    Written { revision: outcome.revision, result: outcome.result }
                }))
            }
            Write::EndLease(lease) => {
                let live = reader::leased(&mut self.session, &shared.statements, *lease).await?;
                run.learn_new(live);
                let leased = in_range(&run.rows, &KeyRange::all()).filter(|kv| kv.lease == *lease);
                let mut rows: Rows = leased.map(|kv| (kv.key.clone(), kv.clone())).collect();
                let commit = match delete_all(&mut rows, &mut allocate) {
                    Ok(commit) => commit,
                    Err(error) => return Ok(Err(error)),
                };
                for event in commit.iter().flat_map(|commit| &commit.events) {
                    run.rows.remove(&event.kv.key);
                }
                let result = TxnResult { succeeded: commit.is_some(), results: Vec::new() };
                run.add(commit);
                Ok(Ok(Written { revision: run.before, result }))
            }
        }
    }

    /// Writes what the batch changed, and commits.
    async fn write(&mut self, batch: &mut WriteBatch) -> Result<(), Failure> {
        let statements = &self.shared.statements;
        if batch.is_empty() {
            note_statements(&[&statements.each_key], "ROLLBACK");
            self.session.rollback().await;
            return Ok(());
        }
        note_statements(&[&statements.put_log, &statements.put_key], "COMMIT");
        batch.next_seq = self.write_commits(&batch.run).await.map_err(Failure::Before)?;
        batch.index = self.write_index(&batch.run).await.map_err(Failure::Before)?;
        self.write_work(batch).await.map_err(Failure::Before)?;
        let begun = Instant::now();
        let committed = self.session.commit().await;
        self.shared.leaf.commits.syncs.note(begun.elapsed(), committed.is_err());
        committed.map_err(Failure::Within)
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

    async fn write_work(&mut self, batch: &WriteBatch) -> DbResult<()> {
        let statements = &self.shared.statements;
        for task in &batch.tasks {
            let Task::Records(changes, _) = task else { continue };
            for (name, value) in changes {
                let name = Arg::Text(name);
                match value {
                    Some(value) => {
                        let row = [vec![name, Arg::Bytes(value)]];
                        self.session.execute_many(&statements.put_record, &row).await?;
                    }
                    None => {
                        self.session.execute_many(&statements.drop_record, &[vec![name]]).await?;
                    }
                }
            }
        }
        if let Some(revision) = batch.compact {
            let mut rows = vec![vec![Arg::Text("compacted"), Arg::Int(revision)]];
            rows.extend(self.made_anew.map(|made| vec![Arg::Text("made"), Arg::Int(made)]));
            self.session.execute_many(&statements.put_meta, &rows).await?;
        }
        Ok(())
    }

    async fn compact_step(&mut self) {
        let step = self.compaction.step(&mut self.session, &self.shared.statements).await;
        if let Err(error) = step {
            if matches!(error, DbError::Full(_)) && self.find_room() {
                // It is what gives room back.
                return self.take_trouble(error).await;
            }
            tracing::warn!(store = %self.shared.leaf.name, %error, "a step of compaction failed");
            // The next compaction takes up where this one stopped.
            self.compaction.give_up(self.shared.error(error.clone()));
            self.take_trouble(error).await;
        }
    }
}

impl<S> Drop for Writer<S> {
    /// Whatever ends the writer, nothing it had in flight will come, and no read may wait for it.
    fn drop(&mut self) {
        self.shared.leaf.journal.abort();
    }
}

/// Says in the span at hand what is done in the transaction, and how it ends.
fn note_statements(statements: &[&Sql], end: &'static str) {
    let span = Span::current();
    if span.is_none() {
        return;
    }
    let texts: Vec<&str> = statements.iter().map(|sql| &***sql).chain([end]).collect();
    span.record("db.query.text", texts.join("; "));
}

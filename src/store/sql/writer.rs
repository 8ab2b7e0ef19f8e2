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
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{Instrument as _, Span};

use super::{
    Shared,
    compact::Compaction,
    reader::{self, Live},
    session::{Arg, DbError, DbResult, Session, Sql},
};
use crate::{
    model::{
        Commit, Key, KeyRange, Revision, StoreError,
        error::Result,
        txn::{Past, Rows, Txn, Workspace, delete_all, execute, in_range},
    },
    store::{
        PAGE_ROWS_MAX, Query, Written,
        led::mailbox::{Task, Ticket, Write, shared_span},
    },
};

/// The most writes in one commit. What waits longer than one commit is what the queue holds.
const BATCH_WRITES_MAX: usize = 512;

/// The bytes after which a batch is closed.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// How long a write waits to learn what became of a commit that failed.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The pauses between attempts to get a lost store back.
const RECOVER_PAUSE_MIN: Duration = Duration::from_millis(100);
const RECOVER_PAUSE_MAX: Duration = Duration::from_secs(2);

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
    /// Kept with the next compaction, which breaks off what was before; see [`super::Witnessed`].
    pub made_anew: Option<i64>,
    /// Taken from the queue, and left for a batch of its own.
    pub held: Option<Task>,
}

/// A batch, from its rows to its answers.
struct WriteBatch {
    run: Run,
    work: Work,
    answers: Vec<Answer>,
    /// What follows the last row that it adds to the log.
    next_seq: i64,
}

/// Where a batch failed.
enum Failure {
    /// Before its commit: nothing of it was applied.
    Before(DbError),
    /// In its commit: it may have been applied.
    Within(DbError),
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
    Written(Ticket<Result<Written>>, Result<Written>),
    Done(oneshot::Sender<Result<()>>),
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
                first => self.fill(first),
            };
            self.process(batch).await;
            self.keep_where_due().await;
            if self.compaction.is_due() {
                self.compact_step().await;
            }
        }
    }

    /// The next task, keeping the store meanwhile. `None` when there will be none.
    async fn next(&mut self) -> Option<Task> {
        loop {
            let Some(due) = self.keep_due() else { return self.queue.recv().await };
            match tokio::time::timeout_at(due, self.queue.recv()).await {
                Ok(task) => return task,
                Err(_) => self.keep().await,
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
            if task.reads_past() || matches!(task, Task::Close(_)) {
                self.held = Some(task);
                break;
            }
            bytes += task.size();
            batch.push(task);
        }
        batch
    }

    async fn process(&mut self, tasks: Vec<Task>) {
        let mut batch = WriteBatch {
            run: Run::new(self.shared.leaf.clock.shown()),
            work: Work { records: Vec::new(), compact: None, compacted: Vec::new() },
            answers: Vec::with_capacity(tasks.len()),
            next_seq: self.next_seq,
        };
        let span = shared_span(&tasks, || self.shared.transaction_span(tasks.len()));
        let attempted = self.attempt(tasks, &mut batch).instrument(span.clone()).await;
        if attempted.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        drop(span);
        match attempted {
            Ok(()) => self.conclude(batch),
            Err(Failure::Before(error)) => {
                self.refuse(batch, &error);
                self.take_trouble(error).await;
            }
            Err(Failure::Within(error)) => self.settle(batch, error).await,
        }
    }

    /// The whole batch as one database transaction.
    async fn attempt(&mut self, tasks: Vec<Task>, batch: &mut WriteBatch) -> Result<(), Failure> {
        let mut failed = self.prepare(&tasks, &mut batch.run).await.err();
        for task in tasks {
            match task {
                Task::Write(write, answer) => {
                    let written = match failed {
                        None => self.execute_write(write, &mut batch.run).await,
                        // The answer is replaced by the reason why the batch failed.
                        Some(_) => Ok(Err(self.shared.error(DbError::Failed(String::new())))),
                    };
                    let written = written.unwrap_or_else(|error| {
                        let refused = Err(self.shared.error(error.clone()));
                        failed = Some(error);
                        refused
                    });
                    batch.answers.push(Answer::Written(answer, written));
                }
                Task::Records(changes, answer) => {
                    batch.work.records.extend(changes);
                    batch.answers.push(Answer::Done(answer));
                }
                // It is a batch of its own.
                Task::Close(done) => drop(done.send(())),
                Task::Compact(revision, answer, done) => {
                    // The line never goes back: what is below is gone.
                    if revision > self.shared.leaf.compacted() {
                        batch.work.compact = batch.work.compact.max(Some(revision));
                    }
                    batch.work.compacted.push(done);
                    batch.answers.push(Answer::Done(answer));
                }
            }
        }
        match failed {
            Some(error) => Err(Failure::Before(error)),
            None => self.write(batch).await,
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
        if let Some(revision) = batch.work.compact {
            self.shared.leaf.raise_compacted(revision);
            // It went with that, and stands there now.
            self.made_anew = None;
            self.compaction.aim(revision);
        }
        batch.work.compacted.into_iter().for_each(|done| self.compaction.tell(done));
        self.shared.leaf.journal.publish(&batch.run.commits);
        batch.answers.into_iter().for_each(Answer::send);
    }

    /// Nothing of the batch was applied.
    fn refuse(&self, batch: WriteBatch, error: &DbError) {
        tracing::error!(store = %self.shared.leaf.name, %error, "a batch of writes failed");
        self.shared.leaf.journal.abort();
        let error = self.shared.error(error.clone());
        // Refusals too: they were worked out on changes that are not there.
        batch.answers.into_iter().for_each(|answer| answer.fail(error.clone()));
    }

    /// After a commit that failed: asks the database whether it happened all the same. Until that is
    /// known nothing else is written, and nobody is told more than that it is not known.
    async fn settle(&mut self, batch: WriteBatch, error: DbError) {
        tracing::error!(store = %self.shared.leaf.name, %error, "a commit failed");
        let expected = batch.run.commits.last().map(|commit| commit.revision);
        let asked = match self.session.keep_interval() {
            None => self.look(expected).await,
            Some(_) => {
                let until = Instant::now() + SETTLE_WAIT_MAX;
                let asked = tokio::time::timeout_at(until, self.look_again(expected)).await;
                asked.unwrap_or_else(|_| Err(DbError::Lost("its server stays away".to_owned())))
            }
        };
        match asked {
            Ok(true) => self.conclude(batch),
            Ok(false) if expected.is_some() || matches!(error, DbError::Full(_)) => {
                self.refuse(batch, &error);
            }
            Ok(false) => self.leave_unknown(batch, &error),
            Err(second) => self.await_outcome(batch, &error, second).await,
        }
    }

    /// Looks until the server can be reached.
    async fn look_again(&mut self, expected: Option<Revision>) -> DbResult<bool> {
        loop {
            match self.look(expected).await {
                Err(DbError::Lost(_)) => tokio::time::sleep(RECOVER_PAUSE_MIN).await,
                looked => return looked,
            }
        }
    }

    /// Whether a revision was committed, once the session is in order again.
    async fn look(&mut self, expected: Option<Revision>) -> DbResult<bool> {
        self.session.recover().await?;
        let newest = self.newest_there().await?;
        Ok(expected.is_some_and(|expected| newest >= expected))
    }

    /// The newest revision that the store holds now.
    async fn newest_there(&mut self) -> DbResult<Revision> {
        let statements = &self.shared.statements;
        let (_, newest) = super::last(&mut self.session, statements).await?;
        let compacted = reader::meta(&mut self.session, statements, "compacted").await?;
        let newest = newest.max(compacted.unwrap_or(-1));
        if newest < self.newest {
            return Err(DbError::Lost(format!(
                "its newest revision is {newest}, but {} was committed before: the server lost \
                 what it had promised, or this is a replica that is behind; make the right server \
                 answer at this address, or restore all stores to one point in time",
                self.newest
            )));
        }
        Ok(newest)
    }

    /// The commit of a batch that changed no key: there is no revision to find out by whether its
    /// records are there.
    fn leave_unknown(&self, batch: WriteBatch, error: &DbError) {
        self.shared.leaf.journal.abort();
        let refused = self.shared.error(error.clone());
        let reason: Arc<str> = error.to_string().into();
        for answer in batch.answers {
            let store = self.shared.leaf.name.clone();
            let error = match answer {
                Answer::Written(..) => refused.clone(),
                Answer::Done(..) => StoreError::UnknownOutcome { store, reason: reason.clone() },
            };
            answer.fail(error);
        }
    }

    /// The outcome of a commit stays unknown: its revisions stay open until it is known.
    async fn await_outcome(&mut self, batch: WriteBatch, error: &DbError, second: DbError) {
        let unknown = StoreError::UnknownOutcome {
            store: self.shared.leaf.name.clone(),
            reason: format!("{error}; then {second}").into(),
        };
        let WriteBatch { run, work, answers, next_seq } = batch;
        answers.into_iter().for_each(|answer| answer.fail(unknown.clone()));
        let expected = run.commits.last().map(|commit| commit.revision);
        if !self.wait_for_store(second).await {
            return;
        }
        let batch = WriteBatch { run, work, answers: Vec::new(), next_seq };
        // What was found while the store came back is still there.
        match super::last(&mut self.session, &self.shared.statements).await {
            Ok((_, newest)) if expected.is_some_and(|expected| newest >= expected) => {
                self.conclude(batch);
            }
            Ok(_) => self.shared.leaf.journal.abort(),
            Err(again) => Box::pin(self.await_outcome(batch, error, again)).await,
        }
    }

    /// Deals with an error outside of a commit: waits where the store is lost.
    async fn take_trouble(&mut self, error: DbError) {
        match error {
            DbError::Lost(_) | DbError::Fenced(_) => _ = self.wait_for_store(error).await,
            DbError::Full(_) | DbError::Failed(_) => self.session.rollback().await,
        }
    }

    /// Answers all that is asked with what the trouble is, until the session works again, the queue
    /// ends or another node has the store for good. Says whether it works.
    async fn wait_for_store(&mut self, first: DbError) -> bool {
        let mut trouble = first;
        let mut pause = Duration::ZERO;
        loop {
            tracing::warn!(store = %self.shared.leaf.name, error = %trouble, "the store can't be used");
            let error = self.shared.error(trouble.clone());
            self.shared.leaf.enter_trouble(error.clone());
            // The work itself goes on when the store is back.
            self.compaction.answer(&Err(error.clone()));
            if let Some(task) = self.held.take() {
                task.refuse(error.clone());
            }
            if matches!(trouble, DbError::Fenced(_)) {
                self.shared.leaf.journal.abort();
                // Whoever may have it next finds nothing of this owner in the way.
                self.session.abandon();
                while let Some(task) = self.queue.recv().await {
                    task.refuse(error.clone());
                }
                return false;
            }
            let Some(recovered) = self.recover(pause, &error).await else { return false };
            let found = match recovered {
                Ok(()) => self.newest_there().await.map(drop),
                Err(error) => Err(error),
            };
            match found {
                Ok(()) => break,
                Err(error) => trouble = error,
            }
            pause = (pause * 2).clamp(RECOVER_PAUSE_MIN, RECOVER_PAUSE_MAX);
        }
        tracing::info!(store = %self.shared.leaf.name, "the store is back");
        self.shared.leaf.leave_trouble();
        true
    }

    /// One attempt to recover after a pause, answering all that is asked meanwhile. `None` where the
    /// queue ends.
    async fn recover(&mut self, pause: Duration, error: &StoreError) -> Option<DbResult<()>> {
        let session = &mut self.session;
        let again = async move {
            tokio::time::sleep(pause).await;
            session.recover().await
        };
        tokio::pin!(again);
        loop {
            tokio::select! {
                recovered = &mut again => return Some(recovered),
                task = self.queue.recv() => task?.refuse(error.clone()),
            }
        }
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
    async fn execute_write(&mut self, write: Write, run: &mut Run) -> DbResult<Result<Written>> {
        let shared = self.shared.clone();
        let mut allocate = || shared.leaf.journal.allocate();
        match write {
            Write::Txn { txn, dead_leases } => {
                self.load_ranges(run, &txn).await?;
                let place = Workspace {
                    rows: &mut run.rows,
                    past: &run.past,
                    before: run.before,
                    dead_leases: &dead_leases,
                };
                let compacted = shared.leaf.compacted();
                let outcome = execute(&txn, place, compacted, &mut allocate);
                Ok(outcome.map(|outcome| {
                    run.add(outcome.commit);
                    Written { revision: outcome.revision, result: outcome.result }
                }))
            }
            Write::EndLease(lease) => {
                let live = reader::leased(&mut self.session, &shared.statements, lease).await?;
                run.learn_new(live);
                let leased = in_range(&run.rows, &KeyRange::all()).filter(|kv| kv.lease == lease);
                let mut rows: Rows = leased.map(|kv| (kv.key.clone(), kv.clone())).collect();
                let commit = match delete_all(&mut rows, &mut allocate) {
                    Ok(commit) => commit,
                    Err(error) => return Ok(Err(error)),
                };
                for event in commit.iter().flat_map(|commit| &commit.events) {
                    run.rows.remove(&event.kv.key);
                }
                run.add(commit);
                Ok(Ok(Written { revision: run.before, result: Default::default() }))
            }
        }
    }

    /// Writes what the batch changed, and commits.
    async fn write(&mut self, batch: &mut WriteBatch) -> Result<(), Failure> {
        let statements = &self.shared.statements;
        if batch.run.commits.is_empty() && batch.work.is_empty() {
            note_statements(&[&statements.each_key], "ROLLBACK");
            self.session.rollback().await;
            return Ok(());
        }
        note_statements(&[&statements.put_log, &statements.put_key], "COMMIT");
        batch.next_seq = self.write_commits(&batch.run).await.map_err(Failure::Before)?;
        self.write_work(&batch.work).await.map_err(Failure::Before)?;
        self.session.commit().await.map_err(Failure::Within)
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
            let mut rows = vec![vec![Arg::Text("compacted"), Arg::Int(revision)]];
            rows.extend(self.made_anew.map(|made| vec![Arg::Text("made"), Arg::Int(made)]));
            self.session.execute_many(&statements.put_meta, &rows).await?;
        }
        Ok(())
    }

    async fn compact_step(&mut self) {
        let step = self.compaction.step(&mut self.session, &self.shared.statements).await;
        if let Err(error) = step {
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

/// What a batch does beside changing keys.
struct Work {
    records: Vec<(String, Option<Bytes>)>,
    compact: Option<Revision>,
    compacted: Vec<oneshot::Sender<Result<()>>>,
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

    fn fail(self, error: StoreError) {
        match self {
            Self::Written(answer, _) => drop(answer.send(Err(error))),
            Self::Done(answer) => drop(answer.send(Err(error))),
        }
    }
}

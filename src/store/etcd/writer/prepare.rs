//! From tasks to a batch: what they look at is read at once, and then each is executed on what those
//! before it have left.

use std::collections::{HashSet, VecDeque};

use prost::Message as _;

use super::{BATCH_BYTES_MAX, Blind, Trouble, Work, Writer};
use crate::{
    model::{
        Key, StoreError,
        changes::Changes,
        error::Result,
        txn::{Compare, Needs, Rows, Txn, TxnResult, Workspace, delete_all, execute},
    },
    proto::etcdserverpb as pb,
    store::{
        Written,
        etcd::{
            batch::{Batch, GUARDS_MAX, delete},
            layout::{ABOUT, About, RESERVED_TEXT, is_reserved, record_key},
            owner::put,
            past,
            recent::Latest,
            snapshot::Snapshot,
            wire::{WireError, WireResult},
        },
        led::mailbox::{Task, Write},
    },
};

/// Changes of others that one batch adopts, and those that are told one by one at all.
const ADOPTED_EVENTS_MAX: usize = 200;
const GROUP_EVENTS_MAX: usize = 5_000;

/// A task, with what it looks at and what it may change.
struct Look<'t> {
    task: &'t Task,
    needs: Needs,
    changes: Changes,
}

// === impl Look ===

impl<'t> Look<'t> {
    fn at(task: &'t Task) -> Self {
        match task {
            Task::Write(Write::Txn { txn, .. }, _) => {
                Self { task, needs: txn.needs(), changes: Changes::of(txn) }
            }
            _ => Self { task, needs: Needs::default(), changes: Changes::default() },
        }
    }

    /// The first of some tasks, no more than can be compared one by one.
    fn at_fitting(tasks: &'t VecDeque<Task>) -> Vec<Self> {
        let mut keys: HashSet<Key> = HashSet::new();
        let mut looks: Vec<Self> = Vec::with_capacity(tasks.len());
        for look in tasks.iter().map(Self::at) {
            let more = look.needs.keys.iter().filter(|key| !keys.contains(*key)).count();
            if !looks.is_empty() && keys.len() + more > GUARDS_MAX {
                break;
            }
            keys.extend(look.needs.keys.iter().cloned());
            looks.push(look);
        }
        looks
    }

    fn reads_past(&self) -> bool {
        !self.needs.past.is_empty()
    }

    /// Keys that must not exist for it to succeed.
    fn created(&self) -> impl Iterator<Item = &'t Key> {
        let compares = match self.task {
            Task::Write(Write::Txn { txn, .. }, _) => &txn.compares[..],
            _ => &[],
        };
        compares.iter().filter_map(Compare::absent)
    }

    /// Whether it may change what a write before it in the batch has changed.
    fn meets(&self, batch: &Batch) -> bool {
        match self.task {
            Task::Write(Write::EndLease(_), _) => !batch.commits.is_empty(),
            _ => {
                batch.has_touched(&self.changes.puts)
                    || self.changes.deletes.iter().any(|range| batch.has_touched_in(range))
            }
        }
    }
}

// === impl Writer ===

impl Writer {
    /// Executes as many of the tasks as fit in one transaction, and adopts what others did.
    pub(super) async fn prepare(&mut self, tasks: &VecDeque<Task>) -> Result<Work, Trouble> {
        let may_guess = self.read_first == 0;
        self.read_first = self.read_first.saturating_sub(1);
        let work = self.prepare_on(tasks, may_guess).await?;
        if !work.batch.is_unsure() {
            return Ok(work);
        }
        self.spare = work.batch.revisions();
        self.prepare_on(tasks, false).await
    }

    async fn prepare_on(
        &mut self,
        tasks: &VecDeque<Task>,
        may_guess: bool,
    ) -> Result<Work, Trouble> {
        let shared = self.shared.clone();
        self.known = self.known.max(shared.seen.revision());
        let mut batch = Batch::new(self.known, shared.numbers(), shared.leaf.clock.shown());
        let has_room = self.adopt(&mut batch).await?;
        let mut work = Work { batch, answers: Vec::new(), compact: None };
        if !has_room {
            return Ok(work);
        }
        let looks = Look::at_fitting(tasks);
        self.look_up(&mut work.batch, &looks, may_guess).await?;
        for look in &looks {
            let is_first = work.answers.is_empty();
            let batch = &work.batch;
            let is_full = !batch.is_exact() || batch.bytes() + look.task.size() > BATCH_BYTES_MAX;
            if !is_first && (is_full || look.reads_past() || look.meets(batch)) {
                break;
            }
            let Some(answer) = self.execute(&mut work, look, is_first).await? else { break };
            work.answers.push(answer);
            if look.reads_past() {
                break;
            }
        }
        Ok(work)
    }

    /// Gives revisions to what others did. Says whether there is room for more in the batch.
    async fn adopt(&mut self, batch: &mut Batch) -> Result<bool, Trouble> {
        let shared = self.shared.clone();
        let waiting = shared.seen.waiting(self.record.base, batch.base);
        let mut events = 0;
        for group in waiting {
            let count = group.visible().count();
            if count > GROUP_EVENTS_MAX {
                return Err(Blind::Overrun.into());
            }
            events += count;
            if events > ADOPTED_EVENTS_MAX && events > count {
                // The rest comes with the next batch, which is based on a newer state.
                batch.base = group.etcd - 1;
                return Ok(false);
            }
            let changed = group.visible().filter_map(|event| event.kv.as_ref());
            shared.recent.forget(changed.map(|kv| &kv.key));
            let (numbers, at) = (batch.numbers.clone(), self.log_etcd);
            let commit = past::foreign_commit(&shared.wire, &numbers, &group, 0, at).await?;
            let revision = self.allocate().map_err(|error| WireError::Failed(error.to_string()))?;
            let commit = past::at_revision(commit, revision);
            batch.adopt(group.etcd, commit);
        }
        Ok(events <= ADOPTED_EVENTS_MAX)
    }

    /// Finds the rows of all keys that some tasks need: those in memory, then those that are not there
    /// if the task is to succeed, and then those that must be read.
    async fn look_up(
        &self,
        batch: &mut Batch,
        looks: &[Look<'_>],
        may_guess: bool,
    ) -> WireResult<()> {
        let recent = &self.shared.recent;
        let mut keys = batch.unknown(looks.iter().flat_map(|look| look.needs.keys.iter()));
        keys.retain(|key| match recent.latest(key) {
            Some(latest) => {
                batch.learn(vec![latest.key], latest.row.into_iter().collect());
                false
            }
            None => true,
        });
        if may_guess && keys.len() <= GUARDS_MAX {
            let created: HashSet<&Key> = looks.iter().flat_map(Look::created).collect();
            keys.retain(|key| {
                let is_guessed = created.contains(key);
                if is_guessed {
                    batch.guess_absent(key.clone());
                }
                !is_guessed
            });
        }
        if keys.is_empty() {
            return Ok(());
        }
        let snapshot = Snapshot::new(&self.shared.wire, batch.base, &batch.numbers);
        let found = snapshot.rows_of(&keys).await?;
        if batch.adopted.is_empty() {
            // Nobody else writes what is known, so nothing has changed since.
            let changes = recent.changes();
            for row in &found {
                let (key, since) = (row.kv.key.clone(), row.kv.mod_revision);
                recent.learn(Latest { key, row: Some(row.clone()), since }, changes);
            }
        }
        batch.learn(keys, found);
        Ok(())
    }

    /// One task on the state of the batch. `None` where it must wait for the next one.
    async fn execute(
        &mut self,
        work: &mut Work,
        look: &Look<'_>,
        is_first: bool,
    ) -> Result<Option<Result<Written>>, Trouble> {
        let revision = work.batch.before;
        let done = Written { revision, result: TxnResult::default() };
        match look.task {
            Task::Write(Write::Txn { txn, dead_leases }, _) => {
                if look.changes.puts.iter().any(|key| is_reserved(key)) {
                    let store = self.shared.leaf.name.clone();
                    let error = StoreError::KeyReserved { store, prefix: RESERVED_TEXT.into() };
                    return Ok(Some(Err(error)));
                }
                self.load_ranges(&mut work.batch, &look.needs).await?;
                if !is_first && work.batch.guards() > GUARDS_MAX {
                    return Ok(None);
                }
                Ok(Some(self.execute_txn(&mut work.batch, txn, dead_leases)))
            }
            Task::Write(Write::EndLease(lease), _) => {
                let numbers = work.batch.numbers.clone();
                let wire = &self.shared.wire;
                let snapshot = Snapshot::new(wire, work.batch.base, &numbers);
                let keys = snapshot.leased(*lease).await?;
                let unknown = work.batch.unknown(&keys);
                let found = snapshot.rows_of(&unknown).await?;
                work.batch.learn_leased(found);
                let rows = keys.iter().filter_map(|key| work.batch.rows.get(key));
                let rows = rows.filter(|kv| kv.lease == *lease);
                let mut rows: Rows = rows.map(|kv| (kv.key.clone(), kv.clone())).collect();
                let commit = match delete_all(&mut rows, &mut || self.allocate()) {
                    Ok(commit) => commit,
                    Err(error) => return Ok(Some(Err(error))),
                };
                for event in commit.iter().flat_map(|commit| &commit.events) {
                    work.batch.rows.remove(&event.kv.key);
                }
                let result = TxnResult { succeeded: commit.is_some(), results: Vec::new() };
                work.batch.add(commit);
                Ok(Some(Ok(Written { revision: work.batch.before, result })))
            }
            Task::Records(changes, _) => {
                for (name, value) in changes {
                    let key = record_key(name);
                    work.batch.own.retain(|op| !is_about(op, &key));
                    work.batch.own.push(match value {
                        Some(value) => put(key, value.clone(), 0),
                        None => delete(key),
                    });
                }
                Ok(Some(Ok(done)))
            }
            Task::Close(_) | Task::Defragment(_) | Task::Index(..) => Ok(Some(Ok(done))),
            Task::Compact(revision, ..) => {
                // The line never goes back: what is below is gone.
                let compacted = self.shared.leaf.compacted();
                if *revision > compacted.max(work.compact.unwrap_or(compacted)) {
                    work.compact = Some(*revision);
                    let about = About { compacted: *revision, ..self.about.clone() };
                    let key = Key::from_static(ABOUT);
                    work.batch.own.retain(|op| !is_about(op, &key));
                    work.batch.own.push(put(key, about.encode_to_vec(), 0));
                }
                Ok(Some(Ok(done)))
            }
        }
    }

    async fn load_ranges(&self, batch: &mut Batch, needs: &Needs) -> WireResult<()> {
        for range in &needs.ranges {
            let wire = &self.shared.wire;
            let snapshot = Snapshot::new(wire, batch.base, &batch.numbers);
            let found = snapshot.scan(range, 0, false).await?;
            batch.learn_range(range.clone(), found.rows);
        }
        for (range, revision) in &needs.past {
            // One that can't be read is refused by the transaction itself.
            if *revision <= batch.before && self.shared.leaf.check_readable(*revision).is_ok() {
                let kvs = self.shared.all_at(range, *revision).await?;
                batch.past.insert((range.clone(), *revision), kvs);
            }
        }
        Ok(())
    }

    fn execute_txn(
        &mut self,
        batch: &mut Batch,
        txn: &Txn,
        dead_leases: &[i64],
    ) -> Result<Written> {
        let compacted = self.shared.leaf.compacted();
        let before = batch.before;
        let place = Workspace { rows: &mut batch.rows, past: &batch.past, before, dead_leases };
        let outcome = execute(txn, place, compacted, &mut || self.allocate())?;
        batch.add(outcome.commit);
        batch.note_sweep(txn);
        Ok(Written { revision: outcome.revision, result: outcome.result })
    }
}

fn is_about(op: &pb::RequestOp, key: &Key) -> bool {
    use pb::request_op::Request;
    match &op.request {
        Some(Request::RequestPut(put)) => put.key == key,
        Some(Request::RequestDeleteRange(delete)) => delete.key == key,
        _ => false,
    }
}

//! What the writer does when its transactions get no answer, when it is told that the log is not as it left
//! it, when others did what can't be followed, and when it may not be the owner any more.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use prost::Message as _;

use super::{Blind, RECOVER_PAUSE_MIN, Trouble, Work, Writer};
use crate::{
    model::{Key, StoreError},
    proto::etcdserverpb as pb,
    store::{
        etcd::{
            batch::Batch,
            layout::{ABOUT, EtcdRevision, Gap, LOG, LogRecord},
            owner::{self, Found, put, unchanged},
            wire::{self, WireError},
        },
        led::mailbox::Task,
    },
};

/// How long whoever waits for an answer waits to learn what became of a transaction.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The longest pause between attempts to get a lost store back.
const RECOVER_PAUSE_MAX: Duration = Duration::from_secs(2);

// === impl Writer ===

impl Writer {
    /// Looks whether the log is as this owner left it, or as a transaction of its own without commits
    /// did whose answer was lost.
    pub(super) async fn learn_log(
        &mut self,
        etcd: EtcdRevision,
        record: LogRecord,
    ) -> Result<(), Trouble> {
        if etcd == self.log_etcd {
            return Ok(());
        }
        if etcd < self.log_etcd {
            return Err(WireError::Future.into());
        }
        if record.epoch != self.record.epoch || !record.commits.is_empty() {
            return Err(Trouble::Fenced);
        }
        if record.base != self.record.base {
            // It began the history anew, which was not finished.
            (self.record, self.log_etcd) = (record, etcd);
            return Err(Blind::Overrun.into());
        }
        self.note_empty(etcd, record).await
    }

    /// Takes note of a transaction of its own without commits.
    pub(super) async fn note_empty(
        &mut self,
        etcd: EtcdRevision,
        record: LogRecord,
    ) -> Result<(), Trouble> {
        (self.record, self.log_etcd) = (record, etcd);
        self.see_own(etcd).await?;
        let entry = self.entry(etcd, self.record.base, Vec::new()).await?;
        self.shared.history.push(entry);
        Ok(())
    }

    /// Finds out what became of a transaction whose answer was lost. While that took, the store may have
    /// been lost as well.
    pub(super) async fn settle(
        &mut self,
        work: Work,
        tasks: VecDeque<Task>,
        reason: String,
    ) -> bool {
        if !self.find_out(work, tasks, reason).await {
            return false;
        }
        match self.keep_ownership().await {
            Ok(()) => true,
            Err(trouble) => self.take_trouble(trouble).await,
        }
    }

    async fn find_out(&mut self, work: Work, tasks: VecDeque<Task>, reason: String) -> bool {
        let deadline = tokio::time::Instant::now() + SETTLE_WAIT_MAX;
        let mut pause = Duration::ZERO;
        let mut waiting = Some(tasks);
        loop {
            match self.replace(&work.batch).await {
                Ok(Some(etcd)) => {
                    let tasks = waiting.take().unwrap_or_default();
                    self.shared.leaf.leave_trouble();
                    return self.conclude(work, tasks, etcd).await;
                }
                Ok(None) => {
                    let error = self.shared.trouble_error(&WireError::Lost(reason).into());
                    let tasks = waiting.into_iter().flatten();
                    tasks.for_each(|task| task.refuse(error.clone()));
                    self.give_up();
                    self.shared.leaf.leave_trouble();
                    return true;
                }
                Err(Trouble::Fenced) => {
                    let unknown = self.unknown(&reason);
                    let tasks = waiting.into_iter().flatten();
                    tasks.for_each(|task| task.refuse(unknown.clone()));
                    self.give_up();
                    return self.take_trouble(Trouble::Fenced).await;
                }
                // An empty one has taken its place, so it was not applied.
                Err(trouble @ Trouble::Blind(_)) => {
                    let error = self.shared.trouble_error(&trouble);
                    let tasks = waiting.into_iter().flatten();
                    tasks.for_each(|task| task.refuse(error.clone()));
                    self.give_up();
                    return self.take_trouble(trouble).await;
                }
                Err(trouble) => {
                    self.shared.note_trouble(&trouble);
                    if tokio::time::Instant::now() >= deadline {
                        let unknown = self.unknown(&reason);
                        let tasks = waiting.take().into_iter().flatten();
                        tasks.for_each(|task| task.refuse(unknown.clone()));
                    }
                }
            }
            pause = (pause * 2).clamp(RECOVER_PAUSE_MIN, RECOVER_PAUSE_MAX);
            if !self.wait_refusing(pause).await {
                return false;
            }
        }
    }

    pub(super) fn unknown(&self, reason: &str) -> StoreError {
        let (store, reason) = (self.shared.leaf.name.clone(), reason.into());
        StoreError::UnknownOutcome { store, reason }
    }

    /// Puts an empty transaction in the place of one whose answer was lost. The etcd revision of that
    /// one where it was applied; `None` where it never will be.
    async fn replace(&mut self, lost: &Batch) -> Result<Option<EtcdRevision>, Trouble> {
        let record = LogRecord { commits: Vec::new(), ..self.record.clone() };
        let log = || Key::from_static(LOG);
        let look = pb::RangeRequest { key: log(), ..Default::default() };
        let look = pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(look)) };
        let txn = pb::TxnRequest {
            compare: vec![unchanged(log(), self.log_etcd)],
            success: vec![put(log(), record.encode_to_vec(), 0)],
            failure: vec![look],
        };
        let answer = self.shared.wire.write(&txn).await?;
        if answer.succeeded {
            let etcd = answer.header.map_or(0, |header| header.revision);
            // Whatever others did up to it comes later than all of ours.
            self.note_empty(etcd, record).await?;
            return Ok(None);
        }
        let found = wire::ranges(answer)?.pop().and_then(|found| found.kvs.into_iter().next());
        let Some(kv) = found else { return Err(Trouble::Fenced) };
        let record = LogRecord::decode(kv.value.clone());
        let record = record.map_err(|error| WireError::Failed(error.to_string()))?;
        let is_ours = record.epoch == self.record.epoch;
        if is_ours && record.base == lost.base && record.commits == lost.marks() {
            (self.record, self.log_etcd) = (record, kv.mod_revision);
            return Ok(Some(kv.mod_revision));
        }
        // An empty one in its place, whose own answer was lost?
        self.learn_log(kv.mod_revision, record).await?;
        Ok(None)
    }

    /// Begins the history anew, since what others did can't be told one by one.
    pub(super) async fn start_anew(&mut self) -> Result<(), Trouble> {
        let shared = self.shared.clone();
        let found = Found::look(&shared.wire).await?;
        match self.learn_log(found.log_etcd, found.log.clone()).await {
            // What it was missing is given up here.
            Ok(()) | Err(Trouble::Blind(_)) => {}
            Err(trouble) => return Err(trouble),
        }
        if let Some(about) = found.about {
            self.about = about;
        }
        self.give_up();
        let full = |error: StoreError| WireError::Failed(error.to_string());
        // What was missed happened at the first; the second is the first that can be read.
        let missed = self.allocate().map_err(full)?;
        let revision = self.allocate().map_err(full)?;
        let mut about = self.about.clone();
        about.gaps.push(Gap { etcd: found.now, revision: missed });
        about.compacted = revision;
        let record = LogRecord {
            epoch: self.record.epoch,
            base: found.now,
            last: revision,
            commits: Vec::new(),
        };
        let txn = pb::TxnRequest {
            compare: vec![unchanged(Key::from_static(LOG), self.log_etcd)],
            success: vec![
                put(Key::from_static(ABOUT), about.encode_to_vec(), 0),
                put(Key::from_static(LOG), record.encode_to_vec(), 0),
            ],
            failure: Vec::new(),
        };
        let answer = shared.wire.write(&txn).await?;
        if !answer.succeeded {
            // Who was faster is seen by looking again.
            return Err(Blind::Overrun.into());
        }
        let etcd = answer.header.map_or(0, |header| header.revision);
        tracing::warn!(store = %shared.leaf.name, revision, "others changed more than can be told");
        (self.about, self.record, self.log_etcd) = (about, record, etcd);
        self.known = found.now;
        {
            let mut numbers = shared.lock_numbers();
            let numbers = Arc::make_mut(&mut numbers);
            numbers.gaps.clone_from(&self.about.gaps);
            numbers.adopted.clear();
        }
        shared.recent.clear();
        shared.leaf.raise_compacted(revision);
        shared.seen.restart(found.now);
        let record = self.record.clone();
        // Half done, it must be done again: tails would go on over what was missed.
        self.note_empty(etcd, record).await.map_err(|trouble| match trouble {
            Trouble::Fenced => Trouble::Fenced,
            _ => Blind::Overrun.into(),
        })?;
        shared.leaf.journal.cut(revision);
        Ok(())
    }

    /// Gets a new lease where the old one is gone and nobody else has taken the store.
    pub(super) async fn keep_ownership(&mut self) -> Result<(), Trouble> {
        let shared = self.shared.clone();
        if shared.tenure.keep(&shared.wire).await? {
            return Ok(());
        }
        let found = Found::look(&shared.wire).await?;
        self.learn_log(found.log_etcd, found.log.clone()).await?;
        let record = LogRecord { commits: Vec::new(), ..self.record.clone() };
        let ops = vec![put(Key::from_static(LOG), record.encode_to_vec(), 0)];
        let taken = owner::take(&shared.wire, &found, &self.note, &shared.tenure, ops).await?;
        // Who was faster is seen by looking again.
        let faster = || WireError::Lost("somebody else wrote its owner's key".to_owned());
        let etcd = taken.ok_or_else(faster)?;
        self.see(etcd).await?;
        self.note_empty(etcd, record).await
    }

    /// Waits until the store works again. Says whether there is more to do in this life.
    pub(super) async fn take_trouble(&mut self, trouble: Trouble) -> bool {
        let mut trouble = match trouble {
            // Nothing is wrong but with what was asked.
            Trouble::Wire(WireError::Failed(_) | WireError::TooLarge | WireError::Full) => {
                return true;
            }
            trouble => trouble,
        };
        let mut pause = Duration::ZERO;
        self.shared.recent.clear();
        loop {
            self.shared.note_trouble(&trouble);
            if matches!(trouble, Trouble::Fenced) {
                self.give_up();
                let error = self.shared.trouble_error(&trouble);
                self.held.drain(..).for_each(|task| task.refuse(error.clone()));
                while let Some(task) = self.queue.recv().await {
                    task.refuse(error.clone());
                }
                return false;
            }
            if !self.wait_refusing(pause).await {
                return false;
            }
            let recovered = match trouble {
                Trouble::Blind(_) => self.start_anew().await,
                _ => self.recover().await,
            };
            match recovered {
                Ok(()) => break,
                Err(again) => trouble = again,
            }
            pause = (pause * 2).clamp(RECOVER_PAUSE_MIN, RECOVER_PAUSE_MAX);
        }
        tracing::info!(store = %self.shared.leaf.name, "the store is back");
        self.shared.leaf.leave_trouble();
        true
    }

    async fn recover(&mut self) -> Result<(), Trouble> {
        let found = Found::look(&self.shared.wire).await?;
        self.learn_log(found.log_etcd, found.log).await?;
        self.keep_ownership().await
    }

    /// Lets some time pass, refusing all that is asked. Says whether anybody may still ask.
    async fn wait_refusing(&mut self, pause: Duration) -> bool {
        let Err(error) = self.shared.leaf.check_usable() else { return true };
        self.held.drain(..).for_each(|task| task.refuse(error.clone()));
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return true,
                task = self.queue.recv() => match task {
                    Some(task) => task.refuse(error.clone()),
                    None => return false,
                },
            }
        }
    }
}

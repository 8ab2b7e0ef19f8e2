//! Compaction: walking the log once, in small steps, and dropping what only older reads could need.
//!
//! A row at or below the compacted revision supersedes the row that its `prev_seq` names, which nobody
//! can read any more. A deletion below it needs no row at all. What is exactly at it stays, deletions
//! and what the same transaction superseded too, since a watch may begin there; the next compaction
//! looks at it again.

use std::{collections::HashSet, ops::ControlFlow};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    session::{Arg, Columns, DbResult, Session},
    statements::Statements,
};
use crate::model::{Revision, StoreError, error::Result};

/// The rows of one step: it must not hold up the writes that wait behind it.
const STEP_ROWS_MAX: i64 = 256;

/// What is to be compacted, and how far that is done.
#[derive(Debug)]
pub(super) struct Compaction {
    /// Everything below was walked; what is at it may have to be walked again.
    walked: Revision,
    target: Revision,
    waiting: Vec<oneshot::Sender<Result<()>>>,
    is_paused: bool,
}

struct Row {
    seq: i64,
    revision: Revision,
    key: Bytes,
    prev_seq: i64,
    is_tombstone: bool,
}

// === impl Compaction ===

impl Compaction {
    /// Where an earlier process left it.
    pub(super) fn resume(walked: Revision, target: Revision) -> Self {
        Self { walked, target, waiting: Vec::new(), is_paused: false }
    }

    pub(super) fn aim(&mut self, revision: Revision) {
        self.target = self.target.max(revision);
        self.is_paused = false;
    }

    /// Tells when all that is due is done; at once, where nothing is. What was given up before is
    /// tried again for who asks.
    pub(super) fn tell(&mut self, done: oneshot::Sender<Result<()>>) {
        self.is_paused = false;
        self.waiting.push(done);
        if !self.is_due() {
            self.answer(&Ok(()));
        }
    }

    /// Tells those who wait. The work goes on where it is not done.
    pub(super) fn answer(&mut self, result: &Result<()>) {
        for waiting in self.waiting.drain(..) {
            // Whoever waited may have gone.
            let _ = waiting.send(result.clone());
        }
    }

    pub(super) fn is_due(&self) -> bool {
        !self.is_paused && self.walked < self.target
    }

    /// Leaves the rest to the next compaction.
    pub(super) fn give_up(&mut self, error: StoreError) {
        self.is_paused = true;
        self.answer(&Err(error));
    }

    /// One step, in a transaction of its own.
    pub(super) async fn step<S: Session>(
        &mut self,
        session: &mut S,
        statements: &Statements,
    ) -> DbResult<()> {
        let (rows, is_cut) = self.next_rows(session, statements).await?;
        let mut log = Vec::new();
        let mut keys = Vec::new();
        let at_target = rows.iter().filter(|row| row.revision == self.target);
        let stays: HashSet<_> = at_target.map(|row| row.seq).collect();
        for row in &rows {
            if row.prev_seq != 0 && !stays.contains(&row.prev_seq) {
                log.push(vec![Arg::Int(row.prev_seq)]);
            }
            if row.is_tombstone && row.revision < self.target {
                log.push(vec![Arg::Int(row.seq)]);
                keys.push(vec![Arg::Bytes(&row.key), Arg::Int(row.seq)]);
            }
        }
        // The last revision of a step that was cut is walked again, which does no harm.
        let walked = match rows.last() {
            Some(last) if is_cut => last.revision,
            _ => self.target,
        };
        session.begin().await?;
        session.execute_many(&statements.drop_log, &log).await?;
        session.execute_many(&statements.drop_key, &keys).await?;
        let progress = [vec![Arg::Text("walked"), Arg::Int(walked)]];
        session.execute_many(&statements.put_meta, &progress).await?;
        session.commit().await?;
        self.walked = walked;
        if self.walked >= self.target {
            self.answer(&Ok(()));
        }
        Ok(())
    }

    /// The next rows of the log, and whether more follow. A revision is never cut in two unless it
    /// is all there is to the step, so each step gets further.
    async fn next_rows<S: Session>(
        &self,
        session: &mut S,
        statements: &Statements,
    ) -> DbResult<(Vec<Row>, bool)> {
        let mut limit = STEP_ROWS_MAX;
        loop {
            let mut rows = Vec::new();
            let mut each = |columns: &dyn Columns| {
                rows.push(Row {
                    seq: columns.int(0),
                    revision: columns.int(1),
                    key: columns.bytes(2),
                    prev_seq: columns.int(3),
                    is_tombstone: columns.int(4) == 0,
                });
                ControlFlow::Continue(())
            };
            let args = [Arg::Int(self.walked), Arg::Int(self.target), Arg::Int(limit)];
            session.fetch(&statements.garbage, &args, &mut each).await?;
            let is_cut = rows.len() as i64 == limit;
            // A revision is never cut in two: what is left of it would be taken for done.
            let is_stuck = is_cut
                && rows.last().is_some_and(|row: &Row| {
                    row.revision <= self.walked || row.revision == self.target
                });
            if !is_stuck {
                return Ok((rows, is_cut));
            }
            limit *= 8;
        }
    }
}

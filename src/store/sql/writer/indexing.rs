//! How indexes are begun, built and kept, in the writer's transactions.

use std::{ops::ControlFlow, time::Duration};

use tokio::time::Instant;

use super::{Run, Writer};
use crate::{
    model::Key,
    select::Attribute,
    store::sql::{
        Demanded, Shared,
        index::{self, Index, RECORD, SCHEMA_INDEXED, Step},
        reader,
        session::{Arg, Columns, DbError, DbResult, Session, rows},
    },
};

/// The rows of one step: it must not hold up the writes that wait behind it.
const STEP_ROWS_MAX: usize = 256;

/// How long nothing is done about indexes when something failed.
const PAUSE: Duration = Duration::from_secs(60);

/// How often is said how far a build is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// How far indexes are that are being built in one go.
#[derive(Debug, Default)]
pub(in crate::store::sql) struct Building {
    /// Since when, and when something was said last; `None` where none is built.
    times: Option<(Instant, Instant)>,
    /// The rows that were looked at.
    rows: usize,
}

// === impl Building ===

impl Building {
    /// Counts the rows of a step, and says now and then how far it is; at the end that it is done.
    fn note(&mut self, store: &str, rows: usize, is_last: bool) {
        let now = Instant::now();
        let (begun, told) = self.times.get_or_insert((now, now));
        self.rows += rows;
        let took = begun.elapsed();
        if is_last {
            tracing::info!(%store, rows = self.rows, ?took, "indexes for selectors are built, and used");
            *self = Self::default();
        } else if told.elapsed() >= TOLD_EVERY {
            *told = now;
            tracing::info!(%store, rows = self.rows, ?took, "indexes for selectors are being built");
        }
    }
}

// === impl Writer ===

impl<S: Session> Writer<S> {
    /// Has an attribute of the keys with a prefix in the index, yet to be built. Where it can't be, reads go on
    /// looking at all rows.
    pub(super) async fn begin_index(&mut self, prefix: &Key, attribute: &Attribute) {
        if self.is_index_paused() {
            return;
        }
        let Some(index) = self.shared.index().with(prefix, attribute) else { return };
        match self.register(&index).await {
            Ok(()) => {
                let (prefix, attribute) = (String::from_utf8_lossy(prefix), attribute.to_string());
                let store = &self.shared.leaf.name;
                tracing::info!(%store, %prefix, attribute, "an index is built, for selectors");
                self.shared.set_index(index.with_table());
            }
            Err(error) => self.pause_index(error).await,
        }
    }

    fn is_index_paused(&self) -> bool {
        self.index_paused.is_some_and(|until| until > Instant::now())
    }

    async fn pause_index(&mut self, error: DbError) {
        tracing::warn!(store = %self.shared.leaf.name, %error, "indexes for selectors have to wait");
        self.index_paused = Some(Instant::now() + PAUSE);
        self.session.rollback().await;
        self.take_trouble(error).await;
    }

    /// Takes the indexes that the store has for those that there are.
    pub(super) async fn load_index(&mut self) -> DbResult<()> {
        if self.shared.index().has_table() {
            let index = index::load(&mut self.session, &self.shared.statements).await?;
            self.shared.set_index(index);
        }
        Ok(())
    }

    async fn register(&mut self, index: &Index) -> DbResult<()> {
        if !index.has_table() {
            // A transaction of its own, in some databases; it does no harm where another owns the store.
            let make_terms = &self.shared.statements.make_terms;
            self.session.fetch(make_terms, &[], &mut |_| ControlFlow::Continue(())).await?;
        }
        self.session.begin().await?;
        self.keep_index(index).await?;
        self.session.commit().await
    }

    async fn keep_index(&mut self, index: &Index) -> DbResult<()> {
        // Who does not know of them would not keep them.
        let version = [vec![Arg::Text("schema"), Arg::Int(SCHEMA_INDEXED)]];
        self.session.execute_many(&self.shared.statements.put_meta, &version).await?;
        let record = index.encode();
        let row = [vec![Arg::Text(RECORD), Arg::Bytes(&record)]];
        self.session.execute_many(&self.shared.statements.put_record, &row).await
    }

    pub(super) fn is_index_due(&self) -> bool {
        self.index_due().is_some_and(|due| due <= Instant::now())
    }

    /// When something is to be done about indexes next, if anything.
    pub(super) fn index_due(&self) -> Option<Instant> {
        let index = self.shared.index();
        let is_due = index.is_due() || self.shared.demanded(&index).is_some();
        is_due.then(|| self.index_paused.unwrap_or_else(Instant::now))
    }

    fn warn_of_a_long_key(&self) {
        let store = &self.shared.leaf.name;
        tracing::warn!(%store, "a key has more than 2,048 bytes: its kind has no index any more");
    }

    /// Begins the next index that is demanded, or puts some more keys in the one that is being built, or takes some
    /// out of one that was given up.
    pub(super) async fn index_step(&mut self) {
        let index = self.shared.index();
        let demanded = self.shared.demanded(&index).cloned();
        if let Some(Demanded { prefix, attribute }) = demanded {
            return self.begin_index(&prefix, &attribute).await;
        }
        let done = match (index.step(), index.dropped()) {
            (Some(step), _) => self.build_some(&index, &step).await,
            (None, Some(id)) => self.drop_some(&index, id).await,
            (None, None) => return,
        };
        match done {
            Ok(index) => self.shared.set_index(index),
            Err(error) => self.pause_index(error).await,
        }
    }

    async fn build_some(&mut self, index: &Index, step: &Step) -> DbResult<Index> {
        let Shared { statements, page_sizer, .. } = &*self.shared;
        let rows_max = page_sizer.rows().min(STEP_ROWS_MAX);
        let first = reader::first_in(&mut self.session, statements, &step.range, rows_max);
        let (live, next) = first.await?;
        let kvs = live.iter().map(|live| (&live.kv.key, &live.kv.value));
        let terms = step.terms(kvs);
        let is_given_up = terms.is_none();
        let (terms, index) = match terms {
            Some(terms) => (terms, index.advanced(step, next)),
            None => {
                self.warn_of_a_long_key();
                (index::Terms::new(), index.without(step))
            }
        };
        self.session.begin().await?;
        self.put_terms(&terms).await?;
        self.keep_index(&index).await?;
        self.session.commit().await?;
        match is_given_up {
            true => self.building = Building::default(),
            false => {
                self.building.note(&self.shared.leaf.name, live.len(), index.step().is_none());
            }
        }
        Ok(index)
    }

    async fn drop_some(&mut self, index: &Index, id: i64) -> DbResult<Index> {
        let shared = self.shared.clone();
        let args = [Arg::Int(id), Arg::Int(STEP_ROWS_MAX as i64)];
        let row = |columns: &dyn Columns| (columns.int(0), columns.bytes(1));
        let found = rows(&mut self.session, &shared.statements.terms_of, &args, row).await?;
        let is_last = found.len() < STEP_ROWS_MAX;
        let mut terms = index::Terms::new();
        for (hash, key) in found {
            terms.entry((id, hash)).or_default().push(key);
        }
        let index = if is_last { index.without_dropped(id) } else { index.clone() };
        self.session.begin().await?;
        self.drop_terms(&terms).await?;
        self.keep_index(&index).await?;
        self.session.commit().await?;
        Ok(index)
    }

    async fn drop_terms(&mut self, terms: &index::Terms) -> DbResult<()> {
        for rows in index::rows(terms) {
            self.session.execute_many(&self.shared.statements.drop_term, &rows).await?;
        }
        Ok(())
    }

    async fn put_terms(&mut self, terms: &index::Terms) -> DbResult<()> {
        let rows: Vec<_> = index::rows(terms).flatten().collect();
        if rows.is_empty() {
            // Where there is no index, there is no table for it.
            return Ok(());
        }
        self.session.execute_many(&self.shared.statements.put_term, &rows).await
    }

    /// Keeps the indexes of what a batch changes. Returns them where they are others from it on.
    pub(super) async fn write_index(&mut self, run: &Run) -> DbResult<Option<Index>> {
        let index = self.shared.index();
        let less = index.without_too_long(&run.commits);
        let changes = less.as_ref().unwrap_or(&index).changes(&run.commits);
        self.drop_terms(&changes.gone).await?;
        self.put_terms(&changes.new).await?;
        if let Some(less) = &less {
            self.warn_of_a_long_key();
            self.keep_index(less).await?;
        }
        Ok(less)
    }
}

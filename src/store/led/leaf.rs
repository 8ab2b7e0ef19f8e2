//! What a store knows of itself whose writes are all its node's own: its log, its line, its trouble.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::future::pending;
use tokio::sync::watch;

use crate::{
    clock::{ClockSeat, SharedClock},
    model::{Revision, StoreError, error::Result},
    store::{
        Head, Size,
        journal::Journal,
        meter::{CommitMeter, Lasting, SelectMeter},
    },
};

/// What reads, tails and the writer of one store share.
#[derive(Debug)]
pub(in crate::store) struct Leaf {
    pub name: Arc<str>,
    pub clock: SharedClock,
    pub journal: Arc<Journal>,
    pub commits: Arc<CommitMeter>,
    pub selected: Arc<SelectMeter>,
    /// What it said of itself when it was opened.
    opened: Head,
    compacted: AtomicI64,
    /// Why it can't be used at present.
    trouble: watch::Sender<Option<StoreError>>,
    is_troubled: Lasting,
    /// What was closed when another node took it: no more is.
    fenced_at: OnceLock<Revision>,
    /// The size as it was last measured.
    size: Mutex<Size>,
    /// Whether there was no room for more, and is not yet again.
    is_full: Arc<AtomicBool>,
}

// === impl Leaf ===

impl Leaf {
    /// A store with its seat in the clock; `head` says how far it has come, `compacted` is its line, and
    /// `is_full` is shared with who knows how much room there is.
    pub(in crate::store) fn new(
        name: &str,
        clock: SharedClock,
        seat: ClockSeat,
        head: Head,
        compacted: Revision,
        is_full: Arc<AtomicBool>,
    ) -> Self {
        Self {
            name: name.into(),
            journal: Arc::new(Journal::new(name, clock.clone(), seat, head.newest)),
            clock,
            opened: head,
            compacted: AtomicI64::new(compacted),
            trouble: watch::Sender::new(None),
            is_troubled: Lasting::default(),
            commits: Arc::default(),
            selected: Arc::default(),
            fenced_at: OnceLock::new(),
            size: Mutex::default(),
            is_full,
        }
    }

    pub(in crate::store) fn head(&self) -> Head {
        let (newest, is_full) = (self.journal.newest(), self.is_full());
        Head { newest, is_exact: true, is_full, ..self.opened }
    }

    /// The oldest revision that can be read.
    pub(in crate::store) fn compacted(&self) -> Revision {
        self.compacted.load(Ordering::Acquire)
    }

    /// From now on nothing below can be read. The line never goes back.
    pub(in crate::store) fn raise_compacted(&self, revision: Revision) {
        self.compacted.fetch_max(revision, Ordering::AcqRel);
    }

    pub(in crate::store) fn check_readable(&self, revision: Revision) -> Result<()> {
        let compacted = self.compacted();
        if revision < compacted { Err(StoreError::Compacted { compacted }) } else { Ok(()) }
    }

    /// All that is asked from now on is answered with this. Of a store that another node took nothing more is
    /// closed: what is in flight is to be given up behind this.
    pub(in crate::store) fn enter_trouble(&self, trouble: StoreError) {
        if matches!(trouble, StoreError::Fenced { .. }) {
            self.fenced_at.get_or_init(|| self.journal.closed());
        }
        self.trouble.send_replace(Some(trouble));
        self.is_troubled.begin();
    }

    pub(in crate::store) fn leave_trouble(&self) {
        self.trouble.send_replace(None);
        self.is_troubled.end();
    }

    /// For how long it can't be used.
    pub(super) fn trouble_age(&self) -> Duration {
        self.is_troubled.age()
    }

    /// What is closed.
    pub(super) fn closed(&self) -> Revision {
        self.fenced_at.get().copied().unwrap_or_else(|| self.journal.closed())
    }

    /// From now on nothing is asked of it: others may have it soon.
    pub(in crate::store) fn stop(&self) {
        self.enter_trouble(self.unavailable("this node is stopping"));
    }

    pub(in crate::store) fn check_usable(&self) -> Result<()> {
        self.trouble.borrow().clone().map_or(Ok(()), Err)
    }

    /// Waits until another node has taken the store. It does not keep the store.
    pub(super) fn fenced(&self) -> impl Future<Output = StoreError> + Send + use<> {
        let mut trouble = self.trouble.subscribe();
        async move {
            let is_fenced =
                |trouble: &Option<_>| matches!(trouble, Some(StoreError::Fenced { .. }));
            match trouble.wait_for(is_fenced).await.map(|fenced| fenced.clone()) {
                Ok(Some(fenced)) => fenced,
                // The store is gone, with all who ask.
                Ok(None) | Err(_) => pending().await,
            }
        }
    }

    /// Waits until the store has closed `revision`, but for no store that is in trouble.
    pub(in crate::store) async fn wait_closed(&self, revision: Revision) -> Result<()> {
        let mut trouble = self.trouble.subscribe();
        tokio::select! {
            biased;
            Ok(error) = trouble.wait_for(Option::is_some) => error.clone().map_or(Ok(()), Err),
            closed = self.journal.wait_closed(revision) => closed.map(drop),
        }
    }

    pub(in crate::store) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// Notes that there is no room for more, or that there is some again.
    pub(in crate::store) fn note_full(&self, is_full: bool) {
        let was_full = self.is_full.swap(is_full, Ordering::AcqRel);
        let store = &self.name;
        match (was_full, is_full) {
            (false, true) => tracing::error!(%store, "there is no room for more"),
            (true, false) => tracing::info!(%store, "there is room again"),
            _ => {}
        }
    }

    /// The size as measured now, else as measured last.
    pub(super) fn note_size(&self, measured: Option<Size>) -> Size {
        let mut last = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        *last = measured.unwrap_or(*last);
        *last
    }

    pub(in crate::store) fn unavailable(&self, reason: impl Into<Arc<str>>) -> StoreError {
        StoreError::Unavailable { store: self.name.clone(), reason: reason.into() }
    }
}

//! Whether a store that has a life of its own is there, and what was given out without it.
//!
//! ```text
//!            away for the grace            back                    closed up to all that was said
//!   Attached ──────────────────> Detached ──────────> Returning ──────────────────────> Attached
//!            noted in the default store                           floor noted, clock moved up to it
//! ```
//!
//! Merged watches wait for an attached store, and pass over a detached one. Whoever was told of a
//! revision without the store may lack what it did meanwhile. So, when it is back with changes there,
//! its open watches are told (as [`super::Late`]), and a watch that comes back later from a revision
//! between where the store was left and the floor is refused as compacted: its client lists afresh. No
//! list can be as low as the floor, so nobody is refused twice.
//!
//! Both are durable in the default store before anyone relies on them: a client may come back after this
//! node has been restarted.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::Store;
use crate::{
    clock::SharedClock,
    model::{Revision, StoreError, error::Result},
};

/// How long merged watches wait for a store that is away.
pub const GRACE: Duration = Duration::from_secs(2);

/// How long merged watches wait for a store that is back to close what was said without it.
const RETURN_WITHIN: Duration = Duration::from_secs(2);

const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The gaps that are told apart; older ones are joined.
const GAPS_MAX: usize = 16;

/// Whether a store is there; see the module.
#[derive(Debug)]
pub struct Presence {
    /// The route's name.
    name: Arc<str>,
    clock: SharedClock,
    /// Keeps what must not be forgotten.
    memory: Arc<dyn Store>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// Held while the record is written.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    is_there: bool,
    phase: Phase,
    /// The greatest revision that was said without the store.
    said: Revision,
    gaps: Vec<Gap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Attached,
    /// With where the store was left.
    Detached(Revision),
    Returning(Revision),
}

/// Who was told of a revision above `after` and below `floor` may lack changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    after: Revision,
    floor: Revision,
}

// === impl Presence ===

impl Presence {
    /// What `memory` remembers of the store of this name, which is not there yet.
    ///
    /// # Errors
    /// Where it can't be read.
    pub async fn recall(
        name: &str,
        memory: Arc<dyn Store>,
        clock: SharedClock,
    ) -> Result<Arc<Self>> {
        let record = record(name);
        let found = memory.recall(&record).await?.into_iter().find(|(name, _)| *name == record);
        let (left, gaps) = found.map(|(_, bytes)| decode(&bytes)).unwrap_or_default();
        let phase = left.map_or(Phase::Attached, Phase::Detached);
        let state = Mutex::new(State { is_there: false, phase, said: 0, gaps });
        let (changed, writing) = (watch::Sender::new(()), tokio::sync::Mutex::default());
        Ok(Arc::new(Self { name: name.into(), clock, memory, state, changed, writing }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it changes what is behind the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store can be reached.
    pub fn is_there(&self) -> bool {
        self.lock().is_there
    }

    /// Says whether the store can be reached.
    pub fn set_there(&self, is_there: bool) {
        self.lock().is_there = is_there;
        self.changed.send_replace(());
    }

    /// Where the store was left by those who go on without it; `None` where it is waited for.
    pub fn left_at(&self) -> Option<Revision> {
        match self.lock().phase {
            Phase::Attached => None,
            Phase::Detached(left) | Phase::Returning(left) => Some(left),
        }
    }

    /// Whether all up to `revision` may be said without the store, as it then counts to have been.
    pub fn pass(&self, revision: Revision) -> bool {
        let mut state = self.lock();
        let may_pass = matches!(state.phase, Phase::Detached(_));
        if may_pass {
            state.said = state.said.max(revision);
        }
        may_pass
    }

    /// See [`Store::check_resumed`].
    ///
    /// # Errors
    /// `Compacted`, with the floor.
    pub fn check_resumed(&self, after: Revision) -> Result<()> {
        let state = self.lock();
        let gap = state.gaps.iter().find(|gap| after > gap.after && after < gap.floor);
        gap.map_or(Ok(()), |gap| Err(StoreError::Compacted { compacted: gap.floor }))
    }

    /// The floor of the newest gap, and where it begins.
    pub fn newest_gap(&self) -> (Revision, Revision) {
        self.lock().gaps.last().map_or((0, 0), |gap| (gap.after, gap.floor))
    }

    /// Tells when something is otherwise.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    async fn wait_for(&self, is_so: impl Fn(&State) -> bool) {
        let mut changes = self.changes();
        while !is_so(&self.lock()) {
            // It can't fail: the sender is here.
            let _ = changes.changed().await;
        }
    }

    /// Waits until the store can be reached.
    pub async fn there(&self) {
        self.wait_for(|state| state.is_there).await;
    }

    /// Notes that what was said above `after` was said without changes that come now, and moves the
    /// clock above it. Returns the floor, once it is durable.
    ///
    /// # Errors
    /// Where the default store did not keep it, and then nothing may be told of the changes.
    pub async fn note_late(&self, after: Revision) -> Result<Revision> {
        let floor = self.clock.shown() + 1;
        self.clock.take_up(floor).await.map_err(|full| self.unavailable(&full.to_string()))?;
        self.keep(|state| state.add_gap(Gap { after, floor })).await?;
        Ok(floor)
    }

    /// Changes what is remembered: durable first, then true.
    async fn keep(&self, change: impl Fn(&mut State)) -> Result<()> {
        let _writing = self.writing.lock().await;
        let mut after = self.lock().copy();
        change(&mut after);
        after.forget(self.memory.compacted());
        self.memory.remember(&record(&self.name), Some(after.encode())).await?;
        change(&mut self.lock());
        self.changed.send_replace(());
        Ok(())
    }

    fn unavailable(&self, reason: &str) -> StoreError {
        StoreError::Unavailable { store: self.name.clone(), reason: reason.into() }
    }

    /// Detaches the store of this presence when it is away, and attaches it again, for ever.
    pub async fn keep_watch(self: Arc<Self>, store: Arc<dyn Store>, grace: Duration) {
        loop {
            if self.left_at().is_none() {
                self.wait_for(|state| !state.is_there).await;
                if timeout(grace, self.wait_for(|state| state.is_there)).await.is_ok() {
                    continue;
                }
                // Everyone has got, or can still get, what is closed here.
                let left = store.closed();
                let kept = self.keep(|state| state.phase = Phase::Detached(left)).await;
                if let Err(error) = kept {
                    tracing::warn!(store = %self.name, %error, "the store can't be detached");
                    sleep(RETRY_AFTER).await;
                    continue;
                }
                tracing::warn!(store = %self.name, revision = left, "watches go on without the store");
            }
            self.wait_for(|state| state.is_there).await;
            match timeout(RETURN_WITHIN, self.take_back(&*store)).await {
                Ok(Ok(late)) => {
                    tracing::info!(store = %self.name, late, "the store is attached again")
                }
                failed => {
                    let error = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "it did not close what was said in time".to_owned(),
                    };
                    tracing::warn!(store = %self.name, error, "the store can't be attached yet");
                    self.turn_back();
                    sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// Has the store close all that was said without it. Returns whether it has changes there.
    async fn take_back(&self, store: &dyn Store) -> Result<bool> {
        let (left, said) = {
            let mut state = self.lock();
            let Phase::Detached(left) = state.phase else { return Ok(false) };
            state.phase = Phase::Returning(left);
            (left, state.said.max(self.clock.begun().unwrap_or(0)))
        };
        // Merged watches hold still from here on, and the store allocates above what it closes.
        store.sync(said, 0).await?;
        let mut tail = store.tail(left);
        let mut is_late = false;
        while let Some(batch) = tail.next().await {
            let batch = match batch {
                // It has given up what was there, so nobody can tell whether there was anything.
                Err(StoreError::Compacted { .. }) => {
                    is_late = true;
                    break;
                }
                batch => batch?,
            };
            is_late |= batch.commits.iter().any(|commit| commit.revision <= said);
            if is_late || batch.closed >= said {
                break;
            }
        }
        let floor = said.max(self.clock.shown()) + 1;
        if is_late {
            self.clock.take_up(floor).await.map_err(|full| self.unavailable(&full.to_string()))?;
        }
        self.keep(|state| {
            state.phase = Phase::Attached;
            state.said = 0;
            if is_late {
                state.add_gap(Gap { after: left, floor });
            }
        })
        .await?;
        Ok(is_late)
    }

    fn turn_back(&self) {
        {
            let mut state = self.lock();
            if let Phase::Returning(left) = state.phase {
                state.phase = Phase::Detached(left);
            }
        }
        self.changed.send_replace(());
    }
}

// === impl State ===

impl State {
    fn copy(&self) -> Self {
        Self {
            is_there: self.is_there,
            phase: self.phase,
            said: self.said,
            gaps: self.gaps.clone(),
        }
    }

    fn add_gap(&mut self, gap: Gap) {
        self.gaps.push(gap);
        if self.gaps.len() > GAPS_MAX {
            let first = self.gaps.remove(0);
            self.gaps[0].after = self.gaps[0].after.min(first.after);
        }
    }

    /// Forgets the gaps from which nobody can come back any more.
    fn forget(&mut self, compacted: Revision) {
        self.gaps.retain(|gap| gap.floor > compacted);
    }

    fn encode(&self) -> Bytes {
        let left = match self.phase {
            Phase::Attached => None,
            Phase::Detached(left) | Phase::Returning(left) => Some(left),
        };
        let gaps: Vec<Value> = self.gaps.iter().map(|gap| json!([gap.after, gap.floor])).collect();
        json!({ "left": left, "gaps": gaps }).to_string().into()
    }
}

fn record(name: &str) -> String {
    format!("presence/{name}")
}

fn decode(bytes: &[u8]) -> (Option<Revision>, Vec<Gap>) {
    let Ok(record) = serde_json::from_slice::<Value>(bytes) else {
        // Whatever it was: all that was said before may lack something.
        return (Some(0), Vec::new());
    };
    let gaps = record["gaps"].as_array().into_iter().flatten();
    let gaps =
        gaps.filter_map(|gap| Some(Gap { after: gap[0].as_i64()?, floor: gap[1].as_i64()? }));
    (record["left"].as_i64(), gaps.collect())
}

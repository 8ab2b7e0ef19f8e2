//! The storage quota, and the alarm that it raises.
//!
//! Puts are refused from when the quota is used up until an operator has made room and disarmed the
//! alarm. Reads, deletions and compaction go on. The alarm is a record in the default store.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Node, to_the_end};
use crate::{
    model::{
        StoreError,
        error::Result,
        txn::{Op, Txn},
    },
    proto::records::Alarm,
    store::{
        Store,
        records::{Changes, Records},
    },
};

/// The id of the alarm's record.
const NOSPACE: &str = "nospace";

/// How old a measurement of the stores' size may be.
const MEASURED_FOR: Duration = Duration::from_millis(500);

/// The quota of a node.
#[derive(Debug)]
pub(super) struct Quota {
    /// 0 for no bound.
    bytes_max: u64,
    is_alarmed: AtomicBool,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    /// As measured, and with what was admitted since.
    bytes: u64,
    measured: Option<Instant>,
}

fn no_space() -> StoreError {
    StoreError::NoSpace("the quota is used up; compact, delete, and disarm the alarm".into())
}

// === impl Quota ===

impl Quota {
    pub(super) async fn load(records: &Records, bytes_max: u64) -> Result<Self> {
        let is_alarmed = AtomicBool::new(records.get_at::<Alarm>(NOSPACE).await?.is_some());
        let used = Mutex::new(Used { bytes: 0, measured: None });
        Ok(Self { bytes_max, is_alarmed, used })
    }

    /// Lets a transaction pass that needs no room, or for which there is some.
    pub(super) async fn admit(&self, root: &dyn Store, records: &Records, txn: &Txn) -> Result<()> {
        if self.bytes_max == 0 && !self.is_alarmed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let bytes = put_bytes(txn);
        if bytes == 0 {
            return Ok(());
        }
        if self.is_alarmed.load(Ordering::Relaxed) {
            return Err(no_space());
        }
        if self.used(root).await?.saturating_add(bytes) <= self.bytes_max {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.bytes = used.bytes.saturating_add(bytes);
            return Ok(());
        }
        self.is_alarmed.store(true, Ordering::Relaxed);
        tracing::error!(quota_bytes = self.bytes_max, "the storage quota is used up");
        // Whoever asked may go meanwhile.
        let records = records.clone();
        let raised = Changes::default().put_at(NOSPACE, &Alarm {});
        to_the_end(async move { records.write(raised).await }).await?;
        Err(no_space())
    }

    pub(super) fn admit_lease(&self) -> Result<()> {
        if self.is_alarmed.load(Ordering::Relaxed) { Err(no_space()) } else { Ok(()) }
    }

    async fn used(&self, root: &dyn Store) -> Result<u64> {
        {
            let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            if used.measured.is_some_and(|at| at.elapsed() < MEASURED_FOR) {
                return Ok(used.bytes);
            }
        }
        let bytes = root.size().await?.in_use;
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) =
            Used { bytes, measured: Some(Instant::now()) };
        Ok(bytes)
    }
}

/// The bytes that the puts of a transaction bring, in whatever branch; at least 1 for each put.
fn put_bytes(txn: &Txn) -> u64 {
    let ops = txn.success.iter().chain(&txn.failure).map(|op| match op {
        Op::Put(put) => (put.key.len() + put.value.len()).max(1) as u64,
        Op::Txn(inner) => put_bytes(inner),
        Op::Range(_) | Op::Delete(_) => 0,
    });
    ops.sum()
}

impl Node {
    /// Whether the NOSPACE alarm is raised.
    pub fn is_out_of_space(&self) -> bool {
        self.quota.is_alarmed.load(Ordering::Relaxed)
    }

    /// Raises or disarms the NOSPACE alarm.
    ///
    /// # Errors
    /// Where the default store can't be written.
    pub async fn set_out_of_space(self: &Arc<Self>, is_raised: bool) -> Result<()> {
        let node = self.clone();
        to_the_end(async move { node.note_out_of_space(is_raised).await }).await
    }

    async fn note_out_of_space(&self, is_raised: bool) -> Result<()> {
        let changes = match is_raised {
            true => Changes::default().put_at(NOSPACE, &Alarm {}),
            false => Changes::default().delete_at::<Alarm>(NOSPACE),
        };
        self.records().write(changes).await?;
        self.quota.is_alarmed.store(is_raised, Ordering::Relaxed);
        Ok(())
    }

    /// The quota; 0 for none.
    pub fn quota_bytes(&self) -> u64 {
        self.quota.bytes_max
    }
}

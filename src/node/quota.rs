//! The storage quota, and what is refused for an alarm.
//!
//! Puts are refused from when the quota is used up until an operator has made room and disarmed the
//! alarm. Reads, deletions and compaction go on.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{Node, alarms::AlarmKind, to_the_end};
use crate::{
    model::{
        StoreError,
        error::Result,
        txn::{Op, Txn},
    },
    store::Store as _,
};

/// How old a measurement of the stores' size may be.
const MEASURED_FOR: Duration = Duration::from_millis(500);

/// The quota of a node.
#[derive(Debug)]
pub(super) struct Quota {
    /// 0 for no bound.
    bytes_max: u64,
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
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, used: Mutex::new(Used { bytes: 0, measured: None }) }
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
    /// Lets a transaction pass that changes keys and needs no room, or for which there is some.
    pub(super) async fn admit(&self, txn: &Txn) -> Result<()> {
        self.alarms.check_intact()?;
        let is_alarmed = self.alarms.has(AlarmKind::NoSpace);
        if self.quota.bytes_max == 0 && !is_alarmed {
            return Ok(());
        }
        let bytes = put_bytes(txn);
        if bytes == 0 {
            return Ok(());
        }
        if is_alarmed {
            return Err(no_space());
        }
        if self.used_bytes().await?.saturating_add(bytes) <= self.quota.bytes_max {
            let mut used = self.quota.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.bytes = used.bytes.saturating_add(bytes);
            return Ok(());
        }
        tracing::error!(quota_bytes = self.quota.bytes_max, "the storage quota is used up");
        // Whoever asked may go meanwhile.
        let (alarms, records) = (self.alarms.clone(), self.records().clone());
        to_the_end(async move { alarms.raise_no_space(&records).await }).await?;
        Err(no_space())
    }

    /// Whether a lease may be granted.
    pub(super) fn admit_lease(&self) -> Result<()> {
        self.alarms.check_intact()?;
        if self.alarms.has(AlarmKind::NoSpace) { Err(no_space()) } else { Ok(()) }
    }

    async fn used_bytes(&self) -> Result<u64> {
        {
            let used = self.quota.used.lock().unwrap_or_else(PoisonError::into_inner);
            if used.measured.is_some_and(|at| at.elapsed() < MEASURED_FOR) {
                return Ok(used.bytes);
            }
        }
        let bytes = self.root.size().await?.in_use;
        *self.quota.used.lock().unwrap_or_else(PoisonError::into_inner) =
            Used { bytes, measured: Some(Instant::now()) };
        Ok(bytes)
    }

    /// The quota; 0 for none.
    pub fn quota_bytes(&self) -> u64 {
        self.quota.bytes_max
    }
}

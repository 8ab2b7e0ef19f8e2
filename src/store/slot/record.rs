//! What a node remembers of a route's store, whichever store that is just now.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    model::error::Result,
    proto::records::Slot,
    store::records::{Changes, Records},
};

/// The durable memory of a slot. Kept under the slot's id, and found again by the route's name.
#[derive(Debug)]
pub struct SlotRecord {
    records: Records,
    known: Mutex<Slot>,
    /// Held while the record is written.
    writing: tokio::sync::Mutex<()>,
}

// === impl SlotRecord ===

impl SlotRecord {
    /// What is remembered of the slot of the route `name`; a new one where nothing is.
    ///
    /// # Errors
    /// `Damaged` where a slot's record can't be read, and those of the default store.
    pub async fn open(records: &Records, name: &str, fresh_id: u64) -> Result<Self> {
        let found = records.all::<Slot>().await?.into_iter().map(|(_, slot)| slot);
        let known = found.into_iter().find(|slot| slot.name == name);
        let fresh = || Slot { id: fresh_id, name: name.to_owned(), ..Slot::default() };
        Ok(Self::of(records, known.unwrap_or_else(fresh)))
    }

    /// The memory of a slot that is known already.
    pub fn of(records: &Records, known: Slot) -> Self {
        let (known, writing) = (Mutex::new(known), tokio::sync::Mutex::default());
        Self { records: records.clone(), known, writing }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        // Nothing panics while it changes what is behind the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered now.
    pub fn get(&self) -> Slot {
        self.lock().clone()
    }

    /// The records it lies among.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Changes what is remembered: durable first, then true.
    ///
    /// # Errors
    /// Those of the default store; then nothing is changed.
    pub async fn update(&self, change: impl Fn(&mut Slot)) -> Result<()> {
        let _writing = self.writing.lock().await;
        let mut next = self.get();
        change(&mut next);
        if next == *self.lock() {
            return Ok(());
        }
        self.records.write(Changes::default().put_at(next.id, &next)).await?;
        *self.lock() = next;
        Ok(())
    }
}

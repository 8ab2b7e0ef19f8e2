//! What the stores of routes know of the default store: how far it had come. One that was put back to an older
//! state while the node was down, by whatever means, has come less far than they say.
//!
//! A store that is not there when the node starts is not asked, and where there are no routes to stores
//! of the node's own, nobody knows. A database that may have been filled from a dump says so itself
//! (`store/sql/remote`), and so does what lies beside a file.

use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::Mutex;

use crate::{
    model::Revision,
    proto::records::Witness,
    store::{
        RecordStore,
        records::{Changes, Records},
        slot,
    },
};

/// The stores that are told. All that are there are asked.
const TOLD_MAX: usize = 2;

/// The default store, and the slots whose stores may know of it.
#[derive(Debug)]
pub(super) struct Witnesses {
    default: Arc<dyn RecordStore>,
    slots: Vec<Told>,
}

/// A slot, and what the store in it was told.
#[derive(Debug)]
struct Told {
    slot: Arc<slot::Slot>,
    told: Mutex<Revision>,
}

// === impl Witnesses ===

impl Witnesses {
    pub(super) fn new(
        default: Arc<dyn RecordStore>,
        slots: impl Iterator<Item = Arc<slot::Slot>>,
    ) -> Self {
        let slots = slots.map(|slot| Told { slot, told: Mutex::new(0) });
        Self { default, slots: slots.collect() }
    }

    /// How far the default store had come, as far as any of them knows; 0 where none does.
    pub(super) async fn newest(&self) -> Revision {
        let incarnation = self.default.head().incarnation;
        let asked = self.slots.iter().filter_map(|told| told.slot.records()).map(|store| async {
            let name = store.name().clone();
            let found = async { Records::open(store).await?.get::<Witness>().await };
            found.await.unwrap_or_else(|error| {
                tracing::warn!(
                    store = %name, %error, "what it knows of the default store is not used"
                );
                None
            })
        });
        let found = join_all(asked).await.into_iter().flatten();
        let found = found.filter(|it| it.incarnation == incarnation && incarnation != 0);
        found.map(|it| it.newest).max().unwrap_or(0)
    }

    /// Tells the first that are there how far it is now.
    pub(super) async fn tell(&self) {
        let head = self.default.head();
        if head.incarnation == 0 {
            return;
        }
        let there = self.slots.iter().filter_map(|told| Some((told, told.slot.records()?)));
        join_all(there.take(TOLD_MAX).map(|(told, store)| async move {
            let mut told = told.told.lock().await;
            if head.newest <= *told {
                return;
            }
            let name = store.name().clone();
            let witness = Witness { incarnation: head.incarnation, newest: head.newest };
            let write = async {
                let records = Records::open(store).await?;
                records.write(Changes::default().put(&witness)).await
            };
            match write.await {
                Ok(()) => *told = head.newest,
                Err(error) => {
                    tracing::debug!(
                        store = %name, %error, "how far the default store is was not kept there"
                    );
                }
            }
        }))
        .await;
    }
}

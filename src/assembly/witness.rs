//! What the stores of routes know of the default store: how far it had come. One that was put back to an older
//! state while the node was down, by whatever means, has come less far than they say.
//!
//! A store that is not there when the node starts is not asked, and where there are no routes to stores
//! of the node's own, nobody knows. A database that was filled from a dump says so itself
//! (`store/sql/remote`), and so does what lies beside a file.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use futures::future::join_all;

use crate::{
    model::Revision,
    proto::records::Witness,
    store::{
        RecordStore,
        records::{Changes, Records},
    },
};

/// The stores that are told. All that are there are asked.
const TOLD_MAX: usize = 2;

/// The default store, and who knows of it.
#[derive(Debug)]
pub(super) struct Witnesses {
    default: Arc<dyn RecordStore>,
    routes: Vec<Records>,
    told: AtomicI64,
}

// === impl Witnesses ===

impl Witnesses {
    /// The stores among `routes` that can keep something.
    pub(super) async fn new(
        default: Arc<dyn RecordStore>,
        routes: impl Iterator<Item = Arc<dyn RecordStore>>,
    ) -> Self {
        let opened = join_all(routes.map(|store| async move {
            let name = store.name().clone();
            let opened = Records::open(store).await;
            opened.inspect_err(
                |error| tracing::warn!(store = %name, %error, "its records are not used"),
            )
        }));
        let routes = opened.await.into_iter().flatten().collect();
        Self { default, routes, told: AtomicI64::new(0) }
    }

    /// How far the default store had come, as far as any of them knows; 0 where none does.
    pub(super) async fn newest(&self) -> Revision {
        let incarnation = self.default.head().incarnation;
        let asked = join_all(self.routes.iter().map(|route| route.get::<Witness>())).await;
        let found = asked.into_iter().filter_map(|found| {
            found.unwrap_or_else(|error| {
                tracing::warn!(%error, "what a store knows of the default store is not used");
                None
            })
        });
        let found = found.filter(|it| it.incarnation == incarnation && incarnation != 0);
        found.map(|it| it.newest).max().unwrap_or(0)
    }

    /// Tells them how far it is now.
    pub(super) async fn tell(&self) {
        let head = self.default.head();
        if head.newest <= self.told.load(Ordering::Relaxed) || head.incarnation == 0 {
            return;
        }
        let witness = Witness { incarnation: head.incarnation, newest: head.newest };
        let told = self.routes.iter().take(TOLD_MAX).map(|route| async {
            let told = route.write(Changes::default().put(&witness)).await;
            told.inspect_err(|error| {
                let store = route.store().name();
                tracing::debug!(%store, %error, "how far the default store is was not kept there");
            })
        });
        if join_all(told).await.iter().all(Result::is_ok) {
            self.told.store(head.newest, Ordering::Relaxed);
        }
    }
}

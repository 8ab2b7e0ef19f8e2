//! What is measured of the stores while the node runs: where their meters stand, and how many keys they hold.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::StorePlan;
use crate::{
    model::KeyRange,
    node::Node,
    store::{
        Query, Store,
        meter::{RequestMeter, SAMPLE_EVERY},
        metered::About,
    },
    topology::Endpoint,
};

/// A store whose keys were counted is left alone for at least this long, …
const COUNT_PAUSE_MIN: Duration = Duration::from_secs(15);

/// … and for so many times as long as it took, less than a thousandth of its time; …
const COUNT_PAUSE_FACTOR: u32 = 1_000;

/// … but not for longer than this. A large one costs a little more then.
const COUNT_PAUSE_MAX: Duration = Duration::from_secs(30 * 60);

/// A count that takes longer is given up: of a store that is as large as that it is not known.
const COUNT_TIME_MAX: Duration = Duration::from_secs(60);

/// How long to wait before stores are searched again for misrouted keys, after one that failed.
const SURVEY_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// A store of the router's table as it is read here, and its meter: what nobody asked for is not measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub store: Arc<dyn Store>,
    pub meter: Arc<RequestMeter>,
}

/// What an operator calls a store, and where it is.
pub(super) fn about(plan: &StorePlan, rule: Option<String>) -> About {
    let kind = match &plan.endpoint {
        Endpoint::Sqlite { .. } => "sqlite",
        Endpoint::Postgres(_) => "postgres",
        Endpoint::Mysql(_) => "mysql",
        Endpoint::Etcd { .. } if rule.is_none() => "etcd",
        Endpoint::Etcd { .. } => "etcd or node",
    };
    About {
        kind: kind.to_owned(),
        place: plan.endpoint.to_string(),
        is_default: rule.is_none(),
        rule: rule.unwrap_or_default(),
    }
}

/// Has all meters remember where they stand, so that what was of late is known. For ever.
pub(super) async fn sample(node: Arc<Node>) {
    loop {
        sleep(SAMPLE_EVERY).await;
        node.root().meters().iter().for_each(|meters| meters.sample());
        node.requests().sample();
    }
}

/// Counts the keys of a store that this node writes. For ever.
pub(super) async fn count_keys(stores: Arc<Vec<Measured>>, at: usize, node: Arc<Node>) {
    let Measured { store, meter } = &stores[at];
    loop {
        let begun = Instant::now();
        // Who else writes a store counts its keys.
        if store.meters().iter().any(|it| it.commits.is_some()) {
            let all = Query::new(KeyRange::all(), node.revision());
            if let Ok(Ok(keys)) = timeout(COUNT_TIME_MAX, store.count(&all)).await {
                meter.note_keys(keys);
            }
        }
        let pause = begun.elapsed() * COUNT_PAUSE_FACTOR;
        sleep(pause.clamp(COUNT_PAUSE_MIN, COUNT_PAUSE_MAX)).await;
    }
}

/// Finds keys that lie in a store which their route does not name: they are hidden, and operators want to know.
pub(super) async fn survey(stores: Arc<Vec<Measured>>, node: Arc<Node>) {
    let unmeasured: Vec<_> = stores.iter().map(|it| it.store.clone()).collect();
    let mut left: Vec<usize> = (0..stores.len()).collect();
    while !left.is_empty() {
        let found = node.root().survey(&unmeasured, &left, node.revision()).await;
        left.clear();
        for (at, found) in found {
            let Measured { store, meter } = &stores[at];
            let store = store.name();
            match found {
                Ok(misrouted) => {
                    if misrouted > 0 {
                        let text = "keys lie in a store that their route does not name";
                        tracing::warn!(%store, misrouted, "{text}");
                    }
                    meter.note_misrouted(misrouted);
                }
                Err(error) => {
                    tracing::debug!(%store, %error, "it was not searched for misrouted keys yet");
                    left.push(at);
                }
            }
        }
        if !left.is_empty() {
            sleep(SURVEY_AGAIN_AFTER).await;
        }
    }
}

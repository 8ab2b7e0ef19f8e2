//! What a node says of itself when it starts: who it is, each store, each route, its parent, and what is off.
//!
//! It is what an operator compares with what was meant. No password is in it.

use std::{path::Path, time::Duration};

use tokio::time::timeout;

use crate::{
    assembly::{DEFAULT_FILE, Plan, Running},
    topology::Endpoint,
};

/// How long nodes behind this one may take to say how they are.
const DESCRIBED_WITHIN: Duration = Duration::from_secs(1);

/// What the plan says of a store, kept until it is open.
#[derive(Debug)]
struct Told {
    name: String,
    place: String,
    /// Which keys it takes.
    keys: String,
}

/// What is said at the start.
#[derive(Debug)]
pub(super) struct Banner {
    stores: Vec<Told>,
}

/// Something that can be switched on, and with what.
pub(super) type Switch = (bool, &'static str);

// === impl Banner ===

impl Banner {
    /// Says who starts, before stores are waited for.
    pub(super) fn begin(name: &str, data_dir: &Path, plan: &Plan) -> Self {
        let path = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        let is_used = matches!(&plan.default.endpoint, Endpoint::Sqlite { path: Some(file), .. }
            if file.starts_with(&path));
        let data_dir = if is_used { path.display().to_string() } else { "not used".to_owned() };
        let unused = path.join(DEFAULT_FILE);
        let is_of = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Sqlite { path: Some(file), .. } if *file == unused);
        let mut stores = plan.routes.iter().map(|route| &route.store).chain([&plan.default]);
        if !stores.any(|store| is_of(&store.endpoint)) && unused.exists() {
            let (unused, default) = (unused.display(), &plan.default.endpoint);
            tracing::warn!(
                %unused, %default,
                "the data directory has a store that nothing here names, as of a start with other settings; what is \
                 in it is not served"
            );
        }
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(version, name, data_dir, process = std::process::id(), "starting");
        let routes = plan.routes.iter().map(|route| Told {
            name: route.store.name.clone(),
            place: route.store.endpoint.to_string(),
            keys: route.rule.to_string(),
        });
        let default = Told {
            name: plan.default.name.clone(),
            place: plan.default.endpoint.to_string(),
            keys: "all that no route takes".to_owned(),
        };
        Self { stores: routes.chain([default]).collect() }
    }

    /// Says what there is, once the stores are open or known to be away.
    pub(super) async fn end(&self, running: &Running, switches: &[Switch]) {
        let described = timeout(DESCRIBED_WITHIN, running.describe()).await;
        for store in &self.stores {
            let Told { name, place, keys } = store;
            let route = described.iter().flatten().find(|route| route.name == *name);
            let state = match route {
                None => "not known yet".to_owned(),
                Some(route) => match (route.trouble.as_str(), &route.node) {
                    ("", Some(_)) => "attached, a node".to_owned(),
                    ("", None) => "open".to_owned(),
                    (trouble, _) => format!("away: {trouble}"),
                },
            };
            tracing::info!(store = name, place, keys, state, "a store");
        }
        let membership = running.node().membership();
        let held = membership.lanes().held;
        match held.as_ref().map(|held| held.giver.as_ref()) {
            None => tracing::info!(id = %membership.me(), "in no tree"),
            Some(None) => tracing::info!(id = %membership.me(), "the root of a tree"),
            Some(Some(parent)) => {
                tracing::info!(id = %membership.me(), %parent, "in a tree, below its parent");
            }
        }
        let off: Vec<&str> =
            switches.iter().filter(|(is_on, _)| !is_on).map(|(_, what)| *what).collect();
        tracing::info!(off = off.join(", "), "not used");
    }
}

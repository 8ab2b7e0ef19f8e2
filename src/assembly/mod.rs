//! From a topology to a running node.
//!
//! ```text
//!   Topology ──> Plan ──> stores opened ──> router ──> Node ──> Running
//!   (a file)    (data)    (or waited for)                       tasks that end with it, and are missed
//! ```
//!
//! [`Plan`] is data, [`Opens`] says how a store of it is opened, and [`start`] puts the parts together: the
//! program and the simulated network use the same. Only the default store is needed; what else can't be
//! opened is refused by its route's name, and tried again. A task of the node's own that ends is noticed, since none of
//! them may; what stores and feeds spawn for themselves is not among these.

mod compaction;
mod endpoint;
mod measure;
mod plan;
mod repair;
mod witness;

use std::{collections::HashMap, error::Error, fmt, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::{join_all, pending};
use tokio::{
    task::{Id, JoinSet},
    time::{sleep, timeout},
};

pub use self::{
    compaction::AutoCompaction,
    endpoint::Endpoints,
    plan::{DEFAULT_FILE, Plan, PlanError, RoutePlan, StorePlan},
    repair::{ClockReset, ResetError, reset_clock},
};
use self::{measure::Measured, witness::Witnesses};
use crate::{
    clock::{Clock, Entropy, Lane, REVISION_MAX, SharedClock},
    model::{Revision, StoreError},
    node::{self, Node},
    route::{Route, Router},
    store::{
        Described, RecordStore, Store,
        attach::AttachState,
        metered::Metered,
        records::Records,
        slot::{self, Opened, Opener, Refusal, SlotRecord},
    },
    tree::{membership::Membership, parent::TreeOptions},
};

/// How long to wait before keys of dead leases are looked for again, after a store that failed.
const LEASES_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// How far a store has come is kept at most this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How long the node's end waits for that.
const KEEP_TIME_MAX: Duration = Duration::from_secs(1);

/// Far above all that a node can have given out since a copy was taken that is restored now.
const RESTORED_AHEAD: Revision = 1 << 30;

/// What an operator sets of a node as a whole.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it is called.
    pub name: String,
    /// Its place in a tree.
    pub tree: TreeOptions,
    /// What etcd's verbs need.
    pub node: node::Options,
    /// How long merged watches wait for a store that is away.
    pub grace: Duration,
    /// What a store takes longer for is logged.
    pub slow_after: Duration,
    /// The routes that may hold another store than before.
    pub adopt: Vec<String>,
    /// Where its random numbers come from.
    pub entropy: Entropy,
}

/// What a store of a route needs of the node that opens it.
#[derive(Clone, Debug)]
pub struct Context {
    /// The node's clock.
    pub clock: SharedClock,
    /// The node's place in its tree, for a child.
    pub membership: Arc<Membership>,
    /// Whether the store is there, where it may have a life of its own.
    pub attach_state: Option<Arc<AttachState>>,
}

/// How stores are opened.
#[async_trait]
pub trait Opens: fmt::Debug + Send + Sync + 'static {
    /// Opens the default store.
    ///
    /// # Errors
    /// Why the node can't start.
    async fn open_default(
        &self,
        plan: &StorePlan,
        clock: &SharedClock,
    ) -> Result<Arc<dyn RecordStore>, Refusal>;

    /// What opens the store of a route.
    fn opener(&self, plan: &RoutePlan, context: Context) -> Opener;
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The default store can't be opened.
    #[error("store `{name}`")]
    Default {
        /// Its name.
        name: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// What the default store keeps can't be read, or can't be written.
    #[error("the default store")]
    Records(#[from] StoreError),
}

/// A node that runs, until it is closed or dropped.
#[derive(Debug)]
pub struct Running {
    node: Arc<Node>,
    progress: Arc<Progress>,
    /// What only looks: the node goes on without it.
    measuring: JoinSet<()>,
    tasks: Tasks,
}

/// Where it is kept how far each store has come.
#[derive(Debug)]
struct Progress {
    slots: Vec<Slot>,
    witnesses: Witnesses,
}

/// Tasks that run as long as the node does.
#[derive(Debug, Default)]
struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

/// A route's place for a store.
#[derive(Debug)]
struct Slot {
    opened: Opened,
    record: Arc<SlotRecord>,
}

/// Starts a node.
///
/// # Errors
/// Where the default store can't be opened, read or written.
pub async fn start(
    plan: Plan,
    opens: &dyn Opens,
    settings: Settings,
) -> Result<Running, StartError> {
    let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
    let name = plan.default.name.clone();
    let default = opens.open_default(&plan.default, &clock).await;
    let default =
        default.map_err(|refusal| StartError::Default { name, source: refusal.reason })?;
    let head = default.head();
    let mut went_back = leap_where_back(&*default, head.witnessed, &clock)?;
    let records = Records::open(default.clone()).await?;
    let Settings { name, tree, node: options, grace, adopt, entropy, slow_after } = settings;
    let membership = Membership::load(records, clock, entropy, &name, tree).await?;
    // At once, so that silent ones are waited for together.
    let opening = plan.routes.iter().map(|route| open_slot(route, opens, &membership, &adopt));
    let slots = join_all(opening).await.into_iter().collect::<Result<Vec<Slot>, StoreError>>()?;
    let held = slots.iter().map(|slot| slot.opened.slot.clone());
    let witnesses = Witnesses::new(default.clone(), held);
    let mut held = witnesses.newest().await;
    if default.head().is_suspect && held == 0 {
        // Nobody knows how far it had come.
        held = default.head().newest + 1;
    }
    went_back |= leap_where_back(&*default, held, membership.clock())?;
    let unknown = slots.iter().filter(|slot| slot.opened.is_late);
    let unknown: Vec<Arc<str>> = unknown.map(|slot| slot.opened.slot.name().clone()).collect();
    let compacting = plan
        .routes
        .iter()
        .zip(&slots)
        .filter_map(|(route, slot)| Some((slot.opened.slot.clone(), route.store.compaction?)));
    let compacting = compacting.map(|(slot, how)| (slot as Arc<dyn Store>, how));
    let itself = plan.default.compaction.map(|how| (default.clone() as Arc<dyn Store>, how));
    let compacting: Vec<_> = compacting.chain(itself).collect();
    let mut measured = Vec::new();
    let mut metered = |store: Arc<dyn Store>, plan: &StorePlan, rule: Option<String>| {
        let metered = Metered::new(store.clone(), measure::about(plan, rule), slow_after);
        measured.push(Measured { store, meter: metered.meter().clone() });
        metered
    };
    let routes = plan.routes.into_iter().zip(&slots).map(|(route, slot)| Route {
        has_other_writers: route.store.may_be_a_node(),
        store: metered(slot.opened.slot.clone(), &route.store, Some(route.rule.to_string())),
        rule: route.rule,
    });
    let routes = routes.collect();
    let router = Router::new(routes, metered(default.clone(), &plan.default, None));
    let node = Node::start(router.clone(), membership, options, &unknown).await?;
    let mut tasks = Tasks::default();
    if went_back {
        slot::break_off(&*default, None, node.membership().clock()).await?;
    }
    tasks.spawn("expire leases", node.clone().expire_leases());
    tasks.spawn("reserve revisions", node.clone().reserve_revisions());
    for slot in &slots {
        for state in slot.opened.slot.attach_states() {
            let store = slot.opened.slot.clone();
            tasks.spawn("supervise a store", state.clone().supervise(store, grace));
        }
    }
    for (store, how) in compacting {
        let (node, entropy) = (node.clone(), node.membership().entropy().clone());
        tasks.spawn("compact a store", compaction::compact_by_itself(store, node, how, entropy));
    }
    let held = slots.iter().map(|slot| slot.opened.slot.clone()).collect();
    tasks.spawn("end dead leases", end_dead_leases(default, held, node.clone()));
    let progress = Arc::new(Progress { slots, witnesses });
    tasks.spawn("keep how far stores are", keep_progress(progress.clone(), node.clone()));
    let measured = Arc::new(measured);
    let mut measuring = JoinSet::new();
    measuring.spawn(measure::sample(node.clone()));
    for at in 0..measured.len() {
        measuring.spawn(measure::count_keys(measured.clone(), at, node.clone()));
    }
    measuring.spawn(measure::survey(measured, node.clone()));
    Ok(Running { node, progress, measuring, tasks })
}

/// Opens the store of a route; where it can't be opened, later.
async fn open_slot(
    route: &RoutePlan,
    opens: &dyn Opens,
    membership: &Arc<Membership>,
    adopt: &[String],
) -> Result<Slot, StoreError> {
    let (plan, clock) = (&route.store, membership.clock().clone());
    let fresh = membership.entropy().id();
    let record = SlotRecord::open(membership.records(), &plan.name, fresh).await?;
    let record = Arc::new(record);
    let attach_state = plan
        .may_be_a_node()
        .then(|| AttachState::restored(&plan.name, record.clone(), clock.clone()));
    let context = Context {
        clock: clock.clone(),
        membership: membership.clone(),
        attach_state: attach_state.clone(),
    };
    let (opener, adopts) = (opens.opener(route, context), adopt.contains(&plan.name));
    let kept = record.clone();
    let opened = slot::open(&plan.name, &clock, attach_state, kept, adopts, opener).await?;
    Ok(Slot { opened, record })
}

/// Goes on far above all that was ever shown where the default store had come as far as `held`, and holds less
/// now. Says whether it does.
fn leap_where_back(
    default: &dyn RecordStore,
    held: Revision,
    clock: &SharedClock,
) -> Result<bool, StoreError> {
    let (store, newest) = (default.name(), default.head().newest);
    if held <= newest {
        return Ok(false);
    }
    tracing::error!(
        %store, held, newest,
        "the default store went back, or may have: what it did between these revisions is lost, with leases and \
         lanes of that time; clients list afresh"
    );
    // What was promised to a tree beside that went with it.
    let leapt = clock.observe(held + RESTORED_AHEAD);
    leapt.map_err(|full| StoreError::Unavailable {
        store: store.clone(),
        reason: full.to_string().into(),
    })?;
    Ok(true)
}

/// Keeps how far each store has come, so that one that went back while the node was down is noticed.
async fn keep_progress(progress: Arc<Progress>, node: Arc<Node>) {
    let clock = node.membership().clock().clone();
    let mut seen = 0;
    loop {
        seen = clock.shown_above(seen).await;
        progress.keep().await;
        sleep(PROGRESS_EVERY).await;
    }
}

/// Deletes keys whose leases do not exist, in each store whenever it is there again. For ever.
async fn end_dead_leases(
    default: Arc<dyn RecordStore>,
    slots: Vec<Arc<slot::Slot>>,
    node: Arc<Node>,
) {
    let in_slots = slots.iter().map(|slot| {
        let node = &node;
        async move {
            loop {
                slot.filled().await;
                end_until_done(node, &**slot).await;
                match slot.attach_states().first() {
                    Some(state) => {
                        state.away().await;
                        state.reachable().await;
                    }
                    // Another node may have written it, once it is back.
                    None => slot.left().await,
                }
            }
        }
    });
    futures::join!(end_until_done(&node, &*default), join_all(in_slots));
    pending().await
}

async fn end_until_done(node: &Arc<Node>, store: &dyn Store) {
    while let Err(error) = node.end_dead_leases(store).await {
        let name = store.name();
        tracing::debug!(store = %name, %error, "keys of dead leases were not looked for");
        sleep(LEASES_AGAIN_AFTER).await;
    }
}

// === impl Tasks ===

impl Tasks {
    /// Spawns what never ends by itself.
    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(work).id();
        self.names.insert(id, name);
    }

    /// The name of a task that has ended and should not have.
    async fn ended(&mut self) -> &'static str {
        let id = match self.running.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => return "all tasks",
        };
        self.names.remove(&id).unwrap_or("a task")
    }
}

// === impl Progress ===

impl Progress {
    async fn keep(&self) {
        let kept = self.slots.iter().map(|slot| async {
            let head = slot.opened.slot.head();
            if head.newest <= slot.record.get().newest {
                return;
            }
            let kept = slot.record.update(|record| record.newest = record.newest.max(head.newest));
            if let Err(error) = kept.await {
                let store = slot.opened.slot.name();
                tracing::debug!(%store, %error, "how far a store is was not kept");
            }
        });
        futures::join!(join_all(kept), self.witnesses.tell());
    }
}

// === impl Running ===

impl Running {
    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Each of the node's stores as it is, children with what is below them.
    pub async fn describe(&self) -> Vec<Described> {
        self.node.root().describe().await
    }

    /// Waits until a task has ended that should run as long as the node does. Its name, for people.
    pub async fn broken(&mut self) -> &'static str {
        self.tasks.ended().await
    }

    /// Ends all tasks, keeps how far stores have come and where the clock stands, and gives up every store, so
    /// that another process may have them at once. Whoever serves the node must have stopped.
    pub async fn close(mut self) {
        self.measuring.shutdown().await;
        self.tasks.running.shutdown().await;
        // What came in the last second is known with that, too.
        if timeout(KEEP_TIME_MAX, self.progress.keep()).await.is_err() {
            tracing::warn!("how far stores are was not kept of the last second");
        }
        self.node.close().await;
    }
}

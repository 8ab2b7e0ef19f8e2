//! A node's place in its tree, as it stands: kept in its default store, and never forgotten.
//!
//! [`Lanes`] says which numbers are whose, [`parent`](super::parent) whom the node answers. This makes both
//! durable before they are true, one change at a time.

use std::sync::{
    Arc, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::{Mutex, watch};

use super::{
    Identity,
    lanes::{HeldLanes, LaneAssignment, Lanes, LanesError, printed},
    parent::{Caller, NotParent, OpenLog, ParentGuard, TreeOptions},
};
use crate::{
    clock::{Entropy, LaneBlock, SharedClock},
    model::{Revision, StoreError, error::Result},
    store::records::{Changes, Record as _, Records},
    wire::Member,
};

/// A node's place in its tree.
#[derive(Debug)]
pub struct Membership {
    identity: Identity,
    me: Member,
    clock: SharedClock,
    records: Records,
    entropy: Entropy,
    options: TreeOptions,
    /// Another for each process.
    process: u64,
    parent: ParentGuard,
    writing: Mutex<()>,
    lanes: watch::Sender<Lanes>,
    /// How many lanes more the node could use than it has left.
    wanted: watch::Sender<u16>,
    attached: Arc<std::sync::Mutex<Vec<Attached>>>,
    /// How many leases this process has ended at its children: one count for all, since two routes may lead
    /// to one child.
    leases_ended: AtomicU64,
    /// Whether a parent has joined in the life of this process.
    has_joined: AtomicBool,
}

/// A child that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    route: Arc<str>,
    child: Member,
    process: u64,
}

/// That a child is attached, for as long as this is held.
#[derive(Debug)]
pub struct AttachedChild {
    attached: Arc<std::sync::Mutex<Vec<Attached>>>,
    me: Attached,
}

/// Why a node does not join its lanes to a parent's.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It may not.
    #[error(transparent)]
    NotParent(#[from] NotParent),
    /// The lanes don't do.
    #[error(transparent)]
    Lanes(#[from] LanesError),
    /// The clock does not go so far, or the default store did not keep it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl Membership ===

impl Membership {
    /// What `records` hold of the node called `name`. Its clock goes on in its lane.
    ///
    /// # Errors
    /// `Damaged` where a record can't be read, and those of the default store.
    pub async fn load(
        records: Records,
        clock: SharedClock,
        entropy: Entropy,
        name: &str,
        options: TreeOptions,
    ) -> Result<Arc<Self>> {
        let identity = Identity::load(&records, &entropy).await?;
        let me = Member { id: identity.cluster, name: name.to_owned() };
        let lanes = match records.get::<crate::proto::records::Lanes>().await? {
            None => Lanes::default(),
            Some(record) => Lanes::of_record(&record).ok_or_else(|| StoreError::Damaged {
                store: records.store().name().clone(),
                record: crate::proto::records::Lanes::KIND.into(),
                reason: "it names lanes that there are not".into(),
            })?,
        };
        if let Some(lane) = lanes.own() {
            clock.set_lane(lane);
        }
        let (writing, lanes) = (Mutex::default(), watch::Sender::new(lanes));
        let (process, attached) = (entropy.id(), Arc::default());
        let (parent, wanted) = (ParentGuard::default(), watch::Sender::new(0));
        Ok(Arc::new(Self {
            identity,
            me,
            clock,
            records,
            entropy,
            options,
            process,
            parent,
            writing,
            lanes,
            wanted,
            attached,
            leases_ended: AtomicU64::new(0),
            has_joined: AtomicBool::new(false),
        }))
    }

    /// How its answers name it.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Who it is.
    pub fn me(&self) -> &Member {
        &self.me
    }

    /// The clock of the node.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// What must not be forgotten.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Where the node's random numbers come from.
    pub fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// What the operator says of its place.
    pub fn options(&self) -> &TreeOptions {
        &self.options
    }

    /// A number of this process, unlike that of one with a copy of its default store.
    pub fn process(&self) -> u64 {
        self.process
    }

    /// The id of the node that assigned it its lanes; `None` at a root, and in no tree.
    pub fn parent(&self) -> Option<u64> {
        self.lanes.borrow().giver()
    }

    /// Whether a request is the parent's.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check_parent(&self, caller: &Caller) -> Result<(), NotParent> {
        self.parent.check(&self.me, &self.lanes.borrow(), caller)
    }

    /// Whether `caller` may become, or be again, the parent.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(&self, caller: &Caller) -> Result<(), NotParent> {
        let lanes = self.lanes();
        let is_first = !self.has_joined.load(Ordering::Acquire);
        self.options.admit(&self.me, &lanes, caller, is_first)?;
        match &caller.member {
            Some(member) if lanes.giver() == Some(member.id) => {
                self.parent.check_process(&self.me, member, caller.process)
            }
            _ => Ok(()),
        }
    }

    /// Notes that the parent's process follows the log; see [`ParentGuard::open_log`].
    ///
    /// # Errors
    /// `Copied` where another process of its identity does.
    pub fn open_log(&self, caller: &Caller) -> Result<OpenLog, NotParent> {
        let member = caller.member.as_ref();
        let member = member.ok_or_else(|| NotParent::Stranger { child: self.me.clone() })?;
        self.parent.open_log(&self.me, member, caller.process)
    }

    /// Counts the challenges to who has a log open; see [`ParentGuard`].
    pub fn challenges(&self) -> watch::Receiver<u64> {
        self.parent.challenges()
    }

    /// Notes that a child is attached at a route.
    ///
    /// # Errors
    /// Where a copy of it is attached at another one.
    pub fn attach(
        &self,
        route: &Arc<str>,
        child: &Member,
        process: u64,
    ) -> Result<AttachedChild, LanesError> {
        let me = Attached { route: route.clone(), child: child.clone(), process };
        let mut attached = lock(&self.attached);
        let is_copy = |it: &&Attached| it.child.id == child.id && it.process != process;
        if let Some(other) = attached.iter().find(is_copy) {
            let (child, route) = (child.clone(), other.route.clone());
            return Err(LanesError::Copied { child, route });
        }
        attached.push(me.clone());
        Ok(AttachedChild { attached: self.attached.clone(), me })
    }

    /// Whether a child is attached, or being attached.
    pub fn has_child(&self, id: u64) -> bool {
        lock(&self.attached).iter().any(|it| it.child.id == id)
    }

    /// Its lanes now.
    pub fn lanes(&self) -> Lanes {
        self.lanes.borrow().clone()
    }

    /// Its lanes as they change.
    pub fn watch_lanes(&self) -> watch::Receiver<Lanes> {
        self.lanes.subscribe()
    }

    /// How many lanes more it could use than it has left; 0 where it has enough.
    pub fn lanes_wanted(&self) -> u16 {
        *self.wanted.borrow()
    }

    /// The same, as it changes.
    pub fn watch_wanted(&self) -> watch::Receiver<u16> {
        self.wanted.subscribe()
    }

    /// The lanes of a child that says what it holds and needs; see [`Lanes::assign`]. Durable when it returns.
    ///
    /// # Errors
    /// See [`LanesError`].
    pub async fn assign(
        &self,
        child: &Member,
        holds: Option<&HeldLanes>,
        requested: Option<u16>,
        needed: u16,
    ) -> Result<LaneAssignment, LanesError> {
        let _writing = self.writing.lock().await;
        let mut lanes = self.lanes();
        let changed = lanes.assign(&self.me, child, holds, requested, needed, self.credential());
        if let Err(LanesError::UsedUp { wanted, .. }) = &changed {
            self.wanted.send_replace(*wanted);
        }
        if changed? {
            self.keep(lanes).await?;
        }
        let assigned = self.lanes.borrow().of_child(child).cloned();
        Ok(assigned.expect("it was assigned some, and nobody else writes"))
    }

    /// Gives a child `more` lanes than it has. Durable when it returns.
    ///
    /// # Errors
    /// See [`LanesError`].
    pub async fn grow(&self, child: &Member, more: u16) -> Result<(), LanesError> {
        let _writing = self.writing.lock().await;
        let mut lanes = self.lanes();
        let grown = lanes.grow(&self.me, child, more);
        if let Err(LanesError::UsedUp { wanted, .. }) = &grown {
            self.wanted.send_replace(*wanted);
        }
        grown?;
        self.keep(lanes).await?;
        Ok(())
    }

    /// Takes the lanes and the credential that a parent brings, which `caller` must be let to. Durable
    /// when it returns; from then on numbers are allocated there, above `revision`, which the parent has
    /// reached.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(
        &self,
        caller: &Caller,
        blocks: Vec<LaneBlock>,
        credential: Bytes,
        revision: Revision,
    ) -> Result<(), JoinError> {
        let _writing = self.writing.lock().await;
        self.admit(caller)?;
        let giver = caller.member.clone();
        let mut lanes = self.lanes();
        let (parent, given) = (giver.clone(), printed(&blocks));
        let is_changed = lanes.accept(&self.me, HeldLanes { blocks, giver, credential })?;
        // Not before all else is admitted: who is refused moves nothing.
        self.clock.advance_to(revision).await.map_err(|full| StoreError::Unavailable {
            store: self.records.store().name().clone(),
            reason: full.to_string().into(),
        })?;
        if is_changed {
            self.keep(lanes).await?;
        }
        let is_first = !self.has_joined.swap(true, Ordering::AcqRel);
        // Not each time that the connection was lost.
        if is_changed || is_first {
            let parent = parent.map_or_else(String::new, |parent| parent.to_string());
            tracing::info!(parent, lanes = given, "the parent has joined");
        }
        Ok(())
    }

    /// Counts the leases that this process has ended at its children.
    pub fn leases_ended(&self) -> &AtomicU64 {
        &self.leases_ended
    }

    fn credential(&self) -> Bytes {
        [self.entropy.bits().to_be_bytes(), self.entropy.bits().to_be_bytes()].concat().into()
    }

    async fn keep(&self, lanes: Lanes) -> Result<()> {
        self.records.write(Changes::default().put(&lanes.to_record())).await?;
        if let Some(lane) = lanes.own() {
            self.clock.set_lane(lane);
        }
        let wanted = *self.wanted.borrow();
        if lanes.left() >= wanted {
            self.wanted.send_replace(0);
        }
        self.lanes.send_replace(lanes);
        Ok(())
    }
}

// === impl AttachedChild ===

impl Drop for AttachedChild {
    fn drop(&mut self) {
        let mut attached = lock(&self.attached);
        if let Some(at) = attached.iter().position(|it| *it == self.me) {
            attached.swap_remove(at);
        }
    }
}

fn lock(attached: &std::sync::Mutex<Vec<Attached>>) -> MutexGuard<'_, Vec<Attached>> {
    // Nothing panics while it changes what is behind the lock.
    attached.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, Lane, REVISION_MAX},
        store::memory::Memory,
        tree::parent::ParentSpec,
    };

    async fn node(name: &str) -> (Arc<Membership>, Arc<Memory>) {
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let store = Memory::new("main", clock.clone());
        (recalled(name, &store, clock).await, store)
    }

    async fn recalled(name: &str, store: &Arc<Memory>, clock: SharedClock) -> Arc<Membership> {
        let options = TreeOptions { is_local: true, ..TreeOptions::default() };
        started(name, store, clock, options).await
    }

    async fn started(
        name: &str,
        store: &Arc<Memory>,
        clock: SharedClock,
        options: TreeOptions,
    ) -> Arc<Membership> {
        let records = Records::open(store.clone()).await.expect("memory answers");
        let loaded = Membership::load(records, clock, Entropy::system(), name, options).await;
        loaded.expect("memory answers")
    }

    async fn give(parent: &Membership, child: &Membership) -> Result<LaneBlock, LanesError> {
        give_so_many(parent, child, None).await
    }

    async fn give_so_many(
        parent: &Membership,
        child: &Membership,
        count: Option<u16>,
    ) -> Result<LaneBlock, LanesError> {
        let (held, needed) = (child.lanes().held, child.lanes().needed());
        let assigned = parent.assign(child.me(), held.as_ref(), count, needed).await?;
        let caller = Caller {
            member: Some(parent.me().clone()),
            process: parent.process(),
            credential: assigned.credential.clone(),
            secret: Bytes::new(),
        };
        let joined = child.join(&caller, assigned.blocks.clone(), assigned.credential, 0).await;
        match joined {
            Ok(()) => Ok(assigned.blocks[0]),
            Err(JoinError::Lanes(error)) => Err(error),
            Err(JoinError::Store(error)) => Err(error.into()),
            Err(JoinError::NotParent(refused)) => panic!("{refused}"),
        }
    }

    fn block(first: u16, count: u16) -> LaneBlock {
        LaneBlock::new(first, count).expect("there are such lanes")
    }

    #[tokio::test]
    async fn lanes_are_handed_down_the_tree_and_kept_on_both_sides() {
        let (root, at_root) = node("root").await;
        let (region, at_region) = node("region").await;
        let (tenant, _) = node("tenant").await;
        assert_eq!(give(&root, &region).await.expect("there are lanes"), block(1, 16));
        assert_eq!(give(&region, &tenant).await.expect("there are lanes"), block(2, 1));
        assert_eq!(give(&root, &region).await.expect("it has them"), block(1, 16));
        let fresh = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let region_again = recalled("region", &at_region, fresh.clone()).await;
        assert_eq!(region_again.lanes(), region.lanes());
        assert_eq!(fresh.lane(), block(1, 16).own());
        let root_again = recalled("root", &at_root, fresh).await;
        assert_eq!(root_again.lanes(), root.lanes());
        assert_eq!(root_again.identity(), root.identity());
    }

    #[tokio::test]
    async fn a_root_that_gets_a_parent_hands_its_children_other_lanes() {
        let (root, _) = node("root").await;
        let (region, _) = node("region").await;
        let (first, _) = node("first").await;
        let (second, _) = node("second").await;
        assert_eq!(give(&region, &first).await.expect("there are lanes"), block(1, 16));
        assert_eq!(give(&region, &second).await.expect("there are lanes"), block(17, 16));
        let (other, _) = node("other").await;
        give(&root, &other).await.expect("there are lanes");
        assert_eq!(give(&root, &region).await.expect("there are lanes"), block(17, 16));
        assert_eq!(give(&region, &first).await.expect("they fit"), block(18, 1));
        assert_eq!(give(&region, &second).await.expect("they fit"), block(19, 1));
    }

    #[tokio::test]
    async fn a_root_that_gets_a_parent_hands_on_what_its_routes_say() {
        let (root, _) = node("root").await;
        let (region, at_region) = node("region").await;
        let (tenant, _) = node("tenant").await;
        assert_eq!(give_so_many(&region, &tenant, Some(4)).await.expect("it has all"), block(1, 4));
        let fresh = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let region = recalled("region", &at_region, fresh).await;
        assert_eq!(give(&root, &region).await.expect("there are lanes"), block(1, 16));
        assert_eq!(give_so_many(&region, &tenant, Some(4)).await.expect("they fit"), block(2, 4));
        let (greedy, _) = node("greedy").await;
        let (large, _) = node("large").await;
        give_so_many(&greedy, &large, Some(16)).await.expect("it has all");
        let error = give_so_many(&root, &greedy, Some(16)).await;
        let error = error.expect_err("that is more than it gets").to_string();
        assert!(error.contains("no 16 lanes left of its 16 for `large`"), "{error}");
        // What was refused is handed out anew once the route says how many, also where it takes both.
        assert_eq!(give_so_many(&root, &greedy, Some(32)).await.expect("they do"), block(17, 32));
        assert_eq!(give_so_many(&greedy, &large, Some(16)).await.expect("it fits"), block(18, 16));
    }

    #[tokio::test]
    async fn what_a_route_says_later_holds_from_the_next_parent_on() {
        let (root, _) = node("root").await;
        let (region, _) = node("region").await;
        let (tenant, _) = node("tenant").await;
        assert_eq!(give(&region, &tenant).await.expect("it has all"), block(1, 16));
        // What a child has taken it keeps.
        assert_eq!(give_so_many(&region, &tenant, Some(4)).await.expect("it has"), block(1, 16));
        assert_eq!(give(&root, &region).await.expect("there are lanes"), block(1, 16));
        assert_eq!(region.lanes().assigned[0].blocks, [block(2, 4)]);
        // It did not hear of that yet, when the route says something else.
        assert_eq!(give_so_many(&region, &tenant, Some(2)).await.expect("it fits"), block(2, 2));
    }

    #[tokio::test]
    async fn a_child_of_another_tree_is_refused_where_its_lanes_are_not_free() {
        let (root, _) = node("root").await;
        let (other, _) = node("other-root").await;
        let (mine, _) = node("mine").await;
        let (theirs, kept) = node("theirs").await;
        give(&root, &mine).await.expect("there are lanes");
        give(&other, &theirs).await.expect("there are lanes");
        let error = give(&root, &theirs).await.expect_err("both hold lane 1").to_string();
        assert!(error.contains("`mine`") && error.contains("`theirs`"), "{error}");
        assert!(error.contains("both hold lane 1"), "{error}");
        // A new parent with lanes to spare takes over a child with its lanes, where its operator says so.
        let (new, _) = node("new-root").await;
        let parent = Some(ParentSpec { name: "new-root".to_owned(), id: None });
        let options = TreeOptions { parent, ..TreeOptions::default() };
        let theirs = started("theirs", &kept, theirs.clock().clone(), options).await;
        assert_eq!(give(&new, &theirs).await.expect("they are free there"), block(1, 16));
        let (region, _) = node("region").await;
        give(&new, &region).await.expect("there are lanes");
        let error = give(&region, &mine).await.expect_err("its lanes are the root's").to_string();
        assert!(error.contains("holds lanes 1 to 16 of another tree"), "{error}");
    }

    #[tokio::test]
    async fn a_copy_of_a_child_is_refused_for_as_long_as_the_child_is_there() {
        let (root, _) = node("root").await;
        let (child, kept) = node("child").await;
        let copy = recalled("child", &kept, child.clock().clone()).await;
        let route = |name: &str| Arc::<str>::from(name);
        let first = root.attach(&route("one"), child.me(), child.process()).expect("it is alone");
        root.attach(&route("more"), child.me(), child.process()).expect("it is the same");
        let refused = root.attach(&route("two"), copy.me(), copy.process());
        let error = refused.expect_err("there are two now").to_string();
        assert!(error.contains("`child`") && error.contains("`one`"), "{error}");
        drop(first);
        root.attach(&route("two"), copy.me(), copy.process()).expect("the other is gone");
    }

    #[tokio::test]
    async fn what_is_used_up_is_said_with_the_remedy() {
        let (root, _) = node("root").await;
        let (region, _) = node("region").await;
        give(&root, &region).await.expect("there are lanes");
        for at in 2..17 {
            let (tenant, _) = node("tenant").await;
            assert_eq!(give(&region, &tenant).await.expect("there are lanes"), block(at, 1));
        }
        let (tenant, _) = node("one-too-many").await;
        let error = give(&region, &tenant).await.expect_err("all are handed out").to_string();
        assert!(error.contains("no 1 lanes left of its 16 for `one-too-many`"), "{error}");
    }
}

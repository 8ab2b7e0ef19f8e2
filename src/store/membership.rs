//! Who a node is in its tree, and which lanes it has: kept in its default store, and never forgotten.
//!
//! ```text
//!   root   0 ········································ 1023     allocates in lane 0
//!           └ region  1 ······· 16   17 ······· 32  ···        each in the first of its lanes,
//!                      └ tenant  2   3   4  ···                and hands on the rest
//! ```
//!
//! A node that is in no tree owns every lane and counts on by one. It joins a tree when it first has a
//! child, or when a parent first hands it lanes; from then on it allocates in its own lane only, also
//! when it has left. What was handed to a child stays that child's: a new one gets lanes that nobody had.
//! A root that gets a parent gives up the lanes it had taken by itself and hands its children others,
//! out of those that it is given; their clocks are above all that anyone has allocated there.

use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};

use super::Store;
use crate::{
    clock::{LaneBlock, OverlappingLanes, SharedClock},
    model::{StoreError, error::Result},
    wire::Member,
};

/// A node hands a child one part in so many of its own lanes, where the route does not say.
const PARTS: u16 = 64;

const IDENTITY: &str = "identity";
const LANES: &str = "lanes";

/// The numbers by which a node's answers name it. Kept in its default store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The same for as long as the default store lives; never 0.
    pub cluster: u64,
    /// Likewise.
    pub member: u64,
}

/// A node's place in its tree.
#[derive(Debug)]
pub struct Membership {
    identity: Identity,
    me: Member,
    clock: SharedClock,
    /// The default store, or one that hands on to it.
    store: Arc<dyn Store>,
    /// Another for each process.
    process: u64,
    held: Mutex<()>,
    lanes: watch::Sender<Lanes>,
    attached: Arc<std::sync::Mutex<Vec<Attached>>>,
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
pub struct Attachment {
    attached: Arc<std::sync::Mutex<Vec<Attached>>>,
    me: Attached,
}

/// The lanes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lanes {
    /// Its own, and who gave them; nobody at a root. `None` in no tree.
    pub held: Option<Held>,
    /// What it handed to children.
    pub handed: Vec<Handed>,
}

/// Lanes that a child was handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// To whom.
    pub child: Member,
    /// Which.
    pub block: LaneBlock,
    /// How many the route says; `None` where they are this node's to choose.
    pub said: Option<u16>,
}

/// Lanes that a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub block: LaneBlock,
    /// The parent that handed them out.
    pub giver: Option<Member>,
}

/// Why lanes are not handed out or taken.
#[derive(Debug, thiserror::Error)]
pub enum LanesError {
    /// None are left.
    #[error(
        "{giver} has no {wanted} lanes left of its {count} for {child}; let its parent give it more \
         (`lanes` of its route), or this route fewer"
    )]
    UsedUp {
        /// Who would hand them out.
        giver: Member,
        /// Who would get them.
        child: Member,
        /// How many.
        wanted: u16,
        /// How many the giver has in all.
        count: u16,
    },
    /// Two hold the same.
    #[error(transparent)]
    Overlapping(#[from] OverlappingLanes),
    /// They lie outside those of the parent.
    #[error(
        "{child} holds lanes {first} to {last} of another tree, which are none of those of {parent}; \
         give it an empty default store, or take it out of the other tree for good"
    )]
    Outside {
        /// Who holds them.
        child: Member,
        /// Who is to be its parent.
        parent: Member,
        /// The first lane.
        first: u16,
        /// The last.
        last: u16,
    },
    /// A parent gives a node other lanes than it has.
    #[error(
        "{child} holds lanes {first} to {last} already, given by {giver}; a node has one parent: where both \
         are in this tree, take one of the two routes out"
    )]
    Taken {
        /// The node.
        child: Member,
        /// Who gave it its lanes.
        giver: Member,
        /// The first lane.
        first: u16,
        /// The last.
        last: u16,
    },
    /// A copy of a child answers beside it.
    #[error(
        "another process answers as {child} at the route `{route}`: one has a copy of the other's data, and \
         both would count alike; give it an empty default store"
    )]
    Copied {
        /// Who both say to be.
        child: Member,
        /// Where the other is attached.
        route: Arc<str>,
    },
    /// The default store did not keep it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl Membership ===

impl Membership {
    /// What `store` remembers of the node called `name`. Its clock goes on in its lane.
    ///
    /// # Errors
    /// Where the store can't be read or written.
    pub async fn recall(
        store: Arc<dyn Store>,
        clock: SharedClock,
        name: &str,
    ) -> Result<Arc<Self>> {
        let identity = Identity::recall(&*store).await?;
        let me = Member { id: identity.cluster, name: name.to_owned() };
        let record = store.recall(LANES).await?.into_iter().find(|(name, _)| name == LANES);
        let lanes = match record {
            None => Lanes::default(),
            Some((_, bytes)) => Lanes::decode(&bytes).ok_or_else(|| StoreError::Unavailable {
                store: store.name().clone(),
                reason: "its record of lanes can't be read; it may be that of a newer version"
                    .into(),
            })?,
        };
        if let Some(held) = &lanes.held {
            clock.set_lane(held.block.own());
        }
        let (held, lanes) = (Mutex::default(), watch::Sender::new(lanes));
        let (process, attached) = (random(), Arc::default());
        Ok(Arc::new(Self { identity, me, clock, store, process, held, lanes, attached }))
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

    /// The default store, which keeps what must not be forgotten.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// A number of this process, unlike that of one with a copy of its default store.
    pub fn process(&self) -> u64 {
        self.process
    }

    /// The id of the node that handed it its lanes; `None` at a root, and in no tree.
    pub fn parent(&self) -> Option<u64> {
        self.lanes.borrow().giver()
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
    ) -> Result<Attachment, LanesError> {
        let me = Attached { route: route.clone(), child: child.clone(), process };
        let mut attached = lock(&self.attached);
        let is_copy = |it: &&Attached| it.child.id == child.id && it.process != process;
        if let Some(other) = attached.iter().find(is_copy) {
            let (child, route) = (child.clone(), other.route.clone());
            return Err(LanesError::Copied { child, route });
        }
        attached.push(me.clone());
        Ok(Attachment { attached: self.attached.clone(), me })
    }

    /// Its lanes now.
    pub fn lanes(&self) -> Lanes {
        self.lanes.borrow().clone()
    }

    /// Its lanes as they change.
    pub fn watch_lanes(&self) -> watch::Receiver<Lanes> {
        self.lanes.subscribe()
    }

    /// The lanes of a child that says what it holds: those that it was handed before, or holds of a
    /// parent before this, or new ones, `count` of them. What it was handed and has not taken it gets anew
    /// where the route says another `count` now. Durable when it returns.
    ///
    /// # Errors
    /// See [`LanesError`].
    pub async fn hand_out(
        &self,
        child: &Member,
        holds: Option<&Held>,
        count: Option<u16>,
    ) -> Result<LaneBlock, LanesError> {
        let _held = self.held.lock().await;
        let mut lanes = self.lanes();
        let block = match &lanes.held {
            Some(held) => held.block,
            None => {
                lanes.held = Some(Held { block: LaneBlock::ALL, giver: None });
                LaneBlock::ALL
            }
        };
        if let Some(at) = lanes.handed.iter().position(|it| it.child.id == child.id) {
            let handed = &mut lanes.handed[at];
            let block = handed.block;
            if handed.said == count {
                return Ok(block);
            }
            handed.said = count;
            let is_mine = |giver: &Member| giver.id == self.me.id;
            let is_taken =
                |held: &Held| held.block == block && held.giver.as_ref().is_some_and(is_mine);
            if holds.is_some_and(is_taken) {
                self.keep(lanes).await?;
                return Ok(block);
            }
            lanes.handed.remove(at);
        }
        let handed: Vec<LaneBlock> = lanes.handed.iter().map(|it| it.block).collect();
        let is_anothers = |giver: &Member| giver.id != self.me.id;
        let given = match holds.filter(|held| held.giver.as_ref().is_some_and(is_anothers)) {
            Some(held) => {
                self.check_adoption(child, held.block, block, &lanes)?;
                held.block
            }
            None => {
                let wanted = count.unwrap_or((block.count / PARTS).max(1));
                block.hand_out(&handed, wanted).ok_or_else(|| LanesError::UsedUp {
                    giver: self.me.clone(),
                    child: child.clone(),
                    wanted,
                    count: block.count,
                })?
            }
        };
        lanes.handed.push(Handed { child: child.clone(), block: given, said: count });
        self.keep(lanes).await?;
        Ok(given)
    }

    /// Whether a child may come with lanes that another parent gave it.
    fn check_adoption(
        &self,
        child: &Member,
        holds: LaneBlock,
        own: LaneBlock,
        lanes: &Lanes,
    ) -> Result<(), LanesError> {
        if !own.covers(holds) {
            return Err(LanesError::Outside {
                child: child.clone(),
                parent: self.me.clone(),
                first: holds.first,
                last: holds.first + holds.count - 1,
            });
        }
        let mut all: Vec<_> =
            lanes.handed.iter().map(|it| (it.child.to_string(), it.block)).collect();
        all.push((self.me.to_string(), LaneBlock { first: own.first, count: 1 }));
        all.push((child.to_string(), holds));
        Ok(LaneBlock::check_disjoint(&all)?)
    }

    /// Takes the lanes that a parent hands out. Durable when it returns; from then on numbers are
    /// allocated there.
    ///
    /// # Errors
    /// See [`LanesError`].
    pub async fn accept(&self, giver: Member, block: LaneBlock) -> Result<(), LanesError> {
        let _held = self.held.lock().await;
        let mut lanes = self.lanes();
        match &lanes.held {
            Some(held) if held.block == block && held.giver.as_ref() == Some(&giver) => {
                return Ok(());
            }
            // The same lanes of another parent: the old one was replaced.
            Some(held) if held.block == block => {}
            Some(Held { block: old, giver: Some(old_giver) }) if old_giver.id != giver.id => {
                return Err(LanesError::Taken {
                    child: self.me.clone(),
                    giver: old_giver.clone(),
                    first: old.first,
                    last: old.first + old.count - 1,
                });
            }
            Some(_) => {
                // It was a root, or was given others before: its children get theirs out of these.
                let mut taken = Vec::new();
                for handed in &mut lanes.handed {
                    let share = handed.block.count.min((block.count / PARTS).max(1));
                    let wanted = handed.said.unwrap_or(share);
                    let new = block.hand_out(&taken, wanted).ok_or_else(|| LanesError::UsedUp {
                        giver: self.me.clone(),
                        child: handed.child.clone(),
                        wanted,
                        count: block.count,
                    })?;
                    taken.push(new);
                    handed.block = new;
                }
            }
            None => {}
        }
        lanes.held = Some(Held { block, giver: Some(giver) });
        self.keep(lanes).await?;
        Ok(())
    }

    async fn keep(&self, lanes: Lanes) -> Result<()> {
        self.store.remember(LANES, Some(lanes.encode())).await?;
        if let Some(held) = &lanes.held {
            self.clock.set_lane(held.block.own());
        }
        self.lanes.send_replace(lanes);
        Ok(())
    }
}

// === impl Attachment ===

impl Drop for Attachment {
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

// === impl Lanes ===

impl Lanes {
    /// The id of who gave them.
    pub fn giver(&self) -> Option<u64> {
        self.held.as_ref().and_then(|held| held.giver.as_ref()).map(|giver| giver.id)
    }

    /// Those that a child was handed.
    pub fn of_child(&self, child: &Member) -> Option<LaneBlock> {
        self.handed.iter().find(|it| it.child.id == child.id).map(|it| it.block)
    }

    fn encode(&self) -> Bytes {
        let block = |block: LaneBlock| json!({ "first": block.first, "count": block.count });
        // Ids as text: JSON's numbers are doubles to some.
        let member = |it: &Member| json!({ "id": format!("{:x}", it.id), "name": it.name });
        let held = self.held.as_ref().map(
            |held| json!({ "lanes": block(held.block), "giver": held.giver.as_ref().map(member) }),
        );
        let handed = self.handed.iter().map(
            |it| json!({ "child": member(&it.child), "lanes": block(it.block), "said": it.said }),
        );
        let handed: Vec<Value> = handed.collect();
        json!({ "held": held, "handed": handed }).to_string().into()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let record: Value = serde_json::from_slice(bytes).ok()?;
        let block = |value: &Value| {
            let number = |name: &str| u16::try_from(value[name].as_u64()?).ok();
            LaneBlock::new(number("first")?, number("count")?)
        };
        let member = |value: &Value| {
            let id = u64::from_str_radix(value["id"].as_str()?, 16).ok()?;
            Some(Member { id, name: value["name"].as_str()?.to_owned() })
        };
        let held = match &record["held"] {
            Value::Null => None,
            held => Some(Held { block: block(&held["lanes"])?, giver: member(&held["giver"]) }),
        };
        let handed = record["handed"].as_array()?.iter();
        let handed = handed.map(|it| {
            let (child, block) = (member(&it["child"])?, block(&it["lanes"])?);
            let said = it["said"].as_u64().and_then(|said| u16::try_from(said).ok());
            Some(Handed { child, block, said })
        });
        Some(Self { held, handed: handed.collect::<Option<_>>()? })
    }
}

// === impl Identity ===

impl Identity {
    async fn recall(store: &dyn Store) -> Result<Self> {
        if let Some((_, bytes)) = store.recall(IDENTITY).await?.pop()
            && let Some(identity) = Self::decode(&bytes)
        {
            return Ok(identity);
        }
        let identity = Self { cluster: random(), member: random() };
        let bytes = [identity.cluster.to_be_bytes(), identity.member.to_be_bytes()].concat();
        store.remember(IDENTITY, Some(Bytes::from(bytes))).await?;
        Ok(identity)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (cluster, member) = bytes.split_at_checked(8)?;
        Some(Self {
            cluster: u64::from_be_bytes(cluster.try_into().ok()?),
            member: u64::from_be_bytes(member.try_into().ok()?),
        })
    }
}

/// A random number that is positive as an `i64` too. The standard library's hasher is seeded by the
/// system, which is all that ids need.
pub fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (hash >> 1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, Lane, REVISION_MAX},
        store::memory::Memory,
    };

    async fn node(name: &str) -> (Arc<Membership>, Arc<Memory>) {
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let store = Memory::new("main", clock.clone());
        (recalled(name, &store, clock).await, store)
    }

    async fn recalled(name: &str, store: &Arc<Memory>, clock: SharedClock) -> Arc<Membership> {
        Membership::recall(store.clone(), clock, name).await.expect("memory answers")
    }

    async fn give(parent: &Membership, child: &Membership) -> Result<LaneBlock, LanesError> {
        give_so_many(parent, child, None).await
    }

    async fn give_so_many(
        parent: &Membership,
        child: &Membership,
        count: Option<u16>,
    ) -> Result<LaneBlock, LanesError> {
        let held = child.lanes().held;
        let block = parent.hand_out(child.me(), held.as_ref(), count).await?;
        child.accept(parent.me().clone(), block).await?;
        Ok(block)
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
        let error = give(&root, &greedy).await.expect_err("that is more than it gets").to_string();
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
        assert_eq!(region.lanes().handed[0].block, block(2, 4));
        // It did not hear of that yet, when the route says something else.
        assert_eq!(give_so_many(&region, &tenant, Some(2)).await.expect("it fits"), block(2, 2));
    }

    #[tokio::test]
    async fn a_child_of_another_tree_is_refused_where_its_lanes_are_not_free() {
        let (root, _) = node("root").await;
        let (other, _) = node("other-root").await;
        let (mine, _) = node("mine").await;
        let (theirs, _) = node("theirs").await;
        give(&root, &mine).await.expect("there are lanes");
        give(&other, &theirs).await.expect("there are lanes");
        let error = give(&root, &theirs).await.expect_err("both hold lane 1").to_string();
        assert!(error.contains("`mine`") && error.contains("`theirs`"), "{error}");
        assert!(error.contains("both hold lane 1"), "{error}");
        // A new parent with lanes to spare takes over a child with its lanes.
        let (new, _) = node("new-root").await;
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

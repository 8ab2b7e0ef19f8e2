//! Which lanes a node has, and which it has assigned to its children: pure states.
//!
//! ```text
//!   root   0 ········································ 1023     allocates in lane 0
//!           └ region  1 ······· 16   17 ······· 32  ···        each in the first of its lanes,
//!                      └ tenant  2   3   4  ···                and assigns the rest
//! ```
//!
//! A node that is in no tree owns every lane and counts on by one. It joins a tree when it first has a
//! child, or when a parent first assigns it lanes; from then on it allocates in its own lane only, also
//! when it has left. What was assigned to a child stays that child's, and may grow by further blocks: a new
//! child gets lanes that nobody had. A root that gets a parent gives up the lanes it had taken by itself
//! and assigns its children others, out of those that it is given; their clocks are above all that anyone
//! has allocated there.

use bytes::Bytes;

use crate::{
    clock::{Lane, LaneBlock, OverlappingLanes},
    model::StoreError,
    proto::records as pb,
    wire::Member,
};

/// A node assigns a child one part in so many of its own lanes, where the route does not say, and no more
/// than one part in so many of those that are left: the more children, the smaller their shares. They grow
/// when they need more.
const PARTS: u16 = 64;
const PARTS_LEFT: u16 = 60;

/// The lanes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lanes {
    /// Its own, and who gave them; nobody at a root. `None` in no tree.
    pub held: Option<HeldLanes>,
    /// What it assigned to children.
    pub assigned: Vec<LaneAssignment>,
}

/// Lanes that a node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldLanes {
    /// Which; at least one block. The node allocates in the first lane of the first.
    pub blocks: Vec<LaneBlock>,
    /// The parent that assigned them.
    pub giver: Option<Member>,
    /// What that parent shows with each request; empty where none was agreed upon.
    pub credential: Bytes,
}

/// Lanes that a child was assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneAssignment {
    /// To whom.
    pub child: Member,
    /// Which; at least one block.
    pub blocks: Vec<LaneBlock>,
    /// How many the route asks for; `None` where they are this node's to choose.
    pub requested: Option<u16>,
    /// What is shown to the child with each request; empty where none was agreed upon.
    pub credential: Bytes,
}

/// Why lanes are not assigned or taken.
#[derive(Debug, thiserror::Error)]
pub enum LanesError {
    /// None are left.
    #[error(
        "{giver} has no {wanted} lanes left of its {count} for {child}; let its parent give it more \
         (raise `lanes` of its route there, and start it anew), or this route fewer"
    )]
    UsedUp {
        /// Who would assign them.
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
        "{child} holds lanes {lanes} of another tree, which are none of those of {parent}; \
         give it an empty default store, or take it out of the other tree for good"
    )]
    Outside {
        /// Who holds them.
        child: Member,
        /// Who is to be its parent.
        parent: Member,
        /// Which.
        lanes: String,
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
        route: std::sync::Arc<str>,
    },
    /// The default store did not keep it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How many lanes there are in some blocks.
pub fn count(blocks: &[LaneBlock]) -> u16 {
    blocks.iter().map(|block| block.count).sum()
}

/// Blocks as people read them: `1 to 16, 40`.
pub fn printed(blocks: &[LaneBlock]) -> String {
    let one = |block: &LaneBlock| match block.count {
        1 => block.first.to_string(),
        count => format!("{} to {}", block.first, block.first + count - 1),
    };
    blocks.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn covers(own: &[LaneBlock], block: LaneBlock) -> bool {
    own.iter().any(|own| own.covers(block))
}

/// `wanted` lanes of `own` behind all that was assigned in each block, in as few blocks as it takes.
fn free(own: &[LaneBlock], assigned: &[LaneBlock], wanted: u16) -> Option<Vec<LaneBlock>> {
    let tails = own.iter().enumerate().filter_map(|(at, block)| {
        let inside = assigned.iter().filter(|it| block.covers(**it));
        let behind = inside.map(|it| it.first + it.count).max();
        // The first lane of all is the node's own.
        let first = behind.unwrap_or(block.first + u16::from(at == 0));
        LaneBlock::new(first, (block.first + block.count).checked_sub(first)?)
    });
    let tails: Vec<LaneBlock> = tails.collect();
    if let Some(whole) = tails.iter().find(|tail| tail.count >= wanted) {
        return LaneBlock::new(whole.first, wanted).map(|block| vec![block]);
    }
    let (mut pieces, mut left) = (Vec::new(), wanted);
    for tail in tails {
        let piece = LaneBlock::new(tail.first, tail.count.min(left))?;
        left -= piece.count;
        pieces.push(piece);
        if left == 0 {
            return Some(pieces);
        }
    }
    None
}

// === impl Lanes ===

impl Lanes {
    /// The id of who gave them.
    pub fn giver(&self) -> Option<u64> {
        self.held.as_ref().and_then(|held| held.giver.as_ref()).map(|giver| giver.id)
    }

    /// The lane in which the node allocates; `None` in no tree.
    pub fn own(&self) -> Option<Lane> {
        self.held.as_ref().and_then(|held| held.blocks.first()).map(|block| block.own())
    }

    /// What a child was assigned.
    pub fn of_child(&self, child: &Member) -> Option<&LaneAssignment> {
        self.assigned.iter().find(|it| it.child.id == child.id)
    }

    /// How many lanes the node can still assign. All but its own in no tree.
    pub fn left(&self) -> u16 {
        let all = [LaneBlock::ALL];
        let own = self.held.as_ref().map_or(&all[..], |held| &held.blocks);
        let assigned: u16 = self.assigned.iter().map(|it| count(&it.blocks)).sum();
        (count(own) - 1).saturating_sub(assigned)
    }

    /// How many lanes the node needs for itself and the children that it has, each with no more than its
    /// route asks for.
    pub fn needed(&self) -> u16 {
        let children = self.assigned.iter().map(|it| it.requested.unwrap_or(1));
        children.fold(1, u16::saturating_add)
    }

    /// Assigns lanes to a child that says what it `holds`: those that it was assigned before, or holds
    /// of a parent before this, or new ones, `requested` of them, or at least `needed`. What it was
    /// assigned and has not taken it gets anew where the route asks for another number now; what it has
    /// taken grows, and never shrinks. `fresh` is the credential of a child that is new here. Returns
    /// whether anything changed.
    ///
    /// # Errors
    /// See [`LanesError`].
    pub fn assign(
        &mut self,
        me: &Member,
        child: &Member,
        holds: Option<&HeldLanes>,
        requested: Option<u16>,
        needed: u16,
        mut fresh: Bytes,
    ) -> Result<bool, LanesError> {
        let mut is_changed = self.held.is_none();
        let held = self.held.get_or_insert_with(|| HeldLanes {
            blocks: vec![LaneBlock::ALL],
            ..HeldLanes::default()
        });
        let own = held.blocks.clone();
        let share = (count(&own) / PARTS).min(self.left() / PARTS_LEFT).max(1);
        if let Some(at) = self.assigned.iter().position(|it| it.child.id == child.id) {
            let known = &mut self.assigned[at];
            if known.credential.is_empty() && !fresh.is_empty() {
                known.credential = fresh.clone();
                is_changed = true;
            }
            let is_mine = |giver: &Member| giver.id == me.id;
            // What it holds may be less than what it was assigned meanwhile.
            let is_taken = holds.is_some_and(|held| {
                held.giver.as_ref().is_some_and(is_mine)
                    && held.blocks.iter().all(|block| covers(&known.blocks, *block))
            });
            let wanted = match is_taken {
                true => requested.unwrap_or(0),
                // It did not take them yet, since they are too few for its children.
                false => requested.unwrap_or(needed),
            };
            let more = wanted.saturating_sub(count(&known.blocks));
            if is_taken || known.requested == requested {
                self.grow(me, child, more)?;
                is_changed |= more > 0 || self.assigned[at].requested != requested;
                self.assigned[at].requested = requested;
                return Ok(is_changed);
            }
            // The child may have taken the credential all the same.
            fresh = self.assigned.remove(at).credential;
        }
        let is_anothers = |giver: &Member| giver.id != me.id;
        let blocks = match holds.filter(|held| held.giver.as_ref().is_some_and(is_anothers)) {
            Some(held) => {
                self.check_adoption(me, child, &held.blocks, &own)?;
                held.blocks.clone()
            }
            None => self.free(me, child, requested.unwrap_or(share.max(needed)))?,
        };
        let (child, credential) = (child.clone(), fresh);
        self.assigned.push(LaneAssignment { child, blocks, requested, credential });
        Ok(true)
    }

    /// Gives a child so many lanes more, in a further block.
    ///
    /// # Errors
    /// `UsedUp` where too few are left.
    pub fn grow(&mut self, me: &Member, child: &Member, more: u16) -> Result<(), LanesError> {
        if more == 0 {
            return Ok(());
        }
        let further = self.free(me, child, more)?;
        if let Some(known) = self.assigned.iter_mut().find(|it| it.child.id == child.id) {
            for block in further {
                match known.blocks.last_mut() {
                    Some(last) if last.first + last.count == block.first => {
                        last.count += block.count
                    }
                    _ => known.blocks.push(block),
                }
            }
        }
        Ok(())
    }

    fn free(&self, me: &Member, child: &Member, wanted: u16) -> Result<Vec<LaneBlock>, LanesError> {
        let own: &[LaneBlock] = self.held.as_ref().map_or(&[], |held| &held.blocks);
        let assigned: Vec<LaneBlock> =
            self.assigned.iter().flat_map(|it| it.blocks.iter().copied()).collect();
        free(own, &assigned, wanted).ok_or_else(|| LanesError::UsedUp {
            giver: me.clone(),
            child: child.clone(),
            wanted,
            count: count(own),
        })
    }

    /// Whether a child may come with lanes that another parent gave it.
    fn check_adoption(
        &self,
        me: &Member,
        child: &Member,
        holds: &[LaneBlock],
        own: &[LaneBlock],
    ) -> Result<(), LanesError> {
        if !holds.iter().all(|block| covers(own, *block)) {
            let (child, parent) = (child.clone(), me.clone());
            return Err(LanesError::Outside { child, parent, lanes: printed(holds) });
        }
        let of = |member: &Member, blocks: &[LaneBlock]| {
            let name = member.to_string();
            blocks.iter().map(|block| (name.clone(), *block)).collect::<Vec<_>>()
        };
        let mut all: Vec<_> =
            self.assigned.iter().flat_map(|it| of(&it.child, &it.blocks)).collect();
        let first = own.first().map_or(0, |block| block.first);
        all.push((me.to_string(), LaneBlock { first, count: 1 }));
        all.extend(of(child, holds));
        Ok(LaneBlock::check_disjoint(&all)?)
    }

    /// Takes the lanes that a parent assigns. Who was a root, or was given others before, gives its
    /// children theirs out of these; where they are those that it holds with some more, nothing else
    /// changes. Returns whether anything changed.
    ///
    /// # Errors
    /// `UsedUp` where they are too few for the children.
    pub fn accept(&mut self, me: &Member, new: HeldLanes) -> Result<bool, LanesError> {
        if self.held.as_ref() == Some(&new) {
            return Ok(false);
        }
        let keeps = |held: &HeldLanes| held.blocks.iter().all(|old| covers(&new.blocks, *old));
        let keeps_all = self.held.as_ref().is_none_or(|held| held.giver.is_some() && keeps(held));
        if !keeps_all {
            let share = (count(&new.blocks) / PARTS).max(1);
            let mut taken: Vec<LaneBlock> = Vec::new();
            for assigned in &mut self.assigned {
                let wanted = assigned.requested.unwrap_or(count(&assigned.blocks).min(share));
                let blocks = free(&new.blocks, &taken, wanted);
                let blocks = blocks.ok_or_else(|| LanesError::UsedUp {
                    giver: me.clone(),
                    child: assigned.child.clone(),
                    wanted,
                    count: count(&new.blocks),
                })?;
                taken.extend(&blocks);
                assigned.blocks = blocks;
            }
        }
        self.held = Some(new);
        Ok(true)
    }
}

// === between records and states ===

fn block_to(block: &LaneBlock) -> pb::LaneBlock {
    pb::LaneBlock { first: block.first.into(), count: block.count.into() }
}

fn blocks_of(blocks: &[pb::LaneBlock]) -> Option<Vec<LaneBlock>> {
    let block = |it: &pb::LaneBlock| {
        LaneBlock::new(u16::try_from(it.first).ok()?, u16::try_from(it.count).ok()?)
    };
    let blocks = blocks.iter().map(block).collect::<Option<Vec<_>>>()?;
    (!blocks.is_empty() && LaneBlock::are_disjoint(&blocks)).then_some(blocks)
}

fn member_to(member: &Member) -> pb::Member {
    pb::Member { id: member.id, name: member.name.clone() }
}

fn member_of(member: &pb::Member) -> Member {
    Member { id: member.id, name: member.name.clone() }
}

impl Lanes {
    /// The record of these lanes.
    pub fn to_record(&self) -> pb::Lanes {
        let held = self.held.as_ref().map(|held| pb::HeldLanes {
            blocks: held.blocks.iter().map(block_to).collect(),
            giver: held.giver.as_ref().map(member_to),
            credential: held.credential.clone(),
        });
        let assigned = self.assigned.iter().map(|it| pb::LaneAssignment {
            child: Some(member_to(&it.child)),
            blocks: it.blocks.iter().map(block_to).collect(),
            requested: it.requested.map_or(0, u32::from),
            credential: it.credential.clone(),
        });
        pb::Lanes { held, assigned: assigned.collect() }
    }

    /// The lanes of a record; `None` where it says what can't be.
    pub fn of_record(record: &pb::Lanes) -> Option<Self> {
        let held = match &record.held {
            None => None,
            Some(held) => Some(HeldLanes {
                blocks: blocks_of(&held.blocks)?,
                giver: held.giver.as_ref().map(member_of),
                credential: held.credential.clone(),
            }),
        };
        let assigned = record.assigned.iter().map(|it| {
            Some(LaneAssignment {
                child: member_of(it.child.as_ref()?),
                blocks: blocks_of(&it.blocks)?,
                requested: u16::try_from(it.requested).ok().filter(|requested| *requested > 0),
                credential: it.credential.clone(),
            })
        });
        Some(Self { held, assigned: assigned.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(id: u64) -> Member {
        Member { id, name: format!("n{id}") }
    }

    fn block(first: u16, count: u16) -> LaneBlock {
        LaneBlock::new(first, count).expect("there are such lanes")
    }

    proptest! {
        /// Whatever children ask for, and ask for more of, no lane is assigned twice, none is the node's
        /// own, and all lie in its blocks; and the record says the same as the state.
        #[test]
        fn no_lane_is_assigned_twice(
            blocks in prop::collection::vec((0u16..8, 1u16..100), 1..4),
            steps in prop::collection::vec((1u64..6, 0u16..40, any::<bool>()), 0..40),
        ) {
            let blocks: Vec<_> =
                blocks.iter().enumerate().map(|(at, (first, count))| block(at as u16 * 128 + first, *count)).collect();
            let mut lanes = Lanes {
                held: Some(HeldLanes { blocks: blocks.clone(), ..HeldLanes::default() }),
                ..Lanes::default()
            };
            for (child, wanted, is_more) in steps {
                let child = member(child);
                let known = lanes.of_child(&child).cloned();
                let holds = known.map(|known| HeldLanes {
                    blocks: known.blocks,
                    giver: Some(member(0)),
                    credential: known.credential,
                });
                let before = lanes.clone();
                let done = match is_more && holds.is_some() {
                    true => lanes.grow(&member(0), &child, wanted).map(drop),
                    false => {
                        let requested = Some(wanted).filter(|wanted| *wanted > 0);
                        lanes.assign(&member(0), &child, holds.as_ref(), requested, 0, Bytes::new()).map(drop)
                    }
                };
                if done.is_err() {
                    lanes = before;
                }
            }
            let mut all: Vec<_> = lanes
                .assigned
                .iter()
                .flat_map(|it| it.blocks.iter().map(|block| (it.child.to_string(), *block)))
                .collect();
            prop_assert!(all.iter().all(|(_, block)| covers(&blocks, *block)));
            all.push(("own".to_owned(), block(blocks[0].first, 1)));
            prop_assert!(LaneBlock::check_disjoint(&all).is_ok(), "{:?}", all);
            prop_assert_eq!(Lanes::of_record(&lanes.to_record()), Some(lanes));
        }
    }

    /// Where no route says `lanes`, a root has room for hundreds of children, and a region among them for more
    /// tenants than it got lanes at first.
    #[test]
    fn hundreds_of_children_fit_below_a_root() {
        let mut root = Lanes::default();
        let mut assign =
            |child| root.assign(&member(0), &member(child), None, None, 0, Bytes::new());
        let fits = (1..).take_while(|child| assign(*child).is_ok()).count();
        assert_eq!((fits, root.left()), (261, 0));
    }

    #[test]
    fn what_grows_keeps_what_it_had() {
        let mut root = Lanes::default();
        let fresh = Bytes::from_static(b"secret");
        root.assign(&member(0), &member(1), None, None, 0, fresh.clone()).expect("there are lanes");
        root.assign(&member(0), &member(2), None, None, 0, fresh.clone()).expect("there are lanes");
        root.grow(&member(0), &member(1), 16).expect("there are lanes");
        let first = root.of_child(&member(1)).expect("it was assigned some").clone();
        assert_eq!(first.blocks, [block(1, 16), block(33, 16)]);
        let held = HeldLanes {
            blocks: vec![block(1, 16)],
            giver: Some(member(0)),
            credential: fresh.clone(),
        };
        let mut region = Lanes { held: Some(held.clone()), ..Lanes::default() };
        for tenant in 10..25 {
            region
                .assign(&member(1), &member(tenant), None, None, 0, Bytes::new())
                .expect("it fits");
        }
        assert_eq!(region.left(), 0);
        let refused = region.assign(&member(1), &member(25), None, None, 0, Bytes::new());
        let error = refused.expect_err("all are assigned").to_string();
        assert!(error.contains("no 1 lanes left of its 16 for `n25`"), "{error}");
        let before = region.assigned.clone();
        let grown = HeldLanes { blocks: first.blocks, ..held };
        assert!(region.accept(&member(1), grown).expect("they fit"));
        assert_eq!(region.assigned, before, "what was assigned stays");
        assert_eq!(region.left(), 16);
        region.assign(&member(1), &member(25), None, None, 0, Bytes::new()).expect("it fits now");
        assert_eq!(region.of_child(&member(25)).expect("it has one").blocks, [block(33, 1)]);
        assert_eq!(region.own(), Some(block(1, 1).own()));
    }
}

//! Alarms as etcd has them: raised for a member until an operator disarms them, over restarts.
//!
//! NOSPACE refuses puts and new leases; CORRUPT refuses all that changes something. Beside those that were
//! raised stands one for as long as a store says that it is full.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Node, to_the_end};
use crate::{
    model::{StoreError, error::Result},
    proto::records::Alarm as Record,
    store::{
        Store as _,
        records::{Changes, Records},
    },
};

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmKind {
    /// There is no room.
    NoSpace,
    /// Somebody found that members differ. A node never raises it by itself.
    Corrupt,
}

/// An alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    /// What it is about.
    pub kind: AlarmKind,
    /// The member that it was raised for; whoever raises one may name any.
    pub member: u64,
}

/// The alarms of a node that were raised.
#[derive(Debug)]
pub(super) struct Alarms {
    raised: Mutex<BTreeSet<Alarm>>,
    /// Held from a record's change to the end of what follows from it, so that both have the same order.
    changing: tokio::sync::Mutex<()>,
    /// Whether some is there of each kind, for each request to look at.
    has_no_space: AtomicBool,
    has_corrupt: AtomicBool,
    /// The member that this node is.
    me: u64,
}

// === impl AlarmKind ===

impl AlarmKind {
    /// etcd's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSpace => "NOSPACE",
            Self::Corrupt => "CORRUPT",
        }
    }
}

// === impl Alarm ===

impl Alarm {
    /// The id of its record; the node's own NOSPACE has the one that it had before there were others.
    fn id(self, me: u64) -> String {
        match self {
            Self { kind: AlarmKind::NoSpace, member } if member == me => "nospace".to_owned(),
            Self { kind: AlarmKind::NoSpace, member } => format!("nospace-{member}"),
            Self { kind: AlarmKind::Corrupt, member } => format!("corrupt-{member}"),
        }
    }

    fn parse(id: &str, me: u64) -> Option<Self> {
        let (kind, member) = match id.split_once('-') {
            Some((kind, member)) => (kind, member.parse().ok()?),
            None => (id, me),
        };
        let kind = match kind {
            "nospace" => AlarmKind::NoSpace,
            "corrupt" => AlarmKind::Corrupt,
            _ => return None,
        };
        Some(Self { kind, member })
    }
}

// === impl Alarms ===

impl Alarms {
    pub(super) async fn load(records: &Records, me: u64) -> Result<Self> {
        let mut raised = BTreeSet::new();
        for (id, Record {}) in records.all().await? {
            let alarm = Alarm::parse(&id, me).ok_or_else(|| StoreError::Damaged {
                store: records.store().name().clone(),
                record: format!("alarm/{id}").into(),
                reason: "its name is no alarm's".into(),
            })?;
            raised.insert(alarm);
        }
        let alarms = Self {
            raised: Mutex::new(raised),
            changing: tokio::sync::Mutex::default(),
            has_no_space: AtomicBool::new(false),
            has_corrupt: AtomicBool::new(false),
            me,
        };
        alarms.note(&alarms.lock());
        Ok(alarms)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Alarm>> {
        // A set that nothing panics in.
        self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, raised: &BTreeSet<Alarm>) {
        let has = |kind| raised.iter().any(|alarm| alarm.kind == kind);
        self.has_no_space.store(has(AlarmKind::NoSpace), Ordering::Relaxed);
        self.has_corrupt.store(has(AlarmKind::Corrupt), Ordering::Relaxed);
    }

    /// Whether one of a kind was raised, for whatever member.
    pub(super) fn has(&self, kind: AlarmKind) -> bool {
        match kind {
            AlarmKind::NoSpace => self.has_no_space.load(Ordering::Relaxed),
            AlarmKind::Corrupt => self.has_corrupt.load(Ordering::Relaxed),
        }
    }

    /// Refuses what changes something, as etcd does, while members are said to differ.
    pub(super) fn check_intact(&self) -> Result<()> {
        if self.has(AlarmKind::Corrupt) { Err(StoreError::Corrupt) } else { Ok(()) }
    }

    /// The node's own alarm: it counts from now on, and over restarts once this returns.
    pub(super) async fn raise_no_space(&self, records: &Records) -> Result<()> {
        let alarm = Alarm { kind: AlarmKind::NoSpace, member: self.me };
        let _changing = self.changing.lock().await;
        self.change(|raised| raised.insert(alarm));
        records.write(Changes::default().put_at(alarm.id(self.me), &Record {})).await
    }

    /// Raises or disarms an alarm, and says whether that changed something.
    async fn set(&self, records: &Records, alarm: Alarm, is_raised: bool) -> Result<bool> {
        let id = alarm.id(self.me);
        let _changing = self.changing.lock().await;
        // Whatever is known here: a record whose outcome was not known may be there.
        records
            .write(match is_raised {
                true => Changes::default().put_at(id, &Record {}),
                false => Changes::default().delete_at::<Record>(id),
            })
            .await?;
        Ok(self.change(|raised| match is_raised {
            true => raised.insert(alarm),
            false => raised.remove(&alarm),
        }))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<Alarm>) -> bool) -> bool {
        let mut raised = self.lock();
        let is_changed = change(&mut raised);
        self.note(&raised);
        is_changed
    }
}

impl Node {
    /// The alarms that stand, by kind and member.
    pub fn alarms(&self) -> BTreeSet<Alarm> {
        let mut alarms = self.alarms.lock().clone();
        if self.root.head().is_full {
            alarms.insert(Alarm { kind: AlarmKind::NoSpace, member: self.alarms.me });
        }
        alarms
    }

    /// Raises an alarm.
    ///
    /// # Errors
    /// Where the default store can't be written.
    pub async fn raise_alarm(self: &Arc<Self>, alarm: Alarm) -> Result<()> {
        self.set_alarm(alarm, true).await.map(drop)
    }

    /// Disarms an alarm, and says whether it was raised. One that a full store keeps up stays.
    ///
    /// # Errors
    /// Where the default store can't be written.
    pub async fn disarm_alarm(self: &Arc<Self>, alarm: Alarm) -> Result<bool> {
        self.set_alarm(alarm, false).await
    }

    async fn set_alarm(self: &Arc<Self>, alarm: Alarm, is_raised: bool) -> Result<bool> {
        let node = self.clone();
        to_the_end(async move { node.alarms.set(node.records(), alarm, is_raised).await }).await
    }

    /// Refuses what changes something while the CORRUPT alarm stands.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check_intact(&self) -> Result<()> {
        self.alarms.check_intact()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_found_again_by_the_ids_of_their_records() {
        for kind in [AlarmKind::NoSpace, AlarmKind::Corrupt] {
            for member in [0, 7, 8, u64::MAX] {
                let alarm = Alarm { kind, member };
                assert_eq!(Alarm::parse(&alarm.id(7), 7), Some(alarm));
            }
        }
        let before = Alarm { kind: AlarmKind::NoSpace, member: 7 };
        assert_eq!(Alarm::parse("nospace", 7), Some(before), "as version 0.1.0 wrote it");
        for id in ["", "space", "nospace-", "nospace-x", "corrupt-7-8", "learner-7"] {
            assert_eq!(Alarm::parse(id, 7), None, "{id}");
        }
    }
}

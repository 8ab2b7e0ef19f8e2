//! Records of format 1, which had an encoding for each kind. Read once, by the migration.
//!
//! ```text
//!   identity          cluster and member, big-endian
//!   lanes             JSON
//!   lease/ID          seconds, big-endian
//!   reserved          start and limit, big-endian, and the names of the stores, joined by `+`
//!   alarm/nospace     anything
//!   presence/ROUTE    JSON: where the route's store was left, and the gaps
//!   child/ROUTE       the id of the child that was attached last, big-endian
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use super::{Changes, Record as _, is_sealed, unsealed};
use crate::proto::records::{
    Alarm, Gap, HeldLanes, Identity, LaneAssignment, LaneBlock, Lanes, Lease, Member, Reservation,
    Slot,
};

/// What could not be read: its name, and why.
type Unreadable = (String, String);

/// The changes that bring records of format 1 to the present one; those that a migration has changed
/// before are left as they are.
pub(super) fn migrated(old: Vec<(String, Bytes)>) -> Result<Changes, Unreadable> {
    let mut changes = Changes::default();
    // A route has two old records, and one may be gone already.
    let sealed = old.iter().filter(|(name, bytes)| is_sealed(name, bytes));
    let sealed = sealed.filter(|(name, _)| name.starts_with(Slot::KIND));
    let mut slots: BTreeMap<String, Slot> = sealed
        .filter_map(|(name, bytes)| unsealed(name, bytes.clone()).ok())
        .map(|slot: Slot| (slot.name.clone(), slot))
        .collect();
    let mut slot_of = |route: &str, change: &dyn Fn(&mut Slot)| {
        // Ids that are derived, so that a migration that is cut off and run again is the same.
        let id = u64::from(crc32fast::hash(route.as_bytes())) + 1;
        let slot = slots.entry(route.to_owned()).or_default();
        (slot.id, slot.name) = (id, route.to_owned());
        change(slot);
    };
    let mut gone = Vec::new();
    for (name, bytes) in old {
        if is_sealed(&name, &bytes) {
            continue;
        }
        let unreadable = || (name.clone(), "it is no record of format 1 either".to_owned());
        let (kind, id) = name.split_once('/').unwrap_or((&name, ""));
        changes = match kind {
            "identity" => changes.put(&identity(&bytes).ok_or_else(unreadable)?),
            "lanes" => changes.put(&lanes(&bytes).ok_or_else(unreadable)?),
            "lease" => {
                let id: i64 = id.parse().map_err(|_| unreadable())?;
                let ttl = <[u8; 8]>::try_from(&bytes[..]).map_err(|_| unreadable())?;
                changes.put_at(id, &Lease { ttl: i64::from_be_bytes(ttl), is_ending: false })
            }
            "alarm" => changes.put_at(id, &Alarm {}),
            "reserved" => {
                gone.push(name.clone());
                changes.put(&reservation(&bytes).ok_or_else(unreadable)?)
            }
            "presence" => {
                let (left, gaps) = presence(&bytes).ok_or_else(unreadable)?;
                slot_of(id, &|slot| {
                    slot.is_detached = left.is_some();
                    slot.detached_at = left.unwrap_or(0);
                    slot.gaps.clone_from(&gaps);
                });
                gone.push(name.clone());
                changes
            }
            "child" => {
                let child = <[u8; 8]>::try_from(&bytes[..]).map_err(|_| unreadable())?;
                slot_of(id, &|slot| slot.incarnation = u64::from_be_bytes(child));
                gone.push(name.clone());
                changes
            }
            _ => return Err(unreadable()),
        };
    }
    for slot in slots.values() {
        changes = changes.put_at(slot.id, slot);
    }
    // Last, so that nothing is lost where the migration is cut off.
    changes.0.extend(gone.into_iter().map(|name| (name, None)));
    Ok(changes)
}

fn identity(bytes: &[u8]) -> Option<Identity> {
    let (cluster, member) = bytes.split_at_checked(8)?;
    Some(Identity {
        cluster: u64::from_be_bytes(cluster.try_into().ok()?),
        member: u64::from_be_bytes(member.try_into().ok()?),
    })
}

fn reservation(bytes: &[u8]) -> Option<Reservation> {
    let (start, rest) = bytes.split_first_chunk()?;
    let (limit, stores) = rest.split_first_chunk()?;
    let stores = String::from_utf8(stores.to_vec()).ok()?;
    Some(Reservation {
        start: i64::from_be_bytes(*start),
        limit: i64::from_be_bytes(*limit),
        stores: stores.split('+').map(str::to_owned).collect(),
        ended: 0,
    })
}

fn presence(bytes: &[u8]) -> Option<(Option<i64>, Vec<Gap>)> {
    let record: Value = serde_json::from_slice(bytes).ok()?;
    let gaps = record["gaps"].as_array()?.iter();
    let gap = |gap: &Value| Some(Gap { after: gap[0].as_i64()?, floor: gap[1].as_i64()? });
    let left = match &record["left"] {
        Value::Null => None,
        left => Some(left.as_i64()?),
    };
    Some((left, gaps.map(gap).collect::<Option<_>>()?))
}

fn lanes(bytes: &[u8]) -> Option<Lanes> {
    let record: Value = serde_json::from_slice(bytes).ok()?;
    let block = |value: &Value| {
        let number = |name: &str| u32::try_from(value[name].as_u64()?).ok();
        Some(LaneBlock { first: number("first")?, count: number("count")? })
    };
    let member = |value: &Value| {
        let id = u64::from_str_radix(value["id"].as_str()?, 16).ok()?;
        Some(Member { id, name: value["name"].as_str()?.to_owned() })
    };
    let held = match &record["held"] {
        Value::Null => None,
        held => Some(HeldLanes {
            blocks: vec![block(&held["lanes"])?],
            giver: match &held["giver"] {
                Value::Null => None,
                giver => Some(member(giver)?),
            },
            credential: Bytes::new(),
        }),
    };
    let assigned = record["handed"].as_array()?.iter().map(|it| {
        Some(LaneAssignment {
            child: Some(member(&it["child"])?),
            blocks: vec![block(&it["lanes"])?],
            requested: it["said"].as_u64().and_then(|said| u32::try_from(said).ok()).unwrap_or(0),
            credential: Bytes::new(),
        })
    });
    Some(Lanes { held, assigned: assigned.collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        clock::{Clock, Lane, REVISION_MAX, SharedClock},
        store::{RecordStore as _, memory::Memory, records::Records},
    };

    /// What a node of version 0.1.0 kept that had a parent, two children and a lease.
    fn kept() -> Vec<(&'static str, Vec<u8>)> {
        let lanes = br#"{"handed":[{"child":{"id":"2a","name":"t1"},"lanes":{"count":1,"first":18},"said":null},
            {"child":{"id":"2b","name":"t2"},"lanes":{"count":4,"first":19},"said":4}],
            "held":{"giver":{"id":"7f","name":"root"},"lanes":{"count":16,"first":17}}}"#;
        let reserved = [&5i64.to_be_bytes()[..], &1_000i64.to_be_bytes(), b"pods+main"].concat();
        vec![
            ("alarm/nospace", b"1".to_vec()),
            ("child/pods", 42u64.to_be_bytes().to_vec()),
            ("identity", [7u64.to_be_bytes(), 8u64.to_be_bytes()].concat()),
            ("lanes", lanes.to_vec()),
            ("lease/77", 60i64.to_be_bytes().to_vec()),
            ("presence/pods", br#"{"gaps":[[3,9]],"left":12}"#.to_vec()),
            ("reserved", reserved),
        ]
    }

    async fn store(records: Vec<(&'static str, Vec<u8>)>) -> Arc<Memory> {
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let store = Memory::new("main", clock);
        let changes =
            records.into_iter().map(|(name, value)| (name.to_owned(), Some(value.into())));
        store.put_records(changes.collect()).await.expect("memory takes it");
        store
    }

    #[tokio::test]
    async fn records_of_format_1_are_all_there_after_the_migration() {
        let store = store(kept()).await;
        let records = Records::open(store.clone()).await.expect("all can be read");
        let again = Records::open(store.clone()).await.expect("it is done");
        let identity = again.get::<Identity>().await.expect("it is whole");
        assert_eq!(identity, Some(Identity { cluster: 7, member: 8 }));
        let leases = records.leases().await.expect("they are whole");
        assert_eq!(leases, [(77, Lease { ttl: 60, is_ending: false })]);
        let reservation =
            records.get::<Reservation>().await.expect("it is whole").expect("it is there");
        assert_eq!((reservation.start, reservation.limit), (5, 1_000));
        assert_eq!(reservation.stores, ["pods", "main"]);
        let lanes = records.get::<Lanes>().await.expect("it is whole").expect("it is there");
        let held = lanes.held.expect("it held some");
        assert_eq!(held.blocks, [LaneBlock { first: 17, count: 16 }]);
        assert_eq!(held.giver, Some(Member { id: 0x7f, name: "root".to_owned() }));
        assert_eq!(lanes.assigned.len(), 2);
        assert_eq!((lanes.assigned[0].requested, lanes.assigned[1].requested), (0, 4));
        let slots = records.all::<Slot>().await.expect("they are whole");
        let [(_, slot)] = &slots[..] else { panic!("{slots:?}") };
        assert_eq!(
            (&slot.name[..], slot.incarnation, slot.is_detached, slot.detached_at),
            ("pods", 42, true, 12)
        );
        assert_eq!(slot.gaps, [Gap { after: 3, floor: 9 }]);
        assert!(records.get_at::<Alarm>("nospace").await.expect("it is whole").is_some());
        let left = store.scan_records("").await.expect("memory answers");
        let old = |name: &str| ["reserved", "presence/pods", "child/pods"].contains(&name);
        assert!(!left.iter().any(|(name, _)| old(name)), "{left:?}");
    }

    #[tokio::test]
    async fn one_that_was_cut_off_between_two_deletions_loses_nothing() {
        let store = store(kept()).await;
        let migrated = Records::open(store.clone()).await.expect("they can be read");
        let before = migrated.all::<Slot>().await.expect("they are whole");
        for left in ["presence/pods", "child/pods"] {
            let old = kept().into_iter().find(|(name, _)| *name == left).expect("it was kept");
            let cut_off =
                vec![("format".to_owned(), None), (left.to_owned(), Some(Bytes::from(old.1)))];
            store.put_records(cut_off).await.expect("memory answers");
            let again = Records::open(store.clone()).await.expect("they can be read");
            assert_eq!(again.all::<Slot>().await.expect("they are whole"), before, "{left}");
        }
    }

    #[tokio::test]
    async fn one_that_can_not_be_read_stops_the_migration_and_nothing_is_changed() {
        let broken: [(&str, &[u8]); 8] = [
            ("identity", b"short"),
            ("lanes", b"{"),
            ("lease/77", b"long, and no number"),
            ("lease/x", &[0; 8]),
            ("reserved", b"short"),
            ("presence/pods", b"[]"),
            ("child/pods", b"short"),
            ("other", b""),
        ];
        for (name, value) in broken {
            let mut records = kept();
            records.retain(|(other, _)| *other != name);
            records.push((name, value.to_vec()));
            let store = store(records).await;
            let before = store.scan_records("").await.expect("memory answers");
            let error = Records::open(store.clone()).await.expect_err("it is broken").to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
            assert_eq!(store.scan_records("").await.expect("memory answers"), before);
        }
    }
}

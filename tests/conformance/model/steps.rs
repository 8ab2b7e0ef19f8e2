//! What a sequence is made of. Revisions are said as ages, since they depend on what came before.

use std::sync::Arc;

use pleach::{
    model::{
        Key, KeyRange, LeaseId, Revision,
        txn::{
            Against, Bounds, Compare, DeleteOp, Op, Order, OrderBy, PutOp, RangeOp, Relation, Txn,
        },
    },
    select::Selector,
};
use proptest::prelude::*;

use crate::words::{FAMILIES, bytes, family_range, key, object};

/// One operation of a sequence.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(Plan),
    Query {
        range: KeyRange,
        age: u8,
        limit: usize,
        keys_only: bool,
        selector: Option<Arc<Selector>>,
    },
    Count {
        range: KeyRange,
        age: u8,
        selector: Option<Arc<Selector>>,
    },
    ReadLeased {
        family: usize,
    },
    EndLease {
        family: usize,
    },
    Compact {
        age: u8,
        wait: bool,
    },
    /// Begin another tail in the past.
    StartTail {
        age: u8,
    },
    /// Query on in some tail, up to the present.
    Follow {
        tail: usize,
    },
    Remember {
        name: u8,
        value: Option<u8>,
    },
    Recall {
        prefix: u8,
    },
    /// Close everything and open it again.
    Reopen,
}

/// A transaction whose revisions are ages still.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    txn: Txn,
}

/// The lease of a family. Each has its own, since the end of a lease whose keys lie in several
/// stores takes a revision in each.
pub(crate) fn lease_of(family: usize) -> LeaseId {
    100 + family as LeaseId
}

/// What lies `age` back.
pub(crate) fn revision(shown: Revision, age: u8) -> Revision {
    (shown - Revision::from(age)).max(1)
}

// === impl Plan ===

impl Plan {
    /// The transaction, where the present is at `shown`.
    pub(crate) fn at(&self, shown: Revision) -> Txn {
        let mut txn = self.txn.clone();
        resolve(&mut txn, shown);
        txn
    }
}

/// Plans hold ages as negative numbers, and 0 for the present.
fn resolve(txn: &mut Txn, shown: Revision) {
    let back = |age: &mut Revision| *age = (shown + *age).max(1);
    for compare in &mut txn.compares {
        match &mut compare.against {
            Against::Create(age) | Against::Mod(age) if *age < 0 => back(age),
            _ => {}
        }
    }
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match op {
            Op::Range(read) if read.revision < 0 => back(&mut read.revision),
            Op::Txn(inner) => resolve(inner, shown),
            _ => {}
        }
    }
}

fn family() -> impl Strategy<Value = usize> {
    0..FAMILIES.len()
}

fn key_in(family: usize) -> impl Strategy<Value = Key> {
    (0..4u8).prop_map(move |name| key(family, name))
}

/// A range that holds keys of one family only.
fn range_in(family: usize) -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        4 => key_in(family).prop_map(KeyRange::single),
        2 => Just(family_range(family)),
        1 => (key_in(family), key_in(family))
            .prop_map(|(start, end)| KeyRange { start, end: Some(end) }),
    ]
}

/// A range that may hold keys of all families.
fn any_range() -> BoxedStrategy<KeyRange> {
    let any_key = || family().prop_flat_map(key_in);
    prop_oneof![
        4 => family().prop_flat_map(range_in),
        2 => Just(KeyRange::all()),
        1 => Just(KeyRange::prefix(Key::from_static(b"/registry/pods/"))),
        1 => Just(KeyRange::prefix(Key::from_static(b"/registry/configmaps/"))),
        1 => (any_key(), any_key()).prop_map(|(start, end)| KeyRange { start, end: Some(end) }),
        1 => any_key().prop_map(|start| KeyRange { start, end: None }),
    ]
    .boxed()
}

fn age() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0u8), 3 => 1..10u8, 1 => 10..80u8]
}

/// None, or one that objects of [`object`] differ in.
fn selector() -> impl Strategy<Value = Option<Arc<Selector>>> {
    let texts = [
        ("app=a", ""),
        ("app in (a,b)", ""),
        ("app!=a", ""),
        ("!app", ""),
        ("app=b,tier>2", ""),
        ("", "spec.node=n1"),
        ("", "spec.node=,metadata.name!=x"),
        ("app=a", "spec.node=n2"),
    ];
    prop_oneof![
        2 => Just(None),
        1 => prop::sample::select(texts.to_vec()).prop_map(|(labels, fields)| {
            Selector::parse(labels, fields).expect("it can be read").map(Arc::new)
        }),
    ]
}

fn put_in(family: usize) -> impl Strategy<Value = Op> {
    let flags = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (key_in(family), 0..20u8, prop::bool::weighted(0.3), flags).prop_map(
        move |(key, value, is_leased, (prev_kv, keep_value, keep_lease))| {
            let lease = if is_leased { lease_of(family) } else { 0 };
            let value = if value == 0 { bytes("") } else { object(value) };
            Op::Put(PutOp { key, value, lease, prev_kv, keep_value, keep_lease })
        },
    )
}

fn read_in(range: impl Strategy<Value = KeyRange>) -> impl Strategy<Value = Op> {
    let order = prop_oneof![Just(Order::None), Just(Order::Ascend), Just(Order::Descend)];
    let order_by = prop_oneof![Just(OrderBy::Key), Just(OrderBy::Mod), Just(OrderBy::Value)];
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.2), selector());
    (range, 0..4i64, age(), order, order_by, flags).prop_map(
        |(range, limit, age, order, order_by, (keys_only, count_only, selector))| {
            let (mod_revisions, create_revisions) = (Bounds::default(), Bounds::default());
            let revision = -Revision::from(age);
            Op::Range(RangeOp {
                range,
                limit,
                revision,
                order,
                order_by,
                keys_only,
                count_only,
                mod_revisions,
                create_revisions,
                selector,
            })
        },
    )
}

fn delete_in(range: impl Strategy<Value = KeyRange>) -> impl Strategy<Value = Op> {
    (range, any::<bool>()).prop_map(|(range, prev_kv)| Op::Delete(DeleteOp { range, prev_kv }))
}

fn compare_in(family: usize) -> impl Strategy<Value = Compare> {
    let relation = prop_oneof![
        3 => Just(Relation::Equal),
        1 => Just(Relation::Greater),
        1 => Just(Relation::Less),
        1 => Just(Relation::NotEqual),
    ];
    let against = prop_oneof![
        (0..3i64).prop_map(Against::Version),
        age().prop_map(|age| Against::Create(-Revision::from(age))),
        age().prop_map(|age| Against::Mod(-Revision::from(age))),
        (1..20u8).prop_map(|value| Against::Value(object(value))),
        Just(Against::Lease(lease_of(family))),
    ];
    (range_in(family), relation, against).prop_map(|(range, relation, against)| Compare {
        range,
        relation,
        against,
    })
}

/// A transaction on keys of one family, `depth` transactions deep at most.
fn txn_in(family: usize, depth: usize) -> BoxedStrategy<Txn> {
    let op = move || {
        let flat = prop_oneof![
            4 => put_in(family),
            2 => delete_in(range_in(family)),
            2 => read_in(range_in(family)),
        ];
        match depth {
            0 => flat.boxed(),
            _ => prop_oneof![5 => flat, 1 => txn_in(family, depth - 1).prop_map(Op::Txn)].boxed(),
        }
    };
    let ops = move || prop::collection::vec(op(), 0..4);
    (prop::collection::vec(compare_in(family), 0..2), ops(), ops())
        .prop_map(|(compares, success, failure)| Txn {
            compares,
            success,
            failure,
            may_split: false,
        })
        .boxed()
}

/// A transaction that may touch any store.
fn wide_txn() -> impl Strategy<Value = Txn> {
    let op = prop_oneof![
        2 => family().prop_flat_map(put_in),
        1 => delete_in(any_range()),
        1 => read_in(any_range()),
    ];
    prop::collection::vec(op, 1..4).prop_map(|success| Txn { success, ..Txn::default() })
}

fn write() -> impl Strategy<Value = Step> {
    let txn = prop_oneof![
        5 => family().prop_flat_map(put_in).prop_map(Txn::from),
        2 => family().prop_flat_map(|family| delete_in(range_in(family))).prop_map(Txn::from),
        5 => family().prop_flat_map(|family| txn_in(family, 2)),
        1 => wide_txn(),
    ];
    txn.prop_map(|txn| Step::Write(Plan { txn }))
}

/// One operation.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => write(),
        8 => (any_range(), age(), 0..5usize, any::<bool>(), selector()).prop_map(
            |(range, age, limit, keys_only, selector)| {
                Step::Query { range, age, limit, keys_only, selector }
            }
        ),
        6 => (any_range(), age(), selector())
            .prop_map(|(range, age, selector)| Step::Count { range, age, selector }),
        1 => family().prop_map(|family| Step::ReadLeased { family }),
        2 => family().prop_map(|family| Step::EndLease { family }),
        2 => (age(), any::<bool>()).prop_map(|(age, wait)| Step::Compact { age, wait }),
        2 => age().prop_map(|age| Step::StartTail { age }),
        5 => (0..8usize).prop_map(|tail| Step::Follow { tail }),
        1 => (0..4u8, any::<Option<u8>>())
            .prop_map(|(name, value)| Step::Remember { name, value }),
        1 => (0..4u8).prop_map(|prefix| Step::Recall { prefix }),
        1 => Just(Step::Reopen),
    ]
}

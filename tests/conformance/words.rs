//! Short words for keys, transactions and reads.

use bytes::Bytes;
use pleach::{
    model::{
        Key, KeyRange, KeyValue, LeaseId, Revision, StoreError,
        error::Result,
        txn::{Against, Compare, DeleteOp, Op, PutOp, RangeOp, Relation, Txn},
    },
    store::{Page, Query, RecordStore, Store, Written, read_all},
};

/// The beginnings of keys, each of which some router sends to a store of its own.
pub(crate) const FAMILIES: [&str; 5] = [
    "/registry/configmaps/green/",
    "/registry/pods/green/",
    "/registry/pods/blue/",
    "/registry/stable.example.com/shirts/blue/",
    "/registry/configmaps/blue/",
];

pub(crate) fn key(family: usize, name: impl std::fmt::Display) -> Key {
    Key::from(format!("{}{name}", FAMILIES[family]))
}

pub(crate) fn family_range(family: usize) -> KeyRange {
    KeyRange::prefix(Key::from_static(FAMILIES[family].as_bytes()))
}

pub(crate) fn bytes(text: impl std::fmt::Display) -> Bytes {
    Bytes::from(text.to_string())
}

/// An object with labels and a field, as `number` says; one in five is no object of Kubernetes.
pub(crate) fn object(number: u8) -> Bytes {
    if number.is_multiple_of(5) {
        return bytes(number);
    }
    let app = ["", r#""app":"a","#, r#""app":"b","#][usize::from(number) % 3];
    let node = ["{}", r#"{"node":"n1"}"#, r#"{"node":"n2"}"#, "[]"][usize::from(number) % 4];
    bytes(format!(
        r#"{{"apiVersion":"stable.example.com/v1","kind":"Shirt","metadata":{{"name":"x","labels":{{{app}"tier":"{number}"}}}},"spec":{node}}}"#
    ))
}

/// The number that a value spells.
pub(crate) fn number(value: &Bytes) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a number was put")
}

pub(crate) fn put_op(key: Key, value: Bytes, lease: LeaseId) -> Op {
    Op::Put(PutOp { key, value, lease, prev_kv: true, keep_value: false, keep_lease: false })
}

pub(crate) fn delete_op(range: KeyRange) -> Op {
    Op::Delete(DeleteOp { range, prev_kv: true })
}

pub(crate) fn range_op(range: KeyRange, revision: Revision) -> Op {
    Op::Range(RangeOp { revision, ..RangeOp::all(range) })
}

pub(crate) fn unchanged_since(key: &Key, revision: Revision) -> Compare {
    let range = KeyRange::single(key.clone());
    Compare { range, relation: Relation::Equal, against: Against::Mod(revision) }
}

pub(crate) fn all_of(ops: Vec<Op>) -> Txn {
    Txn { success: ops, ..Txn::default() }
}

/// Creates a key, or says what is there.
pub(crate) fn create(key: Key, value: Bytes) -> Txn {
    let failure = vec![range_op(KeyRange::single(key.clone()), 0)];
    let compares = vec![unchanged_since(&key, 0)];
    Txn { compares, success: vec![put_op(key, value, 0)], failure, may_split: false }
}

/// Applies a transaction, again where a lease ended on its way, as a node does.
pub(crate) async fn apply(store: &dyn Store, txn: Txn) -> Result<Written> {
    loop {
        match store.apply(txn.clone(), Vec::new()).await {
            Err(StoreError::StaleLeases) => {}
            written => return written,
        }
    }
}

/// Puts a value and returns its revision.
pub(crate) async fn put(store: &dyn Store, key: Key, value: Bytes) -> Revision {
    apply(store, put_op(key, value, 0).into()).await.expect("a put is taken").revision
}

/// Deletes a range and returns the revision of that.
pub(crate) async fn delete(store: &dyn Store, range: KeyRange) -> Revision {
    apply(store, delete_op(range).into()).await.expect("a deletion is taken").revision
}

/// All keys of a range as of a revision.
pub(crate) async fn list(store: &dyn Store, range: KeyRange, at: Revision) -> Result<Page> {
    read_all(store, &Query::new(range, at)).await
}

/// As [`list`], where it must work.
pub(crate) async fn kvs(store: &dyn Store, range: KeyRange, at: Revision) -> Vec<KeyValue> {
    list(store, range, at).await.expect("the revision can be read").kvs
}

/// A key as of a revision.
pub(crate) async fn get(store: &dyn Store, key: &Key, at: Revision) -> Option<KeyValue> {
    kvs(store, KeyRange::single(key.clone()), at).await.pop()
}

pub(crate) fn keys_of(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

/// How many keys a range has as of a revision.
pub(crate) async fn count(store: &dyn Store, range: KeyRange, at: Revision) -> Result<u64> {
    store.count(&Query::new(range, at)).await
}

/// Keeps a record, or forgets it.
pub(crate) async fn put_record(
    store: &dyn RecordStore,
    name: &str,
    value: Option<Bytes>,
) -> Result<()> {
    store.put_records(vec![(name.to_owned(), value)]).await
}

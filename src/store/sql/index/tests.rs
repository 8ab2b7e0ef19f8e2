//! What indexes change and find, and what a store in a file makes of them.

use std::sync::atomic::Ordering;

use super::{
    super::{Demanded, sqlite},
    *,
};
use crate::{
    clock::{Clock, Lane, SharedClock},
    model::{
        KeyValue,
        txn::{Op, PutOp, Txn},
    },
    store::{Expected, Query, RecordStore, read_all},
};

const PODS: Key = Key::from_static(b"/registry/pods/");

fn label(name: &str) -> Attribute {
    Attribute { part: Part::Labels, name: name.to_owned() }
}

fn selector(labels: &str) -> Selector {
    Selector::parse(labels, "").expect("it can be read").expect("it selects something")
}

fn app(name: &str) -> Bytes {
    let labels = if name.is_empty() { String::new() } else { format!(r#""app":"{name}""#) };
    Bytes::from(format!(
        r#"{{"apiVersion":"a.b/v1","kind":"C","metadata":{{"labels":{{{labels}}}}}}}"#
    ))
}

fn event(key: &Key, value: Option<&str>, prev: Option<&str>) -> Event {
    let kv = |value: &str, version| KeyValue {
        key: key.clone(),
        version,
        value: app(value),
        ..KeyValue::default()
    };
    let prev = prev.map(|prev| kv(prev, 1));
    let version = 1 + prev.as_ref().map_or(0, |prev| prev.version);
    let now = value.map_or_else(|| KeyValue::tombstone(key.clone(), 9), |value| kv(value, version));
    Event { kv: now, prev }
}

fn built(prefix: &Key, name: &str) -> Index {
    let index = Index::default().with(prefix, &label(name)).expect("there is room");
    let step = index.step().expect("it is to be built");
    index.advanced(&step, None)
}

#[test]
fn an_index_is_used_once_it_is_built_and_where_it_has_what_is_required() {
    let index = Index::default().with(&PODS, &label("app")).expect("there is room");
    let range = KeyRange::prefix(Key::from_static(b"/registry/pods/team-a/"));
    assert!(index.lookup(&range, &selector("app=a")).is_none(), "it is not built");
    assert!(!index.wants(&PODS, &label("app")) && index.is_due());
    assert!(index.wants(&PODS, &label("tier")));
    let index = built(&PODS, "app");
    assert!(!index.wants(&PODS, &label("app")) && !index.is_due());
    for (labels, hashes) in [
        ("app=a", Some(2)),
        ("app in (a,b,c)", Some(4)),
        ("tier=x,app=a", Some(2)),
        ("app!=a", None),
        ("app", None),
        ("tier=a", None),
        ("app in (0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f,g)", None),
    ] {
        let found = index.lookup(&range, &selector(labels));
        assert_eq!(found.map(|lookup| lookup.hashes.len()), hashes, "{labels}");
    }
    assert!(index.lookup(&KeyRange::all(), &selector("app=a")).is_none());
    let mut needs = ["app in (0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f,g),tier=x", "app=a", "app!=a"]
        .map(|labels| index.attribute_for(&PODS, &selector(labels)))
        .into_iter();
    assert_eq!(needs.next().flatten(), Some(label("tier")));
    assert!(needs.all(|needed| needed.is_none()), "it is there, or can't be looked up");
}

#[test]
fn the_record_says_what_there_is_and_numbers_are_given_once() {
    let index = built(&PODS, "app").with(&PODS, &label("tier")).expect("there is room");
    let other = Key::from_static(b"/registry/a.b/c/");
    let index = index.with(&other, &label("app")).expect("there is room");
    let again = Index::decode(&index.encode()).expect("it can be read");
    assert_eq!(again.encode(), index.encode());
    assert_eq!(again.step().map(|step| step.id), Some(2));
    // One that a key was too long for.
    let long = Key::from([&PODS[..], &[b'x'; KEY_BYTES_MAX]].concat());
    let commit = Arc::new(Commit { revision: 9, events: vec![event(&long, Some("a"), None)] });
    let less = index.without_too_long(&[commit]).expect("it is too long");
    assert_eq!((less.scopes.len(), &less.dropped[..]), (1, &[1, 2][..]));
    assert_eq!([1, 2, 3].map(|id| less.has(id)), [false, false, true]);
    assert!(!less.wants(&PODS, &label("app")) && less.with(&PODS, &label("app")).is_none());
    let again = Index::decode(&less.encode()).expect("it can be read");
    assert_eq!((again.dropped(), again.wants(&PODS, &label("app"))), (Some(1), false));
    assert_eq!(less.without_dropped(1).dropped(), Some(2));
    let more = less.with(&other, &label("tier")).expect("there is room");
    assert_eq!(more.last_id, 4);
    let mut kept = Kept::decode(&more.encode()[..]).expect("it can be read");
    kept.reading += 1;
    let anew = Index::decode(&kept.encode_to_vec()).expect("it can be read");
    assert_eq!((anew.scopes.len(), anew.last_id, &anew.dropped[..]), (0, 4, &[1, 2, 3, 4][..]));
    let full = (0..100).try_fold(Index::default(), |index, at| {
        index.with(&PODS, &label(&format!("l{at}"))).ok_or(index.last_id)
    });
    assert_eq!(full.map(drop), Err(ATTRIBUTES_MAX as i64));
}

#[test]
fn a_batch_changes_what_differs_before_and_after_it() {
    let index = built(&PODS, "app");
    let pod = |name: &str| Key::from([&PODS[..], name.as_bytes()].concat());
    let of = |hash, key: &Key| Terms::from([((1, hash), vec![key.clone()])]);
    let changes = |events: &[Event]| {
        let commits = events
            .iter()
            .map(|event| Arc::new(Commit { revision: 9, events: vec![event.clone()] }));
        index.changes(&commits.collect::<Vec<_>>())
    };
    let (a, b) = (hash("a"), hash("b"));
    let key = pod("one");
    for (events, gone, new) in [
        (vec![(Some("a"), None)], Terms::new(), of(a, &key)),
        (vec![(Some("a"), Some("a"))], Terms::new(), Terms::new()),
        (vec![(Some("b"), Some("a"))], of(a, &key), of(b, &key)),
        (vec![(Some(""), Some("a"))], of(a, &key), Terms::new()),
        (vec![(None, Some("a"))], of(a, &key), Terms::new()),
        // Several of one batch.
        (vec![(Some("b"), Some("a")), (Some("a"), Some("b"))], Terms::new(), Terms::new()),
        (vec![(None, Some("a")), (Some("b"), None)], of(a, &key), of(b, &key)),
        (vec![(Some("a"), None), (None, Some("a"))], Terms::new(), Terms::new()),
    ] {
        let events: Vec<Event> =
            events.into_iter().map(|(value, prev)| event(&key, value, prev)).collect();
        assert_eq!(changes(&events), Changes { gone, new }, "{events:?}");
    }
    let mut unreadable = event(&key, Some("a"), None);
    unreadable.kv.value = Bytes::from_static(b"no object");
    assert_eq!(changes(&[unreadable]), Changes { gone: Terms::new(), new: of(UNKNOWN, &key) });
    // Of one kind below two prefixes.
    let wide = Key::from_static(b"/registry/");
    let both = index.with(&wide, &label("app")).expect("there is room");
    let commit = Arc::new(Commit { revision: 9, events: vec![event(&key, Some("a"), None)] });
    let new = Terms::from([((1, a), vec![key.clone()]), ((2, a), vec![key.clone()])]);
    assert_eq!(both.changes(&[commit]), Changes { gone: Terms::new(), new });
    let elsewhere = event(&Key::from_static(b"/registry/nodes/n"), Some("a"), None);
    assert_eq!(changes(&[elsewhere]), Changes::default());
}

fn put(name: usize, value: Bytes) -> Op {
    Op::Put(PutOp {
        key: Key::from(format!("/registry/pods/{name:04}")),
        value,
        lease: 0,
        prev_kv: false,
        keep_value: false,
        keep_lease: false,
    })
}

/// A store in a file with objects of which a few have the label `app=a`, and reads by it until an index has it.
async fn indexed(
    path: &std::path::Path,
    indexing: Indexing,
    objects: usize,
) -> Arc<dyn RecordStore> {
    let has_none = indexing == Indexing::Never;
    let clock = SharedClock::new(Clock::new(0, 1 << 40, Lane::ALL));
    let expected = Expected::default();
    let opened = sqlite::open_known("s", path, "a test", clock, expected, indexing).await;
    let store = opened.expect("the file can be opened");
    for some in (0..objects).collect::<Vec<_>>().chunks(100) {
        let put = |name: &usize| put(*name, app(if name.is_multiple_of(100) { "a" } else { "b" }));
        let success = some.iter().map(put).collect();
        let txn = Txn { success, ..Txn::default() };
        store.apply(txn, Vec::new()).await.expect("they are taken");
    }
    let query = Query {
        selector: Some(Arc::new(selector("app=a"))),
        ..Query::new(KeyRange::prefix(PODS), 0)
    };
    for _ in 0..1_000 {
        let page = read_all(&*store, &query).await.expect("it can be read");
        assert_eq!(page.kvs.len(), objects.div_ceil(100));
        let selected = store.meters()[0].selected.clone().expect("it is counted");
        if has_none || selected.by_index.load(Ordering::Relaxed) > 0 {
            return store;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("no index was used");
}

fn number(path: &std::path::Path, sql: &str) -> i64 {
    let file = rusqlite::Connection::open(path).expect("it is there");
    file.query_row(sql, [], |row| row.get(0)).expect("it is a number")
}

#[tokio::test]
async fn a_store_gives_its_indexes_up_where_it_is_to_have_none_and_makes_them_anew() {
    const SCHEMA: &str = "SELECT value FROM pleach_meta WHERE name = 'schema'";
    const TABLES: &str = "SELECT count(*) FROM sqlite_schema WHERE name = 'pleach_term'";
    let folder = tempfile::TempDir::new().expect("there is room");
    let path = folder.path().join("s.db");
    for (indexing, schema, tables) in [
        (Indexing::Never, SCHEMA_VERSION, 0),
        (Indexing::default(), SCHEMA_INDEXED, 1),
        (Indexing::Never, SCHEMA_VERSION, 0),
        (Indexing::default(), SCHEMA_INDEXED, 1),
    ] {
        indexed(&path, indexing, 600).await.close().await;
        assert_eq!((number(&path, SCHEMA), number(&path, TABLES)), (schema, tables));
    }
    // Restored without its table.
    let file = rusqlite::Connection::open(&path).expect("it is there");
    file.execute_batch("DROP TABLE pleach_term").expect("it is a table");
    drop(file);
    indexed(&path, Indexing::default(), 600).await.close().await;
    let rows = number(&path, "SELECT count(*) FROM pleach_term");
    assert_eq!(rows, 600, "the label of each object");
}

#[tokio::test]
async fn what_matches_many_is_read_in_order_and_what_matches_few_is_looked_up() {
    let folder = tempfile::TempDir::new().expect("there is room");
    let clock = SharedClock::new(Clock::new(0, 1 << 40, Lane::ALL));
    let of = |name| Demanded { prefix: PODS, attribute: label(name) };
    let (path, expected) = (folder.path().join("s.db"), Expected::default());
    let indexing = Indexing::WhereUsed(vec![of("half"), of("late")]);
    let opened = sqlite::open_known("s", &path, "a test", clock, expected, indexing).await;
    let store = opened.expect("the file can be opened");
    for first in (0..2_000).step_by(100) {
        let object = |at: usize| {
            let (half, late) = (at.is_multiple_of(2), at >= 1_700);
            let object = format!(
                r#"{{"apiVersion":"a.b/v1","kind":"C","metadata":{{"labels":{{"half":"{half}","late":"{late}"}}}}}}"#
            );
            put(at, Bytes::from(object))
        };
        let txn = Txn { success: (first..first + 100).map(object).collect(), ..Txn::default() };
        store.apply(txn, Vec::new()).await.expect("they are taken");
    }
    let pages = || {
        let selected = store.meters()[0].selected.clone().expect("it is counted");
        (selected.by_index.load(Ordering::Relaxed), selected.by_scan.load(Ordering::Relaxed))
    };
    let read = async |labels, limit| {
        let selector = Some(Arc::new(selector(labels)));
        let query = Query { limit, selector, ..Query::new(KeyRange::prefix(PODS), 0) };
        read_all(&*store, &query).await.expect("it can be read").kvs.len()
    };
    // What matches nothing is looked up once its index is built.
    for labels in ["half=neither", "late=neither"] {
        let before = pages().0;
        while pages().0 == before {
            assert_eq!(read(labels, 1).await, 0);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    let before = pages();
    assert_eq!(read("half=true", 500).await, 500);
    let between = pages();
    assert_eq!((between.0, between.1 > before.1), (before.0, true), "it is read in order");
    assert_eq!(read("late=true", 100).await, 100);
    let after = pages();
    assert_eq!((after.0 > between.0, after.1), (true, between.1), "it is looked up");
}

#[tokio::test]
async fn an_index_that_is_demanded_is_made_however_few_rows_are_read_in_vain() {
    let folder = tempfile::TempDir::new().expect("there is room");
    let path = folder.path().join("s.db");
    let demanded = Demanded { prefix: PODS, attribute: label("app") };
    for _ in 0..2 {
        let indexing = Indexing::WhereUsed(vec![demanded.clone()]);
        indexed(&path, indexing, 10).await.close().await;
        // It is given up in between.
        indexed(&path, Indexing::Never, 10).await.close().await;
    }
}

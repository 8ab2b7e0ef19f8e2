//! Selectors: what they match is found, as it was at the revision, whatever changes meanwhile.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::future::join_all;
use pleach::{
    model::{KeyRange, KeyValue, Revision, StoreError},
    select::Selector,
    store::{Coverage, Query, Store, read_all},
};
use serde_json::json;

use crate::{
    follow::soon,
    words::{FAMILIES, delete, key, object, put},
    world::World,
};

/// More than a read looks at in vain before it asks for an index.
const KEYS: usize = 700;

/// Where there is none.
const KEYS_FEW: usize = 60;

const SELECTORS: [(&str, &str); 6] = [
    ("app=a", ""),
    ("app in (a,b),tier!=7", ""),
    ("", "spec.node=n1"),
    ("app=b", "spec.node=n2"),
    ("!app", ""),
    ("", "spec.node!=n1"),
];

/// A label's key may have so many bytes before its slash.
const PREFIX_BYTES_MAX: usize = 253;

on_every_composition! { at once:
    examples_of_selectors_find_what_kubernetes_finds,
    what_selectors_match_is_found_as_of_every_revision,
    what_selectors_match_is_found_while_an_index_is_built_and_objects_change,
}

fn selector(at: usize) -> Arc<Selector> {
    let (labels, fields) = SELECTORS[at % SELECTORS.len()];
    let selector = Selector::parse(labels, fields).expect("it can be read");
    Arc::new(selector.expect("it selects something"))
}

/// All keys of a range that a selector may match, in pages, and as they are counted.
async fn selected(store: &dyn Store, query: &Query) -> Result<(Vec<KeyValue>, u64), StoreError> {
    let mut read = query.clone();
    let mut kvs = Vec::new();
    loop {
        let page = soon("a page", store.read(&read)).await?;
        assert!(read.limit == 0 || page.kvs.len() <= read.limit, "a page of {}", read.limit);
        kvs.extend(page.kvs);
        let Some(next) = page.next else { break };
        assert!(next > read.range.start, "a page that leads nowhere");
        read.range.start = next;
    }
    Ok((kvs, store.count(query).await?))
}

/// Holds what is found with a selector against all keys.
async fn compare(store: &dyn Store, range: &KeyRange, at: Revision, number: usize) {
    let all = read_all(store, &Query::new(range.clone(), at)).await;
    let selector = selector(number);
    let query = Query {
        selector: Some(selector.clone()),
        limit: [0, 1, 7, 100][number % 4],
        keys_only: number.is_multiple_of(5),
        ..Query::new(range.clone(), at)
    };
    let found = selected(store, &query).await;
    let (all, (found, count)) = match (all, found) {
        (Ok(all), Ok(found)) => (all.kvs, found),
        // Both were too late for that revision.
        (Err(StoreError::Compacted { .. }), _) | (_, Err(StoreError::Compacted { .. })) => return,
        (all, found) => panic!("{:?} and {found:?}", all.map(|page| page.kvs.len())),
    };
    let mut expected = all;
    expected.retain(|kv| selector.may_match(&kv.value));
    if query.keys_only {
        expected.iter_mut().for_each(|kv| kv.value.clear());
    }
    assert_eq!(found, expected, "{:?} in {range:?} as of {at}", selector.texts());
    assert_eq!(count, expected.len() as u64, "{:?} in {range:?} as of {at}", selector.texts());
}

fn ranges() -> [KeyRange; 4] {
    let of = |prefix: &'static str| KeyRange::prefix(bytes::Bytes::from_static(prefix.as_bytes()));
    [KeyRange::all(), of("/registry/pods/"), of(FAMILIES[1]), of("/registry/stable.example.com/")]
}

/// What other stores with selectors are known to lose: what has no such label, or more than one; later pages; what only
/// begins with a value; and what is no object, which is never hidden.
async fn examples_of_selectors_find_what_kubernetes_finds(world: World) {
    let store = &*world.store;
    let long = format!("{}/{}", ["a23456789."; 25].concat() + "abc", "k".repeat(63));
    assert_eq!(long.find('/'), Some(PREFIX_BYTES_MAX));
    for (name, labels, color) in [
        ("bare", json!({}), "blue"),
        ("a1", json!({ "a": "1" }), "blue"),
        ("a1b", json!({ "a": "1", "b": "1" }), "bluegreen"),
        ("a2c", json!({ "a": "2", "c": "x", "d": "y" }), "red"),
        ("empty", json!({ "a": "" }), "blue"),
        ("n9", json!({ "n": "9" }), ""),
        ("n10", json!({ "n": "10", &long: "yes" }), ""),
    ] {
        let object = json!({
            "apiVersion": "stable.example.com/v1", "kind": "Shirt",
            "metadata": { "name": name, "namespace": "blue", "labels": labels },
            "spec": if color.is_empty() { json!({}) } else { json!({ "color": color }) },
        });
        put(store, key(3, name), object.to_string().into()).await;
    }
    put(store, key(3, "raw"), "1|55".into()).await;
    put(store, key(3, "sealed"), "k8s:enc:aescbc:v1:key1:\0\u{1}".into()).await;
    let all = ["a1", "a1b", "a2c", "bare", "empty", "n10", "n9"];
    let but =
        |gone: &[&str]| all.iter().filter(|name| !gone.contains(name)).copied().collect::<Vec<_>>();
    let of_long = (format!("{long}=yes"), format!("{long} in (no,yes),n"), format!("!{long}"));
    for (labels, fields, expected) in [
        ("!a", "", vec!["bare", "n10", "n9"]),
        ("a", "", vec!["a1", "a1b", "a2c", "empty"]),
        ("a=1", "", vec!["a1", "a1b"]),
        ("a==2", "", vec!["a2c"]),
        ("a=", "", vec!["empty"]),
        ("a in (,2)", "", vec!["a2c", "empty"]),
        ("a!=1", "", but(&["a1", "a1b"])),
        ("a!=", "", but(&["empty"])),
        ("a in (1,2)", "", vec!["a1", "a1b", "a2c"]),
        ("a notin (1,2)", "", but(&["a1", "a1b", "a2c"])),
        ("a,a!=1", "", vec!["a2c", "empty"]),
        ("a=1,!b", "", vec!["a1"]),
        ("a=1,b", "", vec!["a1b"]),
        ("!a,!n", "", vec!["bare"]),
        ("!skip", "", but(&[])),
        ("a=1,a=2", "", vec![]),
        ("a=1,a!=1", "", vec![]),
        ("n>9", "", vec!["n10"]),
        ("n<10", "", vec!["n9"]),
        ("n>9,n<10", "", vec![]),
        ("a>0,a<2", "", vec!["a1", "a1b"]),
        (&of_long.0, "", vec!["n10"]),
        (&of_long.1, "", vec!["n10"]),
        (&of_long.2, "", but(&["n10"])),
        ("", "metadata.name=a1", vec!["a1"]),
        ("", "metadata.name!=a1", but(&["a1"])),
        ("", "metadata.name=a", vec![]),
        ("", "metadata.namespace=blue", but(&[])),
        ("", "metadata.namespace=blu", vec![]),
        // What has no color may have one by default, whenever an API server reads it.
        ("", "spec.color=blue", vec!["a1", "bare", "empty", "n10", "n9"]),
        ("", "spec.color!=blue", vec!["a1b", "a2c", "n10", "n9"]),
        ("", "spec.color=", vec!["n10", "n9"]),
        ("", "spec.color!=", but(&[])),
        ("", "spec.color=blue,metadata.name!=bare", vec!["a1", "empty", "n10", "n9"]),
        ("", "metadata.name=a1,spec.color=red", vec![]),
        ("a=1", "spec.color=bluegreen", vec!["a1b"]),
        ("a!=1", "spec.color=blue", vec!["bare", "empty", "n10", "n9"]),
        ("b", "spec.color!=blue", vec!["a1b"]),
    ] {
        let selector = Selector::parse(labels, fields).expect("it can be read");
        let at = world.clock.shown();
        let query = Query {
            selector: selector.map(Arc::new),
            ..Query::new(crate::words::family_range(3), at)
        };
        for limit in [0, 1, 2] {
            let (found, count) =
                selected(store, &Query { limit, ..query.clone() }).await.expect("it is there");
            let prefix = FAMILIES[3].len();
            let names = found.iter().map(|kv| String::from_utf8_lossy(&kv.key[prefix..]));
            let mut names: Vec<_> = names.collect();
            assert_eq!(count, names.len() as u64, "{labels:?} {fields:?}");
            let hidden = ["raw", "sealed"].iter().find(|raw| !names.iter().any(|it| it == *raw));
            assert_eq!(hidden, None, "{labels:?} {fields:?}");
            names.retain(|name| all.contains(&&**name));
            assert_eq!(names, expected, "{labels:?} {fields:?}, in pages of {limit}");
        }
    }
}

pub(crate) async fn what_selectors_match_is_found_as_of_every_revision(world: World) {
    let store = &*world.store;
    let first = world.clock.shown();
    for step in 0..60u8 {
        let key = key(usize::from(step) % FAMILIES.len(), usize::from(step) * 7 % 4);
        match step % 6 {
            3 => delete(store, KeyRange::single(key)).await,
            _ => put(store, key, object(step % 19)).await,
        };
    }
    let last = world.clock.shown();
    for (number, range) in (0..).zip(ranges().iter().cycle().take(48)) {
        let at = first + 1 + (last - first - 1) * Revision::from(number) / 48;
        compare(store, range, at, number as usize).await;
    }
    // What can't be read is never hidden.
    let unreadable = put(store, key(1, "foreign"), "no object".into()).await;
    for (number, texts) in SELECTORS.iter().enumerate() {
        let query = Query {
            selector: Some(selector(number)),
            ..Query::new(KeyRange::single(key(1, "foreign")), unreadable)
        };
        let (found, count) = selected(store, &query).await.expect("it can be read");
        assert_eq!((found.len(), count), (1, 1), "{texts:?}");
    }
}

async fn what_selectors_match_is_found_while_an_index_is_built_and_objects_change(world: World) {
    let store = &*world.store;
    let has_indexes = world.composition.has_indexes();
    let keys = if has_indexes { KEYS } else { KEYS_FEW };
    let names: Vec<usize> = (0..keys).collect();
    for some in names.chunks(100) {
        let puts = some.iter().map(|name| {
            // One in fifty has what is looked for.
            let value = if name.is_multiple_of(50) { object(1) } else { object(3) };
            put(store, key(1, format!("{name:04}")), value)
        });
        join_all(puts).await;
    }
    let is_done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (store, is_done) = (world.store.clone(), is_done.clone());
        tokio::spawn(async move {
            for round in 0..40usize {
                let writes = (0..6usize).map(|at| {
                    let name = key(1, format!("{:04}", (round * 83 + at * 131) % keys));
                    let store = store.clone();
                    async move {
                        match (round + at) % 4 {
                            0 => delete(&*store, KeyRange::single(name)).await,
                            _ => {
                                let value = object(u8::try_from((round + at) % 19).unwrap_or(0));
                                put(&*store, name, value).await
                            }
                        }
                    }
                });
                join_all(writes).await;
                if round == 20 {
                    let all = KeyRange::all();
                    let shown = store.read_index(&all, Coverage::All).await;
                    let shown = shown.expect("the stores are there");
                    store.compact(shown - 20, false).await.expect("it is compacted");
                }
            }
            is_done.store(true, Ordering::Release);
        })
    };
    let ranges = ranges();
    for number in 0.. {
        let is_last = is_done.load(Ordering::Acquire);
        let at = world.clock.shown() - number as Revision % 13;
        compare(store, &ranges[1 + number % 2], at, number).await;
        if is_last && number >= 12 {
            break;
        }
    }
    writer.await.expect("it does not fail");
    soon("indexes are used where there are some", async {
        for number in 0.. {
            compare(store, &ranges[2], world.clock.shown(), number % 3).await;
            let meters = world.leaves.iter().flat_map(|leaf| leaf.store.meters());
            let used = meters.filter_map(|meters| meters.selected);
            let used = used.filter(|it| it.by_index.load(Ordering::Relaxed) > 0).count();
            if number >= 3 && (used > 0) == has_indexes {
                break;
            }
        }
    })
    .await;
    // Behind the index, too, what was before is found.
    for round in 0..30usize {
        let name = key(1, format!("{:04}", round * 50 % keys));
        match round % 3 {
            0 => delete(store, KeyRange::single(name)).await,
            1 => put(store, name, object(4)).await,
            _ => put(store, key(1, format!("new-{round}")), object(1)).await,
        };
        for age in [0, 3, 11, 25] {
            compare(store, &ranges[2], world.clock.shown() - age, round * 6).await;
        }
    }
    if has_indexes {
        // Too long for it: it is given up, and nothing is lost.
        let long = key(1, "x".repeat(2_100));
        put(store, long, object(1)).await;
        compare(store, &ranges[2], world.clock.shown(), 0).await;
        put(store, key(1, "later"), object(1)).await;
        compare(store, &ranges[2], world.clock.shown(), 0).await;
    }
    let world = world.reopened().await;
    for number in 0..24 {
        let at = world.clock.shown() - number as Revision % 7;
        compare(&*world.store, &ranges[number % 4], at, number).await;
    }
}

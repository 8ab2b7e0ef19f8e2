//! Who watches an event: found by hashing its key and what its object is, not by asking every watcher.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    model::{Event, Key, KeyRange, key::prefix_end},
    select::{Attributes, Reading, Requirement, Selector},
};

/// Watchers by the ranges that they watch.
///
/// Nearly all ranges are one key or one prefix: a lookup costs one hash for the key and one for each
/// length of prefix in use. Other ranges are looked through one by one.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<Key, Watchers>,
    prefixes: HashMap<Key, Watchers>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
    others: Vec<(KeyRange, u64)>,
    /// How many watchers are found by what their selectors require.
    selecting: usize,
}

/// The watchers of one range.
#[derive(Debug, Default)]
struct Watchers {
    /// Those that every event concerns, or may.
    all: Vec<u64>,
    /// Those whose selector requires a value of an attribute.
    selecting: Option<Box<Selecting>>,
}

/// Watchers by the value that they require of an attribute: of each, one.
#[derive(Debug)]
struct Selecting {
    attributes: Attributes,
    /// For each attribute the watchers by its values; who takes several stands under each.
    watchers: Vec<HashMap<String, Vec<u64>>>,
}

/// Whether a selector may match an object as it is after an event, or as it was before: who watches the selected
/// hears of those that leave the selection.
pub(super) fn concerns(selector: &Selector, event: &Event) -> bool {
    let is = !event.is_delete() && selector.may_match(&event.kv.value);
    is || match &event.prev {
        Some(prev) => selector.may_match(&prev.value),
        // What was there was compacted away.
        None => !event.is_create(),
    }
}

// === impl Index ===

impl Index {
    pub(super) fn insert(
        &mut self,
        range: &KeyRange,
        selector: Option<&Arc<Selector>>,
        watcher: u64,
    ) {
        let required = required_by(selector);
        if let Some(key) = range.as_single() {
            self.selecting += usize::from(required.is_some());
            self.keys.entry(key.clone()).or_default().insert(required, watcher);
        } else if is_prefix(range) {
            self.selecting += usize::from(required.is_some());
            let watchers = self.prefixes.entry(range.start.clone()).or_default();
            if watchers.is_empty() {
                *self.lengths.entry(range.start.len()).or_default() += 1;
            }
            watchers.insert(required, watcher);
        } else {
            self.others.push((range.clone(), watcher));
        }
    }

    pub(super) fn remove(
        &mut self,
        range: &KeyRange,
        selector: Option<&Arc<Selector>>,
        watcher: u64,
    ) {
        let required = required_by(selector);
        if let Some(key) = range.as_single() {
            self.selecting -= usize::from(required.is_some());
            remove_from(&mut self.keys, key, required, watcher);
        } else if is_prefix(range) {
            self.selecting -= usize::from(required.is_some());
            if remove_from(&mut self.prefixes, &range.start, required, watcher) {
                let length = range.start.len();
                let count = self.lengths.entry(length).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        } else {
            self.others.retain(|(_, other)| *other != watcher);
        }
    }

    /// Whether a lookup may find a watcher more than once.
    pub(super) fn finds_twice(&self) -> bool {
        self.selecting > 0
    }

    /// Calls `found` for each watcher of the event's key that the event may concern, more than once for some.
    pub(super) fn watching(&self, event: &Event, found: &mut impl FnMut(u64)) {
        let key = &event.kv.key;
        if let Some(watchers) = self.keys.get(key) {
            watchers.watching(event, found);
        }
        for length in self.lengths.keys().copied().take_while(|length| *length <= key.len()) {
            if let Some(watchers) = self.prefixes.get(&key[..length]) {
                watchers.watching(event, found);
            }
        }
        for (range, watcher) in &self.others {
            if range.contains(key) {
                found(*watcher);
            }
        }
    }

    /// The watchers of exactly this prefix; some more than once.
    pub(super) fn watching_prefix(&self, prefix: &[u8]) -> impl Iterator<Item = u64> {
        self.prefixes.get(prefix).into_iter().flat_map(Watchers::each)
    }
}

// === impl Watchers ===

impl Watchers {
    fn is_empty(&self) -> bool {
        self.all.is_empty() && self.selecting.is_none()
    }

    fn insert(&mut self, required: Option<Requirement>, watcher: u64) {
        let Some(Requirement { attribute, values }) = required else {
            return self.all.push(watcher);
        };
        let selecting = self.selecting.get_or_insert_with(|| {
            Box::new(Selecting { attributes: Attributes::new(Vec::new()), watchers: Vec::new() })
        });
        let known = selecting.attributes.attributes();
        let at = known.iter().position(|it| *it == attribute).unwrap_or(known.len());
        if at == known.len() {
            let more = known.iter().cloned().chain([attribute]).collect();
            selecting.attributes = Attributes::new(more);
            selecting.watchers.push(HashMap::new());
        }
        for value in values {
            selecting.watchers[at].entry(value).or_default().push(watcher);
        }
    }

    fn remove(&mut self, required: Option<Requirement>, watcher: u64) {
        let Some(Requirement { attribute, values }) = required else {
            return take_out(&mut self.all, watcher);
        };
        let Some(selecting) = &mut self.selecting else { return };
        let known = selecting.attributes.attributes();
        let Some(at) = known.iter().position(|it| *it == attribute) else { return };
        let by_value = &mut selecting.watchers[at];
        for value in values {
            if let Some(watchers) = by_value.get_mut(&value) {
                take_out(watchers, watcher);
                if watchers.is_empty() {
                    by_value.remove(&value);
                }
            }
        }
        if by_value.is_empty() {
            let mut left = known.to_vec();
            left.remove(at);
            selecting.attributes = Attributes::new(left);
            selecting.watchers.remove(at);
        }
        if selecting.watchers.is_empty() {
            self.selecting = None;
        }
    }

    fn each(&self) -> impl Iterator<Item = u64> {
        let selecting = self.selecting.iter().flat_map(|selecting| &selecting.watchers);
        let selecting = selecting.flat_map(HashMap::values).flatten();
        self.all.iter().chain(selecting).copied()
    }

    fn watching(&self, event: &Event, found: &mut impl FnMut(u64)) {
        self.all.iter().copied().for_each(&mut *found);
        if let Some(selecting) = &self.selecting {
            selecting.watching(event, found);
        }
    }
}

// === impl Selecting ===

impl Selecting {
    /// Those that require what the object is after the event, or was before.
    fn watching(&self, event: &Event, found: &mut impl FnMut(u64)) {
        let values = [
            (!event.is_delete()).then_some(&event.kv.value),
            event.prev.as_ref().map(|prev| &prev.value),
        ];
        let values: Vec<_> = values.into_iter().flatten().collect();
        let readings: Vec<_> = values.iter().map(|value| self.attributes.read(value)).collect();
        // What was there was compacted away, and may have been anything.
        let lacks_prev = event.prev.is_none() && !event.is_create();
        for (at, by_value) in self.watchers.iter().enumerate() {
            let mut each = readings.iter().map(|readings| &readings[at]);
            if lacks_prev || each.clone().any(|reading| *reading == Reading::Unknown) {
                by_value.values().flatten().copied().for_each(&mut *found);
                continue;
            }
            let (first, second) = (each.next(), each.next());
            for reading in [first, second.filter(|_| second != first)] {
                if let Some(Reading::Value(value)) = reading {
                    by_value.get(&**value).into_iter().flatten().copied().for_each(&mut *found);
                }
            }
        }
    }
}

fn required_by(selector: Option<&Arc<Selector>>) -> Option<Requirement> {
    selector?.requirements().into_iter().next()
}

fn is_prefix(range: &KeyRange) -> bool {
    range.end == prefix_end(&range.start)
}

fn take_out(watchers: &mut Vec<u64>, watcher: u64) {
    if let Some(at) = watchers.iter().position(|other| *other == watcher) {
        watchers.swap_remove(at);
    }
}

/// Returns whether that was the last of its key.
fn remove_from(
    map: &mut HashMap<Key, Watchers>,
    key: &Key,
    required: Option<Requirement>,
    watcher: u64,
) -> bool {
    let Some(watchers) = map.get_mut(key) else { return false };
    watchers.remove(required, watcher);
    let is_last = watchers.is_empty();
    if is_last {
        map.remove(key);
    }
    is_last
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::KeyValue;

    fn key() -> impl Strategy<Value = Key> {
        prop::collection::vec(prop_oneof![Just(b'a'), Just(b'/'), Just(0xff), Just(0)], 0..4)
            .prop_map(Key::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        prop_oneof![
            key().prop_map(KeyRange::prefix),
            key().prop_map(KeyRange::single),
            (key(), key()).prop_map(|(start, end)| KeyRange::from_wire(start, end)),
        ]
    }

    fn selector() -> impl Strategy<Value = Option<Arc<Selector>>> {
        let texts = [
            ("", ""),
            ("app=a", ""),
            ("app in (a,b)", ""),
            ("app!=a", ""),
            ("app", ""),
            ("app=", ""),
            ("", "spec.node=a"),
            ("", "spec.node="),
            ("app=b", "spec.node=b"),
            ("app=a,app=b", ""),
        ];
        prop::sample::select(texts.to_vec()).prop_map(|(labels, fields)| {
            Selector::parse(labels, fields).expect("it can be read").map(Arc::new)
        })
    }

    fn value() -> impl Strategy<Value = Bytes> {
        let values =
            ["{}", "no object", r#"{"apiVersion":"a.b/v1","kind":"C","metadata":{"labels":7}}"#];
        let values = values.map(str::to_owned).into_iter();
        let object = |app: &str, node: &str| {
            format!(
                r#"{{"apiVersion":"a.b/v1","kind":"C","metadata":{{"labels":{app}}},"spec":{node}}}"#
            )
        };
        let some = ["{}", r#"{"app":"a"}"#, r#"{"app":"b"}"#, r#"{"app":""}"#];
        let nodes = ["{}", r#"{"node":"a"}"#, r#"{"node":"b"}"#, r#"{"node":[]}"#];
        let objects = some.into_iter().flat_map(|app| nodes.map(|node| object(app, node)));
        prop::sample::select(values.chain(objects).map(Bytes::from).collect::<Vec<_>>())
    }

    fn event() -> impl Strategy<Value = Event> {
        let version = prop::sample::select(vec![0, 1, 2]);
        (key(), version, value(), prop::option::of(value())).prop_map(
            |(key, version, value, prev)| {
                let kv = |version, value| KeyValue {
                    key: key.clone(),
                    version,
                    value,
                    ..Default::default()
                };
                let prev = prev.filter(|_| version != 1).map(|value| kv(1, value));
                Event { kv: kv(version, if version == 0 { Bytes::new() } else { value }), prev }
            },
        )
    }

    proptest! {
        #[test]
        fn the_index_finds_those_whose_range_holds_the_key_and_whose_selector_may_want_it(
            watchers in prop::collection::vec((range(), selector(), any::<bool>()), 0..20),
            event in event(),
        ) {
            let mut index = Index::default();
            for (watcher, (range, selector, _)) in watchers.iter().enumerate() {
                index.insert(range, selector.as_ref(), watcher as u64);
            }
            for (watcher, (range, selector, gone)) in watchers.iter().enumerate() {
                if *gone {
                    index.remove(range, selector.as_ref(), watcher as u64);
                }
            }
            let mut found = Vec::new();
            index.watching(&event, &mut |watcher| found.push(watcher));
            found.sort_unstable();
            if !index.finds_twice() {
                let mut once = found.clone();
                once.dedup();
                prop_assert_eq!(&once, &found);
            }
            found.dedup();
            for (watcher, (range, selector, gone)) in watchers.iter().enumerate() {
                let is_found = found.contains(&(watcher as u64));
                let is_in_range = !gone && range.contains(&event.kv.key);
                let is_wanted = selector.as_ref().is_none_or(|it| concerns(it, &event));
                prop_assert!(is_found || !(is_in_range && is_wanted), "{watcher} hears nothing");
                prop_assert!(!is_found || is_in_range, "{watcher} hears of another's");
                // By what one attribute says, that is all that can be known.
                let is_by_one = required_by(selector.as_ref()).is_some()
                    && selector.as_ref().is_some_and(|it| it.requirements().len() == 1)
                    && (range.as_single().is_some() || is_prefix(range));
                prop_assert!(!is_by_one || !is_found || is_wanted, "{watcher} is asked in vain");
            }
            for (watcher, (range, selector, gone)) in watchers.iter().enumerate() {
                if !gone {
                    index.remove(range, selector.as_ref(), watcher as u64);
                }
            }
            prop_assert!(index.keys.is_empty() && index.prefixes.is_empty() && index.selecting == 0);
        }
    }
}

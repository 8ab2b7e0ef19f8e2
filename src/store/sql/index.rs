//! An index of labels and fields of live objects, for reads with selectors.
//!
//! ```text
//!   a read with a selector looks through many rows ──> Task::Index(prefix, attribute)
//!        │                                                   │
//!        │ later                                  a record; steps between batches, each a transaction
//!        v                                                   v
//!   pleach_term  (attribute, hash of its value, name)  <── each write of the prefix, in its transaction
//! ```
//!
//! A row for each live key of a kind that has an attribute: the key can be found by the attribute's value. What can't
//! be read of an object stands under a hash of its own, and is found always. The rows are those of the present; a
//! read as of a revision takes the keys that have changed since along, and looks at each object as it was then, so
//! that an index only says where to look.
//!
//! Who sends no selector and demands no index pays nothing: there is none before one was needed.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use super::{
    Indexing,
    session::{Arg, Columns, DbError, DbResult, Session, rows as fetch_rows},
    statements::Statements,
};
use crate::{
    model::{Commit, Event, Key, KeyRange},
    select::{Attribute, Attributes, Part, Reading, Selector},
};

/// The schema of a store without indexes.
pub(super) const SCHEMA_VERSION: i64 = 2;

/// The schema of one that has had some: a version that does not know of them would not keep them.
pub(super) const SCHEMA_INDEXED: i64 = 3;

/// The record that says which indexes there are: behind all that a node keeps, and found by no prefix.
pub(super) const RECORD: &str = "\u{7f}index";

/// How objects are read for it. Where a later version reads some otherwise, what is there is made anew.
const READING: u32 = 1;

/// The attributes of a store. Each costs each write of its prefix.
const ATTRIBUTES_MAX: usize = 32;

/// The values that one read may look for; where a selector takes more, the rows are read in order.
const VALUES_MAX: usize = 16;

/// The longest key that fits beside the rest of a row, in every database. No object of Kubernetes has one as long.
const KEY_BYTES_MAX: usize = 2_048;

/// Under this stand the objects of which the attribute can't be read. No hash is negative.
const UNKNOWN: i64 = -1;

/// All indexes of a store.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    scopes: Vec<Scope>,
    /// The greatest number that was given. Each is given once: rows of a former index are not taken for another's.
    last_id: i64,
    /// Those of indexes that there are no more, and whose rows may still be there.
    dropped: Vec<i64>,
    /// The prefixes below which a key is too long.
    refused: Vec<Key>,
    /// Whether the table of the rows is there. Not in the record.
    has_table: bool,
}

/// The indexes of the keys with one prefix.
#[derive(Clone, Debug)]
struct Scope {
    range: KeyRange,
    attributes: Attributes,
    /// In the order of the attributes.
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    id: i64,
    /// How far it is built; `None` once it is.
    cursor: Option<Key>,
}

/// Where an index has the keys that a selector may match.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    pub attribute: i64,
    pub hashes: Vec<i64>,
    /// The range of the read, which has an end here.
    pub start: Key,
    pub end: Key,
}

/// The next piece of a prefix that is to be put in an index.
#[derive(Debug)]
pub(super) struct Step {
    pub range: KeyRange,
    attribute: Attributes,
    id: i64,
}

/// Rows of the index: an attribute and a hash, with the keys that have it.
pub(super) type Terms = BTreeMap<(i64, i64), Vec<Key>>;

/// What a batch changes in the index.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub gone: Terms,
    pub new: Terms,
}

/// A key that a batch changes: under what its attributes stand before all of it, and after.
struct Touched {
    before: Vec<Option<i64>>,
    after: Vec<Option<i64>>,
}

/// The record, as it is kept.
#[derive(Clone, PartialEq, Eq, Message)]
struct Kept {
    #[prost(uint32, tag = "1")]
    reading: u32,
    #[prost(int64, tag = "2")]
    last_id: i64,
    #[prost(message, repeated, tag = "3")]
    attributes: Vec<KeptAttribute>,
    #[prost(int64, repeated, tag = "4")]
    dropped: Vec<i64>,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    refused: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct KeptAttribute {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(bytes = "bytes", tag = "2")]
    prefix: Bytes,
    #[prost(bool, tag = "3")]
    is_label: bool,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(bool, tag = "5")]
    is_built: bool,
    #[prost(bytes = "bytes", tag = "6")]
    cursor: Bytes,
}

// === impl Index ===

impl Index {
    /// What the record says. What is of another reading is dropped.
    pub(super) fn decode(record: &[u8]) -> Result<Self, prost::DecodeError> {
        let kept = Kept::decode(record)?;
        let Kept { last_id, dropped, refused, .. } = kept;
        let mut index = Self { last_id, dropped, refused, ..Self::default() };
        if kept.reading != READING {
            index.dropped.extend(kept.attributes.iter().map(|attribute| attribute.id));
            return Ok(index);
        }
        for KeptAttribute { id, prefix, is_label, name, is_built, cursor } in kept.attributes {
            let part = if is_label { Part::Labels } else { Part::Fields };
            let cursor = (!is_built).then_some(cursor);
            index.insert(prefix, Attribute { part, name }, Entry { id, cursor });
        }
        Ok(index)
    }

    pub(super) fn encode(&self) -> Bytes {
        let of_scope = |scope: &Scope| {
            let prefix = scope.range.start.clone();
            let entries = scope.attributes.attributes().iter().zip(scope.entries.clone());
            let entries = entries.map(move |(attribute, entry)| KeptAttribute {
                id: entry.id,
                prefix: prefix.clone(),
                is_label: attribute.part == Part::Labels,
                name: attribute.name.clone(),
                is_built: entry.cursor.is_none(),
                cursor: entry.cursor.unwrap_or_default(),
            });
            entries.collect::<Vec<_>>()
        };
        let attributes = self.scopes.iter().flat_map(of_scope).collect();
        let (last_id, dropped, refused) =
            (self.last_id, self.dropped.clone(), self.refused.clone());
        let kept = Kept { reading: READING, last_id, attributes, dropped, refused };
        kept.encode_to_vec().into()
    }

    fn insert(&mut self, prefix: Key, attribute: Attribute, entry: Entry) {
        let at = self.scopes.iter().position(|scope| scope.range.start == prefix);
        let at = at.unwrap_or_else(|| {
            let range = KeyRange::prefix(prefix);
            let attributes = Attributes::new(Vec::new());
            self.scopes.push(Scope { range, attributes, entries: Vec::new() });
            self.scopes.len() - 1
        });
        let scope = &mut self.scopes[at];
        let more = scope.attributes.attributes().iter().cloned().chain([attribute]);
        scope.attributes = Attributes::new(more.collect());
        scope.entries.push(entry);
    }

    fn entry(&self, prefix: &Key, attribute: &Attribute) -> Option<&Entry> {
        let scope = self.scopes.iter().find(|scope| scope.range.start == *prefix)?;
        let at = scope.attributes.attributes().iter().position(|it| it == attribute)?;
        scope.entries.get(at)
    }

    /// Whether the attribute of this number is still kept.
    pub(super) fn has(&self, id: i64) -> bool {
        self.scopes.iter().flat_map(|scope| &scope.entries).any(|entry| entry.id == id)
    }

    /// Why an index that is demanded can't be made; `None` where it can, or is there.
    pub(super) fn obstacle(&self, prefix: &Key, attribute: &Attribute) -> Option<&'static str> {
        match self.entry(prefix, attribute) {
            Some(_) => None,
            None if self.refused.contains(prefix) => {
                Some("a key of its kind has more than 2,048 bytes")
            }
            None => (!self.has_room()).then_some("the store has 32 already"),
        }
    }

    fn has_room(&self) -> bool {
        self.scopes.iter().map(|scope| scope.entries.len()).sum::<usize>() < ATTRIBUTES_MAX
    }

    /// Whether an attribute of the keys with a prefix may be begun: it is not there, and there is room.
    pub(super) fn wants(&self, prefix: &Key, attribute: &Attribute) -> bool {
        self.entry(prefix, attribute).is_none() && self.obstacle(prefix, attribute).is_none()
    }

    /// Which attribute of the keys with a prefix a selector is in need of: the first that can be looked up.
    pub(super) fn attribute_for(&self, prefix: &Key, selector: &Selector) -> Option<Attribute> {
        let mut required = selector.requirements().into_iter();
        let required = required.find(|it| it.values.len() <= VALUES_MAX)?;
        self.wants(prefix, &required.attribute).then_some(required.attribute)
    }

    pub(super) fn has_table(&self) -> bool {
        self.has_table
    }

    /// With the table made.
    pub(super) fn with_table(self) -> Self {
        Self { has_table: true, ..self }
    }

    /// Whether some is not built yet, or not given up yet.
    pub(super) fn is_due(&self) -> bool {
        let mut entries = self.scopes.iter().flat_map(|scope| &scope.entries);
        !self.dropped.is_empty() || entries.any(|entry| entry.cursor.is_some())
    }

    /// The number of an index that there is no more, whose rows are to go.
    pub(super) fn dropped(&self) -> Option<i64> {
        self.dropped.first().copied()
    }

    /// Once the rows of that are gone.
    pub(super) fn without_dropped(&self, id: i64) -> Self {
        let mut index = self.clone();
        index.dropped.retain(|dropped| *dropped != id);
        index
    }

    /// With one attribute more of the keys of a prefix, yet to be built; `None` where it is there or has no room.
    pub(super) fn with(&self, prefix: &Key, attribute: &Attribute) -> Option<Self> {
        if !self.wants(prefix, attribute) {
            return None;
        }
        let mut index = self.clone();
        index.last_id += 1;
        let entry = Entry { id: index.last_id, cursor: Some(prefix.clone()) };
        index.insert(prefix.clone(), attribute.clone(), entry);
        Some(index)
    }

    /// Without the scopes in which a key is too long, and which are not to be begun again.
    fn refusing(&self, is_gone: impl Fn(&Scope) -> bool) -> Self {
        let mut index = self.without_scopes(&is_gone);
        let gone = self.scopes.iter().filter(|scope| is_gone(scope));
        index.refused.extend(gone.map(|scope| scope.range.start.clone()));
        index
    }

    /// Without the scopes that `is_gone` names.
    fn without_scopes(&self, is_gone: impl Fn(&Scope) -> bool) -> Self {
        let mut index = self.clone();
        let gone = self.scopes.iter().filter(|scope| is_gone(scope));
        index.dropped.extend(gone.flat_map(|scope| &scope.entries).map(|entry| entry.id));
        index.scopes.retain(|scope| !is_gone(scope));
        index
    }

    /// Without the scope of a step, in which a key is too long.
    pub(super) fn without(&self, step: &Step) -> Self {
        self.refusing(|scope| scope.entries.iter().any(|entry| entry.id == step.id))
    }

    /// Where it has the keys of a range that a selector may match; `None` where it has none of use.
    pub(super) fn lookup(&self, range: &KeyRange, selector: &Selector) -> Option<Lookup> {
        let requirements = selector.requirements();
        // One kind's keys may lie below the prefix of several.
        let scopes = self.scopes.iter().filter(|scope| scope.range.covers(range));
        let mut each = scopes.flat_map(|scope| requirements.iter().map(move |it| (scope, it)));
        each.find_map(|(scope, required)| {
            let known = scope.attributes.attributes();
            let at = known.iter().position(|it| *it == required.attribute)?;
            let entry = &scope.entries[at];
            if entry.cursor.is_some() || required.values.len() > VALUES_MAX {
                return None;
            }
            let hashes = required.values.iter().map(|value| hash(value)).chain([UNKNOWN]);
            let mut hashes: Vec<i64> = hashes.collect();
            hashes.sort_unstable();
            hashes.dedup();
            let end = range.end.clone()?;
            Some(Lookup { attribute: entry.id, hashes, start: range.start.clone(), end })
        })
    }

    /// What is to be built next.
    pub(super) fn step(&self) -> Option<Step> {
        self.scopes.iter().find_map(|scope| {
            let at = scope.entries.iter().position(|entry| entry.cursor.is_some())?;
            let (entry, attribute) = (&scope.entries[at], &scope.attributes.attributes()[at]);
            let range = KeyRange { start: entry.cursor.clone()?, end: scope.range.end.clone() };
            let attribute = Attributes::new(vec![attribute.clone()]);
            Some(Step { range, attribute, id: entry.id })
        })
    }

    /// After a step: it goes on at `next`, or is at its end.
    pub(super) fn advanced(&self, step: &Step, next: Option<Key>) -> Self {
        let mut index = self.clone();
        let mut entries = index.scopes.iter_mut().flat_map(|scope| &mut scope.entries);
        if let Some(entry) = entries.find(|entry| entry.id == step.id) {
            entry.cursor = next;
        }
        index
    }

    /// Without the scopes in which a key of some commits is too long for it; `None` where there is none.
    pub(super) fn without_too_long(&self, commits: &[Arc<Commit>]) -> Option<Self> {
        let keys = || commits.iter().flat_map(|commit| &commit.events).map(|event| &event.kv.key);
        let has_too_long = |scope: &Scope| {
            keys().any(|key| key.len() > KEY_BYTES_MAX && scope.range.contains(key))
        };
        self.scopes.iter().any(has_too_long).then(|| self.refusing(has_too_long))
    }

    /// What commits change in it.
    pub(super) fn changes(&self, commits: &[Arc<Commit>]) -> Changes {
        let mut changes = Changes::default();
        let events = || commits.iter().flat_map(|commit| &commit.events);
        for scope in &self.scopes {
            scope
                .change(events().filter(|event| scope.range.contains(&event.kv.key)), &mut changes);
        }
        changes
    }
}

/// The indexes of a store that is opened. What was given up is taken away later, in steps, or with the table
/// where there are to be none.
///
/// # Errors
/// Those of the database, and where the record can't be read.
pub(super) async fn open(
    session: &mut impl Session,
    statements: &Statements,
    indexing: &Indexing,
) -> DbResult<Index> {
    let index = load(session, statements).await?;
    if *indexing != Indexing::Never || (index.last_id == 0 && !index.has_table) {
        return Ok(index);
    }
    session.begin().await?;
    session.execute_many(&statements.drop_record, &[vec![Arg::Text(RECORD)]]).await?;
    // So that a version that knows of no index may have it again.
    let version = [vec![Arg::Text("schema"), Arg::Int(SCHEMA_VERSION)]];
    session.execute_many(&statements.put_meta, &version).await?;
    session.commit().await?;
    session.fetch(&statements.drop_terms, &[], &mut |_| ControlFlow::Continue(())).await?;
    Ok(Index::default())
}

/// The indexes as the store has them now.
///
/// # Errors
/// Those of the database, and where the record can't be read.
pub(super) async fn load(session: &mut impl Session, statements: &Statements) -> DbResult<Index> {
    let value = |columns: &dyn Columns| columns.bytes(1);
    let found = fetch_rows(session, &statements.record, &[Arg::Text(RECORD)], value).await?;
    let Some(record) = found.first() else { return Ok(Index::default()) };
    let index = Index::decode(record).map_err(|error| {
        DbError::Failed(format!(
            "its record of indexes can't be read: {error}; restore the store from a backup, or run the version of \
             Pleach that wrote it"
        ))
    })?;
    let any = [Arg::Int(0), Arg::Int(1)];
    match fetch_rows(session, &statements.terms_of, &any, |_| ()).await {
        Ok(_) => Ok(index.with_table()),
        // Restored without its table: nothing is left of them, and numbers go on.
        Err(DbError::Failed(_)) => Ok(Index { last_id: index.last_id, ..Index::default() }),
        Err(error) => Err(error),
    }
}

// === impl Scope ===

impl Scope {
    /// Adds what events of its keys change.
    fn change<'e>(&self, events: impl Iterator<Item = &'e Event>, changes: &mut Changes) {
        let mut touched: HashMap<&Key, Touched> = HashMap::new();
        for event in events {
            let key = &event.kv.key;
            let hashes = |value: Option<&Bytes>| match value {
                Some(value) => self.hashes(value),
                None => vec![None; self.entries.len()],
            };
            let after = hashes((!event.is_delete()).then_some(&event.kv.value));
            let touched = touched.entry(key).or_insert_with(|| {
                let before = hashes(event.prev.as_ref().map(|prev| &prev.value));
                Touched { before, after: Vec::new() }
            });
            touched.after = after;
        }
        for (key, Touched { before, after }) in touched {
            let hashes = before.into_iter().zip(after);
            for (entry, (before, after)) in self.entries.iter().zip(hashes) {
                if before == after {
                    continue;
                }
                let add = |terms: &mut Terms, hash: Option<i64>| {
                    if let Some(hash) = hash {
                        terms.entry((entry.id, hash)).or_default().push(key.clone());
                    }
                };
                add(&mut changes.gone, before);
                add(&mut changes.new, after);
            }
        }
    }

    /// Under what each attribute of a value stands; `None` where it does not.
    fn hashes(&self, value: &[u8]) -> Vec<Option<i64>> {
        self.attributes.read(value).iter().map(hash_of).collect()
    }
}

// === impl Step ===

impl Step {
    /// The rows for some keys with their values; `None` where a key is too long.
    pub(super) fn terms<'k>(
        &self,
        kvs: impl Iterator<Item = (&'k Key, &'k Bytes)>,
    ) -> Option<Terms> {
        let mut terms = Terms::new();
        for (key, value) in kvs {
            if key.len() > KEY_BYTES_MAX {
                return None;
            }
            if let Some(hash) = self.attribute.read(value).first().and_then(hash_of) {
                terms.entry((self.id, hash)).or_default().push(key.clone());
            }
        }
        Some(terms)
    }
}

/// Terms as rows of arguments, by attribute and hash: what is deleted at once differs in the key alone.
pub(super) fn rows(terms: &Terms) -> impl Iterator<Item = Vec<Vec<Arg<'_>>>> {
    terms.iter().map(|((attribute, hash), keys)| {
        let (attribute, hash) = (Arg::Int(*attribute), Arg::Int(*hash));
        keys.iter().map(|key| vec![attribute, hash, Arg::Bytes(key)]).collect()
    })
}

fn hash_of(reading: &Reading<'_>) -> Option<i64> {
    match reading {
        Reading::Value(value) => Some(hash(value)),
        Reading::Absent => None,
        Reading::Unknown => Some(UNKNOWN),
    }
}

/// Where two values share one, an object is looked at in vain.
fn hash(value: &str) -> i64 {
    crc32fast::hash(value.as_bytes()).into()
}

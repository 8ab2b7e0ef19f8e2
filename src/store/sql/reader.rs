//! Reads as of a revision. No transaction is held: rows that changed since are followed back along
//! their chains, so statements of one read need not see the same state of the tables.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use bytes::Bytes;

use super::{
    index::Lookup,
    session::{Arg, Columns, DbResult, Session, Sql, rows},
    statements::Statements,
};
use crate::{
    model::{Commit, Event, Key, KeyRange, KeyValue, Revision, key::successor},
    store::{LogBatch, PAGE_BYTES_MAX, Page, Query, led::page_sizer::PageSizer},
};

/// The rows of the log that a tail reads at once.
const LOG_ROWS_MAX: i64 = 1_000;

/// The keys that an index is asked for at once, for each value of its attribute: a page's, between these.
const LOOKUP_ROWS_MIN: usize = 256;
const LOOKUP_ROWS_MAX: usize = 1_000;

/// Where more has changed since a revision, an index is of no use for it.
const CHANGED_ROWS_MAX: usize = 2_000;

/// The rows that are looked at to see how much of a range a selector matches.
const SAMPLE_ROWS: usize = 64;

/// Where it matches one row in so many, they are read faster in order than one by one.
const SPARSE_FROM: usize = 4;

/// A key's newest row.
#[derive(Clone, Debug)]
pub(super) struct Live {
    /// Where it stands in the log.
    pub seq: i64,
    /// The key; version 0 where it is deleted.
    pub kv: KeyValue,
}

fn int(number: usize) -> Arg<'static> {
    Arg::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn live_key(columns: &dyn Columns) -> Live {
    let kv = KeyValue {
        key: columns.bytes(0),
        create_revision: columns.int(2),
        mod_revision: columns.int(3),
        version: columns.int(4),
        lease: columns.int(5),
        value: Bytes::new(),
    };
    Live { seq: columns.int(1), kv }
}

fn live_row(columns: &dyn Columns) -> Live {
    let mut live = live_key(columns);
    live.kv.value = columns.bytes(6);
    live
}

/// A row of the log: `seq, revision, key, create_revision, version, lease, value`.
fn log_row(columns: &dyn Columns) -> KeyValue {
    KeyValue {
        key: columns.bytes(2),
        create_revision: columns.int(3),
        mod_revision: columns.int(1),
        version: columns.int(4),
        lease: columns.int(5),
        value: columns.bytes(6),
    }
}

/// The newest rows of some keys, deletions included, in no order.
pub(super) async fn newest_of(
    session: &mut impl Session,
    statements: &Statements,
    keys: &[Key],
) -> DbResult<Vec<Live>> {
    let keys: Vec<_> = keys.iter().map(|key| Arg::Bytes(key)).collect();
    let mut found = Vec::new();
    let mut each = |columns: &dyn Columns| {
        found.push(live_row(columns));
        ControlFlow::Continue(())
    };
    session.fetch_each(&statements.each_key, &keys, &mut each).await?;
    Ok(found)
}

/// The live rows of a range as the tables have them now.
pub(super) async fn newest_in(
    session: &mut impl Session,
    statements: &Statements,
    range: &KeyRange,
) -> DbResult<Vec<Live>> {
    // No row is newer than this, so none that is deleted comes along.
    let (never, all) = (Arg::Int(i64::MAX), Arg::Int(i64::MAX));
    match &range.end {
        Some(end) => {
            let args = [Arg::Bytes(&range.start), Arg::Bytes(end), never, all];
            rows(session, &statements.page, &args, live_row).await
        }
        None => {
            let args = [Arg::Bytes(&range.start), never, all];
            rows(session, &statements.page_open, &args, live_row).await
        }
    }
}

/// The live rows of a lease as the tables have them now.
pub(super) async fn leased(
    session: &mut impl Session,
    statements: &Statements,
    lease: i64,
) -> DbResult<Vec<Live>> {
    rows(session, &statements.leased, &[Arg::Int(lease)], live_row).await
}

async fn leased_in(
    session: &mut impl Session,
    statements: &Statements,
    lease: i64,
    range: &KeyRange,
) -> DbResult<Vec<Live>> {
    let mut found = leased(session, statements, lease).await?;
    found.retain(|live| range.contains(&live.kv.key));
    Ok(found)
}

/// What a page of a read is asked for with; keys that changed since are asked for one by one.
pub(super) fn statement<'s>(statements: &'s Statements, read: &Query) -> &'s Sql {
    if read.lease != 0 {
        return &statements.leased;
    }
    let is_single = read.range.as_single().is_some();
    match (is_single, read.range.end.is_some(), read.keys_only) {
        (true, _, false) => &statements.key,
        (true, _, true) => &statements.key_only,
        (false, true, false) => &statements.page,
        (false, true, true) => &statements.page_keys,
        (false, false, false) => &statements.page_open,
        (false, false, true) => &statements.page_keys_open,
    }
}

/// One page of a read.
pub(super) async fn page(
    session: &mut impl Session,
    statements: &Statements,
    page_sizer: &PageSizer,
    read: &Query,
) -> DbResult<Page> {
    if read.range.is_empty() {
        return Ok(Page { revision: read.revision, ..Page::default() });
    }
    let rows_max = read.rows_max();
    let (mut found, mut next) = match read.lease {
        0 => scan(session, statements, page_sizer, read, rows_max).await?,
        lease => (leased_in(session, statements, lease, &read.range).await?, None),
    };
    if found.len() > rows_max {
        found.truncate(rows_max);
        next = found.last().map(|live| successor(&live.kv.key));
    }
    let mut kvs = Vec::with_capacity(found.len());
    for live in found {
        if live.kv.mod_revision <= read.revision {
            kvs.push(live.kv);
        } else {
            kvs.extend(back(session, statements, live.seq, read.revision).await?);
        }
    }
    if read.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    if read.lease != 0 {
        kvs.retain(|kv| kv.lease == read.lease);
    }
    Ok(Page { kvs, next, revision: read.revision })
}

/// A page of what the query's selector may match, of the keys that an index has for it and those that have changed
/// since its revision, and how many these are. `None` where all rows had better be looked at: too many have changed,
/// or it matches many of them here.
pub(super) async fn selected_page(
    session: &mut impl Session,
    statements: &Statements,
    page_sizer: &PageSizer,
    query: &Query,
    lookup: &Lookup,
) -> DbResult<Option<(Page, usize)>> {
    // In this order: what the index does not have any more has changed since, and is found behind it.
    let at_once = (query.rows_max() + 1).clamp(LOOKUP_ROWS_MIN, LOOKUP_ROWS_MAX);
    let (mut keys, mut last) = (BTreeSet::new(), None);
    for hash in &lookup.hashes {
        let (attribute, hash) = (Arg::Int(lookup.attribute), Arg::Int(*hash));
        let (start, end) = (Arg::Bytes(&lookup.start), Arg::Bytes(&lookup.end));
        let args = [attribute, hash, start, end, int(at_once)];
        let found = rows(session, &statements.terms, &args, |columns| columns.bytes(0)).await?;
        if found.len() == at_once {
            // What stands behind the last may stand there for another hash, too.
            let cut = found.last().cloned();
            last = last.into_iter().chain(cut).min();
        }
        keys.extend(found);
    }
    if last.is_some() && matches_many(session, statements, page_sizer, query).await? {
        return Ok(None);
    }
    let args = [Arg::Int(query.revision), int(CHANGED_ROWS_MAX)];
    let changed = rows(session, &statements.changed, &args, |columns| columns.bytes(0)).await?;
    if changed.len() == CHANGED_ROWS_MAX {
        return Ok(None);
    }
    keys.extend(changed.into_iter().filter(|key| query.range.contains(key)));
    if let Some(last) = &last {
        keys.retain(|key| key <= last);
    }
    let keys: Vec<Key> = keys.into_iter().collect();
    let mut page = Page { next: last.map(|last| successor(&last)), ..Page::default() };
    page.revision = query.revision;
    let (mut rows_read, mut bytes_read, mut at) = (0, 0, 0);
    while at < keys.len() {
        if page.kvs.len() == query.rows_max() || bytes_read >= PAGE_BYTES_MAX {
            page.next = Some(keys[at].clone());
            break;
        }
        // Few at once where values are large.
        let some = &keys[at..keys.len().min(at + page_sizer.rows().min(LOOKUP_ROWS_MIN))];
        let mut found = newest_of(session, statements, some).await?;
        at += some.len();
        rows_read += found.len();
        bytes_read += found.iter().map(|live| live.kv.size()).sum::<usize>();
        found.sort_unstable_by(|a, b| a.kv.key.cmp(&b.kv.key));
        for Live { seq, kv } in found {
            let kv = match kv.mod_revision <= query.revision {
                true => Some(kv).filter(|kv| !kv.is_tombstone()),
                false => back(session, statements, seq, query.revision).await?,
            };
            let Some(mut kv) = kv.filter(|kv| query.wants(kv)) else { continue };
            if page.kvs.len() == query.rows_max() {
                page.next = Some(kv.key);
                return Ok(Some((page, rows_read)));
            }
            if query.keys_only {
                kv.value = Bytes::new();
            }
            page.kvs.push(kv);
        }
    }
    Ok(Some((page, rows_read)))
}

/// Whether a selector may match so many of the next rows of a range that looking at all is the faster way.
async fn matches_many(
    session: &mut impl Session,
    statements: &Statements,
    page_sizer: &PageSizer,
    query: &Query,
) -> DbResult<bool> {
    let rows_max = page_sizer.rows().min(SAMPLE_ROWS);
    let (sample, _) = first_in(session, statements, &query.range, rows_max).await?;
    let matching = sample.iter().filter(|live| query.wants(&live.kv)).count();
    Ok(matching * SPARSE_FROM >= sample.len())
}

/// Some first live rows of a range as the tables have them now, as many as a page has bytes for, and where the rest
/// begins.
pub(super) async fn first_in(
    session: &mut impl Session,
    statements: &Statements,
    range: &KeyRange,
    rows_max: usize,
) -> DbResult<(Vec<Live>, Option<Key>)> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let mut each = |columns: &dyn Columns| {
        let live = live_row(columns);
        bytes += live.kv.size();
        found.push(live);
        match bytes < PAGE_BYTES_MAX {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    // No row is newer than this, so none that is deleted comes along.
    let (never, limit) = (Arg::Int(i64::MAX), int(rows_max));
    match &range.end {
        Some(end) => {
            let args = [Arg::Bytes(&range.start), Arg::Bytes(end), never, limit];
            session.fetch(&statements.page, &args, &mut each).await?;
        }
        None => {
            let args = [Arg::Bytes(&range.start), never, limit];
            session.fetch(&statements.page_open, &args, &mut each).await?;
        }
    }
    let is_cut = found.len() == rows_max || bytes >= PAGE_BYTES_MAX;
    let next = found.last().filter(|_| is_cut).map(|live: &Live| successor(&live.kv.key));
    Ok((found, next))
}

/// Up to one row more than a page holds, or fewer with where to go on, where they are large.
async fn scan(
    session: &mut impl Session,
    statements: &Statements,
    page_sizer: &PageSizer,
    read: &Query,
    rows_max: usize,
) -> DbResult<(Vec<Live>, Option<Bytes>)> {
    let mut found = Vec::new();
    let sql = statement(statements, read);
    if let Some(key) = read.range.as_single() {
        let decode = if read.keys_only { live_key } else { live_row };
        found = rows(session, sql, &[Arg::Bytes(key)], decode).await?;
        found.retain(|live| !live.kv.is_tombstone() || live.kv.mod_revision > read.revision);
        return Ok((found, None));
    }
    let (mut bytes, mut next) = (0, None);
    let decode = if read.keys_only { live_key } else { live_row };
    let mut each = |columns: &dyn Columns| {
        let live = decode(columns);
        bytes += live.kv.size();
        found.push(live);
        if bytes < PAGE_BYTES_MAX {
            return ControlFlow::Continue(());
        }
        next = found.last().map(|live| successor(&live.kv.key));
        ControlFlow::Break(())
    };
    let at_once = if read.keys_only { usize::MAX } else { page_sizer.rows() };
    let at_once = at_once.min(rows_max + 1);
    let (revision, limit) = (Arg::Int(read.revision), int(at_once));
    match &read.range.end {
        Some(end) => {
            let args = [Arg::Bytes(&read.range.start), Arg::Bytes(end), revision, limit];
            session.fetch(sql, &args, &mut each).await?;
        }
        None => {
            let args = [Arg::Bytes(&read.range.start), revision, limit];
            session.fetch(sql, &args, &mut each).await?;
        }
    }
    if !read.keys_only {
        page_sizer.learn(found.len(), bytes);
    }
    if next.is_none() && found.len() == at_once && at_once <= rows_max {
        next = found.last().map(|live| successor(&live.kv.key));
    }
    Ok((found, next))
}

/// What a key was at a revision, from a row that is newer.
async fn back(
    session: &mut impl Session,
    statements: &Statements,
    seq: i64,
    revision: Revision,
) -> DbResult<Option<KeyValue>> {
    let args = [Arg::Int(seq), Arg::Int(revision), Arg::Int(revision)];
    let found = rows(session, &statements.back, &args, log_row).await?.pop();
    Ok(found.filter(|kv| !kv.is_tombstone()))
}

/// What a range is counted with.
pub(super) fn count_statement<'s>(statements: &'s Statements, range: &KeyRange) -> &'s Sql {
    if range.end.is_some() { &statements.count } else { &statements.count_open }
}

/// How many keys a range held at a revision.
pub(super) async fn count(
    session: &mut impl Session,
    statements: &Statements,
    range: &KeyRange,
    revision: Revision,
) -> DbResult<u64> {
    if range.is_empty() {
        return Ok(0);
    }
    let at = Arg::Int(revision);
    let both = |columns: &dyn Columns| (columns.int(0), columns.int(1));
    let sql = count_statement(statements, range);
    let counted = match &range.end {
        Some(end) => {
            let args = [at, at, Arg::Bytes(&range.start), Arg::Bytes(end)];
            rows(session, sql, &args, both).await?
        }
        None => {
            let args = [at, at, Arg::Bytes(&range.start)];
            rows(session, sql, &args, both).await?
        }
    };
    let (mut count, newer) = counted.first().copied().unwrap_or_default();
    if newer > 0 {
        // A key that was settled a moment ago may be among the newer ones by now, so both must come
        // from one statement.
        count = 0;
        for (seq, settled) in settled_and_newer(session, statements, range, revision).await? {
            let was_there = seq != 0 && back(session, statements, seq, revision).await?.is_some();
            count += settled + i64::from(was_there);
        }
    }
    Ok(u64::try_from(count).unwrap_or(0))
}

/// One row with how many keys have not changed since, and one for each that has, as of one moment.
async fn settled_and_newer(
    session: &mut impl Session,
    statements: &Statements,
    range: &KeyRange,
    revision: Revision,
) -> DbResult<Vec<(i64, i64)>> {
    let (start, at) = (Arg::Bytes(&range.start), Arg::Int(revision));
    let both = |columns: &dyn Columns| (columns.int(0), columns.int(1));
    match &range.end {
        Some(end) => {
            let end = Arg::Bytes(end);
            rows(session, &statements.newer, &[at, start, end, start, end, at], both).await
        }
        None => rows(session, &statements.newer_open, &[at, start, start, at], both).await,
    }
}

/// The commits of `after < revision <= through`, as many as a page holds.
pub(super) async fn log(
    session: &mut impl Session,
    statements: &Statements,
    after: Revision,
    through: Revision,
) -> DbResult<LogBatch> {
    let mut limit = LOG_ROWS_MAX;
    loop {
        let mut events = Vec::new();
        let (mut bytes, mut is_cut) = (0, false);
        let mut each = |columns: &dyn Columns| {
            let event = event(columns);
            bytes += event.size();
            events.push(event);
            if bytes < PAGE_BYTES_MAX * usize::try_from(limit / LOG_ROWS_MAX).unwrap_or(1) {
                return ControlFlow::Continue(());
            }
            is_cut = true;
            ControlFlow::Break(())
        };
        let args = [Arg::Int(after), Arg::Int(through), Arg::Int(limit)];
        session.fetch(&statements.log, &args, &mut each).await?;
        is_cut |= events.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        let mut commits = group(events);
        if is_cut {
            // The last revision may go on behind the cut.
            commits.pop();
        }
        let Some(last) = commits.last().map(|commit| commit.revision) else {
            if is_cut {
                // One revision fills more than the page: it must come whole, whatever its size.
                limit *= 8;
                continue;
            }
            return Ok(LogBatch::new(Vec::new(), through));
        };
        let closed = if is_cut { last } else { through };
        return Ok(LogBatch::new(commits.into_iter().map(Arc::new).collect(), closed));
    }
}

fn event(columns: &dyn Columns) -> Event {
    let kv = log_row(columns);
    let prev = KeyValue {
        key: kv.key.clone(),
        mod_revision: columns.int(7),
        create_revision: columns.int(8),
        version: columns.int(9),
        lease: columns.int(10),
        value: columns.bytes(11),
    };
    // No row before, or a deletion: both read as version 0.
    Event { kv, prev: Some(prev).filter(|prev| !prev.is_tombstone()) }
}

fn group(events: Vec<Event>) -> Vec<Commit> {
    let mut commits: Vec<Commit> = Vec::new();
    for mut event in events {
        let revision = event.kv.mod_revision;
        match commits.last_mut() {
            Some(commit) if commit.revision == revision => {
                // What was before the transaction counts, where it touched a key twice.
                if event.prev_revision() == revision {
                    let mut others = commit.events.iter();
                    let earlier = others.find(|other| other.kv.key == event.kv.key);
                    event.prev = earlier.and_then(|earlier| earlier.prev.clone());
                }
                commit.events.push(event);
            }
            _ => commits.push(Commit { revision, events: vec![event] }),
        }
    }
    commits
}

/// A number that the store keeps by name, if it was ever set.
pub(super) async fn meta(
    session: &mut impl Session,
    statements: &Statements,
    name: &str,
) -> DbResult<Option<i64>> {
    Ok(rows(session, &statements.meta, &[Arg::Text(name)], |columns| columns.int(0)).await?.pop())
}

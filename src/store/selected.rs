//! Selectors where a store has none of its own way to find what they match: its pages, without what they do not.

use bytes::Bytes;

use super::{PAGE_BYTES_MAX, PAGE_ROWS_MAX, Page, Query};
use crate::model::{error::Result, key::successor};

/// The rows that are looked at first, at least: where little matches, more at once from then on.
const ROWS_FIRST: usize = 64;

/// How many times more rows each next look takes.
const GROWTH: usize = 4;

/// The bytes after which a page ends that was looked for, whatever was found by then: whoever asked may have gone.
const SCANNED_BYTES_MAX: usize = 16 * PAGE_BYTES_MAX;

/// A page of what a query's selector may match, and how many rows were looked at for it, and how many of these in
/// vain. `read` reads pages of all that lies in the range. Holds one of these at a time, and what matches.
///
/// # Errors
/// Those of `read`.
pub async fn read<F>(query: &Query, read: impl Fn(Query) -> F) -> Result<(Page, usize, usize)>
where
    F: Future<Output = Result<Page>>,
{
    let rows_max = query.rows_max();
    let mut scan = Scan::new(query, rows_max);
    let mut found = Page { revision: query.revision, ..Page::default() };
    let mut bytes = 0;
    loop {
        let page = scan.next(&read).await?;
        found.revision = page.revision;
        found.next = page.next;
        for mut kv in page.kvs {
            if query.keys_only {
                kv.value = Bytes::new();
            }
            bytes += kv.size();
            found.kvs.push(kv);
        }
        if found.kvs.len() > rows_max {
            found.kvs.truncate(rows_max);
            found.next = found.kvs.last().map(|kv| successor(&kv.key));
        }
        let is_full = found.kvs.len() == rows_max || bytes >= PAGE_BYTES_MAX;
        if found.next.is_none() || is_full || scan.bytes >= SCANNED_BYTES_MAX {
            return Ok((found, scan.rows, scan.in_vain));
        }
    }
}

/// How many keys a query's selector may match, likewise.
///
/// # Errors
/// Those of `read`.
pub async fn count<F>(query: &Query, read: impl Fn(Query) -> F) -> Result<u64>
where
    F: Future<Output = Result<Page>>,
{
    let mut scan = Scan::new(query, PAGE_ROWS_MAX);
    let mut count = 0;
    loop {
        let page = scan.next(&read).await?;
        count += page.kvs.len() as u64;
        if page.next.is_none() {
            return Ok(count);
        }
    }
}

/// A range that is looked through.
struct Scan<'q> {
    query: &'q Query,
    read: Query,
    /// What was looked at.
    rows: usize,
    bytes: usize,
    /// The rows of that which did not match.
    in_vain: usize,
}

// === impl Scan ===

impl<'q> Scan<'q> {
    fn new(query: &'q Query, rows_max: usize) -> Self {
        let limit = rows_max.saturating_add(1).clamp(ROWS_FIRST, PAGE_ROWS_MAX);
        let explanation = query.explanation.clone();
        let read = Query { limit, explanation, ..Query::new(query.range.clone(), query.revision) };
        Self { query, read, rows: 0, bytes: 0, in_vain: 0 }
    }

    /// What may match of the next page, with where the rest begins.
    async fn next<F>(&mut self, read: impl Fn(Query) -> F) -> Result<Page>
    where
        F: Future<Output = Result<Page>>,
    {
        let mut page = read(self.read.clone()).await?;
        self.rows += page.kvs.len();
        self.bytes += page.kvs.iter().map(|kv| kv.size()).sum::<usize>();
        self.in_vain += page.kvs.len();
        page.kvs.retain(|kv| self.query.wants(kv));
        self.in_vain -= page.kvs.len();
        // All pages are of one revision.
        self.read.revision = page.revision;
        self.read.limit = (self.read.limit * GROWTH).min(PAGE_ROWS_MAX);
        if let Some(next) = &page.next {
            self.read.range.start.clone_from(next);
        }
        Ok(page)
    }
}

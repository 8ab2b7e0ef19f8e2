//! Keys: etcd's reads, transactions and compaction, each with the revision of its answer.

use std::{collections::BTreeSet, sync::Arc};

use bytes::{BufMut as _, BytesMut};

use super::{Node, to_the_end};
use crate::{
    model::{
        Key, KeyRange, KeyValue, LeaseId, Revision, StoreError,
        error::Result,
        txn::{DeleteOp, Found, Op, OrderBy, Past, RangeOp, Rows, Txn, Workspace, execute},
    },
    store::{Coverage, PAGE_ROWS_MAX, Query, Store as _, Written, read_all},
};

/// How often a read at the present begins anew when compaction passes it. Each time the present is
/// newer, so more than one in a row is a store that does not do what it promises.
const READS_MAX: usize = 4;

/// How often a write that names leases is sent anew to a child where leases ended meanwhile.
const STALE_LEASES_MAX: usize = 32;

/// The revision of an answer.
pub type Header = Revision;

/// A piece of a streamed range.
#[derive(Debug)]
pub struct Chunk {
    /// Keys in order, behind those of the chunk before.
    pub kvs: Vec<KeyValue>,
    /// In the last chunk: the header, whether the limit cut the range, and how many keys it has.
    pub end: Option<(Header, bool, i64)>,
}

/// A streamed range under way. Holds one page at a time, and nothing in the stores.
#[derive(Debug)]
pub struct Chunks {
    op: RangeOp,
    header: Header,
    read: Query,
    /// Keys that may still be sent; `None` for all.
    left: Option<usize>,
    sent: i64,
    is_done: bool,
}

impl Node {
    /// Reads a range.
    ///
    /// # Errors
    /// `FutureRevision`, `Compacted`, and those of the stores.
    pub async fn range(&self, op: &RangeOp) -> Result<(Header, Found)> {
        for _ in 1..READS_MAX {
            match self.range_once(op).await {
                // The present was compacted away while it was read: read the new present.
                Err(StoreError::Compacted { .. }) if op.revision <= 0 => {}
                found => return found,
            }
        }
        self.range_once(op).await
    }

    /// A read of the present has the revision it was read at as its header, one of the past that of
    /// the present.
    async fn range_once(&self, op: &RangeOp) -> Result<(Header, Found)> {
        if op.revision > 0 {
            let header = self.check_readable(&op.range, op.revision).await?;
            let (_, found) = self.range_at(op, op.revision).await?;
            return Ok((header, found));
        }
        let revision =
            if op.count_only { self.root.read_index(&op.range, Coverage::All).await? } else { 0 };
        let (revision, found) = self.range_at(op, revision).await?;
        let missing = op.range.as_single().filter(|_| found.kvs.is_empty());
        let present = match missing {
            Some(key) => self.read_index_below(key).await?,
            None => revision,
        };
        let (revision, found) = match present > revision {
            true => self.range_at(op, present).await?,
            false => (revision, found),
        };
        if let Some(key) = missing {
            self.hub.push_progress(key, revision);
        }
        Ok((revision, found))
    }

    /// How far all is below a key that does not exist. An API server asks for `/registry/pods`, which is
    /// no key, to hear how new a list of what is below must be; and other nodes may be further there.
    /// It goes on without the stores that its watches go on without.
    async fn read_index_below(&self, key: &Key) -> Result<Revision> {
        if self.root.is_own() {
            return Ok(0);
        }
        let mut prefix = BytesMut::from(&key[..]);
        prefix.put_u8(b'/');
        self.root.read_index(&KeyRange::prefix(prefix.freeze()), Coverage::Attached).await
    }

    async fn range_at(&self, op: &RangeOp, revision: Revision) -> Result<(Revision, Found)> {
        if op.count_only {
            let count = self.root.count(&query_of(op, revision)).await?;
            return Ok((revision, op.shape(Vec::new(), signed(count))));
        }
        let limit = if op.needs_whole_range() { 0 } else { wanted(op.limit) };
        let read = Query {
            // One more tells whether the limit cut anything.
            limit: if limit == 0 { 0 } else { limit + 1 },
            keys_only: op.keys_only && !op.needs_values(),
            ..query_of(op, revision)
        };
        let page = read_all(&*self.root, &read).await?;
        let revision = page.revision;
        let is_whole = page.next.is_none() && (limit == 0 || page.kvs.len() <= limit);
        let count = match is_whole {
            true => page.kvs.len() as u64,
            false => self.count(&query_of(op, revision), page.kvs.get(..limit)).await?,
        };
        Ok((revision, op.shape(page.kvs, signed(count))))
    }

    /// How many keys a query finds of which a page was read.
    async fn count(&self, query: &Query, page: Option<&[KeyValue]>) -> Result<u64> {
        let count = match self.counted.get(query) {
            Some(count) => count,
            None => self.root.count(query).await?,
        };
        if let Some(page) = page {
            self.counted.note(query, count, page);
        }
        Ok(count)
    }

    /// Whether a range can be read as of a revision. Returns the present.
    async fn check_readable(&self, range: &KeyRange, revision: Revision) -> Result<Header> {
        let mut header = self.revision();
        if revision > header {
            // A child may have got there first.
            header = self.root.read_index(range, Coverage::All).await?.max(header);
        }
        if revision > header {
            return Err(StoreError::FutureRevision { current: header });
        }
        let compacted = self.root.narrow(range).compacted();
        if revision < compacted {
            return Err(StoreError::Compacted { compacted });
        }
        Ok(header)
    }

    /// Reads what a query finds, page by page. Returns as of which revision, and how many keys it was; stores note what
    /// they did in the query's explanation.
    ///
    /// # Errors
    /// As [`Node::stream_range`], and those of the stores.
    pub async fn explain(&self, query: &Query) -> Result<(Revision, u64)> {
        let revision = match query.revision {
            0 => self.root.read_index(&query.range, Coverage::All).await?,
            revision => {
                self.check_readable(&query.range, revision).await?;
                revision
            }
        };
        let (mut read, mut keys) = (Query { revision, ..query.clone() }, 0);
        loop {
            let page = self.root.read(&read).await?;
            keys += page.kvs.len() as u64;
            read.limit = read.limit.saturating_sub(page.kvs.len());
            let is_done = query.limit > 0 && read.limit == 0;
            let Some(next) = page.next.filter(|_| !is_done) else { return Ok((revision, keys)) };
            read.range.start = next;
        }
    }

    /// Begins to stream a range in key order.
    ///
    /// # Errors
    /// `FutureRevision` and `Compacted`; those of the stores come with the chunks.
    pub async fn stream_range(&self, op: &RangeOp) -> Result<Chunks> {
        let (header, revision) = if op.revision > 0 {
            (self.check_readable(&op.range, op.revision).await?, op.revision)
        } else {
            let present = self.root.read_index(&op.range, Coverage::All).await?;
            (present, present)
        };
        let limit = wanted(op.limit);
        let read = Query { keys_only: op.keys_only, ..query_of(op, revision) };
        let left = (limit > 0).then_some(limit);
        Ok(Chunks { op: op.clone(), header, read, left, sent: 0, is_done: false })
    }

    /// The next chunk of a streamed range; `None` after the last.
    ///
    /// # Errors
    /// `Compacted` where compaction overtakes the stream, and those of the stores.
    pub async fn next_chunk(&self, chunks: &mut Chunks) -> Result<Option<Chunk>> {
        if chunks.is_done {
            return Ok(None);
        }
        if chunks.op.count_only {
            let count = self.root.count(&chunks.read).await?;
            return Ok(Some(chunks.last(Vec::new(), false, signed(count))));
        }
        if chunks.op.order_by != OrderBy::Key {
            // Not in key order, so not in pieces either.
            let (_, found) = self.range_at(&chunks.op, chunks.read.revision).await?;
            return Ok(Some(chunks.last(found.kvs, found.more, found.count)));
        }
        loop {
            chunks.read.limit = chunks.left.unwrap_or(0).min(PAGE_ROWS_MAX);
            let page = self.root.read(&chunks.read).await?;
            let mut kvs = page.kvs;
            chunks.sent += signed(kvs.len() as u64);
            if let Some(left) = &mut chunks.left {
                *left -= kvs.len().min(*left);
            }
            if chunks.op.keys_only {
                kvs.iter_mut().for_each(|kv| kv.lease = 0);
            }
            let Some(next) = page.next else {
                let count = chunks.sent;
                return Ok(Some(chunks.last(kvs, false, count)));
            };
            chunks.read.range.start = next;
            if chunks.left == Some(0) {
                let rest = self.root.count(&chunks.read).await?;
                let count = chunks.sent + signed(rest);
                return Ok(Some(chunks.last(kvs, rest > 0, count)));
            }
            if !kvs.is_empty() {
                return Ok(Some(Chunk { kvs, end: None }));
            }
        }
    }

    /// Executes a transaction.
    ///
    /// # Errors
    /// Those of [`execute`], of the stores, `NoSpace` where the quota is used up, and `Corrupt`.
    pub async fn txn(&self, txn: Txn) -> Result<Written> {
        if !txn.is_mutating() {
            // As etcd, which takes what holds another for one that changes something.
            let mut ops = txn.success.iter().chain(&txn.failure);
            if ops.any(|op| matches!(op, Op::Txn(_))) {
                self.check_intact()?;
            }
            return self.read_only(&txn).await;
        }
        self.admit(&txn).await?;
        let leases = txn.leases();
        if leases.is_empty() {
            return self.root.apply(txn, Vec::new()).await;
        }
        for _ in 1..STALE_LEASES_MAX {
            match self.apply_under(&leases, txn.clone()).await {
                Err(StoreError::StaleLeases) => {}
                written => return written,
            }
        }
        self.apply_under(&leases, txn).await
    }

    /// Deletes the keys of a range; where they lie in several stores, only if
    /// [`super::Options::splits_deletes`].
    ///
    /// # Errors
    /// As [`Node::txn`], and `UnknownOutcome` where some stores have deleted theirs and one has not.
    pub async fn delete(self: &Arc<Self>, delete: DeleteOp) -> Result<Written> {
        match self.txn(Txn::from(Op::Delete(delete.clone()))).await {
            Err(StoreError::TwoStores { .. }) if self.options.splits_deletes => {
                let node = self.clone();
                // What has begun is not left half done.
                to_the_end(async move { node.root.delete_in_each(&delete, node.revision()).await })
                    .await
            }
            written => written,
        }
    }

    async fn apply_under(&self, leases: &BTreeSet<LeaseId>, txn: Txn) -> Result<Written> {
        let (guards, dead_leases) = self.lessor.enter(leases.clone());
        let written = self.root.apply(txn, dead_leases).await;
        drop(guards);
        written
    }

    /// A transaction that only reads: at one revision, in whatever stores.
    async fn read_only(&self, txn: &Txn) -> Result<Written> {
        let needs = txn.needs();
        let mut before = self.revision();
        let mut ranges = Vec::new();
        txn.for_each_range(&mut |range| ranges.push(range.clone()));
        for range in &ranges {
            before = self.root.read_index(range, Coverage::All).await?.max(before);
        }
        let (mut rows, mut past) = (Rows::new(), Past::new());
        let single = needs.keys.into_iter().map(KeyRange::single);
        for range in single.chain(needs.ranges) {
            let page = read_all(&*self.root, &Query::new(range, before)).await?;
            rows.extend(page.kvs.into_iter().map(|kv| (kv.key.clone(), kv)));
        }
        for (range, revision) in needs.past {
            if self.check_readable(&range, revision).await.is_ok() {
                let page = read_all(&*self.root, &Query::new(range.clone(), revision)).await?;
                past.insert((range, revision), page.kvs);
            }
        }
        let place = Workspace { rows: &mut rows, past: &past, before, dead_leases: &[] };
        let mut allocate = || Ok(before);
        let outcome = execute(txn, place, self.root.compacted(), &mut allocate)?;
        Ok(Written { revision: outcome.revision, result: outcome.result })
    }

    /// Gives up the past below `revision`; with `physical`, returns when its room is free.
    ///
    /// # Errors
    /// `Compacted` and `FutureRevision` as etcd has them, and those of the stores.
    pub async fn compact(self: &Arc<Self>, revision: Revision, physical: bool) -> Result<Header> {
        self.alarms.check_intact()?;
        let compacted = self.root.compacted_everywhere();
        if revision <= compacted {
            return Err(StoreError::Compacted { compacted });
        }
        let current = self.revision();
        if revision > current {
            return Err(StoreError::FutureRevision { current });
        }
        let node = self.clone();
        to_the_end(async move { node.root.compact(revision, physical).await }).await?;
        Ok(current)
    }

    /// A hash of all keys as of a revision (0: now), with the revision that was hashed.
    ///
    /// # Errors
    /// As [`Node::range`]. Costs a read of all keys.
    pub async fn hash(&self, revision: Revision) -> Result<(Header, u32, Revision)> {
        use std::hash::Hasher as _;
        let revision = if revision > 0 {
            self.check_readable(&KeyRange::all(), revision).await?;
            revision
        } else {
            self.root.read_index(&KeyRange::all(), Coverage::All).await?
        };
        let header = self.revision();
        let mut read = Query::new(KeyRange::all(), revision);
        // Fixed keys: the hash of the same data is the same in every process.
        #[allow(deprecated, reason = "the one hasher of the standard library with fixed keys")]
        let mut hasher = std::hash::SipHasher::new();
        loop {
            let page = self.root.read(&read).await?;
            for kv in &page.kvs {
                hasher.write(&kv.key);
                hasher.write(&kv.value);
                let numbers = [kv.create_revision, kv.mod_revision, kv.version, kv.lease];
                numbers.into_iter().for_each(|number| hasher.write_i64(number));
            }
            let Some(next) = page.next else { break };
            read.range.start = next;
        }
        #[allow(clippy::cast_possible_truncation, reason = "the wire has room for 32 bits")]
        let hash = hasher.finish() as u32;
        Ok((header, hash, revision))
    }

    /// The value of one key now.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn get(&self, key: Key) -> Result<Option<KeyValue>> {
        let op = RangeOp::all(KeyRange::single(key));
        Ok(self.range(&op).await?.1.kvs.pop())
    }
}

// === impl Chunks ===

impl Chunks {
    fn last(&mut self, kvs: Vec<KeyValue>, more: bool, count: i64) -> Chunk {
        self.is_done = true;
        Chunk { kvs, end: Some((self.header, more, count)) }
    }
}

/// What a read asks of the stores: all that it counts.
fn query_of(op: &RangeOp, revision: Revision) -> Query {
    Query { selector: op.selector.clone(), ..Query::new(op.range.clone(), revision) }
}

fn wanted(limit: i64) -> usize {
    usize::try_from(limit).unwrap_or(0)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

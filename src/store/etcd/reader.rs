//! Reads as of a revision: a snapshot of the etcd, with the few keys that differ laid over it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Shared,
    history::{Overlay, View, is_kept},
    layout::{RECORDS_PREFIX, all_leases, lease_of, lease_prefix},
    past,
    recent::Latest,
    snapshot::{Numbers, Scanned, Snapshot, range_request},
    wire::{WireError, WireResult},
};
use crate::{
    model::{Key, KeyRange, KeyValue, LeaseId, Revision, key::successor},
    proto::etcdserverpb as pb,
    store::{PAGE_BYTES_MAX, Page, Query},
};

/// Keys of a lease that are looked up at once.
const LEASED_AT_ONCE: usize = 500;

impl Shared {
    /// Where the state at a revision is found.
    pub(super) async fn view(&self, revision: Revision) -> WireResult<View> {
        if let Some(view) = self.history.view(revision) {
            return Ok(view);
        }
        let (oldest, ..) = self.history.oldest();
        past::view(&self.wire, &self.numbers(), revision, oldest).await
    }

    /// The numbers of a view's rows. Of those that it hides any will do.
    fn numbers_of(&self, view: &View) -> Arc<Numbers> {
        let mut numbers = self.numbers();
        if !view.hidden.is_empty() {
            let hidden = view.hidden.iter().map(|etcd| (*etcd, 0));
            Arc::make_mut(&mut numbers).adopted.extend(hidden);
        }
        numbers
    }

    /// One page of a read.
    pub(super) async fn page(&self, read: &Query) -> WireResult<Page> {
        if read.range.is_empty() {
            return Ok(Page { revision: read.revision, ..Page::default() });
        }
        let mut page = match (read.range.as_single(), read.lease) {
            (Some(key), 0) => {
                let found = self.one(key, read.revision).await?;
                Page { kvs: found.into_iter().collect(), next: None, revision: read.revision }
            }
            (_, lease) => {
                let view = self.view(read.revision).await?;
                let numbers = self.numbers_of(&view);
                let snapshot = Snapshot::new(&self.wire, view.at, &numbers);
                match lease {
                    0 => self.scan(snapshot, &view.overlay, read).await?,
                    _ => leased(snapshot, &view.overlay, read).await?,
                }
            }
        };
        if read.keys_only {
            page.kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(page)
    }

    async fn one(&self, key: &Key, revision: Revision) -> WireResult<Option<KeyValue>> {
        if let Some(known) = self.recent.at(key, revision) {
            return Ok(known);
        }
        // Counted before it is asked which revision is the newest.
        let changes = self.recent.changes();
        let (.., newest) = self.history.newest();
        let view = self.view(revision).await?;
        if let Some(kv) = view.overlay.get(key) {
            return Ok(kv.clone());
        }
        let numbers = self.numbers_of(&view);
        let snapshot = Snapshot::new(&self.wire, view.at, &numbers);
        let row = snapshot.rows_of(std::slice::from_ref(key)).await?.pop();
        if revision >= newest {
            let since = row.as_ref().map_or(revision, |row| row.kv.mod_revision);
            self.recent.learn(Latest { key: key.clone(), row: row.clone(), since }, changes);
        }
        Ok(row.map(|row| row.kv))
    }

    async fn scan(
        &self,
        snapshot: Snapshot<'_>,
        overlay: &Overlay,
        read: &Query,
    ) -> WireResult<Page> {
        let guessed = if read.keys_only { usize::MAX } else { self.page_sizer.rows() };
        let wanted = read.rows_max().min(guessed) + 1;
        let Scanned { rows: found, count } =
            snapshot.scan(&read.range, wanted, read.keys_only).await?;
        if let Some(count) = count {
            self.counted.note(&read.range, snapshot.at, count);
        }
        let is_cut = found.len() == wanted;
        let mut next = found.last().filter(|_| is_cut).map(|row| row.kv.key.clone());
        let mut rows: BTreeMap<Key, KeyValue> =
            found.into_iter().map(|row| (row.kv.key.clone(), row.kv)).collect();
        if !read.keys_only {
            self.page_sizer.learn(rows.len(), rows.values().map(KeyValue::size).sum());
        }
        for (key, kv) in overlay.iter().filter(|(key, _)| read.range.contains(key)) {
            match kv {
                Some(kv) => rows.insert(key.clone(), kv.clone()),
                None => rows.remove(key),
            };
        }
        if let Some(next) = &next {
            rows.retain(|key, _| key < next);
        }
        let mut kvs: Vec<_> = rows.into_values().collect();
        let mut bytes = 0;
        let fits = kvs.iter().take(read.rows_max()).take_while(|kv| {
            let is_room = bytes < PAGE_BYTES_MAX;
            bytes += kv.size();
            is_room
        });
        let fits = fits.count();
        if fits < kvs.len() {
            next = kvs[..fits].last().map(|kv| successor(&kv.key));
            kvs.truncate(fits);
        }
        Ok(Page { kvs, next, revision: read.revision })
    }

    /// How many keys a range had at a revision.
    pub(super) async fn count(&self, range: &KeyRange, revision: Revision) -> WireResult<u64> {
        if range.is_empty() {
            return Ok(0);
        }
        let view = self.view(revision).await?;
        let numbers = self.numbers_of(&view);
        let snapshot = Snapshot::new(&self.wire, view.at, &numbers);
        let mut count = match self.counted.keys(range, snapshot.at) {
            Some(count) => count,
            None => snapshot.count(range).await?,
        };
        let differing = view.overlay.iter().filter(|(key, _)| range.contains(key));
        let (keys, now): (Vec<Key>, Vec<_>) =
            differing.map(|(key, kv)| (key.clone(), kv.is_some())).unzip();
        if !keys.is_empty() {
            count -= snapshot.rows_of(&keys).await?.len() as u64;
            count += now.iter().filter(|is_there| **is_there).count() as u64;
        }
        Ok(count)
    }

    /// The leases of live keys.
    pub(super) async fn live_leases(&self) -> WireResult<BTreeSet<LeaseId>> {
        let mut range = all_leases();
        let mut leases = BTreeSet::new();
        loop {
            // The first key of the next lease, and on behind that lease.
            let first = pb::RangeRequest { limit: 1, keys_only: true, ..range_request(&range) };
            let found = self.wire.range(first).await?;
            let Some(lease) = found.kvs.first().and_then(|kv| lease_of(&kv.key)) else {
                return Ok(leases);
            };
            leases.insert(lease);
            match KeyRange::prefix(lease_prefix(lease)).end {
                Some(behind) => range.start = behind,
                None => return Ok(leases),
            }
        }
    }

    /// The node's record of this name.
    pub(super) async fn record(&self, name: &str) -> WireResult<Option<Bytes>> {
        let range = KeyRange::single(super::layout::record_key(name));
        let found = self.wire.range(range_request(&range)).await?;
        Ok(found.kvs.into_iter().next().map(|kv| kv.value))
    }

    /// The node's records whose names begin with `prefix`.
    pub(super) async fn records(&self, prefix: &str) -> WireResult<Vec<(String, Bytes)>> {
        let range = KeyRange::prefix(super::layout::record_key(prefix));
        let found = self.wire.range(range_request(&range)).await?;
        let record = |kv: crate::proto::mvccpb::KeyValue| {
            let name = kv.key.get(RECORDS_PREFIX.len()..).unwrap_or_default();
            (String::from_utf8_lossy(name).into_owned(), kv.value)
        };
        Ok(found.kvs.into_iter().map(record).collect())
    }

    /// All keys of a range at a revision.
    pub(super) async fn all_at(
        &self,
        range: &KeyRange,
        revision: Revision,
    ) -> WireResult<Vec<KeyValue>> {
        let mut read = Query::new(range.clone(), revision);
        let mut kvs = Vec::new();
        loop {
            let page = self.page(&read).await?;
            kvs.extend(page.kvs);
            let Some(next) = page.next else { return Ok(kvs) };
            read.range.start = next;
        }
    }

    /// The oldest revision of ours that can be read where the etcd was compacted; -1 where it never was.
    pub(super) async fn floor(&self) -> WireResult<Revision> {
        let log = Bytes::from_static(super::layout::LOG);
        let first = pb::RangeRequest { key: log.clone(), revision: 1, ..Default::default() };
        match self.wire.range(first).await {
            Err(WireError::Compacted) => {}
            found => return found.map(|_| -1),
        }
        let create = pb::WatchCreateRequest {
            key: log.clone(),
            start_revision: 1,
            ..pb::WatchCreateRequest::default()
        };
        // A watch from the beginning is the one thing that tells where an etcd was compacted.
        let mut watching = self.wire.watch(super::wire::Purpose::Replay, create).await?;
        let line = watching.compacted().await?;
        if line == 0 {
            return Ok(-1);
        }
        if line <= self.numbers().attached {
            return Ok(line);
        }
        let (oldest, base, _) = self.history.oldest();
        if line > base + 1 {
            // Where nothing in memory begins above the line, the newest state is all there is.
            let (.., last) = self.history.newest();
            return Ok(self.history.first_kept(line).unwrap_or(last));
        }
        let create = pb::WatchCreateRequest {
            key: log,
            start_revision: line,
            ..pb::WatchCreateRequest::default()
        };
        let mut watching = self.wire.watch(super::wire::Purpose::Replay, create).await?;
        let mut grouping = super::observer::Grouping::default();
        loop {
            for group in grouping.take(watching.due().await?) {
                let Some(record) = group.record() else { continue };
                if is_kept(record.base, group.etcd, line) || group.etcd >= oldest {
                    return Ok(record.last);
                }
            }
        }
    }
}

async fn leased(snapshot: Snapshot<'_>, overlay: &Overlay, read: &Query) -> WireResult<Page> {
    let mut keys = snapshot.leased(read.lease).await?;
    keys.retain(|key| !overlay.contains_key(key) && read.range.contains(key));
    let mut rows = BTreeMap::new();
    for keys in keys.chunks(LEASED_AT_ONCE) {
        let found = snapshot.rows_of(keys).await?.into_iter().map(|row| row.kv);
        rows.extend(found.map(|kv| (kv.key.clone(), kv)));
    }
    let differing = overlay.values().flatten().filter(|kv| read.range.contains(&kv.key));
    rows.extend(differing.map(|kv| (kv.key.clone(), kv.clone())));
    rows.retain(|_, kv| kv.lease == read.lease);
    let mut kvs: Vec<_> = rows.into_values().collect();
    let is_cut = kvs.len() > read.rows_max();
    kvs.truncate(read.rows_max());
    let next = kvs.last().filter(|_| is_cut).map(|kv| successor(&kv.key));
    Ok(Page { kvs, next, revision: read.revision })
}

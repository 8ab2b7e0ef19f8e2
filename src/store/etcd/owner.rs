//! Who has the store: a key with a lease of the etcd, and the log key that only its owner writes.
//!
//! The owner's key is for others, so that they wait or go elsewhere. What protects the data is the log
//! key: each transaction of an owner names the one before it, so whoever lost the store, even without
//! knowing, writes nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::{sync::Notify, time::Instant};

use super::{
    OpenError,
    layout::{ABOUT, About, EtcdRevision, LAYOUT_VERSION, LOG, LogRecord, OWNER, Owner, RESERVED},
    snapshot::range_request,
    wire::{Wire, WireError, WireResult, ranges},
};
use crate::{
    clock::Entropy,
    model::{Key, KeyRange},
    proto::etcdserverpb as pb,
    store::led::process,
};

/// How long an owner that can't be reached keeps its store, in seconds.
const LEASE_S: i64 = 5;
const LEASE: Duration = Duration::from_secs(LEASE_S as u64);

/// How often the owner extends it.
const KEEP_INTERVAL: Duration = Duration::from_millis(1_500);

/// How often is looked whether an owner that may be dead is gone.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What the owner's clock and the etcd's may differ by within one lease.
const LEASE_DOUBT: Duration = Duration::from_secs(1);

/// The right to the store, as far as it is certain.
#[derive(Debug)]
pub(super) struct Tenure {
    begin: Instant,
    /// Milliseconds after `begin`.
    until_ms: AtomicU64,
    /// The etcd's lease.
    lease: AtomicI64,
    /// The lease is gone: a new one is needed.
    pub lost: Notify,
}

/// What stands in the etcd.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub about: Option<About>,
    pub log: LogRecord,
    /// When the log was last written; 0 for never.
    pub log_etcd: EtcdRevision,
    /// The revision of the etcd when this was read.
    pub now: EtcdRevision,
    /// Once it is taken: up to here nothing of others is unknown.
    pub known: EtcdRevision,
    owner: Option<(Owner, EtcdRevision, i64)>,
    is_foreign: bool,
}

fn ask(range: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range)) }
}

fn key_of(key: &'static [u8]) -> pb::RangeRequest {
    pb::RangeRequest { key: Bytes::from_static(key), ..pb::RangeRequest::default() }
}

pub(super) fn put(key: Key, value: impl Into<Bytes>, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest { key, value: value.into(), lease, ..pb::PutRequest::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

/// The condition that a key was last changed at an etcd revision; 0 where it must not exist.
pub(super) fn unchanged(key: Key, etcd: EtcdRevision) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Mod as i32,
        key,
        range_end: Bytes::new(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(etcd)),
    }
}

// === impl Found ===

impl Found {
    pub(super) async fn look(wire: &Wire) -> WireResult<Self> {
        let reserved = KeyRange::prefix(Bytes::from_static(RESERVED));
        let any = pb::RangeRequest { limit: 1, keys_only: true, ..range_request(&reserved) };
        let success = vec![ask(key_of(ABOUT)), ask(key_of(LOG)), ask(key_of(OWNER)), ask(any)];
        let answer = wire.read(&pb::TxnRequest { success, ..Default::default() }).await?;
        let now = answer.header.as_ref().map_or(0, |header| header.revision);
        let mut found = ranges(answer)?.into_iter().map(|range| range.kvs.into_iter().next());
        let mut next = || found.next().flatten();
        let broken = |error| WireError::Failed(format!("what it says about itself: {error}"));
        let (about, log, owner, any) = (next(), next(), next(), next());
        let about = about.map(|kv| About::decode(kv.value)).transpose().map_err(broken)?;
        let (log, log_etcd) = match log {
            Some(kv) => (LogRecord::decode(kv.value).map_err(broken)?, kv.mod_revision),
            None => (LogRecord::default(), 0),
        };
        let owner = match owner {
            Some(kv) => Some((Owner::decode(kv.value).map_err(broken)?, kv.mod_revision, kv.lease)),
            None => None,
        };
        let is_foreign = about.is_none() && any.is_some();
        Ok(Self { about, log, log_etcd, now, known: 0, owner, is_foreign })
    }

    /// Refuses what this version can't read.
    fn check(&self, place: &str) -> Result<(), OpenError> {
        if self.is_foreign {
            return Err(OpenError::Foreign { place: place.to_owned() });
        }
        match self.about.as_ref().map_or(0, |about| about.version) {
            version if version <= LAYOUT_VERSION => Ok(()),
            found => Err(OpenError::TooNew { place: place.to_owned(), found }),
        }
    }

    /// What must still stand there for somebody to take the store, or to keep it.
    fn compares(&self) -> Vec<pb::Compare> {
        let owner = self.owner.as_ref().map_or(0, |(_, etcd, _)| *etcd);
        vec![
            unchanged(Key::from_static(LOG), self.log_etcd),
            unchanged(Key::from_static(OWNER), owner),
        ]
    }
}

/// Takes the store, once whoever has it has let it go. Returns what stands there now.
pub(super) async fn claim(
    wire: &Wire,
    place: &str,
    note: &str,
    tenure: &Tenure,
    expected: Option<u64>,
) -> Result<Found, OpenError> {
    let failed =
        |error: WireError| OpenError::Failed { place: place.to_owned(), reason: error.into() };
    loop {
        let found = Found::look(wire).await.map_err(failed)?;
        found.check(place)?;
        let incarnation = found.about.as_ref().map(|about| about.incarnation);
        // One of a version that had none is taken for the one that is expected.
        let incarnation = incarnation.filter(|incarnation| *incarnation != 0);
        let is_fresh = found.about.is_none();
        if let Some(expected) = expected
            && incarnation.map_or(is_fresh, |incarnation| incarnation != expected)
        {
            let place = place.to_owned();
            return Err(OpenError::Another { place, expected, found: incarnation.unwrap_or(0) });
        }
        if let Some((owner, _, lease)) = &found.owner
            && !process::is_dead(&owner.process)
        {
            wait_for(wire, owner, *lease, place).await?;
            continue;
        }
        let (before, base, last) = match found.log_etcd {
            0 => (found.now, found.now, found.now),
            // Nothing came between what its writer knew and the record itself.
            log if log <= found.log.base + 1 => (log, log, found.log.last),
            log => (log, found.log.base, found.log.last),
        };
        let epoch = found.log.epoch + 1;
        let record = LogRecord { epoch, base, last, commits: Vec::new() };
        let mut ops = vec![put(Key::from_static(LOG), record.encode_to_vec(), 0)];
        let mut about = found.about.clone().unwrap_or_else(|| About {
            cluster: wire.cluster(),
            attached: found.now,
            ..About::default()
        });
        if about.version < LAYOUT_VERSION {
            about.version = LAYOUT_VERSION;
            about.incarnation = expected.unwrap_or_else(|| Entropy::system().id());
            ops.push(put(Key::from_static(ABOUT), about.encode_to_vec(), 0));
        }
        if let Some(etcd) = take(wire, &found, note, tenure, ops).await.map_err(failed)? {
            if is_fresh {
                tracing::info!(place, "the etcd is a store from now on; it was none before");
            }
            let about = Some(about);
            let known = if base == before && etcd == before + 1 { etcd } else { base };
            return Ok(Found { about, log: record, log_etcd: etcd, known, ..found });
        }
    }
}

/// Takes the store with some further changes; `None` where somebody was faster. Returns the etcd
/// revision of that.
pub(super) async fn take(
    wire: &Wire,
    found: &Found,
    note: &str,
    tenure: &Tenure,
    mut ops: Vec<pb::RequestOp>,
) -> WireResult<Option<EtcdRevision>> {
    let started = Instant::now();
    let lease = wire.grant_lease(LEASE_S).await?;
    let owner = Owner { note: note.to_owned(), process: process::this() };
    ops.push(put(Key::from_static(OWNER), owner.encode_to_vec(), lease));
    let txn = pb::TxnRequest { compare: found.compares(), success: ops, failure: Vec::new() };
    let taken = wire.write(&txn).await;
    if !matches!(&taken, Ok(answer) if answer.succeeded) {
        // The lease of nothing ends by itself, too.
        let _ = wire.revoke_lease(lease).await;
    }
    let taken = taken?;
    if !taken.succeeded {
        return Ok(None);
    }
    tenure.lease.store(lease, Ordering::Release);
    tenure.extend(started);
    Ok(Some(taken.header.map_or(0, |header| header.revision)))
}

/// Waits until an owner's lease has run out; an owner that extends it has the store.
async fn wait_for(wire: &Wire, owner: &Owner, lease: i64, place: &str) -> Result<(), OpenError> {
    let failed =
        |error: WireError| OpenError::Failed { place: place.to_owned(), reason: error.into() };
    let began = Instant::now();
    let mut least = i64::MAX;
    loop {
        let left = wire.lease_left(lease).await.map_err(failed)?;
        if left < 0 {
            return Ok(());
        }
        if left > least || began.elapsed() > LEASE * 2 {
            let (place, owner) = (place.to_owned(), owner.note.clone());
            return Err(OpenError::InUse { place, owner });
        }
        if least == i64::MAX {
            tracing::info!(place, owner = owner.note, "waiting until the last owner's lease ends");
        }
        least = left;
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// Extends the owner's lease for ever.
pub(super) async fn keep(wire: Arc<Wire>, tenure: Arc<Tenure>) {
    loop {
        tokio::time::sleep(KEEP_INTERVAL).await;
        match tenure.keep(&wire).await {
            Ok(true) => {}
            Ok(false) => tenure.lost.notify_one(),
            Err(error) => tracing::debug!(%error, "the lease of an owner was not extended"),
        }
    }
}

// === impl Tenure ===

impl Tenure {
    pub(super) fn new() -> Self {
        Self {
            begin: Instant::now(),
            until_ms: AtomicU64::new(0),
            lease: AtomicI64::new(0),
            lost: Notify::new(),
        }
    }

    pub(super) fn lease(&self) -> i64 {
        self.lease.load(Ordering::Acquire)
    }

    /// Extends the lease; says whether it was still there.
    pub(super) async fn keep(&self, wire: &Wire) -> WireResult<bool> {
        let started = Instant::now();
        let is_kept = wire.keep_lease(self.lease()).await? > 0;
        if is_kept {
            self.extend(started);
        }
        Ok(is_kept)
    }

    /// Notes that the lease was extended no earlier than at `started`.
    fn extend(&self, started: Instant) {
        let until = started.saturating_duration_since(self.begin) + LEASE - LEASE_DOUBT;
        self.until_ms.fetch_max(until.as_millis() as u64, Ordering::AcqRel);
    }

    pub(super) fn check(&self) -> WireResult<()> {
        let until = Duration::from_millis(self.until_ms.load(Ordering::Acquire));
        if self.begin.elapsed() < until {
            return Ok(());
        }
        Err(WireError::Lost("its ownership could not be renewed in time".to_owned()))
    }
}

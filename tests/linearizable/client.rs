//! A client that asks for anything at random, and one that hears of every change.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use pleach::proto::etcdserverpb::{
    self as pb, compare, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, request_op::Request as Op,
    response_op::Response as Done,
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{
    history::{Asked, Call, Change, Keys, Kv, Outcome, Place, Said},
    lines,
    support::{changes::open_watch, rng::Rng},
};

const KEYS: usize = 6;
/// No lease runs out by itself.
const TTL: i64 = 3_600;
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(12);
/// So far behind what was heard nothing is compacted.
const KEPT: i64 = 300;
const PAUSE: Duration = Duration::from_millis(20);

/// What all clients share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Leases that each node granted, and that may have ended.
    leases: Mutex<BTreeMap<usize, Vec<i64>>>,
    /// Up to where every watcher has heard all.
    heard: Mutex<BTreeMap<usize, i64>>,
    next: AtomicI64,
}

/// One that asks.
pub struct Client {
    pub node: usize,
    pub channel: Channel,
    /// The prefixes below which its keys lie; a call never spans two.
    pub prefixes: Vec<&'static str>,
    pub rng: Rng,
    pub shared: Arc<Shared>,
    pub epoch: Instant,
    /// When each of its keys was last changed, as far as it has seen.
    pub modified: BTreeMap<String, i64>,
    /// The place it has in an election.
    pub place: Option<Place>,
}

// === impl Shared ===

impl Shared {
    /// Nothing is compacted before every place has been heard of.
    pub fn begin(&self, places: usize) {
        let mut heard = self.heard.lock().expect("nobody panicked");
        heard.extend((0..places).map(|place| (place, 0)));
    }

    fn heard(&self) -> i64 {
        let heard = self.heard.lock().expect("nobody panicked");
        heard.values().min().copied().unwrap_or(0)
    }

    fn lease(&self, node: usize, rng: &mut Rng) -> Option<i64> {
        let leases = self.leases.lock().expect("nobody panicked");
        let leases = leases.get(&node)?;
        // Rather one of the last.
        Some(rng.pick(&leases[leases.len().saturating_sub(6)..]))
    }
}

// === impl Client ===

impl Client {
    pub async fn run(mut self, end: CancellationToken) -> Vec<Call> {
        let mut calls = Vec::new();
        while !end.is_cancelled() {
            let asked = self.choose();
            let begin = self.epoch.elapsed();
            let outcome = self.ask(&asked).await;
            let end = self.epoch.elapsed();
            if matches!(outcome, Outcome::Unknown) {
                sleep(PAUSE).await;
            }
            calls.push(Call { node: self.node, begin, end, asked, outcome });
        }
        calls
    }

    fn choose(&mut self) -> Asked {
        let prefix = self.rng.pick(&self.prefixes);
        let key = format!("{prefix}{}", self.rng.below(KEYS));
        let keys = match self.rng.below(3) {
            0 => Keys::below(prefix),
            _ => Keys::one(&key),
        };
        let next = || self.shared.next.fetch_add(1, Ordering::Relaxed);
        let lease = self.shared.lease(self.node, &mut self.rng);
        match (self.rng.below(48), lease) {
            (0..=9, Some(lease)) => Asked::Put { key, value: format!("v{}", next()), lease },
            (0..=13, _) => Asked::Put { key, value: format!("v{}", next()), lease: 0 },
            (14..=16, _) => Asked::Delete(keys),
            (17..=21, _) => {
                let expected = self.modified.get(&key).copied().unwrap_or(0);
                Asked::Guarded { key, value: format!("v{}", next()), expected }
            }
            (22..=28, _) => Asked::Read { keys, revision: 0 },
            (29, _) => {
                let back = self.rng.between(0, KEPT / 3);
                let revision = self.modified.values().max().map_or(0, |newest| newest - back);
                Asked::Read { keys, revision: revision.max(0) }
            }
            (30..=31, _) => Asked::Grant(1 + next()),
            (32..=33, Some(lease)) => Asked::Revoke(lease),
            (34..=35, Some(lease)) => Asked::TimeToLive(lease),
            (36, Some(lease)) => Asked::KeepAlive(lease),
            (37, _) if self.rng.chance(10) => Asked::Compact(self.shared.heard() - KEPT),
            (46..=47, _) => {
                let other = format!("{prefix}{}", self.rng.below(KEYS));
                let mut keys = [key, other];
                if keys[0] == keys[1] {
                    keys[1] = format!("{prefix}{KEYS}");
                }
                Asked::PutBoth { keys, value: format!("v{}", next()) }
            }
            (40..=45, Some(lease)) => {
                let value = format!("v{}", next());
                self.choose_in_line(prefix, lease, value)
            }
            _ => Asked::Look(self.rng.pick(&["status", "alarms", "hash", "hash of all", "leases"])),
        }
    }

    async fn ask(&mut self, asked: &Asked) -> Outcome {
        let wait_max = match asked {
            Asked::Enter { .. } => lines::WAIT_MAX,
            _ => ANSWER_WAIT_MAX,
        };
        match timeout(wait_max, self.call(asked)).await {
            Ok(Ok((revision, said))) => Outcome::Said(revision, said),
            Ok(Err(status)) => match status.code() {
                Code::NotFound | Code::OutOfRange | Code::FailedPrecondition => Outcome::Refused,
                Code::Unknown if status.message().starts_with("election: no") => Outcome::Refused,
                _ => Outcome::Unknown,
            },
            Err(_) => Outcome::Unknown,
        }
    }

    async fn call(&mut self, asked: &Asked) -> Result<(i64, Said), Status> {
        let mut kv = KvClient::new(self.channel.clone());
        let mut leases = LeaseClient::new(self.channel.clone());
        match asked {
            Asked::Put { key, value, lease } => {
                let (key_bytes, value) = (key.clone().into(), value.clone().into());
                let put =
                    pb::PutRequest { key: key_bytes, value, lease: *lease, ..Default::default() };
                let revision = of(kv.put(put).await?.into_inner().header);
                self.modified.insert(key.clone(), revision);
                Ok((revision, Said::Done))
            }
            Asked::PutBoth { keys, value } => {
                let put = |key: &String| pb::RequestOp {
                    request: Some(Op::RequestPut(pb::PutRequest {
                        key: key.clone().into(),
                        value: value.clone().into(),
                        ..Default::default()
                    })),
                };
                let success = keys.iter().map(put).collect();
                let answer = kv.txn(pb::TxnRequest { success, ..Default::default() }).await?;
                Ok((of(answer.into_inner().header), Said::Done))
            }
            Asked::Delete(keys) => {
                let (key, range_end) = bytes(keys);
                let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: true };
                let answer = kv.delete_range(delete).await?.into_inner();
                let said = Said::Deleted(answer.prev_kvs.iter().map(Kv::from).collect());
                Ok((of(answer.header), said))
            }
            Asked::Guarded { key, value, expected } => {
                self.guarded(kv, key, value, *expected).await
            }
            Asked::Read { keys, revision } => {
                let (key, range_end) = bytes(keys);
                let read =
                    pb::RangeRequest { key, range_end, revision: *revision, ..Default::default() };
                let answer = match self.rng.chance(30) {
                    true => streamed(kv, read).await?,
                    false => kv.range(read).await?.into_inner(),
                };
                let found: Vec<Kv> = answer.kvs.iter().map(Kv::from).collect();
                if *revision == 0 {
                    self.modified.retain(|key, _| !keys.contain(key));
                    self.modified.extend(found.iter().map(|kv| (kv.key.clone(), kv.modified)));
                }
                Ok((of(answer.header), Said::Read(found)))
            }
            Asked::Grant(id) => {
                let grant = pb::LeaseGrantRequest { ttl: TTL, id: *id };
                let answer = leases.lease_grant(grant).await?.into_inner();
                let mut granted = self.shared.leases.lock().expect("nobody panicked");
                granted.entry(self.node).or_default().push(*id);
                Ok((of(answer.header), Said::Done))
            }
            Asked::Revoke(id) => {
                let answer = leases.lease_revoke(pb::LeaseRevokeRequest { id: *id }).await?;
                Ok((of(answer.into_inner().header), Said::Done))
            }
            Asked::TimeToLive(id) => {
                let ask = pb::LeaseTimeToLiveRequest { id: *id, keys: true };
                let answer = leases.lease_time_to_live(ask).await?.into_inner();
                let mut keys: Vec<String> =
                    answer.keys.iter().map(|key| String::from_utf8_lossy(key).into()).collect();
                keys.sort_unstable();
                Ok((of(answer.header), Said::Lease((answer.ttl >= 0).then_some(keys))))
            }
            Asked::KeepAlive(id) => {
                let ask = tokio_stream::once(pb::LeaseKeepAliveRequest { id: *id });
                let answer = leases.lease_keep_alive(ask).await?.into_inner().message().await?;
                let answer = answer.ok_or_else(|| Status::unavailable("no answer"))?;
                Ok((of(answer.header), Said::Lease((answer.ttl > 0).then(Vec::new))))
            }
            Asked::Compact(revision) => {
                let compact = pb::CompactionRequest { revision: *revision, physical: false };
                Ok((of(kv.compact(compact).await?.into_inner().header), Said::Done))
            }
            Asked::Look(what) => self.look(what).await,
            in_line => self.call_in_line(in_line).await,
        }
    }

    async fn guarded(
        &mut self,
        mut kv: KvClient<Channel>,
        key: &str,
        value: &str,
        expected: i64,
    ) -> Result<(i64, Said), Status> {
        let compare = pb::Compare {
            key: key.to_owned().into(),
            target: compare::CompareTarget::Mod as i32,
            target_union: Some(compare::TargetUnion::ModRevision(expected)),
            ..Default::default()
        };
        let put = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        let get = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
        let op = |request| pb::RequestOp { request: Some(request) };
        let txn = pb::TxnRequest {
            compare: vec![compare],
            success: vec![op(Op::RequestPut(put))],
            failure: vec![op(Op::RequestRange(get))],
        };
        let answer = kv.txn(txn).await?.into_inner();
        let revision = of(answer.header);
        let found = match answer.responses.first().and_then(|it| it.response.as_ref()) {
            Some(Done::ResponseRange(range)) => range.kvs.first().map(Kv::from),
            _ => None,
        };
        let modified =
            if answer.succeeded { Some(revision) } else { found.as_ref().map(|it| it.modified) };
        match modified {
            Some(modified) => _ = self.modified.insert(key.to_owned(), modified),
            None => _ = self.modified.remove(key),
        }
        Ok((revision, Said::Guarded { is_put: answer.succeeded, found }))
    }

    async fn look(&mut self, what: &str) -> Result<(i64, Said), Status> {
        let mut maintenance = MaintenanceClient::new(self.channel.clone());
        let header = match what {
            "status" => maintenance.status(pb::StatusRequest {}).await?.into_inner().header,
            "alarms" => maintenance.alarm(pb::AlarmRequest::default()).await?.into_inner().header,
            "hash of all" => maintenance.hash(pb::HashRequest {}).await?.into_inner().header,
            "hash" => {
                maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await?.into_inner().header
            }
            _ => {
                let mut leases = LeaseClient::new(self.channel.clone());
                let all = leases.lease_leases(pb::LeaseLeasesRequest {}).await?.into_inner();
                let living = all.leases.iter().map(|lease| lease.id).collect();
                return Ok((of(all.header), Said::Leases(living)));
            }
        };
        Ok((of(header), Said::Done))
    }
}

/// The whole of a streamed answer.
async fn streamed(
    mut kv: KvClient<Channel>,
    read: pb::RangeRequest,
) -> Result<pb::RangeResponse, Status> {
    let mut chunks = kv.range_stream(read).await?.into_inner();
    let mut whole = pb::RangeResponse::default();
    while let Some(chunk) = chunks.message().await? {
        let chunk = chunk.range_response.unwrap_or_default();
        whole.header = chunk.header.or(whole.header);
        whole.kvs.extend(chunk.kvs);
    }
    Ok(whole)
}

pub fn of(header: Option<pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

fn bytes(keys: &Keys) -> (bytes::Bytes, bytes::Bytes) {
    (keys.from.clone().into(), keys.end.clone().into())
}

/// Hears of every change below a prefix, at the node that writes them, over its restarts; ends once it has heard
/// all up to `last`.
pub async fn follow(
    channel: Channel,
    place: usize,
    prefix: &'static str,
    shared: Arc<Shared>,
    last: tokio::sync::watch::Receiver<i64>,
) -> Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    let mut heard = 0;
    loop {
        match hear(&channel, place, prefix, &shared, &last, &mut changes, &mut heard).await {
            Ok(()) => return Ok(changes),
            Err(error) if error.downcast_ref::<Status>().is_some() => sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

async fn hear(
    channel: &Channel,
    place: usize,
    prefix: &str,
    shared: &Shared,
    last: &tokio::sync::watch::Receiver<i64>,
    changes: &mut Vec<Change>,
    heard: &mut i64,
) -> Result<()> {
    let keys = Keys::below(prefix);
    let (key, range_end) = bytes(&keys);
    let create = pb::WatchCreateRequest {
        key,
        range_end,
        start_revision: *heard + 1,
        prev_kv: true,
        progress_notify: true,
        ..Default::default()
    };
    let opened = open_watch(channel.clone(), create).await;
    let (requests, mut responses) =
        opened.map_err(|error| Status::unavailable(error.to_string()))?;
    loop {
        let ask = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        // What is said of progress says how far it is.
        let _ = requests.try_send(pb::WatchRequest { request_union: Some(ask) });
        let message = match timeout(Duration::from_millis(300), responses.message()).await {
            Err(_) => continue,
            Ok(message) => message?
                .context("the stream ended")
                .map_err(|error| Status::unavailable(error.to_string()))?,
        };
        ensure!(!message.canceled, "{prefix}: {message:?}");
        for event in &message.events {
            let kv = event.kv.as_ref().context("an event without a key")?;
            let revision = kv.mod_revision;
            ensure!(
                revision > *heard || changes.last().is_some_and(|it| it.revision == revision),
                "{event:?} came after {heard}"
            );
            let now = (event.r#type() == pleach::proto::mvccpb::event::EventType::Put)
                .then(|| Kv::from(kv));
            let before = event.prev_kv.as_ref().map(Kv::from);
            changes.push(Change {
                revision,
                key: String::from_utf8_lossy(&kv.key).into(),
                now,
                before,
            });
            *heard = revision;
        }
        let revision = of(message.header);
        // A header with events is not yet a promise.
        if message.events.is_empty() && !message.created {
            *heard = revision.max(*heard);
        }
        shared.heard.lock().expect("nobody panicked").insert(place, *heard);
        let last = *last.borrow();
        if last > 0 && *heard >= last {
            return Ok(());
        }
        if *heard > i64::MAX / 2 {
            bail!("{heard} is no revision");
        }
    }
}

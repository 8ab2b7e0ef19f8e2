//! The oracle: the same requests to a real etcd and to a node, and the answers compared, number
//! for number and letter for letter.
//!
//! `PLEACH_SEED=… ` repeats a run, `PLEACH_ORACLE_REQUESTS=…` sets how many requests all tests
//! send together, `PLEACH_TEST_SERVER=etcd` puts a second etcd in the node's place: that proves the
//! oracle itself. `PLEACH_ORACLE_SHRINK=0` reports a failing run as it was, not its shortest form.
//!
//! Not asked: HashKV and Hash (the hash covers etcd's file), Snapshot, the member changes, auth.
#![allow(
    unreachable_pub,
    reason = "a test binary exports nothing: `pub` means to the other modules here"
)]

#[path = "../support/mod.rs"]
mod support;

mod chronicle;
mod differences;
mod generate;
mod keys;
mod nested;
mod probes;
mod request;
mod run;
mod server;
mod shrink;
mod watch;

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use pleach::{
    clock::Entropy,
    proto::etcdserverpb::{self as pb, request_op::Request as Op},
};
use prost::Message as _;
use tokio::sync::Mutex;

use crate::{
    generate::{Flavour, Generator, Step},
    keys::Keys,
    request::{Answer, Request},
    run::Run,
    server::Kind,
    shrink::shortest,
    support::databases::Kind as DatabaseKind,
    support::rng::Rng,
};

const REQUESTS_TOTAL: usize = 120_000;
/// Each sequence starts with fresh servers, so that revision 1, the first compaction and an empty
/// store are met often.
const STEPS_PER_SEQUENCE: usize = 4000;
/// How much of the way to a difference is printed.
const STEPS_PRINTED: usize = 20;

/// Servers of two tests at once would only share the same two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_answers_as_etcd_does() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let kind = Kind::Node.or_as_asked();
    let seed = seed();
    sequences(seed, kind, requests() * 30 / 100, Keys::hostile, Flavour::Anything).await?;
    sequences(seed, kind, requests() * 10 / 100, Keys::kubernetes, Flavour::Kubernetes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_five_stores_answers_as_etcd_does_where_requests_allow() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let kind = Kind::NodeOfFiveStores.or_as_asked();
    sequences(seed(), kind, requests() * 20 / 100, Keys::routed, Flavour::Anything).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_nested_routers_answers_as_etcd_does_where_requests_allow() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let kind = Kind::NodeOfNestedRouters.or_as_asked();
    sequences(seed(), kind, requests() * 15 / 100, Keys::routed, Flavour::Anything).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_stores_in_databases_answer_as_etcd_does() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let kind = Kind::NodeOfMixedStores.or_as_asked();
    sequences(seed(), kind, requests() * 8 / 100, Keys::routed, Flavour::Anything).await?;
    for database in [DatabaseKind::Postgres, DatabaseKind::MariaDb] {
        let kind = Kind::NodeInDatabase(database).or_as_asked();
        sequences(seed(), kind, requests() * 4 / 100, Keys::hostile, Flavour::Anything).await?;
        sequences(seed(), kind, requests() * 2 / 100, Keys::kubernetes, Flavour::Kubernetes)
            .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_over_a_plain_etcd_answers_as_that_etcd_does() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let kind = Kind::NodeInEtcd.or_as_asked();
    sequences(seed(), kind, requests() * 5 / 100, Keys::hostile, Flavour::Anything).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_leases_take_their_keys_in_key_order_and_one_revision() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let kinds = [Kind::Node, Kind::NodeOfFiveStores, Kind::NodeOfNestedRouters, Kind::NodeInEtcd];
    for kind in kinds {
        expire(kind.or_as_asked()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_catch_ups_come_in_fragments_that_add_up() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut run = Run::start(Kind::Node.or_as_asked()).await?;
    for n in 0..60 {
        let value = vec![b'0' + n % 10; 100 << 10];
        let put = pb::PutRequest { key: "a".into(), value: value.into(), ..Default::default() };
        run.step(&Step::Ask(Request::Put(put))).await?;
    }
    for fragment in [true, false] {
        let create = pb::WatchCreateRequest {
            key: "a".into(),
            start_revision: 2,
            prev_kv: true,
            fragment,
            ..Default::default()
        };
        run.step(&Step::Open { stream: 1, create }).await?;
    }
    run.step(&Step::Sync).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_the_size_limit_are_refused_as_etcd_does() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut run = Run::start(Kind::Node.or_as_asked()).await?;
    let limit = 3 << 19;
    let far = [limit - 1024, limit + 1024, limit + (1 << 19) + 1024];
    // To the byte: etcd counts what it wraps around the request as well.
    for size in (limit - 48..=limit + 2).step_by(3).chain(limit - 26..=limit - 20).chain(far) {
        let value = || vec![b'v'; size].into();
        let put = pb::PutRequest { key: "a".into(), value: value(), ..Default::default() };
        let op = pb::RequestOp { request: Some(Op::RequestPut(put.clone())) };
        let txn = pb::TxnRequest { success: vec![op], ..Default::default() };
        let delete = pb::DeleteRangeRequest { key: value(), ..Default::default() };
        let bytes = [put.encoded_len(), txn.encoded_len(), delete.encoded_len()];
        let requests = [Request::Put(put), Request::Txn(txn), Request::DeleteRange(delete)];
        for (request, bytes) in requests.into_iter().zip(bytes) {
            // The id that etcd gives a request has nine bytes or ten, by its member's own.
            if bytes + 17 == limit {
                continue;
            }
            run.step(&Step::Ask(request)).await.with_context(|| format!("{size} bytes"))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_bind_and_are_told_as_by_etcd() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut run = Run::start(Kind::Node.or_as_asked()).await?;
    let mut rng = Rng::new(seed());
    // A compaction is followed by what has watchers go on, which no alarm may hinder.
    let first = pb::PutRequest { key: "a".into(), ..Default::default() };
    run.step(&Step::Ask(Request::Put(first))).await?;
    for step in 0..600 {
        let request = match rng.below(12) {
            at @ (0..=3) => Request::Alarm(pb::AlarmRequest {
                // Rather disarmed than raised, so that writes are taken now and then.
                action: [0, 1, 2, 2][at],
                member_id: rng.pick(&[0, 5, 5]),
                alarm: rng.pick(&[0, 1, 2]),
            }),
            4 => Request::Range(pb::RangeRequest { key: "a".into(), ..Default::default() }),
            5 => Request::Put(pb::PutRequest { key: "a".into(), ..Default::default() }),
            6 => Request::DeleteRange(pb::DeleteRangeRequest {
                key: "a".into(),
                ..Default::default()
            }),
            7 => {
                let put = pb::PutRequest { key: "b".into(), ..Default::default() };
                let op = pb::RequestOp { request: Some(Op::RequestPut(put)) };
                Request::Txn(pb::TxnRequest { success: vec![op], ..Default::default() })
            }
            8 => Request::LeaseGrant(pb::LeaseGrantRequest { ttl: 600, id: 9 }),
            9 => Request::LeaseRevoke(pb::LeaseRevokeRequest { id: 9 }),
            10 => Request::Compact(pb::CompactionRequest {
                revision: run.seen.revision,
                ..Default::default()
            }),
            _ => Request::Status(pb::StatusRequest {}),
        };
        let taken = run.step(&Step::Ask(request.clone())).await;
        taken.with_context(|| format!("step {step}: {request:?}"))?;
        if rng.chance(40) {
            let mut pages = Vec::new();
            for side in run.sides() {
                pages.push(probes::answers(side.url()).await?);
            }
            for ((path, left), (_, right)) in pages[0].iter().zip(&pages[1]) {
                ensure!(left == right, "{path}\n  left:  {left:?}\n  right: {right:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_that_are_not_there_are_refused_in_etcds_words() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut run = Run::start(Kind::Node.or_as_asked()).await?;
    let mut said = Vec::new();
    for side in run.sides() {
        said.push(probes::unknown_methods(side.url()).await?);
    }
    ensure!(said[0] == said[1], "left:  {:?}\nright: {:?}", said[0], said[1]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_elections_refuse_as_etcd_does() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut run = Run::start(Kind::Node.or_as_asked()).await?;
    let mut said = Vec::new();
    for side in run.sides() {
        said.push(probes::said_of_lines(side.url()).await?);
    }
    ensure!(said[0].len() > 8, "only {} calls", said[0].len());
    for (left, right) in said[0].iter().zip(&said[1]) {
        ensure!(left == right, "left:  {left:?}\nright: {right:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoiled_answer_is_noticed() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    for spoil in [one_revision_too_many, one_key_too_few, one_letter_wrong] {
        let found = a_difference_of(|run| run.right().spoil(Some(spoil), None)).await?;
        ensure!(found.contains("the answers differ"), "{found}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoiled_watch_is_noticed() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    for spoil in [one_event_lost, one_event_twice, one_previous_value_lost] {
        a_difference_of(|run| run.right().spoil(None, Some(spoil))).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_is_reported_with_a_short_way_to_it() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let kind = Kind::EtcdWithSmallTxns;
    let mut run = Run::start(kind).await?;
    let mut generator = Generator::new(seed(), Keys::hostile(), Flavour::Anything);
    let mut taken = Vec::new();
    for _ in 0..STEPS_PER_SEQUENCE {
        let step = generator.next(&run.seen);
        taken.push(step.clone());
        if Box::pin(run.step(&step)).await.is_err() {
            let (steps, why) = shortest(kind, &taken).await.context("not seen a second time")?;
            ensure!(why.contains("too many operations in txn request"), "{why}");
            ensure!(steps.len() == 1, "one transaction is enough: {}", lines(&steps));
            return Ok(());
        }
    }
    bail!("nothing was noticed")
}

// --- sequences ---

async fn sequences(
    seed: u64,
    kind: Kind,
    requests: usize,
    keys: fn() -> Keys,
    flavour: Flavour,
) -> Result<()> {
    let mut seeds = Rng::new(seed);
    let mut left = requests;
    let mut due = tokio::spawn(Run::start(kind));
    let started = Instant::now();
    let mut tally = BTreeMap::<String, usize>::new();
    while left > 0 {
        let steps = left.min(STEPS_PER_SEQUENCE);
        left -= steps;
        // The first sequence's seed is the printed one, so that a failure can be repeated alone.
        let seed = if left + steps == requests { seed } else { seeds.next() };
        let mut run = due.await??;
        // The next pair of servers starts meanwhile: an etcd needs a second to elect itself.
        due = tokio::spawn(Run::start(kind));
        let generator = Generator::new(seed, keys(), flavour);
        Box::pin(sequence(&mut run, generator, steps, kind))
            .await
            .with_context(|| format!("repeat with PLEACH_SEED={seed}"))?;
        if flavour == Flavour::Kubernetes && kind.has_indexes() {
            let pages = Box::pin(probes::pages_by_index(run.right().url())).await?;
            ensure!(pages > 0, "no page was found by an index");
        }
        for (kind, count) in run.tally {
            *tally.entry(kind).or_default() += count;
        }
    }
    let rate = requests as f64 / started.elapsed().as_secs_f64();
    println!("{requests} {flavour:?} requests to {kind:?}, {rate:.0}/s");
    for (kind, count) in tally {
        println!("  {count:7} {kind}");
    }
    Ok(())
}

async fn sequence(run: &mut Run, mut generator: Generator, steps: usize, kind: Kind) -> Result<()> {
    let mut taken = Vec::new();
    for index in 0..=steps {
        let step = if index < steps { generator.next(&run.seen) } else { Step::Sync };
        taken.push(step);
        if let Err(difference) = Box::pin(run.step(&taken[index])).await {
            let words = run.last_words();
            let shortest = if may_shrink() { shortest(kind, &taken).await } else { None };
            let last = taken.len().saturating_sub(STEPS_PRINTED);
            bail!(
                "step {index}: {:?}\n{difference:#}\n\nthe steps before it:\n{}\n\n\
                 a shorter way to a difference:\n{}\n\nthe servers' logs:\n{words}\n\n\
                 not compared:\n{}",
                taken[index],
                lines(&taken[last..]),
                shortest.map_or("none found".into(), |(steps, why)| {
                    format!("{}\n{why}", lines(&steps))
                }),
                differences::table(),
            );
        }
    }
    Ok(())
}

fn lines(steps: &[Step]) -> String {
    let lines: Vec<_> = steps.iter().map(|step| format!("  {step:?}")).collect();
    lines.join("\n")
}

fn seed() -> u64 {
    let given = env::var("PLEACH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| Entropy::system().bits());
    println!("PLEACH_SEED={seed}");
    seed
}

fn requests() -> usize {
    let given = env::var("PLEACH_ORACLE_REQUESTS").ok();
    given.and_then(|count| count.parse().ok()).unwrap_or(REQUESTS_TOTAL)
}

fn may_shrink() -> bool {
    env::var("PLEACH_ORACLE_SHRINK").as_deref() != Ok("0")
}

// --- leases that run out ---

async fn expire(kind: Kind) -> Result<()> {
    let mut run = Run::start(kind).await?;
    let grant = pb::LeaseGrantRequest { ttl: 2, id: 7 };
    run.step(&Step::Ask(Request::LeaseGrant(grant))).await?;
    let mut keys = VecDeque::from(["/a/3", "/a/1", "/a/\u{ff}", "/a/2", "/a/10"]);
    let leased = keys.len();
    while let Some(key) = keys.pop_front() {
        let put = pb::PutRequest { key: key.into(), lease: 7, ..Default::default() };
        run.step(&Step::Ask(Request::Put(put))).await?;
    }
    // Detached by a put without the lease, so this one stays.
    let put = pb::PutRequest { key: "/a/2".into(), ..Default::default() };
    run.step(&Step::Ask(Request::Put(put))).await?;
    let written = leased + 1;
    let mut told = Vec::new();
    for side in run.sides() {
        // Stream 0 watches everything. The events come when the server finds the lease expired.
        let events = side.stream(0).events(0, written + leased - 1).await?;
        told.push(events.to_vec());
    }
    ensure!(told[0] == told[1], "left:  {:?}\nright: {:?}", told[0], told[1]);
    run.seen.revision += 1;
    run.step(&Step::Sync).await?;
    let gone = Request::LeaseTimeToLive(pb::LeaseTimeToLiveRequest { id: 7, keys: true });
    run.step(&Step::Ask(gone)).await
}

// --- proof that the oracle can fail ---

/// Runs two etcds, one of them spoiled, until the oracle says what differs.
async fn a_difference_of(spoil: impl FnOnce(&mut Run)) -> Result<String> {
    SPOILED.store(0, Ordering::SeqCst);
    let mut run = Run::start(Kind::Etcd).await?;
    let mut generator = Generator::new(seed(), Keys::hostile(), Flavour::Anything);
    spoil(&mut run);
    for _ in 0..STEPS_PER_SEQUENCE {
        let step = generator.next(&run.seen);
        if let Err(difference) = Box::pin(run.step(&step)).await {
            ensure!(SPOILED.load(Ordering::SeqCst) > 0, "not spoiled yet: {difference:#}");
            return Ok(format!("{difference:#}"));
        }
    }
    bail!("nothing was noticed")
}

/// How many chances there were to spoil something. The twentieth is taken.
static SPOILED: AtomicUsize = AtomicUsize::new(0);

fn is_the_one() -> bool {
    SPOILED.fetch_add(1, Ordering::SeqCst) == 20
}

fn one_revision_too_many(answer: &mut Answer) {
    if let Answer::Put(put) = answer
        && let Some(header) = &mut put.header
        && is_the_one()
    {
        header.revision += 1;
    }
}

fn one_key_too_few(answer: &mut Answer) {
    if let Answer::Range(range) = answer
        && !range.kvs.is_empty()
        && is_the_one()
    {
        range.kvs.pop();
    }
}

fn one_letter_wrong(answer: &mut Answer) {
    if let Answer::Refused { message, .. } = answer
        && is_the_one()
    {
        message.push('.');
    }
}

fn one_event_lost(message: &mut pb::WatchResponse) {
    if message.events.len() > 1 && is_the_one() {
        message.events.pop();
    }
}

fn one_event_twice(message: &mut pb::WatchResponse) {
    if let Some(last) = message.events.last().cloned()
        && is_the_one()
    {
        message.events.push(last);
    }
}

fn one_previous_value_lost(message: &mut pb::WatchResponse) {
    if let Some(event) = message.events.last_mut()
        && event.prev_kv.is_some()
        && is_the_one()
    {
        event.prev_kv = None;
    }
}

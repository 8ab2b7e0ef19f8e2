//! Requests: whatever a client's bytes say, a node with routes answers as one without, and the
//! answers and what is kept make sense.
//!
//! The input is a `TxnRequest` on the wire. It is executed, and then each of its operations alone.
//! Besides libFuzzer's changes of bytes, which seldom leave a message whole, there are some of whole
//! operations.
#![no_main]

mod dice;

use std::{collections::BTreeMap, fmt::Debug, sync::LazyLock, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt as _;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use pleach::{
    clock::{Clock, Entropy, Lane, REVISION_MAX, SharedClock},
    node::{Node, Options},
    proto::{
        etcdserverpb::{
            DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseOp,
            TxnRequest, TxnResponse, kv_server::Kv as _, range_request::SortOrder,
            request_op::Request as Op, response_op::Response as Answer,
        },
        mvccpb::KeyValue,
    },
    route::{Route, Router, rule::Rule},
    server::{Limits, Services},
    store::{memory::Memory, records::Records},
    tree::{membership::Membership, parent::TreeOptions},
};
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::dice::Dice;

const ROUTES: [&str; 2] = ["/a", "/b"];
const KEYS: [&str; 6] = ["/a", "/a/1", "/a/2", "/b/1", "/b/2", "/c"];
/// A lease that there is; every other key has it.
const LEASE: i64 = 7;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_time().build().expect("a runtime takes only memory")
});

/// Two nodes with the same keys.
struct Pair {
    routed: Services,
    plain: Services,
}

/// What is answered, or the code and the text that clients look at.
type Answered<A> = Result<A, (Code, String)>;

fuzz_target!(|input: &[u8]| {
    let Ok(txn) = TxnRequest::decode(input) else { return };
    RUNTIME.block_on(async {
        let pair = Pair { routed: face(&ROUTES).await, plain: face(&[]).await };
        for (key, lease) in KEYS.into_iter().zip([0, LEASE].into_iter().cycle()) {
            let (key, value) = (Bytes::from(key), Bytes::from("value"));
            pair.put(&PutRequest { key, value, lease, ..PutRequest::default() }).await;
        }
        pair.txn(&txn).await;
        for op in txn.success.iter().chain(&txn.failure).filter_map(|op| op.request.as_ref()) {
            match op {
                Op::RequestRange(range) => pair.range(range).await,
                Op::RequestPut(put) => pair.put(put).await,
                Op::RequestDeleteRange(delete) => {
                    let ask = async |face: &Services, request| face.delete_range(request).await;
                    pair.write(delete, ask).await;
                }
                Op::RequestTxn(nested) => {
                    if let Ok(txn) = TxnRequest::decode(nested.clone()) {
                        pair.txn(&txn).await;
                    }
                }
            }
        }
    });
});

fuzz_mutator!(|input: &mut [u8], size: usize, size_max: usize, seed: u32| {
    let mut dice = Dice::new(seed);
    let txn = TxnRequest::decode(&input[..size]).ok().filter(|_| dice.below(2) == 0);
    let changed = txn.map(|mut txn| {
        change(&mut txn, &mut dice);
        txn.encode_to_vec()
    });
    match changed.filter(|changed| changed.len() <= size_max) {
        Some(changed) => {
            input[..changed.len()].copy_from_slice(&changed);
            changed.len()
        }
        None => fuzzer_mutate(input, size, size_max),
    }
});

/// Adds, repeats, nests or takes away an operation.
fn change(txn: &mut TxnRequest, dice: &mut Dice) {
    let ops = if dice.below(3) > 0 { &mut txn.success } else { &mut txn.failure };
    if ops.is_empty() || dice.below(6) == 0 {
        return ops.push(RequestOp { request: Some(new_op(dice)) });
    }
    let at = dice.below(ops.len());
    match dice.below(6) {
        0 => drop(ops.remove(at)),
        1 => ops.push(ops[at].clone()),
        2 => {
            let inner = TxnRequest { success: vec![ops[at].clone()], ..TxnRequest::default() };
            ops[at].request = Some(Op::RequestTxn(inner.encode_to_vec().into()));
        }
        _ => match &mut ops[at].request {
            Some(Op::RequestTxn(nested)) => {
                let mut inner = TxnRequest::decode(nested.clone()).unwrap_or_default();
                change(&mut inner, dice);
                *nested = inner.encode_to_vec().into();
            }
            request => *request = Some(new_op(dice)),
        },
    }
}

fn new_op(dice: &mut Dice) -> Op {
    let key = some_key(dice);
    let range_end = if dice.below(2) == 0 { Bytes::new() } else { some_key(dice) };
    match dice.below(3) {
        0 => Op::RequestPut(PutRequest { key, ..PutRequest::default() }),
        1 => Op::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: true }),
        _ => Op::RequestRange(RangeRequest { key, range_end, ..RangeRequest::default() }),
    }
}

fn some_key(dice: &mut Dice) -> Bytes {
    let keys = [&KEYS[..], &["\0"]].concat();
    Bytes::from(keys[dice.below(keys.len())])
}

/// A node in memory, with a store for each route.
async fn face(routes: &[&str]) -> Services {
    let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
    let store = |name| Memory::new(name, clock.clone());
    let rule = |prefix| Rule::prefix(prefix).expect("the routes are good");
    let routes = routes.iter().map(|prefix| Route {
        rule: rule(prefix),
        store: store(prefix),
        has_other_writers: true,
    });
    let main = store("main");
    // All nodes say that they are the same one, so that their answers can be compared.
    let records = Records::open(main.clone()).await.expect("memory does not fail");
    let root = Router::new(routes.collect(), main);
    let options =
        Options { progress_every: Duration::from_secs(600), quota_bytes: 0, splits_deletes: false };
    let tree = TreeOptions::default();
    let membership = Membership::load(records, clock, Entropy::seeded(1), "fuzz", tree).await;
    let membership = membership.expect("memory does not fail");
    let node = Node::start(root, membership, options, &[]).await.expect("memory does not fail");
    node.grant_lease(LEASE, 600).await.expect("the lease is not there yet");
    let limits = Limits { request_bytes_max: 3 << 19, txn_ops_max: 16, ready_requires_all: false };
    Services::new(node, limits, "fuzz".to_owned(), Vec::new(), CancellationToken::new())
}

async fn ask<Q, A>(
    face: &Services,
    request: &Q,
    verb: impl AsyncFn(&Services, Request<Q>) -> Result<Response<A>, Status>,
) -> Answered<A>
where
    Q: Clone,
{
    let answer = verb(face, Request::new(request.clone())).await;
    answer.map(Response::into_inner).map_err(|error| (error.code(), error.message().to_owned()))
}

// === impl Pair ===

impl Pair {
    /// What both nodes answer. `None` where the routed one refuses what spans its stores.
    async fn both<Q, A>(
        &self,
        request: &Q,
        verb: impl AsyncFn(&Services, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Option<Answered<A>>
    where
        Q: Clone + Debug,
        A: Debug + PartialEq,
    {
        let routed = ask(&self.routed, request, &verb).await;
        if matches!(&routed, Err((_, text)) if text.starts_with("pleach: ")) {
            return None;
        }
        let plain = ask(&self.plain, request, &verb).await;
        assert_eq!(routed, plain, "{request:?}");
        Some(plain)
    }

    /// All keys, and the revision.
    async fn rows(&self) -> (i64, BTreeMap<Bytes, KeyValue>) {
        let (key, range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        let all = RangeRequest { key, range_end, ..RangeRequest::default() };
        let found = self.both(&all, async |face, request| face.range(request).await).await;
        let found = found.and_then(Result::ok).expect("all keys can be read");
        let revision = found.header.map_or(0, |header| header.revision);
        (revision, found.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect())
    }

    /// Makes a change, and looks at what has changed.
    async fn write<Q, A>(
        &self,
        request: &Q,
        verb: impl AsyncFn(&Services, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Option<A>
    where
        Q: Clone + Debug,
        A: Debug + PartialEq,
    {
        let (before, old) = self.rows().await;
        let answer = self.both(request, verb).await;
        let (after, new) = self.rows().await;
        assert!(after == before || after == before + 1, "{request:?}");
        assert!(after > before || old == new, "{request:?}");
        let answer = answer.and_then(Result::ok);
        assert!(after == before || answer.is_some(), "{request:?} was refused");
        for (key, kv) in &new {
            let is_put_once = match old.get(key) {
                Some(old) if old == kv => true,
                Some(old) if kv.version > 1 => {
                    kv.version == old.version + 1 && kv.create_revision == old.create_revision
                }
                _ => kv.version == 1 && kv.create_revision == after,
            };
            assert!(is_put_once && kv.mod_revision <= after, "{request:?} left {kv:?}");
        }
        answer
    }

    async fn put(&self, put: &PutRequest) {
        self.write(put, async |face, request| face.put(request).await).await;
    }

    async fn txn(&self, txn: &TxnRequest) {
        let answer = self.write(txn, async |face, request| face.txn(request).await).await;
        if let Some(answer) = answer {
            check_txn(txn, &answer);
        }
    }

    async fn range(&self, range: &RangeRequest) {
        let found = self.both(range, async |face, request| face.range(request).await).await;
        let Some(Ok(found)) = found else { return };
        check_range(range, &found);
        let streamed = self.both(range, async |face, request| {
            let pieces: Vec<_> =
                face.range_stream(request).await?.into_inner().try_collect().await?;
            Ok(Response::new(pieces.into_iter().filter_map(|piece| piece.range_response).fold(
                RangeResponse::default(),
                |mut whole, piece| {
                    whole.kvs.extend(piece.kvs);
                    RangeResponse { kvs: whole.kvs, ..piece }
                },
            )))
        });
        if let Some(Ok(streamed)) = streamed.await {
            assert_eq!(streamed, found, "{range:?}");
        }
    }
}

/// An answer for each operation of the branch that was taken, of its kind.
fn check_txn(txn: &TxnRequest, answer: &TxnResponse) {
    let ops = if answer.succeeded { &txn.success } else { &txn.failure };
    assert_eq!(ops.len(), answer.responses.len(), "{txn:?}");
    for (op, answer) in ops.iter().zip(&answer.responses) {
        match (op, answer) {
            (
                RequestOp { request: Some(Op::RequestRange(range)) },
                ResponseOp { response: Some(Answer::ResponseRange(found)) },
            ) => check_range(range, found),
            (
                RequestOp { request: Some(Op::RequestTxn(txn)) },
                ResponseOp { response: Some(Answer::ResponseTxn(answer)) },
            ) => {
                let txn = TxnRequest::decode(txn.clone()).expect("it was executed");
                let answer = TxnResponse::decode(answer.clone()).expect("it is an answer");
                check_txn(&txn, &answer);
            }
            (
                RequestOp { request: Some(Op::RequestPut(_)) },
                ResponseOp { response: Some(Answer::ResponsePut(_)) },
            )
            | (
                RequestOp { request: Some(Op::RequestDeleteRange(_)) },
                ResponseOp { response: Some(Answer::ResponseDeleteRange(_)) },
            ) => {}
            _ => panic!("{op:?} is answered by {answer:?}"),
        }
    }
}

/// What was found was asked for.
fn check_range(range: &RangeRequest, found: &RangeResponse) {
    let is_asked = |kv: &KeyValue| match &range.range_end[..] {
        b"" => kv.key == range.key,
        b"\0" => kv.key >= range.key,
        _ => kv.key >= range.key && kv.key < range.range_end,
    };
    let within =
        |revision, min, max| (min == 0 || revision >= min) && (max == 0 || revision <= max);
    for kv in &found.kvs {
        assert!(is_asked(kv), "{range:?} found {kv:?}");
        assert!(within(kv.mod_revision, range.min_mod_revision, range.max_mod_revision));
        assert!(within(kv.create_revision, range.min_create_revision, range.max_create_revision));
        assert!(!range.keys_only || kv.value.is_empty(), "{range:?} found {kv:?}");
    }
    let count = i64::try_from(found.kvs.len()).expect("there are few keys");
    assert!(count <= found.count && (range.limit <= 0 || count <= range.limit), "{range:?}");
    assert!(!range.count_only || count == 0, "{range:?}");
    if range.sort_order == SortOrder::None as i32 && range.sort_target == 0 {
        assert!(found.kvs.is_sorted_by(|a, b| a.key < b.key), "{range:?}");
    }
}

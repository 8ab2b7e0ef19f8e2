//! A slot over stores in memory: late, silent, refused, fenced.

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, future::ready};
use tokio::{sync::oneshot, time::timeout};

use super::{
    opening::{PAUSE_MAX, PAUSE_MIN},
    *,
};
use crate::{
    clock::{Clock, Lane, REVISION_MAX},
    model::txn::{Op, PutOp, Txn},
    store::{
        memory::{Kept, Memory},
        records::Records,
    },
};

/// What opens `store` once it may, and is in its way until then.
struct Gate {
    is_open: watch::Sender<bool>,
    clock: SharedClock,
    late: Arc<dyn Store>,
    /// Another store of the node.
    other: Arc<Memory>,
}

impl Gate {
    /// A node that begins while `store` is late.
    async fn before(store: Arc<Memory>, clock: SharedClock) -> Self {
        let is_open = watch::Sender::new(false);
        let passing = is_open.subscribe();
        let opener: Opener = Box::new(move |_| {
            let is_open = *passing.borrow();
            let store: Arc<dyn Store> = store.clone();
            Box::pin(async move {
                if is_open { Ok(Occupant::child(store)) } else { Err(refusal(true)) }
            })
        });
        let other = Memory::new("other", clock.clone());
        let opened = opened("pods", &clock, opener).await;
        assert!(opened.is_late);
        clock.begin();
        Self { is_open, clock, late: opened.slot, other }
    }

    async fn let_open(&self) {
        self.is_open.send_replace(true);
        while self.late.count(&Query::new(KeyRange::all(), 1)).await.is_err() {
            tokio::time::advance(PAUSE_MIN).await;
        }
    }
}

/// A slot whose record lies in a default store of its own.
async fn opened(name: &str, clock: &SharedClock, opener: Opener) -> Opened {
    let kept = Memory::new("kept", SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL)));
    let records = Records::open(kept).await.expect("memory answers");
    let record = SlotRecord::open(&records, name, 1).await.expect("memory answers");
    open(name, clock, None, Arc::new(record), false, opener).await.expect("memory answers")
}

fn refusal(may_pass: bool) -> Refusal {
    Refusal { reason: "nobody is there".into(), may_pass }
}

fn clock() -> SharedClock {
    SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL))
}

async fn put(store: &dyn Store, key: &'static str) -> Result<Revision> {
    let put = PutOp {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(b"value"),
        lease: 0,
        prev_kv: false,
        keep_value: false,
        keep_lease: false,
    };
    let txn = Txn { success: vec![Op::Put(put)], ..Txn::default() };
    Ok(store.apply(txn, Vec::new()).await?.revision)
}

/// The revisions of what a tail says until it has closed `through`.
async fn follow(tail: &mut Tail, through: Revision) -> Vec<Revision> {
    let mut revisions = Vec::new();
    while let Some(batch) = tail.next().await {
        let batch = batch.expect("nothing is compacted");
        revisions.extend(batch.commits.iter().map(|commit| commit.revision));
        if batch.closed >= through {
            break;
        }
    }
    revisions
}

#[tokio::test(start_paused = true)]
async fn keys_are_refused_with_the_reason_until_the_store_is_there() {
    let clock = clock();
    let gate = Gate::before(Memory::new("pods", clock.clone()), clock).await;
    tokio::task::yield_now().await;
    let late = &*gate.late;
    let all = Query::new(KeyRange::all(), 1);
    let refused = [
        put(late, "a").await.expect_err("it is not there"),
        late.read(&all).await.expect_err("it is not there"),
        late.count(&all).await.expect_err("it is not there"),
        late.compact(1, true).await.expect_err("it is not there"),
        late.end_lease(7).await.expect_err("it is not there"),
    ];
    for error in refused {
        assert_eq!(error.to_string(), "store `pods` is unavailable: nobody is there");
    }
    assert_eq!(late.size().await.expect("it is known"), Size::default());
    assert_eq!(late.compacted(), -1);
    gate.let_open().await;
    assert_eq!(put(late, "a").await.expect("it is there"), 2);
    assert_eq!(late.count(&Query { revision: 2, ..all }).await.expect("it is there"), 1);
    late.compact(2, true).await.expect("it is there");
    assert_eq!(late.compacted(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_others_write_is_closed_and_a_tail_goes_on_in_the_store_without_a_gap() {
    let clock = clock();
    let gate = Gate::before(Memory::new("pods", clock.clone()), clock).await;
    let mut tail = gate.late.tail(1);
    for revision in 2..5 {
        assert_eq!(put(&*gate.other, "b").await.expect("it is there"), revision);
        assert_eq!(gate.late.announce_closed(), revision);
        assert_eq!(
            gate.late.advance_closed(revision, 0).await.expect("it can be closed"),
            revision
        );
        assert!(follow(&mut tail, revision).await.is_empty());
    }
    // Closed by the stand-in, and not yet told, when the store opens and has commits above.
    put(&*gate.other, "b").await.expect("it is there");
    gate.let_open().await;
    assert_eq!(put(&*gate.late, "a").await.expect("it is there"), 6);
    put(&*gate.other, "b").await.expect("it is there");
    assert_eq!(put(&*gate.late, "a").await.expect("it is there"), 8);
    assert_eq!(gate.late.advance_closed(8, 0).await.expect("it can be closed"), 8);
    assert_eq!(follow(&mut tail, 8).await, [6, 8]);
    assert_eq!(gate.clock.shown(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_tail_from_before_the_beginning_waits_for_what_the_store_has_there() {
    let clock = clock();
    let store = Memory::new("pods", clock.clone());
    put(&*store, "a").await.expect("it is there");
    put(&*store, "a").await.expect("it is there");
    let gate = Gate::before(store, clock).await;
    let mut tail = gate.late.tail(2);
    put(&*gate.other, "b").await.expect("it is there");
    gate.late.advance_closed(4, 0).await.expect("it can be closed");
    let early = timeout(PAUSE_MAX, tail.next()).await;
    assert!(early.is_err(), "it said {early:?} without the store");
    gate.let_open().await;
    put(&*gate.late, "a").await.expect("it is there");
    assert_eq!(follow(&mut tail, 5).await, [3, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_silent_is_late_and_its_first_attempt_goes_on() {
    let clock = clock();
    let (attempt, mut attempts) = tokio::sync::mpsc::channel(1);
    let opener: Opener = Box::new(move |_| {
        let (answer, answered) = tokio::sync::oneshot::channel();
        assert!(attempt.try_send(answer).is_ok(), "another attempt while the first goes on");
        Box::pin(async move { answered.await.expect("the test answers") })
    });
    let opened = opened("pods", &clock, opener).await;
    assert!(opened.is_late);
    let error = put(&*opened.slot, "a").await.expect_err("it is not there").to_string();
    assert!(error.contains("could not be opened within"), "{error}");
    let answer = attempts.recv().await.expect("there was an attempt");
    let store: Arc<dyn Store> = Memory::new("pods", clock);
    assert!(answer.send(Ok(Occupant::child(store))).is_ok(), "the first attempt was given up");
    while put(&*opened.slot, "a").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_needs_an_operator_is_tried_again_too() {
    let clock = clock();
    let store = Memory::new("pods", clock.clone());
    let mut attempts = 0;
    let opener: Opener = Box::new(move |_| {
        attempts += 1;
        let store: Arc<dyn Store> = store.clone();
        let attempt = if attempts < 3 { Err(refusal(false)) } else { Ok(Occupant::child(store)) };
        ready(attempt).boxed()
    });
    let opened = opened("pods", &clock, opener).await;
    assert!(opened.is_late);
    clock.begin();
    tokio::task::yield_now().await;
    let error = put(&*opened.slot, "a").await.expect_err("it is not there").to_string();
    assert!(error.contains("nobody is there"), "{error}");
    while put(&*opened.slot, "a").await.is_err() {
        tokio::time::advance(PAUSE_MIN).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_others_wrote_meanwhile_ends_what_was_shown_and_goes_on() {
    let clock = clock();
    let main = Memory::new("main", clock.clone());
    let kept = Kept::default();
    let theirs = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
    let other = Memory::reopen("pods", theirs, kept.clone()).expect("it is fresh");
    for _ in 0..9 {
        put(&*other, "a").await.expect("it is there");
    }
    let (gate, mut passing) = watch::channel(false);
    let joining = clock.clone();
    let opener: Opener = Box::new(move |_| {
        let (is_open, clock, kept) = (*passing.borrow_and_update(), joining.clone(), kept.clone());
        Box::pin(async move {
            if !is_open {
                return Err(refusal(true));
            }
            let store = Memory::reopen_apart("pods", clock, kept).await;
            Ok(Occupant::owned(store.expect("it holds revisions")))
        })
    });
    let opened = opened("pods", &clock, opener).await;
    clock.begin();
    let mut tail = opened.slot.tail(1);
    assert_eq!(put(&*main, "b").await.expect("it is there"), 2);
    opened.slot.advance_closed(2, 0).await.expect("it stands in");
    assert!(follow(&mut tail, 2).await.is_empty());
    gate.send_replace(true);
    while opened.slot.size().await.is_ok_and(|size| size == Size::default()) {
        tokio::time::advance(PAUSE_MIN).await;
    }
    let ended = tail.next().await.expect("it ends with an error").expect_err("it lacks something");
    let StoreError::Compacted { compacted } = ended else { panic!("{ended}") };
    let written = put(&*opened.slot, "a").await.expect("it is there");
    assert!(compacted > 10 && written > compacted, "{written} and {compacted}");
    assert!(opened.slot.read(&Query::new(KeyRange::all(), 10)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_another_node_took_is_closed_no_further_until_it_is_back_and_then_starts_afresh()
 {
    let clock = clock();
    let (main, store) = (Memory::new("main", clock.clone()), Memory::new("pods", clock.clone()));
    let (take, taken) = oneshot::channel::<()>();
    let (gate, passing) = watch::channel(true);
    let (late, mut taken) = (store.clone(), Some(taken));
    let opener: Opener = Box::new(move |_| {
        let (store, is_open, taken) = (late.clone(), *passing.borrow(), taken.take());
        let fenced = async move {
            match taken {
                Some(taken) => drop(taken.await),
                None => std::future::pending().await,
            }
        };
        let occupant = Occupant { store, records: None, fenced: fenced.boxed() };
        ready(if is_open { Ok(occupant) } else { Err(refusal(true)) }).boxed()
    });
    let opened = opened("pods", &clock, opener).await;
    assert!(!opened.is_late);
    clock.begin();
    let pods = &*opened.slot;
    assert_eq!(put(pods, "a").await.expect("it is there"), 2);
    gate.send_replace(false);
    take.send(()).expect("somebody waits for that");
    while put(pods, "a").await.is_ok() {
        tokio::task::yield_now().await;
    }
    let left = pods.announce_closed();
    let written = put(&*main, "b").await.expect("it is there");
    assert!(written > left, "{written} and {left}");
    assert_eq!(pods.announce_closed(), left, "it was closed further while another had it");
    let refused = pods.advance_closed(written, 0).await.expect_err("another has it");
    assert!(refused.to_string().starts_with("store `pods` is unavailable: "), "{refused}");
    let mut tail = pods.tail(left);
    let early = timeout(PAUSE_MAX, tail.next()).await;
    assert!(early.is_err(), "it said {early:?} while another had it");
    // Whoever has got as far as anyone lacks what the other wrote as well.
    let mut newest = pods.tail(clock.now());
    gate.send_replace(true);
    let ended = tail.next().await.expect("it ends with an error").expect_err("it lacks something");
    let StoreError::Compacted { compacted } = ended else { panic!("{ended}") };
    assert!(compacted > written, "{compacted} and {written}");
    let ended = newest.next().await.expect("it ends with an error");
    assert!(matches!(ended, Err(StoreError::Compacted { .. })), "{ended:?}");
    assert!(put(pods, "a").await.expect("it is back") > compacted);
    assert!(
        timeout(Duration::from_secs(1), pods.read(&Query::new(KeyRange::all(), 2)))
            .await
            .is_ok_and(|read| read.is_err())
    );
}

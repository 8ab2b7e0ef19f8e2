//! A child that is cut off, in all the ways there are: what is refused, what flows, and what becomes of
//! watches when it is back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::{etcdserverpb as pb, mvccpb::KeyValue};
use tonic::{Code, Status, transport::Channel};

use crate::{
    ONE_AT_A_TIME,
    call::{client, ensure_away, get, list, put},
    family::Family,
    support::{process::eventually, proxy::Mode},
    watch::Watch,
};

/// A silent child is found out by a ping within 2.5 seconds, and a lost one at once.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);
/// The grace of 2 seconds, the time to notice, and a busy machine.
const GOES_ON_WITHIN: Duration = Duration::from_secs(6);
const BACK_WITHIN: Duration = Duration::from_secs(20);

async fn compact(channel: &Channel, revision: i64) -> Result<(), Status> {
    let compact = pb::CompactionRequest { revision, physical: false };
    client(channel).compact(compact).await.map(drop)
}

/// The names of keys, in order.
pub(crate) fn names(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

/// How a child goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// Its connections are reset and new ones are refused.
    Refused,
    /// Its connections are silent.
    Stalled,
    /// Its process is stopped.
    Stopped,
    /// Its process is killed.
    Killed,
}

impl Absence {
    async fn begin(self, family: &mut Family) -> Result<()> {
        match self {
            Absence::Refused => {
                family.link.set(Mode::Refuse).await?;
                family.link.cut().await;
            }
            Absence::Stalled => family.link.set(Mode::Stall).await?,
            Absence::Stopped => family.far.signal("STOP")?,
            Absence::Killed => family.far.kill()?,
        }
        Ok(())
    }

    async fn end(self, family: &mut Family) -> Result<()> {
        match self {
            Absence::Refused | Absence::Stalled => family.link.set(Mode::Pass).await?,
            Absence::Stopped => family.far.signal("CONT")?,
            Absence::Killed => family.far.spawn()?,
        }
        family.reconnect().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_child_holds_fails_fast_by_name_and_all_else_goes_on() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut family = Family::start().await?;
    for absence in [Absence::Refused, Absence::Stalled, Absence::Stopped, Absence::Killed] {
        goes_and_comes(&mut family, absence).await.with_context(|| format!("{absence:?}"))?;
    }
    Ok(())
}

/// A child goes away and comes back having done nothing: no watcher notices.
async fn goes_and_comes(family: &mut Family, absence: Absence) -> Result<()> {
    let root = family.at_root.clone();
    let written = family.put_everywhere("before").await?;
    let last = written.iter().copied().max().unwrap_or(0);
    let mut spanning = Watch::all(&root, last + 1).await?;
    let mut of_far = Watch::open(&root, "/far/", "/far0", last + 1).await?;
    let mut of_near = Watch::open(&root, "/near/", "/near0", last + 1).await?;

    absence.begin(family).await?;
    for attempt in ["the first", "the next"] {
        let begin = Instant::now();
        let (read, listed) = tokio::join!(get(&root, "/far/k"), list(&root));
        let took = begin.elapsed();
        ensure_away(read, "far").context("a key of the child")?;
        ensure_away(listed, "far").context("a list that spans it")?;
        ensure!(took < REFUSED_WITHIN, "{attempt} refusal took {took:?}");
    }
    ensure_away(put(&root, "/far/k", "refused").await, "far")?;
    let begin = Instant::now();
    let near = put(&root, "/near/k", "meanwhile").await?;
    let own = put(&root, "/own/k", "meanwhile").await?;
    get(&root, "/near/k").await?;
    ensure!(begin.elapsed() < Duration::from_secs(1), "others wait {:?}", begin.elapsed());
    of_near.reach(near).await.context("a watch of another child")?;

    // The merge goes on without the child.
    let took = spanning.reach(own).await.context("a spanning watch")?;
    ensure!(took < GOES_ON_WITHIN, "a spanning watch stood still for {took:?}");
    ensure!(spanning.keys() == ["/near/k", "/own/k"], "{:?}", spanning.keys());

    absence.end(family).await?;
    let back = put(&root, "/far/k", "back").await?;
    for watch in [&mut spanning, &mut of_far] {
        watch.reach(back).await.context("a watch of a child that is back")?;
    }
    ensure!(of_far.keys() == ["/far/k"], "{:?}", of_far.keys());
    let first = of_far.events.first().context("no event")?;
    let before = first.before.as_ref().map(|row| row.value.as_str());
    ensure!(before == Some("before"), "{first:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_lack_what_a_child_did_alone_start_afresh_and_others_do_not() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let family = Family::start().await?;
    let root = family.at_root.clone();
    let written = family.put_everywhere("before").await?;
    let last = written.iter().copied().max().unwrap_or(0);
    let mut spanning = Watch::all(&root, last + 1).await?;
    let mut of_far = Watch::open(&root, "/far/", "/far0", last + 1).await?;
    let mut of_near = Watch::open(&root, "/near/", "/near0", last + 1).await?;
    // They span stores as the first does, but nothing that they watch will come late.
    let mut elsewhere = Watch::open(&root, "/near/", "/own0", last + 1).await?;
    let mut untouched = Watch::open(&root, "/far/quiet", "/own0", last + 1).await?;

    family.cut_off().await?;
    let alone = put(&family.at_far, "/far/alone", "1").await?;
    // The child allocates above what it had closed ahead, and so does the other.
    put_until_above(&root, "/near/k", alone).await?;
    let own = put(&root, "/own/k", "above").await?;
    spanning.reach(own).await?;
    let told = spanning.told;
    ensure!(told > alone, "{told} is not above {alone}");
    let resumed_from = told + 1;

    family.reconnect().await?;
    let compacted = spanning.ended().await.context("a watcher that lacks a change")?;
    ensure!(compacted > told, "ended at {compacted}, though it was told of {told}");
    // It waited for its one store, so it lacks nothing.
    of_far.reach(alone).await.context("a watch of the child alone")?;
    ensure!(of_far.keys() == ["/far/alone"], "{:?}", of_far.keys());

    // A client that was away in between lacks the same.
    let mut resumed = Watch::all(&root, resumed_from).await?;
    resumed.ended().await.context("a watcher that resumes where changes are lacking")?;
    let (listed, kvs) = list(&root).await?;
    ensure!(names(&kvs).contains(&"/far/alone".to_owned()), "{:?}", names(&kvs));
    let mut afresh = Watch::all(&root, listed + 1).await?;

    let back = put(&root, "/far/k", "back").await?;
    let near = put(&root, "/near/k", "back").await?;
    let end = put(&root, "/own/k", "end").await?;
    afresh.reach(end).await.context("a watcher that listed afresh")?;
    ensure!(afresh.keys() == ["/far/k", "/near/k", "/own/k"], "{:?}", afresh.keys());
    of_near.reach(near).await.context("a watch of another child")?;
    elsewhere.reach(end).await.context("a spanning watch that lacks nothing")?;
    untouched.reach(end).await.context("a spanning watch of other keys of the child")?;
    of_far.reach(back).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_compacts_while_it_is_cut_off_is_attached_again() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let family = Family::start().await?;
    let root = family.at_root.clone();
    let written = family.put_everywhere("before").await?;
    let last = written.iter().copied().max().unwrap_or(0);
    let mut spanning = Watch::all(&root, last + 1).await?;
    family.cut_off().await?;
    put(&family.at_far, "/far/alone", "1").await?;
    let alone = put(&family.at_far, "/far/alone", "2").await?;
    put_until_above(&root, "/near/k", alone).await?;
    spanning.reach(put(&root, "/own/k", "above").await?).await?;
    // It has clients of its own, which compact what they do not need.
    compact(&family.at_far, alone).await?;

    family.reconnect().await?;
    spanning.ended().await.context("a watcher that lacks what is compacted")?;
    let (listed, kvs) = list(&root).await?;
    ensure!(names(&kvs).contains(&"/far/alone".to_owned()), "{:?}", names(&kvs));
    let mut afresh = Watch::all(&root, listed + 1).await?;
    let back = put(&root, "/far/k", "back").await?;
    afresh.reach(back).await.context("a watcher that listed afresh")?;
    ensure!(afresh.keys() == ["/far/k"], "{:?}", afresh.keys());
    Ok(())
}

/// Writes a key until a revision lies above `floor`.
async fn put_until_above(channel: &Channel, key: &str, floor: i64) -> Result<i64> {
    eventually("the clock passes what the child did alone", BACK_WITHIN, async || {
        let revision = put(channel, key, "above").await?;
        ensure!(revision > floor, "{revision} is not above {floor}");
        Ok(revision)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_a_silent_child_may_have_is_answered_as_unknown() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let family = Family::start().await?;
    let root = family.at_root.clone();
    family.put_everywhere("before").await?;
    family.far.signal("STOP")?;
    let begin = Instant::now();
    let status = put(&root, "/far/k", "maybe").await.err().context("a stopped node answered")?;
    ensure!(begin.elapsed() < REFUSED_WITHIN, "the answer took {:?}", begin.elapsed());
    let is_unknown = status.message() == "etcdserver: request timed out";
    ensure!(status.code() == Code::Unavailable && is_unknown, "{status:?}");
    family.far.signal("CONT")?;
    family.reconnect().await?;
    let value = get(&root, "/far/k").await?;
    ensure!(matches!(value.as_deref(), Some("maybe" | "before")), "{value:?}");
    Ok(())
}

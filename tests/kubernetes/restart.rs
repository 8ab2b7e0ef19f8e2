//! A restart of the server under load: writers go on through it, watchers must miss nothing.
//!
//! A child of a tree may have changes, durable right before it was killed, that its parents had not
//! heard of when they went on without it. Then its watches can't be taken up, and what is listed anew
//! must show them; [`Ledger::agrees_with`] says which changes these may be.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    resource::{CONFIGMAPS, LEASES, PODS, Resource, TEAM_A, TEAM_B, WIDGETS, full_name, revision},
    stores,
    support::{
        controlplane::ControlPlane,
        http::{Api, Connection},
        process::{Process, Signal, eventually},
        server::Child,
    },
    witness::{Change, History, List, Witness},
};

/// How many writes each writer gets through before the restart, and again after it.
const WRITES_AROUND: usize = 20;
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const TEAMS: [&str; 2] = [TEAM_A, TEAM_B];
/// Writers pause this long between objects: what counts is when they write, not how much.
const WRITER_PACE: Duration = Duration::from_millis(20);

/// Writes one kind of object without end, in one namespace after the other, until told to stop.
pub(crate) struct Writer {
    pub(crate) resource: Resource,
    pub(crate) witness: Witness,
    pub(crate) progress: Arc<Progress>,
    task: JoinHandle<Result<Ledger>>,
}

#[derive(Default)]
pub(crate) struct Progress {
    begun: AtomicUsize,
    acknowledged: AtomicUsize,
    /// Since the last turn that was refused.
    in_a_row: AtomicUsize,
    pub(crate) refused: AtomicUsize,
    /// The newest revision that was acknowledged.
    pub(crate) written: AtomicU64,
    stop: AtomicBool,
}

/// Objects that may have changed unseen, since a child was away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unseen {
    pub(crate) child: Child,
    /// All up to here was shown before the child was struck.
    pub(crate) since: u64,
}

/// What the API server has acknowledged.
#[derive(Default)]
pub(crate) struct Ledger {
    resource: &'static str,
    /// Each object as it was answered to a create or a patch.
    written: Vec<(String, u64)>,
    kept: BTreeSet<String>,
    /// Each with the last revision of before.
    deleted: BTreeMap<String, u64>,
}

/// What is stopped and started again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    /// The server, by a signal.
    Server(Signal),
    /// The server that has the keys of a route, by SIGKILL to all its processes.
    Behind(usize),
    /// A node of the tree below the server, by SIGKILL.
    Child(Child),
}

/// Strikes while four kinds of objects are written. Raw watches and one of kubectl's must show every
/// acknowledged write, once and in order, and end at what a list shows.
pub(crate) async fn watches_survive(plane: &mut ControlPlane, blow: Blow) -> Result<()> {
    let mut printer = start_kubectl_watch(plane, blow)?;
    eventually("kubectl watches", DEADLINE, async || {
        ensure!(!printer.output()?.is_empty(), "it has printed nothing");
        Ok(())
    })
    .await?;
    let mut writers = Vec::new();
    for resource in [CONFIGMAPS, PODS, LEASES, WIDGETS] {
        writers.push(Writer::start(resource, plane.api, &TEAMS, &blow.name()).await?);
    }
    writes_go_on(writers.iter()).await?;
    let shown: Vec<_> = writers.iter().map(|writer| writer.witness.history().position()).collect();
    let begin = Instant::now();
    blow.strike(plane).await?;
    let stopped = begin.elapsed();
    match blow {
        Blow::Server(_) => api_server_misses_its_store(plane, &writers).await?,
        Blow::Behind(_) | Blow::Child(_) => only_its_objects_are_refused(blow, &writers).await?,
    }
    blow.mend(plane).await?;
    let started = begin.elapsed();
    all_writes_go_on(&writers).await?;
    let back = begin.elapsed();
    eprintln!(
        "   stopped after {stopped:.1?}, started after {started:.1?}, written to after {back:.1?}"
    );

    for (writer, since) in writers.into_iter().zip(shown) {
        let resource = writer.resource;
        let refused = writer.progress.refused.load(Ordering::Relaxed);
        let (ledger, history) = writer.finish().await?;
        let unseen = blow.child().map(|child| Unseen { child, since });
        ledger.agrees_with(&history, unseen).with_context(|| format!("{resource:?}"))?;
        eprintln!(
            "   {}: {} writes acknowledged, {refused} turns refused, {} events, {} lists anew",
            resource.plural,
            ledger.written.len() + ledger.deleted.len(),
            history.events.len(),
            history.relists().len(),
        );
        stores::server_holds_what_is_listed(plane, resource).await?;
        history.was_not_ended().with_context(|| format!("{blow:?}: {}", resource.plural))?;
        let may_lack = unseen.is_some_and(|unseen| unseen.has_some(resource.plural));
        let is_whole = history.relists().is_empty();
        ensure!(is_whole || may_lack, "{} had to be listed anew", resource.plural);
        if resource.plural == PODS.plural {
            kubectl_has_printed(&mut printer, &ledger, !is_whole).await?;
        }
    }
    Ok(())
}

// === impl Blow ===

impl Blow {
    /// A part of objects' names.
    fn name(self) -> String {
        match self {
            Self::Server(signal) => format!("{signal:?}").to_lowercase(),
            Self::Behind(at) => format!("behind-{at}"),
            Self::Child(child) => format!("{child:?}").to_lowercase(),
        }
    }

    fn child(self) -> Option<Child> {
        if let Self::Child(child) = self { Some(child) } else { None }
    }

    /// Kinds of objects of which those in one namespace at least are not touched.
    fn others(self) -> &'static [Resource] {
        match self {
            Self::Server(_) => &[],
            // The third has what is left of a namespace, and so neither leases nor widgets.
            Self::Behind(2) => &[LEASES, WIDGETS],
            Self::Behind(_) => &[CONFIGMAPS, WIDGETS],
            Self::Child(_) => &[CONFIGMAPS, PODS, LEASES, WIDGETS],
        }
    }

    async fn strike(self, plane: &mut ControlPlane) -> Result<()> {
        match self {
            Self::Server(signal) => plane.server.stop(signal).await,
            Self::Behind(at) => plane.server.behind()[at].kill().await,
            Self::Child(child) => plane.server.child(child)?.kill(),
        }
    }

    async fn mend(self, plane: &mut ControlPlane) -> Result<()> {
        match self {
            Self::Server(_) => plane.server.start().await,
            Self::Behind(at) => plane.server.behind()[at].start().await,
            Self::Child(child) => plane.server.child(child)?.start().await.map(drop),
        }
    }
}

// === impl Writer ===

impl Writer {
    /// Starts it with a witness. The name of the round is a part of objects' names.
    pub(crate) async fn start(
        resource: Resource,
        api: Api,
        namespaces: &'static [&'static str],
        round: &str,
    ) -> Result<Self> {
        let witness = Witness::of(resource, api).await?;
        let progress = Arc::new(Progress::default());
        let round = round.to_owned();
        let shared = Arc::clone(&progress);
        let task = tokio::spawn(async move {
            let outcome = write(resource, api, namespaces, round, shared).await;
            outcome.inspect_err(|error| eprintln!("   the writer of {resource:?}: {error:#}"))
        });
        Ok(Self { resource, witness, progress, task })
    }

    /// Stops the writer, then lets the witness see the end of what was written.
    pub(crate) async fn finish(self) -> Result<(Ledger, History)> {
        let (ledger, witness) = self.stop().await?;
        Ok((ledger, witness.agrees_with_a_list().await?))
    }

    /// Stops the writer; the witness goes on.
    pub(crate) async fn stop(self) -> Result<(Ledger, Witness)> {
        self.progress.stop.store(true, Ordering::Relaxed);
        Ok((self.task.await??, self.witness))
    }
}

async fn write(
    resource: Resource,
    api: Api,
    namespaces: &[&str],
    round: String,
    progress: Arc<Progress>,
) -> Result<Ledger> {
    let mut connection = api.connect().await?;
    let mut ledger = Ledger { resource: resource.plural, ..Ledger::default() };
    let mut turn = 0;
    while !progress.stop.load(Ordering::Relaxed) {
        let collection = resource.within(namespaces[turn % namespaces.len()]);
        let name = format!("{round}-{turn}");
        progress.begun.fetch_add(1, Ordering::Relaxed);
        let answered =
            write_one(&mut connection, &mut ledger, resource, &collection, &name).await?;
        if answered {
            progress.acknowledged.fetch_add(1, Ordering::Relaxed);
            progress.in_a_row.fetch_add(1, Ordering::Relaxed);
        } else {
            progress.refused.fetch_add(1, Ordering::Relaxed);
            progress.in_a_row.store(0, Ordering::Relaxed);
        }
        let written = ledger.written.last().map_or(0, |(_, revision)| *revision);
        progress.written.store(written, Ordering::Relaxed);
        turn += 1;
        tokio::time::sleep(WRITER_PACE).await;
    }
    Ok(ledger)
}

/// Makes an object, patches it, and deletes every second one in each namespace. Answers whether all
/// was acknowledged; nothing is known of a write that was not, and so nothing is noted.
async fn write_one(
    connection: &mut Connection,
    ledger: &mut Ledger,
    resource: Resource,
    collection: &str,
    name: &str,
) -> Result<bool> {
    let made = connection.send(Method::POST, collection, Some(&resource.object(name))).await?;
    if !made.status.is_success() {
        return Ok(false);
    }
    let full_name = full_name(&made.body)?;
    ledger.written.push((full_name.clone(), revision(&made.body)?));

    let path = format!("{collection}/{name}");
    let patch = json!({ "metadata": { "annotations": { "turn": name } } });
    let patched = connection.send(Method::PATCH, &path, Some(&patch)).await?;
    if patched.status.is_success() {
        ledger.written.push((full_name.clone(), revision(&patched.body)?));
    }
    let last = ledger.written.last().map_or(0, |(_, revision)| *revision);
    let stays = ledger.written.len() % 4 < 2;
    if stays {
        ledger.kept.insert(full_name);
        return Ok(patched.status.is_success());
    }
    let deleted = connection.send(Method::DELETE, &path, None).await?;
    if deleted.status.is_success() {
        ledger.deleted.insert(full_name, last);
    }
    Ok(patched.status.is_success() && deleted.status.is_success())
}

/// Waits until each writer has got through some more writes than now.
pub(crate) async fn writes_go_on(writers: impl Iterator<Item = &Writer>) -> Result<()> {
    for writer in writers {
        let acknowledged = || writer.progress.acknowledged.load(Ordering::Relaxed);
        let goal = acknowledged() + WRITES_AROUND;
        let what = format!("the writer of {} goes on", writer.resource.plural);
        eventually(&what, DEADLINE, async || {
            ensure!(!writer.task.is_finished(), "it has ended");
            ensure!(acknowledged() >= goal, "it is at {} of {goal}", acknowledged());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Waits until each writer gets through, with none of its namespaces refused any more.
pub(crate) async fn all_writes_go_on(writers: &[Writer]) -> Result<()> {
    writes_go_on(writers.iter()).await?;
    eventually("no write is refused any more", DEADLINE, async || {
        for Writer { resource, progress, task, .. } in writers {
            ensure!(!task.is_finished(), "the writer of {} has ended", resource.plural);
            let in_a_row = progress.in_a_row.load(Ordering::Relaxed);
            ensure!(in_a_row >= WRITES_AROUND, "{}: {in_a_row} in a row", resource.plural);
        }
        Ok(())
    })
    .await
}

/// Waits until the API server says that its store is gone, with a write of each writer in flight:
/// it keeps a write waiting for its store until the client's time is up, and so does a client of
/// etcd.
async fn api_server_misses_its_store(plane: &ControlPlane, writers: &[Writer]) -> Result<()> {
    eventually("the API server misses its store", DEADLINE, async || {
        let health = plane.api.send(Method::GET, "/readyz/etcd", None).await?;
        ensure!(!health.status.is_success(), "it takes its store for healthy");
        for Writer { resource, progress, .. } in writers {
            let begun = progress.begun.load(Ordering::Relaxed);
            let ended = [&progress.acknowledged, &progress.refused];
            let ended: usize = ended.iter().map(|counter| counter.load(Ordering::Relaxed)).sum();
            ensure!(begun > ended, "no write of {} is in flight", resource.plural);
        }
        Ok(())
    })
    .await
}

/// Waits until some object is refused, while those of the others go on.
async fn only_its_objects_are_refused(blow: Blow, writers: &[Writer]) -> Result<()> {
    eventually("writes are refused", DEADLINE, async || {
        let refused = |writer: &Writer| writer.progress.refused.load(Ordering::Relaxed);
        ensure!(writers.iter().any(|writer| refused(writer) > 0), "all are taken");
        Ok(())
    })
    .await?;
    let is_other = |writer: &&Writer| {
        blow.others().iter().any(|resource| resource.plural == writer.resource.plural)
    };
    writes_go_on(writers.iter().filter(is_other)).await
}

// === impl Unseen ===

impl Unseen {
    fn has(&self, resource: &str, name: &str) -> bool {
        self.has_some(resource) && name.split('/').next() == Some(TEAM_A)
    }

    fn has_some(&self, resource: &str) -> bool {
        match self.child {
            Child::RegionA => true,
            Child::TenantA => resource == PODS.plural,
        }
    }
}

// === impl Ledger ===

impl Ledger {
    /// Every acknowledged write is an event of its own, and its object is there, or gone, at the
    /// end. A list takes the place of what was before it: at the beginning of all, and where the watch
    /// could not be taken up of what was done behind its end, or by a child that was away.
    pub(crate) fn agrees_with(&self, history: &History, unseen: Option<Unseen>) -> Result<()> {
        let shown: BTreeSet<_> =
            history.events.iter().map(|seen| (seen.name.as_str(), seen.revision)).collect();
        for (name, revision) in &self.written {
            let unseen = unseen.filter(|unseen| unseen.has(self.resource, name));
            let may_lack =
                |list: &List| *revision > unseen.map_or(list.after, |it| it.since.min(list.after));
            let has_it = |list: &List| match list.objects.get(name) {
                Some(listed) => listed >= revision,
                None => list.revision >= *revision && !self.kept.contains(name),
            };
            let is_shown = shown.contains(&(name.as_str(), *revision))
                || history.lists.iter().any(|list| may_lack(list) && has_it(list));
            ensure!(is_shown, "nothing shows {name} at revision {revision}");
        }
        let present = history.present()?;
        let lost = self.kept.iter().find(|name| !present.contains_key(*name));
        ensure!(lost.is_none(), "{lost:?} was acknowledged and is gone");
        let deletions: BTreeSet<_> = history
            .events
            .iter()
            .filter(|seen| seen.change == Change::Deleted)
            .map(|seen| &seen.name)
            .collect();
        for (name, after) in &self.deleted {
            let lacks_it = |list: &List| list.revision > *after && !list.objects.contains_key(name);
            let is_shown = deletions.contains(name) || history.lists.iter().any(lacks_it);
            ensure!(is_shown, "nothing shows that {name} was deleted");
        }
        let risen = self.deleted.keys().find(|name| present.contains_key(*name));
        ensure!(risen.is_none(), "{risen:?} was deleted and is there again");
        Ok(())
    }
}

/// kubectl does not take up a watch that ends. So what it prints to the end also proves that the
/// API server's own watch went on through the restart.
fn start_kubectl_watch(plane: &ControlPlane, blow: Blow) -> Result<Process> {
    let line =
        "{.object.metadata.namespace}/{.object.metadata.name} {.object.metadata.resourceVersion}";
    let format = format!("jsonpath={line}{{\"\\n\"}}");
    let arguments = ["get", "pods", "-A", "--watch", "--output-watch-events", "-o", &format];
    plane.start_kubectl(&format!("kubectl-watch-{}", blow.name()), &arguments)
}

/// One whose watch could not be taken up has ended, so that whoever started it knows.
async fn kubectl_has_printed(
    printer: &mut Process,
    ledger: &Ledger,
    may_have_ended: bool,
) -> Result<()> {
    eventually("kubectl has printed each pod that was written", DEADLINE, async || {
        if may_have_ended && printer.ensure_running().is_err() {
            return Ok(());
        }
        let output = printer.output()?;
        let lines: BTreeSet<_> = output.lines().collect();
        for (name, revision) in &ledger.written {
            let line = format!("{name} {revision}");
            ensure!(lines.contains(line.as_str()), "it has not printed {line}");
        }
        Ok(())
    })
    .await
}

//! A restart of the server under load: writers go on through it, watchers must miss nothing.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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
    },
    witness::{Change, History, Witness},
};

/// How many writes each writer gets through before the restart, and again after it.
const WRITES_AROUND: usize = 20;
const DEADLINE: Duration = Duration::from_secs(60);
/// Writers pause this long between objects: what counts is when they write, not how much.
const WRITER_PACE: Duration = Duration::from_millis(20);

/// Writes one kind of object without end, in two namespaces, until told to stop.
struct Writer {
    resource: Resource,
    witness: Witness,
    progress: Arc<Progress>,
    task: JoinHandle<Result<Ledger>>,
}

#[derive(Default)]
struct Progress {
    begun: AtomicUsize,
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
    stop: AtomicBool,
}

/// What the API server has acknowledged.
#[derive(Default)]
struct Ledger {
    /// Each object as it was answered to a create or a patch.
    written: Vec<(String, u64)>,
    kept: BTreeSet<String>,
    deleted: BTreeSet<String>,
}

/// What is stopped and started again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    /// The server, by a signal.
    Server(Signal),
    /// The server that has the keys of a route, by SIGKILL to all its processes.
    Behind(usize),
}

/// Strikes while four kinds of objects are written. Raw watches and one of kubectl's must show every
/// acknowledged write, once and in order, and end at what a list shows.
pub(crate) async fn watches_survive(plane: &mut ControlPlane, blow: Blow) -> Result<()> {
    let printer = start_kubectl_watch(plane, blow)?;
    eventually("kubectl watches", DEADLINE, async || {
        ensure!(!printer.output()?.is_empty(), "it has printed nothing");
        Ok(())
    })
    .await?;
    let mut writers = Vec::new();
    for resource in [CONFIGMAPS, PODS, LEASES, WIDGETS] {
        writers.push(Writer::start(resource, plane.api, blow).await?);
    }
    writes_go_on(writers.iter()).await?;
    let begin = Instant::now();
    blow.strike(plane).await?;
    let stopped = begin.elapsed();
    match blow {
        Blow::Server(_) => api_server_misses_its_store(plane, &writers).await?,
        Blow::Behind(at) => only_its_objects_are_refused(at, &writers).await?,
    }
    blow.mend(plane).await?;
    let started = begin.elapsed();
    writes_go_on(writers.iter()).await?;
    let back = begin.elapsed();
    eprintln!(
        "   stopped after {stopped:.1?}, started after {started:.1?}, written to after {back:.1?}"
    );

    for writer in writers {
        let resource = writer.resource;
        let refused = writer.progress.refused.load(Ordering::Relaxed);
        let (ledger, history) = writer.finish().await?;
        ledger.agrees_with(&history).with_context(|| format!("{resource:?}"))?;
        eprintln!(
            "   {}: {} writes acknowledged, {refused} turns refused, {} events",
            resource.plural,
            ledger.written.len() + ledger.deleted.len(),
            history.events.len(),
        );
        stores::server_holds_what_is_listed(plane, resource).await?;
        ensure!(history.resumed == 0, "{blow:?} ended the watch of {}", resource.plural);
        if resource.plural == PODS.plural {
            kubectl_has_printed(&printer, &ledger).await?;
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
        }
    }

    async fn strike(self, plane: &mut ControlPlane) -> Result<()> {
        match self {
            Self::Server(signal) => plane.server.stop(signal).await,
            Self::Behind(at) => plane.server.behind()[at].kill().await,
        }
    }

    async fn mend(self, plane: &mut ControlPlane) -> Result<()> {
        match self {
            Self::Server(_) => plane.server.start().await,
            Self::Behind(at) => plane.server.behind()[at].start().await,
        }
    }
}

// === impl Writer ===

impl Writer {
    async fn start(resource: Resource, api: Api, blow: Blow) -> Result<Self> {
        let witness = Witness::of(resource, api).await?;
        let progress = Arc::new(Progress::default());
        let round = blow.name();
        let shared = Arc::clone(&progress);
        let task = tokio::spawn(async move {
            let outcome = write(resource, api, round, shared).await;
            outcome.inspect_err(|error| eprintln!("   the writer of {resource:?}: {error:#}"))
        });
        Ok(Self { resource, witness, progress, task })
    }

    /// Stops the writer, then lets the witness see the end of what was written.
    async fn finish(self) -> Result<(Ledger, History)> {
        self.progress.stop.store(true, Ordering::Relaxed);
        let ledger = self.task.await??;
        Ok((ledger, self.witness.agrees_with_a_list().await?))
    }
}

async fn write(
    resource: Resource,
    api: Api,
    round: String,
    progress: Arc<Progress>,
) -> Result<Ledger> {
    let mut connection = api.connect().await?;
    let mut ledger = Ledger::default();
    let mut turn = 0;
    while !progress.stop.load(Ordering::Relaxed) {
        let collection = resource.within([TEAM_A, TEAM_B][turn % 2]);
        let name = format!("{round}-{turn}");
        progress.begun.fetch_add(1, Ordering::Relaxed);
        let answered =
            write_one(&mut connection, &mut ledger, resource, &collection, &name).await?;
        match answered {
            true => progress.acknowledged.fetch_add(1, Ordering::Relaxed),
            false => progress.refused.fetch_add(1, Ordering::Relaxed),
        };
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
    let stays = ledger.written.len() % 4 < 2;
    if stays {
        ledger.kept.insert(full_name);
        return Ok(patched.status.is_success());
    }
    let deleted = connection.send(Method::DELETE, &path, None).await?;
    if deleted.status.is_success() {
        ledger.deleted.insert(full_name);
    }
    Ok(patched.status.is_success() && deleted.status.is_success())
}

/// Waits until each writer has got through some more writes than now.
async fn writes_go_on(writers: impl Iterator<Item = &Writer>) -> Result<()> {
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

/// Waits until some object of the database is refused, while those of the others go on.
async fn only_its_objects_are_refused(at: usize, writers: &[Writer]) -> Result<()> {
    eventually("writes are refused", DEADLINE, async || {
        let refused = |writer: &Writer| writer.progress.refused.load(Ordering::Relaxed);
        ensure!(writers.iter().any(|writer| refused(writer) > 0), "all are taken");
        Ok(())
    })
    .await?;
    // The third has what is left of a namespace, and so neither leases nor widgets.
    let others = if at == 2 { [LEASES, WIDGETS] } else { [CONFIGMAPS, WIDGETS] };
    let others = others.map(|resource| resource.plural);
    writes_go_on(writers.iter().filter(|writer| others.contains(&writer.resource.plural))).await
}

// === impl Ledger ===

impl Ledger {
    /// Every acknowledged write is an event of its own, and its object is there, or gone, at the
    /// end.
    fn agrees_with(&self, history: &History) -> Result<()> {
        let shown: BTreeSet<_> =
            history.events.iter().map(|seen| (seen.name.as_str(), seen.revision)).collect();
        for (name, revision) in &self.written {
            let is_shown = shown.contains(&(name.as_str(), *revision));
            ensure!(is_shown, "no event shows {name} at revision {revision}");
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
        let unseen = self.deleted.iter().find(|name| !deletions.contains(name));
        ensure!(unseen.is_none(), "no event shows that {unseen:?} was deleted");
        let risen = self.deleted.iter().find(|name| present.contains_key(*name));
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

async fn kubectl_has_printed(printer: &Process, ledger: &Ledger) -> Result<()> {
    eventually("kubectl has printed each pod that was written", DEADLINE, async || {
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

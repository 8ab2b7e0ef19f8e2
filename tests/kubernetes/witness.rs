//! A watcher that writes down all it is shown, and holds it against what the watch promises.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    resource::{Resource, full_name, revision, revisions_by_name},
    support::{http::Api, process::eventually},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Modified,
    Deleted,
}

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) change: Change,
    pub(crate) name: String,
    pub(crate) revision: u64,
}

/// What a witness knows: the list it began with, each event since, and each list it had to make anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) lists: Vec<List>,
    pub(crate) events: Vec<Seen>,
    /// How often the watch ended and was taken up again where it had ended.
    resumed: usize,
    /// How many watches of this resource the API server had ended as slow until the witness was asked.
    slow: usize,
    broken: Option<String>,
}

/// All objects as of a revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct List {
    pub(crate) revision: u64,
    pub(crate) objects: BTreeMap<String, u64>,
    /// Up to where the watch had come that this list took the place of.
    pub(crate) after: u64,
}

pub(crate) struct Witness {
    api: Api,
    resource: Resource,
    path: String,
    slow_before: usize,
    history: Arc<Mutex<History>>,
    task: JoinHandle<()>,
}

// === impl Witness ===

impl Witness {
    /// Lists the objects of all namespaces, and watches from there.
    pub(crate) async fn of(resource: Resource, api: Api) -> Result<Self> {
        let path = resource.everywhere();
        let slow_before = ended_as_slow(api, resource).await?;
        let list = List::of(api, &path, 0).await?;
        let from = list.revision;
        let history = History { lists: vec![list], ..History::default() };
        let history = Arc::new(Mutex::new(history));
        let task = tokio::spawn(follow(api, path.clone(), from, Arc::clone(&history)));
        Ok(Self { api, resource, path, slow_before, history, task })
    }

    /// Waits until the witness has been shown all that a list shows now, and checks that replaying
    /// its events gives exactly that list.
    pub(crate) async fn agrees_with_a_list(&self) -> Result<History> {
        let mut list = List::default();
        let what = format!("the watch of {} shows what the list shows", self.path);
        let mut history = eventually(&what, Duration::from_secs(30), async || {
            let history = self.history();
            // What it had to list anew says nothing of the time before.
            if history.newest_list()?.revision > list.revision {
                list = List::of(self.api, &self.path, 0).await?;
            }
            let replayed = history.replay_until(list.revision)?;
            for (name, revision) in &list.objects {
                let shown = replayed.get(name);
                ensure!(shown == Some(revision), "{name} of revision {revision}: {shown:?}");
            }
            let gone = replayed.keys().find(|name| !list.objects.contains_key(*name));
            ensure!(gone.is_none(), "{gone:?} is gone, but no event said so");
            Ok(history)
        })
        .await?;
        let slow = ended_as_slow(self.api, self.resource).await?;
        // One that was started anew has counted anew.
        history.slow = slow.saturating_sub(self.slow_before);
        Ok(history)
    }

    pub(crate) fn history(&self) -> History {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl List ===

impl List {
    async fn of(api: Api, path: &str, after: u64) -> Result<Self> {
        let list = api.get(path).await?;
        Ok(Self { revision: revision(&list)?, objects: revisions_by_name(&list)?, after })
    }
}

// === impl History ===

impl History {
    /// The lists that were made since the watch could not be taken up where it had ended.
    pub(crate) fn relists(&self) -> &[List] {
        self.lists.get(1..).unwrap_or_default()
    }

    fn newest_list(&self) -> Result<&List> {
        self.lists.last().context("a history begins with a list")
    }

    /// Up to where it shows all there was.
    pub(crate) fn position(&self) -> u64 {
        let list = self.lists.last().map_or(0, |list| list.revision);
        self.events.last().map_or(list, |seen| seen.revision.max(list))
    }

    /// Whether the watch was never ended, but by the API server since the witness did not keep up with it.
    pub(crate) fn was_not_ended(&self) -> Result<()> {
        let Self { resumed, slow, .. } = self;
        ensure!(
            resumed <= slow,
            "the watch ended {resumed} times, {slow} of them since it was slow"
        );
        Ok(())
    }

    /// How many events of a kind there were in a namespace.
    pub(crate) fn count(&self, change: Change, namespace: &str) -> usize {
        let within = |seen: &Seen| seen.name.split_once('/').is_some_and(|(of, _)| of == namespace);
        self.events.iter().filter(|seen| seen.change == change && within(seen)).count()
    }

    /// What the events so far have left.
    pub(crate) fn present(&self) -> Result<BTreeMap<String, u64>> {
        self.replay_until(u64::MAX)
    }

    /// The state after all events up to a revision. An event that does not fit the state before it,
    /// such as an object that is added twice, is an error.
    fn replay_until(&self, revision: u64) -> Result<BTreeMap<String, u64>> {
        if let Some(reason) = &self.broken {
            bail!("the watch broke: {reason}");
        }
        let list = self.newest_list()?;
        ensure!(list.revision <= revision, "it was listed anew at {}", list.revision);
        let mut state = list.objects.clone();
        let since = list.revision + 1..=revision;
        for seen in self.events.iter().filter(|seen| since.contains(&seen.revision)) {
            let before = match seen.change {
                Change::Deleted => state.remove(&seen.name),
                Change::Added | Change::Modified => state.insert(seen.name.clone(), seen.revision),
            };
            let fits = before.is_some() == (seen.change != Change::Added);
            ensure!(fits, "{seen:?} does not follow from {before:?}");
        }
        Ok(state)
    }

    /// Goes on from a list.
    fn begin_anew(&mut self, list: List, position: &mut u64) -> Result<()> {
        ensure!(list.revision >= *position, "a list of {} comes after {position}", list.revision);
        *position = list.revision;
        self.lists.push(list);
        Ok(())
    }

    /// Takes in one line of the watch; `position` is the revision up to which all was shown.
    fn take_in(&mut self, line: &Value, position: &mut u64) -> Result<()> {
        let object = &line["object"];
        let change = match line["type"].as_str() {
            Some("ADDED") => Change::Added,
            Some("MODIFIED") => Change::Modified,
            Some("DELETED") => Change::Deleted,
            Some("BOOKMARK") => {
                let bookmark = revision(object)?;
                ensure!(bookmark >= *position, "bookmark {bookmark} comes after {position}");
                *position = bookmark;
                return Ok(());
            }
            _ => bail!("{line}"),
        };
        let seen = Seen { change, name: full_name(object)?, revision: revision(object)? };
        ensure!(seen.revision > *position, "{seen:?} comes after revision {position}");
        *position = seen.revision;
        self.events.push(seen);
        Ok(())
    }
}

/// Watches for ever, as every client does: a watch that ended is taken up where it ended, and where
/// that is refused, since changes were passed over, all is listed anew.
async fn follow(api: Api, path: String, mut position: u64, history: Arc<Mutex<History>>) {
    let locked = || history.lock().unwrap_or_else(PoisonError::into_inner);
    // How often it has ended since it last showed anything.
    let mut ended = 0;
    loop {
        let query = format!("?watch=1&allowWatchBookmarks=true&resourceVersion={position}");
        let mut is_expired = false;
        if let Ok(mut lines) = api.watch(&format!("{path}{query}")).await {
            while let Ok(Some(line)) = lines.next().await {
                is_expired = line["type"] == "ERROR" && line["object"]["reason"] == "Expired";
                if is_expired {
                    break;
                }
                let mut history = locked();
                history.resumed += std::mem::take(&mut ended);
                if let Err(reason) = history.take_in(&line, &mut position) {
                    history.broken = Some(format!("{reason:#}"));
                    return;
                }
            }
        }
        if is_expired && let Ok(list) = List::of(api, &path, position).await {
            if let Err(reason) = locked().begin_anew(list, &mut position) {
                locked().broken = Some(format!("{reason:#}"));
                return;
            }
            ended = 0;
            continue;
        }
        ended += 1;
        // The API server may be without its store: asking it without a pause would only load it.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many watches of a resource the API server has ended since their clients did not keep up, as it does on
/// a busy machine whatever its store does.
async fn ended_as_slow(api: Api, resource: Resource) -> Result<usize> {
    let metrics = api.get("/metrics").await?;
    let metrics = metrics.as_str().context("metrics are text")?;
    let label = format!("resource=\"{}\"", resource.plural);
    let counters = metrics.lines().filter_map(|line| {
        let (labels, count) =
            line.strip_prefix("apiserver_terminated_watchers_total{")?.rsplit_once("} ")?;
        labels.split(',').any(|it| it == label).then(|| count.parse::<usize>())
    });
    counters.sum::<Result<usize, _>>().context("a counter is a number")
}

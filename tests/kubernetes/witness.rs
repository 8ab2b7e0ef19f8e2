//! A watcher that writes down all it is shown, and holds it against what the watch promises.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
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

/// What a witness knows: the list it began with, and each event since.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    base: BTreeMap<String, u64>,
    pub(crate) events: Vec<Seen>,
    /// How often the watch ended and was taken up again where it had ended.
    pub(crate) resumed: usize,
    broken: Option<String>,
}

pub(crate) struct Witness {
    api: Api,
    path: String,
    history: Arc<Mutex<History>>,
    task: JoinHandle<()>,
}

// === impl Witness ===

impl Witness {
    /// Lists the objects of all namespaces, and watches from there.
    pub(crate) async fn of(resource: Resource, api: Api) -> Result<Self> {
        let path = resource.everywhere();
        let list = api.get(&path).await?;
        let from = revision(&list)?;
        let history = History { base: revisions_by_name(&list)?, ..History::default() };
        let history = Arc::new(Mutex::new(history));
        let task = tokio::spawn(follow(api, path.clone(), from, Arc::clone(&history)));
        Ok(Self { api, path, history, task })
    }

    /// Waits until the witness has been shown all that a list shows now, and checks that replaying
    /// its events gives exactly that list.
    pub(crate) async fn agrees_with_a_list(&self) -> Result<History> {
        let list = self.api.get(&self.path).await?;
        let listed = revisions_by_name(&list)?;
        let at = revision(&list)?;
        let what = format!("the watch of {} shows what the list shows", self.path);
        eventually(&what, Duration::from_secs(30), async || {
            let history = self.history();
            let replayed = history.replay_until(at)?;
            for (name, revision) in &listed {
                let shown = replayed.get(name);
                ensure!(shown == Some(revision), "{name} of revision {revision}: {shown:?}");
            }
            let gone = replayed.keys().find(|name| !listed.contains_key(*name));
            ensure!(gone.is_none(), "{gone:?} is gone, but no event said so");
            Ok(history)
        })
        .await
    }

    fn history(&self) -> History {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl History ===

impl History {
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
        let mut state = self.base.clone();
        for seen in self.events.iter().filter(|seen| seen.revision <= revision) {
            let before = match seen.change {
                Change::Deleted => state.remove(&seen.name),
                Change::Added | Change::Modified => state.insert(seen.name.clone(), seen.revision),
            };
            let fits = before.is_some() == (seen.change != Change::Added);
            ensure!(fits, "{seen:?} does not follow from {before:?}");
        }
        Ok(state)
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

/// Watches for ever, and takes up a watch that ended where it ended, as every client does.
async fn follow(api: Api, path: String, mut position: u64, history: Arc<Mutex<History>>) {
    let locked = || history.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let query = format!("?watch=1&allowWatchBookmarks=true&resourceVersion={position}");
        if let Ok(mut lines) = api.watch(&format!("{path}{query}")).await {
            while let Ok(Some(line)) = lines.next().await {
                let taken = locked().take_in(&line, &mut position);
                if let Err(reason) = taken {
                    locked().broken = Some(format!("{reason:#}"));
                    return;
                }
            }
        }
        locked().resumed += 1;
        // The API server may be without its store: asking it without a pause would only load it.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

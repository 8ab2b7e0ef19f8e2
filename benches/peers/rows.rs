//! The rows of the table: their names on the command line and their labels.

use crate::options::Plan;

/// One row. The number is of clients or of watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// The disk's own speed: what no durable writer can beat.
    Disk,
    /// A round trip between two threads: what no hop can beat.
    Loopback,
    StartFresh,
    Watchers,
    /// Scrapes of the metrics, beside as many watchers.
    Scrape,
    Create(usize),
    Update(usize),
    Get(usize),
    Watch(usize),
    /// Writers to so many groups of keys, each group in a store of its own where the peer has that.
    Merged(usize),
    ListPage,
    ListNext,
    ListAll,
    Count,
    /// Lists by a label: one object, one in a hundred, half of all; a page of one in a hundred.
    SelectOne,
    SelectHundredth,
    SelectHalf,
    SelectPage,
    /// Creates of objects of a kind that nobody selects, and of one that was selected by three labels.
    CreateObjects(usize),
    CreateSelected(usize),
    Keys,
    Stream,
    StartLoaded,
}

/// Into how many groups the keys of the merged rows fall.
pub(crate) const GROUPS: [usize; 3] = [2, 8, 32];

/// Writers of a merged row.
pub(crate) const MERGED_CLIENTS: usize = 64;

/// How many keys a page holds: the API server's own default for clients such as kubectl.
pub(crate) const PAGE: usize = 500;

// === impl Row ===

impl Row {
    pub(crate) fn all() -> Vec<Row> {
        use Row::*;
        let clients = [1, 64, 256];
        let mut rows = vec![Disk, Loopback, StartFresh, Watchers, Scrape];
        rows.extend(clients.map(Create));
        rows.extend(clients.map(Update));
        rows.extend([Get(1), Get(64), Watch(1), Watch(1000)]);
        rows.extend(GROUPS.map(Merged));
        rows.extend([ListPage, ListNext, ListAll, Count]);
        rows.extend([SelectOne, SelectHundredth, SelectHalf, SelectPage]);
        rows.extend([CreateObjects(64), CreateSelected(64)]);
        rows.extend([Keys, Stream, StartLoaded]);
        rows
    }

    pub(crate) fn id(&self) -> String {
        match self {
            Row::Disk => "disk".into(),
            Row::Loopback => "loopback".into(),
            Row::StartFresh => "start-fresh".into(),
            Row::Watchers => "watchers".into(),
            Row::Scrape => "scrape".into(),
            Row::Create(clients) => format!("create-{clients}"),
            Row::Update(clients) => format!("update-{clients}"),
            Row::Get(clients) => format!("get-{clients}"),
            Row::Watch(watchers) => format!("watch-{watchers}"),
            Row::Merged(groups) => format!("merged-{groups}"),
            Row::ListPage => "list-page".into(),
            Row::ListNext => "list-next".into(),
            Row::ListAll => "list-all".into(),
            Row::Count => "count".into(),
            Row::SelectOne => "select-one".into(),
            Row::SelectHundredth => "select-hundredth".into(),
            Row::SelectHalf => "select-half".into(),
            Row::SelectPage => "select-page".into(),
            Row::CreateObjects(clients) => format!("select-none-create-{clients}"),
            Row::CreateSelected(clients) => format!("select-create-{clients}"),
            Row::Keys => "keys".into(),
            Row::Stream => "stream".into(),
            Row::StartLoaded => "start-loaded".into(),
        }
    }

    /// `create` names every create row and `create-1` only the one with one client.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        let id = self.id();
        id == name || id.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
    }

    pub(crate) fn label(&self, plan: &Plan) -> String {
        let listed = || format!("{} keys × {}", plan.listed_keys, plan.listed_revisions);
        match self {
            Row::Disk => "disk, 1 KiB".into(),
            Row::Loopback => "loopback, there and back".into(),
            Row::StartFresh => "start, empty".into(),
            Row::Watchers => format!("{} idle watchers", plan.idle_watchers),
            Row::Scrape => format!("scrape beside {} idle watchers", plan.idle_watchers),
            Row::Create(clients) => format!("create, {}", counted(*clients, "client")),
            Row::Update(clients) => format!("guarded update, {}", counted(*clients, "client")),
            Row::Get(clients) => format!("get, {}", counted(*clients, "client")),
            Row::Watch(watchers) => format!("write to {}", counted(*watchers, "watcher")),
            Row::ListPage => format!("first page of {PAGE}, {}", listed()),
            Row::ListNext => format!("later pages of {PAGE}, {}", listed()),
            Row::ListAll => format!("list all, {}", listed()),
            Row::Count => format!("count, {}", listed()),
            Row::Merged(groups) => {
                format!("{MERGED_CLIENTS} writers to {groups} groups, 1 watcher")
            }
            Row::SelectOne => format!("one of {} objects by a label", plan.stored_keys),
            Row::SelectHundredth => format!("1 % of {} objects by a label", plan.stored_keys),
            Row::SelectHalf => format!("50 % of {} objects by a label", plan.stored_keys),
            Row::SelectPage => format!("first page of {PAGE} of that 1 %"),
            Row::CreateObjects(clients) => {
                format!("create, not selected, {}", counted(*clients, "client"))
            }
            Row::CreateSelected(clients) => {
                format!("create, selected by 3 labels, {}", counted(*clients, "client"))
            }
            Row::Keys => format!("{} keys", plan.stored_keys),
            Row::Stream => format!("stream of {} keys", plan.stored_keys),
            Row::StartLoaded => format!("start, {} keys", plan.stored_keys),
        }
    }
}

fn counted(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

//! Metrics: under etcd's names what etcd has too, so that its dashboards and alerts serve a node, and under
//! `pleach_` what only a node has. What a node can't say truly is left out: it has no raft and no peers.
//!
//! No label has more values than there are routes, methods, codes or kinds of errors.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use prometheus::{
    TextEncoder,
    core::Collector as _,
    process_collector::ProcessCollector,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{ETCD_VERSION, Services, calls::MethodMeter};
use crate::{
    node::AlarmKind,
    store::{
        Size, Store,
        meter::{BOUNDS, Counts, Meters, bound},
    },
};

/// What stores counted of their commits in all their lives: one that is opened anew begins at zero, and a sum of
/// several must not go back. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct CommitSums(Arc<Mutex<HashMap<Arc<str>, Lives>>>);

/// Of one store: in its lives before, and in this one.
#[derive(Debug, Default)]
struct Lives {
    before: (Counts, Counts),
    now: (Counts, Counts),
}

/// What the process takes of its machine.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub memory_bytes: u64,
    pub cpu_s: f64,
    pub open_files: u64,
    pub open_files_max: u64,
}

/// Families on their way, by their names.
#[derive(Default)]
struct Families(BTreeMap<&'static str, MetricFamily>);

/// What the labels of a metric are.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl Services {
    /// All metrics as they are now, ordered by name.
    pub async fn metrics(self) -> Vec<MetricFamily> {
        let mut all = Families::default();
        self.add_node(&mut all);
        self.add_certificates(&mut all);
        self.add_calls(&mut all);
        self.add_stores(&mut all).await;
        let mut families: Vec<_> = all.0.into_values().collect();
        families.extend(ProcessCollector::for_self().collect());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        families
    }

    /// The same as Prometheus reads it.
    pub(super) async fn metrics_text(&self) -> Result<String, String> {
        let families = self.clone().metrics().await;
        TextEncoder::new().encode_to_string(&families).map_err(|error| error.to_string())
    }

    fn add_node(&self, all: &mut Families) {
        let (node, hub) = (&self.node, self.node.hub());
        let member = format!("{:x}", node.identity().member);
        let version = env!("CARGO_PKG_VERSION");
        let minor = ETCD_VERSION.rsplit_once('.').map_or(ETCD_VERSION, |(minor, _)| minor);
        let named: [(_, _, Labels<'_>); 5] = [
            ("etcd_server_id", "The node's id, in hexadecimal.", &[("server_id", &member)]),
            (
                "etcd_server_version",
                "The etcd that it passes for.",
                &[("server_version", ETCD_VERSION)],
            ),
            (
                "etcd_cluster_version",
                "The same, less its last part.",
                &[("cluster_version", minor)],
            ),
            ("pleach_build_info", "The version of Pleach.", &[("version", version)]),
            ("etcd_server_has_leader", "Whether the node serves: always 1.", &[]),
        ];
        for (name, help, labels) in named {
            all.gauge(name, help, labels, 1.0);
        }
        let (taken, places) = self.places.taken();
        let gauges = [
            (
                "etcd_debugging_mvcc_current_revision",
                "The revision reached.",
                node.revision() as f64,
            ),
            (
                "etcd_debugging_mvcc_compact_revision",
                "The oldest revision that can be read.",
                node.root().compacted() as f64,
            ),
            ("etcd_debugging_mvcc_watch_stream_total", "Watch streams.", hub.streams() as f64),
            (
                "etcd_debugging_mvcc_watcher_total",
                "Watchers that are up to date.",
                hub.watchers() as f64,
            ),
            (
                "etcd_debugging_mvcc_slow_watcher_total",
                "Watchers that read the log: they begin in the past, or their client is slow.",
                hub.watchers_behind() as f64,
            ),
            ("pleach_leases", "Leases that are alive.", node.leases().len() as f64),
            ("pleach_lanes_left", "Lanes that children can still get.", self.lanes_left()),
            ("pleach_connections", "Connections of clients.", taken as f64),
            ("pleach_connections_max", "The most that there may be.", places as f64),
        ];
        for (name, help, value) in gauges {
            all.gauge(name, help, &[], value);
        }
        // Where there is none the line is left out: alerts divide by it.
        if node.quota_bytes() > 0 {
            let help = "Bytes on disk after which puts are refused.";
            all.gauge("etcd_server_quota_backend_bytes", help, &[], node.quota_bytes() as f64);
        }
        let raised: Vec<AlarmKind> = node.alarms().iter().map(|alarm| alarm.kind).collect();
        for kind in [AlarmKind::NoSpace, AlarmKind::Corrupt] {
            let is_raised = f64::from(u8::from(raised.contains(&kind)));
            all.gauge(
                "pleach_alarm",
                "Whether an alarm is raised.",
                &[("alarm", kind.name())],
                is_raised,
            );
        }
        let events = hub.events() as f64;
        all.counter("etcd_debugging_mvcc_events_total", "Events sent to watchers.", &[], events);
        let (received, sent) = self.traffic.bytes();
        let help = "Bytes on connections of clients, with all that stands around what was said.";
        for (name, bytes) in [
            ("etcd_network_client_grpc_received_bytes_total", received),
            ("etcd_network_client_grpc_sent_bytes_total", sent),
        ] {
            all.counter(name, help, &[], bytes as f64);
        }
    }

    fn add_certificates(&self, all: &mut Families) {
        for certificate in self.certificates.validities() {
            let help = "When the first certificate of a file ends: seconds since 1970.";
            let labels = [("setting", &*certificate.file.setting)];
            let ends = certificate.not_after as f64;
            all.gauge("pleach_certificate_not_after_timestamp_seconds", help, &labels, ends);
            let help = "For how long in all it is good.";
            let lasts = (certificate.not_after - certificate.not_before) as f64;
            all.gauge("pleach_certificate_lifetime_seconds", help, &labels, lasts);
        }
    }

    fn lanes_left(&self) -> f64 {
        f64::from(self.node.membership().lanes().left())
    }

    fn add_calls(&self, all: &mut Families) {
        for meter in self.calls.methods() {
            let MethodMeter { method, started, times, .. } = meter;
            let labels = |code: Option<&'static str>| {
                let mut labels = vec![
                    ("grpc_method", method.name),
                    ("grpc_service", method.service),
                    ("grpc_type", method.kind),
                ];
                labels.extend(code.map(|code| ("grpc_code", code)));
                labels
            };
            let (name, help) = ("grpc_server_started_total", "Calls that have begun.");
            let started = started.load(Ordering::Relaxed);
            all.counter(name, help, &labels(None), started as f64);
            for (code, count) in meter.handled() {
                let (name, help) = ("grpc_server_handled_total", "Calls that have ended, by code.");
                all.counter(name, help, &labels(Some(code)), count as f64);
            }
            if started > 0 {
                let help = "How long calls took, to the last of their answers.";
                all.histogram("grpc_server_handling_seconds", help, &labels(None), &times.counts());
            }
        }
    }

    async fn add_stores(&self, all: &mut Families) {
        let root = self.node.root();
        let stores: Vec<_> = root.stores().map(|store| (store, store.meters().pop())).collect();
        let sizes = join_all(stores.iter().map(|(store, meters)| recent_size(&***store, meters)));
        let sizes = sizes.await;
        let (mut total, mut keys_total) = (Size::default(), Some(0));
        let (mut writes, mut batches, mut syncs) =
            (Counts::default(), Counts::default(), Counts::default());
        let mut pending = 0;
        let now = self.node.revision();
        let watchers = self.node.hub().watchers_by_store();
        for ((store, meters), size) in stores.into_iter().zip(sizes) {
            total.total += size.total;
            total.in_use += size.in_use;
            let Some(meters) = meters else { continue };
            let labels = [("store", &*meters.name)];
            let closed = store.announce_closed();
            let mut gauges = vec![
                (
                    "pleach_store_up",
                    "Whether the store can be used.",
                    f64::from(u8::from(meters.trouble.is_none())),
                ),
                (
                    "pleach_store_closed_lag_revisions",
                    "How far what is closed lies behind the revision reached.",
                    (now - closed).max(0) as f64,
                ),
            ];
            // Of what another process writes, that one says the rest.
            if meters.commits.is_some() {
                let is_full = f64::from(u8::from(store.head().is_full));
                gauges.extend([
                    ("pleach_store_size_bytes", "Bytes on disk.", size.total as f64),
                    ("pleach_store_size_in_use_bytes", "Bytes that hold data.", size.in_use as f64),
                    ("pleach_store_full", "Whether there is no room for more.", is_full),
                ]);
            }
            for (name, help, value) in gauges {
                all.gauge(name, help, &labels, value);
            }
            for state in store.attach_states() {
                let is_detached = f64::from(u8::from(state.detached_at().is_some()));
                let help = "Whether watches that span it go on without it.";
                all.gauge("pleach_store_detached", help, &labels, is_detached);
                let (detachments, backfills) = (state.detachments(), state.backfills());
                let help = "How often watches went on without it.";
                all.counter("pleach_store_detachments_total", help, &labels, detachments as f64);
                let help = "How often it came back with what watches had passed over.";
                all.counter("pleach_store_backfills_total", help, &labels, backfills as f64);
            }
            let watchers = watchers.get(&meters.name).copied().unwrap_or(0) as f64;
            let help =
                "Watchers that are told of its keys; one over several stores counts at each.";
            all.gauge("pleach_store_watchers", help, &labels, watchers);
            add_pool(all, &meters);
            let help = "Settings of its server under which a commit is not durable.";
            all.gauge("pleach_store_hazards", help, &labels, meters.hazards as f64);
            add_commits(all, &meters);
            add_selected(all, &meters);
            let known = meters.commits.as_ref().map(|it| (it.batches.counts(), it.syncs.counts()));
            let (all_batches, all_syncs) = self.commits.with(&meters.name, known);
            batches.add(&all_batches);
            syncs.add(&all_syncs);
            let Some(requests) = &meters.requests else { continue };
            writes.add(&requests.writes.counts());
            pending += requests.pending.load(Ordering::Relaxed);
            if meters.commits.is_some() {
                let found = requests.found();
                keys_total = keys_total.zip(found.keys).map(|(sum, (keys, _))| sum + keys);
            }
            add_requests(all, &meters);
        }
        all.gauge(
            "etcd_mvcc_db_total_size_in_bytes",
            "Bytes on disk of all stores.",
            &[],
            total.total as f64,
        );
        let help = "Bytes on disk that hold data.";
        all.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", help, &[], total.in_use as f64);
        if let Some(keys) = keys_total {
            let help = "Keys of all stores that this node writes, as they were last counted.";
            all.gauge("etcd_debugging_mvcc_keys_total", help, &[], keys as f64);
        }
        let (done, failed) = ((writes.total() - writes.failed) as f64, writes.failed as f64);
        let help = "Writes that stores have carried out.";
        // Gauges, as etcd has these.
        all.gauge("etcd_server_proposals_committed_total", help, &[], done);
        all.gauge("etcd_server_proposals_applied_total", help, &[], done);
        all.counter(
            "etcd_server_proposals_failed_total",
            "Writes that stores have not carried out, or may not have.",
            &[],
            failed,
        );
        all.gauge(
            "etcd_server_proposals_pending",
            "Writes that are not answered yet.",
            &[],
            pending as f64,
        );
        let help = "The last step of a commit, which makes it durable, over all stores.";
        all.histogram("etcd_disk_wal_fsync_duration_seconds", help, &[], &syncs);
        let help = "Commits of stores from their beginning, each of many writes.";
        all.histogram("etcd_disk_backend_commit_duration_seconds", help, &[], &batches);
    }
}

async fn recent_size(store: &dyn Store, meters: &Option<Meters>) -> Size {
    match meters.as_ref().and_then(|meters| meters.requests.as_ref()) {
        Some(requests) => requests.recent_size(store).await,
        None => store.size().await.unwrap_or_default(),
    }
}

fn add_selected(all: &mut Families, meters: &Meters) {
    let Some(selected) = &meters.selected else { return };
    let counted = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
    let help = "Pages of reads with selectors, by an index or by looking at all rows.";
    for (by, pages) in [("index", &selected.by_index), ("scan", &selected.by_scan)] {
        let labels = [("store", &*meters.name), ("by", by)];
        all.counter("pleach_store_selected_pages_total", help, &labels, counted(pages));
    }
    let labels = [("store", &*meters.name)];
    let help = "Rows that reads with selectors looked at.";
    all.counter(
        "pleach_store_selected_rows_read_total",
        help,
        &labels,
        counted(&selected.rows_read),
    );
    let (help, matched) = ("Rows that selectors matched.", counted(&selected.rows_matched));
    all.counter("pleach_store_selected_rows_matched_total", help, &labels, matched);
}

fn add_commits(all: &mut Families, meters: &Meters) {
    let Some(commits) = &meters.commits else { return };
    let labels = [("store", &*meters.name)];
    let help = "Commits of the store from their beginning, each of many writes.";
    all.histogram("pleach_store_commit_duration_seconds", help, &labels, &commits.batches.counts());
    let help = "The last step of a commit, which makes it durable.";
    all.histogram("pleach_store_sync_duration_seconds", help, &labels, &commits.syncs.counts());
    let writes = commits.writes.load(Ordering::Relaxed) as f64;
    let help = "Writes in the store's commits.";
    all.counter("pleach_store_committed_writes_total", help, &labels, writes);
}

fn add_pool(all: &mut Families, meters: &Meters) {
    let Some(pool) = &meters.pool else { return };
    let labels = [("store", &*meters.name)];
    let gauges = [
        (
            "pleach_store_pool_connections_max",
            "The most connections that read at once.",
            pool.connections_max() as f64,
        ),
        (
            "pleach_store_pool_connections_used",
            "Of the connections that read, those that are busy.",
            pool.connections_used() as f64,
        ),
        ("pleach_store_pool_waiting", "Reads that wait for a connection.", pool.waiting() as f64),
    ];
    for (name, help, value) in gauges {
        all.gauge(name, help, &labels, value);
    }
    let help = "How long reads waited for a connection, of those that found all busy.";
    let waits = pool.waits.counts();
    if waits.total() == 0 {
        // Most stores are never so busy, and a node may have hundreds.
        return;
    }
    all.histogram("pleach_store_pool_wait_duration_seconds", help, &labels, &waits);
}

fn add_requests(all: &mut Families, meters: &Meters) {
    let Some(requests) = &meters.requests else { return };
    let name = &*meters.name;
    for (operation, meter) in [("read", &requests.reads), ("write", &requests.writes)] {
        let labels = [("store", name), ("operation", operation)];
        let help = "How long the store took.";
        all.histogram("pleach_store_request_duration_seconds", help, &labels, &meter.counts());
    }
    for (kind, count) in requests.failures() {
        let labels = [("store", name), ("kind", kind)];
        let help = "What the store refused or could not do.";
        all.counter("pleach_store_errors_total", help, &labels, count as f64);
    }
    let labels = [("store", name)];
    let rows = requests.rows.load(Ordering::Relaxed) as f64;
    all.counter("pleach_store_rows_read_total", "Keys that the store returned.", &labels, rows);
    let pending = requests.pending.load(Ordering::Relaxed) as f64;
    let help = "Writes that the store has not answered yet.";
    all.gauge("pleach_store_pending_writes", help, &labels, pending);
    let found = requests.found();
    if let Some((keys, _)) = found.keys {
        all.gauge("pleach_store_keys", "Keys as they were last counted.", &labels, keys as f64);
    }
    if let Some(misrouted) = found.misrouted {
        let help = "Keys that lie there and route elsewhere, as of the start.";
        all.gauge("pleach_store_misrouted_keys", help, &labels, misrouted as f64);
    }
}

// === impl CommitSums ===

impl CommitSums {
    /// The batches and syncs of a store in all its lives, with what it counts now.
    fn with(&self, store: &Arc<str>, now: Option<(Counts, Counts)>) -> (Counts, Counts) {
        let mut stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = stores.entry(store.clone()).or_default();
        if let Some(now) = now {
            if now.0.total() < lives.now.0.total() {
                lives.before.0.add(&lives.now.0);
                lives.before.1.add(&lives.now.1);
            }
            lives.now = now;
        }
        let (mut batches, mut syncs) = lives.before;
        batches.add(&lives.now.0);
        syncs.add(&lives.now.1);
        (batches, syncs)
    }
}

// === impl Process ===

impl Process {
    /// This one, as it is now.
    pub(super) fn current() -> Self {
        let families = ProcessCollector::for_self().collect();
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name() == name);
            let metric = family.and_then(|family| family.get_metric().first());
            metric.map_or(0.0, |it| it.get_gauge().get_value() + it.get_counter().get_value())
        };
        Self {
            memory_bytes: value("process_resident_memory_bytes") as u64,
            cpu_s: value("process_cpu_seconds_total"),
            open_files: value("process_open_fds") as u64,
            open_files_max: value("process_max_fds") as u64,
        }
    }
}

// === impl Families ===

impl Families {
    fn add(
        &mut self,
        name: &'static str,
        help: &str,
        kind: MetricType,
        mut metric: Metric,
        labels: Labels<'_>,
    ) {
        let pair = |(name, value): &(&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        metric.set_label(labels.iter().map(pair).collect());
        let family = self.0.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        family.mut_metric().push(metric);
    }

    fn gauge(&mut self, name: &'static str, help: &str, labels: Labels<'_>, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.add(name, help, MetricType::GAUGE, Metric::from_gauge(gauge), labels);
    }

    fn counter(&mut self, name: &'static str, help: &str, labels: Labels<'_>, value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = Metric::default();
        metric.set_counter(counter);
        self.add(name, help, MetricType::COUNTER, metric, labels);
    }

    fn histogram(&mut self, name: &'static str, help: &str, labels: Labels<'_>, counts: &Counts) {
        let mut cumulative = 0;
        let buckets = (0..BOUNDS).filter_map(|at| {
            cumulative += counts.buckets[at];
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound(at)?.as_secs_f64());
            bucket.set_cumulative_count(cumulative);
            Some(bucket)
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.total());
        histogram.set_sample_sum(Duration::from_nanos(counts.nanos).as_secs_f64());
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.add(name, help, MetricType::HISTOGRAM, metric, labels);
    }
}

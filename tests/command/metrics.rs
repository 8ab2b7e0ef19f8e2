//! What a node measures: under etcd's names as etcd says it, exact, and sent by OTLP too.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use http::Method;
use pleach::proto::etcdserverpb as pb;
use tempfile::TempDir;

use crate::{
    call::{client, get, put},
    support::{
        etcd::Etcd,
        http::Api,
        node::Node,
        otlp::Receiver,
        peers::free_port,
        process::eventually,
        proxy::{Mode, Proxy},
    },
};

const WITHIN: Duration = Duration::from_secs(30);

/// What etcd measures and a node does not, or where a node says less.
const ONLY_OURS: &[&str] = &["process_threads"];

/// What `/metrics` says.
#[derive(Debug)]
struct Scraped {
    /// Types by name.
    types: BTreeMap<String, String>,
    /// Values by name with labels, which are ordered.
    values: BTreeMap<String, f64>,
}

// === impl Scraped ===

impl Scraped {
    async fn of(port: u16) -> Result<Self> {
        let text = Api::at_port(port).get("/metrics").await?;
        let text = text.as_str().context("it is no text")?;
        let (mut types, mut values) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').context("a type")?;
                ensure!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
                let name = ordered(name);
                ensure!(values.insert(name.clone(), value.parse()?).is_none(), "{name} twice");
            }
        }
        Ok(Self { types, values })
    }

    fn value(&self, name: &str) -> Result<f64> {
        let value = self.values.get(&ordered(name));
        value.copied().with_context(|| format!("{name} is not in {:#?}", self.values.keys()))
    }

    /// The names of the labels that a family has, but for those of a histogram's parts.
    fn labels(&self, family: &str) -> BTreeSet<String> {
        let suffixes = ["", "_bucket", "_sum", "_count"];
        let names: Vec<String> = suffixes.iter().map(|it| format!("{family}{it}")).collect();
        let mut labels = BTreeSet::new();
        for name in self.values.keys() {
            let (name, of) = name.split_once('{').unwrap_or((name, ""));
            if names.iter().any(|it| it == name) {
                let pairs = of.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty());
                labels.extend(pairs.filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())));
            }
        }
        labels
    }
}

/// A name whose labels are in order. No value of the tests has a comma.
fn ordered(name: &str) -> String {
    let Some((name, labels)) = name.split_once('{') else { return name.to_owned() };
    let mut labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
    labels.sort_unstable();
    format!("{name}{{{}}}", labels.join(","))
}

/// Whoever has dashboards and alerts for etcd has them for a node.
#[tokio::test]
async fn what_etcd_measures_too_has_its_name_its_type_and_its_labels() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &["--quota-backend-bytes=100000000"])?;
    let channel = node.start().await?;
    let mut etcd = Etcd::hasty()?.with_flag("--metrics=extensive");
    etcd.start().await?;
    put(&channel, "key", "value").await?;
    etcd.client().await?.put("key", "value", None).await?;
    let (ours, theirs) = (Scraped::of(node.port()).await?, Scraped::of(etcd.port()).await?);
    let is_theirs = |name: &&String| !name.starts_with("pleach_");
    let mut compared = 0;
    for name in ours.types.keys().filter(is_theirs).filter(|it| !ONLY_OURS.contains(&&***it)) {
        let kind = theirs.types.get(name).with_context(|| format!("etcd has no {name}"))?;
        ensure!(ours.types.get(name) == Some(kind), "{name}: etcd has a {kind}");
        let (our, their) = (ours.labels(name), theirs.labels(name));
        ensure!(our == their, "{name}: {our:?}, and etcd has {their:?}");
        compared += 1;
    }
    // What etcd's own alerts and its dashboard look at, but for what a node has not: peers and elections.
    for name in [
        "etcd_disk_backend_commit_duration_seconds",
        "etcd_disk_wal_fsync_duration_seconds",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_network_client_grpc_received_bytes_total",
        "etcd_network_client_grpc_sent_bytes_total",
        "etcd_server_has_leader",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_failed_total",
        "etcd_server_proposals_pending",
        "etcd_server_quota_backend_bytes",
        "grpc_server_handled_total",
        "grpc_server_handling_seconds",
        "grpc_server_started_total",
        "process_resident_memory_bytes",
    ] {
        ensure!(ours.types.contains_key(name), "{name} is missing");
    }
    ensure!(compared > 25, "only {compared} were compared");
    // The same calls are counted the same.
    let labels = "{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
    for name in ["grpc_server_started_total", "grpc_server_handling_seconds_count"] {
        let name = format!("{name}{labels}");
        ensure!(ours.value(&name)? == 1.0 && theirs.value(&name)? == 1.0, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn what_was_asked_of_each_store_is_counted_with_what_failed() -> Result<()> {
    let folder = TempDir::new()?;
    let gone = format!("postgres://pleach:secret-of-the-store@127.0.0.1:{}/gone", free_port()?);
    let here = format!("sqlite://{}", folder.path().join("here.db").display());
    let routes = [("/here/", here), ("/gone/", gone)];
    let mut node = Node::new(folder.path(), &[])?.with_routes_to(&routes)?;
    let channel = node.start().await?;
    for index in 0..5 {
        put(&channel, format!("/here/{index}"), "value").await?;
    }
    for _ in 0..3 {
        get(&channel, "/here/0").await?;
        ensure!(get(&channel, "/gone/0").await.is_err(), "there is no such store");
    }
    put(&channel, "/rest", "value").await?;
    let scraped = Scraped::of(node.port()).await?;
    let counted = |name: &str, store: &str, operation: &str| {
        scraped.value(&format!("{name}{{operation=\"{operation}\",store=\"{store}\"}}"))
    };
    let requests = "pleach_store_request_duration_seconds_count";
    for (store, operation, count) in
        [("store-0", "write", 5.0), ("store-0", "read", 3.0), ("store-1", "read", 3.0)]
    {
        let found = counted(requests, store, operation)?;
        ensure!(found == count, "{store}: {found} of {operation}, not {count}");
    }
    for (name, value) in [
        ("pleach_store_up{store=\"store-0\"}", 1.0),
        ("pleach_store_up{store=\"store-1\"}", 0.0),
        ("pleach_store_up{store=\"main\"}", 1.0),
        ("pleach_store_errors_total{kind=\"unavailable\",store=\"store-1\"}", 3.0),
        ("pleach_store_rows_read_total{store=\"store-0\"}", 3.0),
        ("pleach_store_committed_writes_total{store=\"store-0\"}", 5.0),
        ("pleach_store_pending_writes{store=\"store-0\"}", 0.0),
        ("etcd_server_proposals_committed_total", 6.0),
        ("etcd_server_proposals_failed_total", 0.0),
    ] {
        let found = scraped.value(name)?;
        ensure!(found == value, "{name} is {found}, not {value}");
    }
    let failed = "grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Range\",\
                  grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
    ensure!(scraped.value(failed)? == 3.0, "{scraped:#?}");
    let log = node.log();
    let said = log.lines().filter(|line| line.contains("a request failed")).count();
    ensure!(said == 1, "what is the same is said once, not {said} times: {log}");
    let text = Api::at_port(node.port()).get("/metrics").await?.to_string();
    ensure!(!text.contains("secret-of-the-store"), "a password is in the metrics");
    Ok(())
}

/// What a browser asks for is no call, and no failure of the node's.
#[tokio::test]
async fn what_is_no_call_is_not_counted_as_one() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    node.start().await?;
    let api = Api::at_port(node.port());
    let labels = "{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
    let started = async || {
        let scraped = Scraped::of(node.port()).await?;
        scraped.value(&format!("grpc_server_started_total{labels}"))
    };
    let before = started().await?;
    api.send(Method::GET, "/etcdserverpb.KV/Range", None).await?;
    let after = started().await?;
    ensure!(before == after, "{before} before, {after} after");
    Ok(())
}

/// Keys are counted by the node itself, a little after they came.
#[tokio::test]
async fn the_keys_of_a_store_are_counted_and_those_that_route_elsewhere() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    let channel = node.start().await?;
    for index in 0..7 {
        put(&channel, format!("/later/{index}"), "value").await?;
    }
    drop(channel);
    node.signal("TERM")?;
    node.ended().await?;
    let mut node = node.with_routes(&["/later/"])?;
    node.start().await?;
    eventually("the keys are counted", WITHIN, async || {
        let scraped = Scraped::of(node.port()).await?;
        for (name, value) in [
            ("pleach_store_keys{store=\"main\"}", 7.0),
            ("pleach_store_misrouted_keys{store=\"main\"}", 7.0),
            ("pleach_store_keys{store=\"store-0\"}", 0.0),
            ("etcd_debugging_mvcc_keys_total", 7.0),
        ] {
            let found = scraped.value(name)?;
            ensure!(found == value, "{name} is {found}, not {value}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_slow_is_logged_with_route_store_rows_and_time() -> Result<()> {
    let folder = TempDir::new()?;
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let proxy = Proxy::start(([127, 0, 0, 1], etcd.port()).into()).await?;
    let flags = ["--warning-unary-request-duration=100ms"];
    let routes = [("/slow/", format!("http://{}", proxy.address()))];
    let mut node = Node::new(folder.path(), &flags)?.with_routes_to(&routes)?;
    let channel = node.start().await?;
    eventually("the etcd is attached", WITHIN, async || {
        Ok(put(&channel, "/slow/key", "value").await?)
    })
    .await?;
    proxy.set(Mode::Delay(Duration::from_millis(150))).await?;
    put(&channel, "/fast/key", "value").await?;
    let (key, range_end) = ("/slow/".into(), "/slow0".into());
    let list = pb::RangeRequest { key, range_end, ..Default::default() };
    client(&channel).range(list).await?;
    let log = node.log();
    let slow = log.lines().filter(|line| line.contains("a store was slow"));
    let slow: Vec<&str> = slow.filter(|line| line.contains("operation=\"read\"")).collect();
    let [line] = slow[..] else { bail!("one read was slow: {log}") };
    let place = format!("store=\"http://{}\"", proxy.address());
    for part in ["route=store-0", &place, "rows=1", "took="] {
        ensure!(line.contains(part), "{part} is not in {line}");
    }
    Ok(())
}

#[tokio::test]
async fn metrics_are_sent_to_an_otlp_receiver_too() -> Result<()> {
    let folder = TempDir::new()?;
    let receiver = Receiver::start().await?;
    let flags = [&receiver.flag(), "--otlp-metrics", "--name=measured"];
    let mut node = Node::new(folder.path(), &flags)?;
    node.set_env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    let channel = node.start().await?;
    for _ in 0..3 {
        put(&channel, "key", "value").await?;
    }
    eventually("the metrics came", WITHIN, async || {
        let sent = receiver.metric("measured", "etcd_server_proposals_committed_total")?;
        ensure!(sent.sum == 3.0, "{sent:?}");
        let times = receiver.metric("measured", "pleach_store_commit_duration_seconds")?;
        let counted: u64 = times.buckets.iter().sum();
        ensure!(counted >= 3 && counted == times.count, "{times:?}");
        ensure!(times.bounds.len() + 1 == times.buckets.len(), "{times:?}");
        Ok(())
    })
    .await
}

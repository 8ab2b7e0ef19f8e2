//! `pleach serve`: a node, from its flags to its end.

mod banner;
mod datastore;
mod log_level;
mod url;

use std::{io::ErrorKind, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::{
    ArgAction, Args, CommandFactory as _,
    builder::{FalseyValueParser, PossibleValue},
};
use futures::FutureExt as _;
use sd_notify::NotifyState;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{
    banner::{Banner, Switch},
    datastore::Datastore,
    url::{Listen, Url},
};
use super::{Cli, foreign, read_topology, signals::Signals};
use crate::{
    assembly::{self, Endpoints, Plan, Running, Settings},
    clock::Entropy,
    node::{DEFAULT_NAME, Options},
    server::{CertificateFile, Limits, Services, Tls, TlsFiles, TlsPart},
    store::attach::GRACE,
    telemetry::{self, Telemetry},
    topology::{self, Endpoint, Topology},
    tree::parent::{ParentSpec, TreeOptions},
};

/// How long requests under way may take when the node is told to stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Open files that are not clients': what a process has anyway, and what a store has at most, with its
/// connections and its database's files.
const FILES_OF_NODE: usize = 48;
const FILES_OF_STORE: usize = 24;

/// Fewer clients than this are said at the start: an API server alone has a hundred connections and more.
const CONNECTIONS_FEW: usize = 500;

/// How long stores may take to be given up when the node ends.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  pleach serve                                  at http://127.0.0.1:2379, with its data in pleach-data
  pleach serve --topology topology.yaml --listen-client-urls http://0.0.0.0:2379
  pleach serve --endpoint postgres://pleach:secret@db/pleach
  pleach serve --listen-client-urls https://0.0.0.0:2379 --cert-file node.pem --key-file node.key
               --trusted-ca-file clients-ca.pem
  pleach serve --listen-address 0.0.0.0:2369 --endpoint sqlite:///db/main.db     as kine is started

Flags of etcd mean what they mean there; those of kine too, where etcd has none of that name. So --cert-file,
--key-file are the node's own certificate, and kine's of that name are --datastore-cert-file, --datastore-key-file.
Flags that Pleach has not are refused with what to do instead. Each flag is a variable too: PLEACH_NAME for --name.
Exit codes: 0 stopped by a signal, 1 it could not start or go on, 2 flags that are wrong.";

/// Runs a node. Flags that etcd has mean what they mean there, and so do kine's.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Serve {
    /// Where clients are served: http(s)://HOST:PORT, several with commas.
    /// http://127.0.0.1:2379, unless given.
    #[arg(long, env = "PLEACH_LISTEN_CLIENT_URLS", value_delimiter = ',')]
    listen_client_urls: Vec<Url>,
    /// The same as kine has it, in place of --listen-client-urls: HOST:PORT, with TLS where there is a
    /// certificate.
    #[arg(long, env = "PLEACH_LISTEN_ADDRESS")]
    listen_address: Option<Listen>,
    /// What clients are told to reach this node by; what they used, unless given.
    #[arg(long, env = "PLEACH_ADVERTISE_CLIENT_URLS", value_delimiter = ',')]
    advertise_client_urls: Vec<String>,
    /// Where health, version and metrics are served besides: http(s)://HOST:PORT, several with commas.
    #[arg(long, env = "PLEACH_LISTEN_METRICS_URLS", value_delimiter = ',')]
    listen_metrics_urls: Vec<Url>,
    /// The same as kine has it, in place of --listen-metrics-urls: HOST:PORT, with TLS where there is a
    /// certificate; 0 for nowhere.
    #[arg(long, env = "PLEACH_METRICS_BIND_ADDRESS")]
    metrics_bind_address: Option<MetricsAddress>,
    /// The node's name.
    #[arg(long, env = "PLEACH_NAME", default_value = DEFAULT_NAME, value_parser = node_name)]
    name: String,
    /// Where the embedded default store lives.
    #[arg(long, env = "PLEACH_DATA_DIR", default_value = "pleach-data")]
    data_dir: PathBuf,
    /// The default store, with or without multi:// before it.
    #[arg(long, env = "PLEACH_ENDPOINT")]
    endpoint: Option<String>,
    /// The topology file: the routes.
    #[arg(long, env = "TOPOLOGY_CONFIG")]
    topology: Option<PathBuf>,
    /// Be ready (`/readyz`) only while every route's store is there, not just the default one.
    #[arg(long, env = "PLEACH_READY_REQUIRES_ALL", value_parser = FalseyValueParser::new())]
    ready_requires_all: bool,
    /// Where the store of a route may be another than before: the route's name, `main` for the default
    /// store; several with commas. Clients list afresh what lies there.
    #[arg(long, env = "PLEACH_ADOPT", value_delimiter = ',')]
    adopt: Vec<String>,
    /// The node that may become this one's parent: NAME, or NAME:ID as `pleach tree` prints them. Also in
    /// place of the parent that it has.
    #[arg(long, env = "PLEACH_PARENT")]
    parent: Option<ParentSpec>,
    /// A file with the secret that a parent must show to become this node's, and that this node shows its
    /// children.
    #[arg(long, env = "PLEACH_TREE_SECRET_FILE")]
    tree_secret_file: Option<PathBuf>,
    /// The node's certificate (PEM), for https.
    #[arg(long, env = "PLEACH_CERT_FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, env = "PLEACH_KEY_FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// The node's certificate as kine calls it.
    #[arg(long, env = "PLEACH_SERVER_CERT_FILE", requires = "server_key_file")]
    server_cert_file: Option<PathBuf>,
    /// The certificate's key as kine calls it.
    #[arg(long, env = "PLEACH_SERVER_KEY_FILE", requires = "server_cert_file")]
    server_key_file: Option<PathBuf>,
    /// The authority that signs clients' certificates (PEM). With it, only clients with such a certificate are
    /// admitted, as by etcd.
    #[arg(long, env = "PLEACH_TRUSTED_CA_FILE", visible_alias = "server-ca-file")]
    trusted_ca_file: Option<PathBuf>,
    /// Admit only clients with a certificate of --trusted-ca-file, which must be given.
    #[arg(long, env = "PLEACH_CLIENT_CERT_AUTH", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    client_cert_auth: bool,
    /// The bytes of a write.
    #[arg(long, env = "PLEACH_MAX_REQUEST_BYTES", default_value_t = 1_572_864)]
    max_request_bytes: usize,
    /// The operations of a branch of a transaction.
    #[arg(long, env = "PLEACH_MAX_TXN_OPS", default_value_t = 128)]
    max_txn_ops: usize,
    /// How often watchers that asked for it are told how far they are (as 10m, 5s, 100ms).
    #[arg(long, env = "PLEACH_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "10m",
          alias = "experimental-watch-progress-notify-interval", value_parser = duration)]
    watch_progress_notify_interval: Duration,
    /// The bytes on disk after which puts are refused; 0 for no bound.
    #[arg(long, env = "PLEACH_QUOTA_BACKEND_BYTES", default_value = "0", value_parser = quota,
          allow_hyphen_values = true)]
    quota_backend_bytes: u64,
    /// Carry out a deletion of keys in several stores store by store, each at a revision of its own, where it
    /// is no part of a transaction (`etcdctl del --prefix /`). Else it is refused.
    #[arg(long, env = "PLEACH_ALLOW_SPLIT_DELETES", value_parser = FalseyValueParser::new())]
    allow_split_deletes: bool,
    /// What takes longer is logged with route, store, rows and time.
    #[arg(long, env = "PLEACH_WARNING_UNARY_REQUEST_DURATION", default_value = "300ms",
          value_parser = duration)]
    warning_unary_request_duration: Duration,
    /// What is logged: error, warn, info, debug or trace, or a filter as `info,pleach::store=debug`.
    #[arg(long, env = "PLEACH_LOG_LEVEL", default_value = "info", value_parser = log_level::parse)]
    log_level: String,
    /// Log at the level debug, whatever --log-level says.
    #[arg(long, env = "PLEACH_DEBUG", value_parser = FalseyValueParser::new())]
    debug: bool,
    /// How logs look.
    #[arg(long, env = "PLEACH_LOG_FORMAT", default_value = "text", value_parser = [
          PossibleValue::new("text").aliases(["plain", "console"]), PossibleValue::new("json")])]
    log_format: String,
    /// Who takes traces: http(s)://HOST:PORT of an OTLP receiver, over gRPC. Without one, none are made.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Send metrics to --otlp-endpoint, too: every minute, or every OTEL_METRIC_EXPORT_INTERVAL (ms).
    #[arg(long, env = "PLEACH_OTLP_METRICS", value_parser = FalseyValueParser::new())]
    otlp_metrics: bool,
    /// How many of the requests that come without a trace are traced: 0 for none, 1 for all.
    #[arg(long, env = "PLEACH_TRACE_SAMPLE_RATIO", default_value_t = 0.0, value_parser = ratio)]
    trace_sample_ratio: f64,
    #[command(flatten)]
    datastore: Datastore,
}

/// Where kine's flag has metrics served, if anywhere.
#[derive(Clone, Debug)]
enum MetricsAddress {
    Nowhere,
    At(Listen),
}

impl std::str::FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "0" | "" => Ok(Self::Nowhere),
            text => text.parse().map(Self::At),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = crate::topology::parse_duration(text);
    let duration = parsed.ok_or_else(|| "expected a duration such as 10m, 5s, 100ms".to_owned())?;
    if duration < Duration::from_millis(100) {
        return Err("expected at least 100ms".to_owned());
    }
    Ok(duration)
}

/// As etcd takes a quota: one below zero is none.
fn quota(text: &str) -> Result<u64, String> {
    let quota: Result<i64, _> = text.parse();
    let quota = quota.map_err(|_| "expected a number of bytes, as 2147483648".to_owned())?;
    Ok(quota.try_into().unwrap_or(0))
}

fn node_name(text: &str) -> Result<String, String> {
    match text.contains(char::is_control) {
        true => Err("a name has no control characters".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

// === impl Serve ===

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let mut telemetry = runtime.block_on(async { self.start_telemetry() })?;
        let served = runtime.block_on(self.serve(&mut telemetry));
        telemetry.end();
        // Stores are durable at every moment, so nothing that still runs is worth waiting for.
        runtime.shutdown_background();
        served
    }

    fn start_telemetry(&self) -> Result<Telemetry, telemetry::StartError> {
        Telemetry::start(&telemetry::Options {
            name: &self.name,
            log_level: if self.debug { "debug" } else { &self.log_level },
            is_json: self.log_format == "json",
            // A variable that is empty is one that is not set, as OpenTelemetry has it.
            receiver: self.otlp_endpoint.as_deref().filter(|receiver| !receiver.is_empty()),
            ratio: self.trace_sample_ratio,
            sends_metrics: self.otlp_metrics,
        })
    }

    async fn serve(self, telemetry: &mut Telemetry) -> anyhow::Result<()> {
        if self.otlp_metrics && self.otlp_endpoint.as_ref().is_none_or(String::is_empty) {
            bail!("--otlp-metrics needs --otlp-endpoint: the receiver of metrics");
        }
        // Asked for before anything is open, so that no signal is missed.
        let mut signals = Signals::new()?;
        let files = raise_open_files();
        warn_of_variables();
        self.warn_of_addresses();
        let tls = self.tls()?;
        let urls = self.client_urls();
        let listeners = listen("--listen-client-urls", &urls, &tls).await?;
        let admin = listen("--listen-metrics-urls", &self.metrics_urls(), &tls).await?;
        self.warn_of_strangers(&listeners);
        let plan = self.plan()?;
        let certificates = self.certificate_files(&plan);
        let (mut running, banner) =
            self.start(plan, &urls, listeners.iter().all(|(_, it)| is_local(it))).await?;
        let node = running.node().clone();
        banner.end(&running, &self.switches(&urls)).await;
        let stopping = CancellationToken::new();
        let limits = Limits {
            request_bytes_max: self.max_request_bytes,
            txn_ops_max: self.max_txn_ops,
            ready_requires_all: self.ready_requires_all,
        };
        let (name, urls) = (self.name.clone(), self.advertise_client_urls.clone());
        let connections_max = connections_max(files, node.root().stores().count());
        let face = Services::new(node.clone(), limits, name, urls, stopping.clone())
            .with_connections_max(connections_max)
            .with_certificates(certificates);
        let measured = face.clone();
        let source = move || measured.clone().metrics().boxed();
        let _sending =
            AbortOnDropHandle::new(tokio::spawn(telemetry.send_metrics(Box::new(source))));
        let mut servers = JoinSet::new();
        for (url, listener) in listeners {
            let address = listener.local_addr()?;
            let tls = tls.clone().filter(|_| url.is_tls);
            let stopped = stopping.clone().cancelled_owned();
            let face = face.clone();
            servers.spawn(async move { Ok(face.serve(listener, tls, stopped).await?) });
            tracing::info!(%address, tls = url.is_tls, revision = node.revision(), "serving");
        }
        for (url, listener) in admin {
            let tls = tls.clone().filter(|_| url.is_tls);
            let (face, stopped) = (face.clone(), stopping.clone().cancelled_owned());
            let address = listener.local_addr()?;
            tracing::info!(%address, tls = url.is_tls, "serving health, version and metrics");
            servers.spawn(async move { Ok(face.serve_admin(listener, tls, stopped).await?) });
        }
        tell_systemd(&[NotifyState::Ready]);
        let ended = tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, "stopping");
                Ok(())
            }
            Some(ended) = servers.join_next() => ended.unwrap_or_else(|panic| Err(panic.into())),
            task = running.broken() => Err(anyhow::anyhow!(
                "the task to {task} has ended, which is a defect of Pleach; the log says more"
            )),
        };
        // However it ends, clients go elsewhere and others may have the stores.
        tell_systemd(&[NotifyState::Stopping]);
        stopping.cancel();
        drain(servers, signals).await;
        if tokio::time::timeout(CLOSE_WITHIN, running.close()).await.is_err() {
            tracing::warn!("stopped before every store was given up; who wants them waits");
        }
        ended
    }

    /// Where clients are served, by whichever flag says so.
    fn client_urls(&self) -> Vec<Url> {
        match &self.listen_address {
            Some(address) => vec![address.url(self.has_certificate())],
            None if self.listen_client_urls.is_empty() => vec![Url::usual()],
            None => self.listen_client_urls.clone(),
        }
    }

    /// A variable may say one thing and a flag another: an image sets some.
    fn warn_of_addresses(&self) {
        if self.listen_address.is_some() && !self.listen_client_urls.is_empty() {
            tracing::warn!("--listen-client-urls has no effect beside --listen-address");
        }
        if self.metrics_bind_address.is_some() && !self.listen_metrics_urls.is_empty() {
            tracing::warn!("--listen-metrics-urls has no effect beside --metrics-bind-address");
        }
    }

    /// Who can reach the node from other machines may do everything, unless something keeps strangers out.
    fn warn_of_strangers(&self, listeners: &[(Url, TcpListener)]) {
        let open = listeners.iter().filter(|(_, listener)| !is_local(listener));
        let admits_all =
            |(url, _): &&(Url, TcpListener)| !url.is_tls || self.trusted_ca_file.is_none();
        let addresses: Vec<_> = open.filter(admits_all).map(|(url, _)| url.host.clone()).collect();
        if !addresses.is_empty() {
            tracing::warn!(
                addresses = addresses.join(", "),
                "whoever reaches this reads and writes every key: have it listen on 127.0.0.1, let only certain clients \
                 through, or admit those with a certificate (https:// and --trusted-ca-file)"
            );
        }
    }

    fn metrics_urls(&self) -> Vec<Url> {
        match &self.metrics_bind_address {
            Some(MetricsAddress::At(address)) => vec![address.url(self.has_certificate())],
            Some(MetricsAddress::Nowhere) => Vec::new(),
            None => self.listen_metrics_urls.clone(),
        }
    }

    fn has_certificate(&self) -> bool {
        self.cert_file.is_some() || self.server_cert_file.is_some()
    }

    /// What can be switched on, for the log to say what is off.
    fn switches(&self, urls: &[Url]) -> [Switch; 7] {
        [
            (urls.iter().any(|url| url.is_tls), "TLS"),
            (self.trusted_ca_file.is_some(), "certificates of clients"),
            (!self.metrics_urls().is_empty(), "a port for metrics alone"),
            (self.quota_backend_bytes > 0, "a quota of bytes"),
            (self.otlp_endpoint.as_deref().is_some_and(|it| !it.is_empty()), "traces"),
            (self.tree_secret_file.is_some() || self.parent.is_some(), "a named parent"),
            (self.allow_split_deletes, "deletions over several stores"),
        ]
    }

    /// What the node is to be made of.
    fn plan(&self) -> anyhow::Result<Plan> {
        let topology = match &self.topology {
            Some(path) => read_topology(path)?,
            None => Topology::default(),
        };
        if !topology.warnings.is_empty() {
            tracing::warn!("{}", topology.warnings);
        }
        let endpoint = self.endpoint.as_deref().map(Endpoint::parse).transpose();
        let endpoint = endpoint.context("--endpoint")?;
        if endpoint.as_ref().is_some_and(Endpoint::tells_in_clear) {
            tracing::warn!("--endpoint: the password goes to the etcd in clear; take `https://`");
        }
        let mut plan = Plan::new(topology, endpoint, &self.data_dir)?;
        for unused in self.datastore.set(&mut plan) {
            tracing::warn!("{unused}");
        }
        Ok(plan.with_absolute_paths())
    }

    async fn start(
        &self,
        plan: Plan,
        urls: &[Url],
        is_local: bool,
    ) -> anyhow::Result<(Running, Banner)> {
        let banner = Banner::begin(&self.name, &self.data_dir, &plan);
        let routes = plan.routes.iter().map(|route| &route.store.name);
        let names: Vec<&String> = routes.chain([&plan.default.name]).collect();
        if let Some(unknown) = self.adopt.iter().find(|name| !names.contains(name)) {
            bail!("--adopt {unknown}: there is no such route; there are {names:?}");
        }
        let tree = TreeOptions {
            parent: self.parent.clone(),
            secret_file: self.tree_secret_file.clone(),
            is_local,
        };
        tree.secret().map_err(|reason| anyhow::anyhow!("--tree-secret-file: {reason}"))?;
        let address = urls.first().map_or("", |url| url.host.as_str());
        let host = gethostname::gethostname();
        let process = std::process::id();
        let owner =
            format!("node `{}` on {} (process {process}, at {address})", self.name, host.display());
        let adopts_default = self.adopt.iter().any(|name| name == topology::DEFAULT_NAME);
        let opens = Endpoints { owner, adopts_default };
        let settings = Settings {
            name: self.name.clone(),
            tree,
            node: Options {
                progress_every: self.watch_progress_notify_interval,
                quota_bytes: self.quota_backend_bytes,
                splits_deletes: self.allow_split_deletes,
            },
            grace: GRACE,
            slow_after: self.warning_unary_request_duration,
            adopt: self.adopt.clone(),
            entropy: Entropy::system(),
        };
        Ok((assembly::start(plan, &opens, settings).await?, banner))
    }

    /// Every file with certificates that the node is given.
    fn certificate_files(&self, plan: &Plan) -> Vec<CertificateFile> {
        let flags = [
            ("--cert-file", &self.cert_file),
            ("--server-cert-file", &self.server_cert_file),
            ("--trusted-ca-file", &self.trusted_ca_file),
        ];
        let given = flags.into_iter().filter_map(|(flag, path)| {
            let (setting, path) = (flag.to_owned(), path.clone()?);
            let is_authority = flag == "--trusted-ca-file";
            Some(CertificateFile { setting, path, is_authority, is_read_once: false })
        });
        let of_stores = plan.certificate_files().into_iter().map(|it| CertificateFile {
            setting: it.setting,
            path: it.path,
            is_authority: it.is_authority,
            is_read_once: it.is_read_once,
        });
        given.chain(of_stores).collect()
    }

    /// What the node shows, and whom it admits: read, and looked at before anything is opened.
    fn tls(&self) -> anyhow::Result<Option<Tls>> {
        if let (Some(_), Some(_)) = (&self.server_cert_file, &self.cert_file) {
            bail!(
                "--cert-file and --server-cert-file are both the node's own certificate, as in etcd and as in kine: \
                 what kine calls --cert-file and --key-file is --datastore-cert-file and --datastore-key-file here"
            );
        }
        let own = [&self.cert_file, &self.server_cert_file].into_iter().flatten().next();
        let key = [&self.key_file, &self.server_key_file].into_iter().flatten().next();
        let (Some(certificate), Some(key)) = (own, key) else {
            let flags = [
                ("--client-cert-auth", self.client_cert_auth),
                ("--trusted-ca-file", self.trusted_ca_file.is_some()),
            ];
            if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
                bail!("{flag} needs --cert-file and --key-file, and https:// URLs");
            }
            return Ok(None);
        };
        if self.client_cert_auth && self.trusted_ca_file.is_none() {
            bail!("--client-cert-auth needs --trusted-ca-file");
        }
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_authority: self.trusted_ca_file.clone(),
        };
        let tls = Tls::new(files.clone()).map_err(|wrong| {
            let flag = match wrong.part {
                TlsPart::Certificate => "--cert-file",
                TlsPart::Key => "--key-file",
                TlsPart::Authority => "--trusted-ca-file",
            };
            anyhow::anyhow!("{flag} {}: {}", files.of(wrong.part).display(), wrong.reason)
        })?;
        Ok(Some(tls))
    }
}

/// Says which variables of etcd are set that nobody reads.
fn warn_of_variables() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let command = Cli::command();
    let flags = command.get_arguments().filter_map(|it| it.get_long()).map(str::to_owned);
    for variable in foreign::variables(names, &flags.collect::<Vec<_>>()) {
        tracing::warn!("a variable of etcd is set and not read: {variable}");
    }
}

/// Listens before the stores are open: a connection that waits costs its client less than one that is refused.
async fn listen(
    flag: &str,
    urls: &[Url],
    tls: &Option<Tls>,
) -> anyhow::Result<Vec<(Url, TcpListener)>> {
    let mut listeners = Vec::new();
    for url in urls {
        if url.is_tls && tls.is_none() {
            bail!("{flag} has https://{}, which needs --cert-file and --key-file", url.host);
        }
        listeners.push((url.clone(), bind(flag, url).await?));
    }
    Ok(listeners)
}

/// Each connection is an open file: as etcd does, a node takes as many as it may. Returns how many those are.
fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let (before, most) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    if before == most {
        return most;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    match raised {
        Ok(()) => {
            tracing::debug!(before, now = most, "open files");
            most
        }
        Err(error) => {
            let text = "the limit of open files could not be raised: each connection takes one";
            tracing::warn!(%error, limit = before, "{text}");
            before
        }
    }
}

/// How many clients may be connected, so that stores and children are left the files that they need.
fn connections_max(files: u64, stores: usize) -> usize {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let kept = FILES_OF_NODE + FILES_OF_STORE * stores;
    let most = files.saturating_sub(kept).max(files / 2);
    if most < CONNECTIONS_FEW {
        tracing::warn!(
            open_files = files,
            connections = most,
            "few clients can be connected at once: raise the limit of open files (ulimit -Hn)"
        );
    }
    most
}

async fn bind(flag: &str, url: &Url) -> anyhow::Result<TcpListener> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(&url.host)
        .await
        .with_context(|| format!("{flag}: can't find the address of {}", url.host))?
        .collect();
    let bound = TcpListener::bind(&addresses[..]).await;
    bound.map_err(|error| {
        let why = match error.kind() {
            ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
            ErrorKind::PermissionDenied => "ports below 1024 need a right of their own",
            _ => "is another server there?",
        };
        anyhow::Error::new(error).context(format!("{flag}: can't listen on {}; {why}", url.host))
    })
}

/// Waits for what is under way, but not for ever, and not past a second signal.
async fn drain(mut servers: JoinSet<anyhow::Result<()>>, mut signals: Signals) {
    let drained = async { while servers.join_next().await.is_some() {} };
    tokio::select! {
        () = drained => tracing::info!("stopped"),
        () = tokio::time::sleep(DRAIN_WITHIN) => tracing::warn!("stopped with clients connected"),
        name = signals.next() => tracing::warn!(signal = name, "stopped at once"),
    }
}

/// Says how it stands to who started it, where that is systemd (`Type=notify`).
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd can't be told");
    }
}

/// Whether only this machine can reach a listener.
fn is_local(listener: &TcpListener) -> bool {
    listener.local_addr().is_ok_and(|address| address.ip().is_loopback())
}

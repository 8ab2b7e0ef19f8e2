//! A Kubernetes control plane on top of the server under test: the API server, the controller
//! manager, and `kubectl` in front of them. There is no scheduler and no kubelet, so pods stay
//! pending; all else is as in a real cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    http::Api,
    peers::{free_port, peer},
    process::{Process, Signal, eventually},
    server::{Flavour, Server},
};

const TOKEN: &str = "the-token-of-the-administrator";
/// The API server of `tests/peers/kube-apiserver-selecting`.
const SELECTING: &str = "kube-apiserver-selecting";
const KUBECTL_TIMEOUT: Duration = Duration::from_secs(120);

/// The fields are dropped in this order: clients go before the servers they talk to.
pub(crate) struct ControlPlane {
    proxy: Option<Process>,
    controllers: Option<Process>,
    apiserver: Option<Process>,
    pub(crate) server: Server,
    pub(crate) api: Api,
    apiserver_peer: &'static str,
    is_traced: bool,
    secure_port: u16,
    proxy_port: u16,
    kubectl: PathBuf,
    folder: TempDir,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Writes keys and configuration. Nothing runs yet.
    pub(crate) fn new(flavour: Flavour) -> Result<Self> {
        Self::on(|folder| Server::new(flavour, folder))
    }

    /// One whose API server keeps nothing in memory and tells its storage what it selects.
    pub(crate) fn selecting(flavour: Flavour) -> Result<Self> {
        Ok(Self { apiserver_peer: SELECTING, ..Self::new(flavour)? })
    }

    /// One on a server that somebody else has started, such as the node of a tree.
    pub(crate) fn at(url: &str) -> Result<Self> {
        Self::on(|folder| Server::borrowed(url, folder))
    }

    fn on(server: impl FnOnce(&Path) -> Result<Server>) -> Result<Self> {
        let folder = TempDir::with_prefix("pleach-kubernetes-")?;
        let secure_port = free_port()?;
        let proxy_port = free_port()?;
        let key = rcgen::KeyPair::generate()?;
        fs::write(folder.path().join("sa.key"), key.serialize_pem())?;
        fs::write(folder.path().join("sa.pub"), key.public_key_pem())?;
        fs::write(folder.path().join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters"))?;
        fs::write(folder.path().join("kubeconfig"), kubeconfig(secure_port).to_string())?;
        Ok(Self {
            proxy: None,
            controllers: None,
            apiserver: None,
            server: server(folder.path())?,
            api: Api::at_port(proxy_port),
            apiserver_peer: "kube-apiserver",
            is_traced: false,
            secure_port,
            proxy_port,
            kubectl: peer("kubectl")?,
            folder,
        })
    }

    /// Has the API server trace every request, and send its spans to a collector.
    pub(crate) fn trace_to(&mut self, url: &str) -> Result<()> {
        let configuration = json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "TracingConfiguration",
            "endpoint": url.trim_start_matches("http://"),
            "samplingRatePerMillion": 1_000_000,
        });
        self.manifest("tracing.yaml", &configuration)?;
        self.is_traced = true;
        Ok(())
    }

    /// Starts the API server, and the proxy through which `api` reaches it, and waits for both.
    pub(crate) async fn start_apiserver(&mut self) -> Result<()> {
        let arguments = self.apiserver_arguments();
        let program = peer(self.apiserver_peer)?;
        let apiserver = Process::start("kube-apiserver", &program, self.path(), &arguments)?;
        self.apiserver = Some(apiserver);
        if self.proxy.is_none() {
            let port = format!("--port={}", self.proxy_port);
            self.proxy = Some(self.start_kubectl("kubectl-proxy", &["proxy", &port])?);
        }
        eventually("the API server is ready", Duration::from_secs(60), async || {
            self.ensure_running()?;
            self.api.get("/readyz").await
        })
        .await?;
        Ok(())
    }

    /// Replaces the API server by a new one. The old one is killed, since it would wait a minute
    /// for its watchers to leave.
    pub(crate) async fn restart_apiserver(&mut self) -> Result<()> {
        self.apiserver.take().context("no API server runs")?.stop(Signal::Kill).await?;
        self.start_apiserver().await
    }

    pub(crate) fn start_controllers(&mut self) -> Result<()> {
        let arguments = [
            format!("--kubeconfig={}", self.file("kubeconfig")),
            format!("--service-account-private-key-file={}", self.file("sa.key")),
            "--secure-port=0".to_owned(),
            // With the usual 10 seconds it gives up, and ends, when etcd takes 7 to shut down.
            "--leader-elect-lease-duration=90s".to_owned(),
            "--leader-elect-renew-deadline=80s".to_owned(),
        ];
        let program = peer("kube-controller-manager")?;
        let name = "kube-controller-manager";
        self.controllers = Some(Process::start(name, &program, self.path(), &arguments)?);
        Ok(())
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        self.server.ensure_running()?;
        let processes = [&mut self.apiserver, &mut self.controllers, &mut self.proxy];
        processes.into_iter().flatten().try_for_each(Process::ensure_running)
    }

    /// Runs kubectl to its end, which must be a success, and returns what it printed.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_kubectl(arguments).await?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) async fn try_kubectl(&self, arguments: &[&str]) -> Result<Output> {
        let run = Command::new(&self.kubectl)
            .args(arguments)
            .env("KUBECONFIG", self.path().join("kubeconfig"))
            .env("HOME", self.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(KUBECTL_TIMEOUT, run).await;
        Ok(output.with_context(|| format!("kubectl {} does not end", arguments.join(" ")))??)
    }

    /// A kubectl that runs on, such as a watch. What it prints is in its `output()`.
    pub(crate) fn start_kubectl(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let mut arguments: Vec<_> = arguments.iter().map(|&text| text.to_owned()).collect();
        arguments.push(format!("--kubeconfig={}", self.file("kubeconfig")));
        Process::start(name, &self.kubectl, self.path(), &arguments)
    }

    /// Keeps a manifest as a file for kubectl, and returns its path.
    pub(crate) fn manifest(&self, name: &str, manifest: &Value) -> Result<String> {
        fs::write(self.path().join(name), manifest.to_string())?;
        Ok(self.file(name))
    }

    /// Where everything of this control plane is kept.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    fn apiserver_arguments(&self) -> Vec<String> {
        let more = (self.apiserver_peer == SELECTING).then(|| "--watch-cache=false".to_owned());
        let mut arguments = vec![
            format!("--etcd-servers={}", self.server.endpoint()),
            // Every 15 seconds instead of 5 minutes, so that a short test sees several compactions.
            "--etcd-compaction-interval=15s".to_owned(),
            format!("--secure-port={}", self.secure_port),
            "--bind-address=127.0.0.1".to_owned(),
            // Only ever written into objects; naming one spares the test a real network interface.
            "--advertise-address=192.0.2.1".to_owned(),
            format!("--cert-dir={}", self.file("certificates")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", self.file("sa.pub")),
            format!("--service-account-signing-key-file={}", self.file("sa.key")),
            format!("--token-auth-file={}", self.file("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        arguments.extend(more);
        if self.is_traced {
            arguments.push(format!("--tracing-config-file={}", self.file("tracing.yaml")));
        }
        arguments
    }
}

/// JSON is YAML too, so this is a kubeconfig file.
fn kubeconfig(secure_port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{ "name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{secure_port}"),
            "insecure-skip-tls-verify": true,
        }}],
        "users": [{ "name": "admin", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "admin" } }],
    })
}

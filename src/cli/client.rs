//! How commands ask a node that runs, and what they say where it does not answer.
//!
//! A person who has the wrong address should learn what is there instead, and what to write. So where a call
//! fails whose error says nothing of it, the port is asked once more, in clear, what it speaks.

use std::{fmt, path::PathBuf, time::Duration};

use clap::Args;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    net::{
        connect::{Address, connect, endpoint},
        status::{self, Cause},
    },
    proto::tree::{self as pb, tree_client::TreeClient},
};

/// How long a node may take to answer, with all that is below it.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How long it may take to read what is to be explained.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// How long a port may take to show what it speaks.
const PROBE_WITHIN: Duration = Duration::from_secs(2);
const PROBE_BYTES_MAX: usize = 1024;

/// A tree of many nodes with long texts.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The first byte of a TLS alert, which is what a server of TLS answers to text.
const TLS_ALERT: u8 = 0x15;

/// A node that runs.
#[derive(Args, Clone, Debug)]
pub(super) struct Target {
    /// Where the node serves its clients: http(s)://HOST:PORT.
    #[arg(env = "PLEACH_URL", default_value = "http://127.0.0.1:2379")]
    pub(super) url: String,
    #[command(flatten)]
    pub(super) security: Security,
}

/// How a connection to a node is protected.
#[derive(Args, Clone, Debug)]
pub(super) struct Security {
    /// The authority that signed the node's certificate (PEM); the system's, unless given.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// The certificate to show the node (PEM).
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
}

/// Why no node answers at an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreachable {
    url: String,
    problem: String,
    remedy: Option<String>,
}

/// What a port is found to speak.
#[derive(Debug, PartialEq, Eq)]
enum Spoken {
    Tls,
    Http,
    Other,
}

// === impl Target ===

impl Target {
    /// What the node tells of itself and of what is below it.
    ///
    /// # Errors
    /// Where no node answers.
    pub(super) async fn describe(&self) -> Result<pb::Node, Unreachable> {
        describe(&self.url, &self.security).await
    }

    /// Which kinds of keys are asked for how often, and with `counts` how many keys there are; `None` where the node is
    /// of a version that does not tell.
    ///
    /// # Errors
    /// Where no node answers.
    pub(super) async fn prefixes(
        &self,
        counts: bool,
    ) -> Result<Option<pb::PrefixesResponse>, Unreachable> {
        let url = complete(&self.url)?;
        let mut request = tonic::Request::new(pb::PrefixesRequest { counts });
        request.set_timeout(READ_WITHIN);
        match client(&url, &self.security)?.prefixes(request).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == Code::Unimplemented || is_of_before(&status) => {
                Ok(None)
            }
            Err(status) => Err(self.security.explain(&url, &status).await),
        }
    }

    /// How the server is connected to.
    ///
    /// # Errors
    /// Where the address or a file can't be used.
    pub(super) fn endpoint(&self) -> Result<Endpoint, Unreachable> {
        self.security.endpoint(&complete(&self.url)?)
    }

    /// What a call that failed means to who made it.
    pub(super) async fn explain(&self, status: &Status) -> Unreachable {
        match complete(&self.url) {
            Ok(url) => self.security.explain(&url, status).await,
            Err(wrong) => wrong,
        }
    }
}

/// What a node tells of itself and of what is below it.
///
/// # Errors
/// Where no node answers.
pub(super) async fn describe(url: &str, security: &Security) -> Result<pb::Node, Unreachable> {
    let url = complete(url)?;
    let mut client = client(&url, security)?;
    let mut request = tonic::Request::new(pb::DescribeRequest {});
    request.set_timeout(ANSWER_WITHIN);
    match timeout(ANSWER_WITHIN, client.describe(request)).await {
        Ok(Ok(answer)) => {
            let mut node = answer.into_inner();
            quieten(&mut node);
            Ok(node)
        }
        Ok(Err(status)) => Err(security.explain(&url, &status).await),
        Err(_) => {
            let problem = format!("no answer within {} s", ANSWER_WITHIN.as_secs());
            let remedy = "is the address right, and does a firewall let it through?";
            Err(Unreachable::new(&url, problem).with_remedy(remedy))
        }
    }
}

/// What a read costs each store behind a node.
///
/// # Errors
/// Where no node answers, or the node refuses.
pub(super) async fn explain(
    url: &str,
    security: &Security,
    read: pb::ExplainRequest,
) -> anyhow::Result<pb::ExplainResponse> {
    let url = complete(url)?;
    let mut client = client(&url, security)?;
    let mut request = tonic::Request::new(read);
    request.set_timeout(READ_WITHIN);
    let status = match timeout(READ_WITHIN, client.explain(request)).await {
        Ok(Ok(answer)) => {
            let mut answer = answer.into_inner();
            answer.stores.iter_mut().for_each(|store| quieten_text(&mut store.path));
            for route in &mut answer.routes {
                [&mut route.name, &mut route.rule].into_iter().for_each(quieten_text);
            }
            return Ok(answer);
        }
        Ok(Err(status)) => status,
        Err(_) => Status::deadline_exceeded("it took too long"),
    };
    let mut said = status.message().to_owned();
    quieten_text(&mut said);
    let is_late = matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded);
    let is_old = is_of_before(&status);
    let own = ["etcdserver:", "pleach:"].iter().any(|begin| said.starts_with(begin));
    match (is_old, is_late, own) {
        (true, ..) => anyhow::bail!("the node is of a version that explains nothing"),
        (_, true, _) => {
            let within = READ_WITHIN.as_secs();
            anyhow::bail!("it was not read within {within} s; read less with --limit")
        }
        (.., true) => anyhow::bail!("the node refuses: {said}"),
        _ => Err(security.explain(&url, &status).await.into()),
    }
}

/// Whether a node answers that is of a version without this verb: it takes it for one of its parent.
fn is_of_before(status: &Status) -> bool {
    status.message().contains("answers only the node that assigned it its lanes")
}

fn client(url: &str, security: &Security) -> Result<TreeClient<Channel>, Unreachable> {
    let client = TreeClient::new(connect(&security.endpoint(url)?));
    Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
}

fn quieten_text(text: &mut String) {
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, "\u{fffd}");
    }
}

/// Takes out what would move a terminal's cursor or colour its text: names and reasons come from other machines.
fn quieten(node: &mut pb::Node) {
    quieten_text(&mut node.version);
    quieten_text(&mut node.r#loop);
    node.alarms.iter_mut().for_each(quieten_text);
    for certificate in &mut node.certificates {
        let pb::Certificate { setting, file, subject, .. } = certificate;
        [setting, file, subject].into_iter().for_each(quieten_text);
    }
    for member in [&mut node.member, &mut node.giver].into_iter().flatten() {
        quieten_text(&mut member.name);
    }
    for route in &mut node.routes {
        let pb::Route { name, trouble, kind, place, rule, last_error, node, hazards, .. } = route;
        hazards.iter_mut().for_each(quieten_text);
        [name, trouble, kind, place, rule].into_iter().for_each(quieten_text);
        last_error.iter_mut().for_each(|error| quieten_text(&mut error.text));
        node.iter_mut().for_each(quieten);
    }
}

/// An address with its scheme, as etcdctl takes them without; its port must be said.
fn complete(text: &str) -> Result<String, Unreachable> {
    let text = text.trim().trim_end_matches('/');
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let wrong = |problem: &str, remedy: String| {
        Err(Unreachable::new(text, problem.to_owned()).with_remedy(remedy))
    };
    if !["http", "https"].contains(&scheme) {
        let remedy = "expected http://HOST:PORT or https://HOST:PORT".to_owned();
        return wrong(&format!("`{scheme}://` is no scheme of a node"), remedy);
    }
    if rest.contains([',', '/', '@']) {
        let remedy = "expected one address, http://HOST:PORT or https://HOST:PORT".to_owned();
        return wrong("this is more than an address", remedy);
    }
    match rest.rsplit_once(':').map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(format!("{scheme}://{rest}")),
        Some(_) if !rest.ends_with(']') => {
            wrong("the port is no number from 1 to 65535", format!("{scheme}://HOST:2379"))
        }
        _ => wrong("the port is missing", format!("try {scheme}://{rest}:2379")),
    }
}

// === impl Security ===

impl Security {
    fn endpoint(&self, url: &str) -> Result<Endpoint, Unreachable> {
        let address = Address {
            urls: vec![url.to_owned()],
            ca_file: self.ca_file.clone(),
            identity: self.cert_file.clone().zip(self.key_file.clone()),
            ..Address::default()
        };
        endpoint(url, &address).map_err(|problem| Unreachable::new(url, problem))
    }

    /// What a call that failed means to who made it.
    async fn explain(&self, url: &str, status: &Status) -> Unreachable {
        let said = status::said(status);
        let at = |problem: &str, remedy: &str| {
            Unreachable::new(url, problem.to_owned()).with_remedy(remedy)
        };
        let no_grpc = said.contains("grpc-status header missing");
        match Cause::of(&said) {
            Some(Cause::NobodyListens) => at(
                "nobody listens there",
                "is the node started? Its log says `serving` with its address",
            ),
            Some(Cause::NoSuchHost) => {
                at("no host is called so", "is its name right, and known to this machine?")
            }
            Some(Cause::NotTls) => at("it does not speak TLS", "take http:// instead of https://"),
            Some(Cause::UnknownAuthority) => at(
                "nobody here trusts who signed its certificate",
                "name the authority with --ca-file",
            ),
            Some(Cause::AuthorityItself) => at(
                "its certificate is an authority's, and none of a server",
                "give the node one with `CA:FALSE` among its constraints",
            ),
            Some(Cause::OtherName) => at(
                &format!("its certificate is for another host ({said})"),
                "take a host that the certificate names",
            ),
            Some(Cause::NotInForce) => at(
                &format!("its certificate is not in force ({said})"),
                "renew it, or set the clock of this machine",
            ),
            Some(Cause::WantsCertificate) => at(
                "it admits only clients with a certificate",
                "give --cert-file and --key-file, signed by the node's --trusted-ca-file",
            ),
            Some(Cause::RefusesCertificate) => at(
                "it does not admit this certificate",
                "--cert-file must be signed by the node's --trusted-ca-file",
            ),
            None if no_grpc => at(
                "a server of HTTP answers there that is no node",
                "take the address of the node's --listen-client-urls",
            ),
            None if status.code() == Code::Unimplemented => at(
                "a gRPC server answers there that is no node, most likely an etcd",
                "etcdctl reads it; take the address of a node's --listen-client-urls",
            ),
            Some(Cause::NotHttp2 | Cause::Closes) | None => self.explain_by_probe(url, &said).await,
        }
    }

    async fn explain_by_probe(&self, url: &str, said: &str) -> Unreachable {
        let at = |problem: &str| Unreachable::new(url, problem.to_owned());
        let (scheme, host) = url.split_once("://").unwrap_or(("http", url));
        match probe(host).await {
            Some(Spoken::Tls) if scheme == "http" => {
                let remedy = "take https://, with --ca-file where the system does not know who signed \
                              its certificate";
                at("it speaks TLS").with_remedy(remedy)
            }
            // Under TLS 1.3 a client learns late that it is refused, or just finds the connection closed.
            Some(Spoken::Tls) if self.cert_file.is_none() && !said.contains("certificate") => {
                at(&format!("the connection broke off ({said})")).with_remedy(
                    "where it admits only clients with a certificate: --cert-file and --key-file",
                )
            }
            Some(Spoken::Http) => at("a server of HTTP answers there that is no node")
                .with_remedy("take the address of the node's --listen-client-urls"),
            Some(Spoken::Other) => at("something else than a node answers there")
                .with_remedy("take the address of the node's --listen-client-urls"),
            Some(Spoken::Tls) | None => at(said),
        }
    }
}

/// What a port speaks, as far as its answer to a plain request shows.
async fn probe(host: &str) -> Option<Spoken> {
    let ask = async {
        let mut stream = TcpStream::connect(host).await.ok()?;
        let request = format!("GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = vec![0; PROBE_BYTES_MAX];
        let read = stream.read(&mut answer).await.ok()?;
        answer.truncate(read);
        Some(answer)
    };
    let answer = timeout(PROBE_WITHIN, ask).await.ok()??;
    let text = String::from_utf8_lossy(&answer);
    // Go's servers of TLS answer plain requests in clear, with this sentence.
    let is_go_tls = text.contains("HTTP request to an HTTPS server");
    Some(match answer.first() {
        Some(&TLS_ALERT) => Spoken::Tls,
        _ if is_go_tls => Spoken::Tls,
        _ if text.starts_with("HTTP/") => Spoken::Http,
        _ => Spoken::Other,
    })
}

// === impl Unreachable ===

impl Unreachable {
    pub(super) fn new(url: &str, problem: String) -> Self {
        Self { url: url.to_owned(), problem, remedy: None }
    }

    pub(super) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The address that does not answer.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Why, and what to do, without the address.
    pub(super) fn reason(&self) -> String {
        let remedy = self.remedy.as_ref().map_or_else(String::new, |remedy| format!("; {remedy}"));
        format!("{}{remedy}", self.problem)
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no node at {}: {}", self.url, self.reason())
    }
}

impl std::error::Error for Unreachable {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_complete_or_says_what_is_missing() {
        let read = |text| complete(text).map_err(|wrong| wrong.reason());
        assert_eq!(read("127.0.0.1:2379").as_deref(), Ok("http://127.0.0.1:2379"));
        assert_eq!(read("https://h:1/").as_deref(), Ok("https://h:1"));
        assert_eq!(read("http://[::1]:2379").as_deref(), Ok("http://[::1]:2379"));
        for (text, said) in [
            ("http://h", "the port is missing; try http://h:2379"),
            ("http://[::1]", "the port is missing"),
            ("http://h:99999", "no number from 1 to 65535"),
            ("h:http", "no number from 1 to 65535"),
            ("etcd://h:1", "`etcd://` is no scheme"),
            ("http://a:1,http://b:2", "expected one address"),
            ("http://u:secret@h:1", "expected one address"),
        ] {
            let wrong = read(text).expect_err(text);
            assert!(wrong.contains(said), "{text}: {wrong}");
        }
    }
}

//! What is beside etcd's services: pages for probes, and methods that are not there.

use std::{str::FromStr as _, time::Duration};

use anyhow::{Context as _, Result};
use http::{Uri, uri::PathAndQuery};
use pleach::proto::{
    health::{HealthListRequest, health_client::HealthClient},
    v3electionpb::{self, election_client::ElectionClient},
    v3lockpb::{self, lock_client::LockClient},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

const METHODS: [&str; 4] = ["GET", "HEAD", "POST", "OPTIONS"];

const PATHS: [&str; 24] = [
    "/health",
    "/health?serializable=true",
    "/health?exclude=NOSPACE",
    "/health?exclude=CORRUPT&exclude=NOSPACE",
    "/health?serializable=true&exclude=NOSPACE&exclude=CORRUPT",
    "/livez",
    "/livez?verbose",
    "/livez?exclude=serializable_read",
    "/livez/serializable_read",
    "/readyz",
    "/readyz?verbose",
    "/readyz?exclude=data_corruption",
    "/readyz/data_corruption",
    "/readyz/linearizable_read",
    "/readyz/non_learner",
    "/readyz/serializable_read?verbose",
    "/version",
    "/readyz?exclude=%64ata_corruption&verbose",
    "/readyz?exclude=data%5Fcorruption",
    "/health?%65xclude=NOSPACE",
    "/metrics",
    "/",
    "/nothing",
    "/readyz/nothing",
];

/// The headers that say something about an answer, beside its length and date.
const HEADERS: [&str; 6] = [
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "allow",
    "content-type",
    "x-content-type-options",
];

/// Status, headers, and the lines of the body in alphabetical order: etcd's own is another each time.
pub type Page = (String, Vec<String>, Vec<String>);

/// What a server answers to every probe by every method.
pub async fn answers(url: &str) -> Result<Vec<(String, Page)>> {
    let mut answers = Vec::new();
    for method in METHODS {
        for path in PATHS {
            let page = timeout(ANSWER_WAIT_MAX, page(url, method, path)).await??;
            answers.push((format!("{method} {path}"), page));
        }
    }
    Ok(answers)
}

async fn page(url: &str, method: &str, path: &str) -> Result<Page> {
    let host = Uri::from_str(url)?.authority().context("no host")?.to_string();
    let mut stream = TcpStream::connect(&host).await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the headers")?;
    // What it measures is its own.
    let body = if path == "/metrics" { "" } else { body };
    let mut lines = head.lines();
    let status = lines.next().context("no status")?.to_owned();
    let mut headers: Vec<String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| format!("{}: {value}", name.to_lowercase()))
        .filter(|line| HEADERS.iter().any(|name| line.starts_with(&format!("{name}:"))))
        .collect();
    headers.sort_unstable();
    // A node has a line for each store besides.
    let lines = body.lines().filter(|line| !line.starts_with("[+]store "));
    let mut body: Vec<String> = lines.map(str::to_owned).collect();
    body.sort_unstable();
    // Both alarms may stand, and etcd says either.
    body.iter_mut().for_each(|line| *line = line.replace("ALARM CORRUPT", "ALARM NOSPACE"));
    Ok((status, headers, body))
}

/// How many pages of lists with selectors were found by an index, as a node says.
pub async fn pages_by_index(url: &str) -> Result<u64> {
    const NAME: &str = "pleach_store_selected_pages_total{";
    let (_, _, lines) = timeout(ANSWER_WAIT_MAX, page(url, "GET", "/metrics?")).await??;
    let line = lines.iter().find(|line| line.starts_with(NAME) && line.contains("by=\"index\""));
    let value = line.and_then(|line| line.rsplit(' ').next()).context("it is not counted")?;
    Ok(value.parse()?)
}

/// What Lock and Election say to calls that wait for nobody: the code and text of each.
pub async fn said_of_lines(url: &str) -> Result<Vec<(&'static str, Code, String)>> {
    let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
    let (mut lock, mut election) =
        (LockClient::new(channel.clone()), ElectionClient::new(channel.clone()));
    let mut said = Vec::new();
    let mut note = |what, status: Option<tonic::Status>| {
        let status = status.unwrap_or_else(|| tonic::Status::ok(""));
        said.push((what, status.code(), status.message().to_owned()));
    };
    let nobody =
        v3electionpb::LeaderKey { name: "line".into(), key: "line/1".into(), rev: 1, lease: 1 };
    let unnamed = v3electionpb::LeaderKey::default();
    for (what, key) in [("unlock nothing", ""), ("unlock what is not locked", "line/1")] {
        note(what, lock.unlock(v3lockpb::UnlockRequest { key: key.into() }).await.err());
    }
    for (what, name, lease) in [
        ("lock with a lease that is none", "line", 12_345),
        ("lock with a lease below 0", "line", -5),
        ("lock what has no name, and a lease that is none", "", 12_345),
    ] {
        note(what, lock.lock(v3lockpb::LockRequest { name: name.into(), lease }).await.err());
        let value = "v".into();
        let ask = v3electionpb::CampaignRequest { name: name.into(), lease, value };
        note(what, election.campaign(ask).await.err());
    }
    for (what, leader) in
        [("nobody", None), ("who leads nothing", Some(nobody)), ("no name", Some(unnamed))]
    {
        let ask = v3electionpb::ProclaimRequest { leader: leader.clone(), value: "v".into() };
        note(what, election.proclaim(ask).await.err());
        note(what, election.resign(v3electionpb::ResignRequest { leader }).await.err());
    }
    for name in ["", "line"] {
        let ask = v3electionpb::LeaderRequest { name: name.into() };
        note("leader of nothing", election.leader(ask).await.err());
    }
    Ok(said)
}

/// What is said of methods and services that are not there, and of the services that are.
pub async fn unknown_methods(url: &str) -> Result<Vec<(Code, String)>> {
    let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
    let mut said = Vec::new();
    let paths = [
        "/etcdserverpb.KV/Nothing",
        "/etcdserverpb.Watch/Nothing",
        "/v3lockpb.Lock/Nothing",
        "/grpc.health.v1.Health/Nothing",
        "/etcdserverpb.Nothing/Range",
        "/Nothing/Range",
        "/a/b/c",
        "/Nothing",
    ];
    for path in paths {
        let mut client = Grpc::new(channel.clone());
        client.ready().await?;
        let codec = ProstCodec::<(), ()>::default();
        let answer =
            client.unary(tonic::Request::new(()), PathAndQuery::from_static(path), codec).await;
        let status = answer.err().with_context(|| format!("{path} was answered"))?;
        said.push((status.code(), status.message().to_owned()));
    }
    let list = HealthClient::new(channel).list(HealthListRequest {}).await?.into_inner();
    let mut list: Vec<_> = list.statuses.into_iter().collect();
    list.sort_unstable_by(|left, right| left.0.cmp(&right.0));
    said.push((Code::Ok, format!("{list:?}")));
    Ok(said)
}

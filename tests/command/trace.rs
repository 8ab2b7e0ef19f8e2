//! Traces as an OTLP receiver gets them: one from the root of a tree to the SQL statement, nothing
//! that is secret in them, and no request that waits for them.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use opentelemetry_proto::tonic::trace::v1::{
    span::SpanKind::{Client, Internal, Server},
    status::StatusCode,
};
use pleach::proto::{etcdserverpb as pb, mvccpb::KeyValue};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};
use tonic::{Code, Request, transport::Channel};

use crate::{
    call::{client, get, put, refused},
    support::{
        databases::{DatabaseServer, Kind, PASSWORD},
        etcd::Etcd,
        node::Node,
        otlp::{Receiver, Span},
        peers::free_port,
        process::eventually,
    },
};

/// A child is attached within a moment; the rest is for a busy machine.
const ATTACHED_WITHIN: Duration = Duration::from_secs(20);
/// Spans are sent every five seconds.
const SENT_WITHIN: Duration = Duration::from_secs(20);

/// The span of the client, which is the parent of the root's.
const CLIENT: &str = "00f067aa0ba902b7";
const STATE: &str = "vendor=opaque";
const SECRET_KEY: &str = "/child/store/key-that-nobody-may-see";
const SECRET_VALUE: &str = "value-that-nobody-may-see";

/// A root, its one child, and what they tell.
struct Tree {
    receiver: Receiver,
    root: Node,
    child: Node,
    channel: Channel,
    _folder: TempDir,
}

#[tokio::test]
async fn a_request_is_one_trace_from_the_root_to_a_statement_in_postgresql() -> Result<()> {
    let server = DatabaseServer::shared(Kind::Postgres).await?;
    let endpoint = server.url(&server.new_database().await?);
    let tree = Tree::start(&[("/child/store/", endpoint)]).await?;
    check_statements(&tree, "postgresql").await
}

#[tokio::test]
async fn a_request_is_one_trace_from_the_root_to_a_statement_in_sqlite() -> Result<()> {
    check_statements(&Tree::start(&[]).await?, "sqlite").await
}

#[tokio::test]
async fn a_request_is_one_trace_from_the_root_to_the_calls_of_an_etcd() -> Result<()> {
    let mut etcd = Etcd::hasty()?;
    etcd.start().await?;
    let tree = Tree::start(&[("/child/store/", etcd.url())]).await?;
    // What was just written is read from memory, with no call.
    let (write, _) = tree.write_and_read().await?;
    let chain = tree.chain(&write, "Txn", |span| span.name == "etcdserverpb.KV/Txn").await?;
    ensure!(chain[0].attribute("pleach.route") == "store-0", "{chain:?}");
    tree.check_silence()
}

async fn check_statements(tree: &Tree, system: &str) -> Result<()> {
    let (write, read) = tree.write_and_read().await?;
    for (trace, method, name, text) in [
        (write, "Txn", "transaction", ["INSERT INTO pleach_log", "; COMMIT"]),
        (read, "Range", "SELECT", ["SELECT k.name", "FROM pleach_key k"]),
    ] {
        let chain = tree.chain(&trace, method, |span| span.name == name).await?;
        ensure!(chain.len() == 4, "{chain:?}");
        ensure!(chain[0].attribute("db.system") == system, "{chain:?}");
        let said = chain[0].attribute("db.query.text");
        ensure!(text.iter().all(|text| said.contains(text)), "{said}");
    }
    let select = tree.select().await?;
    let chain = tree.chain(&select, "Range", |span| span.name == "SELECT").await?;
    ensure!(chain.len() == 5 && chain[1].name == "select", "{chain:?}");
    let said = ["pleach.by_index", "pleach.rows_read", "db.response.returned_rows"];
    let said = said.map(|name| chain[1].attribute(name));
    // What is no object can't be judged, and is answered.
    ensure!(said == ["false", "1", "1"], "{said:?}");
    tree.check_silence()
}

#[tokio::test]
async fn what_comes_unsampled_or_without_a_trace_makes_no_span() -> Result<()> {
    let mut tree = Tree::start(&[]).await?;
    for _ in 0..20 {
        tree.read(Some(&format!("00-{}-{CLIENT}-00", new_trace()))).await?;
        tree.read(None).await?;
        // An id of zero is none.
        tree.read(Some(&format!("00-{}-{CLIENT}-01", "0".repeat(32)))).await?;
    }
    let trace = new_trace();
    tree.read(Some(&sampled(&trace))).await?;
    for node in [&mut tree.root, &mut tree.child] {
        node.signal("TERM")?;
        node.ended().await?;
    }
    let spans = tree.receiver.spans();
    for service in ["root", "child"] {
        ensure!(spans.iter().any(|span| span.service == service), "{service} has sent nothing");
    }
    let other = spans.iter().find(|span| hex(&span.trace_id) != trace);
    ensure!(other.is_none(), "{other:?}");
    Ok(())
}

#[tokio::test]
async fn writers_that_share_a_commit_are_linked_with_it() -> Result<()> {
    const WRITERS: usize = 64;
    let (folder, receiver) = (TempDir::new()?, Receiver::start().await?);
    let mut node = Node::new(folder.path(), &["--trace-sample-ratio=1", &receiver.flag()])?;
    let channel = node.start().await?;
    let put = |index: usize| put(&channel, format!("key/{index}"), "value");
    try_join_all((0..WRITERS).map(put)).await?;
    node.signal("TERM")?;
    node.ended().await?;

    let spans = receiver.spans();
    let commits: Vec<_> = spans.iter().filter(|span| span.name == "transaction").collect();
    ensure!(commits.len() < WRITERS, "every writer had a commit of its own");
    let mut writes = 0;
    for put in spans.iter().filter(|span| span.name == "etcdserverpb.KV/Put") {
        writes += 1;
        let is_known = commits.iter().any(|commit| {
            let is_parent = commit.parent_span_id == put.span_id;
            let to_put = commit.links.iter().any(|it| it.span_id == put.span_id);
            let to_commit = put.links.iter().any(|it| it.span_id == commit.span_id);
            is_parent || to_put && to_commit
        });
        ensure!(is_known, "{put:?} leads to no commit");
    }
    ensure!(writes == WRITERS, "{writes} writes were traced");
    let sizes = commits.iter().map(|commit| commit.attribute("db.operation.batch.size"));
    let sizes: Vec<usize> = sizes.map(|size| size.parse()).collect::<Result<_, _>>()?;
    ensure!(sizes.iter().sum::<usize>() == WRITERS, "{sizes:?}");
    Ok(())
}

/// As `pleach traces` prints it.
#[tokio::test]
async fn writers_that_share_a_commit_are_shown_with_each_other() -> Result<()> {
    const WRITERS: usize = 64;
    let (folder, port) = (TempDir::new()?, free_port()?);
    let (listen, count) = (format!("--listen=127.0.0.1:{port}"), format!("--count={WRITERS}"));
    let mut traces = Command::new(env!("CARGO_BIN_EXE_pleach"));
    traces.args(["traces", &listen, &count, "--with=KV/Put", "--quiet=1", "-o", "json"]);
    let printed = traces.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let to = format!("--otlp-endpoint=http://127.0.0.1:{port}");
    let mut node = Node::new(folder.path(), &["--trace-sample-ratio=1", &to])?;
    let channel = node.start().await?;
    let put = |index: usize| put(&channel, format!("key/{index}"), "value");
    try_join_all((0..WRITERS).map(put)).await?;
    node.signal("TERM")?;
    node.ended().await?;

    let printed = timeout(SENT_WITHIN, printed.wait_with_output()).await??.stdout;
    let traces = serde_json::Deserializer::from_slice(&printed).into_iter::<Value>();
    let traces = traces.collect::<Result<Vec<_>, _>>()?;
    ensure!(traces.len() == WRITERS, "{} traces", traces.len());
    let known: BTreeSet<_> = traces.iter().filter_map(|trace| trace["trace_id"].as_str()).collect();
    let mut linked = BTreeSet::new();
    fn links(span: &Value) -> Vec<&str> {
        let own = span["links"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let below = span["spans"].as_array().into_iter().flatten().flat_map(links);
        own.chain(below).collect()
    }
    for trace in &traces {
        linked.extend(trace["spans"].as_array().into_iter().flatten().flat_map(links));
    }
    ensure!(linked.len() > 1 && linked.is_subset(&known), "{linked:?} of {known:?}");
    Ok(())
}

#[tokio::test]
async fn a_request_that_fails_has_its_trace_in_the_log() -> Result<()> {
    let receiver = Receiver::start().await?;
    for (format, mark) in [("text", "trace_id="), ("json", "\"trace_id\":\"")] {
        let (folder, trace) = (TempDir::new()?, new_trace());
        let flags = [&*format!("--log-format={format}"), &receiver.flag()];
        let gone = format!("http://127.0.0.1:{}", free_port()?);
        let mut node = Node::new(folder.path(), &flags)?.with_routes_to(&[("/child/", gone)])?;
        let channel = node.start().await?;
        let read = pb::RangeRequest { key: SECRET_KEY.into(), ..Default::default() };
        let answer = client(&channel).range(with_trace(read, Some(&sampled(&trace)))?).await;
        ensure!(answer.is_err_and(|status| status.code() == Code::Unavailable), "it is answered");
        let log = node.log();
        let line = log.lines().find(|line| line.contains("a request failed"));
        let line = line.with_context(|| log.clone())?;
        ensure!(line.contains(&format!("{mark}{trace}")), "{line}");
        node.signal("TERM")?;
        node.ended().await?;
        let spans = receiver.spans();
        let served = spans.iter().find(|span| hex(&span.trace_id) == trace);
        let served = served.context("nothing was sent")?;
        ensure!(served.attribute("rpc.grpc.status_code") == "14", "{served:?}");
        let status = served.status.clone().unwrap_or_default();
        ensure!(status.code() == StatusCode::Error && status.message.is_empty(), "{served:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_hangs_or_is_down_holds_nothing_up() -> Result<()> {
    // Connections are accepted by the system, and nobody ever reads.
    let hung = TcpListener::bind("127.0.0.1:0")?;
    for port in [hung.local_addr()?.port(), free_port()?] {
        let folder = TempDir::new()?;
        let endpoint = format!("--otlp-endpoint=http://127.0.0.1:{port}");
        let mut node = Node::new(folder.path(), &["--trace-sample-ratio=1", &endpoint])?;
        let channel = node.start().await?;
        let mut worst = Duration::ZERO;
        // Three spans each, so more than any queue holds.
        for index in 0..2_000 {
            let begin = Instant::now();
            put(&channel, format!("key/{}", index % 10), "value").await?;
            get(&channel, format!("key/{}", index % 10)).await?;
            worst = worst.max(begin.elapsed());
        }
        ensure!(worst < Duration::from_secs(1), "a write and a read took {worst:?}");
        node.signal("TERM")?;
        let (status, time) = node.ended().await?;
        ensure!(status.success(), "{status}");
        ensure!(time < Duration::from_secs(5), "it took {time:?} to end");
        let log = node.log();
        ensure!(log.contains("spans were not sent") || log.contains("can't be sent"), "{log}");
        ensure!(!log.contains('\u{1b}'), "a log that is no terminal's is coloured: {log:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_receiver_without_a_usable_address_is_refused_by_its_flag() -> Result<()> {
    let folder = TempDir::new()?;
    for address in ["localhost:4317", "4317", "ftp://host:1", "http://", "http://a:s3cret@ho st:1"]
    {
        let said = refused(folder.path(), &["--otlp-endpoint", address]).await?;
        ensure!(said.contains("--otlp-endpoint") && said.contains("http://HOST:PORT"), "{said}");
        ensure!(!said.contains("s3cret"), "{said}");
    }
    let said = refused(folder.path(), &["--trace-sample-ratio=1.5"]).await?;
    ensure!(said.contains("--trace-sample-ratio") && said.contains("from 0 to 1"), "{said}");
    Ok(())
}

// === impl Tree ===

impl Tree {
    /// A root whose keys below `/child/` are a child's, which has routes of its own.
    async fn start(routes: &[(&str, String)]) -> Result<Self> {
        let (folder, receiver) = (TempDir::new()?, Receiver::start().await?);
        let node = |name: &str, routes: &[(&str, String)]| {
            let folder = folder.path().join(name);
            fs::create_dir(&folder)?;
            let flags = [&*format!("--name={name}"), &receiver.flag()];
            Node::new(&folder, &flags)?.with_routes_to(routes)
        };
        let mut child = node("child", routes)?;
        let mut root = node("root", &[("/child/", child.url())])?;
        child.start().await?;
        let channel = root.start().await?;
        eventually("the child is attached", ATTACHED_WITHIN, async || {
            Ok(get(&channel, SECRET_KEY).await?)
        })
        .await?;
        Ok(Self { receiver, root, child, channel, _folder: folder })
    }

    async fn read(&self, traceparent: Option<&str>) -> Result<Vec<KeyValue>> {
        let read = pb::RangeRequest { key: SECRET_KEY.into(), ..Default::default() };
        let read = with_trace(read, traceparent)?;
        Ok(client(&self.channel).range(read).await?.into_inner().kvs)
    }

    /// Writes and reads the secret, each in a trace of its own.
    async fn write_and_read(&self) -> Result<(String, String)> {
        use pb::request_op::Request::RequestPut;
        let (write, read) = (new_trace(), new_trace());
        let (key, value) = (SECRET_KEY.into(), SECRET_VALUE.into());
        let put = RequestPut(pb::PutRequest { key, value, ..Default::default() });
        let success = vec![pb::RequestOp { request: Some(put) }];
        let txn = pb::TxnRequest { success, ..Default::default() };
        let txn = with_trace(txn, Some(&sampled(&write)))?;
        let answer = client(&self.channel).txn(txn).await?.into_inner();
        ensure!(answer.succeeded, "{answer:?}");
        let kvs = self.read(Some(&sampled(&read))).await?;
        ensure!(kvs.len() == 1 && kvs[0].value == SECRET_VALUE, "{kvs:?}");
        Ok((write, read))
    }

    /// Reads the secret with a selector that is one as well, in a trace of its own.
    async fn select(&self) -> Result<String> {
        let (trace, label_selector) = (new_trace(), "nobody-may-see=1".to_owned());
        let (key, range_end) = (SECRET_KEY.into(), format!("{SECRET_KEY}0").into());
        let read = pb::RangeRequest { key, range_end, label_selector, ..Default::default() };
        let read = with_trace(read, Some(&sampled(&trace)))?;
        let kvs = client(&self.channel).range(read).await?.into_inner().kvs;
        ensure!(kvs.len() == 1, "{kvs:?}");
        Ok(trace)
    }

    /// The span that is looked for in a trace, with those that it lies in, up to the root's: what a
    /// child did, its answer, the question, and the root's answer to `method`.
    async fn chain(
        &self,
        trace: &str,
        method: &str,
        is_wanted: impl Fn(&Span) -> bool,
    ) -> Result<Vec<Span>> {
        let chain = eventually("a trace is whole", SENT_WITHIN, async || {
            let mut spans = self.receiver.spans();
            spans.retain(|span| hex(&span.trace_id) == trace);
            let wanted =
                |span: &&Span| span.service == "child" && span.kind() == Client && is_wanted(span);
            let mut chain = vec![spans.iter().find(wanted).context("no such span")?.clone()];
            while let Some(last) = chain.last().filter(|last| hex(&last.parent_span_id) != CLIENT) {
                let parent = spans.iter().find(|span| span.span_id == last.parent_span_id);
                let parent = parent.with_context(|| format!("{last:?} has no parent"))?.clone();
                chain.push(parent);
            }
            Ok(chain)
        })
        .await?;
        let seen = chain.iter().map(|span| (&*span.service, span.kind(), &*span.name));
        // What a store does for several at once may lie between.
        let seen: Vec<_> = seen.filter(|(_, kind, _)| *kind != Internal).skip(1).collect();
        let verb = if method == "Txn" { "Apply" } else { "Read" };
        let (inner, outer) =
            (format!("pleach.tree.v1.Tree/{verb}"), format!("etcdserverpb.KV/{method}"));
        let due =
            [("child", Server, &*inner), ("root", Client, &*inner), ("root", Server, &*outer)];
        ensure!(seen == due, "{seen:?}");
        for span in &chain {
            ensure!(span.trace_state == STATE, "{span:?}");
            let is_call = span.name.contains('/');
            ensure!(!is_call || span.attribute("rpc.grpc.status_code") == "0", "{span:?}");
        }
        Ok(chain)
    }

    /// Nothing of what was asked or kept, and no password, is in any span.
    fn check_silence(&self) -> Result<()> {
        for secret in ["nobody-may-see", PASSWORD] {
            ensure!(!self.receiver.has_seen(secret.as_bytes()), "{secret} is in a span");
        }
        Ok(())
    }
}

fn new_trace() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    format!("{:032x}", 0x4bf9_2f35_0000_0000 + COUNT.fetch_add(1, Ordering::Relaxed))
}

fn sampled(trace: &str) -> String {
    format!("00-{trace}-{CLIENT}-01")
}

fn with_trace<T>(message: T, traceparent: Option<&str>) -> Result<Request<T>> {
    let mut request = Request::new(message);
    if let Some(traceparent) = traceparent {
        request.metadata_mut().insert("traceparent", traceparent.parse()?);
        request.metadata_mut().insert("tracestate", STATE.parse()?);
    }
    Ok(request)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! `pleach traces`: a receiver of traces that prints them, for a demonstration and for a look without a collector.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, value_parser};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{self as pb, status::StatusCode},
};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tonic::{
    Request, Response, Status,
    codec::CompressionEncoding,
    transport::{Server, server::TcpIncoming},
};

use super::output::{self, Colour, Format, Output, Table, print};

const EXAMPLES: &str = "\
Examples:
  pleach traces                              prints what comes to 127.0.0.1:4317, until Ctrl-C
  pleach --otlp-endpoint http://127.0.0.1:4317 --trace-sample-ratio 1        a node that sends there
  pleach traces --count 1 --with Tree/Apply  the first write that goes from a node to another
  pleach traces --count 10 -o json

A trace is printed when no span of it came for --quiet seconds: nodes send theirs every 5 s, API servers too.
Exit codes: 0 printed, 1 it can't receive. Fields of -o json: docs/src/commands.md.";

/// Spans that were received and wait for others are no more than this, and what is kept of each is bounded too.
const SPANS_MAX: usize = 20_000;
const NAME_CHARS_MAX: usize = 200;
const ATTRIBUTES_MAX: usize = 32;
const LINKS_MAX: usize = 128;

/// Of the traces that a span is linked with, where they are many.
const LINKS_SHOWN: usize = 2;

/// Spans that lie deeper are shown as if they lay there.
const DEPTH_MAX: usize = 64;

/// What one message may hold: gRPC's own bound.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// What waits to be sorted: senders wait then.
const BATCHES_MAX: usize = 16;

/// Receives traces over OTLP (gRPC), as a collector does, and prints each as a tree.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Traces {
    /// Where to receive: HOST:PORT.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4317")]
    listen: SocketAddr,
    /// End after so many traces; 0 for never.
    #[arg(long, default_value_t)]
    count: usize,
    /// Print only traces with a span whose name has this in it; given twice, both.
    #[arg(long, value_name = "TEXT")]
    with: Vec<String>,
    /// After how many seconds without a span a trace is taken to be whole.
    #[arg(long, value_name = "SECONDS", default_value = "6", value_parser = value_parser!(u64).range(..=3_600))]
    quiet: u64,
    #[command(flatten)]
    output: Output,
}

/// A trace, as it is printed.
#[derive(Debug, Serialize)]
struct Trace {
    trace_id: String,
    took_s: f64,
    /// The first spans: one, where nothing was lost.
    spans: Vec<Node>,
}

/// A span, and what lies in it.
#[derive(Debug, Serialize)]
struct Node {
    service: String,
    name: String,
    took_s: f64,
    is_error: bool,
    attributes: BTreeMap<String, String>,
    /// Traces that it is linked with: those whose writes share a commit with this one's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<String>,
    spans: Vec<Node>,
}

/// What is kept of a span that came.
#[derive(Debug)]
struct Came {
    id: Vec<u8>,
    parent: Vec<u8>,
    begin: u64,
    end: u64,
    shown: Node,
}

/// Traces that are not whole.
#[derive(Debug, Default)]
struct Waiting {
    traces: HashMap<Vec<u8>, Unfinished>,
    spans: usize,
    dropped: usize,
}

#[derive(Debug)]
struct Unfinished {
    spans: Vec<Came>,
    last: Instant,
}

/// Takes what senders send.
#[derive(Clone, Debug)]
struct Taken(mpsc::Sender<ExportTraceServiceRequest>);

/// Nodes send metrics to the same place, where that is asked for; they are not printed.
#[derive(Debug)]
struct Ignored;

// === impl Traces ===

impl Traces {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.receive())
    }

    async fn receive(self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.listen).await;
        let listener = listener.with_context(|| format!("--listen {}", self.listen))?;
        let (taken, mut came) = mpsc::channel(BATCHES_MAX);
        // Collectors compress what they hand on.
        let traces = TraceServiceServer::new(Taken(taken))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip);
        let metrics = MetricsServiceServer::new(Ignored)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .accept_compressed(CompressionEncoding::Gzip);
        let server = Server::builder().add_service(traces).add_service(metrics);
        let mut server = std::pin::pin!(server.serve_with_incoming(TcpIncoming::from(listener)));
        // Not among what is printed: that may be for a program.
        eprintln!("receiving at http://{}", self.listen);
        let (quiet, mut waiting, mut printed) =
            (Duration::from_secs(self.quiet), Waiting::default(), 0);
        loop {
            let next = waiting.next(quiet);
            tokio::select! {
                ended = &mut server => return ended.context("it receives no more"),
                Some(batch) = came.recv() => waiting.take(batch),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    for trace in waiting.whole(quiet) {
                        if !self.is_wanted(&trace) {
                            continue;
                        }
                        printed += 1;
                        if !print(&self.printed(&trace)?) || printed == self.count {
                            return Ok(());
                        }
                    }
                    if waiting.dropped > 0 {
                        eprintln!("{} spans were too many, and dropped", waiting.dropped);
                        waiting.dropped = 0;
                    }
                }
            }
        }
    }

    fn is_wanted(&self, trace: &Trace) -> bool {
        let has = |text: &String| trace.spans.iter().any(|span| span.has(text));
        self.with.iter().all(has)
    }

    fn printed(&self, trace: &Trace) -> anyhow::Result<String> {
        match self.output.format.structured(trace)? {
            Some(text) => Ok(text),
            None => Ok(trace.table(self.output.format == Format::Wide)),
        }
    }
}

// === impl Waiting ===

impl Waiting {
    fn take(&mut self, batch: ExportTraceServiceRequest) {
        for resource in batch.resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes);
            let service = attributes.and_then(|of| texts(&of).remove("service.name"));
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                if self.spans >= SPANS_MAX {
                    self.dropped += 1;
                    continue;
                }
                self.spans += 1;
                let trace = self.traces.entry(span.trace_id.clone());
                let trace =
                    trace.or_insert_with(|| Unfinished { spans: Vec::new(), last: Instant::now() });
                trace.last = Instant::now();
                trace.spans.push(Came::new(service.clone().unwrap_or_default(), span));
            }
        }
    }

    /// When the next trace is whole.
    fn next(&self, quiet: Duration) -> Option<Instant> {
        self.traces.values().map(|trace| trace.last + quiet).min()
    }

    /// Takes out the traces that are whole, the oldest first.
    fn whole(&mut self, quiet: Duration) -> Vec<Trace> {
        let now = Instant::now();
        let whole = self.traces.extract_if(|_, trace| trace.last + quiet <= now);
        let mut whole: Vec<_> = whole.map(|(id, trace)| (id, trace.spans)).collect();
        self.spans -= whole.iter().map(|(_, spans)| spans.len()).sum::<usize>();
        let begin = |spans: &[Came]| spans.iter().map(|came| came.begin).min();
        whole.sort_by_key(|(_, spans)| begin(spans));
        whole.into_iter().map(|(id, spans)| Trace::new(&id, spans)).collect()
    }
}

// === impl Came ===

impl Came {
    fn new(service: String, span: pb::Span) -> Self {
        let (begin, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
        let shown = Node {
            service: printable(&service),
            name: printable(&span.name),
            took_s: nanoseconds(begin, end),
            is_error: span.status.is_some_and(|status| status.code() == StatusCode::Error),
            attributes: texts(&span.attributes),
            links: span.links.iter().take(LINKS_MAX).map(linked_trace).collect(),
            spans: Vec::new(),
        };
        Self { id: span.span_id, parent: span.parent_span_id, begin, end, shown }
    }
}

// === impl Trace ===

impl Trace {
    fn new(id: &[u8], spans: Vec<Came>) -> Self {
        let begin = spans.iter().map(|came| came.begin).min();
        let end = spans.iter().map(|came| came.end).max();
        let took_s = nanoseconds(begin.unwrap_or(0), end.unwrap_or(0));
        let known: BTreeSet<_> = spans.iter().map(|came| came.id.clone()).collect();
        let mut below: HashMap<Vec<u8>, Vec<Came>> = HashMap::new();
        for came in spans {
            // What lies in a span that did not come is shown beside the first, and what says to lie in itself too.
            let is_first = came.parent == came.id || !known.contains(&came.parent);
            let parent = if is_first { Vec::new() } else { came.parent.clone() };
            below.entry(parent).or_default().push(came);
        }
        let mut spans = nodes(&mut below, &[], 0);
        // Nothing leads to spans that say to lie in each other.
        while let Some(parent) = below.keys().min().cloned() {
            spans.extend(nodes(&mut below, &parent, 0));
        }
        Self { trace_id: hex(id), took_s, spans }
    }

    fn table(&self, is_wide: bool) -> String {
        let mut table = Table::default();
        for span in &self.spans {
            span.rows(&mut table, 0, is_wide);
        }
        let took = output::seconds(self.took_s);
        format!("trace {}, {took}\n{}\n", self.trace_id, table.printed())
    }
}

/// What lies in a span, in the order of its beginning; taken out, so that a circle ends.
fn nodes(below: &mut HashMap<Vec<u8>, Vec<Came>>, parent: &[u8], depth: usize) -> Vec<Node> {
    let mut spans = below.remove(parent).unwrap_or_default();
    if depth == DEPTH_MAX {
        let mut at = 0;
        while at < spans.len() {
            spans.extend(below.remove(&spans[at].id.clone()).unwrap_or_default());
            at += 1;
        }
    }
    spans.sort_by_key(|came| came.begin);
    let node = |came: Came| Node { spans: nodes(below, &came.id, depth + 1), ..came.shown };
    spans.into_iter().map(node).collect()
}

// === impl Node ===

impl Node {
    fn has(&self, text: &str) -> bool {
        self.name.contains(text) || self.spans.iter().any(|span| span.has(text))
    }

    /// With which traces it is linked, a few of them where all are not asked for.
    fn linked(&self, is_wide: bool) -> Option<String> {
        let shown = if is_wide { self.links.len() } else { LINKS_SHOWN };
        let (first, more) = self.links.split_at(shown.min(self.links.len()));
        let more = match more.len() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        (!first.is_empty()).then(|| format!("shared with {}{more}", first.join(", ")))
    }

    fn rows(&self, table: &mut Table, depth: usize, is_wide: bool) {
        table.row();
        table.cell(self.service.clone(), Some(Colour::Faint));
        let lead =
            if depth == 0 { String::new() } else { format!("{}└ ", "  ".repeat(depth - 1)) };
        table.cell(format!("{lead}{}", self.name), self.is_error.then_some(Colour::Bad));
        table.number(Some(output::seconds(self.took_s)));
        let told = |(name, value): (&String, &String)| {
            let is_told = is_wide || TOLD.contains(&name.as_str());
            is_told.then(|| format!("{name}={value}"))
        };
        let mut told: Vec<String> = self.attributes.iter().filter_map(told).collect();
        told.extend(self.linked(is_wide));
        table.cell(told.join(" "), Some(Colour::Faint));
        for span in &self.spans {
            span.rows(table, depth + 1, is_wide);
        }
    }
}

/// The attributes that say where a request has gone, and what it has cost.
const TOLD: [&str; 6] = [
    "pleach.route",
    "db.system",
    "db.operation.batch.size",
    "pleach.by_index",
    "pleach.rows_read",
    "db.response.returned_rows",
];

fn nanoseconds(begin: u64, end: u64) -> f64 {
    Duration::from_nanos(end.saturating_sub(begin)).as_secs_f64()
}

/// The id of a trace has 16 bytes, whatever a sender says.
fn linked_trace(link: &pb::span::Link) -> String {
    hex(&link.trace_id[..link.trace_id.len().min(16)])
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Attributes as people read them.
fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        Value::BoolValue(is_so) => Some(is_so.to_string()),
        _ => None,
    };
    let few = attributes.iter().take(ATTRIBUTES_MAX);
    few.filter_map(|of| Some((printable(&of.key), printable(&text(&of.value)?)))).collect()
}

/// A text of somebody else: it is no command to a terminal, and not endless.
fn printable(text: &str) -> String {
    let shown = text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter });
    shown.take(NAME_CHARS_MAX).collect()
}

// === The services ===

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let taken = self.0.send(request.into_inner()).await;
        taken.map_err(|_| Status::unavailable("nobody prints any more"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Ignored {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(service: &str, id: u8, parent: &[u8], name: &str, begin: u64) -> Came {
        let span = pb::Span {
            trace_id: vec![9; 16],
            span_id: vec![id],
            parent_span_id: parent.to_vec(),
            name: name.to_owned(),
            start_time_unix_nano: begin,
            end_time_unix_nano: begin + 1_000_000,
            ..pb::Span::default()
        };
        Came::new(service.to_owned(), span)
    }

    #[test]
    fn spans_stand_below_what_they_lie_in_in_their_order() {
        let spans = vec![
            came("child", 3, &[2], "commit", 30),
            came("root", 1, &[], "Put", 0),
            came("child", 4, &[2], "begin", 20),
            came("root", 2, &[1], "Apply", 10),
        ];
        let said = Trace::new(&[0xab; 2], spans).table(false);
        let lines = [
            "trace abab, 1.0 ms",
            "root   Put         1.0 ms",
            "root   └ Apply     1.0 ms",
            "child    └ begin   1.0 ms",
            "child    └ commit  1.0 ms",
            "",
            "",
        ];
        assert_eq!(said, lines.join("\n"));
    }

    #[test]
    fn traces_that_share_a_commit_name_each_other() {
        let mut commit = came("node", 1, &[], "transaction", 0);
        commit.shown.links = vec!["aa".to_owned(), "bb".to_owned(), "cc".to_owned()];
        let trace = Trace::new(&[1], vec![commit]);
        assert!(trace.table(false).contains("shared with aa, bb and 1 more"));
        assert!(trace.table(true).contains("shared with aa, bb, cc"));
    }

    /// What lies in a span that never came, or in itself, is shown all the same, and nothing runs in a circle.
    #[test]
    fn what_is_lost_hides_nothing() {
        let spans = vec![
            came("a", 1, &[7], "its parent is lost", 0),
            came("a", 2, &[2], "it is its own", 1),
            came("a", 3, &[4], "they are each other's", 2),
            came("a", 4, &[3], "they are each other's", 3),
        ];
        let trace = Trace::new(&[1], spans);
        let said = trace.table(false);
        assert_eq!(said.matches("a  ").count(), 4, "{said}");
    }

    /// A chain that is deeper than any, and texts that are commands to a terminal, are shown all the same.
    #[test]
    fn what_anybody_may_send_is_printed_and_no_more() {
        let chain = (1..=9_000_u16).map(|at| {
            let mut came = came("a\u{1b}[2J", 1, &[], &"x".repeat(1_000), u64::from(at));
            came.id = at.to_be_bytes().to_vec();
            came.parent = (at - 1).to_be_bytes().to_vec();
            came
        });
        let said = Trace::new(&[1], chain.collect()).table(false);
        assert_eq!(said.lines().count(), 9_002);
        assert!(!said.contains('\u{1b}') && said.len() < 9_002 * 1_000, "{} bytes", said.len());
    }
}

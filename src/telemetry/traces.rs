//! Traces: from `tracing`'s spans to an OTLP receiver.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{SpanContext, TraceContextExt as _, TraceFlags, TraceState, TracerProvider as _},
};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{
        BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, Sampler, SdkTracerProvider,
        SpanData, SpanExporter,
    },
};
use tonic::transport::{ClientTlsConfig, Endpoint};
use tracing::{Metadata, Span, Subscriber, level_filters::LevelFilter, subscriber::Interest};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    Layer,
    filter::dynamic_filter_fn,
    layer::{self, Filter},
    registry::LookupSpan,
};

use crate::wire::trace::{self, Choice, Collector};

/// How long the receiver may take to accept a connection, and to take what it is sent.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
pub(super) const SEND_TIME_MAX: Duration = Duration::from_secs(5);

/// How long the node's end waits for its last spans to be sent.
const END_TIME_MAX: Duration = Duration::from_secs(2);

/// Where a receiver is, as its address says.
pub(super) fn endpoint(receiver: &str) -> Result<Endpoint, String> {
    let endpoint: Endpoint = receiver.to_owned().try_into().map_err(|_| "no address")?;
    let endpoint = match (endpoint.uri().scheme_str(), endpoint.uri().host()) {
        (Some("http"), Some(_)) => endpoint,
        (Some("https"), Some(_)) => {
            let tls = ClientTlsConfig::new().with_native_roots();
            endpoint.tls_config(tls).map_err(|error| error.to_string())?
        }
        _ => return Err("no address of a server".to_owned()),
    };
    Ok(endpoint.connect_timeout(CONNECT_TIME_MAX).timeout(SEND_TIME_MAX))
}

/// The traces of a node.
#[derive(Debug)]
pub(super) struct Traces {
    provider: SdkTracerProvider,
    ratio: f64,
}

/// What decides which requests are traced.
#[derive(Debug)]
struct Chooser {
    ratio: f64,
    words: TraceContextPropagator,
}

/// The headers of a trace context, as OpenTelemetry reads and writes them.
struct Headers(Option<trace::Context>);

/// What sends spans, and says so in the log when it can't any more or can again.
#[derive(Debug)]
struct Sender {
    exporter: opentelemetry_otlp::SpanExporter,
    is_failing: AtomicBool,
}

/// Whether a span is one of this crate's.
pub(super) fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
}

/// Lets the span of a request pass, and ours that lie in one. Nothing else costs more than a look at
/// what was found out when it was met first.
fn within_a_request<S>() -> impl Filter<S>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    dynamic_filter_fn(|metadata, context: &layer::Context<'_, S>| {
        is_ours(metadata)
            && (metadata.name() == trace::SERVED || context.lookup_current().is_some())
    })
    .with_callsite_filter(|metadata| match is_ours(metadata) {
        true => Interest::sometimes(),
        false => Interest::never(),
    })
    .with_max_level_hint(LevelFilter::INFO)
}

// === impl Traces ===

impl Traces {
    /// The traces of `resource`, which are sent to `receiver`. Connects when there is something to send.
    pub(super) fn connect(
        resource: &Resource,
        receiver: &Endpoint,
        ratio: f64,
    ) -> Result<Self, String> {
        let sender = Sender::connect(receiver)?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            // The choice is made before there is a span.
            .with_sampler(Sampler::AlwaysOn)
            .with_span_processor(BatchSpanProcessor::builder(sender).build())
            .build();
        Ok(Self { provider, ratio })
    }

    /// What makes spans: one for a request that is traced, and others only within it.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'s> LookupSpan<'s>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(within_a_request())
    }

    /// Makes this what decides for the process.
    pub(super) fn collect(&self) {
        let words = TraceContextPropagator::new();
        trace::collect(Box::new(Chooser { ratio: self.ratio, words }));
    }

    pub(super) fn end(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(END_TIME_MAX) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

// === impl Chooser ===

impl Chooser {
    fn parsed(&self, context: &Headers) -> Option<SpanContext> {
        let context = self.words.extract_with_context(&Context::new(), context);
        Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
    }

    fn written(&self, context: SpanContext) -> Option<trace::Context> {
        let mut headers = Headers(None);
        let context = Context::new().with_remote_span_context(context);
        self.words.inject_context(&context, &mut headers);
        headers.0
    }
}

impl Collector for Chooser {
    fn choose(&self, came: Option<trace::Context>) -> Choice {
        let came = Headers(came);
        if let Some(context) = self.parsed(&came) {
            return if context.is_sampled() { Choice::Trace(came.0) } else { Choice::Pass(came.0) };
        }
        if self.ratio <= 0.0 {
            return Choice::Pass(None);
        }
        let ids = RandomIdGenerator::default();
        let (trace_id, span_id) = (ids.new_trace_id(), ids.new_span_id());
        let drawn = u64::from_be_bytes(span_id.to_bytes()) as f64 / u64::MAX as f64;
        if drawn < self.ratio {
            return Choice::Trace(None);
        }
        // Children follow this choice, and draw no lots of their own.
        let (flags, state) = (TraceFlags::NOT_SAMPLED, TraceState::NONE);
        Choice::Pass(self.written(SpanContext::new(trace_id, span_id, flags, true, state)))
    }

    fn set_parent(&self, span: &Span, parent: &trace::Context) {
        if let Some(parent) = self.parsed(&Headers(Some(parent.clone()))) {
            // A span that nobody collects needs no parent.
            let _ = span.set_parent(Context::new().with_remote_span_context(parent));
        }
    }

    fn context(&self, span: &Span) -> Option<trace::Context> {
        let context = span.context().span().span_context().clone();
        context.is_valid().then(|| self.written(context)).flatten()
    }
}

// === impl Headers ===

impl Extractor for Headers {
    fn get(&self, name: &str) -> Option<&str> {
        let context = self.0.as_ref()?;
        match name {
            trace::PARENT => Some(&context.parent),
            trace::STATE => context.state.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![trace::PARENT, trace::STATE]
    }
}

impl Injector for Headers {
    fn set(&mut self, name: &str, value: String) {
        match (name, &mut self.0) {
            (trace::PARENT, context) => {
                *context = Some(trace::Context { parent: value.into(), state: None });
            }
            (trace::STATE, Some(context)) if !value.is_empty() => {
                context.state = Some(value.into());
            }
            _ => {}
        }
    }
}

// === impl Sender ===

impl Sender {
    fn connect(endpoint: &Endpoint) -> Result<Self, String> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(endpoint.connect_lazy())
            .with_timeout(SEND_TIME_MAX)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { exporter, is_failing: AtomicBool::new(false) })
    }
}

impl SpanExporter for Sender {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(spans).await;
        let was_failing = self.is_failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !was_failing => tracing::warn!(%error, "traces can't be sent"),
            Ok(()) if was_failing => tracing::info!("traces are sent again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

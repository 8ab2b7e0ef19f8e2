//! The trace of a request, as W3C headers carry it from process to process.
//!
//! Spans are `tracing`'s, and each layer makes its own. Who collects them, if anybody does, knows their
//! identities: it decides which requests are traced, and no other request makes a span at all.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use http::{HeaderMap, HeaderValue};
use tonic::Code;
use tracing::{Span, field::Empty};

/// The headers of the W3C's trace context.
pub const PARENT: &str = "traceparent";
/// Its companion: what the systems on the way have added.
pub const STATE: &str = "tracestate";

/// The name of the span that a request begins with, which all its others lie in.
pub const SERVED: &str = "served";

/// A span as another process is told of it: its trace, its own identity, whether it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// What stands in `traceparent`.
    pub parent: Arc<str>,
    /// What stands in `tracestate`, if anything does.
    pub state: Option<Arc<str>>,
}

/// Whoever collects spans.
pub trait Collector: fmt::Debug + Send + Sync {
    /// What becomes of a request that came with a context, or with none.
    fn choose(&self, came: Option<Context>) -> Choice;

    /// Makes a new span the child of one in another process.
    fn set_parent(&self, span: &Span, parent: &Context);

    /// What others are told of a span; `None` where it is not collected.
    fn context(&self, span: &Span) -> Option<Context>;
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is traced, as a part of the trace that it came with, or as a new one.
    Trace(Option<Context>),
    /// It is not, and others are told so.
    Pass(Option<Context>),
}

static COLLECTOR: OnceLock<Box<dyn Collector>> = OnceLock::new();

/// Names who collects this process's spans, once. Says whether it was the first.
pub fn collect(collector: Box<dyn Collector>) -> bool {
    COLLECTOR.set(collector).is_ok()
}

/// Begins the part of this node in the trace of a request: in the span that `make` makes, where it is
/// traced. Where it is not, there is what to tell others.
pub fn begin(came: Option<Context>, make: impl FnOnce() -> Span) -> (Span, Option<Context>) {
    let Some(collector) = COLLECTOR.get() else { return (Span::none(), came) };
    match collector.choose(came) {
        Choice::Pass(context) => (Span::none(), context),
        Choice::Trace(came) => {
            let span = make();
            if let Some(parent) = &came {
                collector.set_parent(&span, parent);
            }
            (span, came)
        }
    }
}

/// A part of what is done for the request at hand, where that is traced. A filter alone would not do:
/// the registry makes spans that every one of its layers refuses.
pub fn within(make: impl FnOnce() -> Span) -> Span {
    let is_traced = COLLECTOR.get().is_some() && !Span::current().is_none();
    if is_traced { make() } else { Span::none() }
}

/// A call to another process, where its request is traced; `route` is the store that it is for.
pub fn calling(route: &str, service: &'static str, method: &'static str) -> Span {
    within(|| {
        tracing::info_span!(
            "calling",
            otel.name = %format_args!("{service}/{method}"),
            otel.kind = "client",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = Empty,
            pleach.route = route,
        )
    })
}

/// Notes how a call ended that others did.
pub fn note_code(span: &Span, code: Code) {
    span.record("rpc.grpc.status_code", code as i32);
    if code != Code::Ok {
        span.record("otel.status_code", "ERROR");
    }
}

// === impl Context ===

impl Context {
    /// What a request came with.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let parent = headers.get(PARENT)?.to_str().ok()?.into();
        // A list may come in pieces, which are one.
        let states = headers.get_all(STATE).iter().filter_map(|state| state.to_str().ok());
        let state = states.collect::<Vec<_>>().join(",");
        Some(Self { parent, state: (!state.is_empty()).then(|| state.into()) })
    }

    /// What the span at hand is to others, or what else they are told.
    pub fn current_or(other: Option<Self>) -> Option<Self> {
        let collected = COLLECTOR.get().and_then(|collector| collector.context(&Span::current()));
        collected.or(other)
    }

    /// Its headers.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, HeaderValue)> {
        let state = self.state.as_ref().map(|state| (STATE, state));
        let both = [Some((PARENT, &self.parent)), state].into_iter().flatten();
        both.filter_map(|(name, text)| Some((name, HeaderValue::from_str(text).ok()?)))
    }
}

//! A receiver of traces: a real OTLP server that keeps what it is sent.

use std::{
    net::Ipv4Addr,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1 as pb,
};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// A receiver that takes spans for as long as it is kept.
#[derive(Debug)]
pub(crate) struct Receiver {
    port: u16,
    kept: Kept,
    _server: AbortOnDropHandle<()>,
}

/// A span, and the service that made it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) service: String,
    span: pb::Span,
}

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

// === impl Receiver ===

impl Receiver {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let kept = Kept::default();
        let service = TraceServiceServer::new(kept.clone());
        let server = tokio::spawn(async move {
            let incoming = TcpIncoming::from(listener);
            let served = Server::builder().add_service(service).serve_with_incoming(incoming).await;
            served.expect("the receiver serves");
        });
        Ok(Self { port, kept, _server: AbortOnDropHandle::new(server) })
    }

    /// The flag that has a node send its traces here.
    pub(crate) fn flag(&self) -> String {
        format!("--otlp-endpoint=http://127.0.0.1:{}", self.port)
    }

    /// All spans that came until now.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let kept = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spans = Vec::new();
        for resource in kept.iter().flat_map(|request| &request.resource_spans) {
            let attributes = resource.resource.iter().flat_map(|resource| &resource.attributes);
            let service = text(attributes, "service.name");
            let all = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
            spans.extend(all.map(|span| Span { service: service.clone(), span: span.clone() }));
        }
        spans
    }

    /// Whether these bytes stand anywhere in what came.
    pub(crate) fn has_seen(&self, bytes: &[u8]) -> bool {
        let kept = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter()
            .any(|request| request.encode_to_vec().windows(bytes.len()).any(|it| it == bytes))
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

// === impl Span ===

impl Deref for Span {
    type Target = pb::Span;

    fn deref(&self) -> &pb::Span {
        &self.span
    }
}

impl Span {
    /// An attribute as text; empty where it has none of that name.
    pub(crate) fn attribute(&self, name: &str) -> String {
        text(&self.span.attributes, name)
    }
}

fn text<'a>(attributes: impl IntoIterator<Item = &'a KeyValue>, name: &str) -> String {
    let found = attributes.into_iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()) {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text,
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => number.to_string(),
        _ => String::new(),
    }
}

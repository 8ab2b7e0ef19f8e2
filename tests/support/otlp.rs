//! A receiver of traces and metrics: a real OTLP server that keeps what it is sent.

use std::{
    net::Ipv4Addr,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
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
    metrics::v1::{metric::Data, number_data_point},
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
    metrics: LastMetrics,
    _server: AbortOnDropHandle<()>,
}

/// A span, and the service that made it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) service: String,
    span: pb::Span,
}

/// What a metric said last: its first line where it has several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) sum: f64,
    pub(crate) count: u64,
    pub(crate) bounds: Vec<f64>,
    pub(crate) buckets: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[derive(Clone, Debug, Default)]
struct LastMetrics(Arc<Mutex<ExportMetricsServiceRequest>>);

// === impl Receiver ===

impl Receiver {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let kept = Kept::default();
        let metrics = LastMetrics::default();
        let service = TraceServiceServer::new(kept.clone());
        let of_metrics = MetricsServiceServer::new(metrics.clone());
        let server = tokio::spawn(async move {
            let incoming = TcpIncoming::from(listener);
            let server = Server::builder().add_service(service).add_service(of_metrics);
            let served = server.serve_with_incoming(incoming).await;
            served.expect("the receiver serves");
        });
        Ok(Self { port, kept, metrics, _server: AbortOnDropHandle::new(server) })
    }

    /// The flag that has a node send its traces here.
    pub(crate) fn flag(&self) -> String {
        format!("--otlp-endpoint={}", self.url())
    }

    /// Where it takes them.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
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

    /// What a service said last of a metric.
    pub(crate) fn metric(&self, service: &str, name: &str) -> Result<Measured> {
        let last = self.metrics.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut resources = last.resource_metrics.iter();
        let of = resources.find(|it| {
            let attributes = it.resource.iter().flat_map(|resource| &resource.attributes);
            text(attributes, "service.name") == service
        });
        let of = of.with_context(|| format!("nothing came from {service}"))?;
        let mut metrics = of.scope_metrics.iter().flat_map(|scope| &scope.metrics);
        let metric = metrics.find(|metric| metric.name == name);
        let metric = metric.with_context(|| format!("{name} did not come"))?;
        let number =
            |points: &[opentelemetry_proto::tonic::metrics::v1::NumberDataPoint]| match points
                .first()
                .and_then(|point| point.value)
            {
                Some(number_data_point::Value::AsDouble(value)) => value,
                _ => f64::NAN,
            };
        Ok(match &metric.data {
            Some(Data::Sum(sum)) => {
                Measured { sum: number(&sum.data_points), ..Measured::default() }
            }
            Some(Data::Gauge(gauge)) => {
                Measured { sum: number(&gauge.data_points), ..Measured::default() }
            }
            Some(Data::Histogram(histogram)) => {
                let point = histogram.data_points.first().context("it has no line")?;
                Measured {
                    sum: point.sum.unwrap_or(f64::NAN),
                    count: point.count,
                    bounds: point.explicit_bounds.clone(),
                    buckets: point.bucket_counts.clone(),
                }
            }
            _ => Measured::default(),
        })
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

#[tonic::async_trait]
impl MetricsService for LastMetrics {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = request.into_inner();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
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
        Some(AnyValue { value: Some(Value::BoolValue(is_so)) }) => is_so.to_string(),
        _ => String::new(),
    }
}

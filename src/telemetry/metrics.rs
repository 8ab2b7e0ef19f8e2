//! Metrics to an OTLP receiver: the same as Prometheus reads, under the same names.

use std::{
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::BoxFuture;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        self as pb, AggregationTemporality, HistogramDataPoint, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use percent_encoding::percent_decode_str;
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use tokio::time::{sleep, timeout};
use tonic::{
    Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::{Channel, Endpoint},
};

use super::traces::SEND_TIME_MAX;

/// How often metrics are sent where `OTEL_METRIC_EXPORT_INTERVAL` does not say.
const SEND_EVERY: Duration = Duration::from_secs(60);

/// Where the metrics come from, each time they are sent.
pub type Source = Box<dyn Fn() -> BoxFuture<'static, Vec<MetricFamily>> + Send>;

/// What sends metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    client: MetricsServiceClient<Channel>,
    headers: MetadataMap,
    resource: Vec<KeyValue>,
    every: Duration,
    begun: u64,
}

/// Nanoseconds since 1970, as OTLP has them.
#[expect(clippy::disallowed_methods, reason = "it is told, and decides nothing")]
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().try_into().unwrap_or(u64::MAX)
}

fn attribute(key: &str, value: String) -> KeyValue {
    let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value)) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// What goes with each request, as the standard's variable says it: `key=value,key=value`, percent-encoded.
fn headers(text: &str) -> MetadataMap {
    let mut headers = MetadataMap::new();
    for (key, value) in text.split(',').filter_map(|pair| pair.split_once('=')) {
        let value = percent_decode_str(value.trim()).decode_utf8_lossy();
        let key = AsciiMetadataKey::from_bytes(key.trim().to_lowercase().as_bytes());
        if let (Ok(key), Ok(value)) = (key, AsciiMetadataValue::try_from(&*value)) {
            headers.insert(key, value);
        }
    }
    headers
}

// === impl Metrics ===

impl Metrics {
    /// What sends to `endpoint`, in the name of `resource`.
    pub(super) fn connect(endpoint: &Endpoint, resource: &opentelemetry_sdk::Resource) -> Self {
        let interval = env::var("OTEL_METRIC_EXPORT_INTERVAL").ok();
        let interval = interval.and_then(|it| it.parse().ok()).filter(|millis| *millis > 0);
        let resource = resource.iter();
        let resource = resource.map(|(key, value)| attribute(key.as_str(), value.to_string()));
        Self {
            client: MetricsServiceClient::new(endpoint.connect_lazy()),
            headers: headers(&env::var("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default()),
            resource: resource.collect(),
            every: interval.map_or(SEND_EVERY, Duration::from_millis),
            begun: now(),
        }
    }

    /// Sends what `source` says, again and again. A receiver that is away delays nothing but this.
    pub(super) async fn run(mut self, source: Source) {
        let mut is_failing = false;
        loop {
            sleep(self.every).await;
            let request = self.request(source().await);
            let sent = timeout(SEND_TIME_MAX, self.client.export(request)).await;
            let sent = sent.unwrap_or_else(|_| Err(Status::unavailable("no answer")));
            match (is_failing, &sent) {
                (false, Err(error)) => tracing::warn!(%error, "metrics can't be sent"),
                (true, Ok(_)) => tracing::info!("metrics are sent again"),
                _ => {}
            }
            is_failing = sent.is_err();
        }
    }

    fn request(&self, families: Vec<MetricFamily>) -> tonic::Request<ExportMetricsServiceRequest> {
        let at = now();
        let metrics = families.iter().map(|family| self.metric(family, at)).collect();
        let (name, version) = (env!("CARGO_PKG_NAME").into(), env!("CARGO_PKG_VERSION").into());
        let scope = Some(InstrumentationScope { name, version, ..Default::default() });
        let scope_metrics = vec![ScopeMetrics { scope, metrics, ..Default::default() }];
        let resource = Resource { attributes: self.resource.clone(), ..Default::default() };
        let resource_metrics =
            vec![ResourceMetrics { resource: Some(resource), scope_metrics, ..Default::default() }];
        let mut request = tonic::Request::new(ExportMetricsServiceRequest { resource_metrics });
        *request.metadata_mut() = self.headers.clone();
        request
    }

    fn metric(&self, family: &MetricFamily, at: u64) -> pb::Metric {
        let temporality = AggregationTemporality::Cumulative.into();
        let number = |metric: &Metric, value: f64| NumberDataPoint {
            attributes: attributes(metric.get_label()),
            start_time_unix_nano: self.begun,
            time_unix_nano: at,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..Default::default()
        };
        let metrics = family.get_metric().iter();
        let data = match family.get_field_type() {
            MetricType::COUNTER => Data::Sum(pb::Sum {
                data_points: metrics.map(|it| number(it, it.get_counter().get_value())).collect(),
                aggregation_temporality: temporality,
                is_monotonic: true,
            }),
            MetricType::HISTOGRAM => Data::Histogram(pb::Histogram {
                data_points: metrics.map(|it| self.histogram(it, at)).collect(),
                aggregation_temporality: temporality,
            }),
            _ => Data::Gauge(pb::Gauge {
                data_points: metrics.map(|it| number(it, it.get_gauge().get_value())).collect(),
            }),
        };
        pb::Metric {
            name: family.name().to_owned(),
            description: family.help().to_owned(),
            data: Some(data),
            ..Default::default()
        }
    }

    /// Prometheus counts all up to a bound, OTLP those between two.
    fn histogram(&self, metric: &Metric, at: u64) -> HistogramDataPoint {
        let histogram = metric.get_histogram();
        let (count, mut below) = (histogram.get_sample_count(), 0);
        let mut bucket_counts = Vec::new();
        for bucket in histogram.get_bucket() {
            bucket_counts.push(bucket.cumulative_count() - below);
            below = bucket.cumulative_count();
        }
        bucket_counts.push(count.saturating_sub(below));
        HistogramDataPoint {
            attributes: attributes(metric.get_label()),
            start_time_unix_nano: self.begun,
            time_unix_nano: at,
            count,
            sum: Some(histogram.get_sample_sum()),
            bucket_counts,
            explicit_bounds: histogram.get_bucket().iter().map(|it| it.upper_bound()).collect(),
            ..Default::default()
        }
    }
}

fn attributes(labels: &[LabelPair]) -> Vec<KeyValue> {
    labels.iter().map(|pair| attribute(pair.name(), pair.value().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_standard_has_them() {
        let headers = headers("Api-Key=a%20b, other=1,nothing,=x");
        assert_eq!(headers.get("api-key").map(AsciiMetadataValue::as_bytes), Some(&b"a b"[..]));
        assert_eq!(headers.len(), 2);
    }
}

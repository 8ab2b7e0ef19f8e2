//! What a node tells those who run it: a log, and traces and metrics where somebody takes them.
//!
//! All other layers speak to `tracing`; here is who listens. Without a receiver of traces no span is
//! made. With one, spans are made for the requests that are traced and for no others; they wait in a
//! queue of bounded length for a thread that sends them, and are dropped where it is full: no request
//! ever waits for its trace.

mod log;
mod metrics;
mod repeats;
mod traces;

use std::future::Future;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use tracing_subscriber::{
    EnvFilter,
    layer::SubscriberExt as _,
    util::{SubscriberInitExt as _, TryInitError},
};

pub use self::metrics::Source;
use self::{metrics::Metrics, traces::Traces};

/// What is told, and where.
#[derive(Debug)]
pub struct Options<'a> {
    /// The node's name.
    pub name: &'a str,
    /// What is logged: a filter of tracing's.
    pub log_level: &'a str,
    /// Whether each line of the log is JSON.
    pub is_json: bool,
    /// Where traces are sent, if anywhere.
    pub receiver: Option<&'a str>,
    /// The share of requests that are traced of those that come without a trace.
    pub ratio: f64,
    /// Whether metrics are sent there, too.
    pub sends_metrics: bool,
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The filter can't be read.
    #[error("--log-level {0}: {1}")]
    Level(String, tracing_subscriber::filter::ParseError),
    /// The address of the receiver can't be used. It may hold a secret, and is not shown.
    #[error("--otlp-endpoint: {0}; expected http://HOST:PORT, as http://localhost:4317")]
    Receiver(String),
    /// The process has a log already.
    #[error("the log could not be started: {0}")]
    Taken(#[from] TryInitError),
}

/// What is told, for as long as this is kept.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<Traces>,
    metrics: Option<Metrics>,
}

// === impl Telemetry ===

impl Telemetry {
    /// Begins to tell. Call it in a runtime, which the traces are sent in.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(options: &Options<'_>) -> Result<Self, StartError> {
        let level = EnvFilter::try_new(options.log_level);
        let level =
            level.map_err(|error| StartError::Level(options.log_level.to_owned(), error))?;
        let resource = Resource::builder()
            .with_service_name(options.name.to_owned())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let receiver = options.receiver.map(traces::endpoint).transpose();
        let receiver = receiver.map_err(StartError::Receiver)?;
        let connect = |receiver| Traces::connect(&resource, receiver, options.ratio);
        let traces = receiver.as_ref().map(connect).transpose().map_err(StartError::Receiver)?;
        let receiver = receiver.filter(|_| options.sends_metrics);
        let metrics = receiver.map(|receiver| Metrics::connect(&receiver, &resource));
        let registry = tracing_subscriber::registry();
        // Not an `Option` of a layer: without one, what the log refuses would be asked for each time.
        match &traces {
            Some(traces) => {
                let log = log::layer(level, options.is_json);
                registry.with(traces.layer()).with(log).try_init()?;
                traces.collect();
            }
            None => registry.with(log::layer(level, options.is_json)).try_init()?,
        }
        Ok(Self { traces, metrics })
    }

    /// Sends what `source` says where metrics are to be sent; else it ends at once.
    pub fn send_metrics(&mut self, source: Source) -> impl Future<Output = ()> + Send + use<> {
        let metrics = self.metrics.take();
        async move {
            if let Some(metrics) = metrics {
                metrics.run(source).await;
            }
        }
    }

    /// Sends what waits, for a short time at most.
    pub fn end(self) {
        if let Some(traces) = self.traces {
            traces.end();
        }
    }
}

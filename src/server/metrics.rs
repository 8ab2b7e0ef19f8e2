//! Metrics, under etcd's names where etcd has the metric, so that its dashboards show a node too.

use prometheus::{Encoder as _, IntGauge, Registry, TextEncoder};

use crate::{node::Node, store::Store as _};

/// What is measured now, as Prometheus reads it.
pub(super) async fn text(node: &Node) -> Result<String, String> {
    let size = node.size().await.map_err(|error| error.to_string())?;
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let mut gauges = vec![
        ("etcd_server_has_leader", "Whether the node serves: always 1.", 1),
        ("etcd_mvcc_db_total_size_in_bytes", "Bytes on disk of all stores.", signed(size.total)),
        (
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Bytes on disk that hold data.",
            signed(size.in_use),
        ),
        ("etcd_debugging_mvcc_current_revision", "The revision reached.", node.revision()),
        (
            "etcd_debugging_mvcc_compact_revision",
            "The oldest revision that can be read.",
            node.root().compacted(),
        ),
        (
            "etcd_debugging_mvcc_watcher_total",
            "Watchers that are up to date.",
            signed(node.hub().watchers() as u64),
        ),
        ("pleach_leases", "Leases that are alive.", signed(node.leases().len() as u64)),
    ];
    // Where there is none the line is left out: alerts divide by it.
    if node.quota_bytes() > 0 {
        gauges.push((
            "etcd_server_quota_backend_bytes",
            "Bytes on disk after which puts are refused.",
            signed(node.quota_bytes()),
        ));
    }
    render(&gauges).map_err(|error| error.to_string())
}

fn render(gauges: &[(&str, &str, i64)]) -> prometheus::Result<String> {
    let registry = Registry::new();
    for (name, help, value) in gauges {
        let gauge = IntGauge::new(*name, *help)?;
        gauge.set(*value);
        registry.register(Box::new(gauge))?;
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

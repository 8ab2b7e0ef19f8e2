//! One trace from a request to an API server through the nodes of a tree down to what a store did.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind::{Client, Server};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    controlplane::ControlPlane,
    node::Node,
    otlp::{Receiver, Span},
    process::eventually,
};

/// API servers and nodes send their spans every few seconds.
const SENT_WITHIN: Duration = Duration::from_secs(60);
const TENANT: &str = "/registry/configmaps/tenant/";

/// A root with an API server, and a child that has the config maps of a namespace; all tell one receiver.
pub(crate) async fn story() -> Result<()> {
    let (folder, receiver) = (TempDir::new()?, Receiver::start().await?);
    let node = |name: &str, routes: &[(&str, String)]| {
        let folder = folder.path().join(name);
        fs::create_dir(&folder)?;
        Node::new(&folder, &[&*format!("--name={name}"), &receiver.flag()])?.with_routes_to(routes)
    };
    let mut child = node("child", &[])?;
    let mut root = node("root", &[(TENANT, child.url())])?;
    child.start().await?;
    root.start().await?;
    let mut plane = ControlPlane::at(&root.url())?;
    plane.trace_to(&receiver.url())?;
    plane.start_apiserver().await?;
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "tenant" } });
    let namespaces = "/api/v1/namespaces";
    plane.api.send(Method::POST, namespaces, Some(&namespace)).await?.success(namespaces)?;
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "traced" },
        "data": { "value-that-nobody": "may-see" },
    });
    let maps = "/api/v1/namespaces/tenant/configmaps";
    plane.api.send(Method::POST, maps, Some(&map)).await?.success(maps)?;

    let chain = eventually("the trace of a request is whole", SENT_WITHIN, async || {
        let spans = receiver.spans();
        let is_commit = |span: &&Span| span.service == "child" && span.name == "transaction";
        // The controllers' own requests are traced as well: one of them is of this object.
        let commits = spans.iter().filter(is_commit);
        let chains = commits.map(|commit| chain(&spans, commit));
        let mut whole = chains.filter(|chain| {
            let first = chain.last();
            first.is_some_and(|span| span.service == "apiserver" && span.parent_span_id.is_empty())
        });
        whole.next().with_context(|| format!("none of {} spans", spans.len()))
    })
    .await?;
    let calls = |service: &str| -> Vec<_> {
        let of = chain.iter().filter(|span| span.service == service);
        let is_call = |name: &str| name.contains("etcdserverpb") || name.contains("pleach");
        let calls = of.filter(|span| is_call(&span.name));
        calls.map(|span| (span.kind(), span.name.as_str())).collect()
    };
    let (txn, apply) = ("etcdserverpb.KV/Txn", "pleach.tree.v1.Tree/Apply");
    ensure!(calls("apiserver") == [(Client, txn)], "{:?}", calls("apiserver"));
    ensure!(calls("root") == [(Client, apply), (Server, txn)], "{:?}", calls("root"));
    ensure!(calls("child") == [(Server, apply)], "{:?}", calls("child"));
    for span in chain.iter().rev() {
        eprintln!("   {:10} {:?} {}", span.service, span.kind(), span.name);
    }
    let traces: BTreeSet<_> = chain.iter().map(|span| &span.trace_id).collect();
    ensure!(traces.len() == 1, "{traces:?}");
    for node in [&mut root, &mut child] {
        node.ensure_running()?;
    }
    Ok(())
}

/// A span, and those that it lies in, up to the first.
fn chain(spans: &[Span], of: &Span) -> Vec<Span> {
    let mut chain = vec![of.clone()];
    while let Some(parent) = chain.last().and_then(|last| {
        spans
            .iter()
            .find(|span| span.span_id == last.parent_span_id && span.trace_id == last.trace_id)
    }) {
        chain.push(parent.clone());
    }
    chain
}

//! What is there to be selected.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::Method;
use serde_json::{Value, json};

use crate::support::{controlplane::ControlPlane, http::Api, process::eventually};

pub(crate) const NAMESPACE: &str = "team-a";
pub(crate) const PODS: &str = "/api/v1/namespaces/team-a/pods";
pub(crate) const CONFIGMAPS: &str = "/api/v1/namespaces/team-a/configmaps";
pub(crate) const SHIRTS: &str = "/apis/pleach.example.com/v1/namespaces/team-a/shirts";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

const POD_COUNT: usize = 60;
const CONFIGMAP_COUNT: usize = 40;
const SHIRT_COUNT: usize = 45;
const JOB_COUNT: usize = 3;

pub(crate) async fn make(plane: &ControlPlane) -> Result<()> {
    let api = plane.api;
    for name in [NAMESPACE, "team-b"] {
        let labels = json!({ "team": name });
        let namespace = object("v1", "Namespace", name, labels, json!({}));
        post(api, "/api/v1/namespaces", &namespace).await?;
    }
    for at in 0..POD_COUNT {
        post(api, PODS, &pod(&format!("pod-{at:02}"), at)).await?;
    }
    post(api, "/api/v1/namespaces/team-b/pods", &pod("elsewhere", 4)).await?;
    for at in 0..CONFIGMAP_COUNT {
        let map = configmap(&format!("map-{at:02}"), labels(at));
        post(api, CONFIGMAPS, &map).await?;
    }
    for (at, kind) in ["Opaque", "example.com/one", "example.com/two"].into_iter().enumerate() {
        let secret =
            object("v1", "Secret", &format!("secret-{at}"), json!({}), json!({ "type": kind }));
        post(api, "/api/v1/namespaces/team-a/secrets", &secret).await?;
    }
    // Without labels of their own they have those of their templates whenever an API server reads them.
    for at in 0..JOB_COUNT {
        post(api, "/apis/batch/v1/namespaces/team-a/jobs", &job(&format!("job-{at}"))).await?;
    }
    define_shirts(plane).await?;
    for at in 0..SHIRT_COUNT {
        post(api, SHIRTS, &shirt(&format!("shirt-{at:02}"), at)).await?;
    }
    give_shirts_a_default(api).await
}

pub(crate) fn pod(name: &str, at: usize) -> Value {
    let containers = json!([{ "name": "main", "image": "example.com/app:1" }]);
    let mut spec = json!({ "containers": containers, "terminationGracePeriodSeconds": 0 });
    if at.is_multiple_of(4) {
        spec["nodeName"] = json!(format!("node-{}", at % 8));
    }
    if at.is_multiple_of(5) {
        spec["restartPolicy"] = json!("Never");
    }
    object("v1", "Pod", name, labels(at), json!({ "spec": spec }))
}

pub(crate) fn configmap(name: &str, labels: Value) -> Value {
    object("v1", "ConfigMap", name, labels, json!({ "data": { "key": "value" } }))
}

pub(crate) fn shirt(name: &str, at: usize) -> Value {
    let mut spec = json!({ "size": at % 7, "dry": at.is_multiple_of(2) });
    if !at.is_multiple_of(5) {
        spec["color"] = json!(["blue", "red", "light blue"][at % 3]);
    }
    if at.is_multiple_of(3) {
        spec["fit"] = json!("slim");
    }
    object("pleach.example.com/v1", "Shirt", name, labels(at), json!({ "spec": spec }))
}

/// Every seventh has none.
fn labels(at: usize) -> Value {
    let mut labels = json!({});
    if !at.is_multiple_of(7) {
        labels["app"] = json!(["web", "db"][at % 2]);
        labels["example.com/number"] = json!(at.to_string());
    }
    if at.is_multiple_of(3) && !at.is_multiple_of(7) {
        labels["tier"] = json!("");
    }
    labels
}

fn job(name: &str) -> Value {
    let containers = json!([{ "name": "main", "image": "example.com/app:1" }]);
    let template = json!({ "spec": { "containers": containers, "restartPolicy": "Never" } });
    let mut job =
        object("batch/v1", "Job", name, json!({}), json!({ "spec": { "template": template } }));
    if let Some(metadata) = job["metadata"].as_object_mut() {
        metadata.remove("labels");
    }
    job
}

fn object(version: &str, kind: &str, name: &str, labels: Value, rest: Value) -> Value {
    let mut object = rest;
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
    object["metadata"] = json!({ "name": name, "labels": labels });
    object
}

pub(crate) async fn post(api: Api, path: &str, object: &Value) -> Result<Value> {
    let answer = api.send(Method::POST, path, Some(object)).await?;
    answer.success(path).with_context(|| object["metadata"]["name"].to_string())
}

/// Two versions, of which the first is stored.
async fn define_shirts(plane: &ControlPlane) -> Result<()> {
    let definition = definition(None);
    post(plane.api, DEFINITIONS, &definition).await?;
    eventually("shirts are served", Duration::from_secs(60), async || {
        plane.api.get("/apis/pleach.example.com/v2/shirts").await?;
        plane.api.get(SHIRTS).await
    })
    .await?;
    Ok(())
}

/// From now on shirts have a field when they are read that is not stored with them.
async fn give_shirts_a_default(api: Api) -> Result<()> {
    let path = format!("{DEFINITIONS}/shirts.pleach.example.com");
    let patch = json!({ "spec": definition(Some("loose"))["spec"] });
    api.send(Method::PATCH, &path, Some(&patch)).await?.success(&path)?;
    eventually("shirts have a default", Duration::from_secs(60), async || {
        let shirt = api.get(&format!("{SHIRTS}/shirt-01")).await?;
        ensure!(shirt["spec"]["fit"] == "loose", "{shirt}");
        Ok(())
    })
    .await
}

fn definition(fit: Option<&str>) -> Value {
    let mut properties = json!({
        "color": { "type": "string" },
        "size": { "type": "integer" },
        "dry": { "type": "boolean" },
        "fit": { "type": "string" },
    });
    if let Some(fit) = fit {
        properties["fit"]["default"] = json!(fit);
    }
    let selectable = [".spec.color", ".spec.size", ".spec.dry", ".spec.fit"];
    let selectable = selectable.map(|path| json!({ "jsonPath": path }));
    let version = |name: &str, is_stored: bool| {
        json!({
            "name": name, "served": true, "storage": is_stored,
            "selectableFields": selectable,
            "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                "spec": { "type": "object", "properties": properties },
            }}},
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "shirts.pleach.example.com" },
        "spec": {
            "group": "pleach.example.com",
            "scope": "Namespaced",
            "names": { "kind": "Shirt", "plural": "shirts", "singular": "shirt" },
            "versions": [version("v1", true), version("v2", false)],
        },
    })
}

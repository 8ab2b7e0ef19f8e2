//! Watches of what is selected, while objects enter the selection and leave it.

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use http::Method;
use serde_json::{Value, json};

use crate::{
    Answers,
    objects::{CONFIGMAPS, PODS, SHIRTS, configmap, pod, post, shirt},
    support::{
        controlplane::ControlPlane,
        http::{Api, Lines},
    },
};

/// An object of each kind that is in every selection, and is there before.
const BEGIN: &str = "the-beginning";
/// One that every watch is shown at last.
const END: &str = "the-end";
/// From where a watch begins: from a revision, or with what is there, in two ways.
const BEGINNINGS: [&str; 3] = ["from now", "with all", "with a stream of all"];

/// A path, and what is watched of it.
const WATCHES: &[(&str, &str)] = &[
    (CONFIGMAPS, "labelSelector=watched"),
    (CONFIGMAPS, "labelSelector=watched%3Dyes"),
    (CONFIGMAPS, "labelSelector=watched%21%3Dno"),
    (CONFIGMAPS, "labelSelector=watched%3Dyes&fieldSelector=metadata.name%21%3Dmap-01"),
    (PODS, "fieldSelector=spec.nodeName%3Dwatched"),
    (PODS, "fieldSelector=spec.nodeName%21%3D"),
    (PODS, "labelSelector=watched&fieldSelector=spec.nodeName%3Dwatched"),
    (SHIRTS, "labelSelector=watched%3Dyes"),
    (SHIRTS, "fieldSelector=spec.color%3Dwatched"),
    (SHIRTS, "fieldSelector=spec.color%21%3Dblue,spec.size%3D3"),
    (SHIRTS, "fieldSelector=spec.fit%3Dloose"),
    ("/apis/pleach.example.com/v2/shirts", "fieldSelector=spec.color%3Dwatched"),
];

pub(crate) async fn of_a_change(plane: &ControlPlane, answers: &mut Answers) -> Result<()> {
    let api = plane.api;
    mark(api, BEGIN).await?;
    let mut watches = Vec::new();
    for (path, selector) in WATCHES {
        let list = api.get(&format!("{path}?{selector}")).await?;
        let there = list["items"].as_array().context("a list has items")?.len();
        let revision = list["metadata"]["resourceVersion"].as_str().context("a revision")?;
        for (at, beginning) in BEGINNINGS.into_iter().enumerate() {
            let from = match at {
                0 => format!("resourceVersion={revision}"),
                1 => "resourceVersion=0".to_owned(),
                _ => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                      &allowWatchBookmarks=true"
                    .to_owned(),
            };
            let url = format!("{path}?watch=1&timeoutSeconds=60&{selector}&{from}");
            let question = format!("watch {path}?{selector} {beginning}");
            let mut lines = api.watch(&url).await?;
            let begun = match at {
                0 => Vec::new(),
                _ => first(&mut lines, there).await.with_context(|| question.clone())?,
            };
            watches.push((question, begun, lines));
        }
    }
    change(api).await?;
    mark(api, END).await?;
    let rest = watches.into_iter().map(async |(question, mut shown, mut lines)| {
        shown.extend(until_the_end(&mut lines).await.with_context(|| question.clone())?);
        anyhow::Ok((question, shown))
    });
    answers.extend(try_join_all(rest).await?);
    Ok(())
}

/// Once it has shown all that was there, a watch has begun: nothing that happens now is part of that.
async fn first(lines: &mut Lines, count: usize) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.push(shown(&lines.next().await?.context("the watch ended")?)?);
    }
    // These have no order in time.
    seen.sort();
    Ok(seen)
}

async fn until_the_end(lines: &mut Lines) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    while let Some(event) = lines.next().await? {
        if event["type"] == "BOOKMARK" {
            continue;
        }
        let text = shown(&event)?;
        let is_end = event["object"]["metadata"]["name"] == END;
        seen.push(text);
        if is_end {
            return Ok(seen);
        }
    }
    bail!("the watch ended after {seen:?}")
}

fn shown(event: &Value) -> Result<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let kind = text(&event["type"]).context("an event has a type")?;
    ensure!(kind != "ERROR", "{event}");
    let name = text(&event["object"]["metadata"]["name"]).context("an object has a name")?;
    Ok(format!("{kind} {name}"))
}

async fn change(api: Api) -> Result<()> {
    let yes = json!({ "metadata": { "labels": { "watched": "yes" } } });
    let no = json!({ "metadata": { "labels": { "watched": "no" } } });
    let none = json!({ "metadata": { "labels": { "watched": null } } });
    let touched = json!({ "metadata": { "annotations": { "touched": "yes" } } });
    for (path, names) in [(CONFIGMAPS, ["map-01", "map-02"]), (SHIRTS, ["shirt-01", "shirt-02"])] {
        let [first, second] = names.map(|name| format!("{path}/{name}"));
        // Enters, changes, changes its value, leaves, is changed outside, enters again, is deleted.
        for patch in [&touched, &yes, &touched, &no, &touched, &none, &yes] {
            send(api, Method::PATCH, &first, Some(patch)).await?;
        }
        send(api, Method::DELETE, &first, None).await?;
        // One that never enters.
        send(api, Method::PATCH, &second, Some(&touched)).await?;
        send(api, Method::DELETE, &second, None).await?;
    }
    for (color, size) in [("watched", 3), ("watched", 4), ("blue", 3), ("red", 3), ("watched", 3)] {
        let patch = json!({ "spec": { "color": color, "size": size, "fit": null } });
        send(api, Method::PATCH, &format!("{SHIRTS}/shirt-03"), Some(&patch)).await?;
        let patch = json!({ "spec": { "fit": color } });
        send(api, Method::PATCH, &format!("{SHIRTS}/shirt-04"), Some(&patch)).await?;
    }
    send(api, Method::DELETE, &format!("{SHIRTS}/shirt-03"), None).await?;
    for (name, node) in [("pod-01", "watched"), ("pod-02", "other"), ("pod-03", "watched")] {
        let target = json!({ "kind": "Node", "name": node });
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name }, "target": target,
        });
        send(api, Method::POST, &format!("{PODS}/{name}/binding"), Some(&binding)).await?;
    }
    send(api, Method::PATCH, &format!("{PODS}/pod-01"), Some(&yes)).await?;
    send(api, Method::PATCH, &format!("{PODS}/pod-01"), Some(&none)).await?;
    let at_once = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
    send(api, Method::DELETE, &format!("{PODS}/pod-03"), Some(&at_once)).await?;
    Ok(())
}

/// Makes an object of each kind that is in every selection.
async fn mark(api: Api, name: &str) -> Result<()> {
    let labels = json!({ "watched": "yes" });
    post(api, CONFIGMAPS, &configmap(name, labels.clone())).await?;
    let mut last = pod(name, 1);
    last["metadata"]["labels"] = labels.clone();
    last["spec"]["nodeName"] = json!("watched");
    post(api, PODS, &last).await?;
    let mut last = shirt(name, 1);
    last["metadata"]["labels"] = labels;
    last["spec"] = json!({ "color": "watched", "size": 3 });
    post(api, SHIRTS, &last).await?;
    Ok(())
}

async fn send(api: Api, method: Method, path: &str, body: Option<&Value>) -> Result<()> {
    api.send(method, path, body).await?.success(path)?;
    Ok(())
}

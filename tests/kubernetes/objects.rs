//! Custom resources and server-side apply: objects that the API server knows by their schema only.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{TryStreamExt as _, stream};
use http::Method;
use serde_json::{Value, json};

use crate::{
    pages::list_in_pages,
    resource::{CONFIGMAPS, TEAM_A, TEAM_B, WIDGETS, items},
    support::{controlplane::ControlPlane, http::Api, process::eventually},
    timed,
    witness::{Change, Witness},
};

const WIDGET_COUNT: usize = 300;
const PATCH_COUNT: usize = 30;
const WRITERS: usize = 8;

pub(crate) async fn widgets(plane: &ControlPlane) -> Result<()> {
    let api = plane.api;
    timed("defined", define_widgets(plane)).await?;
    let witness = Witness::of(WIDGETS, api).await?;
    let collection = WIDGETS.within(TEAM_A);

    timed("made", for_each_widget(api, Method::POST, WIDGET_COUNT)).await?;
    let pages = timed("listed in pages of 50", list_in_pages(api, &collection, 50)).await?;
    ensure!(pages.names.len() == WIDGET_COUNT, "the pages hold {} widgets", pages.names.len());
    let arguments = ["get", "widgets", "-n", TEAM_A, "--chunk-size=50", "-o", "name"];
    let printed = timed("printed by kubectl", plane.kubectl(&arguments)).await?.lines().count();
    ensure!(printed == WIDGET_COUNT, "kubectl prints {printed} widgets");

    timed("patched", for_each_widget(api, Method::PATCH, PATCH_COUNT)).await?;
    let list = api.get(&collection).await?;
    let grown = items(&list)?.iter().filter(|widget| widget["spec"]["size"] == 2).count();
    ensure!(grown == PATCH_COUNT, "{grown} widgets were patched");

    let deleted = timed("deleted", api.send(Method::DELETE, &collection, None)).await?;
    deleted.success(&collection)?;
    let history = timed("witnessed", witness.agrees_with_a_list()).await?;
    for (change, wanted) in [
        (Change::Added, WIDGET_COUNT),
        (Change::Modified, PATCH_COUNT),
        (Change::Deleted, WIDGET_COUNT),
    ] {
        let seen = history.count(change, TEAM_A);
        ensure!(seen == wanted, "{seen} events of {wanted} say {change:?}");
    }
    Ok(())
}

/// Two managers want one field: the second is refused until it insists.
pub(crate) async fn server_side_apply(plane: &ControlPlane) -> Result<()> {
    let apply = async |manager: &str, colour: &str, more: &[&str]| {
        let mut object = CONFIGMAPS.object("shared");
        object["data"] = json!({ "colour": colour });
        let file = plane.manifest(&format!("shared-{manager}.json"), &object)?;
        let manager = format!("--field-manager={manager}");
        let arguments = ["apply", "--server-side", &manager, "-n", TEAM_B, "-f", &file];
        plane.try_kubectl(&[&arguments, more].concat()).await
    };
    let first = apply("painter", "red", &[]).await?;
    ensure!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));

    let refused = apply("decorator", "blue", &[]).await?;
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success(), "the second manager took the field without force");
    ensure!(reason.contains("conflict with \"painter\""), "the refusal is no conflict: {reason}");

    let forced = apply("decorator", "blue", &["--force-conflicts"]).await?;
    ensure!(forced.status.success(), "{}", String::from_utf8_lossy(&forced.stderr));
    let object = plane.api.get(&format!("{}/shared", CONFIGMAPS.within(TEAM_B))).await?;
    ensure!(object["data"]["colour"] == "blue", "the field is {}", object["data"]["colour"]);
    let entries = object["metadata"]["managedFields"].as_array().context("fields are managed")?;
    let owns = |entry: &&Value| !entry["fieldsV1"]["f:data"]["f:colour"].is_null();
    let owners: Vec<_> = entries.iter().filter(owns).map(|entry| &entry["manager"]).collect();
    ensure!(owners == ["decorator"], "the field belongs to {owners:?}");
    Ok(())
}

async fn define_widgets(plane: &ControlPlane) -> Result<()> {
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.pleach.example.com" },
        "spec": {
            "group": "pleach.example.com",
            "scope": "Namespaced",
            "names": { "kind": "Widget", "plural": "widgets", "singular": "widget" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                    "spec": { "type": "object", "properties": { "size": { "type": "integer" } } },
                }}},
            }],
        },
    });
    let file = plane.manifest("widgets.json", &definition)?;
    plane.kubectl(&["apply", "-f", &file]).await?;
    let name = "crd/widgets.pleach.example.com";
    plane.kubectl(&["wait", "--for=condition=Established", name, "--timeout=30s"]).await?;
    eventually("widgets are served", Duration::from_secs(30), async || {
        plane.api.get(&WIDGETS.everywhere()).await
    })
    .await?;
    Ok(())
}

/// Makes or patches the first `count` widgets, several at a time.
async fn for_each_widget(api: Api, method: Method, count: usize) -> Result<()> {
    let collection = WIDGETS.within(TEAM_A);
    stream::iter((0..count).map(anyhow::Ok))
        .try_for_each_concurrent(WRITERS, async |number| {
            let name = format!("widget-{number:03}");
            let (path, body) = match method {
                Method::PATCH => (format!("{collection}/{name}"), json!({ "spec": { "size": 2 } })),
                _ => (collection.clone(), WIDGETS.object(&name)),
            };
            api.send(method.clone(), &path, Some(&body)).await?.success(&path)?;
            Ok(())
        })
        .await
}

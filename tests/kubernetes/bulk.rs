//! Many objects: what lists cost, and that each way to list shows each object once.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use http::Method;
use serde_json::json;

use crate::{
    pages::{list_at_once, list_in_pages},
    resource::{CONFIGMAPS, EVENTS, LEASES, PODS, Resource, WIDGETS},
    stores::server_holds_what_is_listed,
    support::{
        controlplane::ControlPlane,
        http::{Api, Connection},
        process::eventually,
    },
    timed,
    witness::{Change, Witness},
};

const OBJECT_COUNT: usize = 10_000;
/// The controller manager puts one config map of its own into each namespace.
const CONFIGMAP_COUNT: usize = OBJECT_COUNT + 1;
const EVENT_COUNT: usize = 1_000;
const WRITERS: usize = 32;
const NAMESPACE: &str = "bulk";

pub(crate) async fn ten_thousand_objects(plane: &ControlPlane) -> Result<()> {
    let api = plane.api;
    let path = CONFIGMAPS.within(NAMESPACE);
    plane.kubectl(&["create", "namespace", NAMESPACE]).await?;
    let of_its_own = format!("{path}/kube-root-ca.crt");
    eventually("the namespace is complete", Duration::from_secs(45), async || {
        api.get(&of_its_own).await
    })
    .await?;
    timed("made", write_all(api, CONFIGMAPS, OBJECT_COUNT)).await?;
    all_lists_agree(api, CONFIGMAPS, 500, CONFIGMAP_COUNT).await?;
    let arguments = ["get", "configmaps", "-n", NAMESPACE, "--chunk-size=500", "-o", "name"];
    let printed = timed("printed by kubectl", plane.kubectl(&arguments)).await?.lines().count();
    ensure!(printed == CONFIGMAP_COUNT, "kubectl prints {printed} objects");
    server_holds_what_is_listed(plane, CONFIGMAPS).await
}

/// Events are the one resource that the API server does not cache, so their lists and their watch
/// reach the server under test as they are. Each also hangs on a lease there.
pub(crate) async fn uncached_events(plane: &ControlPlane) -> Result<()> {
    let witness = Witness::of(EVENTS, plane.api).await?;
    timed("made", write_all(plane.api, EVENTS, EVENT_COUNT)).await?;
    all_lists_agree(plane.api, EVENTS, 50, EVENT_COUNT).await?;
    let path = EVENTS.within(NAMESPACE);
    let deleted = plane.api.send(Method::DELETE, &path, None);
    timed("deleted", deleted).await?.success(&path)?;
    let history = witness.agrees_with_a_list().await?;
    for change in [Change::Added, Change::Deleted] {
        let seen = history.count(change, NAMESPACE);
        ensure!(seen == EVENT_COUNT, "{seen} of {EVENT_COUNT} were seen {change:?}");
    }
    server_holds_what_is_listed(plane, EVENTS).await
}

/// An API server that starts on a full server reads all of it into its cache, in large pages.
pub(crate) async fn a_new_api_server_reads_all(plane: &mut ControlPlane) -> Result<()> {
    plane.restart_apiserver().await?;
    // Caches of custom resources fill on demand; until then the answer is "too many requests".
    eventually("widgets are served again", Duration::from_secs(30), async || {
        plane.api.get(&WIDGETS.everywhere()).await
    })
    .await?;
    let names = list_at_once(plane.api, &CONFIGMAPS.within(NAMESPACE), "").await?;
    ensure!(names.len() == CONFIGMAP_COUNT, "{} objects are listed", names.len());
    for resource in [CONFIGMAPS, PODS, LEASES, WIDGETS] {
        server_holds_what_is_listed(plane, resource).await?;
    }
    Ok(())
}

/// Lists in pages and at once. Without a version a list is consistent; version 0 takes what the API
/// server's cache has; an exact one is read in the past.
async fn all_lists_agree(api: Api, resource: Resource, limit: usize, wanted: usize) -> Result<()> {
    let path = resource.within(NAMESPACE);
    let what = format!("listed in pages of {limit}");
    let pages = timed(&what, list_in_pages(api, &path, limit)).await?;
    ensure!(pages.names.len() == wanted, "the pages hold {} objects", pages.names.len());
    let exact = format!("?resourceVersionMatch=Exact&resourceVersion={}", pages.revision);
    for query in ["", "?resourceVersion=0", &exact] {
        let what = format!("listed at once, query {query:?}");
        let names = timed(&what, list_at_once(api, &path, query)).await?;
        ensure!(names == pages.names, "the pages and the list differ: {query:?}");
    }
    Ok(())
}

/// Several writers share the objects by number.
async fn write_all(api: Api, resource: Resource, count: usize) -> Result<()> {
    let write_every = async |first: usize| {
        let mut connection = api.connect().await?;
        for number in (first..count).step_by(WRITERS) {
            write_one(&mut connection, resource, number).await?;
        }
        anyhow::Ok(())
    };
    try_join_all((0..WRITERS).map(write_every)).await?;
    Ok(())
}

async fn write_one(connection: &mut Connection, resource: Resource, number: usize) -> Result<()> {
    let path = resource.within(NAMESPACE);
    let mut object = resource.object(&format!("object-{number:05}"));
    if resource.plural == EVENTS.plural {
        object["involvedObject"] = json!({ "kind": "Pod", "name": "some", "namespace": NAMESPACE });
    }
    connection.send(Method::POST, &path, Some(&object)).await?.success(&path)?;
    Ok(())
}

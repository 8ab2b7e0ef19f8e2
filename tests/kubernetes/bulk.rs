//! Ten thousand objects: what lists cost, and that each shows each object once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use http::Method;

use crate::{
    pages::{list_at_once, list_in_pages},
    resource::CONFIGMAPS,
    support::{controlplane::ControlPlane, http::Api, process::eventually},
};

const OBJECT_COUNT: usize = 10_000;
const WRITERS: usize = 32;
const NAMESPACE: &str = "bulk";

pub(crate) async fn ten_thousand_objects(plane: &ControlPlane) -> Result<()> {
    let api = plane.api;
    let path = CONFIGMAPS.within(NAMESPACE);
    plane.kubectl(&["create", "namespace", NAMESPACE]).await?;
    // The controller manager puts one config map of its own into each namespace.
    let of_its_own = format!("{path}/kube-root-ca.crt");
    eventually("the namespace is complete", Duration::from_secs(45), async || {
        api.get(&of_its_own).await
    })
    .await?;
    let wanted = OBJECT_COUNT + 1;
    let begin = Instant::now();
    try_join_all((0..WRITERS).map(|first| write_every(api, &path, first))).await?;
    tell("made", begin);

    let begin = Instant::now();
    let pages = list_in_pages(api, &path, 500).await?;
    tell("listed in pages of 500", begin);
    ensure!(pages.count == wanted, "the pages hold {} objects", pages.count);
    // Without a version the list is consistent; version 0 takes what the API server's cache has; an
    // exact one is read from the store in the past.
    let exact = format!("?resourceVersionMatch=Exact&resourceVersion={}", pages.revision);
    for query in ["", "?resourceVersion=0", &exact] {
        let begin = Instant::now();
        let names = list_at_once(api, &path, query).await?;
        tell(&format!("listed at once, query {query:?}"), begin);
        ensure!(names == pages.names, "the pages and the list differ: {query:?}");
    }
    let begin = Instant::now();
    let arguments = ["get", "configmaps", "-n", NAMESPACE, "--chunk-size=500", "-o", "name"];
    let printed = plane.kubectl(&arguments).await?.lines().count();
    tell("printed by kubectl", begin);
    ensure!(printed == wanted, "kubectl prints {printed} objects");
    Ok(())
}

/// One of several writers, which share the objects by number.
async fn write_every(api: Api, path: &str, first: usize) -> Result<()> {
    let mut connection = api.connect().await?;
    for number in (first..OBJECT_COUNT).step_by(WRITERS) {
        let object = CONFIGMAPS.object(&format!("object-{number:05}"));
        connection.send(Method::POST, path, Some(&object)).await?.success(path)?;
    }
    Ok(())
}

fn tell(what: &str, begin: Instant) {
    eprintln!("   {what}: {:.2} s", begin.elapsed().as_secs_f64());
}

//! Namespaces, a deployment and a lease: what the controller manager does all day.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::{
    resource::{
        CONFIGMAPS, DEPLOYMENTS, LEASES, PODS, REPLICASETS, Resource, TEAM_A, TEAM_B, WIDGETS,
        items,
    },
    support::{controlplane::ControlPlane, http::Api, process::eventually},
};

const CONTROLLER_DEADLINE: Duration = Duration::from_secs(45);

pub(crate) async fn make_namespaces(plane: &ControlPlane) -> Result<()> {
    for namespace in [TEAM_A, TEAM_B] {
        plane.kubectl(&["create", "namespace", namespace]).await?;
        // The controller manager answers a new namespace with its default service account.
        let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        let what = format!("{namespace} gets its service account");
        eventually(&what, CONTROLLER_DEADLINE, async || plane.api.get(&account).await).await?;
    }
    Ok(())
}

pub(crate) async fn deploy(plane: &ControlPlane) -> Result<()> {
    let image = "--image=example.com/app:1";
    plane.kubectl(&["create", "deployment", "web", image, "--replicas=3", "-n", TEAM_A]).await?;
    eventually("one replica set and three pods", CONTROLLER_DEADLINE, async || {
        count_is(plane.api, REPLICASETS, 1).await?;
        count_is(plane.api, PODS, 3).await
    })
    .await
}

/// Scales the deployment up, then changes its image. No kubelet makes the pods ready, so the
/// rollout goes as far as a deployment goes without: to a second replica set with pods of its own.
pub(crate) async fn change(plane: &ControlPlane) -> Result<()> {
    plane.kubectl(&["scale", "deployment", "web", "--replicas=5", "-n", TEAM_A]).await?;
    eventually("five pods", CONTROLLER_DEADLINE, async || count_is(plane.api, PODS, 5).await)
        .await?;
    let image = "*=example.com/app:2";
    plane.kubectl(&["set", "image", "deployment/web", image, "-n", TEAM_A]).await?;
    eventually("a second replica set and its pods", CONTROLLER_DEADLINE, async || {
        count_is(plane.api, REPLICASETS, 2).await?;
        let pods = plane.api.get(&PODS.within(TEAM_A)).await?;
        let images: BTreeSet<_> = items(&pods)?.iter().map(image_of).collect();
        ensure!(images.contains("example.com/app:2"), "the images are {images:?}");
        Ok(())
    })
    .await
}

/// Watches the lease of the controller manager until it has been renewed twice.
pub(crate) async fn lease_is_renewed(plane: &ControlPlane) -> Result<()> {
    let mut last = renew_time(plane.api).await?;
    for _ in 0..2 {
        let what = "the lease is renewed";
        let next = eventually(what, Duration::from_secs(15), async || {
            let now = renew_time(plane.api).await?;
            ensure!(now != last, "it was renewed at {last}");
            Ok(now)
        })
        .await?;
        ensure!(next > last, "the lease went back from {last} to {next}");
        last = next;
    }
    Ok(())
}

/// Deletes the namespace in which most of the story happened. Its neighbour must not notice.
pub(crate) async fn namespace_ends(plane: &ControlPlane) -> Result<()> {
    let neighbours = count(plane.api, CONFIGMAPS, TEAM_B).await?;
    let pods = count(plane.api, PODS, TEAM_A).await?;
    ensure!(pods > 0, "there is something to delete");
    plane.kubectl(&["delete", "namespace", TEAM_A, "--timeout=90s"]).await?;
    for resource in [PODS, REPLICASETS, DEPLOYMENTS, CONFIGMAPS, LEASES, WIDGETS] {
        let left = count(plane.api, resource, TEAM_A).await?;
        ensure!(left == 0, "{left} {} outlive their namespace", resource.plural);
    }
    let path = format!("/api/v1/namespaces/{TEAM_A}");
    let answer = plane.api.send(Method::GET, &path, None).await?;
    ensure!(answer.status == StatusCode::NOT_FOUND, "{path}: {}", answer.status);
    ensure!(count(plane.api, CONFIGMAPS, TEAM_B).await? == neighbours, "{TEAM_B} lost objects");
    Ok(())
}

async fn count(api: Api, resource: Resource, namespace: &str) -> Result<usize> {
    Ok(items(&api.get(&resource.within(namespace)).await?)?.len())
}

async fn count_is(api: Api, resource: Resource, wanted: usize) -> Result<()> {
    let found = count(api, resource, TEAM_A).await?;
    ensure!(found == wanted, "{found} {} instead of {wanted}", resource.plural);
    Ok(())
}

async fn renew_time(api: Api) -> Result<String> {
    let path = format!("{}/kube-controller-manager", LEASES.within("kube-system"));
    let lease = api.get(&path).await?;
    Ok(lease["spec"]["renewTime"].as_str().context("the lease was renewed once")?.to_owned())
}

fn image_of(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap_or("none")
}

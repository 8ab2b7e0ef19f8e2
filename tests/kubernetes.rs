//! Kubernetes lives on a node: a real API server, a real controller manager and kubectl work on the
//! server under test as they do on etcd.
//!
//! The story is proven on the reference first: `PLEACH_TEST_SERVER=etcd cargo test --test
//! kubernetes` tells it to real etcd. The programs it needs come from `tests/peers/build`.

#[path = "kubernetes/bulk.rs"]
mod bulk;
#[path = "kubernetes/compaction.rs"]
mod compaction;
#[path = "kubernetes/fresh.rs"]
mod fresh;
#[path = "kubernetes/objects.rs"]
mod objects;
#[path = "kubernetes/pages.rs"]
mod pages;
#[path = "kubernetes/resource.rs"]
mod resource;
#[path = "kubernetes/restart.rs"]
mod restart;
#[path = "kubernetes/stores.rs"]
mod stores;
mod support;
#[path = "kubernetes/traced.rs"]
mod traced;
#[path = "kubernetes/tree.rs"]
mod tree;
#[path = "kubernetes/witness.rs"]
mod witness;
#[path = "kubernetes/workloads.rs"]
mod workloads;

use std::{future::Future, time::Instant};

use anyhow::{Context as _, Result};
use restart::Blow;
use support::{
    controlplane::ControlPlane,
    process::Signal,
    server::{Child, Flavour},
};
use tokio::sync::Mutex;
use tree::Meanwhile;

/// One control plane keeps a small machine busy, so the tests of this file take turns.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_lives_on_a_lone_node_as_it_does_on_etcd() {
    let flavour = match Flavour::etcd_is_asked_for() {
        true => Flavour::Etcd,
        false => Flavour::LoneNode,
    };
    tell_the_story_to(flavour).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_lives_on_a_node_with_four_stores() {
    if Flavour::etcd_is_asked_for() {
        eprintln!("etcd has one store only: the other test tells it the story");
        return;
    }
    tell_the_story_to(Flavour::FourStores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_lives_on_a_node_with_stores_in_databases() {
    if Flavour::etcd_is_asked_for() {
        eprintln!("etcd has one store only: the first test tells it the story");
        return;
    }
    tell_the_story_to(Flavour::MixedStores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_lives_at_the_root_of_a_tree() {
    if Flavour::etcd_is_asked_for() {
        eprintln!("etcd has no children: the first test tells it the story");
        return;
    }
    tell_the_story_to(Flavour::Tree).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_from_the_api_server_through_the_tree() {
    if Flavour::etcd_is_asked_for() {
        eprintln!("etcd has no children");
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().await;
    if let Err(error) = Box::pin(traced::story()).await {
        panic!("the trace is not whole: {error:#}");
    }
}

async fn tell_the_story_to(flavour: Flavour) {
    let _turn = ONE_AT_A_TIME.lock().await;
    let begin = Instant::now();
    let mut plane = ControlPlane::new(flavour).expect("a control plane needs its programs");
    // Kept until the end: it prints the end of its log, too.
    let mut region = None;
    let outcome = Box::pin(story(&mut plane, &mut region)).await;
    // A process that has ended is a better reason than what the story then waited for in vain.
    let mut running = [Some(&mut plane), region.as_mut()].into_iter().flatten();
    let outcome = match running.try_for_each(ControlPlane::ensure_running) {
        Err(ended) if outcome.is_err() => outcome.context(ended.to_string()),
        running => outcome.and(running),
    };
    // A failure unwinds from here, past the processes, and so each prints the end of its log. Its reason stands on the
    // first line: of long outputs more is seldom kept.
    if let Err(error) = outcome {
        panic!("the story of {flavour:?} does not go on to its end: {error:#}");
    }
    eprintln!("the whole story on {flavour:?}: {:.1} s", begin.elapsed().as_secs_f64());
}

async fn story(plane: &mut ControlPlane, region: &mut Option<ControlPlane>) -> Result<()> {
    phase("the server starts with no data", plane.server.start()).await?;
    phase("the API server becomes ready on it", plane.start_apiserver()).await?;
    plane.start_controllers()?;
    phase("namespaces are made", workloads::make_namespaces(plane)).await?;
    phase("a deployment makes a replica set and pods", workloads::deploy(plane)).await?;
    phase("the deployment is scaled, then rolled out", workloads::change(plane)).await?;
    phase("the controller manager renews its lease", workloads::lease_is_renewed(plane)).await?;
    phase("custom resources are listed, watched and changed", objects::widgets(plane)).await?;
    phase("server-side apply finds a conflict", objects::server_side_apply(plane)).await?;
    phase("lists of a quiet resource are fresh", fresh::lists_of_a_quiet_resource(plane)).await?;
    for signal in [Signal::Terminate, Signal::Kill] {
        let purpose = format!("watches survive a restart of the server by {signal:?}");
        phase(&purpose, Box::pin(restart::watches_survive(plane, Blow::Server(signal)))).await?;
    }
    if plane.server.flavour() == Flavour::FourStores {
        phase("each store holds its own keys", async {
            stores::each_holds_its_own_keys(plane.path())
        })
        .await?;
    }
    for at in 0..plane.server.behind().len() {
        let purpose = format!("watches survive a kill and restart of server {at} of a route");
        phase(&purpose, Box::pin(restart::watches_survive(plane, Blow::Behind(at)))).await?;
    }
    if plane.server.flavour() == Flavour::Tree {
        Box::pin(story_of_a_tree(plane, region)).await?;
    }
    let old_page = compaction::remember_a_page(plane).await?;
    phase("the lease is renewed after that, too", workloads::lease_is_renewed(plane)).await?;
    phase("10,000 objects are made and listed", bulk::ten_thousand_objects(plane)).await?;
    phase("uncached objects are listed and watched", bulk::uncached_events(plane)).await?;
    phase("a namespace ends with all it holds", workloads::namespace_ends(plane)).await?;
    phase("the API server compacts past the restarts", compaction::advances(plane, &old_page))
        .await?;
    phase("a new API server reads all", bulk::a_new_api_server_reads_all(plane)).await
}

async fn story_of_a_tree(
    plane: &mut ControlPlane,
    region: &mut Option<ControlPlane>,
) -> Result<()> {
    phase("each node holds its own keys", tree::each_node_holds_its_own_keys(plane.server.tree()?))
        .await?;
    for child in [Child::RegionA, Child::TenantA] {
        let purpose = format!("watches survive a kill and restart of {child:?}");
        phase(&purpose, Box::pin(restart::watches_survive(plane, Blow::Child(child)))).await?;
    }
    let started = phase("a region gets an API server of its own", tree::start_region(plane)).await;
    let region = region.insert(started?);
    phase("what either API server writes, both show", tree::api_servers_agree(plane, region))
        .await?;
    for meanwhile in [Meanwhile::Nothing, Meanwhile::Changes] {
        let purpose = format!("a tenant is cut off and returns; meanwhile: {meanwhile:?}");
        phase(&purpose, tree::tenant_is_cut_off(plane, region, meanwhile)).await?;
    }
    Ok(())
}

/// Says what is going to be shown, and afterwards how long it took.
async fn phase<T>(purpose: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    eprintln!("-- {purpose}");
    let begin = Instant::now();
    let outcome = work.await.with_context(|| format!("phase: {purpose}"))?;
    eprintln!("   {:.1} s", begin.elapsed().as_secs_f64());
    Ok(outcome)
}

/// Tells how long a part of a phase took.
async fn timed<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begin = Instant::now();
    let outcome = work.await?;
    eprintln!("   {what}: {:.2} s", begin.elapsed().as_secs_f64());
    Ok(outcome)
}

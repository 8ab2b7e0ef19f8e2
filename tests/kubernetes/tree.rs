//! A tree below the server: a region with an API server of its own, and a tenant that is cut off.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etcd_client::{Client, GetOptions};
use futures::future::try_join3;
use http::{Method, StatusCode};
use serde_json::json;

use crate::{
    pages::list_at_once,
    resource::{CONFIGMAPS, LEASES, PODS, TEAM_A, TEAM_B, WIDGETS, revision},
    restart::{DEADLINE, TEAMS, Unseen, Writer, all_writes_go_on, writes_go_on},
    stores::server_holds_what_is_listed,
    support::{controlplane::ControlPlane, process::eventually, server::Child, tree::Tree},
    witness::{History, Witness},
};

/// Watches wait two seconds for a child that is away, and then go on. The rest is for a busy machine: one that waited
/// for the child would wait until it is back, which it is not before this is over.
const FLOWS_WITHIN: Duration = Duration::from_secs(60);
/// A tenant is cut off at least as long.
const CUT: Duration = Duration::from_secs(6);
/// The pod that the tenant deletes while it is cut off.
const VICTIM: &str = "victim";

/// What a tenant does while it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    Nothing,
    /// It is written to until it is cut off, and then deletes a pod.
    Changes,
}

/// Each key of a node belongs to its part of the tree.
pub(crate) async fn each_node_holds_its_own_keys(tree: &Tree) -> Result<()> {
    let widgets = format!("{}{TEAM_B}/", WIDGETS.key_prefix);
    for (node, part) in [
        (&tree.region_a, "/team-a/"),
        (&tree.tenant_a, "/registry/pods/team-a/"),
        (&tree.region_b, "/team-b/"),
        (&tree.tenant_b, &widgets),
    ] {
        let mut client = Box::pin(Client::connect([node.url()], None)).await?;
        let all = GetOptions::new().with_all_keys().with_keys_only();
        let answer = client.get("", Some(all)).await?;
        ensure!(!answer.kvs().is_empty(), "no key is in the node of {part}");
        for pair in answer.kvs() {
            let key = pair.key_str()?;
            ensure!(key.contains(part), "{key} is in the node of {part}");
        }
    }
    Ok(())
}

/// Starts an API server directly on the region. It has namespaces of its own, so its tenant's must
/// be made there too before it admits objects.
pub(crate) async fn start_region(plane: &ControlPlane) -> Result<ControlPlane> {
    let mut region = ControlPlane::at(&plane.server.tree()?.region_a.url())?;
    region.start_apiserver().await?;
    region.kubectl(&["create", "namespace", TEAM_A]).await?;
    Ok(region)
}

/// Both write the same kinds of objects at once: watches and lists of both show all of it, at the
/// same revisions.
pub(crate) async fn api_servers_agree(root: &ControlPlane, region: &ControlPlane) -> Result<()> {
    let mut writers = Vec::new();
    for resource in [CONFIGMAPS, PODS, LEASES] {
        for (plane, round) in [(root, "of-root"), (region, "of-region")] {
            writers.push(Writer::start(resource, plane.api, &[TEAM_A], round).await?);
        }
    }
    writes_go_on(writers.iter()).await?;
    let mut stopped = Vec::new();
    for writer in writers {
        stopped.push((writer.resource, writer.stop().await?));
    }
    for pair in stopped.chunks(2) {
        let mut shown = Vec::new();
        for (resource, (_, witness)) in pair {
            let history = witness.agrees_with_a_list().await?;
            for (_, (ledger, _)) in pair {
                ledger.agrees_with(&history, None).with_context(|| format!("{resource:?}"))?;
            }
            nothing_was_noticed(resource.plural, &history)?;
            shown.push(of_team_a(&history)?);
        }
        ensure!(shown[0] == shown[1], "the API servers show {shown:?}");
    }
    one_guards_what_the_other_wrote(root, region).await
}

/// A revision that one API server answered is a precondition for the other.
async fn one_guards_what_the_other_wrote(root: &ControlPlane, region: &ControlPlane) -> Result<()> {
    for resource in [CONFIGMAPS, PODS] {
        let collection = resource.within(TEAM_A);
        let path = format!("{collection}/shared");
        let object = resource.object("shared");
        let made = root.api.send(Method::POST, &collection, Some(&object)).await?;
        let made = revision(&made.success(&collection)?)?;
        let patch = json!({ "metadata": {
            "resourceVersion": made.to_string(),
            "annotations": { "by": "region" },
        }});
        let patched = region.api.send(Method::PATCH, &path, Some(&patch)).await?.success(&path)?;
        let late = root.api.send(Method::PATCH, &path, Some(&patch)).await?;
        ensure!(late.status == StatusCode::CONFLICT, "{}: {}", late.status, late.body);
        let guarded = json!({ "preconditions": {
            "resourceVersion": revision(&patched)?.to_string()
        }});
        root.api.send(Method::DELETE, &path, Some(&guarded)).await?.success(&path)?;
        let gone = region.api.send(Method::GET, &path, None).await?;
        ensure!(gone.status == StatusCode::NOT_FOUND, "{}: {}", gone.status, gone.body);
    }
    Ok(())
}

/// The link between the region and its tenant is cut under load, and mended. Only the tenant's
/// objects are refused, and lists that need them; those of all others flow on in open watches.
/// Only where the tenant has changed something meanwhile must its objects be listed anew.
pub(crate) async fn tenant_is_cut_off(
    root: &ControlPlane,
    region: &ControlPlane,
    meanwhile: Meanwhile,
) -> Result<()> {
    let changes = meanwhile == Meanwhile::Changes;
    let round = format!("cut-{meanwhile:?}").to_lowercase();
    make_pod(root, VICTIM).await?;
    let all = list_at_once(root.api, &PODS.everywhere(), "").await?;
    let is_kept = |name: &String| *name != format!("{TEAM_A}/{VICTIM}");
    let kept: BTreeSet<_> = all.into_iter().filter(is_kept).collect();

    let mut writers = Vec::new();
    for resource in [CONFIGMAPS, PODS, LEASES, WIDGETS] {
        let quiet = resource.plural == PODS.plural && !changes;
        let namespaces: &[&str] = if quiet { &[TEAM_B] } else { &TEAMS };
        writers.push(Writer::start(resource, root.api, namespaces, &round).await?);
    }
    let of_region = format!("{round}-region");
    writers.push(Writer::start(CONFIGMAPS, region.api, &[TEAM_A], &of_region).await?);
    let of_region = Witness::of(PODS, region.api).await?;
    writes_go_on(writers.iter()).await?;
    let shown: Vec<_> = writers.iter().map(|writer| writer.witness.history().position()).collect();

    let tree = root.server.tree()?;
    tree.cut_off_tenant_a().await?;
    let begin = Instant::now();
    if changes {
        let mut tenant = Box::pin(Client::connect([tree.tenant_a.url()], None)).await?;
        let key = format!("{}{TEAM_A}/{VICTIM}", PODS.key_prefix);
        ensure!(tenant.delete(key, None).await?.deleted() == 1, "the tenant has the pod");
    }
    let flowing = async {
        others_flow_on(&writers).await?;
        Ok(begin.elapsed())
    };
    let (_, _, flowed) =
        try_join3(its_objects_are_refused(root), its_objects_are_refused(region), flowing).await?;
    lists_are_whole_or_an_error(root, &kept).await?;
    eventually("it was away for long enough", DEADLINE, async || {
        ensure!(begin.elapsed() >= CUT, "it was cut off {:?} ago", begin.elapsed());
        Ok(())
    })
    .await?;
    others_flow_on(&writers).await?;
    let refused = |writer: &&Writer| writer.progress.refused.load(Ordering::Relaxed) > 0;
    let refused: Vec<_> = writers.iter().filter(refused).map(|it| it.resource.plural).collect();
    ensure!(refused == if changes { vec![PODS.plural] } else { vec![] }, "refused: {refused:?}");

    tree.mend().await?;
    let mended = Instant::now();
    for (plane, name) in [(root, "back-at-root"), (region, "back-at-region")] {
        make_pod(plane, &format!("{name}-{round}")).await?;
    }
    let back = mended.elapsed();
    eprintln!("   the others flowed after {flowed:.1?}, the tenant was back in {back:.1?}");
    for (plane, path) in [(root, PODS.everywhere()), (region, PODS.within(TEAM_A))] {
        eventually("the tenant's pods are listed as they are", DEADLINE, async || {
            let listed = list_at_once(plane.api, &path, "").await?;
            let lost = kept.iter().find(|name| name.starts_with(TEAM_A) && !listed.contains(*name));
            ensure!(lost.is_none(), "{lost:?} is not listed");
            let has_victim = listed.contains(&format!("{TEAM_A}/{VICTIM}"));
            ensure!(has_victim != changes, "the victim is listed: {has_victim}");
            Ok(())
        })
        .await?;
    }
    all_writes_go_on(&writers).await?;

    let mut histories = Vec::new();
    for (writer, since) in writers.into_iter().zip(shown) {
        let resource = writer.resource;
        let (ledger, history) = writer.finish().await?;
        let unseen = changes.then_some(Unseen { child: Child::TenantA, since });
        ledger.agrees_with(&history, unseen).with_context(|| format!("{resource:?}"))?;
        if resource.plural != PODS.plural {
            nothing_was_noticed(resource.plural, &history)?;
        } else {
            histories.push(history);
        }
        server_holds_what_is_listed(root, resource).await?;
    }
    histories.push(of_region.agrees_with_a_list().await?);
    for history in &histories {
        if changes {
            ensure!(!history.relists().is_empty(), "the deletion was passed over");
            history.was_not_ended().context("a watch went on that lacks the deletion")?;
        } else {
            nothing_was_noticed(PODS.plural, history)?;
        }
    }
    let [at_root, at_region] = [of_team_a(&histories[0])?, of_team_a(&histories[1])?];
    ensure!(at_root == at_region, "the API servers show {at_root:?} and {at_region:?}");
    if !changes {
        let path = format!("{}/{VICTIM}", PODS.within(TEAM_A));
        root.api.send(Method::DELETE, &path, None).await?.success(&path)?;
    }
    Ok(())
}

async fn make_pod(plane: &ControlPlane, name: &str) -> Result<()> {
    let path = PODS.within(TEAM_A);
    let pod = PODS.object(name);
    eventually(&format!("{name} is made"), DEADLINE, async || {
        plane.api.send(Method::POST, &path, Some(&pod)).await?.success(&path)
    })
    .await?;
    Ok(())
}

async fn its_objects_are_refused(plane: &ControlPlane) -> Result<()> {
    let path = format!("{}/{VICTIM}", PODS.within(TEAM_A));
    eventually("the tenant's objects are refused", DEADLINE, async || {
        let answer = plane.api.send(Method::GET, &path, None).await?;
        ensure!(answer.status.is_server_error(), "{}: {}", answer.status, answer.body);
        Ok(())
    })
    .await
}

/// Writes are acknowledged, and open watches show them.
async fn others_flow_on(writers: &[Writer]) -> Result<()> {
    writes_go_on(writers.iter()).await?;
    for writer in writers {
        let written = writer.progress.written.load(Ordering::Relaxed);
        let what = format!("the watch of {} goes on", writer.resource.plural);
        eventually(&what, FLOWS_WITHIN, async || {
            let position = writer.witness.history().position();
            ensure!(position >= written, "{written} was written, {position} is shown");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// `kubectl get -A` asks for pages of 500 and for no version, which is a consistent list. An API
/// server of v1.36 answers that, as one in a single page, out of its cache, once the cache is as new
/// as what it asks its store for first: a get of `/registry/pods`, one key, which is the root's own. So
/// the list is answered although the tenant is away, with its pods as the cache knew them; what counts
/// is that they are there. A store that is asked for the range itself refuses it.
async fn lists_are_whole_or_an_error(plane: &ControlPlane, kept: &BTreeSet<String>) -> Result<()> {
    let format = "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    for pages in ["--chunk-size=500", "--chunk-size=0"] {
        let output = plane.try_kubectl(&["get", "pods", "-A", pages, "-o", format]).await?;
        let printed = String::from_utf8(output.stdout)?;
        let printed: BTreeSet<_> = printed.lines().map(str::to_owned).collect();
        let is_whole = printed.is_superset(kept);
        ensure!(is_whole || !output.status.success(), "kubectl {pages} prints a part: {printed:?}");
    }
    plane.kubectl(&["get", "pods", "-n", TEAM_B]).await?;
    let cached = list_at_once(plane.api, &PODS.everywhere(), "?resourceVersion=0").await?;
    ensure!(cached.is_superset(kept), "the cache lost {:?}", kept.difference(&cached));
    let mut client = Box::pin(Client::connect([plane.server.endpoint()], None)).await?;
    let range = GetOptions::new().with_prefix().with_keys_only();
    let refused = client.get(PODS.key_prefix, Some(range)).await;
    let reason = refused.map_or_else(|error| error.to_string(), |answer| format!("{answer:?}"));
    ensure!(reason.contains("team-a-pods"), "the range is not refused by its route: {reason}");
    Ok(())
}

fn nothing_was_noticed(resource: &str, history: &History) -> Result<()> {
    history.was_not_ended().with_context(|| resource.to_owned())?;
    ensure!(history.relists().is_empty(), "{resource} had to be listed anew");
    Ok(())
}

fn of_team_a(history: &History) -> Result<BTreeMap<String, u64>> {
    let mut present = history.present()?;
    present.retain(|name, _| name.split('/').next() == Some(TEAM_A));
    Ok(present)
}

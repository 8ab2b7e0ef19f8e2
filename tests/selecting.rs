//! An API server that tells its storage what it selects is answered by a node what it is answered on etcd: lists,
//! pages, watches and deletions, by labels and by fields, of Kubernetes' own kinds and of a custom one.
//!
//! An etcd knows nothing of selectors, so that there the API server alone selects: its answers are the reference.
//! Needed: `tests/peers/build etcd kubectl kube-apiserver-selecting`.

#[path = "selecting/objects.rs"]
mod objects;
#[path = "selecting/questions.rs"]
mod questions;
mod support;
#[path = "selecting/watches.rs"]
mod watches;

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context as _, Result, ensure};
use support::{controlplane::ControlPlane, http::Api, server::Flavour};

/// What was answered, by what was asked.
type Answers = BTreeMap<String, Vec<String>>;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_selects_is_what_an_api_server_selects_on_etcd() {
    let wanted = Box::pin(answers_of(Flavour::Etcd)).await.expect("etcd has answers");
    let found = Box::pin(answers_of(Flavour::LoneNode)).await.expect("a node has answers");
    let keys = |of: &Answers| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&found), keys(&wanted), "the same was asked");
    let others: Vec<_> = wanted
        .iter()
        .filter(|(question, answer)| found[*question] != **answer)
        .map(|(question, answer)| {
            format!("{question}\n  etcd:   {answer:?}\n  a node: {:?}", found[question])
        })
        .collect();
    assert!(others.is_empty(), "answers differ:\n{}", others.join("\n"));
}

async fn answers_of(flavour: Flavour) -> Result<Answers> {
    let begin = Instant::now();
    let mut plane = ControlPlane::selecting(flavour)?;
    let outcome = Box::pin(ask(&mut plane)).await;
    let answers = match plane.ensure_running() {
        Err(ended) if outcome.is_err() => outcome.context(ended.to_string()),
        running => running.and(outcome),
    };
    eprintln!("asked {flavour:?}: {:.1} s", begin.elapsed().as_secs_f64());
    // A failure unwinds here, past the processes, and so each prints the end of its log.
    Ok(answers.expect("all is answered"))
}

async fn ask(plane: &mut ControlPlane) -> Result<Answers> {
    plane.server.start().await?;
    plane.start_apiserver().await?;
    objects::make(plane).await.context("objects are made")?;
    let (mut answers, mut seen) = (Answers::new(), [0; 3]);
    questions::lists(plane, &mut answers).await.context("lists")?;
    the_node_has_filtered(plane, &mut seen, "lists").await?;
    questions::pages(plane, &mut answers).await.context("pages")?;
    the_node_has_filtered(plane, &mut seen, "pages").await?;
    watches::of_a_change(plane, &mut answers).await.context("watches")?;
    the_node_has_filtered(plane, &mut seen, "watches").await?;
    questions::deletions(plane, &mut answers).await.context("deletions")?;
    the_node_has_filtered(plane, &mut seen, "deletions").await?;
    for (question, answer) in &answers {
        // One that selects nothing, or all, shows nothing; `objects` has some of each.
        ensure!(!answer.is_empty(), "nothing was answered to: {question}");
    }
    Ok(answers)
}

/// Fails where a node did not select itself during what was just asked: its stores say how many rows they looked at
/// with selectors so far, and how many of them matched. An etcd never does.
async fn the_node_has_filtered(
    plane: &ControlPlane,
    seen: &mut [u64; 3],
    during: &str,
) -> Result<()> {
    if plane.server.flavour() == Flavour::Etcd {
        return Ok(());
    }
    let port = plane.server.endpoint().rsplit(':').next().and_then(|port| port.parse().ok());
    let metrics = Api::at_port(port.context("a port")?).get("/metrics").await?;
    let metrics = metrics.as_str().context("metrics are text")?;
    let counted = |name: &str| -> u64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let now = [
        "pleach_store_selected_pages_total",
        "pleach_store_selected_rows_read_total",
        "pleach_store_selected_rows_matched_total",
    ]
    .map(counted);
    let [pages, read, matched] = [0, 1, 2].map(|at| now[at] - seen[at]);
    ensure!(pages > 0, "the node has not selected anything during {during}");
    ensure!(matched < read, "{during}: the node has left nothing out of {read} rows");
    *seen = now;
    Ok(())
}

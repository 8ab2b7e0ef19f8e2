//! Lists of a resource in which nothing happens, while another is written. The API server answers
//! them out of its cache, once that is known to be as new as the question.

use std::time::Instant;

use anyhow::{Result, ensure};
use http::Method;
use serde_json::json;

use crate::{
    resource::{CONFIGMAPS, LEASES, TEAM_B, revision},
    support::controlplane::ControlPlane,
};

const LIST_COUNT: usize = 300;

/// Changes a lease before each list, so that each list finds its cache behind, and must be as new as
/// that change. How long they take is for the reader: it tells how soon the server lets a cache know
/// that it has missed nothing.
pub(crate) async fn lists_of_a_quiet_resource(plane: &ControlPlane) -> Result<()> {
    let (quiet, leases) = (CONFIGMAPS.within(TEAM_B), LEASES.within(TEAM_B));
    let mut connection = plane.api.connect().await?;
    let busy = LEASES.object("busy");
    connection.send(Method::POST, &leases, Some(&busy)).await?.success(&leases)?;
    let busy = format!("{leases}/busy");
    let mut times = Vec::with_capacity(LIST_COUNT);
    for turn in 0..LIST_COUNT {
        let patch = json!({ "metadata": { "annotations": { "turn": turn.to_string() } } });
        let patched = connection.send(Method::PATCH, &busy, Some(&patch)).await?.success(&busy)?;
        let written = revision(&patched)?;
        let begin = Instant::now();
        let list = connection.send(Method::GET, &quiet, None).await?.success(&quiet)?;
        times.push(begin.elapsed());
        let shown = revision(&list)?;
        ensure!(shown >= written, "a list of {shown} was asked for after {written} was written");
    }
    times.sort_unstable();
    let percentile = |percent: usize| times[LIST_COUNT * percent / 100];
    let (median, late) = (percentile(50), percentile(99));
    eprintln!("   {LIST_COUNT} lists: median {median:.1?}, 99th percentile {late:.1?}");
    Ok(())
}

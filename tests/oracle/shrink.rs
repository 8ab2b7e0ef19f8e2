//! Looks for a shorter way to a difference: fewer steps on fresh servers that still end in one.

use std::time::{Duration, Instant};

use crate::{generate::Step, run::Run, server::Kind};

/// Each try starts two servers, which takes about a second.
const TRIES_MAX: usize = 80;
/// A difference that shows as silence takes ten seconds a try.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(120);

/// The shortest list of steps found that ends in a difference, with the difference.
pub async fn shortest(kind: Kind, steps: &[Step]) -> Option<(Vec<Step>, String)> {
    let deadline = Instant::now() + SEARCH_TIME_MAX;
    let is_over = |tries| tries >= TRIES_MAX || Instant::now() > deadline;
    let mut best = replay(kind, steps).await?;
    let mut tries = 1;
    let mut chunk = best.0.len().div_ceil(2);
    while chunk > 0 && !is_over(tries) {
        let mut start = 0;
        while start < best.0.len() && !is_over(tries) {
            let end = (start + chunk).min(best.0.len());
            let fewer = [&best.0[..start], &best.0[end..]].concat();
            tries += 1;
            match Box::pin(replay(kind, &fewer)).await {
                Some(found) => best = found,
                None => start = end,
            }
        }
        chunk /= 2;
    }
    Some(best)
}

/// The steps up to the difference that they lead to, if they lead to one.
async fn replay(kind: Kind, steps: &[Step]) -> Option<(Vec<Step>, String)> {
    let mut run = Run::start(kind).await.ok()?;
    for (index, step) in steps.iter().enumerate() {
        if let Err(difference) = Box::pin(run.step(step)).await {
            return Some((steps[..=index].to_vec(), format!("{difference:#}")));
        }
    }
    None
}

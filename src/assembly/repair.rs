//! Mending what a node keeps, while no node has it.

use super::{Context, Opens, Plan, StartError, StorePlan};
use crate::{
    clock::{Clock, Entropy, Lane, REVISION_MAX, SharedClock},
    model::{Revision, StoreError},
    proto::records::Reservation,
    store::{
        Expected,
        records::{Changes, Records},
    },
    tree::{membership::Membership, parent::TreeOptions},
};

/// Where a clock stood, and where it stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReset {
    /// What was reserved.
    pub before: Revision,
    /// What the next start goes on from: the greatest revision in the stores.
    pub after: Revision,
}

/// Why a clock is not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The default store can't be opened or read.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A route's store can't be looked at, and may hold more than the others.
    #[error(
        "store `{name}` can't be looked at, and may hold greater revisions; make it reachable first: {reason}"
    )]
    Unknown {
        /// The route's name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The greatest revision itself is the trouble.
    #[error(
        "the stores hold revision {newest}: keys were written with it, so the clock can't go back behind it; \
         {left} revisions are left"
    )]
    Written {
        /// The greatest revision.
        newest: Revision,
        /// How many there are above.
        left: Revision,
    },
}

/// Has the next start go on at the greatest revision that the stores of a plan hold, whatever was reserved.
/// For a clock that was driven up without a write. Stores that are nodes are left out: they have clocks of
/// their own, and the node moves up to them when they are attached.
///
/// # Errors
/// See [`ResetError`]; then nothing is changed.
pub async fn reset_clock(
    plan: Plan,
    opens: &dyn Opens,
    looking_at: impl Fn(&StorePlan),
) -> Result<ClockReset, ResetError> {
    let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
    let name = plan.default.name.clone();
    looking_at(&plan.default);
    let default = opens.open_default(&plan.default, &clock).await;
    let default =
        default.map_err(|refusal| StartError::Default { name, source: refusal.reason })?;
    let records = Records::open(default.clone()).await.map_err(StartError::from)?;
    let entropy = Entropy::system();
    let tree = TreeOptions::default();
    let membership =
        Membership::load(records.clone(), clock.clone(), entropy, "repair", tree).await;
    let membership = membership.map_err(StartError::from)?;
    let mut newest = default.head().newest;
    let mut opened = Vec::new();
    for route in plan.routes.iter().filter(|route| !route.store.may_be_a_node()) {
        looking_at(&route.store);
        let context =
            Context { clock: clock.clone(), membership: membership.clone(), attach_state: None };
        let any = Expected { incarnation: None, adopts: true };
        let occupant =
            opens.opener(route, context)(any).await.map_err(|refusal| ResetError::Unknown {
                name: route.store.name.clone(),
                reason: refusal.reason.to_string(),
            })?;
        newest = newest.max(occupant.store.head().newest);
        opened.push(occupant.store);
    }
    let kept: Option<Reservation> = records.get().await.map_err(StartError::from)?;
    let done = reset(&records, kept, newest).await;
    for store in opened {
        store.close().await;
    }
    default.close().await;
    done
}

async fn reset(
    records: &Records,
    kept: Option<Reservation>,
    newest: Revision,
) -> Result<ClockReset, ResetError> {
    let left = REVISION_MAX - newest;
    if left < REVISION_MAX / 4 {
        return Err(ResetError::Written { newest, left });
    }
    let Some(kept) = kept else { return Ok(ClockReset { before: newest, after: newest }) };
    let before = kept.limit.max(kept.ended);
    let reservation = Reservation { start: newest, limit: newest, ended: newest, ..kept };
    let written = records.write(Changes::default().put(&reservation)).await;
    written.map_err(|error: StoreError| StartError::from(error))?;
    Ok(ClockReset { before, after: newest })
}

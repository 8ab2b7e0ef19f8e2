//! Calls of Lock and Election: how a client makes them, and what must be true of their answers.

use std::time::Duration;

use pleach::proto::{
    v3electionpb::{self, election_client::ElectionClient},
    v3lockpb::{self, lock_client::LockClient},
};
use tonic::Status;

use crate::{
    check::{Check, Promises},
    client::{Client, of},
    history::{Asked, Call, Change, Keys, Kv, Outcome, Place, Said},
};

/// Who waits in a line longer than this goes away.
pub const WAIT_MAX: Duration = Duration::from_millis(700);

// === impl Client ===

impl Client {
    /// Enters the line of a prefix, or does something with the place it has.
    pub fn choose_in_line(&mut self, prefix: &str, lease: i64, value: String) -> Asked {
        if self.rng.chance(30) {
            return Asked::Leader(format!("{prefix}line"));
        }
        if let Some(place) = self.place.clone()
            && self.prefixes.iter().any(|prefix| place.key.starts_with(prefix))
        {
            return match self.rng.below(4) {
                0..=1 => Asked::Proclaim(place, value),
                2 => Asked::Resign(self.place.take().unwrap_or(place)),
                _ => Asked::Unlock(self.place.take().unwrap_or(place).key),
            };
        }
        let value = if self.rng.chance(50) { Some(value) } else { None };
        Asked::Enter { name: format!("{prefix}line"), lease, value }
    }

    pub async fn call_in_line(&mut self, asked: &Asked) -> Result<(i64, Said), Status> {
        let channel = self.channel.clone();
        let mut lock = LockClient::new(channel.clone());
        let mut election = ElectionClient::new(channel);
        match asked {
            Asked::Enter { name, lease, value: None } => {
                let ask = v3lockpb::LockRequest { name: name.clone().into(), lease: *lease };
                let answer = lock.lock(ask).await?.into_inner();
                let key = String::from_utf8_lossy(&answer.key).into();
                Ok((of(answer.header), Said::Head(Place { key, created: 0, lease: *lease })))
            }
            Asked::Enter { name, lease, value: Some(value) } => {
                let (name, value) = (name.clone().into(), value.clone().into());
                let ask = v3electionpb::CampaignRequest { name, lease: *lease, value };
                let answer = election.campaign(ask).await?.into_inner();
                let leader = answer.leader.unwrap_or_default();
                let key = String::from_utf8_lossy(&leader.key).into();
                let place = Place { key, created: leader.rev, lease: leader.lease };
                self.place = Some(place.clone());
                Ok((of(answer.header), Said::Head(place)))
            }
            Asked::Unlock(key) => {
                let ask = v3lockpb::UnlockRequest { key: key.clone().into() };
                Ok((of(lock.unlock(ask).await?.into_inner().header), Said::Done))
            }
            Asked::Proclaim(place, value) => {
                let (leader, value) = (Some(leader(place)), value.clone().into());
                let ask = v3electionpb::ProclaimRequest { leader, value };
                Ok((of(election.proclaim(ask).await?.into_inner().header), Said::Done))
            }
            Asked::Resign(place) => {
                let ask = v3electionpb::ResignRequest { leader: Some(leader(place)) };
                Ok((of(election.resign(ask).await?.into_inner().header), Said::Done))
            }
            Asked::Leader(name) => {
                let ask = v3electionpb::LeaderRequest { name: name.clone().into() };
                let answer = election.leader(ask).await?.into_inner();
                Ok((of(answer.header), Said::Read(answer.kv.iter().map(Kv::from).collect())))
            }
            other => Err(Status::internal(format!("{other:?} is no call of a line"))),
        }
    }
}

fn leader(place: &Place) -> v3electionpb::LeaderKey {
    let name = place.key.rsplit_once('/').map_or("", |(name, _)| name).to_owned();
    v3electionpb::LeaderKey {
        name: name.into(),
        key: place.key.clone().into(),
        rev: place.created,
        lease: place.lease,
    }
}

// === impl Check ===

impl Check<'_> {
    /// Who holds a lock or leads is the first of its line as of the revision that it is told; who has left has no
    /// place any more.
    pub fn lines(&mut self) {
        for call in self.calls {
            let Outcome::Said(revision, said) = &call.outcome else { continue };
            let line = |name: &str| self.head_at(name, *revision);
            let is_true = match (&call.asked, said) {
                (Asked::Enter { .. }, _) if !self.promises.has_exact_lines => true,
                (Asked::Enter { name, lease, .. }, Said::Head(place)) => {
                    line(name).is_some_and(|head| {
                        head.key == format!("{name}/{lease:x}")
                            && head.key == place.key
                            && (place.created == 0 || place.created == head.create)
                            && head.lease == *lease
                    })
                }
                (Asked::Leader(name), Said::Read(told)) => line(name).into_iter().eq(told),
                (Asked::Unlock(key), _) => self.at(key, *revision).is_none(),
                (Asked::Resign(place), _) => {
                    self.at(&place.key, *revision).is_none_or(|kv| kv.create != place.created)
                }
                _ => continue,
            };
            if !is_true {
                let name = match &call.asked {
                    Asked::Enter { name, .. } | Asked::Leader(name) => name.as_str(),
                    Asked::Unlock(key) | Asked::Resign(Place { key, .. }) => {
                        key.rsplit_once('/').map_or("", |(name, _)| name)
                    }
                    _ => "",
                };
                let line = self.in_range_at(&Keys::below(&format!("{name}/")), *revision);
                self.wrong(format!("{call:?}: the line was {line:?}"));
            }
        }
    }

    fn head_at(&self, name: &str, revision: i64) -> Option<&Kv> {
        let line = self.in_range_at(&Keys::below(&format!("{name}/")), revision);
        line.into_iter().min_by_key(|kv| kv.create)
    }
}

/// Whether a commit may be of a call that stood in a line: a place is put, or put again by who has the same lease, and
/// goes with who leaves, or goes away while waiting.
pub fn may_be_of_line(call: &Call, commit: &[&Change], promises: Promises) -> bool {
    let [change] = commit else { return false };
    match &call.asked {
        Asked::Enter { name, lease, value } => {
            let is_place = change.key == format!("{name}/{lease:x}");
            let is_put = |kv: &Kv| kv.value == value.as_deref().unwrap_or("") && kv.lease == *lease;
            let is_before = call
                .revision()
                .is_none_or(|told| change.revision <= told || !promises.has_exact_lines);
            is_place && is_before && change.now.as_ref().map_or(!call.is_said(), is_put)
        }
        Asked::Unlock(key) | Asked::Resign(Place { key, .. }) => {
            // One that was answered is its revision's, or had nothing to delete.
            let is_unknown = matches!(call.outcome, Outcome::Unknown);
            let is_it = call.revision().map_or(is_unknown, |told| told == change.revision);
            change.key == *key && change.now.is_none() && is_it
        }
        _ => false,
    }
}

//! Election: elections kept by the node, for clients that do not build their own.

use futures::{Stream, StreamExt as _, stream};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{Services, check, status};
use crate::{model::Revision, node::Contender, proto::v3electionpb as pb, wire};

/// etcd's words, which its clients compare.
const NO_LEADER: &str = "election: no leader";
const NOT_LEADER: &str = "election: not leader";

fn place(leader: Option<pb::LeaderKey>) -> Result<Contender, Status> {
    let leader = leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))?;
    check::key_of_line(&leader.key)?;
    Ok(Contender { key: leader.key, revision: leader.rev, lease: leader.lease })
}

#[tonic::async_trait]
impl pb::election_server::Election for Services {
    type ObserveStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        self.check_size(request.get_ref().encoded_len())?;
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let (place, revision) = self.until_stopped(self.node.line_up(&name, lease, value)).await?;
        let Contender { key, revision: rev, lease } = place;
        let leader = Some(pb::LeaderKey { name, key, rev, lease });
        Ok(Response::new(pb::CampaignResponse { header: self.header(revision), leader }))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        self.check_size(request.get_ref().encoded_len())?;
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let revision = self.node.proclaim(&place(leader)?, value).await.map_err(status::of_line)?;
        let revision = revision.ok_or_else(|| Status::unknown(NOT_LEADER))?;
        Ok(Response::new(pb::ProclaimResponse { header: self.header(revision) }))
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        let (revision, head) = self.node.head_of_line(&request.get_ref().name).await?;
        let head = head.ok_or_else(|| Status::unknown(NO_LEADER))?;
        let kv = Some(wire::key_value(head));
        Ok(Response::new(pb::LeaderResponse { header: self.header(revision), kv }))
    }

    async fn observe(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let observed = Observed { face: self.clone(), name: request.into_inner().name, told: 0 };
        let leaders = stream::try_unfold(observed, |mut observed| async move {
            let response = observed.next().await?;
            Ok::<_, Status>(Some((response, observed)))
        });
        let leaders = leaders.take_until(self.stopping.clone().cancelled_owned());
        Ok(Response::new(Box::pin(leaders)))
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        let left = self.node.leave_line(&place(request.into_inner().leader)?).await;
        let revision = left.map_err(status::of_line)?;
        Ok(Response::new(pb::ResignResponse { header: self.header(revision) }))
    }
}

struct Observed {
    face: Services,
    name: bytes::Bytes,
    /// The last change that was told.
    told: Revision,
}

// === impl Observed ===

impl Observed {
    /// The next proclamation of whoever leads.
    async fn next(&mut self) -> Result<pb::LeaderResponse, Status> {
        loop {
            let (revision, head) = self.face.node.head_of_line(&self.name).await?;
            if let Some(head) = head.filter(|head| head.mod_revision > self.told) {
                self.told = head.mod_revision;
                let kv = Some(wire::key_value(head));
                return Ok(pb::LeaderResponse { header: self.face.header(revision), kv });
            }
            self.face.node.line_changed(&self.name, revision).await?;
        }
    }
}

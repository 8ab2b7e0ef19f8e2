//! Lease: granted, kept alive, looked at, revoked.

use futures::{Stream, StreamExt as _};
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use crate::proto::etcdserverpb as pb;

#[tonic::async_trait]
impl pb::lease_server::Lease for Services {
    type LeaseKeepAliveStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        self.check_size(request.get_ref().encoded_len())?;
        let asked = request.into_inner();
        let (id, ttl) = self.node.grant_lease(asked.id, asked.ttl).await?;
        Ok(Response::new(pb::LeaseGrantResponse {
            header: self.header_now(),
            id,
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let revision = self.node.revoke_lease(request.into_inner().id).await?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.header(revision) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let face = self.clone();
        let answers = request.into_inner().map(move |asked| {
            let id = asked?.id;
            // 0 seconds tells that there is no such lease.
            let ttl = face.node.keep_lease_alive(id).unwrap_or(0);
            Ok(pb::LeaseKeepAliveResponse { header: face.header_now(), id, ttl })
        });
        let answers = answers.take_until(self.stopping.clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let mut header = self.header_now();
        let Some(lease) = self.node.lease(id) else {
            // It may have gone at a revision that was not reached a moment ago.
            let header = self.header_now();
            let gone = pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
            return Ok(Response::new(gone));
        };
        let mut held = Vec::new();
        if keys {
            let (revision, found) = self.node.keys_of_lease(id).await?;
            (header, held) = (self.header(revision), found);
        }
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header,
            id,
            ttl: lease.left,
            granted_ttl: lease.granted,
            keys: held,
        }))
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let leases = self.node.leases().into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.header_now(), leases }))
    }
}

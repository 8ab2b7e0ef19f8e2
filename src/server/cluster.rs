//! Cluster: one member, this node.

use tonic::{Request, Response, Status, transport::server::TcpConnectInfo};

use super::{Services, status};
use crate::proto::etcdserverpb as pb;

const FIXED: &str = "pleach: members are not added or removed; a node's routes are in its topology";

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Services {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let mut client_urls = self.advertised.clone();
        if client_urls.is_empty() {
            // Not told what it is reached by, the node says what this client reached it by.
            client_urls.extend(authority(&request).map(|host| format!("{}://{host}", self.scheme)));
        }
        let member = pb::Member {
            id: self.node.identity().member,
            name: self.name.clone(),
            // There is no port for peers, but clients take the first of these without looking.
            peer_ur_ls: client_urls.clone(),
            client_ur_ls: client_urls,
            is_learner: false,
        };
        let response = pb::MemberListResponse { header: self.header(0), members: vec![member] };
        Ok(Response::new(response))
    }

    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(Status::unimplemented(FIXED))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(self.refuse_member(request.get_ref().id))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(self.refuse_member(request.get_ref().id))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(self.refuse_member(request.get_ref().id))
    }
}

impl Services {
    fn refuse_member(&self, id: u64) -> Status {
        if id == self.node.identity().member {
            Status::unimplemented(FIXED)
        } else {
            status::status(status::MEMBER_NOT_FOUND)
        }
    }
}

/// The host that a request was sent to.
#[derive(Clone, Debug)]
struct Authority(String);

/// Keeps the host of requests to this service, which tonic does not hand on. Who names none has reached an address
/// all the same.
pub(super) fn note_authority(mut request: axum::extract::Request) -> axum::extract::Request {
    if request.uri().path().starts_with("/etcdserverpb.Cluster/") {
        let named = request.uri().authority().map(ToString::to_string);
        let reached = || request.extensions().get::<TcpConnectInfo>()?.local_addr();
        let authority = named.or_else(|| reached().map(|address| address.to_string()));
        request.extensions_mut().insert(authority.map(Authority));
    }
    request
}

fn authority<T>(request: &Request<T>) -> Option<String> {
    Some(request.extensions().get::<Option<Authority>>()?.as_ref()?.0.clone())
}

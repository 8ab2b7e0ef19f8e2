//! Maintenance: status, alarms, hashes. What a cluster of one does not need says so.

use futures::stream;
use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, STORAGE_VERSION, Services};
use crate::{proto::etcdserverpb as pb, store::Store as _};

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for Services {
    type SnapshotStream = stream::Empty<Result<pb::SnapshotResponse, Status>>;

    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::{AlarmType, alarm_request::AlarmAction};
        let asked = request.into_inner();
        let is_ours = asked.alarm == AlarmType::Nospace as i32;
        let raised = pb::AlarmMember {
            member_id: self.node.identity().member,
            alarm: AlarmType::Nospace as i32,
        };
        let alarms = match AlarmAction::try_from(asked.action) {
            Ok(AlarmAction::Get) => {
                let is_asked = is_ours || asked.alarm == AlarmType::None as i32;
                let is_raised = is_asked && self.node.is_out_of_space();
                is_raised.then_some(raised).into_iter().collect()
            }
            Ok(AlarmAction::Activate) if is_ours => {
                self.node.set_out_of_space(true).await?;
                vec![raised]
            }
            Ok(AlarmAction::Deactivate) if is_ours && self.node.is_out_of_space() => {
                self.node.set_out_of_space(false).await?;
                vec![raised]
            }
            _ => Vec::new(),
        };
        Ok(Response::new(pb::AlarmResponse { header: self.header_now(), alarms }))
    }

    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let size = self.node.size().await?;
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let revision = self.node.revision();
        let index = u64::try_from(revision).unwrap_or(0);
        let mut errors = Vec::new();
        if self.node.is_out_of_space() {
            let member = self.node.identity().member;
            errors.push(format!("memberID:{member} alarm:NOSPACE "));
        }
        Ok(Response::new(pb::StatusResponse {
            header: self.header(revision),
            version: ETCD_VERSION.to_owned(),
            db_size: bytes(size.total),
            leader: self.node.identity().member,
            raft_index: index,
            raft_term: super::RAFT_TERM,
            raft_applied_index: index,
            errors,
            db_size_in_use: bytes(size.in_use),
            is_learner: false,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: bytes(self.node.quota_bytes()),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    /// There is nothing to defragment by hand: what compaction frees is used again.
    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(
        &self,
        _: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        let (revision, hash, _) = self.node.hash(0).await?;
        Ok(Response::new(pb::HashResponse { header: self.header(revision), hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let (revision, hash, hash_revision) = self.node.hash(request.get_ref().revision).await?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.header(revision),
            hash,
            compact_revision: self.node.root().compacted(),
            hash_revision,
        }))
    }

    async fn snapshot(
        &self,
        _: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(
            "pleach: a snapshot would be etcd's own file format; back up the stores instead",
        ))
    }

    async fn move_leader(
        &self,
        _: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        Err(Status::unimplemented("pleach: a node has no leader to move"))
    }

    async fn downgrade(
        &self,
        _: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented("pleach: a node's stores are not downgraded"))
    }
}

//! Maintenance: status, alarms, hashes. What a cluster of one does not need says so.

use futures::stream;
use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, STORAGE_VERSION, Services};
use crate::{
    node::{Alarm, AlarmKind},
    proto::etcdserverpb as pb,
    store::Store as _,
};

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for Services {
    type SnapshotStream = stream::Empty<Result<pb::SnapshotResponse, Status>>;

    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let pb::AlarmRequest { action, member_id: member, alarm } = request.into_inner();
        let kind = kind_of(alarm);
        let mut alarms: Vec<Alarm> = Vec::new();
        match (AlarmAction::try_from(action), kind) {
            (Ok(AlarmAction::Get), _) => {
                alarms.extend(self.node.alarms());
                // As in etcd, whatever member is named.
                alarms.retain(|it| alarm == pb::AlarmType::None as i32 || Some(it.kind) == kind);
            }
            (Ok(AlarmAction::Activate), Some(kind)) => {
                let alarm = Alarm { kind, member };
                self.node.raise_alarm(alarm).await?;
                alarms.push(alarm);
            }
            (Ok(AlarmAction::Deactivate), Some(kind)) => {
                let alarm = Alarm { kind, member };
                alarms.extend(self.node.disarm_alarm(alarm).await?.then_some(alarm));
            }
            _ => {}
        }
        let alarms = alarms.into_iter().map(|Alarm { kind, member }| pb::AlarmMember {
            member_id: member,
            alarm: match kind {
                AlarmKind::NoSpace => pb::AlarmType::Nospace as i32,
                AlarmKind::Corrupt => pb::AlarmType::Corrupt as i32,
            },
        });
        let alarms = alarms.collect();
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
        // As Go prints the message, without the space that it adds at random.
        let errors = self.node.alarms().into_iter().map(|Alarm { kind, member }| match member {
            0 => format!("alarm:{}", kind.name()),
            member => format!("memberID:{member} alarm:{}", kind.name()),
        });
        Ok(Response::new(pb::StatusResponse {
            header: self.header(revision),
            version: ETCD_VERSION.to_owned(),
            db_size: bytes(size.total),
            leader: self.node.identity().member,
            raft_index: index,
            raft_term: super::RAFT_TERM,
            raft_applied_index: index,
            errors: errors.collect(),
            db_size_in_use: bytes(size.in_use),
            is_learner: false,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: bytes(self.node.quota_bytes()),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    /// Files are made as small as what is in them. What is elsewhere is not this node's to do that with, and
    /// the answer says so where there is nothing else.
    async fn defragment(
        &self,
        _: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        match self.node.defragment().await? {
            true => Ok(Response::new(pb::DefragmentResponse { header: None })),
            false => Err(Status::unimplemented(
                "pleach: none of this node's stores is a file; databases, etcds and other nodes give space \
                 back by themselves",
            )),
        }
    }

    async fn hash(
        &self,
        _: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        // Of what was there at the revision that it says.
        let (_, hash, revision) = self.node.hash(0).await?;
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

fn kind_of(alarm: i32) -> Option<AlarmKind> {
    match pb::AlarmType::try_from(alarm) {
        Ok(pb::AlarmType::Nospace) => Some(AlarmKind::NoSpace),
        Ok(pb::AlarmType::Corrupt) => Some(AlarmKind::Corrupt),
        Ok(pb::AlarmType::None) | Err(_) => None,
    }
}

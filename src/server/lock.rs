//! Lock: locks kept by the node, for clients that do not build their own.

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::Face;
use crate::{
    model::{
        KeyRange,
        txn::{DeleteOp, Op, Txn},
    },
    proto::v3lockpb as pb,
};

#[tonic::async_trait]
impl pb::lock_server::Lock for Face {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        let pb::LockRequest { name, lease } = request.into_inner();
        let (place, revision) = self.node.line_up(&name, lease, Bytes::new()).await?;
        Ok(Response::new(pb::LockResponse { header: self.header(revision), key: place.key }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let range = KeyRange::single(request.into_inner().key);
        let delete = Op::Delete(DeleteOp { range, prev_kv: false });
        let written = self.node.txn(Txn::from(delete)).await?;
        Ok(Response::new(pb::UnlockResponse { header: self.header(written.revision) }))
    }
}

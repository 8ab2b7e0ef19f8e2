//! Lock: locks kept by the node, for clients that do not build their own.

use bytes::Bytes;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{Services, check, status};
use crate::{
    model::{
        KeyRange,
        txn::{DeleteOp, Op, Txn},
    },
    proto::v3lockpb as pb,
};

#[tonic::async_trait]
impl pb::lock_server::Lock for Services {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        self.check_size(request.get_ref().encoded_len())?;
        let pb::LockRequest { name, lease } = request.into_inner();
        let line_up = self.node.line_up(&name, lease, Bytes::new());
        let (place, revision) = self.until_stopped(line_up).await?;
        Ok(Response::new(pb::LockResponse { header: self.header(revision), key: place.key }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        check::key_of_line(&request.get_ref().key)?;
        let range = KeyRange::single(request.into_inner().key);
        let delete = Op::Delete(DeleteOp { range, prev_kv: false });
        let written = self.node.txn(Txn::from(delete)).await.map_err(status::of_line)?;
        Ok(Response::new(pb::UnlockResponse { header: self.header(written.revision) }))
    }
}

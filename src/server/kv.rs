//! KV: reads, writes, transactions, compaction.

use futures::{Stream, stream};
use prost::{Message as _, length_delimiter_len};
use tonic::{Request, Response, Status};

use super::{
    GRPC_OVERHEAD_BYTES, RAFT_OVERHEAD_BYTES, Services, check,
    status::{self, status},
};
use crate::{
    model::{
        StoreError,
        txn::{Op, OpResult, Txn},
    },
    proto::etcdserverpb as pb,
    store::Written,
    wire,
};

#[tonic::async_trait]
impl pb::kv_server::Kv for Services {
    type RangeStreamStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        check::range(request.get_ref())?;
        let op = wire::range_op(request.get_ref()).map_err(status::of_selector)?;
        let (revision, found) = self.node.range(&op).await?;
        Ok(Response::new(wire::range_response(self.header(revision), found)))
    }

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        check::range_stream(request.get_ref())?;
        let op = wire::range_op(request.get_ref()).map_err(status::of_selector)?;
        let chunks = self.node.stream_range(&op).await?;
        let face = self.clone();
        let responses = stream::try_unfold((face, chunks), |(face, mut chunks)| async move {
            let Some(chunk) = face.node.next_chunk(&mut chunks).await? else { return Ok(None) };
            let mut response =
                pb::RangeResponse { kvs: wire::key_values(chunk.kvs), ..Default::default() };
            if let Some((revision, more, count)) = chunk.end {
                response.header = face.header(revision);
                (response.more, response.count) = (more, count);
            }
            let response = pb::RangeStreamResponse { range_response: Some(response) };
            Ok::<_, Status>(Some((response, (face, chunks))))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        check::put(request.get_ref())?;
        self.check_size(request.get_ref().encoded_len())?;
        let put = wire::put_op(request.get_ref());
        let Written { revision, mut result } = self.node.txn(Txn::from(Op::Put(put))).await?;
        let prev_kv = match result.results.pop() {
            Some(OpResult::Put { prev, .. }) => prev.map(wire::key_value),
            _ => None,
        };
        Ok(Response::new(pb::PutResponse { header: self.header(revision), prev_kv }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        check::delete(request.get_ref())?;
        self.check_size(request.get_ref().encoded_len())?;
        let delete = wire::delete_op(request.get_ref());
        let Written { revision, mut result } =
            self.node.delete(delete).await.map_err(|error| match error {
                StoreError::TwoStores { .. } => Status::invalid_argument(format!(
                    "pleach: {error}; or start the node with --allow-split-deletes, to have a deletion of its own \
                     carried out store by store"
                )),
                error => error.into(),
            })?;
        let (deleted, prevs) = match result.results.pop() {
            Some(OpResult::Delete { deleted, prevs, .. }) => (deleted, prevs),
            _ => (0, Vec::new()),
        };
        Ok(Response::new(pb::DeleteRangeResponse {
            header: self.header(revision),
            deleted,
            prev_kvs: wire::key_values(prevs),
        }))
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        check::txn(request.get_ref(), self.limits.txn_ops_max)?;
        self.check_size(request.get_ref().encoded_len())?;
        let txn = wire::txn(request.get_ref()).map_err(|error| match error {
            wire::NoTxn::Missing => status(status::KEY_NOT_FOUND),
            wire::NoTxn::Selector(error) => status::of_selector(error),
        })?;
        let Written { revision, result } = self.node.txn(txn).await?;
        Ok(Response::new(wire::txn_response(self.header(revision), result)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let pb::CompactionRequest { revision, physical } = request.into_inner();
        let revision = self.node.compact(revision, physical).await?;
        Ok(Response::new(pb::CompactionResponse { header: self.header(revision) }))
    }
}

impl Services {
    /// Refuses a write beyond the bound that etcd sets for what goes through its log, with what etcd puts
    /// around it there.
    pub(super) fn check_size(&self, bytes: usize) -> Result<(), Status> {
        let message_max = self.limits.request_bytes_max + GRPC_OVERHEAD_BYTES;
        if bytes > message_max {
            return Err(status::beyond_all(bytes, message_max));
        }
        if bytes + RAFT_OVERHEAD_BYTES + length_delimiter_len(bytes) > self.limits.request_bytes_max
        {
            return Err(status(status::TOO_LARGE));
        }
        Ok(())
    }
}

//! Tree: the verbs of a store for a parent, and what goes with each request.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request as HttpRequest, State},
    middleware::Next,
    response::Response as HttpResponse,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use prost::Message as _;
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tracing::Instrument as _;

use super::{Face, trace};
use crate::{
    model::{Commit, Event, KeyRange, LeaseId, Revision, StoreError},
    proto::tree::{self as pb, apply_request::Write as Message},
    store::{
        Batch, Described, Read, Whose, Write,
        node::{
            PROTOCOL,
            call::{self, Call, printed},
        },
    },
    wire::{self, Member},
};

/// How long a node's children may take to say what lies below them, where nobody says.
const BELOW_TIME_MAX: Duration = Duration::from_secs(2);

/// Metadata of a path, far beyond any tree's.
const PATH_BYTES_MAX: usize = 64 << 10;

/// Keeps what goes with a request for the task that serves it.
pub(super) async fn note_call(
    State(node): State<Arc<str>>,
    request: HttpRequest,
    next: Next,
) -> HttpResponse {
    let (span, trace) = trace::begin(&node, &request);
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let deadline = text("grpc-timeout").and_then(grpc_timeout).map(|left| Instant::now() + left);
    let metadata = MetadataMap::from_headers(headers.clone());
    let path = path(&metadata).into();
    let served = next.run(request).instrument(span.clone());
    let response = Call { path, deadline, trace }.scope(served).await;
    trace::follow(span, response)
}

fn path(metadata: &MetadataMap) -> Vec<Member> {
    let bytes = metadata.get_bin(call::PATH).and_then(|path| path.to_bytes().ok());
    let bytes = bytes.filter(|bytes| bytes.len() <= PATH_BYTES_MAX);
    let path = bytes.and_then(|bytes| pb::Path::decode(bytes).ok()).unwrap_or_default();
    path.nodes.iter().map(wire::member_of).collect()
}

/// What gRPC writes as up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.checked_mul(3600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// An error as another node can tell it apart.
fn refused(error: StoreError) -> Status {
    let failure = wire::failure(&error).encode_to_vec();
    let status = Status::from(error);
    Status::with_details(status.code(), status.message().to_owned(), Bytes::from(failure))
}

impl Face {
    /// Lets a parent's request in, and moves up to where the parent is. One of somebody else is refused, and one
    /// that has come through here before.
    async fn enter<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let call = Call::current();
        if let Some(nodes) = self.loop_of(&call) {
            let reason = format!("the routes form a loop: {nodes}; take one of them out");
            return Err(self.unavailable(reason));
        }
        if !self.is_of_parent(&call) {
            let reason = "it answers only the node that handed it its lanes".to_owned();
            return Err(self.unavailable(reason));
        }
        self.move_up(request).await
    }

    /// Moves up to where whoever asks is.
    async fn move_up<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let clock = request.metadata().get(call::CLOCK).and_then(|clock| clock.to_str().ok());
        let clock: Revision = clock.and_then(|clock| clock.parse().ok()).unwrap_or(0);
        self.node.take_up(clock).await.map_err(refused)
    }

    fn is_of_parent(&self, call: &Call) -> bool {
        let parent = self.node.membership().parent();
        parent.is_some() && parent == call.path.last().map(|caller| caller.id)
    }

    fn unavailable(&self, reason: String) -> Status {
        let store = self.node.root().name().clone();
        refused(StoreError::Unavailable { store, reason: reason.into() })
    }

    /// The loop in which a request goes round, printed.
    fn loop_of(&self, call: &Call) -> Option<String> {
        let me = self.node.membership().me();
        let at = call.path.iter().position(|member| member.id == me.id)?;
        Some(printed(call.path[at..].iter().chain([me])))
    }

    fn described(&self, routes: Vec<Described>, in_loop: Option<String>) -> pb::Node {
        let (root, membership) = (self.node.root(), self.node.membership());
        let held = membership.lanes().held;
        let below = routes.iter().filter_map(|route| Some(route.node.as_ref()?.r#loop.clone()));
        let in_loop = in_loop.or_else(|| below.into_iter().find(|it| !it.is_empty()));
        // What is closed first: all that lies in there is shown.
        let closed = root.closed();
        pb::Node {
            member: Some(wire::member(membership.me())),
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.node.revision(),
            closed,
            compacted: root.compacted(),
            lanes: held.as_ref().map(|held| wire::lanes(held.block)),
            giver: held.and_then(|held| held.giver).as_ref().map(wire::member),
            routes,
            r#loop: in_loop.unwrap_or_default(),
            process: membership.process(),
        }
    }
}

#[tonic::async_trait]
impl pb::tree_server::Tree for Face {
    type FollowStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::FollowResponse, Status>> + Send>>;

    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        let call = Call::current();
        if let Some(nodes) = self.loop_of(&call) {
            return Ok(Response::new(self.described(Vec::new(), Some(nodes))));
        }
        if self.is_of_parent(&call) {
            self.move_up(&request).await?;
        }
        // Half of the time for what is below, so that this is an answer even where that is none.
        let left = call.deadline.map_or(BELOW_TIME_MAX, |deadline| {
            deadline.saturating_duration_since(Instant::now()) / 2
        });
        let below = timeout(left, self.node.root().describe()).await;
        Ok(Response::new(self.described(below.unwrap_or_default(), None)))
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        // The lanes are not allocated in below what the parent has reached.
        self.move_up(&request).await?;
        let pb::JoinRequest { giver, lanes } = request.into_inner();
        let giver = giver.as_ref().map(wire::member_of);
        let lanes = lanes.and_then(wire::lanes_of);
        let (Some(giver), Some(lanes)) = (giver, lanes) else {
            return Err(Status::invalid_argument("pleach: lanes or giver are missing"));
        };
        let membership = self.node.membership();
        let accepted = membership.accept(giver, lanes).await;
        accepted.map_err(|error| Status::failed_precondition(format!("pleach: {error}")))?;
        Ok(Response::new(pb::JoinResponse { revision: membership.clock().now() }))
    }

    async fn sync(
        &self,
        request: Request<pb::SyncRequest>,
    ) -> Result<Response<pb::SyncResponse>, Status> {
        self.enter(&request).await?;
        let pb::SyncRequest { revision, ahead } = request.into_inner();
        self.node.take_up(revision).await.map_err(refused)?;
        let closed = self.node.root().sync(revision, ahead.max(0)).await.map_err(refused)?;
        Ok(Response::new(pb::SyncResponse { closed }))
    }

    async fn present(
        &self,
        request: Request<pb::PresentRequest>,
    ) -> Result<Response<pb::PresentResponse>, Status> {
        self.enter(&request).await?;
        let pb::PresentRequest { key, range_end, without_detached } = request.into_inner();
        let whose = if without_detached { Whose::Attached } else { Whose::All };
        let range = KeyRange::from_wire(key, range_end);
        let revision = self.node.root().present(&range, whose).await.map_err(refused)?;
        Ok(Response::new(pb::PresentResponse { revision }))
    }

    async fn apply(
        &self,
        request: Request<pb::ApplyRequest>,
    ) -> Result<Response<pb::ApplyResponse>, Status> {
        self.enter(&request).await?;
        let pb::ApplyRequest { write, dead_leases } = request.into_inner();
        let write = match write {
            Some(Message::Txn(txn)) => Write::Txn {
                txn: wire::txn(&txn)
                    .ok_or_else(|| Status::invalid_argument("pleach: an operation is missing"))?,
                dead_leases,
            },
            Some(Message::DeleteLeased(lease)) => Write::DeleteLeased(lease as LeaseId),
            None => return Err(Status::invalid_argument("pleach: the write is missing")),
        };
        let written = self.node.apply(write).await.map_err(refused)?;
        let txn = Some(wire::txn_response(None, written.result));
        Ok(Response::new(pb::ApplyResponse { revision: written.revision, txn }))
    }

    async fn read(
        &self,
        request: Request<pb::ReadRequest>,
    ) -> Result<Response<pb::ReadResponse>, Status> {
        self.enter(&request).await?;
        let asked = request.into_inner();
        let read = Read {
            range: KeyRange::from_wire(asked.key, asked.range_end),
            revision: asked.revision,
            limit: usize::try_from(asked.limit).unwrap_or(usize::MAX),
            keys_only: asked.keys_only,
            lease: asked.lease,
        };
        let page = self.node.root().read(&read).await.map_err(refused)?;
        Ok(Response::new(pb::ReadResponse {
            kvs: wire::key_values(page.kvs),
            more: page.next.is_some(),
            next: page.next.unwrap_or_default(),
            revision: page.revision,
        }))
    }

    async fn count(
        &self,
        request: Request<pb::CountRequest>,
    ) -> Result<Response<pb::CountResponse>, Status> {
        self.enter(&request).await?;
        let pb::CountRequest { key, range_end, revision } = request.into_inner();
        let range = KeyRange::from_wire(key, range_end);
        let count = self.node.root().count(&range, revision).await.map_err(refused)?;
        Ok(Response::new(pb::CountResponse { count }))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactRequest>,
    ) -> Result<Response<pb::CompactResponse>, Status> {
        self.enter(&request).await?;
        let pb::CompactRequest { revision, wait } = request.into_inner();
        self.node.root().compact(revision, wait).await.map_err(refused)?;
        Ok(Response::new(pb::CompactResponse {}))
    }

    async fn follow(
        &self,
        request: Request<pb::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        self.enter(&request).await?;
        let pb::FollowRequest { after, ranges } = request.into_inner();
        // The parent takes all up to there as closed, also where this node does not know that it promised so.
        self.node.take_up(after).await.map_err(refused)?;
        let ranges = ranges.into_iter().map(|it| KeyRange::from_wire(it.key, it.range_end));
        let ranges: Vec<KeyRange> = ranges.collect();
        let root = self.node.root().clone();
        // Here and not in the log: a parent begins anew where it is refused, and not where a log breaks off.
        let oldest = root.compacted();
        if after + 1 < oldest {
            return Err(refused(StoreError::Compacted { compacted: oldest }));
        }
        // Behind the tail's beginning: what came late before is noted by now, the rest the tail tells.
        let log = root.tail(after);
        root.check_resumed(after).map_err(refused)?;
        let compacted = move || root.compacted();
        let log = log.map(move |batch| match batch {
            Ok(batch) => Ok(followed(&batch, &ranges, compacted())),
            Err(error) => Err(refused(error)),
        });
        // Another parent may take this one's place: then this one is to hear why it is not answered.
        let mut lanes = self.node.membership().watch_lanes();
        let parent = self.node.membership().parent();
        let stopping = self.stopping.clone();
        let ended = async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                _ = lanes.wait_for(|lanes| lanes.giver() != parent) => {}
            }
        };
        let log = log.take_until(Box::pin(ended));
        Ok(Response::new(Box::pin(log)))
    }
}

fn followed(batch: &Batch, ranges: &[KeyRange], compacted: Revision) -> pb::FollowResponse {
    let is_wanted = |event: &Event| {
        ranges.is_empty() || ranges.iter().any(|range| range.contains(&event.kv.key))
    };
    let wanted = |commits: &[Arc<Commit>]| -> Vec<pb::Commit> {
        let commits = commits.iter().filter(|commit| commit.events.iter().any(is_wanted));
        commits.map(|commit| wire::commit(commit, is_wanted)).collect()
    };
    pb::FollowResponse {
        commits: wanted(&batch.commits),
        closed: batch.closed,
        late: wanted(&batch.late.commits),
        late_after: batch.late.after,
        compacted,
    }
}

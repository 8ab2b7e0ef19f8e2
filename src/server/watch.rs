//! Watch: one stream, many watchers.

use futures::{Stream, StreamExt as _, stream};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{GRPC_OVERHEAD_BYTES, Services, status};
use crate::{
    proto::{etcdserverpb as pb, mvccpb},
    watch::{self, Create, Filters},
    wire,
};

/// Requests and responses of one stream that wait to be taken; a client that does not read fills
/// these, and then reads the log.
const STREAM_MESSAGES_MAX: usize = 4;

#[tonic::async_trait]
impl pb::watch_server::Watch for Services {
    type WatchStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (requests, asked) = mpsc::channel(STREAM_MESSAGES_MAX);
        let (answers, responses) = mpsc::channel(STREAM_MESSAGES_MAX);
        let every = self.node.options().progress_every;
        let served = watch::Stream::new(self.node.hub().clone(), answers, every).run(asked);
        tokio::spawn(served);
        tokio::spawn(read(request.into_inner(), requests, self.stopping.clone()));
        let face = self.clone();
        let responses = ReceiverStream::new(responses)
            .flat_map(move |response| stream::iter(face.responses(response)));
        // A watch that ends in any other way than UNAVAILABLE is dead to its client: so that it
        // resumes elsewhere, a node that stops ends its streams like this.
        let stopping = self.stopping.clone();
        let is_stopping = stopping.clone();
        let goodbye = stream::once(async move {
            is_stopping.is_cancelled().then(|| Err(status::status(status::STOPPED)))
        });
        let responses = responses
            .take_until(stopping.cancelled_owned())
            .chain(goodbye.filter_map(|goodbye| async { goodbye }));
        Ok(Response::new(Box::pin(responses)))
    }
}

/// Hands on what the client asks until it has gone, or the node stops: a request stream that is
/// still held keeps its connection open, and the node waits for that.
async fn read(
    mut stream: Streaming<pb::WatchRequest>,
    requests: mpsc::Sender<watch::Request>,
    stopping: CancellationToken,
) {
    use pb::watch_request::RequestUnion;
    loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = requests.closed() => return,
            () = stopping.cancelled() => return,
        };
        let request = match next {
            Some(Ok(request)) => request,
            Some(Err(_)) => return,
            // It has said all that it wants, and listens: as for etcd, its watches go on.
            None => {
                tokio::select! {
                    () = requests.closed() => return,
                    () = stopping.cancelled() => return,
                }
            }
        };
        let request = match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => watch::Request::Create(wanted(&create)),
            Some(RequestUnion::CancelRequest(cancel)) => watch::Request::Cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => watch::Request::Progress,
            None => continue,
        };
        if requests.send(request).await.is_err() {
            return;
        }
    }
}

fn wanted(create: &pb::WatchCreateRequest) -> Create {
    use pb::watch_create_request::FilterType;
    let has = |filter: FilterType| create.filters.contains(&(filter as i32));
    let key = watch::watched_key(create.key.clone());
    Create {
        watcher: create.watch_id,
        range: wire::range(&key, &create.range_end),
        start: create.start_revision,
        wants_progress: create.progress_notify,
        filters: Filters { no_put: has(FilterType::Noput), no_delete: has(FilterType::Nodelete) },
        prev_kv: create.prev_kv,
        fragment: create.fragment,
        selector: wire::selector(&create.label_selector, &create.field_selector),
    }
}

impl Services {
    fn responses(&self, response: watch::Response) -> Vec<Result<pb::WatchResponse, Status>> {
        use watch::Response as R;
        let one = match response {
            R::Created { watcher, revision } => pb::WatchResponse {
                header: self.header(revision),
                watch_id: watcher,
                created: true,
                ..Default::default()
            },
            R::Refused { revision, reason } => pb::WatchResponse {
                header: self.header(revision),
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: reason.into_owned(),
                ..Default::default()
            },
            R::Events { watcher, revision, events, fragment } => {
                let whole = pb::WatchResponse {
                    header: self.header(revision),
                    watch_id: watcher,
                    events: events.into_iter().map(wire::event).collect(),
                    ..Default::default()
                };
                if fragment {
                    let bytes_max = self.limits.request_bytes_max + GRPC_OVERHEAD_BYTES;
                    return fragments(whole, bytes_max).into_iter().map(Ok).collect();
                }
                whole
            }
            R::Progress { watcher, revision } => pb::WatchResponse {
                header: self.header(revision),
                watch_id: watcher.unwrap_or(-1),
                ..Default::default()
            },
            R::Canceled { watcher, revision } => pb::WatchResponse {
                header: self.header(revision),
                watch_id: watcher,
                canceled: true,
                ..Default::default()
            },
            R::Compacted { watcher, compacted } => pb::WatchResponse {
                header: self.header(0),
                watch_id: watcher,
                canceled: true,
                compact_revision: compacted,
                ..Default::default()
            },
            R::Failed(error) => {
                tracing::warn!(%error, "a watch stream failed");
                // Clients resume after UNAVAILABLE, and after nothing else.
                return vec![Err(Status::unavailable(format!("pleach: {error}")))];
            }
        };
        vec![Ok(one)]
    }
}

/// Cuts a response in pieces of at most `bytes_max`, with at least one event in each.
fn fragments(whole: pb::WatchResponse, bytes_max: usize) -> Vec<pb::WatchResponse> {
    if whole.encoded_len() < bytes_max || whole.events.len() < 2 {
        return vec![whole];
    }
    let frame = pb::WatchResponse { events: Vec::new(), ..whole.clone() };
    let mut pieces: Vec<pb::WatchResponse> = Vec::new();
    let mut bytes = 0;
    let mut events: Vec<mvccpb::Event> = Vec::new();
    for event in whole.events {
        // The tag and the length of an event take up to six bytes more.
        let size = event.encoded_len() + 6;
        if !events.is_empty() && bytes + size >= bytes_max {
            let events = std::mem::take(&mut events);
            pieces.push(pb::WatchResponse { events, fragment: true, ..frame.clone() });
            bytes = 0;
        }
        bytes += size;
        events.push(event);
    }
    pieces.push(pb::WatchResponse { events, ..frame });
    pieces
}

//! Tree: the verbs of a store for a parent, and what goes with each request.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request as HttpRequest, State},
    middleware::Next,
    response::Response as HttpResponse,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::join_all, stream};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, metadata::MetadataMap, transport::server::TcpConnectInfo};
use tracing::Instrument as _;

use super::{
    Services, calls::Calls, certificates::unix_time, check, failures, http, metrics::Process,
    patience, status, trace,
};
use crate::{
    clock::REVISION_MAX,
    model::{Commit, Event, KeyRange, Revision, StoreError, txn::Txn},
    node::{Fence, Node, kinds::Kinds},
    proto::{
        etcdserverpb,
        tree::{self as pb, tree_server::SERVICE_NAME},
    },
    route::{Explanation as Explained, rule::Reach},
    store::{Coverage, Described, LogBatch, Query, Store as _, explained::Explanation},
    tree::{
        call::{self, Call, printed},
        child::{AHEAD_MAX, LEAD_MAX, PROTOCOL},
        membership::JoinError,
        parent::{Caller, NotParent},
    },
    wire::{self, Member},
};

/// How long a node's children may take to say what lies below them, where nobody says.
const BELOW_TIME_MAX: Duration = Duration::from_secs(2);

/// How long keys are counted at most.
const COUNT_TIME_MAX: Duration = Duration::from_secs(15);

/// gRPC's own bound on what it writes a time with.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Metadata of a path, far beyond any tree's.
const PATH_BYTES_MAX: usize = 64 << 10;

/// Keeps what goes with a request for the task that serves it. A verb of the tree that is not the parent's
/// to ask is refused here, before anything of its body is read; and here it is logged what failed.
pub(super) async fn note_call(
    State((node, calls)): State<(Arc<Node>, Calls)>,
    request: HttpRequest,
    next: Next,
) -> HttpResponse {
    let counted = trace::is_call(&request).then(|| calls.begin(request.uri().path())).flatten();
    let (span, trace) = trace::begin(&node.membership().me().name, &request);
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let left = text("grpc-timeout").and_then(grpc_timeout);
    let deadline = left.and_then(|left| Instant::now().checked_add(left));
    let metadata = MetadataMap::from_headers(headers.clone());
    let path: Arc<[Member]> = path(&metadata).into();
    let uri = request.uri().clone();
    let client = client_of(&request);
    let verb = verb(&request);
    let is_tree = verb.is_some();
    let refused = verb.and_then(|verb| {
        let refused = admit(&node, verb, &caller(&path, &metadata)).err()?;
        Some(refusal(&node, &refused).into_http::<Body>())
    });
    let response = match refused {
        Some(refused) => refused,
        None => {
            let served = next.run(patience::in_time(request)).instrument(span.clone());
            Call { path, deadline, trace }.scope(served).await
        }
    };
    let response = match response.extensions().get::<Status>() {
        Some(status) => match beyond_all(status) {
            // A parent is to know that nothing was done.
            Some(_) if is_tree => {
                self::refused(StoreError::TooLarge(node.root().name().clone())).into_http()
            }
            Some((bytes, max)) => status::beyond_all(bytes, max).into_http(),
            None => {
                let method = uri.path().trim_start_matches('/');
                span.in_scope(|| failures::note(method, client, status));
                response
            }
        },
        None => http::name_unknown(uri.path(), response),
    };
    trace::follow(span, counted, response)
}

/// How large a message is that was not read since it is larger than any that is taken, and how large these
/// are; see [`tonic::codec`].
fn beyond_all(status: &Status) -> Option<(usize, usize)> {
    let is_it = status.code() == tonic::Code::OutOfRange;
    let said = status.message().strip_prefix("Error, decoded message length too large: found ");
    let (bytes, rest) = said.filter(|_| is_it)?.split_once(" bytes, the limit is: ")?;
    Some((bytes.parse().ok()?, rest.split(' ').next()?.parse().ok()?))
}

/// The bytes of what a client asked for: a write alone comes as a transaction of it.
fn asked_bytes(txn: &etcdserverpb::TxnRequest) -> usize {
    use etcdserverpb::request_op::Request::{RequestDeleteRange, RequestPut};
    match &txn.success[..] {
        [op] if txn.compare.is_empty() && txn.failure.is_empty() => match &op.request {
            Some(RequestPut(put)) => put.encoded_len(),
            Some(RequestDeleteRange(delete)) => delete.encoded_len(),
            _ => txn.encoded_len(),
        },
        _ => txn.encoded_len(),
    }
}

fn client_of(request: &HttpRequest) -> Option<SocketAddr> {
    request.extensions().get::<TcpConnectInfo>()?.remote_addr()
}

/// The verb of the tree that is asked for; `None` for all other requests.
fn verb(request: &HttpRequest) -> Option<&str> {
    request.uri().path().strip_prefix('/')?.strip_prefix(SERVICE_NAME)?.strip_prefix('/')
}

fn admit(node: &Node, verb: &str, caller: &Caller) -> Result<(), NotParent> {
    match verb {
        // What a node is, anybody may ask who may read its keys.
        "Describe" | "Explain" | "Prefixes" => Ok(()),
        "Join" => node.membership().admit(caller),
        _ => node.membership().check_parent(caller),
    }
}

fn refusal(node: &Node, refused: &NotParent) -> Status {
    let store = node.root().name().clone();
    self::refused(StoreError::Unavailable { store, reason: refused.to_string().into() })
}

/// Who asks, as the request says.
fn caller(path: &[Member], metadata: &MetadataMap) -> Caller {
    let bytes = |name: &str| {
        let value = metadata.get_bin(name).and_then(|value| value.to_bytes().ok());
        value.unwrap_or_default()
    };
    let process = metadata.get(call::PROCESS).and_then(|value| value.to_str().ok());
    Caller {
        member: path.last().cloned(),
        process: process.and_then(|it| u64::from_str_radix(it, 16).ok()).unwrap_or(0),
        credential: bytes(call::CREDENTIAL),
        secret: bytes(call::SECRET),
    }
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
    if digits.len() > TIMEOUT_DIGITS_MAX {
        return None;
    }
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
    let status = Status::from(error.clone());
    let message = status.message().to_owned();
    let mut status = Status::with_details(status.code(), message, Bytes::from(failure));
    status.set_source(Arc::new(error));
    status
}

impl Services {
    /// Lets a request in that is known to be the parent's, and moves up to where the parent is. One that
    /// has come through here before is refused.
    async fn enter<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if let Some(nodes) = self.loop_of(&Call::current()) {
            let reason = format!("the routes form a loop: {nodes}; take one of them out");
            return Err(self.unavailable(reason));
        }
        self.move_up(request).await
    }

    /// Moves up to where whoever asks is.
    async fn move_up<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.advance(self.told(request)?).await
    }

    /// Where whoever asks is, by what it says.
    fn told<T>(&self, request: &Request<T>) -> Result<Revision, Status> {
        let clock = request.metadata().get(call::CLOCK).and_then(|clock| clock.to_str().ok());
        self.believed(clock.and_then(|clock| clock.parse().ok()).unwrap_or(0))
    }

    /// Moves up to a revision of the parent's.
    async fn advance(&self, revision: Revision) -> Result<(), Status> {
        self.node.advance_to(self.believed(revision)?).await.map_err(refused)
    }

    /// Refuses what asks about revisions that neither this node nor its parent, as this request says, has
    /// reached.
    fn check_reached(&self, revision: Revision) -> Result<(), Status> {
        let current = self.node.membership().clock().now();
        if revision <= current {
            return Ok(());
        }
        Err(refused(StoreError::FutureRevision { current }))
    }

    /// A revision of the parent's; not where that leaps as no tree ever does.
    fn believed(&self, revision: Revision) -> Result<Revision, Status> {
        let now = self.node.membership().clock().now();
        // However many leaps there were, the node keeps room for itself.
        let far = now.saturating_add(LEAD_MAX).min(REVISION_MAX - LEAD_MAX);
        if revision > far {
            let reason = format!(
                "its parent says to be at revision {revision}, and this node is at {now}; a clock that was \
                 driven up is put right with `pleach repair clock`"
            );
            return Err(self.unavailable(reason));
        }
        Ok(revision)
    }

    fn fence<T>(&self, request: &Request<T>, ended: u64) -> Fence {
        let process = caller(&[], request.metadata()).process;
        Fence { process, ended }
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

    /// What this node is and what lies below it, as far as that is said in time. Children hear until when, and
    /// who is silent has that for its trouble and hides no other.
    pub(super) async fn described_within(&self, left: Duration) -> pb::Node {
        let deadline = Instant::now() + left;
        let call = Call { deadline: Some(deadline), ..Call::current() };
        let below = self.node.root().stores().map(|store| async move {
            timeout_at(deadline, store.describe()).await.unwrap_or_else(|_| {
                let (name, trouble) = (store.name().to_string(), "it does not answer".to_owned());
                vec![Described { name, trouble, ..Described::default() }]
            })
        });
        let below = call.scope(join_all(below)).await;
        self.described(below.concat(), None)
    }

    fn described(&self, mut routes: Vec<Described>, in_loop: Option<String>) -> pb::Node {
        let (root, membership) = (self.node.root(), self.node.membership());
        let lanes = membership.lanes();
        let (lanes_left, lanes_needed) = (lanes.left().into(), lanes.needed().into());
        let held = lanes.held;
        let below = routes.iter().filter_map(|route| Some(route.node.as_ref()?.r#loop.clone()));
        let in_loop = in_loop.or_else(|| below.into_iter().find(|it| !it.is_empty()));
        // What is closed first: all that lies in there is shown.
        let closed = root.announce_closed();
        let process = Process::current();
        let watchers = self.node.hub().watchers_by_store();
        for route in &mut routes {
            route.watchers = watchers.get(&*route.name).map_or(0, |count| *count as u64);
        }
        let (connections, connections_max) = self.places.taken();
        let now = unix_time();
        let certificates = self.certificates.validities().into_iter().map(|it| pb::Certificate {
            setting: it.file.setting,
            file: it.file.path.display().to_string(),
            subject: it.subject,
            ends_in_s: it.not_after - now.as_secs() as i64,
            lasts_s: it.not_after - it.not_before,
            is_authority: it.file.is_authority,
        });
        pb::Node {
            member: Some(wire::member(membership.me())),
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.node.revision(),
            closed,
            compacted: root.compacted(),
            lanes: held.iter().flat_map(|held| &held.blocks).copied().map(wire::lanes).collect(),
            giver: held.and_then(|held| held.giver).as_ref().map(wire::member),
            routes,
            r#loop: in_loop.unwrap_or_default(),
            process: membership.process(),
            lanes_left,
            lanes_needed,
            newest: Some(root.head()).filter(|head| head.is_exact).map_or(0, |head| head.newest),
            requests: Some(self.node.requests().activity()),
            watchers: self.node.hub().watchers() as u64,
            watchers_behind: self.node.hub().watchers_behind() as u64,
            leases: self.node.leases().len() as u64,
            alarms: self.node.alarms().iter().map(|it| it.kind.name().to_owned()).collect(),
            uptime_s: self.begun.elapsed().as_secs_f64(),
            memory_bytes: process.memory_bytes,
            cpu_s: process.cpu_s,
            open_files: process.open_files,
            open_files_max: process.open_files_max,
            time_ms: now.as_millis() as u64,
            certificates: certificates.collect(),
            quota_bytes: self.node.quota_bytes(),
            connections: connections as u64,
            connections_max: connections_max as u64,
        }
    }
}

#[tonic::async_trait]
impl pb::tree_server::Tree for Services {
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
        if self.node.membership().check_parent(&caller(&call.path, request.metadata())).is_ok() {
            self.move_up(&request).await?;
        }
        // Half of the time for what is below, so that this is an answer even where that is none.
        let left = call.deadline.map_or(BELOW_TIME_MAX, |deadline| {
            deadline.saturating_duration_since(Instant::now()) / 2
        });
        Ok(Response::new(self.described_within(left).await))
    }

    async fn explain(
        &self,
        request: Request<pb::ExplainRequest>,
    ) -> Result<Response<pb::ExplainResponse>, Status> {
        let (begun, asked) = (Instant::now(), request.into_inner());
        check::key(&asked.key)?;
        let selector = wire::selector(&asked.label_selector, &asked.field_selector);
        let explanation = Arc::<Explanation>::default();
        let read = Query {
            limit: usize::try_from(asked.limit).unwrap_or(usize::MAX),
            selector: selector.map_err(status::of_selector)?,
            explanation: Some(explanation.clone()),
            ..Query::new(
                KeyRange::from_wire(asked.key, asked.range_end),
                // As a client's Range has it: below 1 it is the present.
                asked.revision.max(0),
            )
        };
        // Anybody may ask, so as a client: nothing above what was shown, and no clock moves.
        let (revision, keys) = self.node.explain(&read).await.map_err(refused)?;
        let (seconds, stores) = (begun.elapsed().as_secs_f64(), explanation.stores());
        let routes = self.node.root().reaches(&read.range).into_iter();
        let routes = routes.map(|(Explained { route, rule }, reach)| pb::RouteReach {
            name: route.to_string(),
            rule: rule.map(ToString::to_string).unwrap_or_default(),
            reach: match reach {
                Reach::None => pb::Reach::None,
                Reach::Part => pb::Reach::Part,
                Reach::Whole => pb::Reach::Whole,
            }
            .into(),
        });
        let routes = routes.collect();
        Ok(Response::new(pb::ExplainResponse { revision, keys, seconds, stores, routes }))
    }

    async fn prefixes(
        &self,
        request: Request<pb::PrefixesRequest>,
    ) -> Result<Response<pb::PrefixesResponse>, Status> {
        let mut rates = Vec::new();
        for meters in self.node.root().meters() {
            let Some(requests) = &meters.requests else { continue };
            rates.extend(requests.prefixes.rates().into_iter().map(|rate| pb::PrefixRate {
                route: meters.name.to_string(),
                prefix: rate.prefix,
                reads_per_s: rate.reads,
                writes_per_s: rate.writes,
            }));
        }
        if !request.into_inner().counts {
            return Ok(Response::new(pb::PrefixesResponse { rates, ..Default::default() }));
        }
        // Half of the time, so that there is some for the rest, and an answer.
        let left = Call::current().deadline.map_or(COUNT_TIME_MAX, |deadline| {
            deadline.saturating_duration_since(Instant::now()) / 2
        });
        let deadline = Instant::now() + left.min(COUNT_TIME_MAX);
        let Kinds { kinds, others, is_cut_short } =
            self.node.count_kinds(deadline).await.map_err(refused)?;
        let counted = kinds.into_iter().map(|(prefix, kind)| pb::PrefixCount {
            prefix,
            keys: kind.keys,
            bytes_about: Some(kind.bytes_about),
        });
        let others = pb::PrefixCount { keys: others, ..Default::default() };
        let counts = counted.chain([others]).collect();
        Ok(Response::new(pb::PrefixesResponse { rates, counts, is_cut_short }))
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        let caller = caller(&Call::current().path, request.metadata());
        let membership = self.node.membership();
        // Again here, where it is acted upon: the lanes may have another holder by now.
        membership.admit(&caller).map_err(|refused| refusal(&self.node, &refused))?;
        if let Some(parent) = caller.member.as_ref()
            && (membership.has_child(parent.id) || self.node.root().leads_to(parent.id))
        {
            // A child that is away is not in what is described, so this is known here only.
            let nodes = printed([parent, membership.me(), parent]);
            let text = format!("pleach: the routes form a loop: {nodes}; take one of them out");
            return Err(Status::failed_precondition(text));
        }
        let lanes = wire::blocks_of(&request.get_ref().lanes);
        let lanes = lanes.ok_or_else(|| Status::invalid_argument("pleach: lanes are missing"))?;
        if request.get_ref().credential.is_empty() {
            return Err(Status::invalid_argument("pleach: the credential is missing"));
        }
        // The lanes are not allocated in below what the parent has reached.
        let revision = self.told(&request)?;
        let credential = request.into_inner().credential;
        let joined = self.node.clone().join(caller, lanes, credential, revision).await;
        joined.map_err(|error| match error {
            JoinError::NotParent(not) => refusal(&self.node, &not),
            JoinError::Lanes(error) => Status::failed_precondition(format!("pleach: {error}")),
            JoinError::Store(error) => refused(error),
        })?;
        Ok(Response::new(pb::JoinResponse { revision: membership.clock().now() }))
    }

    async fn advance_closed(
        &self,
        request: Request<pb::AdvanceClosedRequest>,
    ) -> Result<Response<pb::AdvanceClosedResponse>, Status> {
        self.enter(&request).await?;
        let pb::AdvanceClosedRequest { revision, ahead } = request.into_inner();
        self.advance(revision).await?;
        let ahead = ahead.clamp(0, AHEAD_MAX);
        let closed = self.node.root().advance_closed(revision, ahead).await.map_err(refused)?;
        Ok(Response::new(pb::AdvanceClosedResponse { closed }))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        self.enter(&request).await?;
        let pb::ReadIndexRequest { key, range_end, without_detached } = request.into_inner();
        let coverage = if without_detached { Coverage::Attached } else { Coverage::All };
        let range = KeyRange::from_wire(key, range_end);
        let revision = self.node.root().read_index(&range, coverage).await.map_err(refused)?;
        Ok(Response::new(pb::ReadIndexResponse { revision }))
    }

    async fn apply(
        &self,
        request: Request<pb::ApplyRequest>,
    ) -> Result<Response<pb::ApplyResponse>, Status> {
        self.enter(&request).await?;
        let fence = self.fence(&request, request.get_ref().leases_ended);
        let pb::ApplyRequest { txn, dead_leases, may_split, .. } = request.into_inner();
        let wrong = |error: wire::NoTxn| Status::invalid_argument(format!("pleach: {error}"));
        let txn = txn.ok_or(wire::NoTxn::Missing).map_err(wrong)?;
        // What a client may not ask for, nobody asks for in its name.
        check::txn(&txn, self.limits.txn_ops_max)?;
        if self.check_size(asked_bytes(&txn)).is_err() {
            return Err(refused(StoreError::TooLarge(self.node.root().name().clone())));
        }
        let txn = Txn { may_split, ..wire::txn(&txn).map_err(wrong)? };
        let written = self.node.apply_for_parent(txn, dead_leases, fence).await.map_err(refused)?;
        let txn = Some(wire::txn_response(None, written.result));
        Ok(Response::new(pb::ApplyResponse { revision: written.revision, txn }))
    }

    async fn end_lease(
        &self,
        request: Request<pb::EndLeaseRequest>,
    ) -> Result<Response<pb::EndLeaseResponse>, Status> {
        self.enter(&request).await?;
        let pb::EndLeaseRequest { lease, leases_ended } = *request.get_ref();
        if lease == 0 {
            return Err(Status::invalid_argument("pleach: the lease is missing"));
        }
        let fence = self.fence(&request, leases_ended);
        let ended = self.node.end_lease_for_parent(lease, fence).await;
        let ended = ended.map_err(refused)?;
        let revision = ended.unwrap_or_else(|| self.node.revision());
        Ok(Response::new(pb::EndLeaseResponse { revision, had_none: ended.is_none() }))
    }

    async fn leases(
        &self,
        request: Request<pb::LeasesRequest>,
    ) -> Result<Response<pb::LeasesResponse>, Status> {
        self.enter(&request).await?;
        let leases = self.node.foreign_leases().await.map_err(refused)?;
        Ok(Response::new(pb::LeasesResponse { leases: leases.into_iter().collect() }))
    }

    async fn read(
        &self,
        request: Request<pb::ReadRequest>,
    ) -> Result<Response<pb::ReadResponse>, Status> {
        self.enter(&request).await?;
        let asked = request.into_inner();
        self.check_reached(asked.revision)?;
        let selector = wire::selector(&asked.label_selector, &asked.field_selector);
        let read = Query {
            range: KeyRange::from_wire(asked.key, asked.range_end),
            revision: asked.revision,
            limit: usize::try_from(asked.limit).unwrap_or(usize::MAX),
            keys_only: asked.keys_only,
            lease: asked.lease,
            selector: selector.map_err(status::of_selector)?,
            explanation: asked.explain.then(Arc::default),
        };
        let page = self.node.root().read(&read).await.map_err(refused)?;
        Ok(Response::new(pb::ReadResponse {
            stores: read.explanation.map(|it| it.stores()).unwrap_or_default(),
            kvs: wire::key_values(page.kvs),
            more: page.next.is_some(),
            next: page.next.unwrap_or_default(),
            revision: page.revision,
            is_selected: read.selector.is_some(),
        }))
    }

    async fn count(
        &self,
        request: Request<pb::CountRequest>,
    ) -> Result<Response<pb::CountResponse>, Status> {
        self.enter(&request).await?;
        let asked = request.into_inner();
        self.check_reached(asked.revision)?;
        let selector = wire::selector(&asked.label_selector, &asked.field_selector);
        let query = Query {
            selector: selector.map_err(status::of_selector)?,
            ..Query::new(KeyRange::from_wire(asked.key, asked.range_end), asked.revision)
        };
        let count = self.node.root().count(&query).await.map_err(refused)?;
        Ok(Response::new(pb::CountResponse { count, is_selected: query.selector.is_some() }))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactRequest>,
    ) -> Result<Response<pb::CompactResponse>, Status> {
        self.enter(&request).await?;
        let pb::CompactRequest { revision, wait } = request.into_inner();
        self.check_reached(revision)?;
        self.node.check_intact().map_err(refused)?;
        self.node.root().compact(revision, wait).await.map_err(refused)?;
        Ok(Response::new(pb::CompactResponse {}))
    }

    async fn follow(
        &self,
        request: Request<pb::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        self.enter(&request).await?;
        let membership = self.node.membership().clone();
        let caller = caller(&Call::current().path, request.metadata());
        let opened = membership.open_log(&caller);
        let opened = opened.map_err(|refused| refusal(&self.node, &refused))?;
        let pb::FollowRequest { after, ranges } = request.into_inner();
        // The parent takes all up to there as closed, also where this node does not know that it promised so.
        self.advance(after).await?;
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
        root.check_resume(after).map_err(refused)?;
        let compacted = move || root.compacted();
        let wanted = membership.watch_wanted();
        let log = log.map(move |batch| match batch {
            Ok(batch) => {
                let lanes_wanted = (*wanted.borrow()).into();
                Ok(pb::FollowResponse { lanes_wanted, ..followed(&batch, &ranges, compacted()) })
            }
            Err(error) => Err(refused(error)),
        });
        // Another parent may take this one's place: then this one is to hear why it is not answered.
        let mut lanes = membership.watch_lanes();
        let parent = membership.parent();
        let stopping = self.stopping.clone();
        let ended = async move {
            let _opened = opened;
            tokio::select! {
                () = stopping.cancelled() => {}
                _ = lanes.wait_for(|lanes| lanes.giver() != parent) => {}
            }
        };
        let challenges = WatchStream::from_changes(membership.challenges());
        let challenges =
            challenges.map(|_| Ok(pb::FollowResponse { challenge: true, ..Default::default() }));
        let wants = WatchStream::from_changes(membership.watch_wanted()).map(|wanted| {
            Ok(pb::FollowResponse { lanes_wanted: wanted.into(), ..Default::default() })
        });
        let log = stream::select(log, stream::select(challenges, wants));
        let log = log.take_until(Box::pin(ended));
        Ok(Response::new(Box::pin(log)))
    }
}

fn followed(batch: &LogBatch, ranges: &[KeyRange], compacted: Revision) -> pb::FollowResponse {
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
        late: wanted(&batch.backfill.commits),
        late_after: batch.backfill.after,
        compacted,
        lanes_wanted: 0,
        challenge: false,
    }
}

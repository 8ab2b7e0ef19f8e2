//! An etcd as it is spoken to: one call at a time, each with a time limit, and what its errors mean.
//!
//! Several endpoints are one etcd: who answered last is asked next. Transactions that write, all other calls,
//! the live watch and replays have a connection each, since a stream that is not read holds up all that
//! shares its connection.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::stream;
use prost::Message as _;
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tracing::Instrument as _;

use super::thread::Thread;
use crate::{
    net::{
        address::Login,
        connect::{Address, connect, endpoint},
    },
    proto::etcdserverpb as pb,
    wire::trace,
};

use pb::{
    kv_server::SERVICE_NAME as KV, lease_server::SERVICE_NAME as LEASE,
    maintenance_server::SERVICE_NAME as MAINTENANCE, watch_server::SERVICE_NAME as WATCH,
};

/// A service and what it is asked for.
type Method = (&'static str, &'static str);

/// What a call may take, as long as etcd gives a request.
const CALL_TIME_MAX: Duration = Duration::from_secs(7);

/// What one of several members may take before another is asked.
const MEMBER_TIME_MAX: Duration = Duration::from_millis(2_500);

/// A connection on which something is under way, and that does not answer a ping in time, is dropped. An
/// etcd closes one on which it is pinged more often than every 5 s (its `--grpc-keepalive-min-time`), or while
/// nothing is under way; Go's clients never do it more often than this.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIME_MAX: Duration = Duration::from_secs(3);

/// Lists and replayed commits come in one message, however large.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// What an etcd is told that lacks what it had.
pub(super) const WENT_BACK: &str = "it went back in time: what it had acknowledged is gone, since it was \
     restored from a copy; make the right etcd answer at this address, or start this node anew";

/// Why an etcd did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum WireError {
    /// Whether it was done is not known: it did not answer, or not in time.
    #[error("{0}")]
    Lost(String),
    /// It was not done.
    #[error("{0}")]
    Failed(String),
    /// The revision is compacted.
    #[error("the etcd has compacted what is needed")]
    Compacted,
    /// The member has not reached the revision.
    #[error("{WENT_BACK}")]
    Future,
    /// The request is larger than what it takes.
    #[error("the request is larger than what the etcd takes (its --max-request-bytes)")]
    TooLarge,
    /// It has no room.
    #[error("the etcd has used up its quota (NOSPACE alarm)")]
    Full,
}

pub(super) type WireResult<T> = Result<T, WireError>;

/// An etcd.
#[derive(Debug)]
pub(super) struct Wire {
    /// The route's name.
    name: Arc<str>,
    members: Vec<Member>,
    /// Who is asked next.
    current: AtomicUsize,
    login: Option<Login>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
    /// The cluster that answered first; no other is listened to.
    cluster: OnceLock<u64>,
    thread: Thread,
}

#[derive(Debug)]
struct Member {
    calls: Channel,
    /// On the writer's thread.
    writes: Channel,
    live: Channel,
    replays: Channel,
}

/// Which connection a call takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    Call,
    Write,
    Live,
    Replay,
}

/// A watch that is open for as long as this is kept.
#[derive(Debug)]
pub(super) struct Watching {
    responses: Streaming<pb::WatchResponse>,
    _requests: mpsc::Sender<pb::WatchRequest>,
}

// === impl Wire ===

impl Wire {
    /// Reads the files that protect the connections. Connects with the first call.
    pub(super) fn new(name: &str, address: &Address, thread: Thread) -> Result<Self, String> {
        let members: Result<_, String> =
            address.urls.iter().map(|url| Member::new(url, address, &thread)).collect();
        Ok(Self {
            name: name.into(),
            members: members?,
            current: AtomicUsize::new(0),
            login: address.login.clone(),
            token: Mutex::new(None),
            cluster: OnceLock::new(),
            thread,
        })
    }

    /// The runtime of the writer's thread.
    pub(super) fn writer_runtime(&self) -> &Handle {
        self.thread.runtime()
    }

    /// The cluster that is spoken to; 0 before the first answer.
    pub(super) fn cluster(&self) -> u64 {
        self.cluster.get().copied().unwrap_or(0)
    }

    /// A transaction that changes nothing: asked again elsewhere where one member does not answer.
    pub(super) async fn read(&self, txn: &pb::TxnRequest) -> WireResult<pb::TxnResponse> {
        let deadline = Instant::now() + CALL_TIME_MAX;
        let mut tries = self.members.len();
        loop {
            let deadline_here = deadline.min(Instant::now() + self.member_time());
            match self.txn_until(Purpose::Call, txn, deadline_here).await {
                Err(WireError::Lost(_)) if tries > 0 && Instant::now() < deadline => tries -= 1,
                answer => return answer,
            }
        }
    }

    /// A transaction that may change something: asked once.
    pub(super) async fn write(&self, txn: &pb::TxnRequest) -> WireResult<pb::TxnResponse> {
        self.txn_until(Purpose::Write, txn, Instant::now() + CALL_TIME_MAX).await
    }

    async fn txn_until(
        &self,
        lane: Purpose,
        txn: &pb::TxnRequest,
        deadline: Instant,
    ) -> WireResult<pb::TxnResponse> {
        let call = |channel, request| async move {
            kv(channel).txn(request).await.map(Response::into_inner)
        };
        let answer = self.call_on(lane, (KV, "Txn"), txn.clone(), deadline, call).await?;
        self.check(answer.header.as_ref())?;
        Ok(answer)
    }

    /// One key range at one revision.
    pub(super) async fn range(&self, range: pb::RangeRequest) -> WireResult<pb::RangeResponse> {
        let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range)) };
        let txn = pb::TxnRequest { success: vec![op], ..pb::TxnRequest::default() };
        let answer = self.read(&txn).await?;
        let header = answer.header;
        let mut found = ranges(answer)?.into_iter().next().unwrap_or_default();
        found.header = header;
        Ok(found)
    }

    pub(super) async fn status(&self) -> WireResult<pb::StatusResponse> {
        let call = |channel, request| async move {
            let mut client = pb::maintenance_client::MaintenanceClient::new(channel);
            client.status(request).await.map(Response::into_inner)
        };
        let mut tries = self.members.len();
        loop {
            let deadline = Instant::now() + self.member_time();
            match self.call((MAINTENANCE, "Status"), pb::StatusRequest {}, deadline, call).await {
                Err(WireError::Lost(_)) if tries > 1 => tries -= 1,
                answer => {
                    let answer = answer?;
                    self.check(answer.header.as_ref())?;
                    return Ok(answer);
                }
            }
        }
    }

    pub(super) async fn compact(&self, revision: i64, physical: bool) -> WireResult<()> {
        let call = |channel, request| async move {
            kv(channel).compact(request).await.map(Response::into_inner)
        };
        let request = pb::CompactionRequest { revision, physical };
        self.call((KV, "Compact"), request, Instant::now() + CALL_TIME_MAX, call).await.map(drop)
    }

    pub(super) async fn grant_lease(&self, ttl: i64) -> WireResult<i64> {
        let call = |channel, request| async move {
            lease(channel).lease_grant(request).await.map(Response::into_inner)
        };
        let request = pb::LeaseGrantRequest { ttl, id: 0 };
        Ok(self
            .call((LEASE, "LeaseGrant"), request, Instant::now() + CALL_TIME_MAX, call)
            .await?
            .id)
    }

    pub(super) async fn revoke_lease(&self, id: i64) -> WireResult<()> {
        let call = |channel, request| async move {
            lease(channel).lease_revoke(request).await.map(Response::into_inner)
        };
        let request = pb::LeaseRevokeRequest { id };
        self.call((LEASE, "LeaseRevoke"), request, Instant::now() + MEMBER_TIME_MAX, call)
            .await
            .map(drop)
    }

    /// The seconds that a lease is given anew; 0 where it is gone.
    pub(super) async fn keep_lease(&self, id: i64) -> WireResult<i64> {
        let call = |channel, request: Request<pb::LeaseKeepAliveRequest>| async move {
            let (metadata, extensions, request) = request.into_parts();
            let request = stream::iter([request]);
            let request = Request::from_parts(metadata, extensions, request);
            let mut answers = lease(channel).lease_keep_alive(request).await?.into_inner();
            let answer = answers.message().await?;
            answer.ok_or_else(|| Status::unavailable("the stream ended"))
        };
        let request = pb::LeaseKeepAliveRequest { id };
        let deadline = Instant::now() + MEMBER_TIME_MAX;
        Ok(self.call((LEASE, "LeaseKeepAlive"), request, deadline, call).await?.ttl)
    }

    /// The seconds that a lease has left; below 1 where it is gone.
    pub(super) async fn lease_left(&self, id: i64) -> WireResult<i64> {
        let call = |channel, request| async move {
            lease(channel).lease_time_to_live(request).await.map(Response::into_inner)
        };
        let request = pb::LeaseTimeToLiveRequest { id, keys: false };
        Ok(self
            .call((LEASE, "LeaseTimeToLive"), request, Instant::now() + CALL_TIME_MAX, call)
            .await?
            .ttl)
    }

    /// Watches; returns when the watch was confirmed.
    pub(super) async fn watch(
        &self,
        lane: Purpose,
        create: pb::WatchCreateRequest,
    ) -> WireResult<Watching> {
        let deadline = Instant::now() + self.member_time();
        let call = |channel, request: Request<pb::WatchCreateRequest>| async move {
            let (metadata, extensions, create) = request.into_parts();
            let union = pb::watch_request::RequestUnion::CreateRequest(create);
            let (requests, outgoing) = mpsc::channel(1);
            let first = pb::WatchRequest { request_union: Some(union) };
            // There is room for one, and the receiver is here.
            let _ = requests.try_send(first);
            let outgoing = ReceiverStream::new(outgoing);
            let request = Request::from_parts(metadata, extensions, outgoing);
            let client = pb::watch_client::WatchClient::new(channel);
            let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
            let mut responses = client.watch(request).await?.into_inner();
            let created = responses.message().await?;
            let created = created.ok_or_else(|| Status::unavailable("the watch ended"))?;
            Ok((Watching { responses, _requests: requests }, created))
        };
        let (watching, created) =
            self.call_on(lane, (WATCH, "Watch"), create, deadline, call).await?;
        self.check(created.header.as_ref())?;
        if created.canceled {
            // What a stale token gets on a stream; the next attempt logs in anew.
            if created.cancel_reason.contains("permission denied")
                || created.cancel_reason.contains("auth token")
            {
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Err(WireError::Lost(created.cancel_reason));
            }
            return Err(WireError::Failed(created.cancel_reason));
        }
        Ok(watching)
    }

    fn member_time(&self) -> Duration {
        if self.members.len() == 1 { CALL_TIME_MAX } else { MEMBER_TIME_MAX }
    }

    /// Whoever answers must be the cluster that answered first.
    fn check(&self, header: Option<&pb::ResponseHeader>) -> WireResult<()> {
        let cluster = header.map_or(0, |header| header.cluster_id);
        let first = *self.cluster.get_or_init(|| cluster);
        if first == cluster {
            return Ok(());
        }
        Err(WireError::Failed(format!(
            "another etcd cluster answers at this address ({cluster:x}, and it was {first:x}): it \
             was made anew or restored from a snapshot; start this node anew to go on with it"
        )))
    }

    async fn call<Q, A, F>(
        &self,
        method: Method,
        request: Q,
        deadline: Instant,
        call: impl Fn(Channel, Request<Q>) -> F,
    ) -> WireResult<A>
    where
        Q: Clone,
        F: Future<Output = Result<A, Status>>,
    {
        self.call_on(Purpose::Call, method, request, deadline, call).await
    }

    /// One call, and one more where the token had run out.
    async fn call_on<Q, A, F>(
        &self,
        lane: Purpose,
        (service, method): Method,
        request: Q,
        deadline: Instant,
        call: impl Fn(Channel, Request<Q>) -> F,
    ) -> WireResult<A>
    where
        Q: Clone,
        F: Future<Output = Result<A, Status>>,
    {
        let mut has_logged_in = false;
        loop {
            let at = self.current.load(Ordering::Relaxed) % self.members.len();
            let member = &self.members[at];
            let (channel, is_watch) = match lane {
                Purpose::Call => (&member.calls, false),
                Purpose::Write => (&member.writes, false),
                Purpose::Live => (&member.live, true),
                Purpose::Replay => (&member.replays, true),
            };
            let mut wrapped = Request::new(request.clone());
            if is_watch {
                // A member that has lost its leader ends the watch, rather than say nothing.
                wrapped.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            }
            if self.login.is_some() {
                if self.token().is_none() {
                    self.log_in(&member.calls, deadline).await.inspect_err(|_| self.go_on(at))?;
                    has_logged_in = true;
                }
                if let Some(token) = self.token() {
                    wrapped.metadata_mut().insert("token", token);
                }
            }
            let span = trace::calling(&self.name, service, method);
            let told = span.in_scope(|| trace::Context::current_or(None));
            for (name, text) in told.iter().flat_map(trace::Context::headers) {
                wrapped.metadata_mut().as_mut().insert(name, text);
            }
            let answer = timeout_at(deadline, call(channel.clone(), wrapped));
            let status = match answer.instrument(span.clone()).await {
                Ok(Ok(answer)) => {
                    trace::note_code(&span, Code::Ok);
                    return Ok(answer);
                }
                Ok(Err(status)) => {
                    trace::note_code(&span, status.code());
                    status
                }
                Err(_) => {
                    trace::note_code(&span, Code::DeadlineExceeded);
                    self.go_on(at);
                    return Err(WireError::Lost("the etcd did not answer in time".to_owned()));
                }
            };
            if is_stale_token(&status) && self.login.is_some() && !has_logged_in {
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                continue;
            }
            let error = WireError::from(status);
            if matches!(error, WireError::Lost(_)) {
                self.go_on(at);
            }
            return Err(error);
        }
    }

    /// The next call goes to another member, unless one was chosen meanwhile.
    fn go_on(&self, from: usize) {
        let current = self.current.load(Ordering::Relaxed);
        if current % self.members.len() == from {
            let _ = self.current.compare_exchange(
                current,
                current.wrapping_add(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn log_in(&self, channel: &Channel, deadline: Instant) -> WireResult<()> {
        let Some(login) = &self.login else { return Ok(()) };
        let password = login.password.as_ref().map_or("", |password| password.expose());
        let (name, password) = (login.user.clone(), password.to_owned());
        let request = pb::AuthenticateRequest { name, password };
        let mut client = pb::auth_client::AuthClient::new(channel.clone());
        let answer = timeout_at(deadline, client.authenticate(request)).await;
        let lost = |_| WireError::Lost("the etcd did not answer in time".to_owned());
        let token = match answer.map_err(lost)? {
            Ok(answer) => answer.into_inner().token,
            // A login that nobody asks for does no harm.
            Err(status) if status.message().contains("authentication is not enabled") => {
                return Ok(());
            }
            Err(status) => return Err(status.into()),
        };
        let useless = |_| WireError::Failed("a token of no use".to_owned());
        let mut token: MetadataValue<Ascii> = token.parse().map_err(useless)?;
        token.set_sensitive(true);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }
}

fn kv(channel: Channel) -> pb::kv_client::KvClient<Channel> {
    pb::kv_client::KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn lease(channel: Channel) -> pb::lease_client::LeaseClient<Channel> {
    pb::lease_client::LeaseClient::new(channel)
}

fn is_stale_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated
        || status.message().contains("revision of auth store is old")
        // Asked without a token, since authentication was off when the last one was wanted.
        || status.message().contains("user name is empty")
}

/// The answers to the ranges of a transaction, in order, those of nested ones too.
pub(super) fn ranges(answer: pb::TxnResponse) -> WireResult<Vec<pb::RangeResponse>> {
    use pb::response_op::Response as Answer;
    let mut found = Vec::new();
    for response in answer.responses {
        match response.response {
            Some(Answer::ResponseRange(range)) => found.push(range),
            Some(Answer::ResponseTxn(nested)) => {
                let nested = pb::TxnResponse::decode(nested);
                let nested = nested.map_err(|error| WireError::Failed(error.to_string()))?;
                found.extend(ranges(nested)?);
            }
            _ => {}
        }
    }
    Ok(found)
}

// === impl Member ===

impl Member {
    fn new(url: &str, address: &Address, thread: &Thread) -> Result<Self, String> {
        let endpoint = endpoint(url, address)?
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIME_MAX);
        let connect = || connect(&endpoint);
        let writes = {
            let _inside = thread.runtime().enter();
            connect()
        };
        Ok(Self { calls: connect(), writes, live: connect(), replays: connect() })
    }
}

// === impl Watching ===

impl Watching {
    /// The next message. One that ends the watch is an error.
    pub(super) async fn next(&mut self) -> WireResult<pb::WatchResponse> {
        let message = self.responses.message().await.map_err(WireError::from)?;
        let message = message.ok_or_else(|| WireError::Lost("the watch ended".to_owned()))?;
        if message.compact_revision != 0 {
            return Err(WireError::Compacted);
        }
        if message.canceled {
            return Err(WireError::Failed(message.cancel_reason));
        }
        Ok(message)
    }

    /// The next message where one is due for certain.
    pub(super) async fn due(&mut self) -> WireResult<pb::WatchResponse> {
        let late = |_| WireError::Lost("the etcd did not go on with its history".to_owned());
        tokio::time::timeout(CALL_TIME_MAX, self.next()).await.map_err(late)?
    }

    /// The revision below which the etcd has nothing left, where a watch from the beginning is told.
    pub(super) async fn compacted(&mut self) -> WireResult<i64> {
        let message = self.responses.message().await.map_err(WireError::from)?;
        let message = message.ok_or_else(|| WireError::Lost("the watch ended".to_owned()))?;
        Ok(message.compact_revision)
    }
}

// === impl WireError ===

impl From<Status> for WireError {
    fn from(status: Status) -> Self {
        let message = status.message();
        let is = |text: &str| message.contains(text);
        match status.code() {
            Code::OutOfRange if is("has been compacted") => Self::Compacted,
            Code::OutOfRange if is("future revision") => Self::Future,
            Code::InvalidArgument if is("request is too large") => Self::TooLarge,
            Code::ResourceExhausted if is("larger than max") => Self::TooLarge,
            Code::ResourceExhausted if is("space exceeded") => Self::Full,
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::Unimplemented
            | Code::OutOfRange => Self::Failed(message.to_owned()),
            Code::ResourceExhausted if is("too many requests") => Self::Failed(message.to_owned()),
            _ => Self::Lost(describe(&status)),
        }
    }
}

/// What the transport says stands at the end of the chain of causes.
fn describe(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let innermost = cause.to_string();
    if std::ptr::addr_eq(cause, status) || innermost.is_empty() {
        return status.message().to_owned();
    }
    format!("{}: {innermost}", status.message())
}

//! A child as it is spoken to: one call at a time, each with what goes with it, and what errors mean.
//!
//! Calls, the log as it happens, and the log of the past have a connection each: a stream that is not
//! read holds up all that shares its connection.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, timeout_at};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{MetadataMap, MetadataValue},
    transport::Channel,
};
use tracing::Instrument as _;

use super::Answerer;
use crate::{
    model::StoreError,
    net::{
        connect::{Address, connect, endpoint},
        status,
    },
    proto::tree::{self as pb, tree_client::TreeClient, tree_server::SERVICE_NAME},
    tree::{
        call::{self, Call},
        membership::Membership,
    },
    wire::{self, trace},
};

/// What a call may take where its client does not say.
const CALL_TIME_MAX: Duration = Duration::from_secs(30);

/// What of a deadline is left to this node, to answer in time.
const MARGIN: Duration = Duration::from_millis(5);

/// A connection that does not answer a ping in time is dropped.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIME_MAX: Duration = Duration::from_millis(1_500);

/// Pages end after a megabyte and a row, but transactions may answer with much.
const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// The connections to a child.
#[derive(Clone, Debug)]
pub struct Connections {
    /// For calls.
    pub calls: Channel,
    /// For the log as it happens.
    pub live: Channel,
    /// For the log of the past.
    pub past: Channel,
}

/// A child, or whoever answers in its place.
#[derive(Debug)]
pub(super) struct Wire {
    /// The route's name.
    name: Arc<str>,
    membership: Arc<Membership>,
    connections: Connections,
    /// What is shown to the child that is attached, or that is to be.
    credential: Mutex<Bytes>,
}

/// Why a child did not do what it was asked.
#[derive(Debug)]
pub(super) enum WireError {
    /// It said why.
    Said(StoreError),
    /// It did not say whether it did.
    Lost(String),
    /// It does not know the call: it is no node, but most likely an etcd.
    Foreign,
}

pub(super) type WireResult<T> = Result<T, WireError>;

// === impl Connections ===

impl Connections {
    /// Reads the files that protect the connections. Connects with the first call.
    ///
    /// # Errors
    /// A sentence where a file or the address can't be used.
    pub fn new(url: &str, address: &Address) -> Result<Self, String> {
        let endpoint = endpoint(url, address)?
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIME_MAX)
            .keep_alive_while_idle(true);
        let connect = || connect(&endpoint);
        Ok(Self { calls: connect(), live: connect(), past: connect() })
    }
}

// === impl Wire ===

impl Wire {
    pub(super) fn new(
        name: Arc<str>,
        membership: Arc<Membership>,
        connections: Connections,
    ) -> Self {
        Self { name, membership, connections, credential: Mutex::default() }
    }

    /// Shows this from now on.
    pub(super) fn set_credential(&self, credential: Bytes) {
        *self.credential.lock().unwrap_or_else(PoisonError::into_inner) = credential;
    }

    pub(super) async fn describe(&self) -> WireResult<pb::Node> {
        let send = |mut child: TreeClient<_>, it| async move { child.describe(it).await };
        self.call("Describe", pb::DescribeRequest {}, send).await
    }

    /// Shows the child the secret that is to let this node in, where there is one.
    pub(super) async fn join(&self, it: pb::JoinRequest) -> WireResult<pb::JoinResponse> {
        let secret = self.membership.options().secret().map_err(WireError::Lost)?;
        let send = |mut child: TreeClient<_>, mut it: Request<_>| async move {
            if let Some(secret) = secret {
                it.metadata_mut().insert_bin(call::SECRET, MetadataValue::from_bytes(&secret));
            }
            child.join(it).await
        };
        self.call("Join", it, send).await
    }

    pub(super) async fn advance_closed(
        &self,
        it: pb::AdvanceClosedRequest,
    ) -> WireResult<pb::AdvanceClosedResponse> {
        self.call(
            "AdvanceClosed",
            it,
            |mut child, it| async move { child.advance_closed(it).await },
        )
        .await
    }

    pub(super) async fn read_index(
        &self,
        it: pb::ReadIndexRequest,
    ) -> WireResult<pb::ReadIndexResponse> {
        self.call("ReadIndex", it, |mut child, it| async move { child.read_index(it).await }).await
    }

    pub(super) async fn apply(&self, it: pb::ApplyRequest) -> WireResult<pb::ApplyResponse> {
        self.call("Apply", it, |mut child, it| async move { child.apply(it).await }).await
    }

    pub(super) async fn end_lease(
        &self,
        it: pb::EndLeaseRequest,
    ) -> WireResult<pb::EndLeaseResponse> {
        self.call("EndLease", it, |mut child, it| async move { child.end_lease(it).await }).await
    }

    pub(super) async fn leases(&self) -> WireResult<pb::LeasesResponse> {
        let send = |mut child: TreeClient<_>, it| async move { child.leases(it).await };
        self.call("Leases", pb::LeasesRequest {}, send).await
    }

    pub(super) async fn read(&self, it: pb::ReadRequest) -> WireResult<pb::ReadResponse> {
        self.call("Read", it, |mut child, it| async move { child.read(it).await }).await
    }

    pub(super) async fn count(&self, it: pb::CountRequest) -> WireResult<pb::CountResponse> {
        self.call("Count", it, |mut child, it| async move { child.count(it).await }).await
    }

    pub(super) async fn compact(&self, it: pb::CompactRequest) -> WireResult<pb::CompactResponse> {
        self.call("Compact", it, |mut child, it| async move { child.compact(it).await }).await
    }

    /// A log, over the connection for what happens, or for the past.
    pub(super) async fn follow(
        &self,
        request: pb::FollowRequest,
        is_live: bool,
    ) -> WireResult<Streaming<pb::FollowResponse>> {
        let connection = if is_live { &self.connections.live } else { &self.connections.past };
        let mut child = client(connection.clone());
        let mut request = Request::new(request);
        self.describe_call(request.metadata_mut(), Call::default());
        let asked = timeout_at(Instant::now() + CALL_TIME_MAX, child.follow(request)).await;
        let answered = asked.map_err(|_| self.silent())?;
        Ok(answered.map_err(|status| self.error(status))?.into_inner())
    }

    /// The next of a log. Where the child wants to know whether this node lives, it is told.
    pub(super) async fn next(
        &self,
        log: &mut Streaming<pb::FollowResponse>,
    ) -> WireResult<pb::FollowResponse> {
        loop {
            let next = log.message().await.map_err(|status| self.error(status))?;
            let next = next.ok_or_else(|| WireError::Lost("its log ended".to_owned()))?;
            if !next.challenge {
                return Ok(next);
            }
            // Any request shows it; where this one fails, the log will break off too.
            drop(self.describe().await);
        }
    }

    async fn call<T, R, F>(
        &self,
        method: &'static str,
        message: T,
        send: impl FnOnce(TreeClient<Channel>, Request<T>) -> F,
    ) -> WireResult<R>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let span = trace::calling(&self.name, SERVICE_NAME, method);
        let call = Call::current();
        let mut request = Request::new(message);
        let now = Instant::now();
        let until = call.deadline.map_or(now + CALL_TIME_MAX, |deadline| deadline - MARGIN);
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            return Err(self.silent());
        }
        request.set_timeout(left);
        span.in_scope(|| self.describe_call(request.metadata_mut(), call));
        let answered = timeout_at(until, send(client(self.connections.calls.clone()), request));
        let Ok(answered) = answered.instrument(span.clone()).await else {
            trace::note_code(&span, Code::DeadlineExceeded);
            return Err(self.silent());
        };
        trace::note_code(&span, answered.as_ref().map_or_else(Status::code, |_| Code::Ok));
        Ok(answered.map_err(|status| self.error(status))?.into_inner())
    }

    fn describe_call(&self, metadata: &mut MetadataMap, call: Call) {
        let membership = &self.membership;
        metadata.insert(call::CLOCK, membership.clock().shown().into());
        if let Ok(process) = format!("{:x}", membership.process()).parse() {
            metadata.insert(call::PROCESS, process);
        }
        let credential = self.credential.lock().unwrap_or_else(PoisonError::into_inner).clone();
        metadata.insert_bin(call::CREDENTIAL, MetadataValue::from_bytes(&credential));
        let nodes = call.path.iter().chain([membership.me()]).map(wire::member).collect();
        let path = pb::Path { nodes }.encode_to_vec();
        metadata.insert_bin(call::PATH, MetadataValue::from_bytes(&path));
        for (name, text) in
            trace::Context::current_or(call.trace).iter().flat_map(trace::Context::headers)
        {
            metadata.as_mut().insert(name, text);
        }
    }

    fn silent(&self) -> WireError {
        WireError::Lost("it did not answer in time".to_owned())
    }

    fn error(&self, status: Status) -> WireError {
        let failure = pb::Failure::decode(Bytes::copy_from_slice(status.details()));
        let known = failure.ok().and_then(|failure| wire::from_failure(&self.name, failure));
        if let Some(error) = known {
            return WireError::Said(error);
        }
        match status.code() {
            Code::Unimplemented => WireError::Foreign,
            // Refused by looking at the request alone.
            Code::InvalidArgument => WireError::Said(StoreError::Unavailable {
                store: self.name.clone(),
                reason: status::message(&status).into(),
            }),
            _ => WireError::Lost(status::message(&status)),
        }
    }
}

fn client(channel: Channel) -> TreeClient<Channel> {
    TreeClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Whether a node answers. What it is asked says nothing of who asks, so that it changes nothing.
pub(super) async fn answers(connections: &Connections) -> Result<Answerer, String> {
    match client(connections.calls.clone()).describe(pb::DescribeRequest {}).await {
        Ok(_) => Ok(Answerer::Node),
        Err(status) if status.code() == Code::Unimplemented => Ok(Answerer::Other),
        Err(status) => Err(status::message(&status)),
    }
}

// === impl WireError ===

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Said(error) => error.fmt(f),
            Self::Lost(reason) => f.write_str(reason),
            Self::Foreign => f.write_str("it is no node"),
        }
    }
}

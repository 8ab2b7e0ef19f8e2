//! What can be asked of a server and what it can answer, and one connection that asks.

use std::time::Duration;

use anyhow::{Context as _, Result};
use pleach::proto::etcdserverpb::{
    self as pb, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Long enough for a physical compaction on a busy machine, short enough to end a hung run.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

/// One call of etcd's API, watches excepted.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Range(pb::RangeRequest),
    RangeStream(pb::RangeRequest),
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    LeaseGrant(pb::LeaseGrantRequest),
    LeaseRevoke(pb::LeaseRevokeRequest),
    LeaseTimeToLive(pb::LeaseTimeToLiveRequest),
    LeaseLeases(pb::LeaseLeasesRequest),
    LeaseKeepAlive(pb::LeaseKeepAliveRequest),
    Alarm(pb::AlarmRequest),
    MemberList(pb::MemberListRequest),
    Status(pb::StatusRequest),
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Range(pb::RangeResponse),
    RangeStream(Vec<pb::RangeResponse>),
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    LeaseGrant(pb::LeaseGrantResponse),
    LeaseRevoke(pb::LeaseRevokeResponse),
    LeaseTimeToLive(pb::LeaseTimeToLiveResponse),
    LeaseLeases(pb::LeaseLeasesResponse),
    LeaseKeepAlive(Vec<pb::LeaseKeepAliveResponse>),
    Alarm(pb::AlarmResponse),
    MemberList(pb::MemberListResponse),
    Status(pb::StatusResponse),
    Refused { code: Code, message: String },
    Silence,
}

/// One HTTP/2 connection with all of etcd's services on it.
#[derive(Clone, Debug)]
pub struct Client {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    watch: WatchClient<Channel>,
}

// === impl Client ===

impl Client {
    pub async fn connect(url: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
        let size_max = usize::MAX;
        Ok(Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(size_max),
            lease: LeaseClient::new(channel.clone()).max_decoding_message_size(size_max),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            watch: WatchClient::new(channel).max_decoding_message_size(size_max),
        })
    }

    pub fn watch(&self) -> WatchClient<Channel> {
        self.watch.clone()
    }

    pub async fn ask(&mut self, request: &Request) -> Answer {
        tokio::time::timeout(ANSWER_WAIT_MAX, Box::pin(self.send(request.clone())))
            .await
            .unwrap_or(Answer::Silence)
    }

    async fn send(&mut self, request: Request) -> Answer {
        match request {
            Request::Range(r) => answer(self.kv.range(r).await, Answer::Range),
            Request::RangeStream(r) => self.range_stream(r).await.unwrap_or_else(refusal),
            Request::Put(r) => answer(self.kv.put(r).await, Answer::Put),
            Request::DeleteRange(r) => answer(self.kv.delete_range(r).await, Answer::DeleteRange),
            Request::Txn(r) => answer(self.kv.txn(r).await, Answer::Txn),
            Request::Compact(r) => answer(self.kv.compact(r).await, Answer::Compact),
            Request::LeaseGrant(r) => answer(self.lease.lease_grant(r).await, Answer::LeaseGrant),
            Request::LeaseRevoke(r) => {
                answer(self.lease.lease_revoke(r).await, Answer::LeaseRevoke)
            }
            Request::LeaseTimeToLive(r) => {
                answer(self.lease.lease_time_to_live(r).await, Answer::LeaseTimeToLive)
            }
            Request::LeaseLeases(r) => {
                answer(self.lease.lease_leases(r).await, Answer::LeaseLeases)
            }
            Request::LeaseKeepAlive(r) => self.keep_alive(r).await.unwrap_or_else(refusal),
            Request::Alarm(r) => answer(self.maintenance.alarm(r).await, Answer::Alarm),
            Request::MemberList(r) => answer(self.cluster.member_list(r).await, Answer::MemberList),
            Request::Status(r) => answer(self.maintenance.status(r).await, Answer::Status),
        }
    }

    async fn range_stream(&mut self, request: pb::RangeRequest) -> Result<Answer, Status> {
        let mut chunks: Streaming<_> = self.kv.range_stream(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            all.push(chunk.range_response.unwrap_or_default());
        }
        Ok(Answer::RangeStream(all))
    }

    async fn keep_alive(&mut self, request: pb::LeaseKeepAliveRequest) -> Result<Answer, Status> {
        let requests = tokio_stream::once(request);
        // The sending side is closed behind the request: the end of the stream is compared as well.
        let mut answers = self.lease.lease_keep_alive(requests).await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(answer);
        }
        Ok(Answer::LeaseKeepAlive(all))
    }
}

// === impl Answer ===

impl Answer {
    /// The header of the answer itself, not of what a transaction's answer holds.
    pub fn header(&self) -> Option<&pb::ResponseHeader> {
        match self {
            Self::Range(a) => a.header.as_ref(),
            Self::RangeStream(chunks) => chunks.last().and_then(|last| last.header.as_ref()),
            Self::Put(a) => a.header.as_ref(),
            Self::DeleteRange(a) => a.header.as_ref(),
            Self::Txn(a) => a.header.as_ref(),
            Self::Compact(a) => a.header.as_ref(),
            Self::LeaseGrant(a) => a.header.as_ref(),
            Self::LeaseRevoke(a) => a.header.as_ref(),
            Self::LeaseTimeToLive(a) => a.header.as_ref(),
            Self::LeaseLeases(a) => a.header.as_ref(),
            Self::LeaseKeepAlive(all) => all.first().and_then(|first| first.header.as_ref()),
            Self::Alarm(a) => a.header.as_ref(),
            Self::MemberList(a) => a.header.as_ref(),
            Self::Status(a) => a.header.as_ref(),
            Self::Refused { .. } | Self::Silence => None,
        }
    }
}

/// The revision that an answer's header has, for tests that cannot go on without one.
pub fn revision_of(answer: &Answer) -> Result<i64> {
    let header = answer.header().with_context(|| format!("no header in {answer:?}"))?;
    Ok(header.revision)
}

fn answer<T>(result: Result<Response<T>, Status>, wrap: impl FnOnce(T) -> Answer) -> Answer {
    result.map_or_else(refusal, |response| wrap(response.into_inner()))
}

fn refusal(status: Status) -> Answer {
    Answer::Refused { code: status.code(), message: status.message().to_owned() }
}

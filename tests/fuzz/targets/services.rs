//! Calls: whatever anybody sends to any method of any service, and whatever a parent that was let in sends,
//! nothing panics, nothing hangs, no clock is driven to its end, and the node goes on.
//!
//! The input is a list of calls, each a byte for the method, a byte of switches, eight bytes of a clock where the
//! switches say so, a byte for the length, and so many bytes of the message. They go through all that stands
//! before a service on a node's port.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use libfuzzer_sys::fuzz_target;
use pleach::{
    clock::{Clock, Entropy, Lane, REVISION_MAX, SharedClock},
    model::Revision,
    node::{Node, Options},
    proto::{
        self,
        etcdserverpb::PutRequest,
        tree::{JoinRequest, Lanes, Member, Path},
    },
    route::{Route, Router, rule::Rule},
    server::{Limits, Services},
    store::{memory::Memory, records::Records},
    tree::{membership::Membership, parent::TreeOptions},
};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    metadata::{MetadataMap, MetadataValue},
    service::Routes,
};
use tower::ServiceExt as _;

/// The calls of one input.
const CALLS_MAX: usize = 24;
/// The messages of an answer that are waited for.
const MESSAGES_MAX: usize = 8;
/// What no call may take, in the time of a clock that stands still while there is something to do.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Above this a node's clock has no room left for itself.
const DRIVEN_UP: Revision = REVISION_MAX - (1 << 49);

/// What waits for others as long as they like.
const WAITING: [&str; 4] = ["/Lock", "/Campaign", "/Observe", "/Leader"];

const IS_PARENT: u8 = 1;
const HAS_CLOCK: u8 = 2;
const HAS_PATH: u8 = 4;
const IS_COMPRESSED: u8 = 8;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().expect("a runtime takes only memory")
});

/// Every method of every service, as requests name it.
static METHODS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(proto::DESCRIPTORS).expect("the build wrote them");
    let others = [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ];
    let mut methods: Vec<String> = others.map(str::to_owned).to_vec();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                methods.push(format!("/{package}.{service}/{}", method.name()));
            }
        }
    }
    methods
});

fuzz_target!(|input: &[u8]| {
    RUNTIME.block_on(async {
        let face = Face::new().await;
        face.join().await;
        let mut rest = input;
        let mut may_be_deleted = false;
        for _ in 0..CALLS_MAX {
            let Some(call) = Call::take(&mut rest) else { break };
            may_be_deleted |= face.make(&call).await;
        }
        face.check_goes_on(may_be_deleted).await;
    });
});

/// One call of an input.
struct Call<'a> {
    method: &'static str,
    switches: u8,
    clock: i64,
    message: &'a [u8],
}

/// A node, from where its port's requests come in.
struct Face {
    node: std::sync::Arc<Node>,
    routes: Routes,
    /// What runs as long as a node does.
    _tasks: JoinSet<()>,
}

// === impl Call ===

impl<'a> Call<'a> {
    fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let (&method, left) = rest.split_first()?;
        let (&switches, mut left) = left.split_first()?;
        let mut clock = 0;
        if switches & HAS_CLOCK != 0 {
            let (number, behind) = left.split_first_chunk()?;
            (clock, left) = (i64::from_le_bytes(*number), behind);
        }
        let (&length, left) = left.split_first()?;
        let (message, left) = left.split_at_checked(length.into())?;
        *rest = left;
        let method = &METHODS[usize::from(method) % METHODS.len()];
        Some(Self { method, switches, clock, message })
    }

    fn has(&self, switch: u8) -> bool {
        self.switches & switch != 0
    }

    fn is_of_tree(&self) -> bool {
        self.method.starts_with("/pleach.tree.")
    }
}

// === impl Face ===

impl Face {
    /// A node in memory with a route, and a key without a lease.
    async fn new() -> Self {
        let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
        let main = Memory::new("main", clock.clone());
        let rule = Rule::prefix("/a").expect("the route is good");
        let store = Memory::new("a", clock.clone());
        let records = Records::open(main.clone()).await.expect("memory does not fail");
        let root = Router::new(vec![Route { rule, store, has_other_writers: true }], main);
        let options = Options {
            progress_every: Duration::from_secs(600),
            quota_bytes: 0,
            splits_deletes: false,
        };
        let tree = TreeOptions { is_local: true, ..TreeOptions::default() };
        let membership = Membership::load(records, clock, Entropy::seeded(1), "fuzz", tree).await;
        let membership = membership.expect("memory does not fail");
        let node = Node::start(root, membership, options, &[]).await.expect("memory does not fail");
        let limits =
            Limits { request_bytes_max: 3 << 19, txn_ops_max: 16, ready_requires_all: false };
        let stopping = CancellationToken::new();
        let services = Services::new(node.clone(), limits, "fuzz".to_owned(), Vec::new(), stopping);
        let mut tasks = JoinSet::new();
        tasks.spawn(node.clone().reserve_revisions());
        tasks.spawn(node.clone().expire_leases());
        let face = Self { node, routes: services.routes().await, _tasks: tasks };
        face.put("kept").await;
        face
    }

    /// Lets a parent in.
    async fn join(&self) {
        let lanes = vec![Lanes { first: 1, count: 16 }];
        let join = JoinRequest { lanes, credential: "agreed".into() }.encode_to_vec();
        let status = self.send("/pleach.tree.v1.Tree/Join", 0, IS_PARENT | HAS_PATH, &join).await;
        assert_eq!(status.as_deref(), Some("0"), "the parent is not let in");
    }

    async fn put(&self, key: &'static str) {
        let put = PutRequest { key: key.into(), value: "x".into(), ..PutRequest::default() };
        let status = self.send("/etcdserverpb.KV/Put", 0, 0, &put.encode_to_vec()).await;
        assert_eq!(status.as_deref(), Some("0"), "{key} is not put");
    }

    /// Makes a call. Says whether it may have deleted a key.
    async fn make(&self, call: &Call<'_>) -> bool {
        let before = self.node.revision();
        self.send(call.method, call.clock, call.switches, call.message).await;
        let after = self.node.revision();
        assert!(after < DRIVEN_UP, "{} drove the clock to {after}", call.method);
        let is_strange = call.is_of_tree() && !(call.has(IS_PARENT) && call.has(HAS_PATH));
        assert!(!is_strange || before == after, "{} moved the clock for a stranger", call.method);
        ["/DeleteRange", "/Txn", "/Apply"].iter().any(|verb| call.method.ends_with(verb))
    }

    /// Sends a message to a method; the status, where one came.
    async fn send(&self, method: &str, clock: i64, switches: u8, message: &[u8]) -> Option<String> {
        let is_compressed = switches & IS_COMPRESSED != 0;
        let packed = if is_compressed { zipped(message) } else { message.to_vec() };
        let mut body = BytesMut::new();
        body.put_u8(u8::from(is_compressed));
        body.put_u32(packed.len() as u32);
        body.put_slice(&packed);
        let mut metadata = MetadataMap::new();
        if switches & IS_PARENT != 0 {
            metadata.insert_bin("pleach-credential-bin", MetadataValue::from_bytes(b"agreed"));
            metadata.insert("pleach-process", MetadataValue::from_static("1"));
        }
        if switches & HAS_PATH != 0 {
            let nodes = vec![Member { id: 77, name: "root".to_owned() }];
            let path = MetadataValue::from_bytes(&Path { nodes }.encode_to_vec());
            metadata.insert_bin("pleach-path-bin", path);
        }
        metadata.insert("pleach-clock", clock.into());
        if is_compressed {
            metadata.insert("grpc-encoding", MetadataValue::from_static("gzip"));
        }
        let mut request = http::Request::builder()
            .method("POST")
            .uri(format!("http://fuzz{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body.freeze()))
            .expect("the method is a path");
        request.headers_mut().extend(metadata.into_headers());
        let answered = timeout(TIME_MAX, async {
            let answer = self.routes.clone().oneshot(request).await.expect("it never fails");
            let mut status = status_of(answer.headers());
            let mut body = answer.into_body();
            // What is said of a stream first; a watch has no end.
            for _ in 0..MESSAGES_MAX {
                let next = timeout(Duration::from_secs(1), body.frame()).await;
                let Ok(Some(Ok(frame))) = next else { break };
                status = frame.trailers_ref().and_then(status_of).or(status);
            }
            status
        });
        match answered.await {
            Ok(status) => status,
            Err(_) => {
                let waits = WAITING.iter().any(|waiting| method.ends_with(waiting));
                assert!(waits, "{method} does not answer");
                None
            }
        }
    }

    async fn check_goes_on(&self, may_be_deleted: bool) {
        for alarm in self.node.alarms() {
            self.node.disarm_alarm(alarm).await.expect("memory does not fail");
        }
        self.put("at the end").await;
        let kept = self.node.get(Bytes::from_static(b"kept")).await.expect("memory does not fail");
        assert!(may_be_deleted || kept.is_some(), "a key without a lease is gone");
    }
}

fn zipped(message: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(message).expect("memory takes it");
    packed.finish().expect("memory takes it")
}

fn status_of(headers: &http::HeaderMap) -> Option<String> {
    Some(headers.get("grpc-status")?.to_str().ok()?.to_owned())
}

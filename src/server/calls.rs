//! What is counted of the calls that clients make, under the names that gRPC's library for Go gave them.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tonic::Code;

use crate::{
    proto::{METHODS, Method},
    store::meter::Meter,
};

/// gRPC's codes, by their numbers, as its library for Go writes them in metrics.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The calls to a node's services. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Calls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    methods: HashMap<&'static str, usize>,
    meters: Vec<MethodMeter>,
    /// All that are no streams.
    unary: Arc<Meter>,
}

/// The calls of one method.
pub(super) struct MethodMeter {
    pub method: &'static Method,
    pub started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
    /// From their headers to the last of their answers.
    pub times: Meter,
}

/// A call that is under way. One that is dropped before it has ended was cancelled.
#[derive(Debug)]
pub(super) struct Running {
    calls: Arc<Inner>,
    at: usize,
    begun: Instant,
    has_ended: bool,
}

/// Whether a call that ended so failed through no fault of its client.
pub(super) fn is_failure(code: Code) -> bool {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    }
}

// === impl Calls ===

impl Calls {
    /// Counts calls by method; all that are no streams in `unary` besides.
    pub(super) fn new(unary: Arc<Meter>) -> Self {
        let methods = METHODS.iter().enumerate().map(|(at, method)| (method.path, at)).collect();
        let meters = METHODS.iter().map(MethodMeter::new).collect();
        Self(Arc::new(Inner { methods, meters, unary }))
    }

    /// Counts a call for `path`; what is no method of ours is not counted.
    pub(super) fn begin(&self, path: &str) -> Option<Running> {
        let at = *self.0.methods.get(path)?;
        self.0.meters[at].started.fetch_add(1, Ordering::Relaxed);
        Some(Running { calls: self.0.clone(), at, begun: Instant::now(), has_ended: false })
    }

    /// All methods, those too that nobody called.
    pub(super) fn methods(&self) -> &[MethodMeter] {
        &self.0.meters
    }
}

// === impl MethodMeter ===

impl MethodMeter {
    fn new(method: &'static Method) -> Self {
        let (started, times) = (AtomicU64::new(0), Meter::default());
        Self { method, started, handled: Default::default(), times }
    }

    /// How many calls ended with each code; all codes, so that a rate has the first of each, too.
    pub(super) fn handled(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.handled.iter().map(|count| count.load(Ordering::Relaxed));
        CODES.into_iter().zip(counts)
    }
}

impl fmt::Debug for MethodMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MethodMeter").field("method", self.method).finish_non_exhaustive()
    }
}

// === impl Running ===

impl Running {
    /// It has ended. What is said afterwards does not count.
    pub(super) fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let took = self.begun.elapsed();
        let meter = &self.calls.meters[self.at];
        meter.handled[code as usize].fetch_add(1, Ordering::Relaxed);
        meter.times.note(took, is_failure(code));
        if meter.method.kind == "unary" {
            self.calls.unary.note(took, is_failure(code));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_ends_once_with_its_code_or_was_cancelled() {
        let unary: Arc<Meter> = Arc::default();
        let calls = Calls::new(unary.clone());
        assert!(calls.begin("/no.such/Method").is_none());
        let path = "/etcdserverpb.KV/Range";
        let mut done = calls.begin(path).expect("etcd has it");
        done.end(Code::OutOfRange);
        done.end(Code::Ok);
        drop(done);
        drop(calls.begin(path));
        let range = calls.methods().iter().find(|it| it.method.path == path).expect("it is there");
        assert_eq!((range.method.kind, range.started.load(Ordering::Relaxed)), ("unary", 2));
        let handled: Vec<_> = range.handled().filter(|(_, count)| *count > 0).collect();
        assert_eq!(handled, [("Canceled", 1), ("OutOfRange", 1)]);
        assert_eq!(range.handled().count(), CODES.len());
        assert_eq!((unary.counts().total(), unary.counts().failed), (2, 0));
    }

    #[test]
    fn streams_are_told_apart_as_grpc_does() {
        let kind = |path: &str| METHODS.iter().find(|it| it.path == path).map(|it| it.kind);
        assert_eq!(kind("/etcdserverpb.Watch/Watch"), Some("bidi_stream"));
        assert_eq!(kind("/etcdserverpb.Maintenance/Snapshot"), Some("server_stream"));
        assert_eq!(kind("/etcdserverpb.KV/Txn"), Some("unary"));
    }
}

//! A call from its headers to the last of its answer: its span, and how it is counted.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    response::Response,
};
use http::{HeaderMap, Method, header::CONTENT_TYPE};
use hyper::body::{Frame, SizeHint};
use tonic::Code;
use tracing::{Span, field::Empty};

use super::calls::{Running, is_failure};
use crate::wire::trace;

/// Where gRPC says how a call ended.
const GRPC_STATUS: &str = "grpc-status";

/// An answer on its way, which its call lasts as long as.
struct Answer {
    body: Body,
    span: Span,
    call: Option<Running>,
}

/// Whether it is a call by gRPC, and not what a browser or a probe asks for.
pub(super) fn is_call(request: &Request) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    is_grpc && request.method() == Method::POST
}

/// Begins the trace of a call to `node`; without one, there is what to tell others of it.
pub(super) fn begin(node: &str, request: &Request) -> (Span, Option<trace::Context>) {
    let came = trace::Context::of(request.headers());
    let path = request.uri().path().trim_start_matches('/');
    let Some((service, method)) = path.split_once('/').filter(|_| is_call(request)) else {
        return (Span::none(), came);
    };
    trace::begin(came, || {
        tracing::info_span!(
            trace::SERVED,
            otel.name = path,
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = Empty,
            pleach.node = node,
        )
    })
}

/// Follows an answer to its end, where its call is traced or counted.
pub(super) fn follow(span: Span, call: Option<Running>, response: Response) -> Response {
    if span.is_none() && call.is_none() {
        return response;
    }
    let mut answer = Answer { body: Body::empty(), span, call };
    answer.note_status(response.headers());
    response.map(|body| Body::new(Answer { body, ..answer }))
}

// === impl Answer ===

impl Answer {
    /// Headers have the status of a call that failed at once, trailers that of any other.
    fn note_status(&mut self, headers: &HeaderMap) {
        let Some(code) = headers.get(GRPC_STATUS) else { return };
        let code = Code::from_bytes(code.as_bytes());
        if let Some(call) = &mut self.call {
            call.end(code);
        }
        self.span.record("rpc.grpc.status_code", code as i32);
        // What a client got wrong is no failure of the server.
        if is_failure(code) {
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let span = self.span.clone();
        let _in_span = span.enter();
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.note_status(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

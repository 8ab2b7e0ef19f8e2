//! The span of a call: from its headers to the last of its answer.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    response::Response,
};
use http::{HeaderMap, header::CONTENT_TYPE};
use hyper::body::{Frame, SizeHint};
use tonic::{Code, Status};
use tracing::{Span, field::Empty};

use crate::wire::trace;

/// An answer on its way, which its call's span lasts as long as.
struct Answer {
    body: Body,
    span: Span,
}

/// Begins the trace of a call to `node`; without one, there is what to tell others of it.
pub(super) fn begin(node: &str, request: &Request) -> (Span, Option<trace::Context>) {
    let came = trace::Context::of(request.headers());
    let kind = request.headers().get(CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let path = request.uri().path().trim_start_matches('/');
    let Some((service, method)) = path.split_once('/').filter(|_| is_grpc) else {
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

/// Follows an answer to its end, where its call is traced.
pub(super) fn follow(span: Span, response: Response) -> Response {
    if span.is_none() {
        return response;
    }
    note_status(&span, response.headers());
    response.map(|body| Body::new(Answer { body, span }))
}

/// Headers have the status of a call that failed at once, trailers that of any other.
fn note_status(span: &Span, headers: &HeaderMap) {
    let Some(status) = Status::from_header_map(headers) else { return };
    span.record("rpc.grpc.status_code", status.code() as i32);
    // What a client got wrong is no failure of the server.
    let is_failure = matches!(
        status.code(),
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    if is_failure {
        span.record("otel.status_code", "ERROR");
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, span } = &mut *self;
        let _in_span = span.enter();
        let polled = Pin::new(body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            note_status(span, trailers);
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

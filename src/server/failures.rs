//! What clients were refused, in the log: where it is handled, with method, client and route.

use std::net::SocketAddr;

use tonic::{Code, Status};

use super::calls;
use crate::{model::StoreError, net::status};

/// Logs that a request for `method` ended with `status`, unless the client got it wrong: that is its own affair.
pub(super) fn note(method: &str, client: Option<SocketAddr>, status: &Status) {
    if !calls::is_failure(status.code()) || status.code() == Code::Unimplemented {
        return;
    }
    let source = std::error::Error::source(status);
    let error = source.and_then(|source| source.downcast_ref::<StoreError>());
    let route = error.and_then(StoreError::route).map(|route| &**route);
    let client = client.map(tracing::field::display);
    let error = status::message(status);
    tracing::warn!(method, route, client, error, "a request failed");
}

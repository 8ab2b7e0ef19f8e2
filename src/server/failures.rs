//! What clients were refused, in the log: once, where it is handled, with method, client and route. What is
//! the same again, but for numbers in its text, is counted, and said with the next line.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::{Code, Status};

use crate::{model::StoreError, net::status};

/// How often one kind of failure is said at most.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// The kinds that are told apart. Methods, routes and reasons are few; of more than this nothing is said.
const KINDS_MAX: usize = 512;

/// So much of a text tells kinds apart.
const TEXT_CHARS_MAX: usize = 200;

/// The failures of a node's services. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures(Arc<Mutex<HashMap<Kind, Said>>>);

/// What is taken to be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    method: String,
    route: Option<Arc<str>>,
    code: i32,
    /// Without numbers: ports and revisions are others each time.
    text: String,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    /// How often it came since.
    since: u64,
}

// === impl Failures ===

impl Failures {
    /// Notes that a request for `method` ended with `status`.
    pub(super) fn note(&self, method: &str, client: Option<SocketAddr>, status: &Status) {
        let is_told = match status.code() {
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unknown
            | Code::DataLoss => true,
            // What a client got wrong is its own affair.
            _ => false,
        };
        if !is_told {
            return;
        }
        let source = std::error::Error::source(status);
        let error = source.and_then(|source| source.downcast_ref::<StoreError>());
        let route = error.and_then(StoreError::route).cloned();
        let error = status::message(status);
        let text = error.chars().filter(|c| !c.is_ascii_digit()).take(TEXT_CHARS_MAX).collect();
        let code = status.code().into();
        let kind = Kind { method: method.to_owned(), route: route.clone(), code, text };
        let Some(repeated) = self.is_due(kind, Instant::now()) else { return };
        let route = route.as_deref();
        tracing::warn!(
            method,
            route,
            client = client.map(tracing::field::display),
            repeated,
            error,
            "a request failed"
        );
    }

    /// How often a kind came since it was last said; `None` where it was said a moment ago.
    fn is_due(&self, kind: Kind, now: Instant) -> Option<u64> {
        // Nothing panics while it holds the lock.
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !said.contains_key(&kind);
        if is_new && said.len() >= KINDS_MAX {
            said.retain(|_, said| now - said.at < SAID_EVERY);
            if said.len() >= KINDS_MAX {
                return None;
            }
        }
        let known = said.entry(kind).or_insert(Said { at: now, since: 0 });
        if !is_new && now - known.at < SAID_EVERY {
            known.since += 1;
            return None;
        }
        let since = std::mem::take(&mut known.since);
        known.at = now;
        Some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(method: &str) -> Kind {
        Kind { method: method.to_owned(), route: None, code: 14, text: String::new() }
    }

    #[test]
    fn what_is_the_same_again_is_counted_and_said_later() {
        let failures = Failures::default();
        let start = Instant::now();
        assert_eq!(failures.is_due(kind("a"), start), Some(0));
        assert!((0..1_000).all(|_| failures.is_due(kind("a"), start).is_none()));
        assert_eq!(failures.is_due(kind("b"), start), Some(0), "another is said at once");
        assert_eq!(failures.is_due(kind("a"), start + SAID_EVERY), Some(1_000));
        assert_eq!(failures.is_due(kind("a"), start + SAID_EVERY), None);
    }

    #[test]
    fn kinds_without_end_take_no_memory_without_end() {
        let failures = Failures::default();
        let start = Instant::now();
        for at in 0..10 * KINDS_MAX {
            failures.is_due(kind(&at.to_string()), start);
        }
        assert_eq!(failures.0.lock().expect("nobody panicked").len(), KINDS_MAX);
        assert_eq!(failures.is_due(kind("new"), start + SAID_EVERY), Some(0));
    }
}

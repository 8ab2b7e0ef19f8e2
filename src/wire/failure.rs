//! A store's errors between nodes, none of whose kinds get lost.

use std::sync::Arc;

use crate::{
    model::StoreError,
    proto::tree::{Failure, failure::Kind},
};

/// An error as its node says it.
pub fn failure(error: &StoreError) -> Failure {
    let length = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
    let make = |kind: Kind, store: &str, text: &str, number: i64, max: i64| Failure {
        kind: kind as i32,
        store: store.to_owned(),
        text: text.to_owned(),
        number,
        max,
    };
    match error {
        StoreError::Compacted { compacted } => make(Kind::Compacted, "", "", *compacted, 0),
        StoreError::FutureRevision { current } => make(Kind::FutureRevision, "", "", *current, 0),
        StoreError::KeyNotFound => make(Kind::KeyNotFound, "", "", 0, 0),
        StoreError::LeaseNotFound(lease) => make(Kind::LeaseNotFound, "", "", *lease, 0),
        StoreError::KeyTooLong { store, bytes, max } => {
            make(Kind::KeyTooLong, store, "", length(*bytes), length(*max))
        }
        StoreError::KeyReserved { store, prefix } => make(Kind::KeyReserved, store, prefix, 0, 0),
        StoreError::TooLarge(store) => make(Kind::TooLarge, store, "", 0, 0),
        StoreError::NoSpace(reason) => make(Kind::NoSpace, "", reason, 0, 0),
        StoreError::Corrupt => make(Kind::Corrupt, "", "", 0, 0),
        StoreError::TwoStores { first, second } => make(Kind::TwoStores, first, second, 0, 0),
        StoreError::Unavailable { store, reason } => make(Kind::Unavailable, store, reason, 0, 0),
        StoreError::UnknownOutcome { store, reason } => {
            make(Kind::UnknownOutcome, store, reason, 0, 0)
        }
        StoreError::StaleLeases => make(Kind::StaleLeases, "", "", 0, 0),
        StoreError::Damaged { store, record, reason } => {
            make(Kind::Damaged, store, &format!("{record}: {reason}"), 0, 0)
        }
        StoreError::Fenced { store, owner } => make(Kind::Fenced, store, owner, 0, 0),
    }
}

/// The error of a child that is reached by `route`; `None` for a kind that is not known here.
pub fn from_failure(route: &str, failure: Failure) -> Option<StoreError> {
    let kind = failure.kind();
    let Failure { store, text, number, max, .. } = failure;
    let below = |store: &str| -> Arc<str> {
        if store.is_empty() { route.into() } else { format!("{route}/{store}").into() }
    };
    let length = |bytes: i64| usize::try_from(bytes).unwrap_or(0);
    let name = below(&store);
    Some(match kind {
        Kind::Unknown => return None,
        Kind::Compacted => StoreError::Compacted { compacted: number },
        Kind::FutureRevision => StoreError::FutureRevision { current: number },
        Kind::KeyNotFound => StoreError::KeyNotFound,
        Kind::LeaseNotFound => StoreError::LeaseNotFound(number),
        Kind::KeyTooLong => {
            StoreError::KeyTooLong { store: name, bytes: length(number), max: length(max) }
        }
        Kind::KeyReserved => StoreError::KeyReserved { store: name, prefix: text.into() },
        Kind::TooLarge => StoreError::TooLarge(name),
        Kind::Corrupt => StoreError::Corrupt,
        Kind::NoSpace => StoreError::NoSpace(format!("{route}: {text}").into()),
        Kind::TwoStores => StoreError::TwoStores { first: name, second: below(&text) },
        Kind::Unavailable => StoreError::Unavailable { store: name, reason: text.into() },
        Kind::UnknownOutcome => StoreError::UnknownOutcome { store: name, reason: text.into() },
        Kind::StaleLeases => StoreError::StaleLeases,
        Kind::Damaged => {
            let (record, reason) = text.split_once(": ").unwrap_or((&text, ""));
            StoreError::Damaged { store: name, record: record.into(), reason: reason.into() }
        }
        Kind::Fenced => StoreError::Fenced { store: name, owner: text.into() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_comes_through_with_the_route_before_its_store() {
        let pods: Arc<str> = "pods".into();
        let text: Arc<str> = "text".into();
        let errors = [
            StoreError::Compacted { compacted: 7 },
            StoreError::FutureRevision { current: 7 },
            StoreError::KeyNotFound,
            StoreError::LeaseNotFound(7),
            StoreError::KeyTooLong { store: pods.clone(), bytes: 7, max: 5 },
            StoreError::KeyReserved { store: pods.clone(), prefix: text.clone() },
            StoreError::TooLarge(pods.clone()),
            StoreError::NoSpace(text.clone()),
            StoreError::Corrupt,
            StoreError::TwoStores { first: pods.clone(), second: text.clone() },
            StoreError::Unavailable { store: pods.clone(), reason: text.clone() },
            StoreError::UnknownOutcome { store: pods.clone(), reason: text.clone() },
            StoreError::StaleLeases,
            StoreError::Damaged { store: pods.clone(), record: text.clone(), reason: text.clone() },
            StoreError::Fenced { store: pods, owner: text },
        ];
        for error in errors {
            let through = from_failure("", failure(&error)).expect("it is known");
            let there =
                error.to_string().replace("`pods`", "`/pods`").replace(": text", ": : text");
            let there = match &error {
                StoreError::NoSpace(_) => there,
                StoreError::TwoStores { .. } => there.replace("`text`", "`/text`"),
                _ => there.replace(": : text", ": text"),
            };
            assert_eq!(through.to_string(), there);
        }
    }
}

//! Everything in one namespace, whatever its kind.
//!
//! A key says where its namespace stands by its shape: `/registry/<resource>/<namespace>/<name>`,
//! one segment deeper for custom resources (`/registry/<group>/<plural>/<namespace>/<name>`, and a
//! group always has a dot) and for `services/specs` and `services/endpoints`. An object without a
//! namespace has no segment behind that place, so it never matches, and neither does the Namespace
//! object itself (`/registry/namespaces/<namespace>`). Kinds that Kubernetes has in no namespace are known, so
//! a list of nodes or namespaces waits for no namespace's store; of custom resources it is not known here, and
//! a list of one looks into each.

use super::{BASE, Reach, common_prefix, kinds::is_cluster_scoped};
use crate::model::key::{Key, KeyRange};

/// The two places below `/registry/services/`.
const SERVICES: [&str; 2] = ["specs", "endpoints"];

#[derive(Clone, Debug, PartialEq)]
pub(super) struct WholeNamespace {
    /// The namespace as it stands in keys, with the slash that follows it.
    segment: Vec<u8>,
}

/// What a key's first segments say of where its namespace stands.
enum Place<'k> {
    /// Behind this many bytes of the key, which end with a slash.
    Behind(usize),
    /// Below `/registry/services/`, in a place whose name begins so.
    Services(&'k [u8]),
    /// Not decided yet: the segments so far are only the beginning of one.
    Open,
    /// Nowhere: no key that begins so is in a namespace.
    Nowhere,
}

// === impl WholeNamespace ===

impl WholeNamespace {
    pub(super) fn new(namespace: &str) -> Self {
        Self { segment: format!("{namespace}/").into_bytes() }
    }

    pub(super) fn matches(&self, key: &[u8]) -> bool {
        match place(key) {
            Place::Behind(length) => key[length..].starts_with(&self.segment),
            _ => false,
        }
    }

    pub(super) fn reach(&self, range: &KeyRange) -> Reach {
        let prefix = common_prefix(range);
        if self.matches(prefix) {
            return Reach::Whole;
        }
        let heads = match place(prefix) {
            Place::Nowhere => return Reach::None,
            Place::Open => vec![BASE.as_bytes().to_vec()],
            Place::Behind(length) => vec![self.head(&prefix[..length])],
            Place::Services(begin) => self.heads_of_services(begin),
        };
        let is_possible = |head: Vec<u8>| KeyRange::prefix(Key::from(head)).overlaps(range);
        if heads.into_iter().any(is_possible) { Reach::Part } else { Reach::None }
    }

    fn head(&self, behind: &[u8]) -> Vec<u8> {
        [behind, &self.segment[..]].concat()
    }

    fn heads_of_services(&self, begin: &[u8]) -> Vec<Vec<u8>> {
        let places = SERVICES.iter().filter(|place| place.as_bytes().starts_with(begin));
        places.map(|place| self.head(format!("{BASE}services/{place}/").as_bytes())).collect()
    }
}

/// Reads the first segments of a key, or of the beginning of one.
fn place(key: &[u8]) -> Place<'_> {
    let Some(rest) = key.strip_prefix(BASE.as_bytes()) else {
        return if BASE.as_bytes().starts_with(key) { Place::Open } else { Place::Nowhere };
    };
    let Some((first, rest)) = split(rest) else {
        return Place::Open;
    };
    let behind_first = BASE.len() + first.len() + 1;
    if first.is_empty() {
        return Place::Nowhere;
    }
    if first != b"services" && !first.contains(&b'.') {
        return match is_cluster_scoped(first) {
            true => Place::Nowhere,
            false => Place::Behind(behind_first),
        };
    }
    match split(rest) {
        None if first == b"services" => Place::Services(rest),
        None => Place::Open,
        Some((second, _)) => {
            let is_known = SERVICES.iter().any(|place| place.as_bytes() == second);
            let path = [first, b"/", second].concat();
            match first == b"services" && !is_known || second.is_empty() || is_cluster_scoped(&path)
            {
                true => Place::Nowhere,
                false => Place::Behind(behind_first + second.len() + 1),
            }
        }
    }
}

/// The bytes before the first slash, and those behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = bytes.iter().position(|byte| *byte == b'/')?;
    Some((&bytes[..slash], &bytes[slash + 1..]))
}

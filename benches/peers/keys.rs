//! Names and values, as a cluster makes them: spread over namespaces, in no order.

use bytes::{Bytes, BytesMut};

/// Every written object has this size.
pub(crate) const VALUE_BYTES: usize = 1024;

/// Sets of keys that never meet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Set {
    Created {
        clients: usize,
    },
    Updated,
    Watched,
    Listed,
    Stored,
    /// Objects of Kubernetes, with labels.
    Selected,
    /// The same of another kind, which nobody selects.
    Objects,
    /// Keys of so many groups.
    Spread {
        groups: usize,
    },
}

/// A key and the mark that its values carry, by which a read of it is checked.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: Bytes,
    mark: u64,
    is_object: bool,
}

/// Which of the marks have the label `share=hundredth`.
pub(crate) const HUNDREDTH: fn(u64) -> bool = |mark| mark % 100 == 7;

/// Which have the label `half=yes`.
pub(crate) const HALF: fn(u64) -> bool = |mark| mark % 2 == 0;

// === impl Set ===

impl Set {
    /// All keys of a set begin with this.
    pub(crate) fn prefix(self) -> String {
        match self {
            Set::Created { clients } => format!("/registry/pods-{clients}/"),
            Set::Updated => "/registry/configmaps/".into(),
            Set::Watched => "/registry/leases/".into(),
            Set::Listed => "/registry/secrets/".into(),
            Set::Stored => "/registry/events/".into(),
            Set::Selected => "/registry/stable.example.com/shirts/".into(),
            Set::Objects => "/registry/stable.example.com/hats/".into(),
            Set::Spread { groups } => format!("/registry/spread-{groups}/"),
        }
    }

    /// All keys of one group begin with this.
    pub(crate) fn group(self, number: u64) -> String {
        format!("{}team-{number:02}/", self.prefix())
    }

    /// The key of a number. A bijection scatters names, so they are distinct and repeatable.
    pub(crate) fn key(self, number: u64) -> Key {
        let mark = scatter(number);
        let groups = if let Set::Spread { groups } = self { groups as u64 } else { 50 };
        let name = format!("{}object-{mark:016x}", self.group(mark % groups));
        let is_object = matches!(self, Set::Selected | Set::Objects);
        Key { name: name.into(), mark, is_object }
    }
}

// === impl Key ===

impl Key {
    pub(crate) fn value(&self) -> Bytes {
        if self.is_object {
            return self.object();
        }
        let mut value = BytesMut::zeroed(VALUE_BYTES);
        value[..8].copy_from_slice(&self.mark.to_be_bytes());
        value.freeze()
    }

    /// An object whose labels are its mark, which no other has, and shares of all; as large as every value.
    fn object(&self) -> Bytes {
        let Self { mark, .. } = self;
        let share = if HUNDREDTH(*mark) { "hundredth" } else { "rest" };
        let half = if HALF(*mark) { "yes" } else { "no" };
        let object = |filling: &str| {
            format!(
                r#"{{"apiVersion":"stable.example.com/v1","kind":"Shirt","metadata":{{"name":"object-{mark:016x}","labels":{{"name":"{mark:016x}","share":"{share}","half":"{half}"}}}},"spec":{{"color":"blue","filling":"{filling}"}}}}"#
            )
        };
        let left = VALUE_BYTES.saturating_sub(object("").len());
        object(&"x".repeat(left)).into()
    }

    pub(crate) fn owns(&self, value: &[u8]) -> bool {
        value.len() == VALUE_BYTES && value[..8] == self.mark.to_be_bytes()
    }
}

/// The end of the range of all keys with a prefix. Prefixes here end in `/`, so no carry is needed.
pub(crate) fn prefix_end(prefix: &str) -> Bytes {
    let mut end = BytesMut::from(prefix.as_bytes());
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.freeze()
}

/// The finisher of splitmix64: a bijection whose output looks random.
pub(crate) fn scatter(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

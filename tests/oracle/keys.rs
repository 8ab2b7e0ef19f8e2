//! The few keys that requests fall on, so that they collide, and ranges over them.

use bytes::Bytes;

use crate::{server::ROUTES, support::rng::Rng};

/// The keys of one store, and ranges that stay inside it.
#[derive(Clone, Debug)]
pub struct Group {
    pub keys: Vec<Bytes>,
    pub prefixes: Vec<Bytes>,
    /// Whether all keys between two of the group belong to it as well.
    is_contiguous: bool,
}

/// All keys, by the store that holds them. With one store there is one group.
#[derive(Clone, Debug)]
pub struct Keys {
    pub groups: Vec<Group>,
    /// Prefixes that span stores.
    spanning: Vec<Bytes>,
}

/// A range as requests write it: key and range end.
pub type WireRange = (Bytes, Bytes);

// === impl Keys ===

impl Keys {
    /// Keys that are hostile in every way a key can be: zero bytes, 0xff, no UTF-8, long, and
    /// prefixes and successors of one another.
    pub fn hostile() -> Self {
        let mut keys: Vec<Bytes> = [
            &b"\0"[..],
            b"\0\0",
            b"\0\xff",
            b"a",
            b"a\0",
            b"a\0\0",
            b"a/",
            b"a/1",
            b"a/10",
            b"a/2",
            b"a/\xff",
            b"a/\xff\xff",
            b"a/\xff\xff/x",
            b"a0",
            b"b",
            b"b/1",
            b"b/2",
            b"b/3",
            b"b/4",
            b"b/5",
            b"b/6",
            b"b/7",
            b"b/8",
            b"b/9",
            b"c/\xc3\x28",
            b"c/\x80",
            b"c/\x7f",
            b"c/\n",
            b"c/%2F",
            b"\xc3\xa4",
            b"z",
            b"\xfe",
            b"\xff",
            b"\xff\0",
            b"\xff\xff",
            b"\xff\xff\xff",
        ]
        .map(Bytes::from_static)
        .to_vec();
        keys.push(Bytes::from([&b"l/"[..], &[b'x'; 300]].concat()));
        keys.push(Bytes::from([&b"l/"[..], &[0xff; 1200]].concat()));
        let prefixes =
            [&b"a/"[..], b"a", b"b/", b"c/", b"l/", b"\0", b"\xff", b"\xff\xff", b"a/\xff"];
        Self::of_one_store(keys, prefixes.map(Bytes::from_static).to_vec())
    }

    /// Keys as an API server lays them out.
    pub fn kubernetes() -> Self {
        let mut keys = Vec::new();
        for kind in ["pods/default", "pods/kube-system", "leases/kube-node-lease", "events/a"] {
            keys.extend((0..9).map(|n| Bytes::from(format!("/registry/{kind}/n{n}"))));
        }
        keys.extend(["/registry/health", "/registry/pods", "compact_rev_key"].map(Bytes::from));
        let prefixes = [
            "/registry/pods/",
            "/registry/pods/default/",
            "/registry/leases/",
            "/registry/events/",
            "/registry/",
            "/registry/podtemplates/",
        ];
        Self::of_one_store(keys, prefixes.map(Bytes::from).to_vec())
    }

    /// Keys under each routed prefix, and some that no route takes. The last group is the
    /// default store's.
    pub fn routed() -> Self {
        let mut groups: Vec<Group> =
            ROUTES.iter().map(|(_, prefix)| Group::routed(prefix)).collect();
        let rest = [&b"\0"[..], b"/", b"z/1", b"z/2", b"z/\xff", b"\xc3\x28", b"\xff", b"z/3"];
        groups.push(Group {
            keys: rest.map(Bytes::from_static).to_vec(),
            prefixes: vec![Bytes::from_static(b"z/"), Bytes::from_static(b"\xff")],
            is_contiguous: false,
        });
        Self { groups, spanning: ["/", "/n/", "/n/m/"].map(Bytes::from).to_vec() }
    }

    fn of_one_store(keys: Vec<Bytes>, prefixes: Vec<Bytes>) -> Self {
        let groups = vec![Group { keys, prefixes, is_contiguous: true }];
        Self { groups, spanning: Vec::new() }
    }

    pub fn is_routed(&self) -> bool {
        self.groups.len() > 1
    }

    /// A key of the group, or of any.
    pub fn key(&self, group: Option<usize>, rng: &mut Rng) -> Bytes {
        let keys = &self.group(group, rng).keys;
        rng.pick(keys)
    }

    /// A range: single keys, prefixes, spans between two keys (half of them reversed), from one
    /// key on, everything. With a group of a routed tree: one that stays inside its store.
    pub fn range(&self, group: Option<usize>, rng: &mut Rng) -> WireRange {
        let is_bound = group.is_some() && self.is_routed();
        let chosen = self.group(group, rng);
        match rng.weighted(&[(38, 's'), (27, 'p'), (22, 'b'), (6, 'f'), (5, 'a'), (2, 'e')]) {
            'p' if !is_bound && self.is_routed() && rng.chance(50) => {
                prefix(rng.pick(&self.spanning))
            }
            'p' => prefix(rng.pick(&chosen.prefixes)),
            'b' if !is_bound => (self.key(None, rng), self.key(None, rng)),
            'b' if chosen.is_contiguous => (rng.pick(&chosen.keys), rng.pick(&chosen.keys)),
            'f' if !is_bound => (rng.pick(&chosen.keys), Bytes::from_static(b"\0")),
            'a' if !is_bound => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            'e' => {
                let key = rng.pick(&chosen.keys);
                // A zero byte as the end would mean all keys.
                let end = if key == "\0" { Bytes::new() } else { key.clone() };
                (key, end)
            }
            _ => (rng.pick(&chosen.keys), Bytes::new()),
        }
    }

    /// Two keys of two stores.
    pub fn keys_of_two_stores(&self, rng: &mut Rng) -> (Bytes, Bytes) {
        let first = rng.below(self.groups.len());
        let second = (first + 1 + rng.below(self.groups.len() - 1)) % self.groups.len();
        (self.key(Some(first), rng), self.key(Some(second), rng))
    }

    fn group(&self, group: Option<usize>, rng: &mut Rng) -> &Group {
        &self.groups[group.unwrap_or_else(|| rng.below(self.groups.len()))]
    }
}

// === impl Group ===

impl Group {
    fn routed(prefix: &str) -> Self {
        let mut keys: Vec<Bytes> = (1..=7).map(|n| Bytes::from(format!("{prefix}/{n}"))).collect();
        keys.push(Bytes::from([prefix.as_bytes(), b"/\xff\x00"].concat()));
        let prefixes = vec![Bytes::from(format!("{prefix}/"))];
        Self { keys, prefixes, is_contiguous: true }
    }
}

/// Written here a second time, so that the oracle shares no code with what it judges.
fn prefix(prefix: Bytes) -> WireRange {
    let Some(last) = prefix.iter().rposition(|byte| *byte != 0xff) else {
        return (prefix, Bytes::from_static(b"\0"));
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    (prefix, end.into())
}

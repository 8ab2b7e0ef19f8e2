//! Rules and keys: what a rule matches, how much of a range it says that it can own, and where a
//! router sends a key.
//!
//! The input is a list with semicolons between its entries: rules, in words like those of a topology file
//! (`prefix pods`, `namespace team-a pods leases`, `customresource a.example.com hats`,
//! `regexp ^/registry/`), and keys, which are all other entries.
#![no_main]

mod dice;

use std::ops::Range;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use pleach::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    model::{
        Key, KeyRange,
        key::{prefix_end, successor},
    },
    route::{
        Route, Router,
        rule::{BASE, Reach, Reason, Rule, RuleError, kinds::Kind},
    },
    store::memory::Memory,
};

use crate::dice::Dice;

/// Bounds on the work for one input: every rule is asked for the square of the keys.
const RULES_MAX: usize = 3;
const KEYS_MAX: usize = 3;
const KINDS_MAX: usize = 2;

/// Words that matter to rules, each with what stands behind it.
const WORDS: [&str; 12] = [
    "namespace ",
    "prefix ",
    "customresource ",
    "regexp ",
    "/registry/",
    "a.b/",
    "services/",
    "specs/",
    "endpoints/",
    "namespaces/",
    "apiregistration.k8s.io/apiservices/",
    "/",
];

/// Where the API server keeps what is in no namespace.
const OF_THE_CLUSTER: &str = "\
    apiextensions.k8s.io/customresourcedefinitions apiregistration.k8s.io/apiservices certificatesigningrequests \
    clusterrolebindings clusterroles clustertrustbundles csidrivers csinodes deviceclasses devicetaintrules flowschemas \
    health ingressclasses ipaddresses masterleases minions mutatingadmissionpolicies mutatingadmissionpolicybindings \
    mutatingwebhookconfigurations namespaces peerserverleases persistentvolumes priorityclasses \
    prioritylevelconfigurations ranges resourceslices runtimeclasses servicecidrs storageclasses storageversionmigrations \
    storageversions validatingadmissionpolicies validatingadmissionpolicybindings validatingwebhookconfigurations \
    volumeattachments volumeattributesclasses";

/// A rule as a user describes it.
enum Description<'i> {
    Prefix(&'i str),
    CustomResource(&'i str, Option<&'i str>),
    Namespace(&'i str, Vec<&'i str>),
    Regexp(&'i str),
}

/// What a rule is meant to match, said plainly and slowly.
enum Model {
    /// These paths and all below them. Those of a namespace are asked for, but never stored.
    Paths { paths: Vec<String>, are_keys: bool },
    /// All in this namespace.
    Namespace(String),
    /// Whatever an expression finds, of which nothing plainer can be said.
    Unknown,
}

/// A rule, and which of the keys it matches.
struct Sample {
    rule: Rule,
    model: Model,
    matches: Vec<bool>,
}

/// A range, and which of the keys are in it.
struct Asked {
    range: KeyRange,
    keys: Range<usize>,
}

fuzz_target!(|input: &[u8]| {
    let (mut rules, mut bounds) = (Vec::new(), Vec::new());
    for entry in input.split(|byte| *byte == b';') {
        match std::str::from_utf8(entry).ok().and_then(Description::parse) {
            Some(description) if rules.len() < RULES_MAX => rules.extend(description.rule()),
            Some(_) => {}
            None if bounds.len() < KEYS_MAX => bounds.push(Key::copy_from_slice(entry)),
            None => {}
        }
    }
    bounds.extend(rules.iter().flat_map(|(_, model)| model.turns()));
    let bounds = in_order(bounds);
    let keys = with_neighbours(&bounds);
    let asked = asked(&bounds, &keys);
    let sample = |(rule, model): (Rule, Model)| {
        let matches = keys.iter().map(|key| rule.matches(key)).collect();
        Sample { rule, model, matches }
    };
    let samples: Vec<Sample> = rules.into_iter().map(sample).collect();
    for sample in &samples {
        sample.check_matches(&keys);
        asked.iter().for_each(|asked| sample.check_reach(asked));
        samples.iter().for_each(|other| sample.check_cover(other, &keys));
    }
    check_router(&samples, &asked, &keys);
});

fuzz_mutator!(|input: &mut [u8], size: usize, size_max: usize, seed: u32| {
    let mut dice = Dice::new(seed);
    let changed = (dice.below(2) == 0).then(|| change(&input[..size], &mut dice));
    match changed.filter(|changed| changed.len() <= size_max) {
        Some(changed) => {
            input[..changed.len()].copy_from_slice(&changed);
            changed.len()
        }
        None => fuzzer_mutate(input, size, size_max),
    }
});

/// Adds, takes away or replaces a word.
fn change(input: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut words: Vec<&[u8]> = input.split_inclusive(|byte| b";/ ".contains(byte)).collect();
    let known = dice.below(WORDS.len() + words.len());
    let word = WORDS.get(known).map_or_else(|| words[known - WORDS.len()], |word| word.as_bytes());
    let at = dice.below(words.len() + 1);
    let replaced = at..words.len().min(at + dice.below(2));
    match dice.below(3) {
        0 => drop(words.splice(replaced, [])),
        _ => drop(words.splice(replaced, [word])),
    }
    words.concat()
}

fn in_order(mut keys: Vec<Key>) -> Vec<Key> {
    keys.sort();
    keys.dedup();
    keys
}

/// The keys, and those beside them where a mistake would hide.
fn with_neighbours(keys: &[Key]) -> Vec<Key> {
    let neighbours = |key: &Key| {
        let below = Key::from([key, &b"/x"[..]].concat());
        [Some(key.clone()), Some(successor(key)), Some(below), prefix_end(key)]
    };
    in_order(keys.iter().flat_map(neighbours).flatten().collect())
}

/// Every range that the bounds can make.
fn asked(bounds: &[Key], keys: &[Key]) -> Vec<Asked> {
    let mut ranges = vec![KeyRange::all()];
    for (at, start) in bounds.iter().enumerate() {
        ranges.push(KeyRange::single(start.clone()));
        ranges.push(KeyRange::prefix(start.clone()));
        ranges.push(KeyRange { start: start.clone(), end: None });
        let ends = bounds[at + 1..].iter();
        ranges.extend(ends.map(|end| KeyRange { start: start.clone(), end: Some(end.clone()) }));
    }
    let below = |bound: &Key| keys.partition_point(|key| key < bound);
    let asked = |range: KeyRange| {
        let keys = below(&range.start)..range.end.as_ref().map_or(keys.len(), below);
        Asked { range, keys }
    };
    ranges.into_iter().map(asked).collect()
}

fn check_router(samples: &[Sample], asked: &[Asked], keys: &[Key]) {
    let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
    let store = |at: usize| Memory::new(&at.to_string(), clock.clone());
    let route = |(at, sample): (usize, &Sample)| Route {
        rule: sample.rule.clone(),
        store: store(at),
        has_other_writers: false,
    };
    let routes = samples.iter().enumerate().map(route).collect();
    let router = Router::new(routes, store(samples.len()));
    let owner = |at: usize| samples.iter().position(|sample| sample.matches[at]);
    let owners: Vec<usize> = (0..keys.len()).map(|at| owner(at).unwrap_or(samples.len())).collect();
    for (key, owner) in keys.iter().zip(&owners) {
        assert_eq!(**router.explain(key).route, *owner.to_string(), "{key:?}");
    }
    for Asked { range, keys: inside } in asked {
        let names = router.names_for(range);
        let names: Vec<usize> = names.iter().filter_map(|name| name.parse().ok()).collect();
        for at in inside.clone() {
            let is_asked = names.contains(&owners[at]);
            assert!(is_asked, "{range:?}: {names:?}, but {:?} is in {}", keys[at], owners[at]);
        }
    }
}

// === impl Description ===

impl<'i> Description<'i> {
    fn parse(entry: &'i str) -> Option<Self> {
        let (word, rest) = entry.split_once(' ')?;
        let mut words = rest.split(' ');
        match word {
            "prefix" => Some(Self::Prefix(rest)),
            "customresource" => Some(Self::CustomResource(words.next()?, words.next())),
            "namespace" => Some(Self::Namespace(words.next()?, words.take(KINDS_MAX).collect())),
            "regexp" => Some(Self::Regexp(rest)),
            _ => None,
        }
    }

    fn rule(&self) -> Option<(Rule, Model)> {
        let rule = match self {
            Self::Prefix(prefix) => Rule::prefix(prefix),
            Self::CustomResource(group, kind) => Rule::custom_resource(group, *kind),
            Self::Namespace(namespace, kinds) => Rule::namespace(namespace, kinds),
            Self::Regexp(source) => Rule::regexp(None, Some(source)),
        };
        rule.inspect_err(|error| self.check_error(error)).ok().map(|rule| (rule, self.model()))
    }

    fn model(&self) -> Model {
        match self {
            Self::Prefix(prefix) => {
                let base = if prefix.starts_with('/') { "" } else { BASE };
                let path = format!("{base}{}", prefix.trim_end_matches('/'));
                Model::Paths { paths: vec![path], are_keys: true }
            }
            Self::CustomResource(group, None | Some("")) => {
                Model::Paths { paths: vec![format!("{BASE}{group}")], are_keys: true }
            }
            Self::CustomResource(group, Some(kind)) => {
                Model::Paths { paths: vec![format!("{BASE}{group}/{kind}")], are_keys: true }
            }
            Self::Namespace(namespace, kinds) if kinds.is_empty() => {
                Model::Namespace((*namespace).to_owned())
            }
            Self::Namespace(namespace, kinds) => {
                let path = |kind: &&str| format!("{BASE}{}/{namespace}", Kind::parse(kind).path());
                Model::Paths { paths: kinds.iter().map(path).collect(), are_keys: false }
            }
            Self::Regexp(_) => Model::Unknown,
        }
    }

    fn check_error(&self, error: &RuleError) {
        assert!(!error.to_string().is_empty());
        if let (Reason::Regex { offset, .. }, Self::Regexp(source)) = (&error.reason, self) {
            assert!(*offset <= source.chars().count(), "{error}: that is behind its end");
        }
    }
}

// === impl Model ===

impl Model {
    fn matches(&self, key: &[u8]) -> Option<bool> {
        let is_at_or_below = |path: &String| {
            key == path.as_bytes() || key.starts_with(format!("{path}/").as_bytes())
        };
        match self {
            Self::Paths { paths, .. } => Some(paths.iter().any(is_at_or_below)),
            Self::Namespace(namespace) => Some(namespace_of(key) == Some(namespace.as_bytes())),
            Self::Unknown => None,
        }
    }

    /// Keys at which, in the order of all keys, the rule begins or ceases to match. All of them
    /// for paths, some in a namespace.
    fn turns(&self) -> Vec<Key> {
        let turns = |path: &String| ["", "\0", "/", "0"].map(|end| format!("{path}{end}").into());
        match self {
            Self::Paths { paths, .. } => paths.iter().flat_map(turns).collect(),
            Self::Namespace(namespace) => ["pods", "a.b/c", "services/specs", "services/endpoints"]
                .map(|place| format!("{BASE}{place}/{namespace}/").into())
                .to_vec(),
            Self::Unknown => Vec::new(),
        }
    }

    fn is_never_stored(&self, key: &Key) -> bool {
        matches!(self, Self::Paths { paths, are_keys: false } if paths.iter().any(|p| p == key))
    }
}

fn is_of_the_cluster(path: &[u8]) -> bool {
    OF_THE_CLUSTER.split_whitespace().any(|it| it.as_bytes() == path)
}

/// The namespace of the object that a key of Kubernetes stands for.
fn namespace_of(key: &[u8]) -> Option<&[u8]> {
    let segments: Vec<&[u8]> = key.split(|byte| *byte == b'/').collect();
    let [b"", b"registry", path @ ..] = &segments[..] else { return None };
    match path {
        [b"services", b"specs" | b"endpoints", namespace, _, ..] => Some(namespace),
        [b"services", ..] => None,
        [group, kind, rest @ ..] if group.contains(&b'.') => match rest {
            [namespace, _, ..] if !kind.is_empty() => {
                (!is_of_the_cluster(&[group, &b"/"[..], kind].concat())).then_some(namespace)
            }
            _ => None,
        },
        [kind, namespace, _, ..] if !kind.is_empty() && !is_of_the_cluster(kind) => Some(namespace),
        _ => None,
    }
}

// === impl Sample ===

impl Sample {
    fn check_matches(&self, keys: &[Key]) {
        for (key, matches) in keys.iter().zip(&self.matches) {
            let meant = self.model.matches(key);
            assert!(meant.is_none_or(|meant| meant == *matches), "{}: {key:?}", self.rule);
        }
    }

    fn check_reach(&self, asked: &Asked) {
        let reach = self.rule.reach(&asked.range);
        let matches = &self.matches[asked.keys.clone()];
        let (some, all) = (matches.contains(&true), !matches.contains(&false));
        let is_right = match reach {
            Reach::None => !some,
            Reach::Whole => all,
            // Rules of paths answer exactly; all that bounds their keys is among the keys.
            Reach::Part => !matches!(self.model, Model::Paths { .. }) || some && !all,
        };
        assert!(is_right, "{} owns {reach:?} of {:?}", self.rule, asked.range);
    }

    fn check_cover(&self, other: &Self, keys: &[Key]) {
        if !self.rule.covers(&other.rule) {
            return;
        }
        for (at, key) in keys.iter().enumerate() {
            let is_covered = self.matches[at] || !other.matches[at];
            let is_right = is_covered || other.model.is_never_stored(key);
            assert!(is_right, "{} does not cover {}: {key:?}", self.rule, other.rule);
        }
    }
}

//! Routing rules: which keys a route owns, and how much of a range it can own.
//!
//! [`Rule::matches`] decides for one key. [`Rule::reach`] prunes: a range is asked only of the
//! stores whose rule can match in it. It guarantees that [`Reach::None`] is said only where no key
//! of the range can match and [`Reach::Whole`] only where every possible key does; what cannot be
//! decided is [`Reach::Part`]. Rules that are key ranges answer exactly.
//!
//! Rules are values. They never do I/O, never know of stores, and never depend on each other: that
//! the first match wins is the router's business.

use std::fmt;

use crate::model::key::{Key, KeyRange};

pub mod kinds;
mod namespace;
mod paths;
mod pattern;
#[cfg(test)]
mod tests;

use self::{
    kinds::{Kind, Scope},
    namespace::WholeNamespace,
    paths::Paths,
    pattern::Pattern,
};

/// Where Kubernetes keeps its keys. Relative prefixes in rules stand below it.
pub const BASE: &str = "/registry/";

/// How much of a range a rule can own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// No key of the range can match.
    None,
    /// Some keys of the range may match.
    Part,
    /// Every possible key of the range matches.
    Whole,
}

/// How much of what is left of `range` each rule can own, in order, to the first that owns all of it.
pub fn reaches<'r>(rules: impl IntoIterator<Item = &'r Rule>, range: &KeyRange) -> Vec<Reach> {
    let mut found = Vec::new();
    for rule in rules {
        found.push(rule.reach(range));
        if found.last() == Some(&Reach::Whole) {
            break;
        }
    }
    found
}

/// Decides which keys belong to a route.
///
/// `Display` explains the rule in one phrase. Two rules are equal where they match the same keys
/// for the same reason; equal rules are never told apart by their wording in a file.
#[derive(Clone, Debug)]
pub struct Rule {
    form: Form,
    phrase: String,
    doubts: Vec<Doubt>,
}

#[derive(Clone, Debug, PartialEq)]
enum Form {
    Paths(Paths),
    Namespace(WholeNamespace),
    Pattern(Pattern),
}

/// The part of a rule's description that an error or a doubt is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `prefix` of a prefix or regexp rule.
    Prefix,
    /// `key` of a regexp rule.
    Key,
    /// `group` of a customresource rule.
    Group,
    /// `kind` of a customresource rule.
    Kind,
    /// `namespace` of a namespace rule.
    Namespace,
    /// The entry of `kinds` with this index.
    Kinds(usize),
}

/// A rule that would run, but most likely not as it was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// What the doubt is about.
    pub part: Part,
    /// Why, in one phrase.
    pub reason: String,
}

/// Why no rule can be made of a description.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RuleError {
    /// What is wrong.
    pub part: Part,
    /// Why it is wrong.
    pub reason: Reason,
}

/// The reasons of a [`RuleError`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Nothing, or nothing but slashes, where a name is needed.
    #[error("must not be empty")]
    Empty,
    /// The text is no name that Kubernetes could have put into a key.
    #[error("must be one name of letters, digits, `-`, `_` and `.`")]
    NotAName,
    /// No namespace can be called so, and no key would ever match.
    #[error(
        "can be no namespace's name; expected lower-case letters, digits and `-` inside, 63 at most"
    )]
    NotANamespace,
    /// A group that no custom resource can have.
    #[error("can be no group; expected one in lower case, as `stable.example.com`")]
    NotAGroup,
    /// A kind as manifests write it, where its keys have the plural.
    #[error("`{given}` can be no plural; expected the plural in lower case, as `{plural}`")]
    NotAPlural {
        /// What is there.
        given: String,
        /// What the plural most likely is.
        plural: String,
    },
    /// A kind without namespaces in a namespace rule.
    #[error("`{kind}` belong to no namespace; use a prefix rule for `{path}`")]
    ClusterScoped {
        /// The kind's plural.
        kind: String,
        /// Where its keys are, relative to [`BASE`].
        path: String,
    },
    /// Built-in kinds and custom resources in one namespace rule.
    #[error("`{custom}` is a custom resource and `{builtin}` is built in; give each a rule")]
    Mixed {
        /// The first built-in kind of the rule.
        builtin: String,
        /// The first custom resource of the rule.
        custom: String,
    },
    /// A regular expression that does not parse.
    #[error("bad regular expression: {problem} (at character {})", .offset + 1)]
    Regex {
        /// What the expression's parser says.
        problem: String,
        /// The character, from 0, at which it says so.
        offset: usize,
    },
    /// A regular expression that would take too much memory.
    #[error("the regular expression is too big")]
    RegexSize,
    /// Neither `prefix` nor `key` in a regexp rule.
    #[error("a regexp rule needs `key` or `prefix`")]
    NoRegex,
}

// === impl Rule ===

impl Rule {
    /// The path `prefix` and everything below it. One that starts with a slash is absolute, any
    /// other stands below [`BASE`].
    pub fn prefix(prefix: &str) -> Result<Self, RuleError> {
        let trimmed = prefix.trim_end_matches('/');
        if trimmed.is_empty() {
            return Err(Part::Prefix.wrong(Reason::Empty));
        }
        let path = match trimmed.starts_with('/') {
            true => trimmed.to_owned(),
            false => format!("{BASE}{trimmed}"),
        };
        let mut doubts = Vec::new();
        if path.starts_with("/registry/registry/") {
            let reason = format!("the keys meant are `{path}`; relative prefixes omit `registry/`");
            doubts.push(Doubt { part: Part::Prefix, reason });
        } else if let Some(meant) = kinds::misplaced(&path) {
            let reason = format!("Kubernetes keeps these objects under `{meant}`");
            doubts.push(Doubt { part: Part::Prefix, reason });
        }
        let phrase = format!("`{path}` and below");
        Ok(Self { form: Form::Paths(Paths::new(vec![path], true)), phrase, doubts })
    }

    /// The custom resources of `group`: one plural, or all of them.
    pub fn custom_resource(group: &str, kind: Option<&str>) -> Result<Self, RuleError> {
        name(Part::Group, group)?;
        if has_upper_case(group) {
            return Err(Part::Group.wrong(Reason::NotAGroup));
        }
        let kind = kind.filter(|kind| !kind.is_empty());
        let mut doubts = Vec::new();
        if kinds::is_builtin_group(group) {
            let reason = format!("`{group}` is built in; its objects need a prefix rule each");
            doubts.push(Doubt { part: Part::Group, reason });
        }
        let (path, phrase) = match kind {
            Some(kind) => {
                name(Part::Kind, kind)?;
                check_plural(Part::Kind, kind)?;
                (format!("{BASE}{group}/{kind}"), format!("custom resources {kind}.{group}"))
            }
            None => (format!("{BASE}{group}"), format!("custom resources of group {group}")),
        };
        Ok(Self { form: Form::Paths(Paths::new(vec![path], true)), phrase, doubts })
    }

    /// The objects of `namespace`: those of the listed `kinds`, or all of them. Kinds are plurals;
    /// custom resources are written `plural.group`.
    pub fn namespace(namespace: &str, kinds: &[impl AsRef<str>]) -> Result<Self, RuleError> {
        check_namespace(namespace)?;
        if kinds.is_empty() {
            let form = Form::Namespace(WholeNamespace::new(namespace));
            let phrase = format!("everything in namespace {namespace}");
            return Ok(Self { form, phrase, doubts: Vec::new() });
        }
        let kinds = kinds.iter().enumerate().map(|(index, kind)| {
            let part = Part::Kinds(index);
            name(part, kind.as_ref())?;
            let kind = Kind::parse(kind.as_ref());
            if kind.is_custom() {
                check_plural(part, kind.name())?;
            }
            Ok((part, kind))
        });
        let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
        check_scopes(&kinds)?;
        let paths = kinds.iter().map(|(_, kind)| format!("{BASE}{}/{namespace}", kind.path()));
        let names: Vec<&str> = kinds.iter().map(|(_, kind)| kind.name()).collect();
        Ok(Self {
            form: Form::Paths(Paths::new(paths.collect(), false)),
            phrase: format!("{} of namespace {namespace}", names.join(", ")),
            doubts: kinds.iter().filter_map(|(part, kind)| kind.doubt(*part)).collect(),
        })
    }

    /// The keys in which a regular expression is found: `key`, or `prefix` where there is no `key`.
    pub fn regexp(prefix: Option<&str>, key: Option<&str>) -> Result<Self, RuleError> {
        let (part, source) = match (key, prefix) {
            (Some(key), _) if !key.is_empty() => (Part::Key, key),
            (_, Some(prefix)) if !prefix.is_empty() => (Part::Prefix, prefix),
            _ => return Err(Part::Key.wrong(Reason::NoRegex)),
        };
        let mut doubts = Vec::new();
        if let Some(prefix) = prefix.filter(|prefix| part == Part::Key && *prefix != source) {
            // Both must be good, although only one is used: a typo should not wait in the file.
            Pattern::new(prefix).map_err(|reason| Part::Prefix.wrong(reason))?;
            let reason = "not used: keys belong by `key`, and so do the ranges that hold them";
            doubts.push(Doubt { part: Part::Prefix, reason: reason.to_owned() });
        }
        let pattern = Pattern::new(source).map_err(|reason| part.wrong(reason))?;
        let phrase = format!("keys that match `{source}`");
        Ok(Self { form: Form::Pattern(pattern), phrase, doubts })
    }

    /// Whether `key` belongs to this rule's route, where no earlier rule takes it.
    pub fn matches(&self, key: &[u8]) -> bool {
        match &self.form {
            Form::Paths(paths) => paths.matches(key),
            Form::Namespace(namespace) => namespace.matches(key),
            Form::Pattern(pattern) => pattern.matches(key),
        }
    }

    /// How much of `range` the rule can own.
    pub fn reach(&self, range: &KeyRange) -> Reach {
        if range.is_empty() {
            return Reach::None;
        }
        if let Some(key) = range.as_single() {
            return if self.matches(key) { Reach::Whole } else { Reach::None };
        }
        match &self.form {
            Form::Paths(paths) => paths.reach(range),
            Form::Namespace(namespace) => namespace.reach(range),
            Form::Pattern(pattern) => pattern.reach(range),
        }
    }

    /// Whether every key of Kubernetes that `other` matches is one that this rule matches. A `true` is certain.
    pub fn covers(&self, other: &Self) -> bool {
        let extent = match &other.form {
            Form::Paths(paths) => paths.extent_in_kubernetes(),
            _ => other.extent(),
        };
        self == other || extent.iter().all(|range| self.reach(range) == Reach::Whole)
    }

    /// What is most likely not meant as it is written.
    pub fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }

    /// Ranges that together hold every key the rule matches, and maybe more.
    pub fn extent(&self) -> Vec<KeyRange> {
        match &self.form {
            Form::Paths(paths) => paths.extent(),
            Form::Namespace(_) => vec![KeyRange::prefix(Key::from_static(BASE.as_bytes()))],
            Form::Pattern(pattern) => pattern.extent(),
        }
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.form == other.form
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.phrase)
    }
}

// === impl Part ===

impl Part {
    fn wrong(self, reason: Reason) -> RuleError {
        RuleError { part: self, reason }
    }
}

/// How much of `asked` lies in `owned`, where no two of `owned` adjoin.
fn reach_of_ranges(owned: &[KeyRange], asked: &KeyRange) -> Reach {
    if owned.iter().any(|range| range.covers(asked)) {
        Reach::Whole
    } else if owned.iter().any(|range| range.overlaps(asked)) {
        Reach::Part
    } else {
        Reach::None
    }
}

/// The longest text that every key of a (non-empty) range starts with.
fn common_prefix(range: &KeyRange) -> &[u8] {
    let start = &range.start[..];
    let Some(end) = &range.end else { return b"" };
    let shared = start.iter().zip(&end[..]).take_while(|(a, b)| a == b).count();
    let mut length = shared;
    // [`/registry/pods/`, `/registry/pods0`) shares one byte more than its bounds do.
    let ends_with_its_prefix = end.len() == shared + 1
        && start.get(shared).is_some_and(|byte| byte.checked_add(1) == Some(end[shared]));
    if ends_with_its_prefix {
        length = shared + 1;
        length += start[length..].iter().take_while(|byte| **byte == 0xff).count();
    }
    &start[..length]
}

/// Whether a text can be one segment of a key of Kubernetes.
fn name(part: Part, text: &str) -> Result<(), RuleError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match text {
        "" => Err(part.wrong(Reason::Empty)),
        _ if text.chars().all(is_allowed) => Ok(()),
        _ => Err(part.wrong(Reason::NotAName)),
    }
}

fn has_upper_case(text: &str) -> bool {
    text.chars().any(|c| c.is_ascii_uppercase())
}

/// Kubernetes lets no namespace be called otherwise.
fn check_namespace(text: &str) -> Result<(), RuleError> {
    name(Part::Namespace, text)?;
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = text.len() <= 63
        && text.chars().all(is_allowed)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_label { Ok(()) } else { Err(Part::Namespace.wrong(Reason::NotANamespace)) }
}

/// Kubernetes keeps custom resources under their plural, which has no capital letter.
fn check_plural(part: Part, text: &str) -> Result<(), RuleError> {
    if !has_upper_case(text) {
        return Ok(());
    }
    let (kind, group) =
        text.split_once('.').map_or((text, None), |(kind, group)| (kind, Some(group)));
    let kind = kind.to_lowercase();
    let plural = if kind.ends_with('s') { kind } else { format!("{kind}s") };
    let plural = group.map_or(plural.clone(), |group| format!("{plural}.{}", group.to_lowercase()));
    Err(part.wrong(Reason::NotAPlural { given: text.to_owned(), plural }))
}

/// A namespace rule lists kinds that have namespaces, and either built-in ones or custom resources.
fn check_scopes(kinds: &[(Part, Kind)]) -> Result<(), RuleError> {
    for (part, kind) in kinds {
        if kind.scope() == Scope::Cluster {
            let (kind, path) = (kind.name().to_owned(), kind.path().to_owned());
            return Err(part.wrong(Reason::ClusterScoped { kind, path }));
        }
    }
    let custom = kinds.iter().find(|(_, kind)| kind.is_custom());
    let builtin = kinds.iter().find(|(_, kind)| !kind.is_custom());
    let (Some((custom_part, custom)), Some((builtin_part, builtin))) = (custom, builtin) else {
        return Ok(());
    };
    // The one that comes second is the one that should not be there.
    let part = match (custom_part, builtin_part) {
        (Part::Kinds(custom), Part::Kinds(builtin)) => Part::Kinds(*custom.max(builtin)),
        _ => *custom_part,
    };
    let (builtin, custom) = (builtin.name().to_owned(), custom.name().to_owned());
    Err(part.wrong(Reason::Mixed { builtin, custom }))
}

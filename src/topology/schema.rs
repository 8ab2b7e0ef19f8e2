//! What the keys of the file mean: the schema, read off a tree.

use std::path::PathBuf;

use super::{
    Backend, BackendTls, Compaction, DEFAULT_NAME, Endpoint, Filtering, Mistake, Mistakes, Pool,
    Topology, WantedIndex,
    message::quote,
    walk::{Fields, Walk, choice},
    yaml::{self, Node, Place, Value},
};
use crate::{
    clock::LANES,
    model::{Key, KeyRange, key::kind_prefix},
    route::rule::{Part, Reach, Reason, Rule, RuleError},
    select::{self, Attribute, Selector},
};

const TOP: &[&str] = &["backends", "default", "disableStorageLevelFiltering", "indexes"];
const BACKEND: &[&str] = &[
    "name",
    "endpoint",
    "regexp",
    "namespace",
    "prefix",
    "customresource",
    "backendTLS",
    "connectionPool",
    "compactInterval",
    "compactIntervalJitter",
    "compactTimeout",
    "compactMinRetain",
    "compactBatchSize",
    "disableStorageLevelFiltering",
    "indexes",
    "lanes",
];
const MATCHERS: &[&str] = &["regexp", "namespace", "prefix", "customresource"];
const REGEXP: &[&str] = &["prefix", "key"];
const NAMESPACE: &[&str] = &["namespace", "kinds"];
const PREFIX: &[&str] = &["prefix"];
const CUSTOM_RESOURCE: &[&str] = &["group", "kind"];
const TLS: &[&str] = &["caFile", "certFile", "keyFile", "skipVerify"];
/// HariKube's documentation calls the last one `maxIdleLifeTime`, its CRD `maxIdleTime`.
const POOL: &[&str] = &["maxIdle", "maxOpen", "maxLifeTime", "maxIdleLifeTime", "maxIdleTime"];

const INDEX: &[&str] = &["prefix", "labels", "fields"];

/// As many as a store keeps.
const INDEXES_MAX: usize = 32;

/// A parent keeps one lane for itself.
const LANES_MAX: u32 = LANES as u32 - 1;

/// Tables whose values may be shown in messages: all but the one with the endpoints.
const SHOWN: &[&[&str]] = &[BACKEND, REGEXP, NAMESPACE, PREFIX, CUSTOM_RESOURCE, TLS, POOL, INDEX];
const SECRET: &[&str] = &["endpoint", "default"];

/// A backend as far as it could be read.
struct Draft {
    name: Option<String>,
    endpoint: Option<(Endpoint, Place)>,
    rule: Option<(Rule, Place)>,
    backend: Option<Backend>,
    place: Place,
}

pub(super) fn parse(text: &str, file_name: &str) -> Result<Topology, Mistakes> {
    let shown: Vec<&str> = SHOWN.concat().into_iter().filter(|key| !SECRET.contains(key)).collect();
    let in_file = |list| Mistakes::new(file_name, text, list, &shown);

    let root = yaml::parse(text).map_err(|error| in_file(vec![error.into_mistake()]))?;
    let (walk, doubts) = (Walk::default(), Walk::default());
    let topology = read(root.as_deref(), &walk, &doubts);
    match (topology, walk.into_mistakes()) {
        (Some(topology), mistakes) if mistakes.is_empty() => {
            Ok(Topology { warnings: in_file(doubts.into_mistakes()), ..topology })
        }
        (_, mistakes) => Err(in_file(mistakes)),
    }
}

fn read(root: Option<&Node>, walk: &Walk, doubts: &Walk) -> Option<Topology> {
    let Some(root) = root.filter(|root| !root.is_null()) else {
        let place = Place { line: 1, column: 1 };
        walk.note(Mistake::new(place, "the file is empty").expected("`backends` or `default`"));
        return None;
    };
    let top = walk.fields("the file", root, TOP)?;
    let default = endpoint(&top, walk, doubts, "default");
    if let Some((Endpoint::Etcd { .. }, _)) = &default {
        check_filtering_effect(&top, doubts);
    }
    let drafts: Vec<Draft> = match top.node("backends").map(|node| (node, &node.value)) {
        None => Vec::new(),
        Some((_, Value::List(items))) => {
            items.iter().map(|item| draft(item, walk, doubts)).collect()
        }
        Some((node, _)) => {
            let found = "`backends` is no list";
            walk.note(Mistake::new(node.place, found).expected("a list: `- name: …`"));
            Vec::new()
        }
    };
    let rules = || drafts.iter().filter_map(|draft| draft.rule.as_ref());
    let has_some = |range: &KeyRange| rules().all(|(rule, _)| rule.reach(range) != Reach::Whole);
    let filtering = filtering(&top, has_some, walk, doubts);
    check_unique(default.as_ref(), &drafts, walk);
    check_order(&drafts, doubts);
    let default = default.map(|(endpoint, _)| endpoint);
    let backends = drafts.into_iter().filter_map(|draft| draft.backend).collect();
    Some(Topology { default, backends, filtering, ..Topology::default() })
}

fn draft(item: &Node, walk: &Walk, doubts: &Walk) -> Draft {
    let place = item.place;
    let none = Draft { name: None, endpoint: None, rule: None, backend: None, place };
    let Some(fields) = walk.fields("a backend", item, BACKEND) else {
        return none;
    };
    let name = fields.needed_text("a backend", "name").map(str::to_owned);
    let place = fields.node("name").map_or(place, |node| node.place);
    let name = name.filter(|name| check_name(name, place, walk));
    fields.needed_text("a backend", "endpoint");
    let endpoint = endpoint(&fields, walk, doubts, "endpoint");
    let rule = rule(&fields, walk, doubts);
    let (tls, pool, compaction) = (tls(&fields, doubts), pool(&fields), compaction(&fields));
    let has_some =
        |range: &KeyRange| rule.as_ref().is_none_or(|(rule, _)| rule.reach(range) != Reach::None);
    let filtering = filtering(&fields, has_some, walk, doubts);
    let lanes = fields.number("lanes", 1..=LANES_MAX);
    let lanes = lanes.and_then(|lanes| u16::try_from(lanes).ok());
    if let Some((endpoint, _)) = &endpoint {
        check_effects(endpoint, &fields, doubts);
    }
    let backend = match (&name, &endpoint, &rule) {
        (Some(name), Some((endpoint, _)), Some((rule, _))) => Some(Backend {
            name: name.clone(),
            endpoint: endpoint.clone(),
            rule: rule.clone(),
            tls,
            pool,
            compaction,
            filtering,
            lanes,
        }),
        _ => None,
    };
    Draft { name, endpoint, rule, backend, place }
}

fn note_idle(fields: &Fields<'_, '_>, key: &str, reason: &str, doubts: &Walk) {
    if fields.node(key).is_some_and(|node| !node.is_null())
        && let Some(place) = fields.key_place(key)
    {
        doubts.note(Mistake::new(place, format!("`{key}` has no effect: {reason}")));
    }
}

fn check_filtering_effect(fields: &Fields<'_, '_>, doubts: &Walk) {
    for key in ["disableStorageLevelFiltering", "indexes"] {
        note_idle(fields, key, "only databases have indexes for selectors", doubts);
    }
}

/// What is set and changes nothing for a store of this kind.
fn check_effects(endpoint: &Endpoint, fields: &Fields<'_, '_>, doubts: &Walk) {
    let idle = |key: &str, reason: &str| note_idle(fields, key, reason, doubts);
    let is_server = matches!(endpoint, Endpoint::Postgres(_) | Endpoint::Mysql(_));
    if !is_server {
        idle("connectionPool", "only PostgreSQL, MySQL and MariaDB have connections to pool");
    }
    if matches!(endpoint, Endpoint::Sqlite { .. }) {
        idle("backendTLS", "a file has no connection");
    }
    if matches!(endpoint, Endpoint::Etcd { .. }) {
        check_filtering_effect(fields, doubts);
    } else {
        idle("lanes", "a database has none; they are for routes to other nodes");
    }
    idle("compactBatchSize", "compaction works in small steps between writes");
}

fn check_name(name: &str, place: Place, walk: &Walk) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name == DEFAULT_NAME {
        let found = format!("`{DEFAULT_NAME}` is the name of the default store");
        walk.note(Mistake::new(place, found).expected("another name"));
    } else if name.is_empty() || !name.chars().all(is_allowed) {
        let found = format!("`name` is {}", quote(name));
        walk.note(Mistake::new(place, found).expected("letters, digits, `.`, `_` and `-`"));
    } else {
        return true;
    }
    false
}

fn endpoint(
    fields: &Fields<'_, '_>,
    walk: &Walk,
    doubts: &Walk,
    name: &str,
) -> Option<(Endpoint, Place)> {
    let node = fields.node(name)?;
    // `needed_text` has noted what is no text; for `default` it is noted here.
    let text = match name {
        "default" => fields.text(name)?,
        _ => node.text()?,
    };
    match Endpoint::parse(text) {
        Ok(endpoint) => {
            if endpoint.tells_in_clear() {
                let found = "the password goes to the etcd in clear";
                doubts.note(Mistake::new(node.place, found).expected("`https://`"));
            }
            Some((endpoint, node.place))
        }
        Err(error) => {
            walk.note(Mistake::new(node.place, format!("bad endpoint: {error}")));
            None
        }
    }
}

/// The one matcher of a backend, as a rule, with the place of its key.
fn rule(fields: &Fields<'_, '_>, walk: &Walk, doubts: &Walk) -> Option<(Rule, Place)> {
    let given = fields.given(MATCHERS);
    let matcher = match given[..] {
        [] if fields.is_misspelt(MATCHERS) => return None,
        [] => {
            let mistake = Mistake::new(fields.place, "a backend has no matcher");
            walk.note(mistake.expected(choice(MATCHERS)));
            return None;
        }
        [matcher] => matcher,
        [first, second, ..] => {
            let first_line = fields.key_place(first).map_or(0, |place| place.line);
            let place = fields.key_place(second).unwrap_or(fields.place);
            let found = format!("a second matcher `{second}` beside `{first}` (line {first_line})");
            walk.note(Mistake::new(place, found).expected("one; give the other a backend"));
            return None;
        }
    };
    let place = fields.key_place(matcher)?;
    if fields.node(matcher).is_none() {
        walk.note(Mistake::new(place, format!("`{matcher}` is empty")).expected("a mapping"));
        return None;
    }
    let matching = match matcher {
        "regexp" => fields.fields(matcher, REGEXP),
        "namespace" => fields.fields(matcher, NAMESPACE),
        "prefix" => fields.fields(matcher, PREFIX),
        _ => fields.fields(matcher, CUSTOM_RESOURCE),
    }?;
    match build(matcher, &matching)? {
        Ok(rule) => {
            for doubt in rule.doubts() {
                let at = place_of(&matching, doubt.part, 0).unwrap_or(place);
                doubts.note(Mistake::new(at, doubt.reason.clone()));
            }
            Some((rule, place))
        }
        Err(error) => {
            note_rule_error(&matching, &error, walk);
            None
        }
    }
}

/// `None` where a mistake has been noted already.
fn build(matcher: &str, fields: &Fields<'_, '_>) -> Option<Result<Rule, RuleError>> {
    let what = format!("`{matcher}`");
    match matcher {
        "regexp" => {
            let (prefix, key) = (fields.text("prefix"), fields.text("key"));
            let has_none = prefix.is_none() && key.is_none();
            let is_noted = fields.is_misspelt(REGEXP) || !fields.given(REGEXP).is_empty();
            if has_none && is_noted { None } else { Some(Rule::regexp(prefix, key)) }
        }
        "namespace" => {
            let namespace = fields.needed_text(&what, "namespace");
            let kinds: Vec<&str> = fields.texts("kinds").into_iter().map(|kind| kind.1).collect();
            Some(Rule::namespace(namespace?, &kinds))
        }
        "prefix" => Some(Rule::prefix(fields.needed_text(&what, "prefix")?)),
        _ => {
            let kind = fields.text("kind");
            Some(Rule::custom_resource(fields.needed_text(&what, "group")?, kind))
        }
    }
}

fn note_rule_error(fields: &Fields<'_, '_>, error: &RuleError, walk: &Walk) {
    let offset = if let Reason::Regex { offset, .. } = &error.reason { *offset } else { 0 };
    let place = place_of(fields, error.part, offset).unwrap_or(fields.place);
    let name = match error.part {
        Part::Prefix => "prefix",
        Part::Key => "key",
        Part::Group => "group",
        Part::Kind => "kind",
        Part::Namespace => "namespace",
        Part::Kinds(_) => "kinds",
    };
    let found = match &error.reason {
        reason @ (Reason::Empty | Reason::NotAName | Reason::NotANamespace | Reason::NotAGroup) => {
            format!("`{name}` {reason}")
        }
        reason => reason.to_string(),
    };
    walk.note(Mistake::new(place, found));
}

/// Where a part of a rule stands, and the character at `offset` in it where that can be told.
fn place_of(fields: &Fields<'_, '_>, part: Part, offset: usize) -> Option<Place> {
    let node = match part {
        Part::Prefix => fields.node("prefix"),
        Part::Key => fields.node("key"),
        Part::Group => fields.node("group"),
        Part::Kind => fields.node("kind"),
        Part::Namespace => fields.node("namespace"),
        Part::Kinds(index) => fields.texts("kinds").get(index).map(|kind| kind.0),
    }?;
    let column = match node.value {
        Value::Text { lead: Some(lead), .. } if offset > 0 => node.place.column + lead + offset,
        _ => node.place.column,
    };
    Some(Place { column, ..node.place })
}

fn tls(fields: &Fields<'_, '_>, doubts: &Walk) -> BackendTls {
    let Some(tls) = fields.fields("backendTLS", TLS) else {
        return BackendTls::default();
    };
    let file = |name| tls.text(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (cert_file, key_file) = (file("certFile"), file("keyFile"));
    if cert_file.is_some() != key_file.is_some() && !tls.is_misspelt(&["certFile", "keyFile"]) {
        tls.note(tls.place, "`certFile` and `keyFile` need each other");
    }
    let (ca_file, skip_verify) = (file("caFile"), tls.flag("skipVerify"));
    if let Some(node) = tls.node("caFile").filter(|_| ca_file.is_some() && skip_verify) {
        let found = "`caFile` is not used: `skipVerify` takes any certificate";
        doubts.note(Mistake::new(node.place, found));
    }
    BackendTls { ca_file, cert_file, key_file, skip_verify }
}

fn pool(fields: &Fields<'_, '_>) -> Pool {
    let Some(pool) = fields.fields("connectionPool", POOL) else {
        return Pool::default();
    };
    let (by_documentation, by_crd) =
        (pool.duration("maxIdleLifeTime"), pool.duration("maxIdleTime"));
    Pool {
        idle_max: pool.number("maxIdle", 0..=u32::MAX),
        open_max: pool.number("maxOpen", 0..=u32::MAX),
        life_time_max: pool.duration("maxLifeTime"),
        idle_time_max: by_documentation.or(by_crd),
    }
}

/// `has_some` says whether keys of a range may lie in the store.
fn filtering(
    fields: &Fields<'_, '_>,
    has_some: impl Fn(&KeyRange) -> bool,
    walk: &Walk,
    doubts: &Walk,
) -> Filtering {
    let is_disabled = fields.flag("disableStorageLevelFiltering");
    let mut indexes: Vec<WantedIndex> = Vec::new();
    for item in fields.items("indexes", "a list: `- prefix: …`") {
        for (place, wanted) in index(item, walk) {
            if indexes.contains(&wanted) {
                walk.note(Mistake::new(place, "this index is there already"));
            } else if indexes.len() == INDEXES_MAX {
                let found = format!("one index more than the {INDEXES_MAX} that a store keeps");
                walk.note(Mistake::new(place, found));
            }
            if !has_some(&KeyRange::prefix(wanted.prefix.clone())) {
                let prefix = quote(&String::from_utf8_lossy(&wanted.prefix));
                let found =
                    format!("an index of nothing: no key below {prefix} lies in this store");
                doubts.note(Mistake::new(place, found).expected("it where its keys lie"));
            }
            indexes.push(wanted);
        }
    }
    if let Some(place) = fields.key_place("indexes").filter(|_| is_disabled && !indexes.is_empty())
    {
        let found = "`indexes` beside `disableStorageLevelFiltering: true`";
        walk.note(Mistake::new(place, found).expected("one of the two"));
    }
    Filtering { is_disabled, indexes }
}

/// The indexes of one kind, each with its place.
fn index(item: &Node, walk: &Walk) -> Vec<(Place, WantedIndex)> {
    let Some(fields) = walk.fields("an index", item, INDEX) else { return Vec::new() };
    let prefix = fields.needed_text("an index", "prefix").map(|it| Key::from(it.to_owned()));
    if let Some((prefix, node)) = prefix.as_ref().zip(fields.node("prefix"))
        && kind_prefix(&KeyRange::prefix(prefix.clone())).as_ref() != Some(prefix)
    {
        let found = format!("`prefix` is {}", quote(&String::from_utf8_lossy(prefix)));
        let expected = "that of all keys of one kind, with a slash at its end: `/registry/pods/`, \
                        `/registry/stable.example.com/shirts/`";
        walk.note(Mistake::new(node.place, found).expected(expected));
    }
    let names = ["labels", "fields"];
    let is_nothing = |node: &Node| matches!(&node.value, Value::List(items) if items.is_empty());
    let has_none = names.iter().all(|name| fields.node(name).is_none_or(is_nothing));
    if has_none && !fields.is_misspelt(&names) {
        let mistake = Mistake::new(fields.place, "an index of nothing");
        walk.note(mistake.expected(choice(&names)));
    }
    let mut wanted = Vec::new();
    for (name, part) in names.into_iter().zip([select::Part::Labels, select::Part::Fields]) {
        for (node, text) in fields.texts(name) {
            let asked = format!("{text}=x");
            let (labels, paths) = if name == "labels" { (&*asked, "") } else { ("", &*asked) };
            let parsed = Selector::parse(labels, paths).ok().flatten();
            let attribute = Attribute { part, name: text.to_owned() };
            let is_one = parsed.is_some_and(|it| {
                it.requirements().iter().map(|it| &it.attribute).eq([&attribute])
            });
            if !is_one || text.starts_with('.') {
                let expected = match part {
                    select::Part::Labels => "a label's key, as `app.kubernetes.io/name`",
                    select::Part::Fields => "a field's path, as `spec.nodeName`",
                };
                let found = format!("`{name}` has {}", quote(text));
                walk.note(Mistake::new(node.place, found).expected(expected));
            } else if let Some(prefix) = &prefix {
                wanted.push((node.place, WantedIndex { prefix: prefix.clone(), attribute }));
            }
        }
    }
    wanted
}

fn compaction(fields: &Fields<'_, '_>) -> Compaction {
    Compaction {
        interval: fields.duration("compactInterval"),
        interval_jitter: fields.number("compactIntervalJitter", 0..=1000),
        timeout: fields.duration("compactTimeout"),
        retain_min: fields.number("compactMinRetain", 10..=10_000),
        batch_size: fields.number("compactBatchSize", 10..=10_000),
    }
}

/// Two backends of one name or on one store would be one to everybody else.
fn check_unique(default: Option<&(Endpoint, Place)>, drafts: &[Draft], walk: &Walk) {
    for (index, draft) in drafts.iter().enumerate() {
        let earlier = &drafts[..index];
        if let Some(name) = &draft.name
            && let Some(first) = earlier.iter().find(|first| first.name.as_ref() == Some(name))
        {
            let found = format!("`{name}` is the name in line {} already", first.place.line);
            walk.note(Mistake::new(draft.place, found).expected("another name"));
        }
    }
    let endpoints = drafts.iter().filter_map(|draft| draft.endpoint.as_ref());
    let endpoints: Vec<_> = default.into_iter().chain(endpoints).collect();
    let mut endpoints: Vec<_> =
        endpoints.into_iter().map(|(endpoint, place)| (endpoint.identity(), *place)).collect();
    // `default` may stand below the backends.
    endpoints.sort_by_key(|(_, place)| *place);
    for (index, (identity, place)) in endpoints.iter().enumerate() {
        if let Some((_, first)) = endpoints[..index].iter().find(|(first, _)| first == identity) {
            let found = format!("the endpoint is the store of line {} already", first.line);
            walk.note(Mistake::new(*place, found).expected("another store"));
        }
    }
}

/// A rule that an earlier one covers takes no key.
fn check_order(drafts: &[Draft], doubts: &Walk) {
    for (index, draft) in drafts.iter().enumerate() {
        let Some((rule, place)) = &draft.rule else {
            continue;
        };
        let covers = |earlier: &&Draft| earlier.rule.as_ref().is_some_and(|(r, _)| r.covers(rule));
        if let Some(cover) = drafts[..index].iter().find(covers)
            && let Some((earlier, at)) = &cover.rule
        {
            let found = format!("no key is left for {rule}: line {} takes {earlier}", at.line);
            doubts.note(Mistake::new(*place, found).expected("the narrower rule first"));
        }
    }
}

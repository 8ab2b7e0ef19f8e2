//! Files that run, and what is said of files that do not.

use proptest::prelude::*;

use super::*;

/// The example of HariKube's documentation, with one backend of each further page.
const DOCUMENTED: &str = "\
backends:
- name: rbac
  endpoint: http://172.17.0.1:2579
  regexp:
    prefix: (clusterrolebindings|clusterroles|rolebindings|roles|serviceaccounts)
    key: (clusterrolebindings|clusterroles|rolebindings|roles|serviceaccounts)
  backendTLS:
    caFile: /etc/ca.pem
    certFile: /etc/cert.pem
    keyFile: /etc/key.pem
    skipVerify: true
- name: kube-system
  endpoint: mysql://root:passwd@tcp(172.17.0.1:3306)/kube_system
  namespace:
    namespace: kube-system
    kinds:
    - pods
    - deployments
  connectionPool:
    maxIdle: 5
    maxOpen: 90
    maxLifeTime: 5m
    maxIdleLifeTime: 5m
- name: pods
  endpoint: postgres://postgres:passwd@172.17.0.1:5432/pods
  prefix:
    prefix: pods
  compactInterval: 5m
  compactIntervalJitter: 0
  compactTimeout: 5s
  compactMinRetain: 1000
  compactBatchSize: 1000
- name: shirts
  endpoint: sqlite://./db/shirts.db?_journal=WAL&cache=shared
  customresource:
    group: stable.example.com
    kind: shirts
  disableStorageLevelFiltering: true
";

fn parse(text: &str) -> Topology {
    Topology::parse(text, "topology.yaml").unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn mistakes(text: &str) -> String {
    Topology::parse(text, "topology.yaml").unwrap_err().to_string()
}

/// What is said of a backend with `lines` behind its name and endpoint.
fn mistakes_of(lines: &str) -> String {
    let indented: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    mistakes(&format!("backends:\n- name: a\n  endpoint: sqlite://a.db\n{indented}"))
}

fn warnings(text: &str) -> String {
    parse(text).warnings.to_string()
}

#[test]
fn harikubes_documented_file_runs_as_it_is() {
    let topology = parse(DOCUMENTED);
    insta::assert_snapshot!(topology.warnings.to_string(), @r"
        topology.yaml:8:13: `caFile` is not used: `skipVerify` takes any certificate
         8 |     caFile: /etc/ca.pem
           |             ^
        topology.yaml:32:3: `compactBatchSize` has no effect: compaction works in small steps between writes
         32 |   compactBatchSize: 1000
            |   ^
        ");
    let line = |b: &Backend| format!("{}: {} -> {}", b.name, b.rule, b.endpoint);
    let lines: Vec<String> = topology.backends.iter().map(line).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
        rbac: keys that match `(clusterrolebindings|clusterroles|rolebindings|roles|serviceaccounts)` -> http://172.17.0.1:2579
        kube-system: pods, deployments of namespace kube-system -> mysql://root:***@172.17.0.1:3306/kube_system
        pods: `/registry/pods` and below -> postgres://postgres:***@172.17.0.1:5432/pods
        shirts: custom resources shirts.stable.example.com -> sqlite://./db/shirts.db
        "#);
    let [rbac, kube_system, pods, shirts] = &topology.backends[..] else { panic!() };
    assert!(rbac.tls.skip_verify && rbac.tls.cert_file.is_some());
    assert_eq!(kube_system.pool.open_max, Some(90));
    assert_eq!(kube_system.pool.idle_time_max, Some(Duration::from_secs(300)));
    assert_eq!(pods.compaction.timeout, Some(Duration::from_secs(5)));
    assert_eq!(pods.compaction.interval_jitter, Some(0));
    assert!(shirts.filtering.is_disabled);
}

#[test]
fn what_changes_nothing_for_a_store_is_warned_of() {
    let settings = "  prefix: {prefix: PLACE}\n  connectionPool: {maxOpen: 1}\n  backendTLS: {skipVerify: true}\n  \
                    lanes: 2\n  compactInterval: 1m\n  indexes: [{prefix: /registry/pods/, labels: [app]}]\n";
    let mut text = "backends:\n".to_owned();
    for (name, endpoint) in [
        ("file", "sqlite://a.db"),
        ("database", "mysql://u@h:1/d"),
        ("other", "postgres://u@h:1/d"),
        ("child", "https://h:1"),
    ] {
        text += &format!("- name: {name}\n  endpoint: {endpoint}\n");
        text += &settings.replace("PLACE", name);
    }
    let warnings = parse(&text).warnings.to_string();
    let places: Vec<&str> =
        warnings.lines().filter(|line| line.contains("has no effect")).collect();
    let places: Vec<&str> = places.iter().filter_map(|line| line.split(':').nth(3)).collect();
    assert_eq!(
        places,
        [
            " `connectionPool` has no effect",
            " `backendTLS` has no effect",
            " `lanes` has no effect",
            " `lanes` has no effect",
            " `lanes` has no effect",
            " `connectionPool` has no effect",
            " `indexes` has no effect"
        ],
        "{warnings}"
    );
}

#[test]
fn the_default_store_can_be_in_the_file() {
    let topology = parse("default: multi://sqlite:///data/main.db\n");
    assert_eq!(topology.default.unwrap().to_string(), "sqlite:///data/main.db");
    assert!(parse("default: sqlite\nbackends:\n").backends.is_empty());
}

#[test]
fn indexes_are_of_a_kind_and_of_what_selectors_can_name() {
    let topology = parse(
        "indexes:\n- prefix: /registry/nodes/\n  labels: [app]\nbackends:\n- name: a\n  endpoint: sqlite://a.db\n  \
         prefix: {prefix: pods}\n  indexes:\n  - prefix: /registry/pods/\n    labels: [a.b/c]\n    \
         fields: [spec.nodeName]\n  - {prefix: /registry/a.b/shirts/, fields: [spec.color]}\n",
    );
    let names = |filtering: &Filtering| {
        let name = |it: &WantedIndex| format!("{} {}", it.prefix.escape_ascii(), it.attribute);
        filtering.indexes.iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(names(&topology.filtering), ["/registry/nodes/ label app"]);
    assert_eq!(
        names(&topology.backends[0].filtering),
        [
            "/registry/pods/ label a.b/c",
            "/registry/pods/ field spec.nodeName",
            "/registry/a.b/shirts/ field spec.color"
        ]
    );
    insta::assert_snapshot!(
        warnings(
            "indexes:\n- {prefix: /registry/pods/, labels: [app]}\nbackends:\n- name: a\n  endpoint: sqlite://a.db\n  \
             prefix: {prefix: pods}\n  indexes:\n  - prefix: /registry/events/\n    fields: [reason]\n"
        ),
        @r"
        topology.yaml:2:38: an index of nothing: no key below `/registry/pods/` lies in this store; expected it where its keys lie
        topology.yaml:9:14: an index of nothing: no key below `/registry/events/` lies in this store; expected it where its keys lie
         9 |     fields: [reason]
           |              ^
        "
    );
    insta::assert_snapshot!(
        mistakes("indexes: [{prefix: /registry/pods/, labels: []}]"),
        @r"
        topology.yaml:1:11: an index of nothing; expected `labels` or `fields`
         1 | indexes: [{prefix: /registry/pods/, labels: []}]
           |           ^
        "
    );
    insta::assert_snapshot!(
        mistakes(
            "disableStorageLevelFiltering: true\nindexes:\n- {prefix: pods, labels: [app]}\n- {prefix: /registry/pods/}\n\
             - prefix: /registry/pods/\n  labels: ['a b', app, app]\n  fields: [.spec.color, 'a=b']\n- labels: [app]\n"
        ),
        @r#"
        topology.yaml:2:1: `indexes` beside `disableStorageLevelFiltering: true`; expected one of the two
         2 | indexes:
           | ^
        topology.yaml:3:12: `prefix` is `pods`; expected that of all keys of one kind, with a slash at its end: `/registry/pods/`, `/registry/stable.example.com/shirts/`
        topology.yaml:4:3: an index of nothing; expected `labels` or `fields`
        topology.yaml:6:12: `labels` has `a b`; expected a label's key, as `app.kubernetes.io/name`
         6 |   labels: ['a b', app, app]
           |            ^
        topology.yaml:6:24: this index is there already
         6 |   labels: ['a b', app, app]
           |                        ^
        topology.yaml:7:12: `fields` has `.spec.color`; expected a field's path, as `spec.nodeName`
         7 |   fields: [.spec.color, 'a=b']
           |            ^
        topology.yaml:7:25: `fields` has a text; expected a field's path, as `spec.nodeName`
         7 |   fields: [.spec.color, 'a=b']
           |                         ^
        topology.yaml:8:3: an index has no `prefix`
         8 | - labels: [app]
           |   ^
        "#
    );
}

#[test]
fn anchors_merges_and_flow_style_are_yaml_as_well() {
    let topology = parse(
        "backends:
- &first
  name: a
  endpoint: &there sqlite://a.db
  prefix: {prefix: pods}
  connectionPool: &pool {maxIdle: 1}
- <<: *first
  name: b
  endpoint: sqlite://b.db
  prefix: {prefix: leases}
- {name: \"c\", endpoint: 'sqlite://c.db', connectionPool: *pool, customresource: {group: x.io}}
",
    );
    assert!(topology.backends.iter().all(|backend| backend.pool.idle_max == Some(1)));
}

#[test]
fn a_file_that_is_no_mapping_is_refused() {
    insta::assert_snapshot!(mistakes(""), @"topology.yaml:1:1: the file is empty; expected `backends` or `default`");
    insta::assert_snapshot!(mistakes("# nothing but a comment\n"), @"topology.yaml:1:1: the file is empty; expected `backends` or `default`");
    insta::assert_snapshot!(mistakes("- name: a\n"), @r#"
        topology.yaml:1:1: the file is a list; expected a mapping with `backends`, `default`, `disableStorageLevelFiltering` or `indexes`
         1 | - name: a
           | ^
        "#);
    insta::assert_snapshot!(mistakes("backends: many\n"), @r#"
        topology.yaml:1:11: `backends` is no list; expected a list: `- name: …`
         1 | backends: ***
           |           ^
        "#);
    insta::assert_snapshot!(mistakes("backends:\n- a\n"), @r#"
        topology.yaml:2:3: a backend is `a`; expected a mapping with `name`, `endpoint`, `regexp`, `namespace`, `prefix`, `customresource`, `backendTLS`, `connectionPool`, `compactInterval`, `compactIntervalJitter`, `compactTimeout`, `compactMinRetain`, `compactBatchSize`, `disableStorageLevelFiltering`, `indexes` or `lanes`
         2 | - a
           |   ^
        "#);
    insta::assert_snapshot!(mistakes("default: sqlite\n---\ndefault: sqlite\n"), @"topology.yaml:2:1: a second document begins here; expected one");
}

#[test]
fn broken_yaml_is_refused_where_it_breaks() {
    insta::assert_snapshot!(mistakes("backends:\n- name: a\n\tendpoint: sqlite://a.db\n"), @r#"
        topology.yaml:3:1: a tab in the indentation; expected spaces
         3 |  endpoint: ***
           | ^
        "#);
    for text in ["backends:\n\t- name: a\n", "backends:\n- name: a\n  prefix:\n  \tprefix: b\n"] {
        let said = mistakes(text);
        let line = 1 + text.lines().position(|line| line.contains('\t')).unwrap();
        assert!(
            said.starts_with(&format!("topology.yaml:{line}:")) && said.contains("expected spaces"),
            "{said}"
        );
    }
    insta::assert_snapshot!(mistakes("backends: [\n"), @r#"
        topology.yaml:1:11: unclosed bracket '['; expected its other half, or quotes around a text with brackets in it
         1 | backends: ***
           |           ^
        "#);
    insta::assert_snapshot!(mistakes("backends:\n- name: a\n   prefix: b\n"), @r#"
        topology.yaml:3:10: mapping values are not allowed in this context; expected keys of one mapping below each other, and quotes around a text with `: ` in it
         3 |    prefix: b
           |          ^
        "#);
    insta::assert_snapshot!(mistakes("backends: *nowhere\n"), @r#"
        topology.yaml:1:11: while parsing node, found unknown anchor; expected quotes around a text that begins with `*`
         1 | backends: ***
           |           ^
        "#);
    insta::assert_snapshot!(mistakes("default: mysql://root: hunter2@tcp(h)/\n"), @r#"
        topology.yaml:1:22: mapping values are not allowed in this context; expected keys of one mapping below each other, and quotes around a text with `: ` in it
         1 | default: ***
           |             ^
        "#);
}

#[test]
fn a_line_ends_where_yaml_says_so() {
    let lines = ["# one", "backends:", "- a"];
    let shown = mistakes(&lines.join("\n"));
    assert!(shown.ends_with("\n 3 | - a\n   |   ^"), "{shown}");
    assert_eq!(mistakes(&lines.join("\r\n")), shown);
    assert_eq!(mistakes(&lines.join("\r")), shown);
}

#[test]
fn unknown_keys_are_named_at_every_level() {
    insta::assert_snapshot!(
        mistakes("backend:\n- name: a\nreplicas: 3\n"),
        @r#"
        topology.yaml:1:1: unknown key `backend`; expected `backends`, `default`, `disableStorageLevelFiltering` or `indexes`; did you mean `backends`?
         1 | backend:
           | ^
        topology.yaml:3:1: unknown key `replicas`; expected `backends`, `default`, `disableStorageLevelFiltering` or `indexes`
         3 | replicas: ***
           | ^
        "#
    );
    insta::assert_snapshot!(mistakes_of("namepsace:\n  namespace: x"), @r#"
        topology.yaml:4:3: unknown key `namepsace`; expected `name`, `endpoint`, `regexp`, `namespace`, `prefix`, `customresource`, `backendTLS`, `connectionPool`, `compactInterval`, `compactIntervalJitter`, `compactTimeout`, `compactMinRetain`, `compactBatchSize`, `disableStorageLevelFiltering`, `indexes` or `lanes`; did you mean `namespace`?
         4 |   namepsace:
           |   ^
        "#);
    insta::assert_snapshot!(mistakes_of("prefix:\n  prefix: pods\n  name: pods"), @r#"
        topology.yaml:6:5: unknown key `name`; expected `prefix`
         6 |     name: pods
           |     ^
        "#);
    insta::assert_snapshot!(
        mistakes_of("prefix: {prefix: pods}\nbackendTLS:\n  cafile: x\nconnectionPool:\n  max: 1"),
        @r#"
        topology.yaml:6:5: unknown key `cafile`; expected `caFile`, `certFile`, `keyFile` or `skipVerify`; did you mean `caFile`?
         6 |     cafile: ***
           |     ^
        topology.yaml:8:5: unknown key `max`; expected `maxIdle`, `maxOpen`, `maxLifeTime`, `maxIdleLifeTime` or `maxIdleTime`
         8 |     max: ***
           |     ^
        "#
    );
}

#[test]
fn a_backend_needs_a_name_an_endpoint_and_one_matcher() {
    insta::assert_snapshot!(mistakes("backends:\n- prefix:\n    prefix: pods\n"), @r#"
        topology.yaml:2:3: a backend has no `name`
         2 | - prefix:
           |   ^
        topology.yaml:2:3: a backend has no `endpoint`
         2 | - prefix:
           |   ^
        "#);
    insta::assert_snapshot!(mistakes_of(""), @r#"
        topology.yaml:2:3: a backend has no matcher; expected `regexp`, `namespace`, `prefix` or `customresource`
         2 | - name: a
           |   ^
        "#);
    insta::assert_snapshot!(
        mistakes_of("prefix:\n  prefix: pods\nnamespace:\n  namespace: x"),
        @r#"
        topology.yaml:6:3: a second matcher `namespace` beside `prefix` (line 4); expected one; give the other a backend
         6 |   namespace:
           |   ^
        "#
    );
    insta::assert_snapshot!(mistakes_of("prefix:\n"), @r#"
        topology.yaml:4:3: `prefix` is empty; expected a mapping
         4 |   prefix:
           |   ^
        "#);
    insta::assert_snapshot!(mistakes_of("customresource:\n  kind: shirts"), @r#"
        topology.yaml:5:5: `customresource` has no `group`
         5 |     kind: shirts
           |     ^
        "#);
    insta::assert_snapshot!(mistakes_of("regexp: {}"), @r#"
        topology.yaml:4:11: a regexp rule needs `key` or `prefix`
         4 |   regexp: {}
           |           ^
        "#);
}

#[test]
fn wrong_types_and_numbers_out_of_range_say_what_was_expected() {
    insta::assert_snapshot!(
        mistakes_of(
            "prefix: pods
compactInterval: 5
compactIntervalJitter: 1001
compactTimeout: -5s
compactMinRetain: '1000'
compactBatchSize: 9
disableStorageLevelFiltering: yes
connectionPool:
  maxIdle: -1
  maxOpen: many
  maxLifeTime: [5m]
backendTLS:
  certFile: {}
  skipVerify: 1"
        ),
        @r#"
        topology.yaml:4:11: `prefix` is `pods`; expected a mapping with `prefix`
         4 |   prefix: pods
           |           ^
        topology.yaml:5:20: `compactInterval` is `5`; expected a duration such as `5m`, `1h30m` or `0s`
         5 |   compactInterval: 5
           |                    ^
        topology.yaml:6:26: `compactIntervalJitter` is `1001`; expected a whole number from 0 to 1000
         6 |   compactIntervalJitter: 1001
           |                          ^
        topology.yaml:7:19: `compactTimeout` is `-5s`; expected a duration such as `5m`, `1h30m` or `0s`
         7 |   compactTimeout: -5s
           |                   ^
        topology.yaml:8:21: `compactMinRetain` is a quoted text; expected a whole number from 10 to 10000
         8 |   compactMinRetain: '1000'
           |                     ^
        topology.yaml:9:21: `compactBatchSize` is `9`; expected a whole number from 10 to 10000
         9 |   compactBatchSize: 9
           |                     ^
        topology.yaml:10:33: `disableStorageLevelFiltering` is `yes`; expected `true` or `false`
         10 |   disableStorageLevelFiltering: yes
            |                                 ^
        topology.yaml:12:14: `maxIdle` is `-1`; expected a whole number from 0
         12 |     maxIdle: -1
            |              ^
        topology.yaml:13:14: `maxOpen` is `many`; expected a whole number from 0
         13 |     maxOpen: many
            |              ^
        topology.yaml:14:18: `maxLifeTime` is a list; expected a duration such as `5m`, `1h30m` or `0s`
         14 |     maxLifeTime: [5m]
            |                  ^
        topology.yaml:16:15: `certFile` is a mapping; expected a text
         16 |     certFile: {}
            |               ^
        topology.yaml:17:17: `skipVerify` is `1`; expected `true` or `false`
         17 |     skipVerify: 1
            |                 ^
        "#
    );
    insta::assert_snapshot!(
        mistakes_of("namespace:\n  namespace: [x]\n  kinds: pods"),
        @r#"
        topology.yaml:5:16: `namespace` is a list; expected a text
         5 |     namespace: [x]
           |                ^
        topology.yaml:6:12: `kinds` is `pods`; expected a list of texts
         6 |     kinds: pods
           |            ^
        "#
    );
    insta::assert_snapshot!(mistakes_of("prefix: {prefix: pods}\nbackendTLS:\n  keyFile: k"), @r#"
        topology.yaml:6:5: `certFile` and `keyFile` need each other
         6 |     keyFile: k
           |     ^
        "#);
}

#[test]
fn duplicates_name_the_line_of_the_first() {
    insta::assert_snapshot!(
        mistakes_of("prefix:\n  prefix: pods\n  prefix: leases\nname: b"),
        @r#"
        topology.yaml:6:5: duplicate key `prefix`; it is in line 5 already
         6 |     prefix: leases
           |     ^
        topology.yaml:7:3: duplicate key `name`; it is in line 2 already
         7 |   name: b
           |   ^
        "#
    );
    insta::assert_snapshot!(
        mistakes(
            "backends:
- {name: a, endpoint: sqlite://./db/x.db?cache=shared, prefix: {prefix: pods}}
- name: a
  endpoint: sqlite://db/x.db
  prefix:
    prefix: leases
- name: main
  endpoint: 'sqlite://'
  prefix:
    prefix: secrets
- name: with space
  endpoint: sqlite://y.db
  prefix:
    prefix: events
default: sqlite
"
        ),
        @r#"
        topology.yaml:3:9: `a` is the name in line 2 already; expected another name
         3 | - name: a
           |         ^
        topology.yaml:4:13: the endpoint is the store of line 2 already; expected another store
         4 |   endpoint: ***
           |             ^
        topology.yaml:7:9: `main` is the name of the default store; expected another name
         7 | - name: main
           |         ^
        topology.yaml:11:9: `name` is `with space`; expected letters, digits, `.`, `_` and `-`
         11 | - name: with space
            |         ^
        topology.yaml:15:10: the endpoint is the store of line 8 already; expected another store
         15 | default: ***
            |          ^
        "#
    );
}

#[test]
fn rules_without_meaning_are_refused_at_their_place() {
    insta::assert_snapshot!(mistakes_of("regexp:\n  key: ^/registry/(pods"), @r#"
        topology.yaml:5:21: bad regular expression: unclosed group (at character 12)
         5 |     key: ^/registry/(pods
           |                     ^
        "#);
    insta::assert_snapshot!(mistakes_of("regexp:\n  key: '^/registry/[z-a]'\n  prefix: a"), @r#"
        topology.yaml:5:23: bad regular expression: invalid character class range, the start must be <= the end (at character 13)
         5 |     key: '^/registry/[z-a]'
           |                       ^
        "#);
    insta::assert_snapshot!(mistakes_of("prefix:\n  prefix: /"), @r#"
        topology.yaml:5:13: `prefix` must not be empty
         5 |     prefix: /
           |             ^
        "#);
    insta::assert_snapshot!(mistakes_of("customresource:\n  group: a/b"), @r#"
        topology.yaml:5:12: `group` must be one name of letters, digits, `-`, `_` and `.`
         5 |     group: a/b
           |            ^
        "#);
    insta::assert_snapshot!(
        mistakes_of("namespace:\n  namespace: x\n  kinds:\n  - pods\n  - nodes"),
        @r#"
        topology.yaml:8:7: `nodes` belong to no namespace; use a prefix rule for `minions`
         8 |     - nodes
           |       ^
        "#
    );
    insta::assert_snapshot!(
        mistakes_of("namespace:\n  namespace: x\n  kinds: [pods, shirts.example.com]"),
        @r#"
        topology.yaml:6:19: `shirts.example.com` is a custom resource and `pods` is built in; give each a rule
         6 |     kinds: [pods, shirts.example.com]
           |                   ^
        "#
    );
}

/// A character of a text is pointed at only where the file has the text as it is.
#[test]
fn a_bad_character_is_pointed_at_where_it_can_be_found() {
    let column = |key: &str| {
        let text = format!("default: sqlite\nbackends: [{{name: a, regexp: {{key: {key}}}}}]");
        let mistakes = Topology::parse(&text, "topology.yaml").unwrap_err();
        let bad = mistakes.iter().find(|mistake| mistake.found.contains("unclosed group"));
        bad.unwrap().column - "backends: [{name: a, regexp: {key: ".len()
    };
    assert_eq!(column("aaa("), 4);
    assert_eq!(column("!x aaa("), 7);
    assert_eq!(column("'aaa('"), 5);
    for otherwise in ["'a''a('", r#""\x61aa(""#, "a\n a(", "'a\n\n a('", "\"\\\n aaaaaaa(\""] {
        assert_eq!(column(otherwise), 1, "{otherwise}");
    }
}

#[test]
fn bad_endpoints_are_refused_without_their_passwords() {
    insta::assert_snapshot!(
        mistakes(
            "backends:
- name: a
  endpoint: mysq://root:hunter2@tcp(h)/d
  prefix: {prefix: a}
- name: b
  endpoint: postgres://root:hunt/er2@h/d
  prefix: {prefix: b}
- name: c
  endpoint: sqlite://c.db?_jornal=WAL
  prefix: {prefix: c}
- name: d
  endpiont: mysql://root:hunter2@tcp(h)/d
  prefix: {prefix: d}
- name: e
  endpoint:
  prefix: {prefix: e}
- name: f
  endpoint: [mysql://root:hunter2@tcp(h)/d]
  prefix: {prefix: f}
"
        ),
        @r#"
        topology.yaml:3:13: bad endpoint: unknown scheme `mysq`; expected sqlite://, postgres://, mysql://, http:// or https://; did you mean `mysql`?
         3 |   endpoint: ***
           |             ^
        topology.yaml:6:13: bad endpoint: bad port; expected host, host:port or [IPv6 address]:port
         6 |   endpoint: ***
           |             ^
        topology.yaml:9:13: bad endpoint: unknown parameter `_jornal`; did you mean `_journal`?
         9 |   endpoint: ***
           |             ^
        topology.yaml:12:3: unknown key `endpiont`; expected `name`, `endpoint`, `regexp`, `namespace`, `prefix`, `customresource`, `backendTLS`, `connectionPool`, `compactInterval`, `compactIntervalJitter`, `compactTimeout`, `compactMinRetain`, `compactBatchSize`, `disableStorageLevelFiltering`, `indexes` or `lanes`; did you mean `endpoint`?
         12 |   endpiont: ***
            |   ^
        topology.yaml:15:3: a backend has no `endpoint`
         15 |   endpoint:
            |   ^
        topology.yaml:18:13: `endpoint` is a list; expected a text
         18 |   endpoint: ***
            |             ^
        "#
    );
}

#[test]
fn what_works_but_is_not_meant_is_a_warning() {
    insta::assert_snapshot!(
        warnings(
            "backends:
- name: pods
  endpoint: sqlite://pods.db
  prefix:
    prefix: pods
- name: team
  endpoint: sqlite://team.db
  namespace:
    namespace: team
    kinds: [pods]
- name: typo
  endpoint: sqlite://typo.db
  namespace:
    namespace: team
    kinds:
    - lease
- name: nodes
  endpoint: sqlite://nodes.db
  prefix:
    prefix: nodes
- name: two
  endpoint: sqlite://two.db
  regexp:
    prefix: ^/registry/events/
    key: ^/registry/events/team/
- name: told
  endpoint: http://user:secret@10.0.0.5,127.0.0.1
  prefix:
    prefix: leases
- name: here
  endpoint: http://user:secret@localhost,127.0.0.2,[::1]
  prefix:
    prefix: secrets
  backendTLS:
    caFile: ca.pem
    skipVerify: true
"
        ),
        @r#"
        topology.yaml:8:3: no key is left for pods of namespace team: line 4 takes `/registry/pods` and below; expected the narrower rule first
         8 |   namespace:
           |   ^
        topology.yaml:16:7: Kubernetes has no built-in kind with the plural `lease`; did you mean `leases`?
         16 |     - lease
            |       ^
        topology.yaml:20:13: Kubernetes keeps these objects under `/registry/minions`
         20 |     prefix: nodes
            |             ^
        topology.yaml:24:13: not used: keys belong by `key`, and so do the ranges that hold them
         24 |     prefix: ^/registry/events/
            |             ^
        topology.yaml:27:13: the password goes to the etcd in clear; expected `https://`
         27 |   endpoint: ***
            |             ^
        topology.yaml:35:13: `caFile` is not used: `skipVerify` takes any certificate
         35 |     caFile: ca.pem
            |             ^
        "#
    );
}

#[test]
fn the_topologies_of_the_stories_parse_without_a_warning() {
    let stories = concat!(env!("CARGO_MANIFEST_DIR"), "/topologies");
    let mut folders = vec![std::path::PathBuf::from(stories)];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // A story has other files beside its topologies.
            if !text.lines().any(|line| line == "backends:") {
                continue;
            }
            let topology = Topology::parse(&text, &path.display().to_string());
            let topology = topology.unwrap_or_else(|mistakes| panic!("{mistakes}"));
            assert!(topology.warnings.is_empty(), "{}", topology.warnings);
            count += 1;
        }
    }
    assert!(count > 0);
}

// Files that were good before something happened to them.

/// Marks every password of the files below. It is no plain name, as a good password is none: where
/// damage makes it stand in a name's place, it must not be shown either.
const MARK: &str = "hunter!2";

fn good_file() -> impl Strategy<Value = String> {
    let further = format!(
        "default: postgres://db/main?password={MARK}&user=me\n\
         # was: mysql://root:{MARK}@tcp(h)/d\n"
    );
    let folded = format!(
        "- name: folded\n  endpoint: >-\n    mysql://root:{MARK}@tcp(h)/f\n  prefix: {{prefix: f}}\n"
    );
    let documented = DOCUMENTED.replace("passwd", MARK);
    prop_oneof![
        Just(documented.clone()),
        Just(format!("{documented}{folded}")),
        Just(format!("{further}{documented}")),
    ]
}

/// Removes, inserts or doubles characters and lines, but leaves each mark in one piece.
fn damaged_file() -> impl Strategy<Value = String> {
    let damage = (any::<prop::sample::Index>(), 0..4_u8, "[\n\t :{}&*!|>'\"\\[\\]#@%,?a-]");
    (good_file(), prop::collection::vec(damage, 0..4)).prop_map(|(mut text, damages)| {
        for (index, kind, insert) in damages {
            let mut lines: Vec<&str> = text.lines().collect();
            let line = index.index(lines.len());
            match kind {
                0 => drop(lines.remove(line)),
                1 => lines.insert(line, lines[line]),
                _ => {
                    let at = index.index(text.len());
                    let is_marked = text
                        .match_indices(MARK)
                        .any(|(start, mark)| (start..=start + mark.len()).contains(&at));
                    if !is_marked {
                        text.replace_range(at..at + usize::from(kind == 2), &insert);
                    }
                    continue;
                }
            }
            text = lines.join("\n");
            if text.is_empty() {
                break;
            }
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_shown_holds_a_password(text in damaged_file()) {
        let shown = match Topology::parse(&text, "topology.yaml") {
            Ok(topology) => {
                let endpoints = topology.backends.iter().map(|b| b.endpoint.to_string());
                let endpoints: Vec<String> = endpoints.collect();
                format!("{topology:?} {endpoints:?} {}", topology.warnings)
            }
            Err(mistakes) => format!("{mistakes} {mistakes:?}"),
        };
        prop_assert!(!shown.contains(MARK), "{text}\nis shown as\n{shown}");
    }

    #[test]
    fn mistakes_come_in_file_order(text in damaged_file()) {
        if let Err(mistakes) = Topology::parse(&text, "topology.yaml") {
            let places: Vec<_> = mistakes.iter().map(|m| (m.line, m.column)).collect();
            prop_assert!(!places.is_empty() && places.is_sorted());
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(text in "[ \n\t:{}&*!|>'\"\\[\\]#@%,?a-c<é-]{0,80}") {
        let _ = Topology::parse(&text, "topology.yaml").map_err(|mistakes| mistakes.to_string());
    }
}

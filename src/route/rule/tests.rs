//! What rules promise, on the shapes of keys and ranges that Kubernetes uses and on random ones.

use proptest::prelude::*;

use super::*;
use crate::model::key::successor;

const NO_KINDS: [&str; 0] = [];

fn prefix(text: &str) -> Rule {
    Rule::prefix(text).unwrap()
}

fn namespace(name: &str, kinds: &[&str]) -> Rule {
    Rule::namespace(name, kinds).unwrap()
}

fn regexp(key: &str) -> Rule {
    Rule::regexp(None, Some(key)).unwrap()
}

fn range(start: &str, end: &str) -> KeyRange {
    KeyRange { start: Key::copy_from_slice(start.as_bytes()), end: Some(end.to_owned().into()) }
}

/// As the API server lists: everything below `path`.
fn list(path: &str) -> KeyRange {
    KeyRange::prefix(Key::from(format!("{path}/")))
}

#[test]
fn a_prefix_owns_its_path_and_what_is_below_and_no_longer_name() {
    for rule in [prefix("pods"), prefix("/registry/pods"), prefix("pods//")] {
        assert!(rule.matches(b"/registry/pods"));
        assert!(rule.matches(b"/registry/pods/default/web"));
        assert!(!rule.matches(b"/registry/podtemplates/default/web"));
        assert!(!rule.matches(b"/registry/pods-old"));
        assert_eq!(rule.reach(&list("/registry/pods")), Reach::Whole);
        assert_eq!(rule.reach(&list("/registry/pods/default")), Reach::Whole);
        assert_eq!(rule.reach(&KeyRange::single("/registry/pods".into())), Reach::Whole);
        assert_eq!(rule.reach(&range("/registry/pods", "/registry/pods0")), Reach::Part);
        assert_eq!(rule.reach(&range("/registry/pods\0", "/registry/pods/")), Reach::None);
        assert_eq!(rule.reach(&list("/registry/podtemplates")), Reach::None);
        assert_eq!(rule.reach(&KeyRange::all()), Reach::Part);
    }
    assert!(prefix("/other/app").matches(b"/other/app/x"));
}

#[test]
fn a_page_of_a_list_is_as_whole_as_the_list() {
    let rest = range("/registry/pods/default/web\0", "/registry/pods0");
    assert_eq!(prefix("pods").reach(&rest), Reach::Whole);
    assert_eq!(namespace("default", &["pods"]).reach(&rest), Reach::Part);
    // Every key of namespace `a` lies before the page.
    assert_eq!(namespace("a", &["pods"]).reach(&rest), Reach::None);
    assert_eq!(namespace("a", &NO_KINDS).reach(&rest), Reach::None);
}

#[test]
fn a_custom_resource_rule_owns_a_plural_or_a_whole_group() {
    let shirts = Rule::custom_resource("stable.example.com", Some("shirts")).unwrap();
    assert_eq!(shirts.reach(&list("/registry/stable.example.com/shirts")), Reach::Whole);
    assert_eq!(shirts.reach(&list("/registry/stable.example.com/hats")), Reach::None);
    for kind in [None, Some("")] {
        let group = Rule::custom_resource("stable.example.com", kind).unwrap();
        assert_eq!(group.reach(&list("/registry/stable.example.com/hats")), Reach::Whole);
        assert!(group.covers(&shirts) && !shirts.covers(&group));
    }
}

#[test]
fn a_namespace_rule_with_kinds_knows_where_each_kind_is_kept() {
    let rule = namespace("default", &["services", "pods", "ingresses"]);
    assert!(rule.matches(b"/registry/services/specs/default/web"));
    assert!(rule.matches(b"/registry/pods/default/web"));
    assert!(rule.matches(b"/registry/ingress/default/web"));
    assert!(!rule.matches(b"/registry/services/endpoints/default/web"));
    assert!(!rule.matches(b"/registry/pods/default-2/web"));
    assert_eq!(rule.reach(&list("/registry/pods/default")), Reach::Whole);
    assert_eq!(rule.reach(&list("/registry/pods")), Reach::Part);
    assert_eq!(rule.reach(&list("/registry/pods/kube-system")), Reach::None);
    let custom = namespace("default", &["shirts.stable.example.com"]);
    assert!(custom.matches(b"/registry/stable.example.com/shirts/default/blue"));
}

#[test]
fn a_namespace_rule_without_kinds_owns_what_is_in_the_namespace() {
    let rule = namespace("specs", &NO_KINDS);
    assert!(!rule.matches(b"/registry/services/specs/default/web"), "the place, not a namespace");
    assert!(rule.matches(b"/registry/services/specs/specs/web"));
    assert!(rule.matches(b"/registry/pods/specs/web"));
    assert!(rule.matches(b"/registry/stable.example.com/shirts/specs/blue"));
    assert!(!rule.matches(b"/registry/stable.example.com/specs/blue"), "no such depth in a group");
    assert!(!rule.matches(b"/registry/stable.example.com/shirts/specs"), "has no namespace");
    assert!(!rule.matches(b"/registry/namespaces/specs"), "the Namespace object");
    assert!(!rule.matches(b"/other/pods/specs/web"));

    assert_eq!(rule.reach(&list("/registry/pods/specs")), Reach::Whole);
    assert_eq!(rule.reach(&list("/registry/pods")), Reach::Part);
    assert_eq!(rule.reach(&list("/registry/pods/default")), Reach::None);
    assert_eq!(rule.reach(&list("/registry/services")), Reach::Part);
    assert_eq!(rule.reach(&list("/registry/services/specs")), Reach::Part);
    assert_eq!(rule.reach(&list("/registry/services/specs/default")), Reach::None);
    assert_eq!(rule.reach(&list("/registry/stable.example.com")), Reach::Part);
    assert_eq!(rule.reach(&list("/registry/stable.example.com/shirts/default")), Reach::None);
    assert_eq!(rule.reach(&list("/other")), Reach::None);
    assert_eq!(rule.reach(&KeyRange::all()), Reach::Part);
}

#[test]
fn a_regular_expression_is_searched_for_in_the_key() {
    let roles = regexp("(clusterroles|roles)");
    assert!(roles.matches(b"/registry/roles/default/admin"));
    assert_eq!(roles.reach(&list("/registry/roles")), Reach::Whole);
    assert_eq!(roles.reach(&list("/registry/pods")), Reach::Part, "a pod may be named `roles`");

    let anchored = regexp("^/registry/(pods|leases)/kube-");
    assert_eq!(anchored.reach(&list("/registry/secrets")), Reach::None);
    assert_eq!(anchored.reach(&list("/registry/pods")), Reach::Part);
    assert_eq!(anchored.reach(&list("/registry/pods/default")), Reach::None);
    assert_eq!(anchored.reach(&list("/registry/leases/kube-system")), Reach::Whole);

    // A later byte can end a match that looks ahead.
    assert_eq!(regexp("^/registry/pods/$").reach(&list("/registry/pods")), Reach::Part);
    let both = Rule::regexp(Some("^/registry/pods"), Some("^/registry/pods/x")).unwrap();
    assert!(!both.matches(b"/registry/pods/y"), "`key` decides");
}

#[test]
fn a_rule_covers_another_only_where_nothing_is_left_to_it() {
    assert!(prefix("pods").covers(&namespace("default", &["pods"])));
    assert!(prefix("pods").covers(&regexp("^/registry/pods/default/")));
    assert!(prefix("/registry").covers(&namespace("default", &NO_KINDS)));
    assert!(namespace("default", &NO_KINDS).covers(&namespace("default", &["pods", "leases"])));
    assert!(regexp("roles").covers(&regexp("roles")));
    assert!(!namespace("default", &["pods"]).covers(&namespace("default", &NO_KINDS)));
    assert!(!namespace("default", &["pods"]).covers(&prefix("pods")));
    assert!(!prefix("pods").covers(&regexp("pods")));
}

#[test]
fn rules_explain_themselves_in_one_phrase() {
    assert_eq!(prefix("pods").to_string(), "`/registry/pods` and below");
    let phrase = namespace("kube-system", &["pods", "leases"]).to_string();
    assert_eq!(phrase, "pods, leases of namespace kube-system");
    let phrase = namespace("kube-system", &NO_KINDS).to_string();
    assert_eq!(phrase, "everything in namespace kube-system");
    let shirts = Rule::custom_resource("stable.example.com", Some("shirts")).unwrap();
    assert_eq!(shirts.to_string(), "custom resources shirts.stable.example.com");
    assert_eq!(regexp("^/a").to_string(), "keys that match `^/a`");
}

#[test]
fn descriptions_without_meaning_are_refused() {
    let refused = |result: Result<Rule, RuleError>| {
        let error = result.unwrap_err();
        (error.part, error.reason.to_string())
    };
    let of_kinds = |kinds: &[&str]| refused(Rule::namespace("default", kinds));
    assert_eq!(refused(Rule::prefix("/")).0, Part::Prefix);
    assert_eq!(refused(Rule::custom_resource("a/b", None)).0, Part::Group);
    assert_eq!(of_kinds(&["pods", "nodes"]).0, Part::Kinds(1));
    insta::assert_snapshot!(
        of_kinds(&["nodes"]).1,
        @"`nodes` belong to no namespace; use a prefix rule for `minions`"
    );
    insta::assert_snapshot!(
        of_kinds(&["pods", "shirts.example.com"]).1,
        @"`shirts.example.com` is a custom resource and `pods` is built in; give each a rule"
    );
    insta::assert_snapshot!(
        refused(Rule::regexp(None, Some("a(b"))).1,
        @"bad regular expression: unclosed group (at character 2)"
    );
    // What Kubernetes can't have is in no key: the route would take nothing, and nobody would notice.
    for bad in ["Kube-System", "kube_system", "kube.system", "-a", "a-", &"a".repeat(64)] {
        let (part, said) = refused(Rule::namespace(bad, &["pods"]));
        assert!(part == Part::Namespace && said.contains("lower-case letters"), "{bad}: {said}");
    }
    assert!(Rule::namespace(&"a".repeat(63), &["pods"]).is_ok());
    insta::assert_snapshot!(
        refused(Rule::custom_resource("stable.example.com", Some("Shirt"))).1,
        @"`Shirt` can be no plural; expected the plural in lower case, as `shirts`"
    );
    insta::assert_snapshot!(
        of_kinds(&["CronTabs.stable.example.com"]).1,
        @"`CronTabs.stable.example.com` can be no plural; expected the plural in lower case, as `crontabs.stable.example.com`"
    );
    assert_eq!(refused(Rule::custom_resource("Stable.example.com", None)).0, Part::Group);
    assert_eq!(refused(Rule::regexp(None, None)).1, Reason::NoRegex.to_string());
    assert_eq!(
        refused(Rule::regexp(Some(""), Some(r"\w{9999}{999}"))).1,
        "the regular expression is too big"
    );
}

#[test]
fn what_is_most_likely_not_meant_is_doubted() {
    let doubts = |rule: Rule| rule.doubts().iter().map(|d| d.reason.clone()).collect::<Vec<_>>();
    insta::assert_snapshot!(
        doubts(namespace("default", &["pod"]))[0],
        @"Kubernetes has no built-in kind with the plural `pod`; did you mean `pods`?"
    );
    insta::assert_snapshot!(
        doubts(prefix("nodes"))[0],
        @"Kubernetes keeps these objects under `/registry/minions`"
    );
    insta::assert_snapshot!(
        doubts(Rule::custom_resource("apps", Some("deployments")).unwrap())[0],
        @"`apps` is built in; its objects need a prefix rule each"
    );
    insta::assert_snapshot!(
        doubts(namespace("default", &["deployment.apps"]))[0],
        @"there is no `deployment` in the group `apps`; did you mean `deployments`?"
    );
    insta::assert_snapshot!(
        doubts(namespace("default", &["deployments.extensions"]))[0],
        @"there is no `deployments` in the group `extensions`; did you mean `deployments`?"
    );
    insta::assert_snapshot!(
        doubts(namespace("default", &["pods.v1"]))[0],
        @"there is no `pods` in the group `v1`; did you mean `pods`?"
    );
    insta::assert_snapshot!(
        doubts(namespace("default", &["Deployment"]))[0],
        @"Kubernetes has no built-in kind with the plural `Deployment`; did you mean `deployments`?"
    );
    assert!(doubts(namespace("default", &["deployments.apps"])).is_empty());
    assert!(doubts(prefix("pods")).is_empty());
    assert!(doubts(Rule::custom_resource("apiextensions.k8s.io", None).unwrap()).is_empty());
}

// Random keys over an alphabet small enough that rules, keys and bounds meet.

fn segment() -> impl Strategy<Value = String> {
    const WORDS: &[&str] =
        &["", "pods", "pod", "pods0", "services", "specs", "endpoints", "a.b", "ns", "n"];
    prop_oneof![prop::sample::select(WORDS).prop_map(str::to_owned), "[a.0/-]{0,2}"]
}

fn key() -> impl Strategy<Value = Key> {
    let segments = prop::collection::vec(segment(), 0..5);
    (segments, prop_oneof![Just(""), Just("/"), Just("\0"), Just("0")]).prop_map(
        |(segments, tail)| {
            let path = segments.join("/");
            let root = if path.len() % 7 == 6 { "" } else { "/registry/" };
            format!("{root}{path}{tail}").into()
        },
    )
}

fn any_range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::prefix),
        key().prop_map(KeyRange::single),
        (key(), key()).prop_map(|(a, b)| {
            let (start, end) = if a <= b { (a, b) } else { (b, a) };
            KeyRange { start, end: Some(end) }
        }),
        key().prop_map(|start| KeyRange { start, end: None }),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    const PATTERNS: &[&str] = &[
        "pods",
        "^/registry/pods/",
        "^/registry/(pods|a.b)/ns",
        "(?i)^/REGISTRY/n",
        "/ns/",
        "s$",
        "^/registry/[a-p]",
        "^$",
        r"\bns\b",
        "(^/registry/pods|specs)",
        "^/registry/pods/.*$",
        "^",
        "(?m)^/registry/pods",
        "x*^/registry/n",
    ];
    let kinds = prop::collection::vec(
        prop::sample::select(&["pods", "services", "endpoints", "pod"][..]),
        0..3,
    );
    let names = prop::sample::select(&["ns", "n", "specs", "pods", "a-b"][..]);
    prop_oneof![
        segment().prop_filter_map("empty", |text| Rule::prefix(&text).ok()),
        (names, kinds).prop_map(|(name, kinds)| Rule::namespace(name, &kinds).unwrap()),
        segment().prop_filter_map("bad", |text| Rule::custom_resource("a.b", Some(&text)).ok()),
        prop::sample::select(PATTERNS).prop_map(regexp),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn reach_never_excludes_a_match_nor_promises_a_miss(
        rule in any_rule(),
        range in any_range(),
        keys in prop::collection::vec(key(), 8),
    ) {
        let reach = rule.reach(&range);
        // The edges of the range are where an error would hide.
        let edges = [
            range.start.clone(),
            successor(&range.start),
            [&range.start[..], b"0"].concat().into(),
            [&range.start[..], b"/x"].concat().into(),
            [&range.start[..], b"ns/x"].concat().into(),
        ];
        for key in keys.into_iter().chain(edges).filter(|key| range.contains(key)) {
            let matches = rule.matches(&key);
            prop_assert!(!matches || reach != Reach::None, "{rule} matches {key:?}");
            prop_assert!(matches || reach != Reach::Whole, "{rule} misses {key:?}");
        }
    }

    #[test]
    fn every_key_that_a_rule_matches_lies_in_its_extent(rule in any_rule(), key in key()) {
        let extent = rule.extent();
        let bare = extent.first().map(|range| range.start.slice(..range.start.len().saturating_sub(1)));
        for key in [key].into_iter().chain(bare).filter(|key| rule.matches(key)) {
            prop_assert!(extent.iter().any(|range| range.contains(&key)), "{rule} matches {key:?}");
        }
    }

    #[test]
    fn a_covered_rule_matches_nothing_that_its_cover_leaves(
        rule in any_rule(),
        other in any_rule(),
        key in key(),
    ) {
        // A namespace rule's own path is asked for, but never a key of Kubernetes.
        let is_bare = matches!(&other.form, Form::Paths(paths) if paths.is_never_stored(&key));
        if rule.covers(&other) && other.matches(&key) && !is_bare {
            prop_assert!(rule.matches(&key), "{rule} does not match {key:?} of {other}");
        }
    }

    #[test]
    fn every_key_of_a_range_starts_with_its_common_prefix(range in any_range(), key in key()) {
        if range.contains(&key) {
            prop_assert!(key.starts_with(common_prefix(&range)));
        }
    }
}

//! Each check on a tree that has just that, and on one that is sound.

use super::{Severity, checks::examine};
use crate::proto::tree as pb;

/// A node with one store, all well.
fn sound() -> pb::Node {
    let activity = pb::Activity {
        total: 1_000,
        recent_s: 60.0,
        recent: 600,
        recent_p99_s: 0.004,
        ..pb::Activity::default()
    };
    let route = pb::Route {
        name: "main".to_owned(),
        kind: "sqlite".to_owned(),
        is_default: true,
        reads: Some(activity),
        writes: Some(activity),
        commits: Some(activity),
        keys: Some(10),
        bytes: 1 << 20,
        bytes_in_use: 1 << 19,
        misrouted: Some(0),
        ..pb::Route::default()
    };
    pb::Node {
        member: Some(pb::Member { id: 7, name: "root".to_owned() }),
        version: "0.1.0".to_owned(),
        revision: 1_000,
        closed: 1_000,
        requests: Some(activity),
        uptime_s: 3_600.0,
        watchers: 100,
        open_files: 60,
        open_files_max: 1_024,
        routes: vec![route],
        ..pb::Node::default()
    }
}

/// The checks that find something, and how bad it is, once `change` was made to the sound tree.
fn found(change: impl FnOnce(&mut pb::Node)) -> Vec<(&'static str, Severity)> {
    let mut node = sound();
    change(&mut node);
    examine(&node).iter().map(|finding| (finding.check, finding.severity)).collect()
}

#[test]
fn nothing_is_found_where_nothing_is_wrong_and_where_nothing_is_told() {
    assert_eq!(found(|_| {}), []);
    let older = pb::Node { routes: vec![pb::Route::default()], ..pb::Node::default() };
    assert_eq!(examine(&older), []);
}

#[test]
fn what_is_wrong_with_a_store_is_found() {
    use Severity::{Error, Note, Warning};
    type Change = fn(&mut pb::Route);
    let cases: [(&str, Severity, Change); 10] = [
        ("store-away", Error, |it| it.trouble = "gone".to_owned()),
        ("full", Error, |it| it.is_full = true),
        ("slow-commits", Warning, |it| it.commits.as_mut().unwrap().recent_p99_s = 0.03),
        ("slow-commits", Error, |it| it.commits.as_mut().unwrap().recent_p99_s = 0.2),
        ("misrouted", Warning, |it| it.misrouted = Some(3)),
        ("pending", Warning, |it| it.pending = 5_000),
        ("writes", Warning, |it| it.writes.as_mut().unwrap().recent_failed = 60),
        ("reads", Warning, |it| it.reads.as_mut().unwrap().recent_p99_s = 3.0),
        ("last-error", Note, |it| {
            it.last_error = Some(pb::LastError { text: "x".to_owned(), age_s: 5.0 });
        }),
        ("unused", Note, |it| (it.bytes, it.bytes_in_use) = (8 << 30, 1 << 30)),
    ];
    for (check, severity, change) in cases {
        assert_eq!(found(|node| change(&mut node.routes[0])), [(check, severity)], "{check}");
    }
}

#[test]
fn what_is_wrong_with_a_node_is_found() {
    use Severity::{Error, Note, Warning};
    type Change = fn(&mut pb::Node);
    let cases: [(&str, Severity, Change); 8] = [
        ("loop", Error, |it| it.r#loop = "a, b, a".to_owned()),
        ("alarm", Error, |it| it.alarms = vec!["NOSPACE".to_owned()]),
        ("lanes", Warning, |it| {
            it.lanes = vec![pb::Lanes { first: 0, count: 1024 }];
            it.lanes_left = 3;
        }),
        ("lanes", Warning, |it| {
            (it.giver, it.lanes_needed) = (Some(pb::Member::default()), 4);
            it.lanes = vec![pb::Lanes { first: 1, count: 2 }];
        }),
        ("closed", Warning, |it| it.revision = 100_000),
        ("open-files", Error, |it| it.open_files = 1_020),
        ("watchers", Warning, |it| it.watchers_behind = 50),
        ("uptime", Note, |it| it.uptime_s = 5.0),
    ];
    for (check, severity, change) in cases {
        assert_eq!(found(change), [(check, severity)], "{check}");
    }
}

#[test]
fn what_is_below_is_looked_at_too_and_the_worst_comes_first() {
    let mut child = sound();
    child.version = "0.0.9".to_owned();
    child.routes[0].trouble = "gone".to_owned();
    let mut root = sound();
    root.routes[0].misrouted = Some(1);
    let name = "region".to_owned();
    root.routes.push(pb::Route { name, node: Some(child), ..pb::Route::default() });
    let findings = examine(&root);
    let places: Vec<_> = findings.iter().map(|it| (it.check, it.place.as_str())).collect();
    assert_eq!(
        places,
        [
            ("store-away", "root/region/main"),
            ("misrouted", "root/main"),
            ("version", "root/region")
        ]
    );
}

#[test]
fn what_failed_and_why_is_one_finding() {
    let mut node = sound();
    let route = &mut node.routes[0];
    route.writes.as_mut().unwrap().recent_failed = 60;
    route.last_error = Some(pb::LastError { text: "the disk is gone".to_owned(), age_s: 5.0 });
    let findings = examine(&node);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].what.contains("the disk is gone"), "{}", findings[0].what);
}

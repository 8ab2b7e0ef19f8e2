//! Each check on a tree that has just that, and on one that is sound.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Finding, Severity,
    checks::{Asked, examine},
};
use crate::proto::tree as pb;

const NOW_MS: u64 = 1_000_000_000_000;

const DAY_S: i64 = 86_400;

fn examined(root: &pb::Node) -> Vec<Finding> {
    let unix_time = Duration::from_millis(NOW_MS);
    examine(root, &Asked { took: Duration::from_secs(1), unix_time })
}

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
        pool: Some(pb::Pool { connections_max: 4, waits: Some(activity), ..pb::Pool::default() }),
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
        time_ms: NOW_MS,
        connections: 3,
        connections_max: 512,
        quota_bytes: 4 << 30,
        certificates: vec![pb::Certificate {
            setting: "--cert-file".to_owned(),
            ends_in_s: 60 * DAY_S,
            lasts_s: 90 * DAY_S,
            ..pb::Certificate::default()
        }],
        routes: vec![route],
        ..pb::Node::default()
    }
}

/// The checks that find something, and how bad it is, once `change` was made to the sound tree.
fn found(change: impl FnOnce(&mut pb::Node)) -> Vec<(&'static str, Severity)> {
    let mut node = sound();
    change(&mut node);
    examined(&node).iter().map(|finding| (finding.check, finding.severity)).collect()
}

#[test]
fn nothing_is_found_where_nothing_is_wrong_and_where_nothing_is_told() {
    assert_eq!(found(|_| {}), []);
    let older = pb::Node { routes: vec![pb::Route::default()], ..pb::Node::default() };
    assert_eq!(examined(&older), []);
}

fn waits(route: &mut pb::Route) -> &mut pb::Activity {
    route.pool.as_mut().unwrap().waits.as_mut().unwrap()
}

#[test]
fn what_is_wrong_with_a_store_is_found() {
    use Severity::{Error, Note, Warning};
    type Change = fn(&mut pb::Route);
    let cases: [(&str, Severity, Change); 14] = [
        ("detached", Warning, |it| it.is_detached = true),
        ("not-durable", Warning, |it| it.hazards = vec!["fsync is off".to_owned()]),
        ("pool", Warning, |it| waits(it).recent_p99_s = 0.5),
        ("pool", Warning, |it| (waits(it).recent, waits(it).recent_failed) = (1, 1)),
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
    let cases: [(&str, Severity, Change); 19] = [
        ("connections", Warning, |it| it.connections = 500),
        ("revisions", Error, |it| (it.revision, it.closed) = (1 << 53, 1 << 53)),
        ("quota", Warning, |it| it.routes[0].bytes_in_use = 3_400 << 20),
        ("quota", Error, |it| it.routes[0].bytes_in_use = 4 << 30),
        ("certificate", Warning, |it| it.certificates[0].ends_in_s = 20 * DAY_S),
        ("certificate", Error, |it| it.certificates[0].ends_in_s = DAY_S),
        ("certificate", Error, |it| it.certificates[0].ends_in_s = -DAY_S),
        // One of a day, renewed every hour.
        ("certificate", Warning, |it| {
            (it.certificates[0].ends_in_s, it.certificates[0].lasts_s) = (DAY_S / 6, DAY_S);
        }),
        ("certificate", Warning, |it| {
            (it.certificates[0].ends_in_s, it.certificates[0].lasts_s) =
                (29 * DAY_S, 3_650 * DAY_S);
        }),
        ("clock", Warning, |it| it.time_ms += 4_000),
        ("clock", Warning, |it| it.time_ms -= 4_000),
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
    let findings = examined(&root);
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
fn a_childs_clock_is_held_against_that_of_the_node_that_was_asked() {
    let clocks = |ahead: u64| {
        let mut root = sound();
        let child = pb::Node { time_ms: NOW_MS + ahead, ..sound() };
        let name = "region".to_owned();
        root.routes.push(pb::Route { name, node: Some(child), ..pb::Route::default() });
        examined(&root).into_iter().map(|it| (it.check, it.place)).collect::<Vec<_>>()
    };
    assert_eq!(clocks(2_500), [], "the answer took a second, and two are nothing");
    assert_eq!(clocks(3_500), [("clock", "root/region".to_owned())]);
}

/// Every alert of deploy/prometheus is one that a finding names, or one of what was, which nobody tells.
#[test]
fn the_alerts_that_are_named_are_those_that_there_are() {
    let rules = include_str!("../../../deploy/prometheus/pleach.rules.yaml");
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: BTreeSet<&str> = alerts.collect();
    let of_the_past = [
        "PleachAbsent",
        "PleachNodeDown",
        "PleachNodeRestartsOften",
        "PleachQuotaWillBeReached",
        "PleachNotCompacted",
        "PleachRevisionWentBack",
        "PleachClockLeapt",
        "PleachWatchersGone",
    ];
    let source = include_str!("checks.rs");
    let named = source.split('"').filter(|text| text.starts_with("Pleach"));
    let named: BTreeSet<&str> = named.chain(of_the_past).collect();
    assert_eq!(named, alerts);
}

#[test]
fn what_failed_and_why_is_one_finding() {
    let mut node = sound();
    let route = &mut node.routes[0];
    route.writes.as_mut().unwrap().recent_failed = 60;
    route.last_error = Some(pb::LastError { text: "the disk is gone".to_owned(), age_s: 5.0 });
    let findings = examined(&node);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].what.contains("the disk is gone"), "{}", findings[0].what);
}

//! `check` and `explain`.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use pleach::proto::etcdserverpb as pb;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use crate::{
    call::{client, pleach, put},
    support::{node::Node, process::eventually},
};

const BAD: &str = "\
backends:
- name: one
  endpoint: sqlight://./one.db
  prefix:
    prefix: pods
- name: one
  endpoint: sqlite://./two.db
  prefixes:
    prefix: leases
- name: three
  endpoint: sqlite://./three.db
  regexp:
    regexp: '('
";

/// A topology of this repository.
const FOUR_STORES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/topologies/four-stores.yaml");

#[tokio::test]
async fn check_prints_the_routes_of_a_good_file() -> Result<()> {
    let folder = TempDir::new()?;
    let ended = pleach(folder.path(), &["check", FOUR_STORES]).await?;
    ensure!(ended.is_success, "{}", ended.stderr);
    let names: Vec<_> = ended.stdout.lines().filter_map(|line| line.split(':').next()).collect();
    ensure!(names == ["build-pods", "leases", "product", "main"], "{}", ended.stdout);
    ensure!(fs::read_dir(folder.path())?.next().is_none(), "check made a file");
    Ok(())
}

#[tokio::test]
async fn every_topology_of_the_repository_is_good() -> Result<()> {
    let folder = TempDir::new()?;
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies")];
    let mut count = 0;
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // A story has other files beside its topologies.
            let text = fs::read_to_string(&path)?;
            if !text.lines().any(|line| line == "backends:") {
                continue;
            }
            let ended = pleach(folder.path(), &["check", &path.to_string_lossy()]).await?;
            ensure!(ended.is_success && ended.stderr.is_empty(), "{path:?}: {}", ended.stderr);
            count += 1;
        }
    }
    ensure!(count >= 9, "only {count} were found");
    Ok(())
}

#[tokio::test]
async fn check_reports_all_mistakes_of_a_bad_file_at_once_with_their_places() -> Result<()> {
    let folder = TempDir::new()?;
    fs::write(folder.path().join("bad.yaml"), BAD)?;
    let ended = pleach(folder.path(), &["check", "bad.yaml"]).await?;
    ensure!(!ended.is_success && ended.stdout.is_empty(), "{ended:?}");
    for place in ["bad.yaml:3:", "bad.yaml:6:", "bad.yaml:8:", "bad.yaml:13:"] {
        ensure!(ended.stderr.contains(place), "{place} is not in:\n{}", ended.stderr);
    }
    ensure!(ended.stderr.contains("sqlite"), "no remedy for the scheme:\n{}", ended.stderr);
    Ok(())
}

#[tokio::test]
async fn check_names_a_file_that_is_missing_or_no_text() -> Result<()> {
    let folder = TempDir::new()?;
    fs::write(folder.path().join("binary"), [0xff, 0x00, 0xfe])?;
    for name in ["missing", "binary"] {
        let ended = pleach(folder.path(), &["check", name]).await?;
        ensure!(!ended.is_success && ended.stderr.contains(name), "{ended:?}");
        ensure!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn explain_says_which_store_takes_a_key_and_why_the_others_do_not() -> Result<()> {
    let cases: [(&str, &[&str]); 4] = [
        ("/registry/pods/builds/job-1", &["build-pods:", "build-pods.db"]),
        ("/registry/pods/default/web", &["not build-pods", "not leases", "main: no route"]),
        ("/registry/leases/kube-system/x", &["leases:", "leases.db"]),
        ("/registry/stable.example.com/crons/default/x", &["product:", "product.db"]),
    ];
    for (key, parts) in cases {
        ensure_explained(key, parts).await?;
    }
    Ok(())
}

#[tokio::test]
async fn explain_says_which_stores_hold_keys_of_a_prefix() -> Result<()> {
    ensure_explained("/registry/pods/", &["build-pods: some keys", "main: the rest"]).await?;
    ensure_explained("/registry/pods/builds/", &["build-pods: all that is left"]).await?;
    ensure_explained("/registry/leases/", &["leases: all that is left"]).await
}

async fn ensure_explained(key: &str, parts: &[&str]) -> Result<()> {
    let ended = pleach(Path::new("."), &["explain", key, "--topology", FOUR_STORES]).await?;
    ensure!(ended.is_success, "{key}: {}", ended.stderr);
    for part in parts {
        ensure!(ended.stdout.contains(part), "{key}: {part} is not in:\n{}", ended.stdout);
    }
    Ok(())
}

/// For programs: what is good, what is wrong with its place, and which routes take a key.
#[tokio::test]
async fn check_and_explain_answer_programs() -> Result<()> {
    let folder = TempDir::new()?;
    let json = async |arguments: &[&str]| -> Result<(Option<i32>, Value)> {
        let ended = pleach(folder.path(), &[arguments, &["-o", "json"]].concat()).await?;
        Ok((ended.code, serde_json::from_str(&ended.stdout)?))
    };
    let (code, good) = json(&["check", FOUR_STORES]).await?;
    ensure!(code == Some(0) && good["routes"][1]["route"] == "leases", "{good}");
    ensure!(good["mistakes"] == json!([]) && good["routes"][3]["rule"].is_null(), "{good}");
    fs::write(folder.path().join("bad.yaml"), BAD)?;
    let (code, bad) = json(&["check", "bad.yaml"]).await?;
    ensure!(code == Some(1) && bad["routes"] == json!([]), "{bad}");
    let first = &bad["mistakes"][0];
    ensure!(first["line"] == 3 && first["column"] == 13, "{bad}");
    let (_, key) = json(&["explain", "/registry/leases/a/b", "--topology", FOUR_STORES]).await?;
    let reaches = |value: &Value| -> Vec<(String, String)> {
        let routes = value["routes"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        routes.iter().map(|it| (text(&it["route"]), text(&it["reach"]))).collect()
    };
    let pair = |route: &str, reach: &str| (route.to_owned(), reach.to_owned());
    ensure!(reaches(&key) == [pair("build-pods", "none"), pair("leases", "whole")], "{key}");
    let (_, pods) = json(&["explain", "/registry/pods/", "--topology", FOUR_STORES]).await?;
    let ends = [pair("build-pods", "part"), pair("main", "part")];
    let found = reaches(&pods);
    ensure!(found.first() == ends.first() && found.last() == ends.last(), "{pods}");
    Ok(())
}

/// A store whose route says `compact…` gives up its past by itself, all but what it is to retain; no other
/// store does.
#[tokio::test]
async fn a_store_compacts_by_itself_where_its_route_says_so() -> Result<()> {
    const RETAINED: i64 = 20;
    let folder = TempDir::new()?;
    let topology = "backends:\n- name: events\n  endpoint: sqlite://DB\n  prefix:\n    \
                    prefix: events\n  compactInterval: 200ms\n  compactIntervalJitter: 100\n  \
                    compactMinRetain: 20\n";
    let file = folder.path().join("events.db").display().to_string();
    let topology = topology.replace("DB", &file);
    let mut node = Node::new(folder.path(), &[])?.with_topology(&topology)?;
    let channel = node.start().await?;
    let key = "/registry/events/a";
    let first = put(&channel, key, "0").await?;
    let beside = put(&channel, "/registry/pods/a", "0").await?;
    let mut last = beside;
    for value in 1..60 {
        last = put(&channel, key, value.to_string()).await?;
    }
    let at = async |key: &'static str, revision| {
        let read = pb::RangeRequest { key: key.into(), revision, ..Default::default() };
        client(&channel).range(read).await
    };
    eventually("the past is given up", Duration::from_secs(20), async || {
        let read = at(key, first).await;
        ensure!(read.as_ref().is_err_and(|status| status.code() == Code::OutOfRange), "{read:?}");
        Ok(())
    })
    .await?;
    for revision in last - RETAINED..=last {
        ensure!(at(key, revision).await.is_ok(), "revision {revision} of {last} is gone");
    }
    ensure!(at("/registry/pods/a", beside).await.is_ok(), "another store was compacted");
    Ok(())
}

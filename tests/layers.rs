//! The layout is a promise: what stands lower uses what stands higher, never the other way round; and
//! the words of the wire and of databases stay where they belong.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The layers from the top down, as `src/lib.rs` lists them.
const LAYERS: [&str; 12] = [
    "proto",
    "model",
    "clock",
    "wire",
    "store",
    "route",
    "watch",
    "node",
    "server",
    "topology",
    "telemetry",
    "cli",
];

/// What each of the layers that know neither gRPC nor, but for one, databases may name.
const MAY_NAME: [(&str, &[&str]); 4] = [
    ("model", &[]),
    ("clock", &["tokio"]),
    ("store", &["tokio", "rusqlite", "sqlx"]),
    ("route", &["tokio"]),
];

/// What parts of a layer may name beside that.
const PARTS_MAY_NAME: [(&str, &[&str]); 2] =
    [("store/etcd/", &["tonic", "prost"]), ("store/node/", &["tonic", "prost"])];

/// What only some layers may name.
const CRATES: [&str; 6] = ["tonic", "prost", "rusqlite", "sqlx", "axum", "hyper"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn layer(name: &str) -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source is text");
        (path, text)
    };
    sources(&src.join(name)).into_iter().map(read).collect()
}

/// The modules of this crate that a text names.
fn uses<'l>(text: &str, names: &[&'l str]) -> Vec<&'l str> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = code.collect::<Vec<_>>().join("\n");
    let grouped = code.replace("crate::{\n", "crate::{");
    let mut used = Vec::new();
    for name in names {
        let direct = code.contains(&format!("crate::{name}"));
        let in_group = grouped.split("crate::{").skip(1).any(|group| {
            let group = group.split("};").next().unwrap_or_default();
            group
                .split_whitespace()
                .any(|word| word.strip_prefix(name).is_some_and(|rest| rest.starts_with("::")))
        });
        if direct || in_group {
            used.push(*name);
        }
    }
    used
}

#[test]
fn no_layer_uses_one_that_stands_lower() {
    let mut wrong = Vec::new();
    for (at, name) in LAYERS.iter().enumerate() {
        for (path, text) in layer(name) {
            for lower in uses(&text, &LAYERS[at + 1..]) {
                wrong.push(format!("{} uses {lower}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_layer_that_is_used_from_above_would_be_noticed() {
    assert_eq!(uses("use crate::server::Face;", &LAYERS), ["server"]);
    assert_eq!(
        uses("use crate::{\n    model::Key,\n    node::{Node},\n};", &LAYERS),
        ["model", "node"]
    );
    assert!(uses("// as crate::server says", &LAYERS).is_empty());
}

#[test]
fn the_wire_and_the_databases_are_named_only_where_they_belong() {
    let mut wrong = Vec::new();
    for (name, allowed) in MAY_NAME {
        for (path, text) in layer(name) {
            let is_inside = |part: &str| path.to_string_lossy().contains(part);
            let parts = PARTS_MAY_NAME.iter().filter(|(part, _)| is_inside(part));
            let more: Vec<&str> = parts.flat_map(|(_, more)| *more).copied().collect();
            let is_refused = |krate: &&&str| !allowed.contains(*krate) && !more.contains(*krate);
            for krate in CRATES.iter().filter(is_refused) {
                if text.contains(&format!("{krate}::")) {
                    wrong.push(format!("{} names {krate}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn spans_are_made_with_tracing_and_collected_in_one_place() {
    let others = LAYERS.iter().filter(|name| **name != "telemetry");
    let naming =
        others.flat_map(|name| layer(name)).filter(|(_, text)| text.contains("opentelemetry::"));
    let wrong: Vec<_> = naming.map(|(path, _)| path).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_layer_of_the_crate_is_listed_here_in_its_order() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    let lib = lib.expect("the crate has a root");
    let modules: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(modules, LAYERS);
}

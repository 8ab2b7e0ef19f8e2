//! The layout is a promise: what stands lower uses what stands higher, never the other way round; siblings,
//! and crates, only where it is written down here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A room, the rooms that it may name, and the crates.
type Room = (&'static str, &'static [&'static str], &'static [&'static str]);

/// The rooms from the top down, as `src/lib.rs` lists them. What stands in a folder of a room and is listed
/// too is a room of its own. All may name what [`ANYWHERE`] says.
const ROOMS: &[Room] = &[
    ("proto", &[], &["tonic"]),
    ("select", &[], &["minicbor", "serde", "serde_json"]),
    ("model", &["select"], &["bytes", "strsim"]),
    ("clock", &["model"], &["tokio"]),
    (
        "wire",
        &["proto", "select", "model", "clock"],
        &["bytes", "http", "prost", "tonic", "tracing_opentelemetry"],
    ),
    ("net", &[], &["hyper_util", "rustls", "tokio", "tonic"]),
    (
        "store",
        &["proto", "select", "model", "clock", "store/attach"],
        &["async_trait", "bytes", "tokio"],
    ),
    ("store/records", &["proto", "model", "store"], &["bytes", "crc32fast", "prost", "serde_json"]),
    ("store/attach", &["proto", "model", "clock", "store", "store/slot"], &["tokio"]),
    (
        "store/slot",
        &["proto", "model", "clock", "store", "store/attach", "store/records"],
        &["async_trait", "tokio", "tokio_util"],
    ),
    (
        "store/led",
        &["select", "model", "clock", "wire", "store", "store/attach"],
        &["async_trait", "bytes", "rustix", "tokio"],
    ),
    (
        "store/memory",
        &["model", "clock", "store", "store/led", "store/attach"],
        &["async_trait", "bytes"],
    ),
    (
        "store/sql",
        &["proto", "select", "model", "clock", "wire", "net", "store", "store/led"],
        &["async_trait", "bytes", "crc32fast", "prost", "rusqlite", "rustix", "sqlx", "tokio"],
    ),
    (
        "store/etcd",
        &["proto", "model", "clock", "wire", "net", "store", "store/led"],
        &["async_trait", "bytes", "prost", "tokio", "tokio_stream", "tonic"],
    ),
    (
        "tree",
        &["proto", "model", "clock", "wire", "net", "store", "store/attach", "store/records"],
        &["async_trait", "bytes", "prost", "tokio", "tokio_util", "tonic"],
    ),
    (
        "route",
        &["model", "clock", "store", "store/attach"],
        &["async_trait", "bytes", "regex", "regex_syntax", "tokio", "tokio_stream"],
    ),
    ("watch", &["select", "model", "clock", "store", "route"], &["bytes", "tokio", "tokio_util"]),
    (
        "node",
        &["proto", "select", "model", "clock", "store", "store/records", "tree", "route", "watch"],
        &["bytes", "tokio"],
    ),
    (
        "topology",
        &["clock", "select", "model", "net", "route"],
        &["granit_parser", "http", "strsim"],
    ),
    (
        "assembly",
        &[
            "proto",
            "model",
            "clock",
            "net",
            "store",
            "store/attach",
            "store/records",
            "store/slot",
            "store/sql",
            "store/etcd",
            "tree",
            "route",
            "node",
            "topology",
        ],
        &["async_trait", "tokio"],
    ),
    (
        "server",
        &[
            "proto", "select", "model", "clock", "wire", "net", "store", "tree", "route", "node",
            "watch",
        ],
        &[
            "askama",
            "axum",
            "bytes",
            "httlib_hpack",
            "http",
            "hyper",
            "percent_encoding",
            "prometheus",
            "prost",
            "rustls",
            "serde_json",
            "tokio",
            "tokio_rustls",
            "tokio_stream",
            "tokio_util",
            "tonic",
            "tonic_reflection",
            "tower",
            "x509_parser",
        ],
    ),
    (
        "telemetry",
        &["wire"],
        &[
            "http",
            "opentelemetry",
            "opentelemetry_otlp",
            "opentelemetry_proto",
            "opentelemetry_sdk",
            "percent_encoding",
            "prometheus",
            "tokio",
            "tonic",
            "tracing_opentelemetry",
            "tracing_subscriber",
        ],
    ),
    (
        "cli",
        &[
            "proto",
            "model",
            "clock",
            "net",
            "wire",
            "store/attach",
            "tree",
            "route",
            "node",
            "topology",
            "assembly",
            "server",
            "telemetry",
        ],
        &[
            "anyhow",
            "bytes",
            "clap",
            "clap_complete",
            "clap_mangen",
            "gethostname",
            "opentelemetry_proto",
            "rustix",
            "sd_notify",
            "serde",
            "serde_json",
            "tokio",
            "tokio_util",
            "tonic",
        ],
    ),
];

/// What every room may name.
const ANYWHERE: &[&str] = &["std", "core", "futures", "thiserror", "tracing"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

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

/// The module that a file is, as a path: `store/sql/writer`.
fn module(path: &Path) -> String {
    let path = path.strip_prefix(root()).expect("it is a source").with_extension("");
    let path = path.to_string_lossy().into_owned();
    path.strip_suffix("/mod").unwrap_or(&path).to_owned()
}

/// The room that a module is in: the longest that is listed.
fn room_of(module: &str) -> Option<&'static Room> {
    let is_in = |room: &&Room| {
        module.strip_prefix(room.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    ROOMS.iter().filter(is_in).max_by_key(|room| room.0.len())
}

/// The code of a file without its comments, its strings and its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut code = String::new();
    for line in lines {
        let mut is_text = false;
        let mut before = ' ';
        for letter in line.chars() {
            if letter == '"' && before != '\\' && before != '\'' {
                is_text = !is_text;
            }
            if !is_text {
                code.push(letter);
            }
            before = letter;
        }
        code.push('\n');
    }
    code
}

/// All paths that code names, those of `use` in braces unfolded.
fn paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for piece in code.split("use ").skip(1) {
        if let Some(tree) = piece.split(';').next() {
            unfold("", tree, &mut found);
        }
    }
    let is_of_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    for word in code.split(|letter: char| !is_of_path(letter)) {
        if word.contains("::") {
            found.insert(word.trim_matches(':').to_owned());
        }
    }
    found
}

fn unfold(before: &str, tree: &str, found: &mut BTreeSet<String>) {
    let tree = tree.trim();
    let Some((head, inside)) = tree.split_once('{') else {
        for part in tree.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let name = part.split(" as ").next().unwrap_or_default();
            found.insert(format!("{before}{name}"));
        }
        return;
    };
    let head = format!("{before}{}", head.trim());
    let inside = inside.rsplit_once('}').map_or(inside, |(inside, _)| inside);
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in inside.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                unfold(&head, &inside[start..at], found);
                start = at + 1;
            }
            _ => {}
        }
    }
    unfold(&head, &inside[start..], found);
}

/// The module that a path names, seen from another one; `None` for what is of another crate.
fn resolved(from: &str, path: &str) -> Option<String> {
    let mut parts = path.split("::");
    let mut at: Vec<&str> = match parts.next()? {
        "crate" => Vec::new(),
        "self" => from.split('/').collect(),
        "super" => {
            let mut parent: Vec<&str> = from.split('/').collect();
            parent.pop();
            parent
        }
        _ => return None,
    };
    for part in parts {
        match part {
            "super" => drop(at.pop()),
            part => at.push(part),
        }
    }
    Some(at.join("/"))
}

/// What is named and may not be, as `room names other`, with a file that does.
fn wrong(files: &[(String, String)]) -> BTreeMap<String, String> {
    let mut wrong = BTreeMap::new();
    for (module, text) in files {
        let Some((room, rooms, crates)) = room_of(module) else { continue };
        for path in paths(&code(text)) {
            let other = match resolved(module, &path) {
                Some(other) => match room_of(&other) {
                    Some((other, ..)) if other != room && !rooms.contains(other) => *other,
                    _ => continue,
                },
                None => {
                    let name = path.split("::").next().unwrap_or_default();
                    let is_crate = CRATES.contains(&name);
                    match is_crate && !crates.contains(&name) && !ANYWHERE.contains(&name) {
                        true => CRATES.iter().find(|known| **known == name).expect("it is one"),
                        false => continue,
                    }
                }
            };
            wrong.insert(format!("{room} names {other}"), module.clone());
        }
    }
    wrong
}

/// The crates that the package depends on, as code names them.
const CRATES: &[&str] = &[
    "anyhow",
    "askama",
    "async_trait",
    "axum",
    "bytes",
    "clap",
    "clap_complete",
    "clap_mangen",
    "crc32fast",
    "futures",
    "gethostname",
    "granit_parser",
    "httlib_hpack",
    "http",
    "hyper",
    "hyper_util",
    "mimalloc",
    "minicbor",
    "opentelemetry",
    "opentelemetry_otlp",
    "opentelemetry_proto",
    "opentelemetry_sdk",
    "percent_encoding",
    "prometheus",
    "prost",
    "regex",
    "regex_syntax",
    "rusqlite",
    "rustix",
    "rustls",
    "sd_notify",
    "serde",
    "serde_json",
    "sqlx",
    "strsim",
    "thiserror",
    "tokio",
    "tokio_rustls",
    "tokio_stream",
    "tokio_util",
    "tonic",
    "tonic_prost",
    "tonic_reflection",
    "tower",
    "tracing",
    "tracing_opentelemetry",
    "tracing_subscriber",
    "x509_parser",
];

/// The sources but for files of tests alone.
fn all() -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source is text");
        (module(&path), text)
    };
    let is_code = |path: &PathBuf| path.file_name().is_none_or(|name| name != "tests.rs");
    sources(&root()).into_iter().filter(is_code).map(read).collect()
}

/// A crate that is not listed could be named everywhere.
#[test]
fn every_crate_of_the_package_is_listed() {
    let manifest = root().with_file_name("Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("the manifest is text");
    let dependencies = manifest.split_once("\n[dependencies]\n").expect("there are some").1;
    let dependencies = dependencies.split("\n[").next().unwrap_or_default();
    let names = dependencies.lines().filter_map(|line| line.split_once(" =")).map(|(name, _)| name);
    let names: BTreeSet<String> = names.map(|name| name.trim().replace('-', "_")).collect();
    let unlisted: Vec<&String> =
        names.iter().filter(|name| !CRATES.contains(&name.as_str())).collect();
    assert!(names.len() > 20 && unlisted.is_empty(), "{unlisted:?} of {names:?}");
}

/// What ARCHITECTURE.md tells people of the rooms is what holds.
#[test]
fn the_architecture_lists_the_same_rooms() {
    let page = root().with_file_name("ARCHITECTURE.md");
    let page = fs::read_to_string(page).expect("the page is text");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let told: BTreeMap<&str, &str> = rows.collect();
    for (room, rooms, crates) in ROOMS {
        let list = |names: &[&str]| match names {
            [] => "–".to_owned(),
            names => names.join(", "),
        };
        let row = told.get(room).unwrap_or_else(|| panic!("{room} is not in the table"));
        let ours = format!("| {} | {} |", list(rooms), list(crates));
        assert!(row.ends_with(&ours), "the row of {room} ends with `{row}`, not `{ours}`");
    }
}

#[test]
fn each_room_names_only_what_it_may() {
    let wrong = wrong(&all());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_room_may_name_only_what_stands_higher() {
    for (at, (room, rooms, _)) in ROOMS.iter().enumerate() {
        for other in *rooms {
            let is_sibling = room.starts_with("store") && other.starts_with("store");
            let place = ROOMS.iter().position(|(name, ..)| name == other);
            let place =
                place.unwrap_or_else(|| panic!("{room} may name {other}, which is no room"));
            assert!(place < at || is_sibling, "{room} may name {other}, which stands lower");
        }
    }
}

#[test]
fn what_is_named_from_above_or_aside_would_be_noticed() {
    let planted = |module: &str, text: &str| {
        wrong(&[(module.to_owned(), text.to_owned())]).into_keys().collect::<Vec<_>>()
    };
    assert_eq!(planted("route/fan", "use crate::server::Services;"), ["route names server"]);
    let grouped = "use crate::{\n    model::Key,\n    node::{kv, Node},\n};";
    assert_eq!(planted("watch", grouped), ["watch names node"]);
    assert_eq!(
        planted("store/sql/writer", "use super::super::etcd::Wire;"),
        ["store/sql names store/etcd"]
    );
    assert_eq!(planted("model/key", "fn f() { tokio::spawn(g()); }"), ["model names tokio"]);
    assert!(planted("route", "// as crate::server says\nlet a = \"tonic::Status\";").is_empty());
}

#[test]
fn spans_are_made_with_tracing_and_collected_in_one_place() {
    let naming = all().into_iter().filter(|(module, _)| !module.starts_with("telemetry"));
    let naming = naming.filter(|(_, text)| code(text).contains("opentelemetry::"));
    let wrong: Vec<_> = naming.map(|(module, _)| module).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_room_of_the_crate_is_listed_here_in_its_order() {
    let lib = fs::read_to_string(root().join("lib.rs")).expect("the crate has a root");
    let modules: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let rooms: Vec<&str> =
        ROOMS.iter().map(|(name, ..)| *name).filter(|name| !name.contains('/')).collect();
    assert_eq!(modules, rooms);
}

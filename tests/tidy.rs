//! What no lint says of the sources: one idea a file, no leftovers, and a page that says what is so.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a file may have before it holds more than one idea, whatever it says.
const LINES_MAX: usize = 850;
/// What `rustfmt` does not break: comments and texts.
const COLUMNS_MAX: usize = 120;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder of the repository whose names end so.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is there") {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let all = ["src", "tests", "benches"].map(|folder| files(folder, ".rs")).concat();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source is text");
        let name = path.strip_prefix(root()).expect("it lies there").display().to_string();
        (name, text)
    };
    all.into_iter().map(read).filter(|(name, _)| name != "tests/tidy.rs").collect()
}

/// Places where `is_wrong` says so of a line.
fn lines_where(is_wrong: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in sources() {
        for (at, line) in text.lines().enumerate().filter(|(_, line)| is_wrong(line)) {
            found.push(format!("{name}:{}: {}", at + 1, line.trim()));
        }
    }
    found
}

#[test]
fn every_file_says_what_it_is_and_is_no_longer_than_an_idea() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let count = text.lines().count();
        if count > LINES_MAX {
            wrong.push(format!("{name} has {count} lines"));
        }
        if !text.starts_with("//!") && !name.ends_with("src/proto/mod.rs") {
            wrong.push(format!("{name} does not begin with what it is"));
        }
        let file = Path::new(&name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if ["util", "utils", "common", "helper", "helpers", "manager", "misc"].contains(&&*file) {
            wrong.push(format!("{name} is the name of no idea"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_over() {
    let leftovers = ["TODO", "FIXME", "XXX", "HACK", "dbg!(", "println!(\"DEBUG"];
    let wrong = lines_where(|line| leftovers.iter().any(|word| line.contains(word)));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn lines_can_be_read_side_by_side() {
    let is_comment = |line: &str| line.trim_start().starts_with("//");
    let wrong = lines_where(|line| line.chars().count() > COLUMNS_MAX && is_comment(line));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_allowed_has_a_reason() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        for allow in text.split("allow(").skip(1) {
            let inside = allow.split(")]").next().unwrap_or_default();
            let is_attribute = text.contains(&format!("[allow({inside})]"));
            if is_attribute && !inside.contains("reason = ") {
                wrong.push(format!("{name}: allow({inside})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The tests that ARCHITECTURE names for its invariants are there, and so are the files.
#[test]
fn the_architecture_names_what_there_is() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page is text");
    let sources = sources();
    let mut wrong = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| ") && line.ends_with('|')) {
        // The file that stands before a test has it; the conformance suite's stand without one.
        let mut file = None;
        for name in row.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") && name.contains('/') {
                file = [name.to_owned(), format!("src/{name}")]
                    .into_iter()
                    .find(|name| root().join(name).is_file());
                if file.is_none() {
                    wrong.push(format!("{name} is no file"));
                }
            }
            let is_test = name.len() > 24 && name.contains('_') && !name.contains([':', '/', ' ']);
            // Macros make some, by a line of their own.
            let is_line = |line: &str| {
                let rest = line.trim_start().strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with([':', ',']))
            };
            let has = |(path, text): &(String, String)| {
                let is_here = text.contains(&format!("fn {name}")) || text.lines().any(is_line);
                file.as_ref().is_none_or(|file| file == path) && is_here
            };
            if is_test && !sources.iter().any(has) {
                let place = file.as_deref().unwrap_or("any file");
                wrong.push(format!("{name} is no function of {place}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A test that nobody runs shows nothing.
#[test]
fn every_test_is_run() {
    let run = fs::read_to_string(root().join("tests/run")).expect("the command is text");
    let mut wrong = Vec::new();
    for entry in fs::read_dir(root().join("tests")).expect("the folder is there") {
        let path = entry.expect("a folder can be listed").path();
        let is_test =
            path.join("main.rs").is_file() || path.extension().is_some_and(|it| it == "rs");
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let tests = run.lines().filter(|line| line.contains("cargo test"));
        let mut words = tests.flat_map(str::split_whitespace);
        if is_test && !words.any(|word| word == name) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?} are in no line of tests/run");
}

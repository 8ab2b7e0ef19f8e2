//! Topology files: any text is read or refused, and what is said of it is true.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use pleach::{
    clock::{Clock, Lane, REVISION_MAX, SharedClock},
    model::{Key, KeyRange},
    route::{Route, Router},
    store::memory::Memory,
    topology::{Backend, DEFAULT_NAME, Endpoint, Mistakes, Topology},
};

const FILE: &str = "topology.yaml";

/// Keys are made of so many words of the text, for the square of them.
const WORDS_MAX: usize = 8;

/// Passwords that could stand in a text by chance prove nothing.
const PASSWORD_BYTES_MIN: usize = 4;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let parsed = Topology::parse(text, FILE);
    match &parsed {
        Ok(topology) => {
            check_mistakes(&topology.warnings, text);
            check_names(topology);
            check_secrets(topology, text);
            check_routes(topology, text);
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            check_mistakes(mistakes, text);
        }
    }
    if !text.contains('\r') {
        // What is said of broken YAML may differ: a parser that looks further ahead sees another end.
        let on_windows = Topology::parse(&text.replace('\n', "\r\n"), FILE);
        assert_eq!(on_windows.ok(), parsed.ok());
    }
});

/// Mistakes stand in the text, in its order, and show the line that they name.
fn check_mistakes(mistakes: &Mistakes, text: &str) {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.split('\n').collect();
    for mistake in mistakes.iter() {
        let line = mistake.line.checked_sub(1).and_then(|line| lines.get(line));
        let columns = line.map(|line| 1..=line.chars().count() + 1);
        let is_inside = columns.is_some_and(|columns| columns.contains(&mistake.column));
        assert!(is_inside, "{}:{} is not in the text: {mistake}", mistake.line, mistake.column);
    }
    assert!(mistakes.iter().is_sorted_by_key(|mistake| (mistake.line, mistake.column)));
    for message in mistakes.to_string().lines() {
        let shown = message.strip_prefix(' ').and_then(|message| message.split_once(" | "));
        let shown = shown.and_then(|(number, shown)| Some((number.parse::<usize>().ok()?, shown)));
        if let Some((number, shown)) = shown {
            let shown = shown.strip_suffix("***").unwrap_or(shown).trim_end();
            assert!(lines[number - 1].replace('\t', " ").starts_with(shown), "{message}");
        }
    }
}

/// Two routes of one name or on one store would be one to everybody else.
fn check_names(topology: &Topology) {
    let names: BTreeSet<&str> = topology.backends.iter().map(|b| &b.name[..]).collect();
    assert_eq!(names.len(), topology.backends.len());
    assert!(!names.contains(DEFAULT_NAME) && !names.contains(""));
    let stores: BTreeSet<String> = endpoints(topology).map(Endpoint::identity).collect();
    assert_eq!(stores.len(), endpoints(topology).count());
    for endpoint in endpoints(topology) {
        // What is shown of a store names it, where no part of it was left out, such as a session's
        // settings, or needs escapes.
        let shown = endpoint.to_string();
        if let Endpoint::Postgres(database) | Endpoint::Mysql(database) = endpoint
            && !database.settings.is_empty()
        {
            continue;
        }
        let is_plain = shown.chars().all(|c| c.is_ascii_alphanumeric() || "./:_-".contains(c));
        if is_plain && let Ok(again) = Endpoint::parse(&shown) {
            assert_eq!(again.identity(), endpoint.identity(), "{shown}");
        }
    }
}

fn endpoints(topology: &Topology) -> impl Iterator<Item = &Endpoint> {
    topology.default.iter().chain(topology.backends.iter().map(|backend| &backend.endpoint))
}

/// No form of a topology shows what stands in its file as a password and nowhere else.
fn check_secrets(topology: &Topology, text: &str) {
    // An alias repeats what it stands for, and an escape says it in other words.
    if text.contains(['*', '\\']) {
        return;
    }
    let line = |b: &Backend| format!("{}: {} -> {}", b.name, b.rule, b.endpoint);
    let lines: Vec<String> = topology.backends.iter().map(line).collect();
    let shown = format!("{topology:?}\n{}\n{}", lines.join("\n"), topology.warnings);
    let text = decoded(text);
    for secret in endpoints(topology).flat_map(passwords) {
        // No word of ours has the mark.
        let is_told_apart = secret.len() >= PASSWORD_BYTES_MIN
            && secret.contains('!')
            && text.matches(secret).count() == 1;
        assert!(!is_told_apart || !shown.contains(secret), "{secret} is in {shown}");
    }
}

fn passwords(endpoint: &Endpoint) -> Vec<&str> {
    let (login, settings) = match endpoint {
        Endpoint::Sqlite { .. } => return Vec::new(),
        Endpoint::Postgres(database) | Endpoint::Mysql(database) => {
            (&database.login, Some(&database.settings))
        }
        Endpoint::Etcd { login, .. } => (login, None),
    };
    let password = login.as_ref().and_then(|login| login.password.as_ref());
    password
        .into_iter()
        .chain(settings.into_iter().flatten().map(|(_, value)| value))
        .map(|secret| secret.expose())
        .collect()
}

/// The text with the escapes of URLs resolved.
fn decoded(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut decoded = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let code = piece.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        match code {
            Some(byte) => decoded.push(byte),
            None => decoded.push(b'%'),
        }
        decoded.extend(&piece.as_bytes()[if code.is_some() { 2 } else { 0 }..]);
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// A router of these routes sends each key to the first that matches, and asks it for lists.
fn check_routes(topology: &Topology, text: &str) {
    let clock = SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL));
    let store = |name: &str| Memory::new(name, clock.clone());
    let route = |b: &Backend| Route {
        rule: b.rule.clone(),
        store: store(&b.name),
        has_other_writers: false,
    };
    let router = Router::new(topology.backends.iter().map(route).collect(), store(DEFAULT_NAME));
    let is_apart = |c: char| !(c.is_ascii_alphanumeric() || "/.-".contains(c));
    let words: BTreeSet<&str> = text.split(is_apart).collect();
    for kind in words.iter().take(WORDS_MAX) {
        for namespace in words.iter().take(WORDS_MAX) {
            let list = format!("/registry/{kind}/{namespace}/");
            let key = Key::from(format!("{list}name"));
            let backend = topology.backends.iter().find(|backend| backend.rule.matches(&key));
            let owner = backend.map_or(DEFAULT_NAME, |backend| &backend.name);
            assert_eq!(**router.explain(&key).route, *owner, "{key:?}");
            let asked = router.names_for(&KeyRange::prefix(list.into()));
            assert!(asked.iter().any(|name| ***name == *owner), "{key:?}: {asked:?}");
        }
    }
}

//! What `--log-level` takes: etcd's levels, and filters of tracing's that can mean something.
//!
//! tracing takes any word for the name of a part of the program, and logs nothing but that part: a level with
//! a letter missing would silence the log, and nobody would hear of it.

use crate::model::nearest::nearest;

/// What etcd and others call levels, and what that is here.
const LEVELS: [(&str, &str); 11] = [
    ("error", "error"),
    ("warn", "warn"),
    ("info", "info"),
    ("debug", "debug"),
    ("trace", "trace"),
    ("off", "off"),
    ("warning", "warn"),
    // A node never logs these; errors are the nearest.
    ("panic", "error"),
    ("dpanic", "error"),
    ("fatal", "error"),
    ("critical", "error"),
];

/// The crates that a log comes from.
const PARTS: [&str; 17] = [
    "pleach",
    "axum",
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "opentelemetry",
    "opentelemetry_otlp",
    "opentelemetry_sdk",
    "rustls",
    "sqlx",
    "sqlx_core",
    "sqlx_mysql",
    "sqlx_postgres",
    "tokio",
    "tonic",
    "tower",
];

const EXPECTED: &str =
    "expected error, warn, info, debug or trace, or a filter as `info,pleach::store=debug`";

/// Reads a level or a filter.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let directives = split(text).map(|directive| read(directive.trim()));
    let directives: Vec<String> = directives.collect::<Result<_, _>>()?;
    Ok(directives.join(","))
}

/// The directives of a filter: commas in the brackets of a span are no ends.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    text.split(move |letter| {
        match letter {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    })
}

/// `LEVEL`, `PART`, `PART=LEVEL`, or with the name of a span in brackets between.
fn read(directive: &str) -> Result<String, String> {
    if let Some(level) = level(directive) {
        return Ok(level.to_owned());
    }
    // An `=` inside of brackets is a field's.
    let (of, wanted) = match directive.rsplit_once('=') {
        Some((of, wanted)) if !wanted.contains([']', '}']) => (of, Some(wanted)),
        _ => (directive, None),
    };
    let part = of.split(['[', '{']).next().unwrap_or_default();
    let name = part.split("::").next().unwrap_or_default();
    if !(PARTS.contains(&name) || part.is_empty() && of.starts_with('[')) {
        // A word alone was most likely to be a level.
        let names = LEVELS.iter().map(|(name, _)| *name);
        let near = match wanted.is_none() && !part.contains("::") {
            true => nearest(name, names).or_else(|| nearest(name, PARTS)),
            false => nearest(name, PARTS),
        };
        let meant = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        return Err(format!(
            "`{directive}` is no level, and no part of the program{meant} {EXPECTED}"
        ));
    }
    match wanted {
        None => Ok(of.to_owned()),
        Some(wanted) => match level(wanted) {
            Some(level) => Ok(format!("{of}={level}")),
            None => Err(format!("`{wanted}` is no level; {EXPECTED}")),
        },
    }
}

fn level(text: &str) -> Option<&'static str> {
    let text = text.to_ascii_lowercase();
    LEVELS.iter().find(|(name, _)| *name == text).map(|(_, level)| *level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_read_as_their_writers_meant_them() {
        for (text, read) in [
            ("info", "info"),
            ("WARN", "warn"),
            ("warning", "warn"),
            ("fatal", "error"),
            ("dpanic", "error"),
            ("off", "off"),
            ("pleach=debug", "pleach=debug"),
            ("info, pleach::store=TRACE", "info,pleach::store=trace"),
            ("h2", "h2"),
            ("[batch{pleach.route=\"a,b\"}]=debug", "[batch{pleach.route=\"a,b\"}]=debug"),
            ("pleach[batch]=debug,warn", "pleach[batch]=debug,warn"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(read), "{text}");
        }
    }

    #[test]
    fn what_would_silence_the_log_is_refused_with_what_there_is() {
        for (text, said) in [
            ("inf", "did you mean `info`?"),
            ("dbug", "did you mean `debug`?"),
            ("verbose", "expected error, warn, info, debug or trace"),
            ("", "expected error, warn, info, debug or trace"),
            ("info,", "expected error, warn, info, debug or trace"),
            ("plaech=debug", "did you mean `pleach`?"),
            ("pleach=dbug", "`dbug` is no level"),
            ("info,pleach::store=", "`` is no level"),
        ] {
            let refused = parse(text).expect_err(text);
            assert!(refused.contains(said), "{text}: {refused}");
        }
    }
}

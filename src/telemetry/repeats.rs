//! What goes wrong goes wrong many times: said once, counted, and said again with the count.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Level,
    field::{Field, Visit},
};

/// How often one kind of trouble is said at most.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// The kinds that are told apart. Places in the code, routes and reasons are few; what is more than that is one
/// kind together, but for errors, which are always said.
const KINDS_MAX: usize = 512;

/// Fields that say which one it is: their numbers count. Those of all others are different each time.
const NAMES: [&str; 6] = ["store", "route", "name", "method", "flag", "child"];

/// Fields that say nothing of what kind it is.
const PARTICULARS: [&str; 3] = ["client", "took", "rows"];

/// So much of a text tells kinds apart.
const TEXT_CHARS_MAX: usize = 400;

/// Which warnings and errors were said of late.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<String, Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    /// How often it came since.
    since: u64,
}

/// What an event says, but for numbers: ports and revisions are others each time.
struct Kind {
    text: String,
    left: usize,
    /// Whether numbers count in what is written now.
    has_numbers: bool,
}

// === impl Repeats ===

impl Repeats {
    /// How often the same came since it was last said; `None` where that was a moment ago. Only warnings and
    /// errors are counted: of all else each is news.
    pub(super) fn due(&self, event: &Event<'_>) -> Option<u64> {
        if *event.metadata().level() > Level::WARN {
            return Some(0);
        }
        let (text, left) = (event.metadata().name().to_owned(), TEXT_CHARS_MAX);
        let mut kind = Kind { text, left, has_numbers: false };
        event.record(&mut kind);
        let is_error = *event.metadata().level() == Level::ERROR;
        self.is_due(kind.text, is_error, Instant::now())
    }

    fn is_due(&self, mut kind: String, is_error: bool, now: Instant) -> Option<u64> {
        // Nothing panics while it holds the lock.
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.contains_key(&kind) && said.len() >= KINDS_MAX {
            said.retain(|_, said| now - said.at < SAID_EVERY);
            if said.len() >= KINDS_MAX {
                if is_error {
                    return Some(0);
                }
                kind = String::new();
            }
        }
        let is_new = !said.contains_key(&kind);
        let known = said.entry(kind).or_insert(Said { at: now, since: 0 });
        if !is_new && now - known.at < SAID_EVERY {
            known.since += 1;
            return None;
        }
        let since = std::mem::take(&mut known.since);
        known.at = now;
        Some(since)
    }
}

// === impl Kind ===

impl fmt::Write for Kind {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let has_numbers = self.has_numbers;
        let is_kept = |letter: &char| has_numbers || !letter.is_ascii_digit();
        let letters = text.chars().filter(is_kept).take(self.left);
        let before = self.text.len();
        self.text.extend(letters);
        self.left = self.left.saturating_sub(self.text.len() - before);
        Ok(())
    }
}

impl Visit for Kind {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if PARTICULARS.contains(&field.name()) {
            return;
        }
        self.has_numbers = NAMES.contains(&field.name());
        // It can't fail: it is kept in memory.
        let _ = write!(self, " {field}={value:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_same_again_is_counted_and_said_later() {
        let repeats = Repeats::default();
        let start = Instant::now();
        let due = |kind: &str, at| repeats.is_due(kind.to_owned(), false, at);
        assert_eq!(due("a", start), Some(0));
        assert!((0..1_000).all(|_| due("a", start).is_none()));
        assert_eq!(due("b", start), Some(0), "another is said at once");
        assert_eq!(due("a", start + SAID_EVERY), Some(1_000));
        assert_eq!(due("a", start + SAID_EVERY), None);
    }

    #[test]
    fn kinds_without_end_take_no_memory_without_end() {
        let repeats = Repeats::default();
        let start = Instant::now();
        for at in 0..10 * KINDS_MAX {
            repeats.is_due(at.to_string(), false, start);
        }
        assert_eq!(repeats.0.lock().expect("nobody panicked").len(), KINDS_MAX + 1);
        let due = |kind: &str, is_error, at| repeats.is_due(kind.to_owned(), is_error, at);
        assert_eq!(due("other", false, start), None, "it is one of many");
        assert_eq!(due("grave", true, start), Some(0), "an error is always said");
        assert_eq!(due("new", false, start + SAID_EVERY), Some(0));
    }

    #[test]
    fn numbers_and_what_is_far_behind_do_not_tell_kinds_apart() {
        let written = |text: &str, has_numbers| {
            let mut kind = Kind { text: String::new(), left: 20, has_numbers };
            kind.write_str(text).expect("it is kept in memory");
            kind.text
        };
        let kind = |text: &str| written(text, false);
        assert_ne!(written("shard-1", true), written("shard-2", true), "they have names");
        assert_eq!(kind("port 4711: refused"), kind("port 80: refused"));
        assert_ne!(kind("refused"), kind("reset"));
        assert_eq!(kind(&"x".repeat(1_000)).len(), 20);
    }
}

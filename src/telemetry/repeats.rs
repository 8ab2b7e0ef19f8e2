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

/// The kinds that are told apart. Places in the code, routes and reasons are few; of more than this nothing is
/// said.
const KINDS_MAX: usize = 512;

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

/// What an event says, without numbers: ports and revisions are others each time.
struct Kind {
    text: String,
    left: usize,
}

// === impl Repeats ===

impl Repeats {
    /// How often the same came since it was last said; `None` where that was a moment ago. Only warnings and
    /// errors are counted: of all else each is news.
    pub(super) fn due(&self, event: &Event<'_>) -> Option<u64> {
        if *event.metadata().level() > Level::WARN {
            return Some(0);
        }
        let mut kind = Kind { text: event.metadata().name().to_owned(), left: TEXT_CHARS_MAX };
        event.record(&mut kind);
        self.is_due(kind.text, Instant::now())
    }

    fn is_due(&self, kind: String, now: Instant) -> Option<u64> {
        // Nothing panics while it holds the lock.
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !said.contains_key(&kind);
        if is_new && said.len() >= KINDS_MAX {
            said.retain(|_, said| now - said.at < SAID_EVERY);
            if said.len() >= KINDS_MAX {
                return None;
            }
        }
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
        let letters = text.chars().filter(|letter| !letter.is_ascii_digit()).take(self.left);
        let before = self.text.len();
        self.text.extend(letters);
        self.left = self.left.saturating_sub(self.text.len() - before);
        Ok(())
    }
}

impl Visit for Kind {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
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
        let due = |kind: &str, at| repeats.is_due(kind.to_owned(), at);
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
            repeats.is_due(at.to_string(), start);
        }
        assert_eq!(repeats.0.lock().expect("nobody panicked").len(), KINDS_MAX);
        assert_eq!(repeats.is_due("new".to_owned(), start + SAID_EVERY), Some(0));
    }

    #[test]
    fn numbers_and_what_is_far_behind_do_not_tell_kinds_apart() {
        let kind = |text: &str| {
            let mut kind = Kind { text: String::new(), left: 20 };
            kind.write_str(text).expect("it is kept in memory");
            kind.text
        };
        assert_eq!(kind("port 4711: refused"), kind("port 80: refused"));
        assert_ne!(kind("refused"), kind("reset"));
        assert_eq!(kind(&"x".repeat(1_000)).len(), 20);
    }
}

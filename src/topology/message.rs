//! Mistakes in a file, and how they are shown.
//!
//! A message points at a place, says what is there and what was expected, and shows the line. It
//! never shows a secret: values appear only under keys that hold none, and only where they look like
//! what those keys hold. Everything else, comments included, is left out.

use std::fmt::{self, Write as _};

use super::yaml::Place;

/// The longest value that a message repeats, in characters.
const QUOTE_CHARS_MAX: usize = 60;
/// The longest line that a message repeats, in characters.
const LINE_CHARS_MAX: usize = 160;

/// One thing that is wrong, or doubtful, in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is there.
    pub found: String,
    /// What was expected instead.
    pub expected: Option<String>,
    /// The valid name that was most likely meant.
    pub nearest: Option<String>,
    /// The line of the file as far as it can be shown.
    excerpt: Option<String>,
}

/// All mistakes of a file, in the order in which they stand in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    file: String,
    list: Vec<Mistake>,
}

// === impl Mistake ===

impl Mistake {
    pub(super) fn new(place: Place, found: impl Into<String>) -> Self {
        let (line, column) = (place.line, place.column);
        Self { line, column, found: found.into(), expected: None, nearest: None, excerpt: None }
    }

    pub(super) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub(super) fn nearest(mut self, nearest: Option<&str>) -> Self {
        self.nearest = nearest.map(str::to_owned);
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        self.nearest.as_ref().map_or(Ok(()), |name| write!(f, "; did you mean `{name}`?"))
    }
}

// === impl Mistakes ===

impl Mistakes {
    /// Sorts the mistakes and takes the lines they point at from `text`, as far as `shown_keys`
    /// allows.
    pub(super) fn new(file: &str, text: &str, mut list: Vec<Mistake>, shown_keys: &[&str]) -> Self {
        list.sort_by_key(|mistake| (mistake.line, mistake.column));
        list.dedup();
        // As YAML counts them: a carriage return alone ends a line too.
        let lines: Vec<&str> = text.lines().flat_map(|line| line.split('\r')).collect();
        for mistake in &mut list {
            let line = mistake.line.checked_sub(1).and_then(|index| lines.get(index));
            mistake.excerpt = line.and_then(|line| showable(line, shown_keys));
        }
        Self { file: file.to_owned(), list }
    }

    /// The mistakes themselves.
    pub fn iter(&self) -> std::slice::Iter<'_, Mistake> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            let Mistake { line, column, excerpt, .. } = mistake;
            write!(f, "{}:{line}:{column}: {mistake}", self.file)?;
            if let Some(excerpt) = excerpt {
                let margin = line.to_string().len();
                let caret = (column - 1).min(excerpt.chars().count());
                write!(f, "\n {line} | {excerpt}\n {:margin$} | {:caret$}^", "", "")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// A value for a message, in backquotes, where it cannot be a secret; what it is otherwise.
pub(super) fn quote(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "._-/ +".contains(c);
    if text.is_empty() {
        "an empty text".to_owned()
    } else if text.chars().count() <= QUOTE_CHARS_MAX && text.chars().all(is_plain) {
        format!("`{text}`")
    } else {
        "a text".to_owned()
    }
}

/// The part of a line that can be shown: keys always, values under `shown_keys` only.
fn showable(line: &str, shown_keys: &[&str]) -> Option<String> {
    let line = without_comment(line).trim_end().replace('\t', " ");
    let content = line.trim_start_matches([' ', '-']);
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let Some((key, value)) = content.split_once(':') else {
        // A bare word is an entry of a list. Without the dash it continues a text, which may be
        // an endpoint.
        let is_entry = line.trim_start().starts_with("- ") && is_name(content);
        return is_entry.then_some(line);
    };
    if !is_name(key) || !(value.is_empty() || value.starts_with(' ')) {
        return None;
    }
    let is_tame = !value.contains('@') && !value.contains("://");
    let shown = match value.trim().is_empty() || (shown_keys.contains(&key) && is_tame) {
        true => line,
        false => format!("{} ***", &line[..line.len() - value.len()]),
    };
    (shown.chars().count() <= LINE_CHARS_MAX).then_some(shown)
}

fn without_comment(line: &str) -> &str {
    let starts = line.char_indices().filter(|(_, c)| *c == '#').map(|(at, _)| at);
    let mut comments = starts.filter(|at| *at == 0 || line[..*at].ends_with([' ', '\t']));
    &line[..comments.next().unwrap_or(line.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_as_far_as_it_holds_no_secret() {
        let shown = |line| showable(line, &["name", "maxOpen"]);
        assert_eq!(shown("- name: pods # main").as_deref(), Some("- name: pods"));
        assert_eq!(shown("  endpoint: mysql://root:pw@h/d").as_deref(), Some("  endpoint: ***"));
        assert_eq!(shown("  endpiont: hunter2").as_deref(), Some("  endpiont: ***"));
        assert_eq!(shown("  name: mysql://root:pw@h").as_deref(), Some("  name: ***"));
        assert_eq!(shown("  - pods").as_deref(), Some("  - pods"));
        assert_eq!(shown("  prefix:").as_deref(), Some("  prefix:"));
        assert_eq!(shown("    hunter2"), None);
        assert_eq!(shown("mysql://root:pw@h/d"), None);
        assert_eq!(shown("{name: x, endpoint: hunter2}"), None);
    }
}

//! Selectors on fields: the grammar of apimachinery's `fields.ParseSelector`.
//!
//! `path=value`, `path==value` and `path!=value`, all of which must hold. In a value `\\`, `\,` and `\=` stand for the
//! sign behind the backslash. What an object of Kubernetes' own kinds does not have is
//! its default, or the empty text.

use super::{Verdict, Wrong, object::Object};

/// Which fields are wanted: all of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSelector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    path: String,
    value: String,
    is_negated: bool,
}

const OPERATORS: [(&str, bool); 3] = [("!=", true), ("==", false), ("=", false)];

// === impl FieldSelector ===

impl FieldSelector {
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let mut terms = Vec::new();
        for (at, part) in parts(text) {
            if !part.is_empty() {
                terms.push(term(at, part)?);
            }
        }
        Ok(Self(terms))
    }

    pub(super) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The paths of its terms, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|term| term.path.as_str())
    }

    /// The paths that must have a value, and it.
    pub(super) fn required(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        let terms = self.0.iter().filter(|term| !term.is_negated);
        terms.map(|term| (term.path.as_str(), vec![term.value.as_str()]))
    }

    /// Whether all of it holds of an object that was read for it.
    pub(super) fn verdict(&self, object: &Object<'_>) -> Verdict {
        let each = self.0.iter().enumerate().map(|(at, term)| match object.field(at) {
            Some(found) => Verdict::of((*found == *term.value) != term.is_negated),
            None => Verdict::Unknown,
        });
        each.fold(Verdict::Wanted, Verdict::and)
    }
}

/// What stands between commas that no backslash stands before, and where.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let (mut parts, mut start, mut is_escaped) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b',' => {
                parts.push((start, &text[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push((start, &text[start..]));
    parts
}

fn term(at: usize, part: &str) -> Result<Term, Wrong> {
    let operators = |begin: usize| {
        let found = OPERATORS.iter().find(|(sign, _)| part[begin..].starts_with(sign));
        found.map(|(sign, is_negated)| (begin, begin + sign.len(), *is_negated))
    };
    let found = part.char_indices().find_map(|(begin, _)| operators(begin));
    let Some((end, begin, is_negated)) = found else {
        return Err((at, format!("`{part}` has no `=`, `==` or `!=`")));
    };
    let value = unescaped(&part[begin..]).map_err(|(within, why)| (at + begin + within, why))?;
    Ok(Term { path: part[..end].to_owned(), value, is_negated })
}

fn unescaped(text: &str) -> Result<String, Wrong> {
    let mut value = String::with_capacity(text.len());
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some((_, escaped @ ('\\' | ',' | '='))) => value.push(escaped),
                Some((_, other)) => {
                    return Err((
                        at,
                        format!("`\\{other}` means nothing; write `\\\\` for a backslash"),
                    ));
                }
                None => return Err((at, "nothing stands behind the backslash".to_owned())),
            },
            ',' | '=' => return Err((at, format!("write `\\{letter}` for `{letter}` in a value"))),
            letter => value.push(letter),
        }
    }
    Ok(value)
}

//! Keys in which a regular expression is found.
//!
//! Expressions are read as Go reads them: unanchored, and with `\w`, `\d` and `(?i)` meaning ASCII.
//! Pruning uses two facts that follow from the expression alone: a match of one that is anchored at
//! the start begins with a literal that can be extracted, and a match that looks only backwards
//! stays a match whatever follows it.

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::{
    Parser, ParserBuilder,
    hir::{Hir, Look, literal::Extractor},
};

use super::{Reach, Reason, common_prefix, reach_of_ranges};
use crate::model::key::{Key, KeyRange};

#[derive(Clone, Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// Where every matching key lies; `None` where that can be anywhere.
    extent: Option<Vec<KeyRange>>,
    /// Whether a match stays one when the key goes on.
    stays: bool,
}

// === impl Pattern ===

impl Pattern {
    pub(super) fn new(source: &str) -> Result<Self, Reason> {
        let hir = parser().parse(source).map_err(|error| reason(source, &error))?;
        let regex = RegexBuilder::new(source).unicode(false).build();
        let regex = regex.map_err(|_| Reason::RegexSize)?;
        let looks = hir.properties().look_set();
        let stays = looks.iter().all(|look| matches!(look, Look::Start | Look::StartLF));
        Ok(Self { regex, extent: extent(&hir), stays })
    }

    pub(super) fn matches(&self, key: &[u8]) -> bool {
        self.regex.is_match(key)
    }

    pub(super) fn reach(&self, range: &KeyRange) -> Reach {
        if self.stays && self.regex.is_match(common_prefix(range)) {
            return Reach::Whole;
        }
        let is_possible = |extent| reach_of_ranges(extent, range) != Reach::None;
        match self.extent.as_deref().is_none_or(is_possible) {
            true => Reach::Part,
            false => Reach::None,
        }
    }

    pub(super) fn extent(&self) -> Vec<KeyRange> {
        self.extent.clone().unwrap_or_else(|| vec![KeyRange::all()])
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

/// With the settings that the matcher is built with, or the two would disagree.
fn parser() -> Parser {
    ParserBuilder::new().unicode(false).utf8(false).build()
}

/// The ranges of the literals that a match can begin with, where it begins with the key.
fn extent(hir: &Hir) -> Option<Vec<KeyRange>> {
    if !hir.properties().look_set_prefix().contains(Look::Start) {
        return None;
    }
    let heads = Extractor::new().extract(hir);
    let range = |head: &[u8]| KeyRange::prefix(Key::copy_from_slice(head));
    heads.literals().map(|heads| heads.iter().map(|head| range(head.as_bytes())).collect())
}

fn reason(source: &str, error: &regex_syntax::Error) -> Reason {
    let (problem, span) = match error {
        regex_syntax::Error::Parse(error) => (error.kind().to_string(), Some(error.span())),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), Some(error.span())),
        _ => ("not understood".to_owned(), None),
    };
    let bytes = span.map_or(0, |span| span.start.offset);
    let offset = source.get(..bytes).map_or(0, |before| before.chars().count());
    Reason::Regex { problem, offset }
}

//! Selectors, as Kubernetes has them: which objects are wanted by their labels and fields.
//!
//! ```text
//!   `tier in (a,b),!old` ──> LabelSelector ─┐
//!   `spec.color!=blue`   ──> FieldSelector ─┴─> Selector ── may_match(value) ──> is it wanted?
//!                                                                │
//!                    JSON, Kubernetes' protobuf, CBOR ──> object::Object
//! ```
//!
//! The texts mean what `labels.Parse` and `fields.ParseSelector` of Kubernetes' apimachinery make of them, and what
//! these refuse is refused. Who asks looks at each object again: one too many is harmless, one too few is lost.
//! So what can't be evaluated on a value (it is encrypted, foreign or damaged; a field is not known of its kind, or not
//! there, where it may have a default) never hides that value.

mod attribute;
mod fields;
mod labels;
pub mod object;

use std::fmt;

pub use self::attribute::{Attribute, Attributes, Reading, Requirement};
use self::{
    fields::FieldSelector,
    labels::LabelSelector,
    object::{Object, Wanted},
};

/// Which objects are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    labels: LabelSelector,
    fields: FieldSelector,
    /// What is to be read of an object for it.
    wanted: Wanted,
    /// As they came, for who is asked next.
    texts: (String, String),
}

/// Whether an object is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Wanted,
    /// It is not.
    Unwanted,
    /// That can't be said.
    Unknown,
}

/// Which of the two texts it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// That on labels.
    Labels,
    /// That on fields.
    Fields,
}

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {part} selector can't be read at byte {at}: {reason}")]
pub struct SelectorError {
    /// The text in which it is.
    pub part: Part,
    /// Where in it.
    pub at: usize,
    /// What is wrong there, and what was expected.
    pub reason: String,
}

/// What is wrong at a place.
type Wrong = (usize, String);

// === impl Selector ===

impl Selector {
    /// The selector of two texts; `None` where both select everything.
    ///
    /// # Errors
    /// Where one of them is none.
    pub fn parse(labels: &str, fields: &str) -> Result<Option<Self>, SelectorError> {
        let wrong = |part| move |(at, reason)| SelectorError { part, at, reason };
        let texts = (labels.to_owned(), fields.to_owned());
        let labels = LabelSelector::parse(labels).map_err(wrong(Part::Labels))?;
        let fields = FieldSelector::parse(fields).map_err(wrong(Part::Fields))?;
        if labels.is_everything() && fields.is_everything() {
            return Ok(None);
        }
        let wanted = Wanted::new(!labels.is_everything(), fields.names());
        Ok(Some(Self { labels, fields, wanted, texts }))
    }

    /// The texts that it was made of: on labels, and on fields.
    pub fn texts(&self) -> (&str, &str) {
        (&self.texts.0, &self.texts.1)
    }

    /// Whether an object with this value is wanted. Costs a walk over the value, and keeps nothing.
    pub fn verdict(&self, value: &[u8]) -> Verdict {
        let Some(object) = Object::read(value, &self.wanted) else { return Verdict::Unknown };
        let labels = match object.labels() {
            _ if self.labels.is_everything() => Verdict::Wanted,
            Some(labels) if self.labels.matches(labels) => Verdict::Wanted,
            Some(_) => Verdict::Unwanted,
            None => Verdict::Unknown,
        };
        labels.and(self.fields.verdict(&object))
    }

    /// Whether an object with this value is wanted, or may be.
    pub fn may_match(&self, value: &[u8]) -> bool {
        self.verdict(value) != Verdict::Unwanted
    }
}

// === impl Verdict ===

impl Verdict {
    /// Both: one that says no decides, whatever the other can't say.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unwanted, _) | (_, Self::Unwanted) => Self::Unwanted,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Wanted, Self::Wanted) => Self::Wanted,
        }
    }

    fn of(is_wanted: bool) -> Self {
        if is_wanted { Self::Wanted } else { Self::Unwanted }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Labels => "label",
            Self::Fields => "field",
        })
    }
}

#[cfg(test)]
mod tests;

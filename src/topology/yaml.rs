//! A YAML document as a tree in which every node knows where it stands in the file.
//!
//! Aliases are the nodes they name, with the place of the anchor, and `<<` merges a mapping into
//! another. Nothing is interpreted: whether a text is a number is the schema's question.

use std::{collections::HashMap, rc::Rc};

use granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::message::Mistake;

/// A place in the file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    /// A text; `style` says whether it may also mean a number or a truth value. It begins `lead`
    /// columns behind the node's place; `None` where the file has it in other words, with escapes or
    /// in several lines.
    Text {
        text: String,
        style: Style,
        lead: Option<usize>,
    },
    List(Vec<Rc<Node>>),
    /// In file order, duplicates included.
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// In quotes, in a block, or with a tag.
    Quoted,
}

/// Why there is no tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) place: Place,
    pub(super) problem: String,
    /// What to write instead, where that is known.
    expected: Option<&'static str>,
}

/// What the parser says of slips that are made often, and what to write instead.
const REMEDIES: &[(&str, &str)] = &[
    (
        "mapping values are not allowed",
        "keys of one mapping below each other, and quotes around a text with `: ` in it",
    ),
    ("unclosed bracket", "its other half, or quotes around a text with brackets in it"),
    ("misplaced bracket", "its other half, or quotes around a text with brackets in it"),
    ("unknown anchor", "quotes around a text that begins with `*`"),
    ("quoted scalar", "the quote that ends the text"),
    ("cannot start any token", "quotes around a text that begins with this character"),
];

/// Builds nodes from events: collections that are open, innermost last.
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
}

struct Open {
    place: Place,
    anchor: usize,
    is_map: bool,
    children: Vec<Rc<Node>>,
}

/// The first document of `text`; `None` where there is none.
pub(super) fn parse(text: &str) -> Result<Option<Rc<Node>>, SyntaxError> {
    let mut builder = Builder { open: Vec::new(), anchors: HashMap::new(), root: None };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let error = SyntaxError::from(&error);
            tab_that_indents(text, error.place).unwrap_or(error)
        })?;
        builder.take(event, span)?;
    }
    Ok(builder.root)
}

// === impl Builder ===

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let place = Place::from(span.start);
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                let problem = "a second document begins here; expected one".to_owned();
                return Err(SyntaxError { place, problem, expected: None });
            }
            Event::Scalar(text, style, anchor, tag) => {
                let lead = lead(&text, style, span);
                let style = match style {
                    ScalarStyle::Plain if tag.is_none() => Style::Plain,
                    _ => Style::Quoted,
                };
                let value = Value::Text { text: text.into_owned(), style, lead };
                self.add(anchor, Node { place, value });
            }
            Event::SequenceStart(_, anchor, _) => self.begin(place, anchor, false),
            Event::MappingStart(_, anchor, _) => self.begin(place, anchor, true),
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.attach(node),
                None => {
                    let problem = "an alias inside of what it stands for".to_owned();
                    return Err(SyntaxError { place, problem, expected: None });
                }
            },
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, anchor: usize, is_map: bool) {
        self.open.push(Open { place, anchor, is_map, children: Vec::new() });
    }

    fn end(&mut self) {
        let Some(open) = self.open.pop() else { return };
        let value = match open.is_map {
            false => Value::List(open.children),
            true => Value::Map(merged(pairs(open.children))),
        };
        self.add(open.anchor, Node { place: open.place, value });
    }

    fn add(&mut self, anchor: usize, node: Node) {
        let node = Rc::new(node);
        // 0 is the parser's word for "no anchor".
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.attach(node);
    }

    fn attach(&mut self, node: Rc<Node>) {
        match self.open.last_mut() {
            Some(open) => open.children.push(node),
            None => self.root = Some(node),
        }
    }
}

// === impl Node ===

impl Node {
    /// The text, whatever it may mean.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether the file says nothing here.
    pub(super) fn is_null(&self) -> bool {
        let nothing = ["", "~", "null", "Null", "NULL"];
        matches!(&self.value, Value::Text { text, style: Style::Plain, .. } if nothing.contains(&&text[..]))
    }
}

// === impl Place ===

impl From<Marker> for Place {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line().max(1), column: marker.col() + 1 }
    }
}

// === impl SyntaxError ===

impl SyntaxError {
    pub(super) fn into_mistake(self) -> Mistake {
        let mistake = Mistake::new(self.place, self.problem);
        match self.expected {
            Some(expected) => mistake.expected(expected),
            None => mistake,
        }
    }
}

impl From<&ScanError> for SyntaxError {
    fn from(error: &ScanError) -> Self {
        let problem = error.kind().to_string();
        let remedy = REMEDIES.iter().find(|(said, _)| problem.contains(said));
        let expected = remedy.map(|(_, expected)| *expected);
        Self { place: Place::from(*error.marker()), problem, expected }
    }
}

/// The tab in an indentation that the parser means: it names the line before, and says other things of it.
fn tab_that_indents(text: &str, near: Place) -> Option<SyntaxError> {
    let lines = text.lines().flat_map(|line| line.split('\r')).enumerate();
    let mut lines = lines.skip(near.line - 1).filter(|(_, line)| !line.trim().is_empty()).take(2);
    let (at, column) = lines.find_map(|(at, line)| {
        let is_indentation = |c: char| c == ' ' || c == '\t';
        let indentation = &line[..line.find(|c| !is_indentation(c)).unwrap_or(line.len())];
        Some((at, indentation.find('\t')?))
    })?;
    Some(SyntaxError {
        place: Place { line: at + 1, column: column + 1 },
        problem: "a tab in the indentation".to_owned(),
        expected: Some("spaces"),
    })
}

/// How far behind the beginning of a scalar its text begins, where the two are of the same letters:
/// folding and every escape leave less of the text than there is in the file.
fn lead(text: &str, style: ScalarStyle, span: Span) -> Option<usize> {
    let quotes = match style {
        ScalarStyle::Plain => 0,
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => 1,
        ScalarStyle::Literal | ScalarStyle::Folded => return None,
    };
    let length = span.end.index() - span.start.index();
    let is_verbatim =
        span.start.line() == span.end.line() && length == text.chars().count() + 2 * quotes;
    is_verbatim.then_some(quotes)
}

fn pairs(children: Vec<Rc<Node>>) -> Vec<(Rc<Node>, Rc<Node>)> {
    let mut children = children.into_iter();
    let mut pairs = Vec::with_capacity(children.len() / 2);
    while let (Some(key), Some(value)) = (children.next(), children.next()) {
        pairs.push((key, value));
    }
    pairs
}

/// Puts the entries of the mappings behind `<<` where the mapping itself has none of that name.
fn merged(pairs: Vec<(Rc<Node>, Rc<Node>)>) -> Vec<(Rc<Node>, Rc<Node>)> {
    let (merges, mut own): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(key, _)| key.text() == Some("<<"));
    for (key, from) in merges {
        let sources = match &from.value {
            Value::List(sources) => sources.iter().collect(),
            _ => vec![&from],
        };
        for source in sources {
            let Value::Map(entries) = &source.value else {
                // The schema will say that there is no such key.
                own.push((Rc::clone(&key), Rc::clone(source)));
                continue;
            };
            for (key, value) in entries {
                if !own.iter().any(|(known, _)| known.text() == key.text()) {
                    own.push((Rc::clone(key), Rc::clone(value)));
                }
            }
        }
    }
    own
}

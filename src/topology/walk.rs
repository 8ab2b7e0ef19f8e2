//! A walk through a file's tree that reads typed values and notes every mistake on its way.
//!
//! Nothing stops it: a value that cannot be used is noted and read as absent. Whoever asks for the
//! mistakes at the end gets all of them.

use std::{cell::RefCell, ops::RangeInclusive, rc::Rc, time::Duration};

use super::{
    duration,
    message::{Mistake, quote},
    yaml::{Node, Place, Style, Value},
};
use crate::model::nearest::nearest;

/// The mistakes noted so far.
#[derive(Debug, Default)]
pub(super) struct Walk {
    mistakes: RefCell<Vec<Mistake>>,
}

/// The entries of one mapping, with only names that the schema knows, each once.
#[derive(Debug)]
pub(super) struct Fields<'w, 'n> {
    walk: &'w Walk,
    /// Where the mapping begins.
    pub(super) place: Place,
    entries: Vec<Entry<'n>>,
    /// Names that unknown keys were probably meant to be. They count as given, or one slip would
    /// make two mistakes.
    misspelt: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug)]
struct Entry<'n> {
    name: &'static str,
    key_place: Place,
    value: &'n Node,
}

// === impl Walk ===

impl Walk {
    pub(super) fn note(&self, mistake: Mistake) {
        self.mistakes.borrow_mut().push(mistake);
    }

    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes.into_inner()
    }

    /// Reads `node` as a mapping with `known` keys. `what` names it in messages.
    pub(super) fn fields<'n>(
        &self,
        what: &str,
        node: &'n Node,
        known: &'static [&'static str],
    ) -> Option<Fields<'_, 'n>> {
        let Value::Map(pairs) = &node.value else {
            let expected = format!("a mapping with {}", choice(known));
            let found = format!("{what} is {}", describe(node));
            self.note(Mistake::new(node.place, found).expected(expected));
            return None;
        };
        let (entries, misspelt) = (Vec::with_capacity(pairs.len()), Vec::new());
        let mut fields = Fields { walk: self, place: node.place, entries, misspelt };
        for (key, value) in pairs {
            fields.take(key, value, known);
        }
        Some(fields)
    }
}

// === impl Fields ===

impl<'w, 'n> Fields<'w, 'n> {
    fn take(&mut self, key: &'n Node, value: &'n Node, known: &'static [&'static str]) {
        let place = key.place;
        let text = key.text().unwrap_or_default();
        let Some(name) = known.iter().copied().find(|name| *name == text) else {
            let near = nearest(text, known.iter().copied());
            self.misspelt.extend(known.iter().filter(|name| near == Some(**name)));
            let found = format!("unknown key {}", quote(text));
            self.walk.note(Mistake::new(place, found).expected(choice(known)).nearest(near));
            return;
        };
        if let Some(first) = self.entries.iter().find(|entry| entry.name == name) {
            let line = first.key_place.line;
            let found = format!("duplicate key `{name}`; it is in line {line} already");
            return self.walk.note(Mistake::new(place, found));
        }
        self.entries.push(Entry { name, key_place: place, value });
    }

    /// The value of `name`, unless the file says nothing there.
    pub(super) fn node(&self, name: &str) -> Option<&'n Node> {
        let entry = self.entries.iter().find(|entry| entry.name == name)?;
        (!entry.value.is_null()).then_some(entry.value)
    }

    /// Where `name` stands as a key.
    pub(super) fn key_place(&self, name: &str) -> Option<Place> {
        self.entries.iter().find(|entry| entry.name == name).map(|entry| entry.key_place)
    }

    /// Which of `names` are given, in file order.
    pub(super) fn given(&self, names: &[&str]) -> Vec<&'static str> {
        let given = self.entries.iter().map(|entry| entry.name);
        given.filter(|name| names.contains(name)).collect()
    }

    /// Whether one of `names` was most likely meant by a key that is unknown.
    pub(super) fn is_misspelt(&self, names: &[&str]) -> bool {
        self.misspelt.iter().any(|name| names.contains(name))
    }

    /// A text that must be there.
    pub(super) fn needed_text(&self, what: &str, name: &str) -> Option<&'n str> {
        if self.node(name).is_none() && !self.is_misspelt(&[name]) {
            let place = self.key_place(name).unwrap_or(self.place);
            self.note(place, format!("{what} has no `{name}`"));
        }
        self.text(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<&'n str> {
        let node = self.node(name)?;
        if node.text().is_none() {
            self.wrong(name, node, "a text");
        }
        node.text()
    }

    /// A list of texts, each with its node.
    pub(super) fn texts(&self, name: &str) -> Vec<(&'n Node, &'n str)> {
        let items = self.items(name, "a list of texts");
        let text = |item: &'n Node| {
            if item.text().is_none() || item.is_null() {
                self.wrong(name, item, "a text");
            }
            item.text().map(|text| (item, text))
        };
        items.iter().filter_map(|item| text(item)).collect()
    }

    /// The parts of a list; `expected` says of what.
    pub(super) fn items(&self, name: &str, expected: &str) -> &'n [Rc<Node>] {
        let Some(node) = self.node(name) else { return &[] };
        if !matches!(node.value, Value::List(_)) {
            self.wrong(name, node, expected);
        }
        if let Value::List(items) = &node.value { items } else { &[] }
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        let Some(node) = self.node(name) else {
            return false;
        };
        match plain(node) {
            Some("true" | "True" | "TRUE") => true,
            Some("false" | "False" | "FALSE") => false,
            _ => {
                self.wrong(name, node, "`true` or `false`");
                false
            }
        }
    }

    pub(super) fn number(&self, name: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let node = self.node(name)?;
        let number = plain(node).and_then(|text| text.parse().ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (min, max) = (range.start(), range.end());
            let expected = match *max {
                u32::MAX => format!("a whole number from {min}"),
                _ => format!("a whole number from {min} to {max}"),
            };
            self.wrong(name, node, &expected);
        }
        number
    }

    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        let node = self.node(name)?;
        let duration = node.text().and_then(duration::parse);
        if duration.is_none() {
            self.wrong(name, node, "a duration such as `5m`, `1h30m` or `0s`");
        }
        duration
    }

    pub(super) fn fields(
        &self,
        name: &str,
        known: &'static [&'static str],
    ) -> Option<Fields<'w, 'n>> {
        let node = self.node(name)?;
        self.walk.fields(&format!("`{name}`"), node, known)
    }

    pub(super) fn note(&self, place: Place, found: impl Into<String>) {
        self.walk.note(Mistake::new(place, found));
    }

    fn wrong(&self, name: &str, node: &Node, expected: &str) {
        let found = format!("`{name}` is {}", describe(node));
        self.walk.note(Mistake::new(node.place, found).expected(expected));
    }
}

/// A text that may mean a number or a truth value: one without quotes.
fn plain(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text { text, style: Style::Plain, .. } => Some(text),
        _ => None,
    }
}

fn describe(node: &Node) -> String {
    match &node.value {
        _ if node.is_null() => "empty".to_owned(),
        Value::Text { text, style: Style::Plain, .. } => quote(text),
        Value::Text { .. } => "a quoted text".to_owned(),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
    }
}

/// "`a`, `b` or `c`".
pub(super) fn choice(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => format!("`{only}`"),
        [first @ .., last] => format!("`{}` or `{last}`", first.join("`, `")),
    }
}

//! Asked: what of the tree is to be shown and in which order, as a query says it.
//!
//! A query is never refused: what it can't mean is left out.

use std::fmt::Write as _;

use super::{node::NodeView, route::RouteView};

/// More of what is searched for says nothing more.
const SEARCH_BYTES_MAX: usize = 256;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// What to search for, as it was typed.
    pub(super) search: String,
    /// Its words in lower case: all of them must be found.
    words: Vec<String>,
    pub(super) show: Show,
    pub(super) sort: Sort,
    /// Not to load anew by itself, where there is no JavaScript.
    pub(super) is_held: bool,
}

/// Which routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Show {
    #[default]
    All,
    Trouble,
}

/// In which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Trouble,
    Name,
    Reads,
    Writes,
    Failed,
    P99,
    Lag,
    Keys,
    Size,
}

/// The columns by what sorts by them, with their headings.
pub(super) const COLUMNS: [(Sort, &str); 8] = [
    (Sort::Name, "Route"),
    (Sort::Reads, "Reads"),
    (Sort::Writes, "Writes"),
    (Sort::Failed, "Failed"),
    (Sort::P99, "p99"),
    (Sort::Lag, "Lag"),
    (Sort::Keys, "Keys"),
    (Sort::Size, "Size"),
];

// === impl Sort ===

impl Sort {
    pub(super) const ALL: [Self; 9] = [
        Self::Trouble,
        Self::Name,
        Self::Reads,
        Self::Writes,
        Self::Failed,
        Self::P99,
        Self::Lag,
        Self::Keys,
        Self::Size,
    ];

    /// As a query has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Trouble => "trouble",
            Self::Name => "name",
            Self::Reads => "reads",
            Self::Writes => "writes",
            Self::Failed => "failed",
            Self::P99 => "p99",
            Self::Lag => "lag",
            Self::Keys => "keys",
            Self::Size => "size",
        }
    }

    /// As people read it.
    pub(super) fn said(self) -> &'static str {
        match self {
            Self::Trouble => "trouble first",
            Self::Name => "name",
            Self::Reads => "most reads",
            Self::Writes => "most writes",
            Self::Failed => "most failures",
            Self::P99 => "slowest (p99)",
            Self::Lag => "greatest lag",
            Self::Keys => "most keys",
            Self::Size => "largest",
        }
    }

    fn of(word: &str) -> Self {
        // What people try who know the other word.
        let word = if word == "rate" { "writes" } else { word };
        Self::ALL.into_iter().find(|sort| sort.word() == word).unwrap_or_default()
    }

    /// Routes in this order. What is not known comes last, and what is equal stays as the topology has it.
    pub(super) fn sort(self, routes: &mut [RouteView]) {
        match self {
            Self::Trouble => routes.sort_by_key(|it| std::cmp::Reverse((it.worst, it.trouble))),
            Self::Name => routes.sort_by(|a, b| a.name.cmp(&b.name)),
            _ => routes.sort_by(|a, b| self.of_route(b).total_cmp(&self.of_route(a))),
        }
    }

    fn of_route(self, route: &RouteView) -> f64 {
        let measures = &route.measures;
        let value = match self {
            Self::Trouble | Self::Name => None,
            Self::Reads => measures.reads,
            Self::Writes => measures.writes,
            Self::Failed => measures.failed,
            Self::P99 => measures.p99,
            Self::Lag => measures.lag,
            Self::Keys => measures.keys,
            Self::Size => measures.bytes,
        };
        value.unwrap_or(-1.0)
    }
}

// === impl Asked ===

impl Asked {
    pub(super) fn from_query(query: &str) -> Self {
        let mut asked = Self::default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = decoded(value);
            match key {
                "q" => asked.search = value.trim().to_owned(),
                "show" if value == "trouble" => asked.show = Show::Trouble,
                "sort" => asked.sort = Sort::of(&value),
                "hold" => asked.is_held = value == "1",
                _ => {}
            }
        }
        let end = asked.search.floor_char_boundary(SEARCH_BYTES_MAX);
        asked.search.truncate(end);
        asked.words = asked.search.to_lowercase().split_whitespace().map(str::to_owned).collect();
        asked
    }

    /// Where the same is shown in another way.
    pub(super) fn link(&self, show: Show, sort: Sort) -> String {
        self.linked(show, sort, self.is_held)
    }

    /// Where the same is shown and held, or no longer.
    pub(super) fn hold_link(&self) -> String {
        self.linked(self.show, self.sort, !self.is_held)
    }

    fn linked(&self, show: Show, sort: Sort, is_held: bool) -> String {
        let mut link = String::from("/");
        let mut add = |key: &str, value: &str| {
            link.push(if link.len() == 1 { '?' } else { '&' });
            link += key;
            link.push('=');
            encode(&mut link, value);
        };
        if !self.search.is_empty() {
            add("q", &self.search);
        }
        if show == Show::Trouble {
            add("show", "trouble");
        }
        if sort != Sort::default() {
            add("sort", sort.word());
        }
        if is_held {
            add("hold", "1");
        }
        link
    }

    pub(super) fn is_searching(&self) -> bool {
        !self.words.is_empty()
    }

    /// Whether a text in lower case has all that is searched for.
    pub(super) fn finds(&self, text: &str) -> bool {
        self.words.iter().all(|word| text.contains(word.as_str()))
    }

    /// Takes out what is not asked for. A route stays where something below it does.
    pub(super) fn narrow(&self, node: &mut NodeView) {
        node.routes.retain_mut(|route| {
            let has_below = route.below.as_mut().is_some_and(|below| {
                self.narrow(below);
                !below.routes.is_empty()
            });
            let is_asked = self.show == Show::All || route.worst.is_any();
            has_below || (route.is_found && is_asked)
        });
    }
}

/// A value of a form: `+` for a space, `%` and two digits for any byte. What is no UTF-8 is shown as that.
fn decoded(value: &str) -> String {
    let bytes = value.as_bytes();
    let mut found = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|it| it.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let coded = digits.filter(|_| byte == b'%').and_then(|it| u8::from_str_radix(it, 16).ok());
        found.push(match (coded, byte) {
            (Some(coded), _) => coded,
            (None, b'+') => b' ',
            (None, byte) => byte,
        });
        at += if coded.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&found).into_owned()
}

/// So that it is a value of a query, and a word of an id.
pub(super) fn encode(text: &mut String, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(byte.into()),
            // Writing to a string does not fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
}

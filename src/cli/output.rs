//! How commands print: forms, tables, units, and colours where a person looks.
//!
//! Nothing here panics where the reader has gone away (`pleach tree | head -1`): what can't be written any
//! more is not wanted any more.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Plain,
    /// For people with wide screens.
    Wide,
    /// For programs; docs/src/commands.md has the fields.
    Json,
    /// The same fields as YAML.
    Yaml,
}

/// The flag that says so.
#[derive(Args, Clone, Debug)]
pub(super) struct Output {
    /// How the answer is printed.
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub(super) format: Format,
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Bad,
    Doubtful,
    Good,
    Faint,
}

/// Columns that are as wide as what stands in them.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
struct Cell {
    text: String,
    colour: Option<Colour>,
    is_number: bool,
}

// === impl Format ===

impl Format {
    /// The answer for programs; `None` where people read it.
    ///
    /// # Errors
    /// Where the answer is none that JSON has, which is a defect.
    pub(super) fn structured(self, answer: &impl Serialize) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Plain | Self::Wide => None,
            Self::Json => Some(format!("{}\n", serde_json::to_string_pretty(answer)?)),
            Self::Yaml => Some(yaml(&serde_json::to_value(answer)?)),
        })
    }
}

// === impl Colour ===

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Bad => "31",
            Self::Doubtful => "33",
            Self::Good => "32",
            Self::Faint => "2",
        }
    }

    /// The text in this colour, where somebody sees it.
    pub(super) fn paint(self, text: &str) -> String {
        match is_coloured() {
            true => format!("\x1b[{}m{text}\x1b[0m", self.code()),
            false => text.to_owned(),
        }
    }
}

/// Whether a person looks at the standard output, and wants colours.
fn is_coloured() -> bool {
    is_watched_by_a_person() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
}

/// Whether the standard output is a terminal.
pub(super) fn is_watched_by_a_person() -> bool {
    std::io::stdout().is_terminal()
}

/// Prints a text. Says whether anybody still reads.
pub(super) fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Prints one picture of several: on a terminal in the place of the one before.
pub(super) fn print_picture(text: &str) -> bool {
    match is_watched_by_a_person() {
        // Home, each line cleared behind its end, and what is left below: no flicker as of a cleared screen.
        true => print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))),
        false => print(text),
    }
}

// === impl Table ===

impl Table {
    pub(super) fn with_head(names: &[&str]) -> Self {
        let mut table = Self::default();
        table.row();
        for name in names {
            table.cell(name.to_uppercase(), Some(Colour::Faint));
        }
        table
    }

    /// Begins a row.
    pub(super) fn row(&mut self) {
        self.rows.push(Vec::new());
    }

    /// Adds a cell to the last row.
    pub(super) fn cell(&mut self, text: impl Into<String>, colour: Option<Colour>) {
        self.push(Cell { text: text.into(), colour, is_number: false });
    }

    /// Adds a number to the last row, or a dash where it is not known.
    pub(super) fn number(&mut self, text: Option<String>) {
        let text = text.unwrap_or_else(|| "-".to_owned());
        self.push(Cell { text, colour: None, is_number: true });
    }

    fn push(&mut self, cell: Cell) {
        if let Some(row) = self.rows.last_mut() {
            row.push(cell);
        }
    }

    pub(super) fn printed(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let has_numbers =
            |at: usize| self.rows.iter().any(|row| row.get(at).is_some_and(|cell| cell.is_number));
        let is_right: Vec<bool> = (0..columns).map(has_numbers).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[at] - cell.text.chars().count());
                let shown =
                    cell.colour.map_or_else(|| cell.text.clone(), |it| it.paint(&cell.text));
                let gap = if at == 0 { "" } else { "  " };
                let (before, behind) = match (is_right[at], at + 1 == row.len()) {
                    (true, _) => (padding.as_str(), ""),
                    (false, true) => ("", ""),
                    (false, false) => ("", padding.as_str()),
                };
                line.push_str(&[gap, before, &shown, behind].concat());
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `12 B`, `3.4 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// `0.3 ms`, `12 ms`, `4.2 s`, `5 min`, `3 h`, `2 d`.
pub(super) fn seconds(value: f64) -> String {
    match value {
        value if value < 0.01 => format!("{:.1} ms", value * 1e3),
        value if value < 1.0 => format!("{:.0} ms", value * 1e3),
        value if value < 10.0 => format!("{value:.1} s"),
        value if value < 120.0 => format!("{value:.0} s"),
        value if value < 7_200.0 => format!("{:.0} min", value / 60.0),
        value if value < 172_800.0 => format!("{:.0} h", value / 3_600.0),
        value => format!("{:.0} d", value / 86_400.0),
    }
}

/// How many a second.
pub(super) fn rate(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// A document in block style. Texts are in quotes, as JSON has them, which YAML reads alike.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(&mut text, value, 0);
    text
}

fn write_yaml(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                write_entry(text, &format!("{indent}{name}:"), value, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                write_entry(text, &format!("{indent}-"), item, depth);
            }
        }
        // What is left is `{}`, `[]` and scalars: one line, the same in both languages.
        other => text.push_str(&format!("{indent}{other}\n")),
    }
}

fn write_entry(text: &mut String, lead: &str, value: &Value, depth: usize) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    text.push_str(lead);
    match is_block {
        true => {
            text.push('\n');
            write_yaml(text, value, depth + 1);
        }
        // Writing to a string does not fail.
        false => drop(writeln!(text, " {value}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn units_are_those_that_people_read() {
        assert_eq!([bytes(12), bytes(1536), bytes(3 << 30)], ["12 B", "1.5 KiB", "3.0 GiB"]);
        let read = [0.0004, 0.012, 4.2, 90.0, 300.0, 7_200.0, 200_000.0].map(seconds);
        assert_eq!(read, ["0.4 ms", "12 ms", "4.2 s", "90 s", "5 min", "2 h", "2 d"]);
        assert_eq!([rate(0.0), rate(2.25), rate(1234.5)], ["0", "2.2", "1234"]);
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let mut table = Table::with_head(&["name", "keys", "why"]);
        for (name, keys, why) in
            [("a", Some(5), "x"), ("long one", Some(1234), ""), ("b", None, "")]
        {
            table.row();
            table.cell(name, None);
            table.number(keys.map(|keys| keys.to_string()));
            table.cell(why, None);
        }
        let lines =
            ["NAME      KEYS  WHY", "a            5  x", "long one  1234", "b            -"];
        assert_eq!(table.printed(), lines.join("\n") + "\n");
    }

    #[test]
    fn yaml_has_what_json_has() {
        let value = json!({ "a": [{ "b": 1, "c": "x: y" }, 2], "d": {}, "e": null, "f": true });
        let lines =
            ["a:", "  -", "    b: 1", "    c: \"x: y\"", "  - 2", "d: {}", "e: null", "f: true"];
        assert_eq!(yaml(&value), lines.join("\n") + "\n");
    }
}

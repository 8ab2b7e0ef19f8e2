//! The table: each line a row's metric, each column a peer, and how they compare.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    load::Refusals,
    options::Plan,
    peer::{Pair, Peer},
    store,
};

/// One turn's figures.
pub(crate) type Figures = Vec<(Metric, f64)>;

/// In the order of a row's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    Throughput,
    Median,
    P99,
    Longest,
    EventMedian,
    EventP99,
    AfterAnswerMedian,
    AfterAnswerP99,
    LastEventMedian,
    Replay,
    ServerCpu,
    StoreCpu,
    ClientCpu,
    AppendMedian,
    AppendP99,
    OverwriteMedian,
    StartUp,
    Resident,
    Anonymous,
    PerWatcher,
    /// Of the node so many below the one that answers.
    Peak(usize),
    Growth(usize),
}

/// The figures of all rounds, and the refusals beside them.
#[derive(Debug)]
pub(crate) struct Report {
    peers: Vec<Peer>,
    /// Labels in the order of the table, whatever the order of measuring.
    rows: Vec<String>,
    machine: Vec<Line>,
    lines: Vec<Line>,
    refusals: BTreeMap<(String, &'static str), Refusals>,
}

#[derive(Debug)]
struct Line {
    row: String,
    metric: Metric,
    /// By column, one figure a round.
    rounds: Vec<Vec<f64>>,
}

/// Lines of cells, the first of them the head.
struct Table(Vec<Vec<String>>);

const BEGIN: &str = "<!-- figures -->";
const END: &str = "<!-- /figures -->";

// === impl Metric ===

impl Metric {
    fn label(self) -> &'static str {
        match self {
            Metric::Throughput => "per second",
            Metric::Median => "median ms",
            Metric::P99 => "p99 ms",
            Metric::Longest => "longest ms",
            Metric::ServerCpu => "server CPU µs/op",
            Metric::StoreCpu => "store CPU µs/op",
            Metric::ClientCpu => "client CPU µs/op",
            Metric::EventMedian => "sent→event median ms",
            Metric::EventP99 => "sent→event p99 ms",
            Metric::AfterAnswerMedian => "answer→event median ms",
            Metric::AfterAnswerP99 => "answer→event p99 ms",
            Metric::LastEventMedian => "sent→last event median ms",
            Metric::AppendMedian => "append+fdatasync median ms",
            Metric::AppendP99 => "append+fdatasync p99 ms",
            Metric::OverwriteMedian => "overwrite+fdatasync median ms",
            Metric::StartUp => "first Range ms",
            Metric::Resident => "RSS MiB",
            Metric::Anonymous => "of it anonymous MiB",
            Metric::PerWatcher => "bytes a watcher",
            Metric::Replay => "replayed events per second",
            Metric::Peak(0) => "peak RSS MiB",
            Metric::Peak(1) => "peak RSS MiB, 1 below",
            Metric::Peak(2) => "peak RSS MiB, 2 below",
            Metric::Peak(_) => "peak RSS MiB, 3 below",
            Metric::Growth(0) => "of it during the row MiB",
            Metric::Growth(1) => "of it during the row MiB, 1 below",
            Metric::Growth(2) => "of it during the row MiB, 2 below",
            Metric::Growth(_) => "of it during the row MiB, 3 below",
        }
    }

    /// The factor by which the subject is better, or nothing where that has no meaning.
    fn advantage(self, subject: f64, other: f64) -> Option<f64> {
        match self {
            // The client's own cost is not a server's merit, and signed times have no ratio.
            Metric::ClientCpu | Metric::AfterAnswerMedian | Metric::AfterAnswerP99 => None,
            _ if subject <= 0.0 || other <= 0.0 => None,
            Metric::Throughput | Metric::Replay => Some(subject / other),
            _ => Some(other / subject),
        }
    }
}

// === impl Report ===

impl Report {
    pub(crate) fn new(plan: &Plan) -> Self {
        Report {
            peers: plan.peers.clone(),
            rows: plan.rows.iter().map(|row| row.label(plan)).collect(),
            machine: Vec::new(),
            lines: Vec::new(),
            refusals: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, row: &str, peer: Peer, figures: Figures) {
        let column = self.peers.iter().position(|&known| known == peer).unwrap_or(0);
        for (metric, figure) in figures {
            Line::of(&mut self.lines, row, metric, self.peers.len()).rounds[column].push(figure);
        }
    }

    /// Figures that belong to no peer.
    pub(crate) fn add_machine(&mut self, row: &str, figures: Figures) {
        for (metric, figure) in figures {
            Line::of(&mut self.machine, row, metric, 1).rounds[0].push(figure);
        }
    }

    pub(crate) fn refuse(&mut self, row: &str, peer: Peer, refusals: Refusals) {
        if refusals.is_empty() {
            return;
        }
        let all = self.refusals.entry((row.to_owned(), peer.name())).or_default();
        for (message, times) in refusals {
            *all.entry(message).or_default() += times;
        }
    }

    fn table(&self) -> Table {
        let pairs = Pair::of(&self.peers);
        let mut head = vec!["row".to_owned(), "metric".to_owned()];
        head.extend(self.peers.iter().map(|peer| peer.name().to_owned()));
        head.extend(pairs.iter().map(|&pair| self.comparison(&pairs, pair)));
        let mut cells = vec![head];
        for row in &self.rows {
            let mut lines: Vec<_> = self.lines.iter().filter(|line| line.row == *row).collect();
            // A metric that only later peers have would come last otherwise.
            lines.sort_by_key(|line| line.metric);
            for (index, line) in lines.into_iter().enumerate() {
                let name = if index == 0 { row } else { "" };
                let mut cell = vec![name.to_owned(), line.metric.label().to_owned()];
                cell.extend(line.rounds.iter().map(|rounds| spread(rounds)));
                cell.extend(pairs.iter().map(|&pair| self.ratio(line, pair)));
                cells.push(cell);
            }
        }
        Table(cells)
    }

    /// The head of a column of ratios, which names the subject only where there are several.
    fn comparison(&self, all: &[Pair], pair: Pair) -> String {
        let other = self.peers[pair.other].name();
        match only_subject(all) {
            Some(_) => format!("× {other}"),
            None => format!("{} × {other}", self.peers[pair.subject].name()),
        }
    }

    fn ratio(&self, line: &Line, pair: Pair) -> String {
        let with_store =
            |column: usize| self.peers[column].store().is_some_and(store::Kind::shares_work);
        // A server that keeps its data itself does what elsewhere is the store's work.
        let is_like = with_store(pair.subject) == with_store(pair.other);
        if line.metric == Metric::ServerCpu && !is_like {
            return "–".to_owned();
        }
        line.ratio(pair)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let pairs = Pair::of(&self.peers);
        match only_subject(&pairs) {
            Some(subject) => {
                let subject = self.peers[subject].name();
                notes.push(format!("× NAME: how many times better {subject} is than NAME."));
            }
            None if pairs.is_empty() => {}
            None => notes.push("A × B: how many times better A is than B.".to_owned()),
        }
        for ((row, peer), refusals) in &self.refusals {
            for (message, times) in refusals {
                notes.push(format!("{row}: {peer} refused {times} requests: {message}"));
            }
        }
        notes
    }

    fn machine(&self) -> impl Iterator<Item = String> {
        self.machine.iter().map(|line| {
            format!("{}, {}: {}", line.row, line.metric.label(), spread(&line.rounds[0]))
        })
    }

    pub(crate) fn text(&self) -> String {
        let machine: String = self.machine().map(|line| format!("{line}\n")).collect();
        let notes: String = self.notes().iter().map(|note| format!("{note}\n")).collect();
        format!("{machine}\n{}{notes}", self.table().text())
    }

    /// Begins with items of a list, so that a list of the machine's facts may stand before it.
    pub(crate) fn markdown(&self) -> String {
        let machine: String = self.machine().map(|line| format!("- {line}\n")).collect();
        let notes: String = self.notes().iter().map(|note| format!("\n{note}\n")).collect();
        format!("{machine}\n{}{notes}", self.table().markdown())
    }
}

// === impl Line ===

impl Line {
    /// The line of a row and metric, which the first figure makes.
    fn of<'a>(all: &'a mut Vec<Line>, row: &str, metric: Metric, columns: usize) -> &'a mut Line {
        let known = all.iter().position(|line| line.row == row && line.metric == metric);
        let index = known.unwrap_or_else(|| {
            all.push(Line { row: row.to_owned(), metric, rounds: vec![Vec::new(); columns] });
            all.len() - 1
        });
        &mut all[index]
    }

    fn ratio(&self, pair: Pair) -> String {
        let (subject, other) = (&self.rounds[pair.subject], &self.rounds[pair.other]);
        if subject.is_empty() || other.is_empty() {
            return "–".to_owned();
        }
        let advantage = self.metric.advantage(median(subject), median(other));
        advantage.map_or("–".to_owned(), number)
    }
}

// === impl Table ===

impl Table {
    /// Text columns to the left, figures to the right.
    fn text(&self) -> String {
        let columns = self.0[0].len();
        let width = |column: usize| {
            self.0.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for line in &self.0 {
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let _ = if column < 2 {
                    write!(text, "{cell:<width$}  ")
                } else {
                    write!(text, "{cell:>width$}  ")
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        for (index, line) in self.0.iter().enumerate() {
            let _ = writeln!(text, "| {} |", line.join(" | "));
            if index == 0 {
                let rule = ["---", "---"].into_iter().chain(line[2..].iter().map(|_| "--:"));
                let _ = writeln!(text, "| {} |", rule.collect::<Vec<_>>().join(" | "));
            }
        }
        text
    }
}

/// The subject of all pairs, if it is the same one.
fn only_subject(pairs: &[Pair]) -> Option<usize> {
    let first = pairs.first()?.subject;
    pairs.iter().all(|pair| pair.subject == first).then_some(first)
}

/// The median of the rounds, with the range where there were several.
fn spread(rounds: &[f64]) -> String {
    let all = sorted(rounds);
    match all.as_slice() {
        [] => "–".to_owned(),
        [one] => number(*one),
        [least, .., most] => {
            format!("{} ({}..{})", number(median(rounds)), number(*least), number(*most))
        }
    }
}

/// Three digits that matter, thousands apart.
fn number(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1000.0 => {
            let whole = format!("{figure:.0}");
            let (sign, digits) = whole.split_at(usize::from(figure < 0.0));
            let mut text = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            format!("{sign}{text}")
        }
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 1.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    let all = sorted(samples);
    let middle = all.len() / 2;
    match all.len() {
        0 => f64::NAN,
        length if length.is_multiple_of(2) => f64::midpoint(all[middle - 1], all[middle]),
        _ => all[middle],
    }
}

/// The smallest sample that at least this share of all do not exceed.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let all = sorted(samples);
    let rank = (share * all.len() as f64).ceil() as usize;
    all.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut all = samples.to_vec();
    all.sort_by(f64::total_cmp);
    all
}

/// Writes the Markdown between the marks of a file, or as a new file.
pub(crate) fn publish(path: &Path, markdown: &str) -> Result<()> {
    let present = fs::read_to_string(path).unwrap_or_default();
    let marked = present.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some(format!("{before}{BEGIN}\n{markdown}\n{END}{after}"))
    });
    fs::write(path, marked.unwrap_or_else(|| markdown.to_owned()))
        .with_context(|| format!("writing {}", path.display()))
}

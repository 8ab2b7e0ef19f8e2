//! `pleach tree`: the nodes behind a node, as they are now.

use std::{fmt::Write as _, time::Duration};

use anyhow::anyhow;
use clap::Args;

use super::{
    Outcome,
    client::Target,
    output::{self, Colour, Format, Output, print, print_picture},
    view,
};
use crate::{proto::tree as pb, tree::lanes::printed, wire};

/// How often it is asked again.
const EVERY: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  pleach tree                                   the tree below the node on this machine
  pleach tree http://root:2379 --watch          again every two seconds
  pleach tree https://root:2379 --ca-file ca.pem -o wide
  pleach tree -o json | jq '.routes[] | select(.trouble)'

Exit codes: 0 printed, 2 no node answers. Fields of -o json: docs/src/commands.md.";

/// Prints the tree below a node: names, lanes, revisions, and what is away, and why.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Tree {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
    /// Print it again every two seconds, until it is interrupted.
    #[arg(short, long)]
    watch: bool,
}

// === impl Tree ===

impl Tree {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            if !self.watch {
                let node = self.target.describe().await?;
                print(&self.printed(&node)?);
                return Ok(Outcome::Fine);
            }
            loop {
                let picture = match self.target.describe().await {
                    Ok(node) => self.printed(&node)?,
                    // It may be back; programs are told on the other channel.
                    Err(away) if matches!(self.output.format, Format::Json | Format::Yaml) => {
                        eprintln!("pleach: {away}");
                        String::new()
                    }
                    Err(away) => format!("{away}\n"),
                };
                if !print_picture(&picture) {
                    return Ok(Outcome::Fine);
                }
                tokio::time::sleep(EVERY).await;
            }
        })
    }

    fn printed(&self, node: &pb::Node) -> anyhow::Result<String> {
        if let Some(text) = self.output.format.structured(&view::Node::from(node))? {
            // One document behind the other.
            let begin = if self.watch && self.output.format == Format::Yaml { "---\n" } else { "" };
            return Ok(format!("{begin}{text}"));
        }
        let is_wide = self.output.format == Format::Wide;
        let mut text = String::new();
        if !node.r#loop.is_empty() {
            writeln!(text, "the routes form a loop: {}", node.r#loop)?;
        }
        writeln!(text, "{}", said(node, is_wide))?;
        draw(&mut text, &node.routes, "", is_wide)?;
        Ok(text)
    }
}

/// A node in a line.
fn said(node: &pb::Node, is_wide: bool) -> String {
    let name = node.member.as_ref().map(|member| wire::member_of(member).to_string());
    let name = name.unwrap_or_default();
    let lanes = match wire::blocks_of(&node.lanes) {
        None => "in no tree".to_owned(),
        Some(blocks) if node.giver.is_none() => {
            format!("root, lane {}, {} lanes left", blocks[0].first, node.lanes_left)
        }
        Some(blocks) if node.lanes_left == 0 && blocks.len() == 1 && blocks[0].count == 1 => {
            format!("lane {}", blocks[0].first)
        }
        Some(blocks) if node.lanes_left == 0 => format!("lanes {}", printed(&blocks)),
        Some(blocks) => format!("lanes {}, {} left", printed(&blocks), node.lanes_left),
    };
    let mut text = format!("{name}: {lanes}, revision {}, version {}", node.revision, node.version);
    if is_wide && node.uptime_s > 0.0 {
        let (uptime, memory) = (output::seconds(node.uptime_s), output::bytes(node.memory_bytes));
        text +=
            &format!(", up {uptime}, {memory}, {} watchers", node.watchers + node.watchers_behind);
    }
    for alarm in &node.alarms {
        text += &format!(" {}", Colour::Bad.paint(&format!("(alarm: {alarm})")));
    }
    text
}

fn draw(
    text: &mut String,
    routes: &[pb::Route],
    indent: &str,
    is_wide: bool,
) -> anyhow::Result<()> {
    for (at, route) in routes.iter().enumerate() {
        let is_last = at + 1 == routes.len();
        let (branch, below) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let node = route.node.as_ref().map(|node| format!(" -> {}", said(node, is_wide)));
        let trouble = match route.trouble.as_str() {
            "" => String::new(),
            trouble => format!(" {}", Colour::Bad.paint(&format!("(away: {trouble})"))),
        };
        let more = if is_wide { more_of(route) } else { String::new() };
        let node = node.unwrap_or_default();
        writeln!(text, "{indent}{branch}{}{more}{node}{trouble}", route.name)
            .map_err(|_| anyhow!("a tree that can't be drawn"))?;
        if let Some(node) = &route.node {
            draw(text, &node.routes, &format!("{indent}{below}"), is_wide)?;
        }
    }
    Ok(())
}

/// What a wide screen has room for.
fn more_of(route: &pb::Route) -> String {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let parts = [
        text(&route.rule),
        text(&route.place).or_else(|| text(&route.kind)),
        route.keys.map(|keys| format!("{keys} keys")),
        (route.bytes > 0).then(|| output::bytes(route.bytes)),
        route.is_full.then(|| "full".to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(" {}", Colour::Faint.paint(&format!("[{}]", parts.join(", ")))),
    }
}

//! `pleach tree`: the nodes behind a node, as they are now.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Args;

use crate::{
    net::connect::Address,
    proto::tree::{self as pb, tree_client::TreeClient},
    tree::{child::Connections, lanes::printed},
    wire,
};

/// How long a tree may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Prints the tree below a node: names, lanes, revisions, and what is away, and why.
#[derive(Args, Debug)]
pub struct Tree {
    /// Where the node serves its clients: http(s)://HOST:PORT.
    #[arg(default_value = "http://127.0.0.1:2379")]
    url: String,
    /// The authority that signed its certificate (PEM).
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// The certificate to show it (PEM).
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
}

// === impl Tree ===

impl Tree {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let node = runtime.block_on(self.ask())?;
        let mut text = String::new();
        if !node.r#loop.is_empty() {
            writeln!(text, "the routes form a loop: {}", node.r#loop)?;
        }
        writeln!(text, "{}", said(&node))?;
        print(&mut text, &node.routes, "")?;
        print!("{text}");
        Ok(())
    }

    async fn ask(&self) -> anyhow::Result<pb::Node> {
        let address = Address {
            urls: vec![self.url.clone()],
            ca_file: self.ca_file.clone(),
            identity: self.cert_file.clone().zip(self.key_file.clone()),
            ..Address::default()
        };
        let connections = Connections::new(&self.url, &address).map_err(|e| anyhow!("{e}"))?;
        let mut client = TreeClient::new(connections.calls);
        let mut request = tonic::Request::new(pb::DescribeRequest {});
        request.set_timeout(ANSWER_WITHIN);
        let asked = tokio::time::timeout(ANSWER_WITHIN, client.describe(request)).await;
        let answer = asked.map_err(|_| anyhow!("{} does not answer", self.url))?;
        let answer = answer.with_context(|| format!("{} is no node, or not there", self.url))?;
        Ok(answer.into_inner())
    }
}

/// A node in a line.
fn said(node: &pb::Node) -> String {
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
    format!("{name}: {lanes}, revision {}, version {}", node.revision, node.version)
}

fn print(text: &mut String, routes: &[pb::Route], indent: &str) -> std::fmt::Result {
    for (at, route) in routes.iter().enumerate() {
        let is_last = at + 1 == routes.len();
        let (branch, below) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let node = route.node.as_ref().map(|node| format!(" -> {}", said(node)));
        let trouble = match route.trouble.as_str() {
            "" => String::new(),
            trouble => format!(" (away: {trouble})"),
        };
        writeln!(text, "{indent}{branch}{}{}{trouble}", route.name, node.unwrap_or_default())?;
        if let Some(node) = &route.node {
            print(text, &node.routes, &format!("{indent}{below}"))?;
        }
    }
    Ok(())
}

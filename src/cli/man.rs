//! `pleach man`: the manual, made of what `--help` says.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_mangen::Man as Page;

use super::{Cli, output::print};

const EXAMPLES: &str = "\
Examples:
  pleach man | man -l -                         read it
  pleach man /usr/local/share/man/man1          install a page for each command";

/// Prints the manual, or writes a page for each command into a folder.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Man {
    /// The folder; without one, the first page is printed.
    folder: Option<PathBuf>,
}

// === impl Man ===

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut root = Cli::command();
        root.build();
        let Some(folder) = self.folder else {
            print(&page(root)?);
            return Ok(());
        };
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let commands = root.get_subcommands().filter(|it| it.get_name() != "help").cloned();
        for command in commands.chain([root.clone()]) {
            // `pleach-tree`, as the page of a command is called.
            let name = command.get_display_name().unwrap_or("pleach");
            let path = folder.join(format!("{name}.1"));
            fs::write(&path, page(command)?).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

fn page(command: clap::Command) -> anyhow::Result<String> {
    let mut text = Vec::new();
    Page::new(command).render(&mut text)?;
    Ok(String::from_utf8(text)?)
}

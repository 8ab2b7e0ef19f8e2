//! `pleach completion`: what completes commands and flags in a shell.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, output::print};

const EXAMPLES: &str = "\
Examples:
  source <(pleach completion bash)              for this shell
  pleach completion zsh > \"${fpath[1]}/_pleach\"
  pleach completion fish > ~/.config/fish/completions/pleach.fish";

/// Prints what completes commands and flags in a shell.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Completion {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

// === impl Completion ===

impl Completion {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "pleach", &mut script);
        print(&String::from_utf8(script)?);
        Ok(())
    }
}

//! The `pleach` binary.

use clap::Parser as _;
use pleach::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    match Cli::parse().run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pleach: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

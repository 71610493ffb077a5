//! `pairdb completions`

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;
use super::failure::Failure;

/// Write a completion script to standard output
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// For which shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // Into memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pairdb", &mut script);
    super::args::print_bytes(&script)
}

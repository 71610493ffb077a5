//! The command line: one file per subcommand.
//!
//! # Exit codes
//! | code | meaning |
//! |--:|---|
//! | 0 | done |
//! | 1 | an error |
//! | 2 | wrong usage |
//! | 3 | the key was not found |
//! | 4 | the outcome of the write is unknown: it may have happened |
//! | 5 | the write was not applied, or the node is unavailable |
//! | 6 | `verify` found a promise that was broken |
//! | 7 | a change of the layout has begun and has not ended: it goes on by itself |
//! | 8 | a change of the layout was waited for and did not come about |
//! | 70-79 | `serve` could not start or stop: see [`crate::ops::node::Error::exit_code`] |

mod args;
mod checkpoint;
mod compact;
mod completions;
mod config;
mod delete;
mod dev;
mod drain;
mod explain;
mod export;
mod failure;
mod flush;
mod get;
mod health;
mod hints;
mod import;
mod keys;
mod layout;
mod migrate;
mod progress;
mod put;
mod record;
mod remove;
mod repair;
mod replace;
mod ring;
mod scan;
mod scrub;
mod serve;
mod status;
mod stop;
mod tenant;
mod verify;
mod writes;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::ops::VERSION;
use failure::Failure;

/// PairDB: a leaderless, replicated key-value store in one binary.
#[derive(Debug, Parser)]
#[command(name = "pairdb", version = VERSION, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 outcome unknown, \
5 not applied or unavailable, 6 verify found a broken promise, 7 begun and not ended, 8 waited for \
and did not come about; serve: 70 corrupt data, 71 address in use, 72 data directory in use, 73 \
data directory not writable or full, 74 I/O error or no member, 75 data of a newer version, 76 \
data of another cluster, 77 not a member any more, 78 configuration, 79 was to leave the cluster \
and has not.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Put(put::Args),
    Get(get::Args),
    Delete(delete::Args),
    Scan(scan::Args),
    Keys(keys::Args),
    Import(import::Args),
    Export(export::Args),
    Tenant(tenant::Args),
    Flush(flush::Args),
    Compact(compact::Args),
    Checkpoint(checkpoint::Args),
    Scrub(scrub::Args),
    Status(status::Args),
    Ring(ring::Args),
    Explain(explain::Args),
    Hints(hints::Args),
    Repair(repair::Args),
    Layout(layout::Args),
    Drain(drain::Args),
    Remove(remove::Args),
    Replace(replace::Args),
    Migrate(migrate::Args),
    Stop(stop::Args),
    Dev(dev::Args),
    Health(health::Args),
    Verify(verify::Args),
    Config(config::Args),
    Completions(completions::Args),
}

/// Runs the command that the arguments name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap knows where each goes. A closed pipe is nobody's
            // concern here.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Config(args) => config::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Put(args) => block_on(put::run(args)),
        Command::Get(args) => block_on(get::run(args)),
        Command::Delete(args) => block_on(delete::run(args)),
        Command::Scan(args) => block_on(scan::run(args)),
        Command::Keys(args) => block_on(keys::run(args)),
        Command::Import(args) => block_on(import::run(args)),
        Command::Export(args) => block_on(export::run(args)),
        Command::Tenant(args) => block_on(tenant::run(args)),
        Command::Flush(args) => block_on(flush::run(args)),
        Command::Compact(args) => block_on(compact::run(args)),
        Command::Checkpoint(args) => block_on(checkpoint::run(args)),
        Command::Scrub(args) => block_on(scrub::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Ring(args) => block_on(ring::run(args)),
        Command::Explain(args) => block_on(explain::run(args)),
        Command::Hints(args) => block_on(hints::run(args)),
        Command::Repair(args) => block_on(repair::run(args)),
        Command::Layout(args) => block_on(layout::run(args)),
        Command::Drain(args) => block_on(drain::run(args)),
        Command::Remove(args) => block_on(remove::run(args)),
        Command::Replace(args) => block_on(replace::run(args)),
        Command::Migrate(args) => block_on(migrate::run(args)),
        Command::Stop(args) => block_on(stop::run(args)),
        Command::Dev(args) => dev::run(&args),
        Command::Verify(args) => block_on(verify::run(args)),
        Command::Health(args) => block_on(health::run(args)),
    }
}

/// Runs a command; one thread is enough for a client. What is left then, such as a name that is
/// looked up and not found, is not waited for.
fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    let done = runtime.block_on(command);
    runtime.shutdown_background();
    done
}

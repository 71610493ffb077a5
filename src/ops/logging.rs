//! Log lines on standard error: JSON, or pretty on a terminal.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::config::{Log, LogFormat};

/// Libraries that tell what is of interest to their authors: openraft calls every heartbeat that
/// failed an error, and who is up this node says itself. Directives of the setting that name them
/// come later, and count.
const QUIET: &str = "openraft=off,chitchat=warn";

/// Whether the level can be used.
///
/// # Errors
/// It is neither a level nor a list of directives.
pub fn check(log: &Log) -> Result<(), String> {
    filter(log).map(drop)
}

fn filter(log: &Log) -> Result<EnvFilter, String> {
    // A word that is no level would pass for the name of a part of the program, and nothing of any
    // other part would be logged. Within brackets, which name spans, a comma divides nothing.
    let mut depth = 0_i32;
    let parts = log.level.split(|c| {
        depth += match c {
            '[' | '{' => 1,
            ']' | '}' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    });
    let is_empty = log.level.trim().is_empty();
    for part in parts.map(str::trim).filter(|part| is_empty || !part.is_empty()) {
        let is_level = !part.is_empty() && part.parse::<LevelFilter>().is_ok();
        if !is_level && !part.contains(['=', '[']) {
            return Err(format!(
                "log.level = {:?}: {part:?} is no level: off, error, warn, info, debug or trace, \
                 or of a part of the program: pairdb::rpc=debug",
                log.level
            ));
        }
    }
    EnvFilter::try_new(format!("{QUIET},{}", log.level))
        .map_err(|error| format!("log.level = {:?}: {error}", log.level))
}

/// Sends log lines to standard error as the settings say. The first call in a process counts.
///
/// # Errors
/// The level is neither a level nor a list of directives.
pub fn init(log: &Log) -> Result<(), String> {
    let filter = filter(log)?;
    let pretty = match log.format {
        LogFormat::Pretty => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An embedder, or an earlier node of the process, may have set one: theirs stays.
    let _ = match pretty {
        true => builder.try_init(),
        false => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

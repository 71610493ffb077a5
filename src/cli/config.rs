//! `pairdb config`

use std::io::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::args::Output;
use super::failure::Failure;
use crate::ops::config::{Loaded, Source, load};

/// Check or show the settings of a node
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check the settings; exit code 78 if they are wrong
    Check {
        /// The file [default: PAIRDB_CONFIG, then /etc/pairdb/pairdb.toml]
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
    },
    /// Show all settings with their origins, as a file that gives them again
    Show {
        /// The file [default: PAIRDB_CONFIG, then /etc/pairdb/pairdb.toml]
        #[arg(long, value_name = "PATH")]
        config: Option<PathBuf>,
        /// How they are written
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

/// Loads settings, or says why they cannot be used.
pub(super) fn load_or_fail(source: &Source) -> Result<Loaded, Failure> {
    load(source).map_err(|error| Failure::with_code(78, error.to_string()))
}

/// The process environment, as far as it is text.
pub(super) fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (file, show) = match &args.verb {
        Verb::Check { config } => (config, None),
        Verb::Show { config, output } => (config, Some(*output)),
    };
    let source = Source { file: file.clone(), environment: environment(), flags: Vec::new() };
    let loaded = load_or_fail(&source)?;
    let mut out = std::io::stdout().lock();
    match show {
        None => writeln!(out, "the configuration is valid")?,
        Some(Output::Text) => write!(out, "{}", loaded.to_toml())?,
        Some(Output::Json) => {
            let settings = loaded.config.settings().into_iter().map(|setting| {
                let origin = loaded.origin(setting.name).to_string();
                let shown = json!({
                    "value": setting.value, "origin": origin, "description": setting.doc,
                });
                (setting.name.to_owned(), shown)
            });
            writeln!(out, "{}", Value::from(settings.collect::<Map<_, _>>()))?;
        }
    }
    Ok(out.flush()?)
}

//! `pairdb verify`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::args::{Connect, Output, duration};
use super::failure::Failure;
use crate::client::{Admin, Client, Options};
use crate::proto;
use crate::store::Random as _;
use crate::store::environment::SystemRandom;
use crate::verify::checker::{self, Violation, shrink};
use crate::verify::history::{self, Action, Event, Level, Mode, Outcome};
use crate::verify::recorder::Recorder;
use crate::verify::workload::{Plan, Target, Worker};

/// Violations that are shown with their smallest histories; the others are counted.
const SHOWN_MAX: usize = 10;

/// The exit code when a promise was broken.
const BROKEN: u8 = 6;

/// Check that a cluster keeps its promises
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Let clients write, read and delete for a while, and check what they saw
    ///
    /// All keys begin with a prefix of the run's own and are deleted in the end. Every endpoint is
    /// asked what it holds when the clients are done. Ctrl-C ends their work early; what they saw
    /// is checked.
    Run(RunArgs),
    /// Check a recorded history
    Check {
        /// JSON lines, as `run --history` writes them
        file: PathBuf,
        /// How the answer is written
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// How long the clients work
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "10s")]
    duration: Duration,
    /// How long replicas have to agree before they are asked for the last time
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "2s")]
    settle: Duration,
    /// Clients that work at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    clients: u32,
    /// Keys in each tenant; few, so that clients meet
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    keys: u64,
    /// Longest pause of a client between two operations
    #[arg(long, value_parser = duration, value_name = "DURATION", default_value = "10ms")]
    pause: Duration,
    /// Levels to use
    #[arg(long, value_enum, value_delimiter = ',', default_value = "one,quorum,all")]
    levels: Vec<LevelArg>,
    /// Tenants to use, comma-separated
    #[arg(long, value_delimiter = ',', env = "PAIRDB_TENANT", default_value = "default")]
    tenants: Vec<String>,
    /// Where the history is written while it is made
    #[arg(long, value_name = "PATH")]
    history: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelArg {
    One,
    Quorum,
    All,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Run(args) => {
            let output = args.connect.output;
            let events = record(args).await?;
            report(&events, output)?;
            match events.iter().any(is_acknowledged_write) {
                true => Ok(()),
                false => Err(Failure::error("no write was acknowledged: nothing was checked")),
            }
        }
        Verb::Check { file, output } => {
            let text = fs::read_to_string(&file).map_err(|error| cannot("read", &file, error))?;
            let events = history::parse(&text).map_err(|error| cannot("read", &file, error))?;
            if !events.iter().any(|event| matches!(event, Event::Op(_))) {
                let message = format!("{} holds no operation: nothing was checked", file.display());
                return Err(Failure::error(message));
            }
            report(&events, output)
        }
    }
}

fn is_acknowledged_write(event: &Event) -> bool {
    let Event::Op(op) = event else { return false };
    matches!(op.action, Action::Write { .. }) && op.outcome == Outcome::Ok
}

fn cannot(what: &str, path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::error(format!("cannot {what} {}: {error}", path.display()))
}

/// Lets clients work, and gives what they saw.
async fn record(args: RunArgs) -> Result<Vec<Event>, Failure> {
    if args.clients == 0 || args.keys == 0 || args.tenants.is_empty() {
        return Err(Failure::usage("--clients, --keys and --tenants must not be none"));
    }
    let options = args.connect.options(Duration::from_secs(5))?;
    let out: Option<Box<dyn Write + Send>> = match &args.history {
        Some(path) => {
            let file = fs::File::create(path).map_err(|error| cannot("create", path, error))?;
            Some(Box::new(BufWriter::new(file)))
        }
        None => None,
    };
    let recorder = Arc::new(Recorder::new(out));
    let plan = Arc::new(plan(&args, &options, &recorder).await?);
    let seed = random()?;
    let mut workers = Vec::new();
    for number in 0..args.clients {
        let targets = targets(&options)?;
        let (plan, recorder) = (Arc::clone(&plan), Arc::clone(&recorder));
        workers.push(Worker::new(number, plan, targets, recorder, seed));
    }
    let end = Instant::now() + args.duration;
    let interrupted = CancellationToken::new();
    let heard = interrupted.clone();
    tokio::spawn(async move {
        // Where it cannot be heard the system ends the program.
        if tokio::signal::ctrl_c().await.is_ok() {
            heard.cancel();
        }
    });
    let work = |mut worker: Worker| {
        let interrupted = interrupted.clone();
        async move {
            while Instant::now() < end && !interrupted.is_cancelled() {
                worker.step().await;
            }
            worker
        }
    };
    let tasks: Vec<_> = workers.into_iter().map(|worker| tokio::spawn(work(worker))).collect();
    let mut first = None;
    for task in tasks {
        let worker = task.await.map_err(|_| Failure::error("a client of the run panicked"))?;
        first.get_or_insert(worker);
    }
    let mut worker = first.expect("there is a client");
    tokio::time::sleep(args.settle).await;
    worker.read_all().await;
    worker.remove_all().await;
    recorder.finish().map_err(|error| match &args.history {
        Some(path) => cannot("write", path, error),
        None => Failure::error(error.to_string()),
    })
}

fn random() -> Result<u64, Failure> {
    SystemRandom.next_u64().map_err(|error| Failure::error(error.to_string()))
}

/// What the clients do; the tenants are noted in the history.
async fn plan(args: &RunArgs, options: &Options, recorder: &Recorder) -> Result<Plan, Failure> {
    let client = Client::new(options.clone())?;
    let mut tenants = Vec::new();
    for name in &args.tenants {
        let call = async |admin: &mut Admin, request| admin.get_tenant(request).await;
        let request = proto::GetTenantRequest { name: name.clone() };
        let tenant = client.admin_call(request, call).await?.tenant;
        let tenant = tenant.ok_or_else(|| Failure::error("the answer holds no tenant"))?;
        let mode = match tenant.mode() {
            proto::TenantMode::LastWriteWins => Mode::LastWriteWins,
            proto::TenantMode::Siblings | proto::TenantMode::Unspecified => Mode::Siblings,
        };
        // A tenant may have more copies than its cluster has nodes; of one node it is known.
        let replicas = tenant.replication_factor;
        recorder.event(Event::Tenant { name: name.clone(), mode, replicas });
        tenants.push((name.clone(), mode));
    }
    let level = |level: &LevelArg| match level {
        LevelArg::One => Level::One,
        LevelArg::Quorum => Level::Quorum,
        LevelArg::All => Level::All,
    };
    Ok(Plan {
        tenants,
        prefix: format!("verify-{:016x}/", random()?),
        keys: args.keys,
        levels: args.levels.iter().map(level).collect(),
        pause_max: args.pause,
        ttl_max: Duration::ZERO,
        deletes_percent: 10,
        tokens_percent: 60,
    })
}

/// Every endpoint, each to be asked by itself.
fn targets(options: &Options) -> Result<Vec<Target>, Failure> {
    let mut targets = Vec::new();
    for endpoint in &options.endpoints {
        let endpoints = vec![endpoint.clone()];
        let options = Options { endpoints, retries_max: 0, ..options.clone() };
        Client::new(options.clone())?;
        let connect = move || Client::new(options.clone()).expect("the same was made before");
        targets.push(Target::new(endpoint.clone(), Box::new(connect)));
    }
    Ok(targets)
}

/// Checks, and says what was found.
fn report(events: &[Event], output: Output) -> Result<(), Failure> {
    let mut outcomes: BTreeMap<&str, u64> =
        ["ok", "not_applied", "unknown"].into_iter().map(|name| (name, 0)).collect();
    for event in events {
        let Event::Op(op) = event else { continue };
        let name = match op.outcome {
            Outcome::Ok => "ok",
            Outcome::NotApplied => "not_applied",
            Outcome::Unknown => "unknown",
        };
        *outcomes.entry(name).or_default() += 1;
    }
    let violations = checker::check(events);
    let shown: Vec<(&Violation, Vec<Event>)> = violations
        .iter()
        .take(SHOWN_MAX)
        .map(|violation| (violation, shrink::smallest(events, violation)))
        .collect();
    let printed = print(&outcomes, violations.len(), &shown, output);
    match violations.len() {
        0 => printed,
        count => Err(Failure::with_code(BROKEN, format!("{count} promises were broken"))),
    }
}

fn print(
    outcomes: &BTreeMap<&str, u64>,
    violations: usize,
    shown: &[(&Violation, Vec<Event>)],
    output: Output,
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Text => out.write_all(text(outcomes, violations, shown).as_bytes())?,
        Output::Json => {
            let shown: Vec<Value> = shown.iter().map(to_json).collect();
            let operations: u64 = outcomes.values().sum();
            let report = json!({
                "operations": operations,
                "outcomes": outcomes,
                "violations": violations,
                "shown": shown,
            });
            writeln!(out, "{report}")?;
        }
    }
    Ok(out.flush()?)
}

fn text(
    outcomes: &BTreeMap<&str, u64>,
    violations: usize,
    shown: &[(&Violation, Vec<Event>)],
) -> String {
    let operations: u64 = outcomes.values().sum();
    let mut text = format!(
        "{operations} operations: {} ok, {} not applied, {} unknown; {violations} violations\n",
        outcomes["ok"], outcomes["not_applied"], outcomes["unknown"]
    );
    for (violation, events) in shown {
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{violation}\n  ({})", violation.invariant.statement());
        for event in events {
            let _ = writeln!(text, "    {}", history::line(event));
        }
    }
    text
}

fn to_json((violation, events): &(&Violation, Vec<Event>)) -> Value {
    json!({
        "invariant": violation.invariant.to_string(),
        "statement": violation.invariant.statement(),
        "tenant": violation.place.0,
        "key": violation.place.1,
        "what": violation.what,
        "history": events,
    })
}

//! PairDB's engine beside RocksDB and fjall: `make bench-peers`, or `--help`.
//!
//! The parent process orders the runs ([`parent`]); each is a child process of the same program
//! ([`child`]) that opens one engine behind [`store::Store`], does one [`workload`] and prints an
//! [`outcome`]. The parent keeps those lines and makes the [`report`] and the [`plot`]s.

mod cgroup;
mod child;
mod data;
mod measure;
mod outcome;
mod parent;
mod plot;
mod report;
mod store;
mod workload;
mod ycsb;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use parent::{CHILD, Plan};
use store::{Compression, EngineName, Result};
use workload::{Scale, WORKLOADS, Workload};

/// The same for all engines: the crate replaces `malloc` and `free` of the process as well.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// PairDB's engine beside RocksDB and fjall, same settings, by turns.
#[derive(Parser)]
struct Arguments {
    /// The long set: 3 million keys, 1 million records, 5 rounds, a data set larger than memory.
    #[arg(long)]
    full: bool,
    /// Keys with values of 100 bytes [default: 1000000, with --full 3000000].
    #[arg(long)]
    keys: Option<u64>,
    /// Keys with values of 1,000 bytes [default: 100000, with --full 1000000].
    #[arg(long)]
    records: Option<u64>,
    /// Rounds of each workload [default: 2, with --full 5].
    #[arg(long)]
    rounds: Option<u32>,
    /// Names, or beginnings of names, of the workloads to run [default: all; `larger` only with
    /// --full or when named].
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Engines to run.
    #[arg(long, value_delimiter = ',', default_value = "pairdb,rocksdb,fjall")]
    engines: Vec<EngineName>,
    /// Tables to run on: `lz4` runs some of the workloads.
    #[arg(long, value_delimiter = ',', default_value = "none,lz4")]
    compression: Vec<Compression>,
    /// Memory that the workload `larger` is given, page cache included, in MiB.
    #[arg(long, default_value_t = 1024)]
    memory_mib: u64,
    /// Operations a second at most: what memory, space and the longest call are under the same
    /// load, and not each engine's own [default: as many as it does].
    #[arg(long)]
    pace: Option<NonZeroU32>,
    /// Directory of the results.
    #[arg(long, default_value = "target/bench-peers")]
    out: PathBuf,
    /// Directory of the engines' files [default: `data` in the results' directory].
    #[arg(long)]
    data: Option<PathBuf>,
}

impl Arguments {
    fn plan(&self) -> Result<Plan> {
        let pick =
            |given: Option<u64>, short, full| given.unwrap_or(if self.full { full } else { short });
        let is_named = |workload: &Workload| {
            self.workloads.iter().any(|name| workload.name.starts_with(name.as_str()))
        };
        for name in &self.workloads {
            if !WORKLOADS.iter().any(|workload| workload.name.starts_with(name.as_str())) {
                return Err(format!("no workload is named {name}").into());
            }
        }
        let is_wanted = |workload: &Workload| match self.workloads.is_empty() {
            true => self.full || workload.kind != workload::Kind::Larger,
            false => is_named(workload),
        };
        let mut workloads = Vec::new();
        for &compression in &self.compression {
            let on_table = WORKLOADS.iter().filter(|workload| {
                is_wanted(workload) && (compression == Compression::None || workload.with_lz4)
            });
            workloads.extend(on_table.map(|workload| (workload, compression)));
        }
        Ok(Plan {
            engines: self.engines.clone(),
            workloads,
            rounds: pick(self.rounds.map(u64::from), 2, 5) as u32,
            scale: Scale {
                keys: pick(self.keys, 1_000_000, 3_000_000),
                records: pick(self.records, 100_000, 1_000_000),
                memory_mib: self.memory_mib,
                pace: self.pace.map(|pace| u64::from(pace.get())),
            },
            out: self.out.clone(),
            data: self.data.clone().unwrap_or_else(|| self.out.join("data")),
        })
    }
}

fn run_parent() -> Result<ExitCode> {
    let plan = Arguments::parse().plan()?;
    let command: Vec<String> = std::env::args().collect();
    let results = plan.run()?;
    let groups = report::group(&results.outcomes, &plan.engines);
    let text = report::markdown(&plan, &results, &groups, &command.join(" "))?;
    std::fs::write(plan.out.join("README.md"), &text)?;
    plot::draw(&groups, &plan.out)?;
    println!("\n{text}");
    report::print_ratios(&groups);
    Ok(if results.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some(CHILD), Some(task)) => {
            child::run(&serde_json::from_str(&task)?)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => run_parent(),
    }
}

fn main() -> ExitCode {
    run().unwrap_or_else(|failure| {
        eprintln!("peers: {failure}");
        ExitCode::FAILURE
    })
}

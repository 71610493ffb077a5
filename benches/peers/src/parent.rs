//! The order of things: bases are made once, then each workload runs round by round, engine by
//! engine, so that whatever the machine does meanwhile meets all of them alike. Every run is a
//! child process; the engine that goes first changes from round to round.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::cgroup::MemoryCgroup;
use crate::child::READY;
use crate::outcome::Outcome;
use crate::report::short;
use crate::store::{Compression, EngineName, Result};
use crate::workload::{Base, Kind, Scale, Step, Task, Workload};

/// What to run.
pub struct Plan {
    /// In the order given.
    pub engines: Vec<EngineName>,
    /// Workloads and the table they run on.
    pub workloads: Vec<(&'static Workload, Compression)>,
    /// Rounds of each workload.
    pub rounds: u32,
    /// How much.
    pub scale: Scale,
    /// Results go here.
    pub out: PathBuf,
    /// The engines' directories go here.
    pub data: PathBuf,
}

/// What came of it.
#[derive(Default)]
pub struct Results {
    /// All results.
    pub outcomes: Vec<Outcome>,
    /// A line for each workload that could not run here.
    pub skipped: Vec<String>,
    /// A line for each run that failed.
    pub failed: Vec<String>,
}

impl Plan {
    /// Runs everything. Raw results are written as they come.
    ///
    /// # Errors
    /// Files of the harness itself; what an engine does wrong is in [`Results::failed`].
    pub fn run(&self) -> Result<Results> {
        std::fs::create_dir_all(&self.out)?;
        self.write_options()?;
        let mut raw = File::create(self.out.join("raw.jsonl"))?;
        let mut results = Results::default();
        let mut bases = Bases { plan: self, dirs: BTreeMap::new() };
        for &(workload, compression) in &self.workloads {
            let cgroup = match self.cgroup(workload) {
                Ok(cgroup) => cgroup,
                Err(reason) => {
                    let line = format!("SKIP {}: no memory cgroup: {reason}", workload.name);
                    println!("{line}");
                    results.skipped.push(line);
                    continue;
                }
            };
            for round in 0..self.rounds {
                for turn in 0..self.engines.len() {
                    let engine = self.engines[(turn + round as usize) % self.engines.len()];
                    let task = Task {
                        step: Step::Measure,
                        engine,
                        compression,
                        workload: workload.name.to_owned(),
                        round,
                        dir: PathBuf::new(),
                        scale: self.scale,
                        cgroup: cgroup.as_ref().map(MemoryCgroup::procs),
                    };
                    match bases.run(task, workload) {
                        Ok(outcomes) => {
                            for outcome in outcomes {
                                print_outcome(&outcome);
                                writeln!(raw, "{}", serde_json::to_string(&outcome)?)?;
                                results.outcomes.push(outcome);
                            }
                        }
                        Err(error) => {
                            let name = engine.as_str();
                            let line = format!("FAILED {} {name}: {error}", workload.name);
                            println!("{line}");
                            results.failed.push(line);
                        }
                    }
                }
            }
        }
        bases.remove()?;
        Ok(results)
    }

    fn cgroup(&self, workload: &Workload) -> Result<Option<MemoryCgroup>> {
        match workload.kind {
            Kind::Larger => MemoryCgroup::new(self.scale.memory_mib << 20).map(Some),
            _ => Ok(None),
        }
    }

    /// Writes every option of every engine to a file each.
    fn write_options(&self) -> Result<()> {
        for &engine in &self.engines {
            let dir = self.fresh_dir("options")?;
            let task = Task {
                step: Step::Options,
                engine,
                compression: Compression::None,
                workload: String::new(),
                round: 0,
                dir: dir.clone(),
                scale: self.scale,
                cgroup: None,
            };
            let text = finish(child(&task)?.stdout(Stdio::piped()).spawn()?)?;
            let path = self.out.join(format!("options-{}.txt", engine.as_str()));
            std::fs::write(path, text)?;
            std::fs::remove_dir_all(dir)?;
        }
        Ok(())
    }

    /// An empty directory. One of this name that an earlier run left is removed.
    fn fresh_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.data.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// The loaded stores that workloads start from, made when first asked for.
struct Bases<'a> {
    plan: &'a Plan,
    dirs: BTreeMap<(Base, EngineName, String), PathBuf>,
}

impl Bases<'_> {
    fn of(&mut self, base: Base, task: &Task) -> Result<PathBuf> {
        let table = format!("{:?}", task.compression).to_lowercase();
        let key = (base, task.engine, table.clone());
        if let Some(dir) = self.dirs.get(&key) {
            return Ok(dir.clone());
        }
        let name = format!("base-{base:?}-{}-{table}", task.engine.as_str()).to_lowercase();
        let dir = self.plan.fresh_dir(&name)?;
        let start = Instant::now();
        let load = Task { step: Step::Load(base), dir: dir.clone(), cgroup: None, ..task.clone() };
        finish(child(&load)?.stdout(Stdio::piped()).spawn()?)?;
        println!("loaded {name} in {:.1} s", start.elapsed().as_secs_f64());
        self.dirs.insert(key, dir.clone());
        Ok(dir)
    }

    /// Runs one task in its child, on an empty directory, the base or a copy of it.
    fn run(&mut self, mut task: Task, workload: &Workload) -> Result<Vec<Outcome>> {
        let base = match workload.base {
            Base::Empty => None,
            base => Some(self.of(base, &task)?),
        };
        task.dir = match base {
            Some(base) if !workload.mutates() => base,
            Some(base) => {
                let dir = self.plan.fresh_dir("run")?;
                copy_synced(&base, &dir)?;
                dir
            }
            None => self.plan.fresh_dir("run")?,
        };
        if workload.kind == Kind::OpenKilled {
            write_and_kill(&task)?;
        }
        let output = finish(child(&task)?.stdout(Stdio::piped()).spawn()?)?;
        if workload.mutates() {
            std::fs::remove_dir_all(&task.dir)?;
        }
        output.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn remove(self) -> Result<()> {
        for dir in self.dirs.into_values() {
            std::fs::remove_dir_all(dir)?;
        }
        Ok(())
    }
}

/// The option that makes the harness a child; its value is the task.
pub const CHILD: &str = "--child";

fn child(task: &Task) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(CHILD).arg(serde_json::to_string(task)?).stdin(Stdio::null());
    Ok(command)
}

/// Waits for a child and answers what it printed.
fn finish(child: std::process::Child) -> Result<String> {
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("the child ended with {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Lets a child write to its store and kills it as soon as all is acknowledged.
fn write_and_kill(task: &Task) -> Result<()> {
    let task = Task { step: Step::WriteUntilKilled, ..task.clone() };
    let mut child = child(&task)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("the child has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    child.kill()?;
    child.wait()?;
    if line.trim_end() == READY { Ok(()) } else { Err("the child ended before its kill".into()) }
}

/// Copies a directory and syncs the copy: its writeback shall not fall into the measured time.
fn copy_synced(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_synced(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    Ok(File::open(to)?.sync_all()?)
}

fn print_outcome(outcome: &Outcome) {
    println!(
        "{:<24} round {} {:<12} {:>9} ops/s  p50 {:>7.1} us  p99 {:>8.1} us  max {:>8.2} ms  \
         {:>6.2} us CPU/op  {}",
        outcome.group(),
        outcome.round,
        outcome.engine.as_str(),
        short(outcome.ops_per_s),
        outcome.p50_us,
        outcome.p99_us,
        outcome.max_ms,
        outcome.cpu_us(),
        outcome.note,
    );
}

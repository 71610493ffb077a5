//! Medians, ratios and the Markdown table.
//!
//! A ratio is PairDB's median operations a second by the greater of the other engines' medians.
//! Its spread is the least and the greatest of the same ratio taken round by round. An open counts
//! as operations a second too (one by its time), so that more is better everywhere.
//! The ratio of CPU time by operation (the least of the others by PairDB's, so that more is better
//! again) stands beside it: it is steadier on a machine that others use too.

use std::fmt::Write as _;

use crate::outcome::Outcome;
use crate::parent::{Plan, Results};
use crate::store::{EngineName, Result};

/// All results of one workload on one table.
pub struct Group {
    /// Its name, in the order in which they ran.
    pub name: String,
    /// Per engine, its results by round.
    pub engines: Vec<(EngineName, Vec<Outcome>)>,
}

/// PairDB beside the best of the others.
pub struct Ratio {
    /// Of the medians.
    pub median: f64,
    /// Least of the rounds.
    pub min: f64,
    /// Greatest of the rounds.
    pub max: f64,
}

/// The middle of the values, or the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Groups results, keeping the order of workloads and of engines.
pub fn group(outcomes: &[Outcome], engines: &[EngineName]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for outcome in outcomes {
        let name = outcome.group();
        if !groups.iter().any(|group| group.name == name) {
            let engines = engines.iter().map(|&engine| (engine, Vec::new())).collect();
            groups.push(Group { name: name.clone(), engines });
        }
        let engines = groups.iter_mut().filter(|group| group.name == name);
        for (engine, results) in engines.flat_map(|group| &mut group.engines) {
            if *engine == outcome.engine {
                results.push(outcome.clone());
            }
        }
    }
    groups
}

impl Group {
    /// Median of a figure of an engine.
    pub fn median(&self, engine: EngineName, figure: impl Fn(&Outcome) -> f64) -> f64 {
        median(self.of(engine).iter().map(figure))
    }

    fn of(&self, engine: EngineName) -> &[Outcome] {
        self.engines.iter().find(|(name, _)| *name == engine).map_or(&[], |(_, results)| results)
    }

    /// The least CPU time that another engine takes for an operation, by PairDB's.
    fn cpu_ratio(&self) -> f64 {
        let others = self.engines.iter().filter(|(name, _)| *name != EngineName::Pairdb);
        let best = others.map(|(name, _)| self.median(*name, Outcome::cpu_us));
        best.fold(f64::NAN, f64::min) / self.median(EngineName::Pairdb, Outcome::cpu_us)
    }

    /// None if PairDB or all of the others have no result.
    pub fn ratio(&self) -> Option<Ratio> {
        let by = |rate: &dyn Fn(&[Outcome]) -> f64| -> Option<f64> {
            let own = rate(self.of(EngineName::Pairdb));
            let others = self.engines.iter().filter(|(name, _)| *name != EngineName::Pairdb);
            let best = others.map(|(_, results)| rate(results)).fold(f64::NAN, f64::max);
            let ratio = own / best;
            ratio.is_finite().then_some(ratio)
        };
        let whole = by(&|results| median(results.iter().map(|outcome| outcome.ops_per_s)))?;
        let rounds = self.of(EngineName::Pairdb).iter().filter_map(|own| {
            by(&|results| {
                let same_round = results.iter().filter(|other| other.round == own.round);
                median(same_round.map(|outcome| outcome.ops_per_s))
            })
        });
        let (min, max) = rounds
            .fold((whole, whole), |(min, max), ratio| (f64::min(min, ratio), f64::max(max, ratio)));
        Some(Ratio { median: whole, min, max })
    }
}

/// The report, without plots.
pub fn markdown(plan: &Plan, results: &Results, groups: &[Group], command: &str) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "# PairDB beside its peers\n\n    {command}\n")?;
    writeln!(
        text,
        "{} keys of 16 + 100 bytes, {} records of 16 + 1,000 bytes, {} rounds, engines by turns, \
         each run a process of its own. Medians; in brackets the least and the greatest of the \
         rounds. {}\n",
        plan.scale.keys,
        plan.scale.records,
        plan.rounds,
        machine(),
    )?;
    writeln!(text, "{}\n", versions())?;
    ratios(&mut text, groups)?;
    details(&mut text, groups)?;
    for line in results.skipped.iter().chain(&results.failed) {
        writeln!(text, "- {line}")?;
    }
    writeln!(text, "\nOptions: `options-*.txt` beside this file; every result: `raw.jsonl`.")?;
    Ok(text)
}

fn ratios(text: &mut String, groups: &[Group]) -> Result<()> {
    let Some(first) = groups.first() else { return Ok(()) };
    write!(text, "| workload |")?;
    for (engine, _) in &first.engines {
        write!(text, " {} ops/s |", engine.as_str())?;
    }
    write!(text, " ratio | rounds | CPU ratio |\n|---|")?;
    for _ in &first.engines {
        write!(text, "--:|")?;
    }
    writeln!(text, "--:|--:|--:|")?;
    for group in groups {
        write!(text, "| {} |", group.name)?;
        for (engine, _) in &group.engines {
            write!(text, " {} |", short(group.median(*engine, |outcome| outcome.ops_per_s)))?;
        }
        match group.ratio() {
            Some(Ratio { median, min, max }) => {
                let cpu = group.cpu_ratio();
                writeln!(text, " {median:.2} | {min:.2} .. {max:.2} | {cpu:.2} |")?;
            }
            None => writeln!(text, " - | - | - |")?,
        }
    }
    writeln!(text)?;
    Ok(())
}

/// A row for each engine of each workload.
fn details(text: &mut String, groups: &[Group]) -> Result<()> {
    writeln!(
        text,
        "CPU is that of all threads, rest included, by operation. Written are the bytes handed to \
         the kernel, rest included, read those that came from the disk; W and S are write \
         and space amplification, W+ and S+ the same after a minute of rest, where an engine \
         does something in it. Max is the longest \
         that one call took. RSS has mapped files in it, anon has not.\n"
    )?;
    writeln!(
        text,
        "| workload | engine | ops/s | p50 us | p99 us | p99.9 us | max ms | CPU us | rest s | \
         written MiB | read MiB | W | S | W+ | S+ | RSS MiB | anon MiB |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    for group in groups {
        for (engine, results) in &group.engines {
            if !results.is_empty() {
                detail(text, group, *engine)?;
            }
        }
    }
    writeln!(text)?;
    Ok(())
}

fn detail(text: &mut String, group: &Group, engine: EngineName) -> Result<()> {
    const MIB: f64 = (1 << 20) as f64;
    let of = |figure: &dyn Fn(&Outcome) -> f64| group.median(engine, figure);
    let rates = || group.of(engine).iter().map(|outcome| outcome.ops_per_s);
    let least = rates().fold(f64::INFINITY, f64::min);
    let greatest = rates().fold(0.0, f64::max);
    let amplification = |figure: f64| match figure.is_finite() {
        true => format!("{figure:.2}"),
        false => "-".into(),
    };
    writeln!(
        text,
        "| {} | {} | {} ({}..{}) | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {:.1} | {:.0} | {:.0} | \
         {} | {} | {} | {} | {:.0} | {:.0} |",
        group.name,
        engine.as_str(),
        short(of(&|one| one.ops_per_s)),
        short(least),
        short(greatest),
        of(&|one| one.p50_us),
        of(&|one| one.p99_us),
        of(&|one| one.p999_us),
        of(&|one| one.max_ms),
        of(&Outcome::cpu_us),
        of(&|one| one.settle_s),
        of(&|one| one.bytes_written as f64) / MIB,
        of(&|one| one.bytes_read as f64) / MIB,
        amplification(of(&|one| one.write_amplification.unwrap_or(f64::NAN))),
        amplification(of(&|one| one.space_amplification.unwrap_or(f64::NAN))),
        amplification(of(&|one| one.rested_write_amplification.unwrap_or(f64::NAN))),
        amplification(of(&|one| one.rested_space_amplification.unwrap_or(f64::NAN))),
        of(&|one| one.peak_rss_bytes as f64) / MIB,
        of(&|one| one.peak_anon_bytes as f64) / MIB,
    )?;
    Ok(())
}

/// A rate, with three digits or so.
pub fn short(rate: f64) -> String {
    match rate {
        rate if !rate.is_finite() => "-".into(),
        rate if rate >= 999_500.0 => format!("{:.2} M", rate / 1e6),
        rate if rate >= 999.5 => format!("{:.1} k", rate / 1e3),
        rate => format!("{rate:.1}"),
    }
}

/// What was compared. RocksDB's own version stands behind the plus sign of its crate's.
fn versions() -> String {
    let lock = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let package = lock
            .split("[[package]]")
            .find(|package| package.lines().any(|line| line == format!("name = \"{name}\"")));
        let line = package
            .and_then(|package| package.lines().find_map(|line| line.strip_prefix("version = ")));
        line.unwrap_or("unknown").trim_matches('"').to_owned()
    };
    let git = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = git.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let allocator = match cfg!(feature = "mimalloc") {
        true => format!("mimalloc {}", version("mimalloc")),
        false => "the system's allocator".to_owned(),
    };
    format!(
        "pairdb {} at {}; librocksdb-sys {}; fjall {}, lsm-tree {}; all on {allocator}.",
        version("pairdb"),
        commit.unwrap_or_else(|_| "an unknown commit".into()),
        version("librocksdb-sys"),
        version("fjall"),
        version("lsm-tree"),
    )
}

/// The processor, memory and kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{} x {}, memory {}, Linux {}, load average at the end {}.",
        cores,
        value(&read("/proc/cpuinfo"), "model name"),
        value(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").trim(),
    )
}

/// Prints the lines that scripts look for.
pub fn print_ratios(groups: &[Group]) {
    let mut worst: Option<(f64, &str)> = None;
    for group in groups {
        let Some(ratio) = group.ratio() else { continue };
        println!("RATIO {} {:.2}", group.name, ratio.median);
        if worst.is_none_or(|(least, _)| ratio.median < least) {
            worst = Some((ratio.median, &group.name));
        }
    }
    match worst {
        Some((least, name)) => println!("WORST {least:.2} {name}"),
        None => println!("WORST none: PairDB ran beside nobody"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Timing, Usage, histogram};

    fn outcome(engine: EngineName, round: u32, ops: u64) -> Outcome {
        let usage = Usage { cpu_s: 1.0, bytes_written: 0, bytes_dirtied: 0, bytes_read: 0 };
        let timing = Timing { ops, seconds: 1.0, latency_ns: histogram(), user_bytes: 0 };
        Outcome { round, ..Outcome::new(engine, "fillseq", &timing, usage) }
    }

    /// The best of the others is chosen by its median for the ratio, by each round for the spread.
    #[test]
    fn a_ratio_is_taken_beside_the_best_of_the_others() {
        use EngineName::{Fjall, Pairdb, Rocksdb};
        let rates = [(Pairdb, [30, 40, 50]), (Rocksdb, [20, 20, 20]), (Fjall, [10, 80, 10])];
        let outcomes: Vec<Outcome> = rates
            .into_iter()
            .flat_map(|(engine, rates)| {
                (0u32..).zip(rates).map(move |(round, rate)| outcome(engine, round, rate))
            })
            .collect();
        let groups = group(&outcomes, &[Pairdb, Rocksdb, Fjall]);
        let ratio = groups[0].ratio().expect("all have results");
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 0.5, 2.5));
        assert_eq!(groups[0].cpu_ratio(), 40.0 * (1.0 / 20.0));
        assert!(group(&outcomes[..3], &[Pairdb])[0].ratio().is_none());
    }
}

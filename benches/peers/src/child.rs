//! One task in a process of its own, so that memory, CPU and disk accounts are one engine's alone.
//! Results go to standard output, a line of JSON each.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::data::{KEY_BYTES, Key, Values, below, key, missing_key, mix, sequential_key};
use crate::measure::{MemoryPeak, Timing, Usage, drive, histogram};
use crate::outcome::Outcome;
use crate::store::{self, Durability, Result, Store};
use crate::workload::{Base, Kind, Scale, Step, Task, WRITER_PER_S, Workload};
use crate::ycsb;

/// What the parent waits for before it kills.
pub const READY: &str = "ready";

/// Bytes of the values of [`Base::Small`].
const SMALL_BYTES: usize = 100;
/// Bytes of the values of [`Base::Records`].
const RECORD_BYTES: usize = 1_000;
/// Files that do not change for so long are at rest: longer than it takes an engine to look at the
/// clock.
const REST: Duration = Duration::from_secs(2);
/// Keys walked by a seek.
const NEXTS: usize = 100;

/// Does the task.
pub fn run(task: &Task) -> Result<()> {
    if let Some(procs) = &task.cgroup {
        std::fs::write(procs, std::process::id().to_string())?;
    }
    match task.step {
        Step::Load(base) => load(task, base),
        Step::Options => print_options(task),
        Step::WriteUntilKilled => write_until_killed(task),
        Step::Measure => {
            let workload = Workload::named(&task.workload).ok_or("no such workload")?;
            for mut outcome in measure(task, workload)? {
                outcome.round = task.round;
                outcome.compression = task.compression;
                outcome.threads = workload.threads;
                println!("{}", serde_json::to_string(&outcome)?);
            }
            Ok(())
        }
    }
}

fn open(task: &Task, durability: Durability) -> Result<Box<dyn Store>> {
    store::open(task.engine, &task.dir, durability, task.compression)
}

fn load(task: &Task, base: Base) -> Result<()> {
    let store = open(task, Durability::Os)?;
    let (keys, values) = match base {
        Base::Empty => return Err("an empty base needs no load".into()),
        Base::Small => (task.scale.keys, Values::new(SMALL_BYTES)),
        Base::Records => (task.scale.records, Values::new(RECORD_BYTES)),
        Base::States => (states(&task.scale), Values::new(SMALL_BYTES)),
    };
    for i in 0..keys {
        match base {
            Base::States => store.merge(&key(i), i + 1, values.of(i))?,
            _ => store.put(&key(i), values.of(i))?,
        }
    }
    store.settle()?;
    if store.pass_a_minute() {
        disk_bytes_at_rest(&task.dir, REST)?;
    }
    store.close()
}

/// Keys of [`Base::States`]: the workload joins two states into each on top of the first one.
fn states(scale: &Scale) -> u64 {
    (scale.keys / 2).max(1)
}

fn print_options(task: &Task) -> Result<()> {
    let store = open(task, Durability::Os)?;
    print!("{}", store.options()?);
    store.close()
}

fn write_until_killed(task: &Task) -> Result<()> {
    let workload = Workload::named(&task.workload).ok_or("no such workload")?;
    let store = open(task, Durability::Os)?;
    let values = Values::new(SMALL_BYTES);
    for i in 0..task.scale.count(workload) {
        store.put(&key(i), values.of(i))?;
    }
    println!("{READY}");
    std::io::stdout().flush()?;
    // Nothing comes: the end of the input is the end of the parent.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// What is common to the results of one task.
pub struct Bench<'a> {
    pub task: &'a Task,
    pub store: &'a dyn Store,
    pub values: Values,
}

fn measure(task: &Task, workload: &Workload) -> Result<Vec<Outcome>> {
    if matches!(workload.kind, Kind::OpenClean | Kind::OpenKilled) {
        return Ok(vec![measure_open(task)?]);
    }
    let store = open(task, workload.durability())?;
    let large = workload.base == Base::Records || workload.kind == Kind::Larger;
    let values = Values::new(if large { RECORD_BYTES } else { SMALL_BYTES });
    let bench = Bench { task, store: &*store, values };
    let count = task.scale.count(workload);
    let mut outcomes = match workload.kind {
        Kind::Merge => bench.merge(workload, count)?,
        Kind::Larger => bench.larger(workload, count)?,
        Kind::Ycsb(which) => vec![ycsb::run(&bench, workload, which, count)?],
        Kind::FillSeq
        | Kind::FillRandom
        | Kind::FillSync
        | Kind::Overwrite
        | Kind::DeleteRandom
        | Kind::HotKey => vec![bench.write(workload, count)?],
        _ => vec![bench.read(workload, count)?],
    };
    if let [.., last] = &mut outcomes[..] {
        bench.rest(last)?;
    }
    store.close()?;
    Ok(outcomes)
}

/// An operation is an open and the first get.
fn measure_open(task: &Task) -> Result<Outcome> {
    let values = Values::new(SMALL_BYTES);
    let before = Usage::now()?;
    let start = Instant::now();
    let store = open(task, Durability::Os)?;
    check(&*store, &key(0), values.of(0))?;
    let elapsed = start.elapsed();
    let usage = Usage::now()?.since(before);
    let mut latency_ns = histogram();
    latency_ns.saturating_record(elapsed.as_nanos() as u64);
    let timing = Timing { ops: 1, seconds: elapsed.as_secs_f64(), latency_ns, user_bytes: 0 };
    let mut outcome = Outcome::new(task.engine, &task.workload, &timing, usage);
    outcome.disk_bytes = disk_bytes(&task.dir)?;
    store.close()?;
    Ok(outcome)
}

/// Fails unless the key has this value (behind a time, after a merge).
fn check(store: &dyn Store, key: &Key, expected: &[u8]) -> Result<()> {
    let mut right = false;
    store.get(key, &mut |value| right = value.is_some_and(|value| value.ends_with(expected)))?;
    if right { Ok(()) } else { Err(format!("the value of {key:02x?} is lost or wrong").into()) }
}

/// Bytes that the files of a directory take.
fn disk_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => disk_bytes(&entry.path())?,
            false => metadata.blocks() * 512,
        };
    }
    Ok(bytes)
}

/// The same once it has not changed for so long.
fn disk_bytes_at_rest(dir: &Path, quiet: Duration) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(600);
    let mut bytes = disk_bytes(dir)?;
    let mut since = Instant::now();
    while since.elapsed() < quiet {
        if Instant::now() > deadline {
            return Err("the files did not come to rest in ten minutes".into());
        }
        std::thread::sleep(Duration::from_millis(10));
        // A file that goes while it is looked at is a change.
        let now = disk_bytes(dir).unwrap_or(0);
        if now != bytes {
            (bytes, since) = (now, Instant::now());
        }
    }
    Ok(bytes)
}

/// Independent random numbers for each operation of each thread and phase.
pub fn random(phase: u64, thread: u64, i: u64) -> u64 {
    mix(mix(phase << 48 | thread << 40) ^ i)
}

impl Bench<'_> {
    /// User bytes of one put.
    pub fn row_bytes(&self) -> u64 {
        (KEY_BYTES + self.values.bytes()) as u64
    }

    /// Puts the value of the i-th key.
    pub fn put(&self, i: u64) -> Result<u64> {
        self.store.put(&key(i), self.values.of(i))?;
        Ok(self.row_bytes())
    }

    /// Gets the i-th key and compares its value.
    pub fn get(&self, i: u64) -> Result<u64> {
        check(self.store, &key(i), self.values.of(i))?;
        Ok(0)
    }

    /// Measures `count` operations on each of `threads` threads. With `live_rows` the store is
    /// brought to rest after them and the amplifications are given.
    pub fn measure(
        &self,
        name: &str,
        (threads, count): (u64, u64),
        live_rows: Option<&dyn Fn() -> u64>,
        operation: impl Fn(u64, u64) -> Result<u64> + Sync,
    ) -> Result<Outcome> {
        let peak = MemoryPeak::start()?;
        let mut outcome = std::thread::scope(|scope| {
            let sampler = scope.spawn(|| peak.sample());
            let outcome = self.measure_sampled(name, (threads, count), live_rows, operation);
            peak.stop();
            sampler.thread().unpark();
            outcome
        })?;
        (outcome.peak_rss_bytes, outcome.peak_anon_bytes) = peak.read()?;
        Ok(outcome)
    }

    fn used(&self) -> Result<Usage> {
        let mut usage = Usage::now()?;
        usage.bytes_written += self.store.mapped_bytes();
        Ok(usage)
    }

    /// What the amplifications are after a minute of rest.
    fn rest(&self, outcome: &mut Outcome) -> Result<()> {
        let Some(space) = outcome.space_amplification else { return Ok(()) };
        let before = self.used()?;
        if !self.store.pass_a_minute() {
            return Ok(());
        }
        let disk_bytes = disk_bytes_at_rest(&self.task.dir, REST)?;
        let written = outcome.bytes_written + self.used()?.since(before).bytes_written;
        outcome.rested_space_amplification =
            Some(space * disk_bytes as f64 / outcome.disk_bytes as f64);
        outcome.rested_write_amplification =
            outcome.write_amplification.map(|_| written as f64 / outcome.user_bytes as f64);
        Ok(())
    }

    fn measure_sampled(
        &self,
        name: &str,
        (threads, count): (u64, u64),
        live_rows: Option<&dyn Fn() -> u64>,
        operation: impl Fn(u64, u64) -> Result<u64> + Sync,
    ) -> Result<Outcome> {
        let before = self.used()?;
        let timing = drive((threads, count), self.task.scale.pace, operation)?;
        let usage = self.used()?.since(before);
        let mut outcome = Outcome::new(self.task.engine, name, &timing, usage);
        let mut live_bytes = 0;
        if let Some(live_rows) = live_rows {
            let start = Instant::now();
            self.store.settle()?;
            outcome.settle_s = start.elapsed().as_secs_f64();
            let rested = self.used()?.since(before);
            outcome.settle_cpu_s = rested.cpu_s - usage.cpu_s;
            outcome.bytes_written = rested.bytes_written;
            outcome.bytes_dirtied = rested.bytes_dirtied;
            outcome.bytes_read = rested.bytes_read;
            live_bytes = live_rows() * self.row_bytes();
        }
        outcome.disk_bytes = match live_bytes {
            0 => disk_bytes(&self.task.dir)?,
            // Files that nobody needs any more go a little later.
            _ => disk_bytes_at_rest(&self.task.dir, Duration::from_millis(300))?,
        };
        if timing.user_bytes > 0 {
            outcome.write_amplification =
                Some(outcome.bytes_written as f64 / timing.user_bytes as f64);
        }
        if live_bytes > 0 {
            outcome.space_amplification = Some(outcome.disk_bytes as f64 / live_bytes as f64);
        }
        Ok(outcome)
    }

    fn write(&self, workload: &Workload, count: u64) -> Result<Outcome> {
        let &Workload { name, threads, .. } = workload;
        let Scale { keys, .. } = self.task.scale;
        let all = || keys;
        let shape = (threads, count);
        let existing = |thread, i| below(random(1, thread, i), keys);
        match workload.kind {
            Kind::FillSeq => self.measure(name, shape, Some(&all), |_, i| {
                self.store.put(&sequential_key(i), self.values.of(i))?;
                Ok(self.row_bytes())
            }),
            Kind::FillRandom => {
                let all = || threads * count;
                self.measure(name, shape, Some(&all), |thread, i| self.put(i * threads + thread))
            }
            Kind::FillSync => {
                self.measure(name, shape, None, |thread, i| self.put(i * threads + thread))
            }
            Kind::Overwrite => {
                self.measure(name, shape, Some(&all), |thread, i| self.put(existing(thread, i)))
            }
            Kind::DeleteRandom => {
                let none = || 0;
                self.measure(name, shape, Some(&none), |thread, i| {
                    self.store.delete(&key(existing(thread, i)))?;
                    Ok(0)
                })
            }
            Kind::HotKey => {
                self.put(0)?;
                self.measure(name, shape, None, |_, i| match i % 2 {
                    0 => self.put(0),
                    _ => self.get(0),
                })
            }
            _ => Err("not a workload of writes".into()),
        }
    }

    /// Gets random keys until caches hold what they will, unmeasured.
    fn warm(&self, threads: u64, keys: u64) -> Result<()> {
        let get = |thread, i| self.get(below(random(2, thread, i), keys));
        drive((threads, keys / threads), None, get)?;
        Ok(())
    }

    fn read(&self, workload: &Workload, count: u64) -> Result<Outcome> {
        let &Workload { name, threads, .. } = workload;
        let Scale { keys, .. } = self.task.scale;
        let shape = (threads, count);
        self.warm(threads, keys)?;
        match workload.kind {
            Kind::ReadRandom => self.measure(name, shape, None, |thread, i| {
                self.get(below(random(1, thread, i), keys))
            }),
            Kind::ReadMissing => self.measure(name, shape, None, |thread, i| {
                let missing = missing_key(below(random(1, thread, i), keys));
                let mut found = false;
                self.store.get(&missing, &mut |value| found = value.is_some())?;
                if found { Err("a key was found that nobody wrote".into()) } else { Ok(0) }
            }),
            Kind::SeekRandom => self.measure(name, shape, None, |thread, i| {
                let from = key(below(random(1, thread, i), keys));
                self.scan(&from, NEXTS)?;
                Ok(0)
            }),
            Kind::ReadWhileWriting => self.read_while_writing(workload, count),
            _ => Err("not a workload of reads".into()),
        }
    }

    /// Walks `count` keys and touches every value.
    pub fn scan(&self, from: &Key, count: usize) -> Result<()> {
        let mut sum = 0;
        let found = self.store.scan(from, count, &mut |key, value| {
            sum += usize::from(key[KEY_BYTES - 1]) + usize::from(value[0]) + value.len();
        })?;
        std::hint::black_box(sum);
        if found == 0 { Err("a scan from a key that exists found nothing".into()) } else { Ok(()) }
    }

    fn read_while_writing(&self, workload: &Workload, count: u64) -> Result<Outcome> {
        let Scale { keys, .. } = self.task.scale;
        let done = AtomicBool::new(false);
        let written = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Result<Duration> {
                let (start, mut longest) = (Instant::now(), Duration::ZERO);
                let mut i = 0;
                while !done.load(Ordering::Relaxed) {
                    let due = (start.elapsed().as_secs_f64() * WRITER_PER_S as f64) as u64;
                    while i < due {
                        let before = Instant::now();
                        self.put(below(random(3, 0, i), keys))?;
                        longest = longest.max(before.elapsed());
                        i += 1;
                    }
                    std::thread::sleep(Duration::from_micros(500));
                }
                written.store(i, Ordering::Relaxed);
                Ok(longest)
            });
            let shape = (workload.threads, count);
            let outcome = self.measure(workload.name, shape, None, |thread, i| {
                self.get(below(random(1, thread, i), keys))
            });
            done.store(true, Ordering::Relaxed);
            let longest = writer.join().expect("the writer panicked")?;
            let mut outcome = outcome?;
            outcome.note = format!(
                "beside {:.0} puts/s of {WRITER_PER_S} asked, longest put {:.1} ms",
                written.load(Ordering::Relaxed) as f64 / outcome.seconds,
                longest.as_secs_f64() * 1e3,
            );
            Ok(outcome)
        })
    }

    fn merge(&self, workload: &Workload, count: u64) -> Result<Vec<Outcome>> {
        let threads = workload.threads;
        let keys = states(&self.task.scale);
        let time = AtomicU64::new(keys + 1);
        let existing = |phase, thread, i| below(random(phase, thread, i), keys);
        let all = || keys;
        // Not brought to rest before the reads: what blind writes left for readers is the point.
        let merged = self.measure("merge-write-2", (threads, count), None, |thread, i| {
            let index = existing(1, thread, i);
            let time = time.fetch_add(1, Ordering::Relaxed);
            self.store.merge(&key(index), time, self.values.of(index))?;
            Ok(self.row_bytes())
        })?;
        let read = self.measure("merge-read-2", (threads, count), Some(&all), |thread, i| {
            self.get(existing(4, thread, i))
        })?;
        Ok(vec![merged, read])
    }

    fn larger(&self, workload: &Workload, count: u64) -> Result<Vec<Outcome>> {
        let threads = workload.threads;
        let keys = threads * count;
        let all = || keys;
        let filled = self.measure("larger-fill-2", (threads, count), Some(&all), |thread, i| {
            self.put(i * threads + thread)
        })?;
        let read = self.measure("larger-read-2", (threads, count / 20), None, |thread, i| {
            self.get(below(random(1, thread, i), keys))
        })?;
        Ok(vec![filled, read])
    }
}

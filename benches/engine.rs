//! The engine alone: `make bench`, or
//! `cargo bench --bench engine -- [keys] [--threads n] [--reads n] [--cache MiB] [workload ...]`.
//!
//! 16-byte keys, 100-byte values, `Newest` as the operator. Every workload prints one line of
//! JSON; benches/README.md says how to read it. CPU time is that of the workload's own threads,
//! without the engine's; it says more than the time that passed where others use the machine.

#[path = "common/keys.rs"]
mod keys;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use keys::{Random, key};
use pairdb::engine::newest::Newest;
use pairdb::engine::{Engine, Options, SyncMode};

const VALUE_BYTES: usize = 100;

/// A key that was never written.
fn missing_key(i: u64) -> [u8; 16] {
    let mut key = key(i);
    key[15] ^= 1;
    key[8] = 0xFF;
    key
}

/// CPU time of the calling thread so far, in nanoseconds.
fn cpu_ns() -> u64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    times.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0)
}

struct Outcome {
    operations: u64,
    seconds: f64,
    cpu_ns: u64,
    latency_ns: Histogram<u64>,
}

/// Runs `operation(thread, i)` for `count` values of i on each of `threads` threads.
fn run(threads: u64, count: u64, operation: impl Fn(u64, u64) + Sync) -> Outcome {
    let start = Instant::now();
    let workers: Vec<(Histogram<u64>, u64)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let operation = &operation;
                scope.spawn(move || {
                    let mut latency = Histogram::new_with_max(60_000_000_000, 3)
                        .expect("the bounds are constants");
                    let cpu_before_ns = cpu_ns();
                    for i in 0..count {
                        let before = Instant::now();
                        operation(thread, i);
                        latency.saturating_record(before.elapsed().as_nanos() as u64);
                    }
                    (latency, cpu_ns() - cpu_before_ns)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut latency_ns = Histogram::new_with_max(60_000_000_000, 3).expect("constants");
    for (histogram, _) in &workers {
        latency_ns.add(histogram).expect("same bounds");
    }
    let cpu_ns = workers.iter().map(|(_, cpu_ns)| cpu_ns).sum();
    Outcome { operations: threads * count, seconds, cpu_ns, latency_ns }
}

fn report(name: &str, threads: u64, outcome: &Outcome) {
    let us = |q: f64| outcome.latency_ns.value_at_quantile(q) as f64 / 1e3;
    println!(
        "{{\"workload\":\"{name}\",\"threads\":{threads},\"ops\":{},\
         \"ops_per_s\":{:.0},\"cpu_ns_per_op\":{:.0},\
         \"p50_us\":{:.2},\"p99_us\":{:.2},\"p999_us\":{:.2},\"max_ms\":{:.2}}}",
        outcome.operations,
        outcome.operations as f64 / outcome.seconds,
        outcome.cpu_ns as f64 / outcome.operations.max(1) as f64,
        us(0.5),
        us(0.99),
        us(0.999),
        outcome.latency_ns.max() as f64 / 1e6,
    );
}

fn open(dir: &Path, sync_mode: SyncMode, row_cache_bytes: Option<usize>) -> Engine {
    let mut options = Options { sync_mode, ..Options::default() };
    options.row_cache_bytes = row_cache_bytes.unwrap_or(options.row_cache_bytes);
    Engine::open(dir, options, Arc::new(Newest)).expect("a fresh directory opens")
}

fn put(engine: &Engine, key: &[u8], time: u64) {
    let row = Newest::value(time, &[b'v'; VALUE_BYTES]);
    let position = engine.apply(&[(key, &row)]).expect("the engine takes the write");
    engine.wait_durable(position).expect("the log can be written");
}

fn wait_until_idle(engine: &Engine) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while engine.stats().compaction_debt_bytes > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What the command line says.
struct Arguments {
    keys: u64,
    threads: Vec<u64>,
    /// Reads of all threads together.
    reads: u64,
    row_cache_bytes: Option<usize>,
    workloads: Vec<String>,
}

impl Arguments {
    fn parse() -> Self {
        let (mut keys, mut threads, mut reads, mut cache) = (None, None, None, None);
        let mut workloads = Vec::new();
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            let flag = match word.as_str() {
                "--threads" => &mut threads,
                "--reads" => &mut reads,
                "--cache" => &mut cache,
                _ => &mut keys,
            };
            let value = if word.starts_with("--") { words.next() } else { Some(word) };
            let value = value.expect("a flag has a value");
            match value.parse::<u64>() {
                Ok(number) => *flag = Some(number),
                Err(_) => workloads.push(value),
            }
        }
        let keys = keys.unwrap_or(1_000_000);
        Self {
            keys,
            threads: threads.map_or_else(|| vec![1, 2, 8], |threads| vec![threads]),
            reads: reads.unwrap_or(keys / 2),
            row_cache_bytes: cache.map(|mib| (mib as usize) << 20),
            workloads,
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.workloads.is_empty() || self.workloads.iter().any(|w| name.starts_with(w.as_str()))
    }
}

fn main() {
    let arguments = Arguments::parse();
    let keys = arguments.keys;
    let base = std::env::var_os("PAIRDB_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let fresh = || tempfile::tempdir_in(&base).expect("the benchmark's directory can be made");

    for &threads in &arguments.threads {
        if arguments.workloads.iter().any(|workload| workload == "fillsync") {
            break;
        }
        let dir = fresh();
        let engine = open(dir.path(), SyncMode::Os, arguments.row_cache_bytes);
        let fill = run(threads, keys / threads, |thread, i| {
            put(&engine, &key(i * threads + thread), 1);
        });
        report("fillrandom", threads, &fill);
        engine.flush().expect("flushes");
        wait_until_idle(&engine);
        read_workloads(&engine, threads, &arguments);
        print_shape(&engine);
    }
    for writers in [1u64, 8, 32] {
        if arguments.wants("fillsync") {
            let dir = fresh();
            let engine = open(dir.path(), SyncMode::Always, arguments.row_cache_bytes);
            let count = (keys / 20 / writers).clamp(500, 20_000);
            let fill = run(writers, count, |thread, i| put(&engine, &key(i * writers + thread), 1));
            report("fillsync", writers, &fill);
        }
    }
}

fn read_workloads(engine: &Engine, threads: u64, arguments: &Arguments) {
    let (keys, count) = (arguments.keys, arguments.reads / threads);
    let seed = |thread: u64, i: u64| Random(thread << 40 | i).next();
    let any_key = |thread, i| key(Random(seed(thread, i)).below(keys));
    if arguments.wants("readmissing") {
        let reads = run(threads, count, |thread, i| {
            let found = engine.get(&missing_key(Random(seed(thread, i)).below(keys)));
            assert!(found.expect("readable").is_none());
        });
        report("readmissing", threads, &reads);
    }
    let read = |key: &[u8]| {
        let found = engine.get_newest_with(key, |row| row.map(<[u8]>::to_vec));
        assert!(found.expect("readable").is_some());
    };
    if arguments.wants("readrandom") {
        let reads = run(threads, count, |thread, i| read(&any_key(thread, i)));
        report("readrandom", threads, &reads);
    }
    if arguments.wants("readwarm") {
        (0..keys).for_each(|i| read(&key(i)));
        let reads = run(threads, count, |thread, i| read(&any_key(thread, i)));
        report("readwarm", threads, &reads);
    }
    if arguments.wants("readhot") {
        let hot: BTreeMap<u64, [u8; 16]> = (0..1000).map(|i| (i, key(i))).collect();
        let reads = run(threads, count, |thread, i| {
            let found = engine.get(&hot[&Random(seed(thread, i)).below(1000)]);
            assert!(found.expect("readable").is_some());
        });
        report("readhot", threads, &reads);
    }
    if arguments.wants("seekrandom") {
        let seeks = run(threads, (count / 100).max(1), |thread, i| {
            let from = any_key(thread, i);
            let mut scan = engine.scan(&from, None).expect("readable");
            for _ in 0..100 {
                if scan.next().expect("readable").is_none() {
                    break;
                }
            }
        });
        report("seekrandom100", threads, &seeks);
    }
    if arguments.wants("readwriting") {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random(u64::MAX);
                while !done.load(Ordering::Relaxed) {
                    put(engine, &key(random.below(keys)), 2);
                }
            });
            let reads = run(threads, count, |thread, i| read(&any_key(thread, i)));
            done.store(true, Ordering::Relaxed);
            report("readwriting", threads, &reads);
        });
    }
}

fn print_shape(engine: &Engine) {
    let stats = engine.stats();
    let levels: Vec<String> = stats
        .levels
        .iter()
        .map(|level| format!("{}:{}MiB", level.tables, level.bytes >> 20))
        .collect();
    let written = stats.flushed_bytes + stats.compacted_bytes_written;
    println!(
        "{{\"levels\":\"{}\",\"write_amplification\":{:.2},\"stalls\":{},\"stall_ms\":{}}}",
        levels.join(" "),
        written as f64 / stats.flushed_bytes.max(1) as f64,
        stats.stalls,
        stats.stall_ms,
    );
}

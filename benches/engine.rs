//! The engine alone: `make bench`, or `cargo bench --bench engine -- [keys] [workload ...]`.
//!
//! 16-byte keys, 100-byte values, `Newest` as the operator. Every workload prints one line of
//! JSON; benches/README.md says how to read it.

#[path = "common/keys.rs"]
mod keys;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
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

struct Outcome {
    operations: u64,
    seconds: f64,
    latency_ns: Histogram<u64>,
}

/// Runs `operation(thread, i)` for `count` values of i on each of `threads` threads.
fn run(threads: u64, count: u64, operation: impl Fn(u64, u64) + Sync) -> Outcome {
    let start = Instant::now();
    let histograms: Vec<Histogram<u64>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let operation = &operation;
                scope.spawn(move || {
                    let mut latency = Histogram::new_with_max(60_000_000_000, 3)
                        .expect("the bounds are constants");
                    for i in 0..count {
                        let before = Instant::now();
                        operation(thread, i);
                        latency.saturating_record(before.elapsed().as_nanos() as u64);
                    }
                    latency
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut latency_ns = Histogram::new_with_max(60_000_000_000, 3).expect("constants");
    for histogram in &histograms {
        latency_ns.add(histogram).expect("same bounds");
    }
    Outcome { operations: threads * count, seconds, latency_ns }
}

fn report(name: &str, threads: u64, outcome: &Outcome) {
    let us = |q: f64| outcome.latency_ns.value_at_quantile(q) as f64 / 1e3;
    println!(
        "{{\"workload\":\"{name}\",\"threads\":{threads},\"ops\":{},\"ops_per_s\":{:.0},\
         \"p50_us\":{:.2},\"p99_us\":{:.2},\"p999_us\":{:.2},\"max_ms\":{:.2}}}",
        outcome.operations,
        outcome.operations as f64 / outcome.seconds,
        us(0.5),
        us(0.99),
        us(0.999),
        outcome.latency_ns.max() as f64 / 1e6,
    );
}

fn open(dir: &Path, sync_mode: SyncMode) -> Engine {
    let options = Options { sync_mode, ..Options::default() };
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

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let keys: u64 = arguments.first().and_then(|first| first.parse().ok()).unwrap_or(1_000_000);
    let chosen: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|c| name.starts_with(c));
    let base = std::env::var_os("PAIRDB_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let fresh = || tempfile::tempdir_in(&base).expect("the benchmark's directory can be made");

    for threads in [1u64, 2, 8] {
        if !wanted("fillrandom") && !wanted("read") && !wanted("seek") {
            break;
        }
        let dir = fresh();
        let engine = open(dir.path(), SyncMode::Os);
        let fill = run(threads, keys / threads, |thread, i| {
            put(&engine, &key(i * threads + thread), 1);
        });
        report("fillrandom", threads, &fill);
        wait_until_idle(&engine);
        read_workloads(&engine, keys, threads, &wanted);
        print_shape(&engine);
    }
    for writers in [1u64, 8, 32] {
        if wanted("fillsync") {
            let dir = fresh();
            let engine = open(dir.path(), SyncMode::Always);
            let count = (keys / 20 / writers).clamp(500, 20_000);
            let fill = run(writers, count, |thread, i| put(&engine, &key(i * writers + thread), 1));
            report("fillsync", writers, &fill);
        }
    }
}

fn read_workloads(engine: &Engine, keys: u64, threads: u64, wanted: &dyn Fn(&str) -> bool) {
    let count = keys / threads / 2;
    let seed = |thread: u64, i: u64| Random(thread << 40 | i).next();
    if wanted("readrandom") {
        let reads = run(threads, count, |thread, i| {
            let key = key(Random(seed(thread, i)).below(keys));
            let found = engine.get_newest_with(&key, |row| row.map(<[u8]>::to_vec));
            assert!(found.expect("readable").is_some());
        });
        report("readrandom", threads, &reads);
    }
    if wanted("readmissing") {
        let reads = run(threads, count, |thread, i| {
            let found = engine.get(&missing_key(Random(seed(thread, i)).below(keys)));
            assert!(found.expect("readable").is_none());
        });
        report("readmissing", threads, &reads);
    }
    if wanted("readhot") {
        let hot: BTreeMap<u64, [u8; 16]> = (0..1000).map(|i| (i, key(i))).collect();
        let reads = run(threads, count, |thread, i| {
            let found = engine.get(&hot[&Random(seed(thread, i)).below(1000)]);
            assert!(found.expect("readable").is_some());
        });
        report("readhot", threads, &reads);
    }
    if wanted("seekrandom") {
        let seeks = run(threads, (count / 100).max(1), |thread, i| {
            let from = key(Random(seed(thread, i)).below(keys));
            let mut scan = engine.scan(&from, None).expect("readable");
            for _ in 0..100 {
                if scan.next().expect("readable").is_none() {
                    break;
                }
            }
        });
        report("seekrandom100", threads, &seeks);
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

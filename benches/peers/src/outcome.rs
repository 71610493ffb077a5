//! One result: a line of JSON in the raw file, and what the tables are made of.

use serde::{Deserialize, Serialize};

use crate::measure::{Timing, Usage};
use crate::store::{Compression, EngineName};

/// The result of one workload on one engine in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Round, from 0.
    pub round: u32,
    /// Workload; some give several results, each with a name of its own.
    pub workload: String,
    /// Compression of all tables.
    pub compression: Compression,
    /// Engine.
    pub engine: EngineName,
    /// Threads that call the engine.
    pub threads: u64,
    /// Operations measured.
    pub ops: u64,
    /// Time they took.
    pub seconds: f64,
    /// Operations a second.
    pub ops_per_s: f64,
    /// Median latency, in microseconds.
    pub p50_us: f64,
    /// Latency of 99 in 100, in microseconds.
    pub p99_us: f64,
    /// Latency of 999 in 1,000, in microseconds.
    pub p999_us: f64,
    /// The longest that one call took: the longest stall, in milliseconds.
    pub max_ms: f64,
    /// CPU time of all threads while the operations ran.
    pub cpu_s: f64,
    /// Time until flush and compaction had come to rest after them, 0 for reads.
    pub settle_s: f64,
    /// CPU time of that.
    pub settle_cpu_s: f64,
    /// Bytes handed to write(2) and its like, rest included.
    pub bytes_written: u64,
    /// Bytes of the page cache that became dirty, rest included.
    pub bytes_dirtied: u64,
    /// Bytes fetched from the disk.
    pub bytes_read: u64,
    /// Key and value bytes that the operations wrote.
    pub user_bytes: u64,
    /// `bytes_written / user_bytes`; none for reads.
    pub write_amplification: Option<f64>,
    /// Bytes that the files take after the rest.
    pub disk_bytes: u64,
    /// `disk_bytes` by the bytes of live keys and values; none where that is not known.
    pub space_amplification: Option<f64>,
    /// The same after a minute of rest; none for an engine that does nothing in it.
    pub rested_write_amplification: Option<f64>,
    /// The same after a minute of rest.
    pub rested_space_amplification: Option<f64>,
    /// Peak resident memory, mapped files included.
    pub peak_rss_bytes: u64,
    /// Peak anonymous memory.
    pub peak_anon_bytes: u64,
    /// What else there is to say.
    pub note: String,
}

impl Outcome {
    /// An outcome with what `timing` and `usage` say; the rest is zero, or none.
    pub fn new(engine: EngineName, workload: &str, timing: &Timing, usage: Usage) -> Self {
        let us = |quantile: f64| timing.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            round: 0,
            workload: workload.to_owned(),
            compression: Compression::None,
            engine,
            threads: 1,
            ops: timing.ops,
            seconds: timing.seconds,
            ops_per_s: timing.ops as f64 / timing.seconds,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_ms: timing.latency_ns.max() as f64 / 1e6,
            cpu_s: usage.cpu_s,
            settle_s: 0.0,
            settle_cpu_s: 0.0,
            bytes_written: usage.bytes_written,
            bytes_dirtied: usage.bytes_dirtied,
            bytes_read: usage.bytes_read,
            user_bytes: timing.user_bytes,
            write_amplification: None,
            disk_bytes: 0,
            space_amplification: None,
            rested_write_amplification: None,
            rested_space_amplification: None,
            peak_rss_bytes: 0,
            peak_anon_bytes: 0,
            note: String::new(),
        }
    }

    /// CPU time of an operation, rest included, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        (self.cpu_s + self.settle_cpu_s) * 1e6 / self.ops as f64
    }

    /// Workload and table: what is compared across engines.
    pub fn group(&self) -> String {
        match self.compression {
            Compression::None => self.workload.clone(),
            Compression::Lz4 => format!("lz4/{}", self.workload),
        }
    }
}

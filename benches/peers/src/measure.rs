//! What a workload costs: latencies by the harness, everything else by the kernel's own accounts
//! of the child process, which runs nothing but one engine.
//!
//! Bytes written are `wchar` of /proc/self/io: what was handed to write(2) and its like, by which
//! all of these engines write. `write_bytes` is kept beside it; it counts whole folios that were
//! dirtied, up to a MiB for one byte, so it says little of small synced writes. Bytes read are
//! `read_bytes`, from the disk and not from the page cache. Memory is `VmHWM` (mapped table files
//! count while they are mapped in, as PairDB's and RocksDB-mmap's are) and, sampled, `RssAnon`
//! (memory that
//! the process owns).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::store::Result;

/// Longest latency that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// A paced thread that is early waits at least so long: waking costs more than an operation.
const PACE_WAIT: Duration = Duration::from_micros(500);

/// How often anonymous memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);

/// The accounts of this process at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time of all threads, in seconds.
    pub cpu_s: f64,
    /// Bytes handed to the kernel.
    pub bytes_written: u64,
    /// Bytes of the page cache that became dirty.
    pub bytes_dirtied: u64,
    /// Bytes fetched from the disk.
    pub bytes_read: u64,
}

impl Usage {
    /// The accounts now.
    pub fn now() -> Result<Self> {
        let io = std::fs::read_to_string("/proc/self/io")?;
        Ok(Self {
            cpu_s: cpu_s(),
            bytes_written: field(&io, "wchar:")?,
            bytes_dirtied: field(&io, "write_bytes:")?,
            bytes_read: field(&io, "read_bytes:")?,
        })
    }

    /// What was used since `start`.
    pub fn since(self, start: Self) -> Self {
        Self {
            cpu_s: self.cpu_s - start.cpu_s,
            bytes_written: self.bytes_written - start.bytes_written,
            bytes_dirtied: self.bytes_dirtied - start.bytes_dirtied,
            bytes_read: self.bytes_read - start.bytes_read,
        }
    }
}

fn cpu_s() -> f64 {
    // SAFETY: an all-zero rusage is a valid one, and getrusage writes only into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// The number after `name` in a file of /proc.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.ok_or_else(|| format!("/proc has no {name}"))?.parse()?)
}

/// Peak memory since [`MemoryPeak::start`].
pub struct MemoryPeak {
    anonymous: AtomicU64,
    done: AtomicBool,
}

impl MemoryPeak {
    /// Forgets earlier peaks.
    pub fn start() -> Result<Self> {
        std::fs::write("/proc/self/clear_refs", "5")?;
        Ok(Self { anonymous: AtomicU64::new(0), done: AtomicBool::new(false) })
    }

    /// Looks at anonymous memory until [`MemoryPeak::stop`]; runs on a thread of its own.
    pub fn sample(&self) {
        while !self.done.load(Ordering::Relaxed) {
            if let Ok(status) = std::fs::read_to_string("/proc/self/status")
                && let Ok(kib) = field(&status, "RssAnon:")
            {
                self.anonymous.fetch_max(kib << 10, Ordering::Relaxed);
            }
            std::thread::park_timeout(SAMPLE_EVERY);
        }
    }

    /// Ends [`MemoryPeak::sample`] after its next look.
    pub fn stop(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Peaks in bytes: resident, and anonymous.
    pub fn read(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        Ok((field(&status, "VmHWM:")? << 10, self.anonymous.load(Ordering::Relaxed)))
    }
}

/// How long a workload took.
pub struct Timing {
    /// Operations done.
    pub ops: u64,
    /// From the first operation's start to the last one's end.
    pub seconds: f64,
    /// Of each operation, in nanoseconds, from the end of the thread's operation before it, or of
    /// the wait after that one.
    pub latency_ns: Histogram<u64>,
    /// Key and value bytes that the operations wrote.
    pub user_bytes: u64,
}

/// A histogram of latencies, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_NS_MAX, 3).expect("the bounds are constants")
}

/// Runs `operation(thread, i)` for `count` values of i on each of `threads` threads, with a pace no
/// more of them a second than that, all threads together. Operations answer how many user bytes
/// they wrote.
pub fn drive(
    (threads, count): (u64, u64),
    pace: Option<u64>,
    operation: impl Fn(u64, u64) -> Result<u64> + Sync,
) -> Result<Timing> {
    let start = Instant::now();
    let worker = |thread: u64| -> Result<(Histogram<u64>, u64)> {
        let mut latency_ns = histogram();
        let mut user_bytes = 0;
        let mut before = Instant::now();
        for i in 0..count {
            if let Some(pace) = pace {
                let due = Duration::from_secs_f64((i * threads) as f64 / pace as f64);
                let early = due.saturating_sub(before - start);
                if !early.is_zero() {
                    std::thread::sleep(early.max(PACE_WAIT));
                    before = Instant::now();
                }
            }
            user_bytes += operation(thread, i)?;
            let now = Instant::now();
            latency_ns.saturating_record((now - before).as_nanos() as u64);
            before = now;
        }
        Ok((latency_ns, user_bytes))
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || worker(thread))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut timing =
        Timing { ops: threads * count, seconds, latency_ns: histogram(), user_bytes: 0 };
    for result in results {
        let (latency_ns, user_bytes) = result?;
        timing.latency_ns.add(latency_ns)?;
        timing.user_bytes += user_bytes;
    }
    Ok(timing)
}

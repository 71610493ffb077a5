//! When the host of a virtual machine kept a core to itself.
//!
//! On a machine that others share, a tail of latencies says more about them than about what is
//! measured. So a process for each core, pinned to it and of real-time priority, sleeps a
//! millisecond at a time: nothing in this machine but the kernel goes before it, and when it wakes
//! up late the machine itself was kept waiting. Where that priority is not to be had (it takes
//! `chrt` and `taskset`, and the right to use them) no moment counts as quiet.

use std::io::{BufRead, BufReader, Write, stdout};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The argument that makes this program such a process.
pub const ARGUMENT: &str = "--watch-core";

/// How long is slept at a time.
const NAP: Duration = Duration::from_millis(1);
/// Who wakes up later than this was kept waiting.
const LATE: Duration = Duration::from_millis(2);
/// What a watched core says when it begins.
const WATCHED: &str = "watched";

/// The cores of this machine, watched.
pub struct Host {
    cores: usize,
    watchers: Vec<Child>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Cores that are watched.
    watched: usize,
    /// Moments in which one was kept.
    kept: Vec<(Instant, Instant)>,
}

impl Host {
    /// Watches each core until it is dropped.
    pub fn watch() -> Self {
        let program = std::env::current_exe().expect("a path of this program");
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watch = |core: usize| {
            let mut command = Command::new("chrt");
            command.args(["--fifo", "50", "taskset", "--cpu-list", &core.to_string()]);
            command.arg(&program).arg(ARGUMENT).stdout(Stdio::piped());
            let mut watcher = command.spawn().ok()?;
            let lines = BufReader::new(watcher.stdout.take()?).lines();
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    let now = Instant::now();
                    let mut seen = seen.lock();
                    match line.parse().map(Duration::from_micros) {
                        Ok(late) => seen.kept.push((now.checked_sub(late).unwrap_or(now), now)),
                        Err(_) => seen.watched += usize::from(line == WATCHED),
                    }
                }
            });
            Some(watcher)
        };
        let watchers = (0..cores).filter_map(watch).collect();
        Self { cores, watchers, seen }
    }

    /// Whether every core is watched, and none was kept in this time.
    pub fn was_quiet(&self, from: Instant, to: Instant) -> bool {
        let seen = self.seen.lock();
        let is_kept = |(began, ended): &(Instant, Instant)| *began < to && *ended > from;
        seen.watched == self.cores && !seen.kept.iter().any(is_kept)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for watcher in &mut self.watchers {
            // It may have ended by itself.
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
    }
}

/// Watches the core that this process is pinned to, until nobody reads what it says.
pub fn watch_core() {
    let mut said = writeln!(stdout(), "{WATCHED}");
    while said.is_ok() {
        let began = Instant::now();
        std::thread::sleep(NAP);
        let late = began.elapsed().saturating_sub(NAP);
        if late > LATE {
            said = writeln!(stdout(), "{}", late.as_micros());
        }
    }
}

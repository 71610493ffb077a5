//! The engine's threads: flush, log, compaction.
//!
//! Each kind waits for its bell until somebody has work for it or it is to stop. With
//! `compaction_threads = 0` no thread is started and the caller does the same work, one piece a
//! call, with [`Engine::step`]; so a simulation decides what happens when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::error::{Error, Result};
use super::options::SyncMode;
use super::{Engine, Shared, priority};

/// How often the threads look for work that only time brings: disk space, old tables, a flush
/// that failed for want of space, a compaction that there was no room for.
const TICK: Duration = Duration::from_millis(500);

/// Wakes threads of one kind. Rings are remembered, not counted beyond `threads`.
#[derive(Default)]
struct Bell {
    /// Threads that should wake up.
    rung: Mutex<usize>,
    wake: Condvar,
}

impl Bell {
    fn ring(&self, threads: usize) {
        let mut rung = self.rung.lock();
        if *rung < threads {
            *rung = threads;
            self.wake.notify_all();
        }
    }

    /// Waits for a ring, at most for `tick`; whether there was one. `None`: stop.
    fn wait(&self, tick: Duration, stop: &AtomicBool) -> Option<bool> {
        let mut rung = self.rung.lock();
        // `stop` is set before the bell is rung for the last time.
        if *rung == 0 && !stop.load(Ordering::SeqCst) {
            self.wake.wait_for(&mut rung, tick);
        }
        if stop.load(Ordering::SeqCst) {
            return None;
        }
        let was_rung = *rung > 0;
        *rung = rung.saturating_sub(1);
        Some(was_rung)
    }
}

/// See the module page.
#[derive(Default)]
pub struct Background {
    flush: Bell,
    log: Bell,
    compaction: Bell,
    stop: AtomicBool,
    /// Counts installs; writers that wait for room wait for it to change.
    installs: Mutex<u64>,
    installed: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Background {
    /// There is a sealed memtable.
    pub fn wake_flush(&self) {
        self.flush.ring(1);
    }

    /// Somebody waits for the log to be durable, or it wants room.
    pub fn wake_log(&self) {
        self.log.ring(1);
    }

    /// Tables came.
    pub fn wake_compaction(&self, threads: usize) {
        self.compaction.ring(threads);
    }

    /// A flush, compaction or ingest was installed.
    pub fn progress(&self) {
        *self.installs.lock() += 1;
        self.installed.notify_all();
    }

    /// The number of installs so far.
    pub fn installs(&self) -> u64 {
        *self.installs.lock()
    }

    /// Waits until there were more than `seen` installs, at most `limit`. `false`: time is up.
    pub fn wait_for_install(&self, seen: u64, limit: Duration) -> bool {
        let mut installs = self.installs.lock();
        if *installs == seen {
            self.installed.wait_for(&mut installs, limit);
        }
        *installs > seen
    }

    /// Set when the threads are to stop.
    pub fn stop_flag(&self) -> &AtomicBool {
        &self.stop
    }

    /// Waits for about `time`; less if there is an install or the threads are to stop. The pacer
    /// counts by its own clock, so a wait cut short makes the next one longer.
    pub fn pause(&self, time: Duration) {
        if !self.stop.load(Ordering::SeqCst) {
            self.wait_for_install(self.installs(), time);
        }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// The system has no thread to give. Those started by then run until [`Background::stop`].
    pub fn start(&self, shared: &Arc<Shared>) -> Result<()> {
        let mut threads = self.threads.lock();
        let mut spawn = |name: String, run: fn(&Shared)| {
            let thread = Running(shared.clone());
            let started = thread::Builder::new().name(name).spawn(move || run(&thread.0));
            threads.push(started.map_err(Error::io("start a thread for", &shared.dir))?);
            Ok::<(), Error>(())
        };
        spawn("pairdb-flush".into(), Shared::run_flushes)?;
        spawn("pairdb-log".into(), Shared::run_log)?;
        for n in 0..shared.options.compaction_threads {
            spawn(format!("pairdb-compact-{n}"), Shared::run_compactions)?;
        }
        Ok(())
    }

    /// Tells the threads to stop and waits until they have. Safe to call twice.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        for bell in [&self.flush, &self.log, &self.compaction] {
            bell.ring(usize::MAX);
        }
        self.progress();
        for thread in self.threads.lock().drain(..) {
            // A panic in it has been reported by the hook; the engine is going away anyway.
            let _ = thread.join();
        }
    }
}

/// What a thread runs on. One that panics ends: nobody would do its work from then on, so the
/// engine does no more either, and says so.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = thread::current();
            self.0.poison(&format!("{} panicked", thread.name().unwrap_or("a thread")));
        }
    }
}

impl Engine {
    /// Does one piece of background work: a flush, else a compaction. `false`: there was none, or
    /// no room for what there was.
    ///
    /// For engines opened with `compaction_threads = 0`.
    ///
    /// # Errors
    /// The work failed. A damaged table is left out of later compactions; for anything else the
    /// caller decides whether to go on.
    pub fn step(&self) -> Result<bool> {
        self.shared.tick();
        self.shared.log.make_room();
        let flushed = match self.shared.flush_first() {
            // It waits for room, which a compaction may bring.
            Err(Error::DiskFull { .. }) => false,
            flushed => flushed?,
        };
        Ok(flushed || self.shared.compact_once()?)
    }
}

impl Shared {
    fn run_flushes(&self) {
        priority::lower(priority::FLUSH);
        // After a tick without a ring too: a flush that failed for want of space is tried again.
        while self.background.flush.wait(TICK, &self.background.stop).is_some() {
            self.run("flush", || {
                let flushed = self.flush_first()?;
                if flushed {
                    self.background.wake_compaction(self.options.compaction_threads);
                }
                Ok(flushed)
            });
        }
    }

    fn run_compactions(&self) {
        priority::lower(priority::BACKGROUND);
        while self.background.compaction.wait(TICK, &self.background.stop).is_some() {
            self.run("compaction", || self.compact_once());
        }
    }

    /// Works as long as there is work and nobody says stop.
    fn run(&self, name: &str, work: impl Fn() -> Result<bool>) {
        while !self.background.stop.load(Ordering::SeqCst) {
            match work() {
                Ok(true) => {}
                // A poisoned engine has told why when it was: nothing is built that could not be
                // installed.
                Ok(false) | Err(Error::Closed | Error::Poisoned { .. }) => return,
                Err(error) => return self.background_failed(name, &error),
            }
        }
    }

    fn run_log(&self) {
        let interval = Duration::from_millis(self.options.sync_interval_ms);
        let timed = self.options.sync_mode == SyncMode::Interval;
        let syncs = self.options.sync_mode != SyncMode::Os;
        let tick = if timed { interval.min(TICK) } else { TICK };
        let mut ticked_ms = self.clock.now_ms();
        while let Some(rung) = self.background.log.wait(tick, &self.background.stop) {
            self.log.make_room();
            if syncs && (rung || timed) {
                // The waiters get the error, and every later write does.
                let _ = self.log.sync(self.log.appended_upto());
            }
            // Under a steady load the bell has always been rung, and time passes all the same.
            let now_ms = self.clock.now_ms();
            let is_due = now_ms.saturating_sub(ticked_ms) >= TICK.as_millis() as u64;
            if rung && !timed && !is_due {
                continue;
            }
            ticked_ms = now_ms;
            self.tick();
        }
    }

    /// What only time brings.
    pub(super) fn tick(&self) {
        let now_ms = self.clock.now_ms().saturating_add(self.ages_from_ms);
        self.now_ms.store(now_ms, Ordering::Relaxed);
        self.look_at_disk();
    }

    /// A flush or compaction failed. For want of space, descriptors or memory it is tried again at
    /// the next tick, and a damaged table is left alone from now on; any other failure poisons the
    /// engine, since trying again could repeat the damage for ever.
    fn background_failed(&self, work: &str, error: &Error) {
        self.counters.background_errors.add(1);
        if !error.is_shortage() && !matches!(error, Error::Corruption(_)) {
            self.poison(&format!("{work} failed: {error}"));
        }
    }
}

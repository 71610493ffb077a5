//! The engine's threads: flush, compaction, log.
//!
//! They wait on one condition variable until somebody has work for them or they are to stop. With
//! `compaction_threads = 0` none is started and the caller does the same work, one piece a call,
//! with [`Engine::step`]; so a simulation decides what happens when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::error::{Error, Result};
use super::options::SyncMode;
use super::{Engine, Shared};

/// How often the threads look for work that only time brings: disk space, old tables, a flush
/// that failed for want of space.
const TICK: Duration = Duration::from_millis(500);

/// What is to be done. Cleared by the thread that takes it on.
#[derive(Default)]
struct Work {
    flush: bool,
    /// Compaction threads that should look for a job.
    compact: usize,
    log: bool,
}

/// See the module page.
#[derive(Default)]
pub struct Background {
    work: Mutex<Work>,
    wake: Condvar,
    /// Set with `work` locked, so that nobody who looked at it there misses the wake-up; also read
    /// without the lock by running jobs.
    stop: AtomicBool,
    /// Counts installs; writers that wait for room wait for it to change.
    installs: Mutex<u64>,
    installed: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Background {
    pub fn wake_flush(&self) {
        self.work.lock().flush = true;
        self.wake.notify_all();
    }

    pub fn wake_compaction(&self, threads: usize) {
        self.work.lock().compact = threads;
        self.wake.notify_all();
    }

    pub fn wake_log(&self) {
        self.work.lock().log = true;
        self.wake.notify_all();
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
        if *installs > seen {
            return true;
        }
        !self.installed.wait_for(&mut installs, limit).timed_out() || *installs > seen
    }

    /// Set when the threads are to stop.
    pub fn stop_flag(&self) -> &AtomicBool {
        &self.stop
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Waits for about `time`; less if there is other work or the threads are to stop. The pacer
    /// counts by its own clock, so a wait cut short makes the next one longer.
    pub fn pause(&self, time: Duration) {
        let mut work = self.work.lock();
        if !self.stopping() {
            self.wake.wait_for(&mut work, time);
        }
    }

    /// Waits until `take` finds something to do or `tick` is over; `None` when the threads are to
    /// stop, else whether there was something.
    fn wait_for_work(&self, tick: Duration, take: impl Fn(&mut Work) -> bool) -> Option<bool> {
        let mut work = self.work.lock();
        loop {
            if self.stopping() {
                return None;
            }
            if take(&mut work) {
                return Some(true);
            }
            if self.wake.wait_for(&mut work, tick).timed_out() {
                return (!self.stopping()).then(|| take(&mut work));
            }
        }
    }

    /// Starts the threads.
    pub fn start(&self, shared: &Arc<Shared>) -> Result<()> {
        let mut threads = self.threads.lock();
        let dir = shared.dir.clone();
        let mut spawn = |name: String, run: fn(&Shared)| {
            let shared = shared.clone();
            let started = thread::Builder::new().name(name).spawn(move || run(&shared));
            threads.push(started.map_err(Error::io("start a thread for", &dir))?);
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
        let work = self.work.lock();
        self.stop.store(true, Ordering::SeqCst);
        drop(work);
        self.wake.notify_all();
        self.progress();
        for thread in self.threads.lock().drain(..) {
            // A panic in it has been reported by the hook; the engine is going away anyway.
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Does one piece of background work: a flush, else a compaction. `false`: there was none.
    ///
    /// For engines opened with `compaction_threads = 0`.
    ///
    /// # Errors
    /// The work failed; the engine is poisoned if it may not be tried again.
    pub fn step(&self) -> Result<bool> {
        self.shared.tick();
        Ok(self.shared.flush_first()? || self.shared.compact_once()?)
    }
}

impl Shared {
    fn run_flushes(&self) {
        while let Some(_work) =
            self.background.wait_for_work(TICK, |work| std::mem::take(&mut work.flush))
        {
            // After a tick without a wake-up too: a flush that failed for want of space is tried
            // again then.
            loop {
                match self.flush_first() {
                    Ok(true) => self.background.wake_compaction(self.options.compaction_threads),
                    Ok(false) => break,
                    Err(error) => {
                        self.background_failed("flush", &error);
                        break;
                    }
                }
            }
        }
    }

    fn run_compactions(&self) {
        let take = |work: &mut Work| {
            let taken = work.compact > 0;
            work.compact = work.compact.saturating_sub(1);
            taken
        };
        while let Some(_work) = self.background.wait_for_work(TICK, take) {
            loop {
                match self.compact_once() {
                    Ok(true) if !self.background.stopping() => {}
                    Ok(_) => break,
                    Err(error) => {
                        self.background_failed("compaction", &error);
                        break;
                    }
                }
            }
        }
    }

    fn run_log(&self) {
        let interval = Duration::from_millis(self.options.sync_interval_ms);
        let timed = self.options.sync_mode == SyncMode::Interval;
        let tick = if timed { interval.min(TICK) } else { TICK };
        while let Some(asked) =
            self.background.wait_for_work(tick, |work| std::mem::take(&mut work.log))
        {
            if asked || timed {
                // The waiters get the error, and every later write does.
                let end = self.log.appended_upto();
                let _ = self.log.sync(end);
            }
            if self.log.prepare_spare().is_err() {
                // Not fatal: the next rotation allocates the segment itself and reports.
                self.counters.background_errors.add(1);
            }
            self.tick();
        }
    }

    /// What only time brings.
    pub(super) fn tick(&self) {
        self.now_ms.store(self.clock.now_ms(), Ordering::Relaxed);
        self.look_at_disk();
    }

    /// A flush or compaction failed. For want of space it is tried again at the next tick; any
    /// other failure poisons the engine, since trying again could repeat the damage for ever.
    fn background_failed(&self, work: &str, error: &Error) {
        self.counters.background_errors.add(1);
        if !error.is_storage_full() {
            self.poison(&format!("{work} failed: {error}"));
        }
    }
}

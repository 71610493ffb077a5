//! Which compaction runs when: picks a job, runs it, installs what it made.
//!
//! Several threads may compact at once; a job's inputs are reserved from the pick to the install.
//! What is picked and what a job does is decided in [`super::compaction`].
//!
//! A job that meets a damaged block does not abort the store: the block is quarantined, its table
//! is left out of further jobs, and the other tables go on.

use std::sync::Arc;
use std::time::Duration;

use super::compaction::{Compaction, Job, JobContext, JobDone, Picker, PurgeView, Targets};
use super::error::{Error, Result};
use super::flush::CacheChange;
use super::super_version::SuperVersion;
use super::{Engine, Shared};

/// How long `compact_all` waits for a job of another thread before it looks again.
const JOB_WAIT: Duration = Duration::from_secs(1);

impl Engine {
    /// Flushes, then merges everything down to one level; forgets what may be forgotten. For an
    /// operator or a test: the engine compacts by itself.
    ///
    /// # Errors
    /// A table could not be read or written.
    pub fn compact_all(&self) -> Result<()> {
        self.shared.flush_all()?;
        let before = self.shared.versions.allocate_file_number();
        loop {
            let installs = self.shared.background.installs();
            if self.shared.closed() {
                return Err(Error::Closed);
            }
            if let Some(job) = self.shared.reserve(|picker| picker.pick_all(before)) {
                self.shared.run_compaction(&job)?;
            } else if self.shared.compacting.lock().is_empty() {
                return Ok(());
            } else {
                self.shared.background.wait_for_install(installs, JOB_WAIT);
            }
        }
    }
}

/// A job's inputs, reserved until this is dropped.
pub(super) struct Reserved<'a> {
    shared: &'a Shared,
    job: Arc<Compaction>,
    /// The view the job was picked in; keeps its tables.
    view: Arc<SuperVersion>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.shared.compacting.lock().retain(|job| !Arc::ptr_eq(job, &self.job));
    }
}

impl Shared {
    /// Runs the most urgent compaction. `false`: there is none.
    pub(super) fn compact_once(&self) -> Result<bool> {
        let Some(job) = self.reserve(|picker| picker.pick()) else { return Ok(false) };
        self.run_compaction(&job)?;
        Ok(true)
    }

    pub(super) fn reserve(
        &self,
        pick: impl Fn(&Picker<'_>) -> Option<Compaction>,
    ) -> Option<Reserved<'_>> {
        let mut running = self.compacting.lock();
        // Loaded under the lock: a job leaves `running` only after its result is in view.
        let view = self.super_version.load_full();
        let (state, unflushed) = (view.version.state(), view.oldest_unflushed_epoch());
        let picker = Picker::new(state, &running, &self.picker_options, unflushed, self.now_ms());
        #[cfg(test)]
        let picker = picker.without_named(&self.removed_rules.lock());
        let job = Arc::new(pick(&picker)?);
        running.push(job.clone());
        drop(running);
        Some(Reserved { shared: self, job, view })
    }

    fn run_compaction(&self, reserved: &Reserved<'_>) -> Result<()> {
        let Reserved { job, view, .. } = reserved;
        self.pacer.set_debt(self.compaction_debt(view));
        let context = JobContext {
            vfs: &*self.vfs,
            dir: &self.dir,
            versions: &self.versions,
            operator: &*self.operator,
            view: PurgeView {
                version: &view.version,
                oldest_unflushed_epoch: view.oldest_unflushed_epoch(),
            },
            table_options: self.options.table_options(job.output_level),
            table_bytes: self.options.table_bytes,
            now_ms: self.now_ms(),
            stop: self.background.stop_flag(),
            pace: &|bytes| self.pace(bytes),
        };
        let run = Job::new(job, context);
        #[cfg(test)]
        let run = run.without_named(&self.removed_rules.lock());
        let done = match run.run() {
            Ok(Some(done)) => done,
            // Told to stop: the engine is closing.
            Ok(None) => return Err(Error::Closed),
            Err(Error::Corruption(corruption)) => {
                self.quarantine_damaged(reserved)?;
                return Err(Error::Corruption(corruption));
            }
            Err(error) => return Err(error),
        };
        self.hook("compact:merged");
        let JobDone { edit, stats } = done;
        self.install(edit, CacheChange::None, |_| {})?;
        let counters = &self.counters;
        let runs = if job.trivial_move { &counters.trivial_moves } else { &counters.compactions };
        runs.add(1);
        counters.compacted_bytes_read.add(stats.input_bytes);
        counters.compacted_bytes_written.add(stats.output_bytes);
        counters.rows_purged.add(stats.purged);
        Ok(())
    }

    /// Finds and records the unreadable blocks of a job's inputs, so that it is not picked again.
    fn quarantine_damaged(&self, reserved: &Reserved<'_>) -> Result<()> {
        reserved.job.inputs.iter().try_for_each(|input| self.scrub_table(input.number))
    }

    /// Waits as long as the rate limit says, or until the threads are to stop.
    pub(super) fn pace(&self, bytes: u64) {
        let wait_us = self.pacer.take(bytes, self.clock.now_ms().saturating_mul(1000));
        if wait_us > 0 && self.options.compaction_threads > 0 {
            self.background.pause(Duration::from_micros(wait_us));
        }
    }

    /// Bytes that compaction is behind.
    pub(super) fn compaction_debt(&self, view: &SuperVersion) -> u64 {
        let state = view.version.state();
        Targets::new(state, &self.picker_options).debt_bytes(state, &self.picker_options)
    }
}

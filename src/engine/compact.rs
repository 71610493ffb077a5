//! Which compaction runs when: picks a job, runs it, installs what it made.
//!
//! Several threads may compact at once; a job's inputs are reserved from the pick to the install.
//! What is picked and what a job does is decided in [`super::compaction`].
//!
//! A job whose outputs could take more than the disk has left waits for those that take less: it
//! would take the space that log and flushes go on with, and come to nothing. Where nothing else
//! goes on it is tried all the same, for what it leaves out may be what fills the disk, and given
//! up before it takes that space; then not again for a while.
//!
//! A job that meets a damaged block does not stop the store: the block is quarantined, its table is
//! left out of further jobs and set aside at level 0, where it holds none of them up.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::compaction::{Compaction, Job, JobContext, JobDone, Picker, PurgeView, Targets};
use super::error::{Error, Result};
use super::flush::CacheChange;
use super::version::{Quarantined, TableMeta, TableRef, Version, VersionEdit};
use super::{Engine, Shared};

/// How long `compact_all` waits for a job of another thread before it looks again.
const JOB_WAIT: Duration = Duration::from_secs(1);
/// How long `compact_all` waits for those who read what was replaced, if it lacks room.
const READERS_WAIT: Duration = Duration::from_secs(5);
/// How long a job that had too little room is not tried again.
const LESS_ROOM_WAIT: Duration = Duration::from_secs(60);

impl Engine {
    /// Flushes, then merges everything down to one level; forgets what may be forgotten. For an
    /// operator or a test: the engine compacts by itself.
    ///
    /// # Errors
    /// A table could not be read or written. [`Error::DiskFull`] if there is no room for that; what
    /// there was room for is done.
    pub fn compact_all(&self) -> Result<()> {
        self.shared.flush_all()?;
        let before = self.shared.versions.allocate_file_number();
        // Since the last job: files are removed a little later than it ends.
        let mut is_freed = false;
        loop {
            let installs = self.shared.background.installs();
            if self.shared.closed() {
                return Err(Error::Closed);
            }
            while self.shared.set_aside()? {}
            let is_alone = Cell::new(false);
            let picked = self.shared.reserve_with_room(|picker| {
                is_alone.set(picker.is_alone());
                picker.pick_all(before)
            });
            match picked {
                Ok(Some(job)) => self.shared.run_compaction(&job)?,
                // It may have had what was missing.
                Ok(None) | Err(_) if !is_alone.get() => {
                    self.shared.background.wait_for_install(installs, JOB_WAIT);
                }
                Ok(None) => return Ok(()),
                Err(error) if is_freed => return Err(error),
                Err(_) => {
                    self.shared.versions.wait_until_freed(READERS_WAIT);
                    is_freed = true;
                    continue;
                }
            }
            is_freed = false;
        }
    }
}

/// A job's inputs, reserved until this is dropped.
pub(super) struct Reserved<'a> {
    shared: &'a Shared,
    job: Arc<Compaction>,
    /// The tree the job was picked in; keeps its tables. Not the whole view: memtables that were
    /// flushed meanwhile would stay in memory as long as the job takes.
    version: Arc<Version>,
    /// Of that moment.
    oldest_unflushed_epoch: u64,
}

impl Reserved<'_> {
    /// The inputs as they are now: while this lives nobody else changes them.
    pub(super) fn tables(&self) -> impl Iterator<Item = &TableRef> {
        let table = |input: &Arc<TableMeta>| self.version.table(input.number);
        let inputs = self.job.inputs.iter();
        inputs.map(move |it| table(it).expect("a job is picked among the tables of its version"))
    }

    /// The only input.
    pub(super) fn table(&self) -> &TableRef {
        self.tables().next().expect("a job has an input")
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.shared.compacting.lock().retain(|job| !Arc::ptr_eq(job, &self.job));
    }
}

impl Shared {
    /// Runs the most urgent compaction. `false`: there is none, or no room for one.
    pub(super) fn compact_once(&self) -> Result<bool> {
        self.check_unpoisoned()?;
        if self.set_aside()? {
            return Ok(true);
        }
        match self.reserve_with_room(|picker| picker.pick()) {
            Ok(Some(job)) => self.run_compaction(&job).map(|()| true),
            Ok(None) => Ok(false),
            Err(Error::DiskFull { .. }) => self.compact_in_less_room(),
            Err(error) => Err(error),
        }
    }

    /// Tries what may take more than there is room for. `false`: it did, or it is not time for it.
    fn compact_in_less_room(&self) -> Result<bool> {
        let now_ms = self.clock.now_ms();
        let is_early = now_ms < self.less_room_after_ms.load(Ordering::Relaxed);
        if is_early || !self.compacting.lock().is_empty() {
            return Ok(false);
        }
        let Some(job) = self.reserve(|picker| picker.pick()) else { return Ok(false) };
        match self.run_compaction(&job) {
            Err(error) if error.is_storage_full() => {
                let after_ms = now_ms.saturating_add(LESS_ROOM_WAIT.as_millis() as u64);
                self.less_room_after_ms.store(after_ms, Ordering::Relaxed);
                Ok(false)
            }
            done => done.map(|()| true),
        }
    }

    /// Takes a table with an unreadable block out of the way. `false`: none is in the way.
    ///
    /// Such a table cannot be merged, and nothing newer may pass a Full that could hide it. So it
    /// goes to level 0 with its Fulls read as Deltas, which hide nothing, wherever they are met;
    /// and what may hide them there was written after them and contains them.
    fn set_aside(&self) -> Result<bool> {
        if self.super_version.load().version.state().quarantined().is_empty() {
            return Ok(false);
        }
        let Some(reserved) = self.reserve(|picker| picker.pick_aside()) else { return Ok(false) };
        let meta = &reserved.table().meta;
        let level0 = reserved.version.state().level(0).iter();
        let taken: HashSet<u64> =
            level0.filter(|table| table.number != meta.number).map(|table| table.epoch).collect();
        let free = (0..=meta.epoch).rev().find(|epoch| !taken.contains(epoch));
        let epoch = free.unwrap_or_else(|| self.versions.allocate_epoch());
        let aside = TableMeta { level: 0, epoch, demote_full: true, ..TableMeta::clone(meta) };
        let edit = VersionEdit {
            removed: vec![(meta.level, meta.number)],
            added: vec![aside],
            ..VersionEdit::default()
        };
        self.install(edit, CacheChange::None, |_| {})?;
        Ok(true)
    }

    /// Reserves what `pick` chooses among the jobs that there is room for.
    ///
    /// # Errors
    /// [`Error::DiskFull`]: there is no room for what there is to do.
    fn reserve_with_room(
        &self,
        pick: impl Fn(&Picker<'_>) -> Option<Compaction>,
    ) -> Result<Option<Reserved<'_>>> {
        let (available, kept) = self.compaction_space();
        let lacked_room = Cell::new(None);
        let reserved = self.reserve_within(available - kept, |picker| {
            let picked = pick(picker);
            lacked_room.set(picker.lacked_room().filter(|_| picked.is_none()));
            picked
        });
        let Some(bytes) = lacked_room.get() else { return Ok(reserved) };
        self.counters.compactions_put_off.add(1);
        self.hook("compact:put_off");
        let reserve = bytes.saturating_add(kept);
        Err(Error::DiskFull { path: self.dir.clone(), available, reserve })
    }

    pub(super) fn reserve(
        &self,
        pick: impl Fn(&Picker<'_>) -> Option<Compaction>,
    ) -> Option<Reserved<'_>> {
        self.reserve_within(u64::MAX, pick)
    }

    /// Reserves tables that are written anew where they are. If there may be too little room, and
    /// no job runs that could give some back, they are reserved all the same, as a compaction is
    /// tried then: what it leaves out may be what fills the disk. `None`: a job has one of them, or
    /// the room.
    pub(super) fn reserve_in_place(
        &self,
        pick: impl Fn(&Picker<'_>) -> Option<Compaction>,
    ) -> Option<Reserved<'_>> {
        match self.reserve_with_room(&pick) {
            Ok(reserved) => reserved,
            Err(_) if self.compacting.lock().is_empty() => self.reserve(pick),
            Err(_) => None,
        }
    }

    /// Reserves what `pick` chooses where compactions may take `room` bytes of the disk.
    fn reserve_within(
        &self,
        room: u64,
        pick: impl Fn(&Picker<'_>) -> Option<Compaction>,
    ) -> Option<Reserved<'_>> {
        let mut running = self.compacting.lock();
        // Loaded under the lock: a job leaves `running` only after its result is in view.
        let (oldest_unflushed_epoch, version) = {
            let view = self.super_version.load();
            (view.oldest_unflushed_epoch(), Arc::clone(&view.version))
        };
        let (options, now_ms) = (&self.picker_options, self.now_ms());
        let state = version.state();
        let picker = Picker::new(state, &running, options, oldest_unflushed_epoch, now_ms);
        let picker = picker.short_of_space(self.is_short_of_space()).with_room(room);
        #[cfg(test)]
        let picker = picker.without_named(&self.removed_rules.lock());
        let job = Arc::new(pick(&picker)?);
        running.push(job.clone());
        drop(running);
        Some(Reserved { shared: self, job, version, oldest_unflushed_epoch })
    }

    fn run_compaction(&self, reserved: &Reserved<'_>) -> Result<()> {
        let Reserved { job, version, oldest_unflushed_epoch, .. } = reserved;
        let bad_row = RefCell::new(None);
        let (_, kept) = self.compaction_space();
        let context = JobContext {
            vfs: &*self.vfs,
            dir: &self.dir,
            versions: &self.versions,
            operator: &*self.operator,
            view: PurgeView { version, oldest_unflushed_epoch: *oldest_unflushed_epoch },
            table_options: self.options.table_options(job.output_level),
            // An epoch of level 0 has one table.
            table_bytes: if job.output_level == 0 { u64::MAX } else { self.options.table_bytes },
            now_ms: job.created_ms(self.now_ms()),
            stop: self.background.stop_flag(),
            pace: &|bytes| {
                self.pace(bytes);
                self.check_room(kept)
            },
            on_bad_row: &|number, key| drop(bad_row.replace(Some((number, Box::from(key))))),
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
                if let Some((number, key)) = bad_row.take() {
                    self.quarantine_row(reserved, number, key)?;
                }
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

    /// Records a row that cannot be decoded though its block is sound. Its table is left alone like
    /// any other that holds what cannot be read, or the same job would be picked again for ever.
    fn quarantine_row(&self, reserved: &Reserved<'_>, number: u64, key: Box<[u8]>) -> Result<()> {
        match reserved.version.table(number) {
            Some(table) => {
                let (smallest, largest) = (key.clone(), key);
                self.quarantine(table, vec![Quarantined { table: number, smallest, largest }])
            }
            None => Ok(()),
        }
    }

    /// Waits as long as the rate limit says, or until the threads are to stop.
    pub(super) fn pace(&self, bytes: u64) {
        let wait_us = self.pacer.take(bytes, self.clock.now_ms().saturating_mul(1000));
        if wait_us > 0 && self.options.compaction_threads > 0 {
            self.background.pause(Duration::from_micros(wait_us));
        }
    }

    /// Sets the pace by how far compaction is behind in this version, which is the current one.
    pub(super) fn pace_by(&self, version: &Version) {
        self.pacer.set_debt(self.compaction_debt(version));
    }

    /// Bytes that compaction is behind.
    pub(super) fn compaction_debt(&self, version: &Version) -> u64 {
        let state = version.state();
        Targets::new(state, &self.picker_options).debt_bytes(state, &self.picker_options)
    }
}

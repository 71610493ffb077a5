//! Seal and flush: how a memtable becomes a table at level 0.
//!
//! A memtable is sealed at an exact position of the log, under the log mutex, and joins the flush
//! queue. The queue is worked off in order of age by one flush at a time.
//!
//! ```text
//! wait until the memtable has no writers; stop here if the disk has no room for its table
//! build the table; fsync it, fsync the directory
//! manifest edit: the table, and the seal position as the log's flushed position
//! cache: next epoch, then fix the entries of the memtable's keys
//! swap the SuperVersion: table in, memtable out
//! recycle log segments below the flushed position
//! ```
//!
//! # Invariants
//! 1. Tables are installed in order of epoch, so a reader that goes from newest to oldest by epoch
//!    meets the records of a key in the order of their claims.
//! 2. The cache is right before the swap: whoever sees the new SuperVersion finds no entry older
//!    than its tables.
//! 3. A Delta is written as Full only if no table may hold its key; older memtables and ingests
//!    are tables by then, because the queue is worked off in order.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use super::Shared;
use super::cache::Cached;
use super::error::{Error, Result};
use super::iter::Cursor;
use super::memtable::{Blank, Memtable, MemtableCursor};
use super::merge::MergeOperator;
use super::options::Options;
use super::position::Position;
use super::record::Kind;
use super::remove::CHECK_BYTES;
use super::rules::rule;
use super::sstable::{KeyHash, RowInfo, TableBuilder};
use super::super_version::{Queued, SuperVersion};
use super::version::{BuiltTable, EditError, TableMeta, VersionEdit, VersionSet};
use super::vfs::Vfs;

/// How far ahead of the record that is written records are brought near. The next one is found
/// through two pointers into memory that nobody has looked at since it was written, and a writer
/// fills the next memtable as long as this one is not flushed.
const RECORDS_AHEAD: usize = 4;

impl Shared {
    /// Seals the active memtable, unless it is empty; with `queue_ingest` even then, and a place
    /// for an ingest is queued behind it.
    ///
    /// Returns the epoch of the youngest item of the queue then: the ingest's, if one was queued.
    pub(super) fn seal(&self, queue_ingest: bool) -> u64 {
        // Before the log is locked: to make one takes long at times.
        let blank = self.blank.lock().take();
        let blank = blank.unwrap_or_else(|| self.new_blank());
        let mut log = self.log.lock();
        let sealed = log.active.clone();
        let keep = self.is_untouched(&sealed);
        if keep && !queue_ingest {
            drop(log);
            self.keep_blank(blank);
            return sealed.epoch() - 1;
        }
        sealed.seal(log.cut());
        let state = &mut *log;
        let ingest = queue_ingest.then(|| self.versions.allocate_epoch());
        let active = blank.into_memtable(self.versions.allocate_epoch());
        state.generation += 1;
        state.queued_ingests += u32::from(queue_ingest);
        state.active = active.clone();
        let generation = state.generation;
        // Still under the log mutex: whoever picks the new memtable finds readers looking into it.
        self.super_version.rcu(|view| {
            let mut queue = view.queue.clone();
            queue.push(Queued::Memtable(sealed.clone()));
            queue.extend(ingest.map(Queued::Ingest));
            let view = SuperVersion::clone(view);
            Arc::new(SuperVersion { generation, active: active.clone(), queue, ..view })
        });
        drop(log);
        // The next memtable has its own measure of what it may take.
        self.look_at_disk();
        self.background.wake_flush();
        ingest.unwrap_or_else(|| sealed.epoch())
    }

    /// Whether nothing is in the active memtable, nor on its way there.
    ///
    /// REQUIRES: the log mutex is held, so that no writer comes.
    pub(super) fn is_untouched(&self, active: &Memtable) -> bool {
        // Writers first: one that inserts and leaves between the two looks is found by the second.
        let has_writers = active.has_writers();
        self.hook("untouched:looked");
        !has_writers && active.is_empty()
    }

    fn new_blank(&self) -> Blank {
        self.hook("blank:new");
        Blank::new(self.options.memtable_bytes, &self.spare, self.versions.reaper())
    }

    /// Puts a blank by for the next memtable. One that was put by meanwhile goes, outside the lock.
    fn keep_blank(&self, blank: Blank) {
        let before = self.blank.lock().replace(blank);
        drop(before);
    }

    /// Seals the active memtable if it is full and there is room in the queue.
    pub(super) fn seal_if_full(&self) {
        let view = self.super_version.load();
        if view.active.list_bytes() < self.options.memtable_bytes
            || view.sealed() >= self.options.sealed_memtables_max
        {
            return;
        }
        // Of several writers that come here one seals; the others find a fresh memtable.
        let _one = self.seal_lock.lock();
        if self.super_version.load().active.epoch() == view.active.epoch() {
            self.seal(false);
        }
    }

    /// Makes the oldest sealed memtable a table. `false`: the queue is empty, or its head is an
    /// ingest, which its caller installs.
    pub(super) fn flush_first(&self) -> Result<bool> {
        let _one = self.flush_lock.lock();
        self.check_unpoisoned()?;
        if self.blank.lock().is_none() {
            self.keep_blank(self.new_blank());
        }
        let view = self.super_version.load_full();
        let first =
            if rule!(self, epoch_order_install) { view.queue.first() } else { view.queue.last() };
        let Some(Queued::Memtable(memtable)) = first else { return Ok(false) };
        memtable.wait_for_writers();
        // One of them may have failed: the memtable then lacks what it logged.
        self.check_unpoisoned()?;
        let flushed = memtable.sealed_at().expect("what is in the queue was sealed");
        self.flush_memtable(&view, memtable, flushed)?;
        // Its memory goes before files do.
        drop(view);
        if self.log.retire(flushed).is_err() {
            // The memtable is a table all the same. The next flush tries again.
            self.counters.background_errors.add(1);
        }
        Ok(true)
    }

    fn flush_memtable(
        &self,
        view: &SuperVersion,
        memtable: &Arc<Memtable>,
        flushed: Position,
    ) -> Result<()> {
        let mut edit = VersionEdit { flushed: Some(flushed), ..VersionEdit::default() };
        if !memtable.is_empty() {
            let output = self.table_output(self.check_flush_room(memtable)?);
            edit.added.push(output.build(memtable, &|key, hash| {
                rule!(self, promote_a_older) && view.version.may_hold(key, hash, |_| true)
            })?);
        }
        self.hook("flush:built");
        let bytes = edit.added.iter().map(|table| table.bytes).sum();
        let epoch = memtable.epoch();
        self.install(edit, CacheChange::Flushed(memtable), |view| {
            view.queue.retain(|queued| queued.epoch() != epoch);
        })?;
        self.counters.flushes.add(1);
        self.counters.flushed_bytes.add(bytes);
        Ok(())
    }

    /// Where new tables are written that leave `kept` bytes of the disk free.
    pub(super) fn table_output(&self, kept: u64) -> TableOutput<'_> {
        TableOutput {
            dir: &self.dir,
            kept,
            options: &self.options,
            vfs: &*self.vfs,
            operator: &*self.operator,
            versions: &self.versions,
            now_ms: self.now_ms(),
        }
    }

    /// Makes an edit durable and visible: manifest, cache, SuperVersion, in this order. `change`
    /// is applied to the new SuperVersion beside the new tables; it may run more than once.
    ///
    /// # Errors
    /// The manifest could not be written: the engine is poisoned, since what a restart would find
    /// is not known. A new table could not be opened: nothing is changed; one that is damaged
    /// already poisons, since what was written just now is not what is there. Where it is known
    /// that the edit is not in the manifest its tables are removed.
    pub(super) fn install(
        &self,
        edit: VersionEdit,
        cache: CacheChange<'_>,
        change: impl Fn(&mut SuperVersion),
    ) -> Result<()> {
        let installing = self.install_lock.lock();
        let made = made_by(&edit);
        let version = self.versions.log_and_apply(edit, self.now_ms()).inspect_err(|error| {
            // Who fails before the edit is appended leaves the manifest as it was.
            let is_refused = matches!(error, Error::Poisoned { .. });
            let is_unnamed = is_refused || !self.versions.is_in_doubt();
            // A block of a table that has just gone is quarantined too late, which is no failure.
            let is_late = matches!(error, Error::Edit(EditError::NoSuchTable { level: None, .. }));
            let is_unopened = is_unnamed && matches!(error, Error::Io { .. });
            if !is_late && !is_unopened {
                self.poison(&error.to_string());
            }
            if is_unnamed {
                self.remove_unnamed(&made);
            }
        })?;
        let epoch = match cache {
            CacheChange::None => None,
            CacheChange::Flushed(_) | CacheChange::Range { .. } | CacheChange::Removed(_) => {
                let epoch = self.super_version.load().cache_epoch + 1;
                self.cache.begin_epoch(epoch);
                Some(epoch)
            }
        };
        self.hook("install:next_epoch");
        if rule!(self, cache_fix_before_swap) {
            // The edit is durable and not in view: nothing can be installed after it.
            self.fix_cache(&cache).inspect_err(|error| self.poison(&error.to_string()))?;
        }
        self.hook("install:fixed");
        self.super_version.rcu(|view| {
            let mut view = SuperVersion::clone(view);
            view.version = version.clone();
            view.cache_epoch = epoch.unwrap_or(view.cache_epoch);
            change(&mut view);
            Arc::new(view)
        });
        self.pace_by(&version);
        drop(installing);
        self.hook("install:swapped");
        if !rule!(self, cache_fix_before_swap) {
            self.fix_cache(&cache)?;
        }
        self.background.progress();
        Ok(())
    }

    /// Removes the files of tables that the manifest does not name.
    pub(super) fn remove_unnamed(&self, numbers: &[u64]) {
        for number in numbers {
            // If this fails, the next open does it.
            let _ = self.vfs.remove(&self.versions.table_path(*number));
        }
    }

    fn cached_negative(&self, key: &[u8]) -> bool {
        let hash = KeyHash::new(key).hash();
        let is_negative = |cached: &Cached| *cached == Cached::Negative;
        self.cache.get(key, hash, self.now_ms(), is_negative).unwrap_or(false)
    }

    /// Brings the cache entries of the change's keys up to the tables that now hold them.
    fn fix_cache(&self, change: &CacheChange<'_>) -> Result<()> {
        let memtable = match change {
            CacheChange::None => return Ok(()),
            CacheChange::Range { first, last } => {
                self.cache.drop_range(&(Bound::Included(*first), Bound::Included(*last)));
                return Ok(());
            }
            CacheChange::Removed(goes) => {
                self.cache.drop_keys(goes);
                return Ok(());
            }
            CacheChange::Flushed(memtable) => memtable,
        };
        // Fills of the old epoch are refused by now and there are none of the new one before the
        // swap: an empty cache stays empty.
        if self.cache.stats().entries == 0 {
            return Ok(());
        }
        let mut cursor = MemtableCursor::new(Arc::clone(memtable));
        cursor.seek_to_first()?;
        while cursor.valid() {
            let key = cursor.key();
            let record = cursor.record();
            if rule!(self, cache_negative_fix) || !self.cached_negative(key) {
                let hash = KeyHash::new(key).hash();
                self.cache.fix(key, hash, record.kind, record.row, &*self.operator)?;
            }
            cursor.next()?;
        }
        Ok(())
    }
}

/// The numbers of the tables that were written for an edit, and not only moved by it.
fn made_by(edit: &VersionEdit) -> Vec<u64> {
    let is_moved = |number| edit.removed.iter().any(|(_, removed)| *removed == number);
    let added = edit.added.iter().map(|table| table.number);
    added.filter(|number| !is_moved(*number)).collect()
}

/// New tables that the manifest does not name yet: their files go with this.
pub(super) struct Unnamed<'s> {
    shared: &'s Shared,
    numbers: Vec<u64>,
}

impl<'s> Unnamed<'s> {
    pub fn new(shared: &'s Shared) -> Self {
        Self { shared, numbers: Vec::new() }
    }

    pub fn add(&mut self, table: &TableMeta) {
        self.numbers.push(table.number);
    }

    /// An edit that names them is about to be installed. Who fails there may have written it, and
    /// [`Shared::install`] knows.
    pub fn keep(&mut self) {
        self.numbers.clear();
    }
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        self.shared.remove_unnamed(&self.numbers);
    }
}

/// What an install means for the row cache, which holds the joined state of the tables.
pub(super) enum CacheChange<'a> {
    /// The tables say the same as before.
    None,
    /// The keys of this memtable are in the tables now.
    Flushed(&'a Arc<Memtable>),
    /// The tables say something else of any key of this range now.
    Range {
        /// The first key.
        first: &'a [u8],
        /// The last key.
        last: &'a [u8],
    },
    /// The keys that this names are in no table any more.
    Removed(&'a dyn Fn(&[u8]) -> bool),
}

/// Writes tables: for flush, recovery, ingest, and those who write one anew where it is.
pub(super) struct TableOutput<'a> {
    pub dir: &'a Path,
    /// Bytes of the disk that stay free.
    pub kept: u64,
    pub options: &'a Options,
    pub vfs: &'a dyn Vfs,
    pub operator: &'a dyn MergeOperator,
    pub versions: &'a VersionSet,
    pub now_ms: u64,
}

/// Takes the next record of a table: key, kind, row.
pub(super) type Add<'a> = dyn FnMut(&[u8], Kind, &[u8]) -> Result<()> + 'a;

impl TableOutput<'_> {
    /// Writes a memtable that has no writers. A Delta becomes a Full if `older_may_hold` denies
    /// its key; other records overwrite something.
    pub fn build(
        &self,
        memtable: &Arc<Memtable>,
        older_may_hold: &dyn Fn(&[u8], &KeyHash) -> bool,
    ) -> Result<TableMeta> {
        let mut cursor = MemtableCursor::new(memtable.clone());
        cursor.seek_to_first()?;
        let mut ahead = MemtableCursor::new(memtable.clone());
        ahead.seek_to_first()?;
        for _ in 0..RECORDS_AHEAD {
            ahead.next()?;
        }
        let mut overwrites = 0;
        let table = self.write(memtable.epoch(), false, |add| {
            while cursor.valid() {
                ahead.touch();
                ahead.next()?;
                let record = cursor.record();
                let key = cursor.key();
                let is_overwrite = older_may_hold(key, &KeyHash::new(key));
                overwrites += u64::from(is_overwrite);
                add(key, if is_overwrite { record.kind } else { Kind::Full }, record.row)?;
                cursor.next()?;
            }
            Ok(())
        })?;
        Ok(TableMeta { overwrites, ..table })
    }

    /// Writes the records that `fill` adds in ascending order. The file and its name are durable
    /// on return; nothing is installed.
    pub fn write(
        &self,
        epoch: u64,
        demote_full: bool,
        fill: impl FnOnce(&mut Add<'_>) -> Result<()>,
    ) -> Result<TableMeta> {
        self.write_at(0, epoch, demote_full, fill)
    }

    /// [`TableOutput::write`] of a table of any level.
    pub fn write_at(
        &self,
        level: usize,
        epoch: u64,
        demote_full: bool,
        fill: impl FnOnce(&mut Add<'_>) -> Result<()>,
    ) -> Result<TableMeta> {
        let number = self.versions.allocate_file_number();
        let path = self.versions.table_path(number);
        let file = self.vfs.create(&path).map_err(Error::io("create", &path))?;
        let options = self.options.table_options(level);
        let mut builder = TableBuilder::new(file.clone(), path.clone(), number, options);
        let (mut purgeable, mut unchecked) = (0, 0);
        let built = fill(&mut |key, kind, row| {
            unchecked += (key.len() + row.len()) as u64;
            if unchecked >= CHECK_BYTES {
                unchecked = 0;
                self.check_room(&builder)?;
            }
            let info = RowInfo {
                live_time_min: self.operator.live_time_min(row)?,
                time_max: self.operator.time_max(row)?,
            };
            purgeable += u64::from(self.operator.may_purge(row, u64::MAX)?);
            builder.add(key, kind, row, info)
        })
        .and_then(|()| self.check_room(&builder))
        .and_then(|()| builder.finish())
        .and_then(|properties| {
            self.vfs.sync_dir(self.dir).map_err(Error::io("sync", self.dir))?;
            let bytes = file.len().map_err(Error::io("measure", &path))?;
            let built = BuiltTable { properties: &properties, bytes, purgeable };
            let table = TableMeta::of_built(number, level as u8, epoch, self.now_ms, &built);
            Ok(TableMeta { demote_full, ..table })
        });
        // An orphan is removed at the next open, if not now.
        built.inspect_err(|_| drop(self.vfs.remove(&path)))
    }

    /// Refuses to go on before a write would take what is kept.
    fn check_room(&self, builder: &TableBuilder) -> Result<()> {
        // What cannot be asked is taken to have room.
        let available = self.vfs.disk_space(self.dir).map_or(u64::MAX, |space| space.available);
        let reserve = self.kept.saturating_add(builder.unwritten_bytes());
        match available < reserve {
            true => Err(Error::DiskFull { path: self.dir.to_path_buf(), available, reserve }),
            false => Ok(()),
        }
    }
}

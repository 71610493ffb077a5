//! Opening a store: manifest, then the part of the log that is not in tables yet.
//!
//! ```text
//! lock the directory
//! manifest: which tables, up to where the log is flushed
//! log: read from exactly that position; damage below what was durable refuses to open
//! manifest: a new one in place of the old; remove the files it does not name
//! log: replay; a torn tail is cut
//!      when a memtable is full: flush it; manifest edit: the table, and the flushed position;
//!      remove the segments below that
//! flush what is left; manifest edit: the table, and the start of a new segment as the flushed
//!      position
//! remove the old segments, start the new one
//! ```
//! So a start needs room for one table beside the log, not for all of them, and one that runs out
//! of room leaves less to do for the next.
//!
//! A clean close ([`Shared::end_log`]) leaves no log, and opening touches no data block. What it
//! reads is at most a few memtables' worth of log and, of each table, filter, index and properties:
//! the log does not grow with the store, the rest does.
//!
//! # Invariants
//! 1. Replay starts exactly at the flushed position. Earlier records may be of rows that were
//!    purged since; they would bring back what they deleted.
//! 2. The new segment is numbered above every number the manifest names or the directory holds: a
//!    flush may be durable before the log it came from, so the flushed position may lie in a
//!    segment that is gone, and records written below it would be skipped by the next replay.
//! 3. Nothing is appended to a recovered segment, and no old segment is left once the new one is
//!    in use, so a cut tail cannot be taken for log again.
//! 4. Damage is found before anything is written: a refused open leaves the files as they are.
//! 5. Until the last edit the log is read as it was: what ends it, damage too, is found again by
//!    whoever begins at a later frame.
//! 6. Replayed records are Deltas and skip the guard: everything after the flushed position passed
//!    it when it was written. No floor counts before they are tables, and then they are.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::background::Background;
use super::cache::RowCache;
use super::commit_log::{self, CommitLog, LogOptions, Recovered};
use super::compaction::{Pacer, PickerOptions};
use super::error::{Error, Result};
use super::flush::TableOutput;
use super::guards::Guards;
use super::memtable::{Blank, Logged, Memtable, Spare};
use super::merge::MergeOperator;
use super::options::{LEVELS, Options};
use super::position::Position;
use super::record::{Kind, Record};
use super::rules::rule;
use super::sstable::KeyHash;
use super::stats::Counters;
use super::stripes::Stripes;
use super::super_version::SuperVersion;
use super::version::{Manifest, VersionEdit, VersionSet, VersionState};
use super::vfs::Vfs;
use super::{Environment, LogState, Shared};

const LOCK_FILE: &str = "LOCK";

/// Opens the store in `dir`; starts no thread.
pub fn open(
    dir: &Path,
    options: Options,
    operator: Arc<dyn MergeOperator>,
    environment: Environment,
) -> Result<Shared> {
    options.validate()?;
    let Environment { vfs, clock } = environment;
    if !options.create_if_missing {
        Manifest::check_exists(&*vfs, dir)?;
    }
    create_dir_durably(&*vfs, dir)?;
    let lock_path = dir.join(LOCK_FILE);
    let lock = vfs.lock(&lock_path).map_err(Error::io("lock", &lock_path))?;
    let lock = lock.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;

    check_log(dir, &options, &*vfs)?;
    let versions = VersionSet::recover(vfs.clone(), dir, &options)?;
    let ages_from_ms = ages_from(versions.current().state(), clock.now_ms());
    let now_ms = clock.now_ms().saturating_add(ages_from_ms);
    let spare = Arc::new(Spare::new(options.memtable_bytes));
    let blank = || Blank::new(options.memtable_bytes, &spare, versions.reaper());
    let first_segment = replay(dir, &options, &vfs, &*operator, &versions, &blank, now_ms)?;

    let active = blank().into_memtable(versions.allocate_epoch());
    let state = LogState { active: active.clone(), generation: 0, queued_ingests: 0 };
    let log_options = LogOptions::from(&options);
    let log = CommitLog::create(vfs.clone(), dir, log_options, first_segment, state)?;

    let cache = RowCache::new(options.row_cache_bytes, options.row_cache_ttl_ms);
    let version = versions.current();
    let guards = Guards::new(options.partition_bits, version.state().safe_points());
    let picker_options = PickerOptions::from(&options);
    // Paced only while compaction keeps up: a memtable or two of debt is no reason to hurry.
    let free_debt = 4 * options.memtable_bytes as u64;
    let pacer = Pacer::new(options.compaction_bytes_per_second, free_debt);
    let view = SuperVersion { generation: 0, active, queue: Vec::new(), version, cache_epoch: 0 };
    let fill_max = AtomicUsize::new(options.memtable_bytes);
    Ok(Shared {
        dir: dir.to_path_buf(),
        options,
        vfs,
        operator,
        _lock: lock,
        log,
        blank: Mutex::default(),
        spare,
        stripes: Stripes::new(),
        guards,
        observer: OnceLock::new(),
        picker_options,
        pacer,
        cache,
        super_version: ArcSwap::from_pointee(view),
        background: Background::default(),
        counters: Counters::default(),
        versions,
        compacting: Mutex::default(),
        install_lock: Mutex::new(()),
        flush_lock: Mutex::new(()),
        safe_point_lock: Mutex::new(()),
        seal_lock: Mutex::new(()),
        now_ms: AtomicU64::new(now_ms),
        less_room_after_ms: AtomicU64::new(0),
        ages_from_ms,
        clock,
        disk_full: AtomicBool::new(false),
        fill_max,
        disk_used_ppm: AtomicU32::new(0),
        poisoned: OnceLock::new(),
        closed: AtomicBool::new(false),
        #[cfg(test)]
        removed_rules: Mutex::new(super::rules::removed_at_open()),
        #[cfg(test)]
        hooks: Mutex::default(),
    })
}

/// What to add to a clock that may have begun anew with this process, so that no table is younger
/// than it was: tables keep when they were made, and an age that begins anew at every start lets a
/// node that restarts often keep for ever what only age makes it compact. The time the store was
/// closed does not count.
fn ages_from(state: &VersionState, now_ms: u64) -> u64 {
    let tables = (0..LEVELS).flat_map(|level| state.level(level));
    let newest_ms = tables.map(|table| table.created_ms).max().unwrap_or(0);
    newest_ms.saturating_sub(now_ms)
}

/// Creates `dir` and its missing parents, names included: a store whose directory is gone after a
/// power loss is as lost as one whose files are.
pub(crate) fn create_dir_durably(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for ancestor in dir.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        if vfs.exists(ancestor).map_err(Error::io("look for", ancestor))? {
            break;
        }
        missing.push(ancestor);
    }
    vfs.create_dir_all(dir).map_err(Error::io("create", dir))?;
    for parent in missing.iter().filter_map(|created| created.parent()) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        vfs.sync_dir(parent).map_err(Error::io("sync", parent))?;
    }
    Ok(())
}

/// Reads the log as the replay will, for its errors alone: the replay writes tables, and before it
/// the manifest is rewritten. What is read twice is at most what the memtables held.
fn check_log(dir: &Path, options: &Options, vfs: &dyn Vfs) -> Result<()> {
    if let Some(found) = Manifest::recover(vfs, dir, options.partition_bits)? {
        let (from, accept) = (found.state.flushed(), options.accept_log_corruption);
        commit_log::recover(vfs, dir, from, accept, &mut |_, _, _| Ok(()))?;
    }
    Ok(())
}

impl Shared {
    /// Refuses every write from here on and makes durable what there is, so that everybody who
    /// waits for it is told.
    ///
    /// The clean end of a store whose memtables are flushed: the manifest says that the log is
    /// flushed to its end, then the log's files go. A crash in between leaves files below the
    /// flushed position, which the next open removes unread.
    ///
    /// # Errors
    /// The log, the manifest or the directory could not be written. The store opens all the same.
    pub(super) fn end_log(&self) -> Result<()> {
        let end = {
            let mut log = self.log.lock();
            let unflushed = !self.is_untouched(&log.active);
            if unflushed || self.super_version.load().sealed() > 0 || self.poisoned_by().is_some() {
                // A write that came in while the store was closed, or a flush that failed: the
                // next open replays them. Nothing comes after: the caller may say next that the
                // store was closed cleanly, and a write acknowledged later would make that a lie.
                let end = log.refuse();
                drop(log);
                return self.log.sync(end);
            }
            log.end()?
        };
        // Somebody may still wait to be told that a write is durable.
        self.wait_durable(end)?;
        let edit = VersionEdit { flushed: Some(end), ..VersionEdit::default() };
        self.versions.log_and_apply(edit, self.now_ms())?;
        self.log.remove_files()
    }
}

/// Brings the log's unflushed part into tables. Returns the number of the segment to start with.
fn replay(
    dir: &Path,
    options: &Options,
    vfs: &Arc<dyn Vfs>,
    operator: &dyn MergeOperator,
    versions: &VersionSet,
    blank: &dyn Fn() -> Blank,
    now_ms: u64,
) -> Result<u32> {
    let flushed = versions.current().state().flushed();
    let output = TableOutput { dir, kept: 0, options, vfs: &**vfs, operator, versions, now_ms };
    let build = |memtable: &Arc<Memtable>| {
        let older = versions.current();
        output.build(memtable, &|key, hash| older.may_hold(key, hash, |_| true))
    };
    let fresh = || blank().into_memtable(versions.allocate_epoch());
    let mut memtable = fresh();
    let mut last_frame = flushed;
    let mut apply = |frame: Position, key: &[u8], row: &[u8]| -> Result<()> {
        if memtable.list_bytes() >= options.memtable_bytes && frame > last_frame {
            let full = std::mem::replace(&mut memtable, fresh());
            let edit = VersionEdit {
                added: vec![build(&full)?],
                flushed: Some(frame),
                ..VersionEdit::default()
            };
            versions.log_and_apply(edit, now_ms)?;
            commit_log::remove_segments(&**vfs, dir, frame.segment())?;
        }
        last_frame = frame;
        let hash = KeyHash::new(key).hash();
        // It is a table before anybody reads, whatever of this log was synced.
        let logged = Logged { record: Record { kind: Kind::Delta, row }, end: Position::ZERO };
        memtable.insert(key, hash, logged, operator)?;
        Ok(())
    };
    let from = if rule!(exact_replay) { flushed } else { Position::ZERO };
    let recovered: Recovered =
        commit_log::recover(&**vfs, dir, from, options.accept_log_corruption, &mut apply)?;
    let named =
        [flushed, recovered.end].into_iter().filter(|_| rule!(segment_number_above_manifest));
    let first_segment = commit_log::next_segment_number(&**vfs, dir, named)?;
    if memtable.is_empty() && recovered.last_segment_number == 0 {
        // There was no log. The new one goes on from where the manifest says that it is flushed.
        return Ok(first_segment);
    }
    let mut edit = VersionEdit::default();
    if !memtable.is_empty() {
        edit.added.push(build(&memtable)?);
    }
    edit.flushed = Some(flushed.max(Position::new(first_segment, 0)));
    if recovered.is_lossy && rule!(damaged_state) {
        // In the edit after which the log is gone: nobody could tell later.
        edit.safe_points = versions.current().state().all_damaged();
    }
    versions.log_and_apply(edit, now_ms)?;
    commit_log::remove_segments(&**vfs, dir, first_segment)?;
    Ok(first_segment)
}

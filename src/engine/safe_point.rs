//! Changing the guard and the floor of partitions ([`super::guards`] says what they are).
//!
//! ```text
//! fence:      manifest edit (guard), then in force under the log mutex
//!             wait for every write that had picked its memtable before
//! mend:       guard in force again; then as set_floor
//! set_floor:  under the log mutex: hold repairs to the floor, name the youngest memtable
//!             sync the log
//!             manifest edit (floor and epoch): in force with the version it installs
//! ```
//!
//! # Invariants
//! 1. Durable first, in force second: after a crash a guard or floor that anybody relied on is
//!    there.
//! 2. When `fence` returns, every version at or below the guard that will ever be taken is in a
//!    memtable or table: later ones are refused or stripped.
//! 3. A floor names the youngest memtable that can hold a version at or below it: whatever is at
//!    or below the floor was taken before the fence, so before the floor's epoch was read. No row
//!    is purged on the word of the floor until that memtable is a table.
//! 4. A damaged partition takes versions at or below its floor. So when it is mended its floor
//!    names the youngest memtable anew, and vouches only for what is durable.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::commit_log::LogGuard;
use super::error::{Error, Result};
use super::flush::CacheChange;
use super::rules::rule;
use super::version::{SafePoint, VersionEdit};
use super::{Engine, LogState, Shared};

impl Engine {
    /// Takes no new version at or below `guard` in these partitions from now on; durable.
    /// A guard never goes down: a lower one than there is changes nothing.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for a partition that does not exist; I/O errors of the manifest,
    /// which poison the engine.
    pub fn fence(&self, partitions: RangeInclusive<u32>, guard: u64) -> Result<()> {
        self.fence_ranges(&[partitions], guard)
    }

    /// [`Engine::fence`] for several ranges, with one edit of the manifest.
    ///
    /// # Errors
    /// As [`Engine::fence`].
    pub fn fence_ranges(&self, partitions: &[RangeInclusive<u32>], guard: u64) -> Result<()> {
        let shared = &self.shared;
        shared.change_safe_points(partitions, |_, point| {
            point.guard = point.guard.max(guard);
            Ok(())
        })?;
        shared.hook("fence:in_force");
        if rule!(shared, fence_waits) {
            shared.stripes.barrier();
        }
        Ok(())
    }

    /// Declares that every version at or below `floor` which is not live here is dead, durable.
    /// Compaction may forget tombstones below it.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the floor is above a guard or a partition does not exist; I/O
    /// errors of log and manifest, which poison the engine.
    pub fn set_floor(&self, partitions: RangeInclusive<u32>, floor: u64) -> Result<()> {
        self.set_floor_unless_news(&[partitions], floor, None).map(|_| ())
    }

    /// [`Engine::set_floor`] for several ranges, with one edit of the manifest; if `news` is given,
    /// only while [`Engine::news`] of them is that. Says whether the floor was declared.
    ///
    /// # Errors
    /// As [`Engine::set_floor`].
    pub fn set_floor_unless_news(
        &self,
        partitions: &[RangeInclusive<u32>],
        floor: u64,
        news: Option<u64>,
    ) -> Result<bool> {
        let shared = &self.shared;
        shared.check_ranges(partitions)?;
        let _one = shared.safe_point_lock.lock();
        let each = || partitions.iter().flat_map(Clone::clone);
        let points = shared.versions.current().state().safe_points().clone();
        if let Some(point) = each().map(|at| &points[at as usize]).find(|it| floor > it.guard) {
            let (what, limit) = ("floor", point.guard);
            return Err(Error::OutOfBounds { what, found: floor, limit });
        }
        let log = shared.log.lock();
        if news.is_some_and(|news| shared.news_of(partitions) != news)
            && rule!(shared, news_voids_a_round)
        {
            return Ok(false);
        }
        for at in each().filter(|at| !points[*at as usize].is_damaged()) {
            shared.guards.raise_floor(at as usize, floor);
        }
        let epoch = shared.name_epoch_and_sync(log)?;
        shared.hook("floor:synced");
        shared.change_safe_points_locked(partitions, |_, point| {
            if floor > point.floor {
                point.floor = floor;
                point.floor_epoch = epoch;
            }
            Ok(())
        })?;
        shared.background.wake_compaction(1);
        Ok(true)
    }

    /// How many repairs since the engine was opened brought a version at or below the guard of one
    /// of these partitions that was neither live nor seen here.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for a partition that does not exist.
    pub fn news(&self, partitions: &[RangeInclusive<u32>]) -> Result<u64> {
        self.shared.check_ranges(partitions)?;
        // Under the mutex under which they are counted: what is counted later was picked later.
        let _log = self.shared.log.lock();
        Ok(self.shared.news_of(partitions))
    }

    /// Makes everything written before durable, whatever the sync mode.
    ///
    /// # Errors
    /// The log could not be written or synced.
    pub fn sync(&self) -> Result<()> {
        let mut log = self.shared.log.lock();
        let end = log.close_frame();
        drop(log);
        if rule!(self.shared, durable_barrier) { self.shared.log.sync(end) } else { Ok(()) }
    }

    /// Marks partitions as having lost data that only `peers` can give back (none: clears the
    /// mark), durable. While marked, guard and floor count as 0 and nothing is purged.
    ///
    /// # Errors
    /// As [`Engine::fence`]; clearing the mark syncs the log first, which may fail too.
    pub fn set_damaged(&self, partitions: RangeInclusive<u32>, peers: &[u128]) -> Result<()> {
        if peers.is_empty() {
            return self.shared.mend(partitions);
        }
        self.shared.change_safe_points(&[partitions], |_, point| {
            point.damaged = peers.into();
            Ok(())
        })
    }

    /// [`Engine::set_damaged`] of several partitions, each with its own peers (some), with one edit
    /// of the manifest.
    ///
    /// # Errors
    /// As [`Engine::fence`].
    pub fn set_each_damaged(&self, marks: &BTreeMap<u32, &[u128]>) -> Result<()> {
        let partitions: Vec<_> = marks.keys().map(|partition| *partition..=*partition).collect();
        self.shared.change_safe_points(&partitions, |partition, point| {
            point.damaged = marks.get(&partition).copied().unwrap_or_default().into();
            Ok(())
        })
    }

    /// Takes the words of partitions back: guard and floor are 0 again, with one edit of the
    /// manifest. For partitions whose rows are about to be learnt from others; durable. What is
    /// damaged stays so: others still hold what was lost here.
    ///
    /// # Errors
    /// As [`Engine::fence`].
    pub fn reset_safe_points(&self, partitions: &[RangeInclusive<u32>]) -> Result<()> {
        self.shared.change_safe_points(partitions, |_, point| {
            let damaged = std::mem::take(&mut point.damaged);
            *point = SafePoint { damaged, ..SafePoint::default() };
            Ok(())
        })
    }

    /// [`Engine::reset_safe_points`], but the guards stay.
    ///
    /// # Errors
    /// As [`Engine::fence`].
    pub fn reset_floors(&self, partitions: &[RangeInclusive<u32>]) -> Result<()> {
        self.shared.change_safe_points(partitions, |_, point| {
            (point.floor, point.floor_epoch) = (0, 0);
            Ok(())
        })
    }

    /// [`Engine::reset_safe_points`] for partitions of whose rows none is left: nothing of them is
    /// damaged any more. Which these are is asked while no safe point can change, so one that is
    /// set because of what is not known then is not forgotten. Returns them.
    ///
    /// # Errors
    /// As [`Engine::fence`].
    pub fn forget_safe_points(
        &self,
        partitions: impl FnOnce() -> Vec<RangeInclusive<u32>>,
    ) -> Result<Vec<RangeInclusive<u32>>> {
        let _one = self.shared.safe_point_lock.lock();
        let partitions = partitions();
        self.shared.check_ranges(&partitions)?;
        self.shared.change_safe_points_locked(&partitions, |_, point| {
            *point = SafePoint::default();
            Ok(())
        })?;
        Ok(partitions)
    }

    /// The words of a partition.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if it does not exist.
    pub fn safe_point(&self, partition: u32) -> Result<SafePoint> {
        self.shared.check_partitions(&(partition..=partition))?;
        let view = self.shared.super_version.load();
        Ok(view.version.state().safe_points()[partition as usize].clone())
    }

    /// The words of all partitions.
    pub fn safe_points(&self) -> Arc<[SafePoint]> {
        Arc::clone(self.shared.super_version.load().version.state().safe_points())
    }

    /// Whether a floor waits for memtables to become tables: until then no row is purged on its
    /// word, and a floor that replaces it begins to wait anew.
    pub fn floor_waits(&self) -> bool {
        let view = self.shared.super_version.load();
        let unflushed = view.oldest_unflushed_epoch();
        let points = view.version.state().safe_points();
        points.iter().any(|point| point.floor > 0 && point.floor_epoch >= unflushed)
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u32 {
        self.shared.guards.partitions() as u32
    }
}

impl Shared {
    fn check_partitions(&self, partitions: &RangeInclusive<u32>) -> Result<Range<u32>> {
        let (first, last) = (*partitions.start(), *partitions.end());
        let count = self.guards.partitions() as u64;
        if first > last || u64::from(last) >= count {
            let found = u64::from(first.max(last));
            return Err(Error::OutOfBounds { what: "partition", found, limit: count - 1 });
        }
        Ok(first..last + 1)
    }

    fn check_ranges(&self, partitions: &[RangeInclusive<u32>]) -> Result<()> {
        partitions.iter().try_for_each(|range| self.check_partitions(range).map(|_| ()))
    }

    fn news_of(&self, partitions: &[RangeInclusive<u32>]) -> u64 {
        let each = partitions.iter().flat_map(Clone::clone);
        each.map(|partition| self.guards.news(partition as usize)).sum()
    }

    /// Makes what a floor is about to vouch for durable. Returns the epoch of the youngest memtable
    /// that holds any of it.
    fn name_epoch_and_sync(&self, mut log: LogGuard<'_, LogState>) -> Result<u64> {
        let end = log.close_frame();
        let epoch = log.active.epoch() - u64::from(self.is_untouched(&log.active));
        drop(log);
        if rule!(self, floor_after_sync) {
            self.log.sync(end)?;
        }
        Ok(epoch)
    }

    /// Lets the words of damaged partitions count again.
    fn mend(&self, partitions: RangeInclusive<u32>) -> Result<()> {
        let range = self.check_partitions(&partitions)?;
        let _one = self.safe_point_lock.lock();
        let mut points = self.versions.current().state().safe_points().to_vec();
        points.iter_mut().for_each(|point| point.damaged = Box::default());
        // The guard first: what was taken without it is then in memtables up to the epoch below.
        let log = self.log.lock();
        self.guards.put_in_force(range.start as usize..range.end as usize, &points);
        let epoch = self.name_epoch_and_sync(log)?;
        self.change_safe_points_locked(&[partitions], |_, point| {
            if point.is_damaged() && rule!(self, mended_floor_waits) {
                point.floor_epoch = point.floor_epoch.max(epoch);
            }
            point.damaged = Box::default();
            Ok(())
        })
    }

    fn change_safe_points(
        &self,
        partitions: &[RangeInclusive<u32>],
        change: impl Fn(u32, &mut SafePoint) -> Result<()>,
    ) -> Result<()> {
        self.check_ranges(partitions)?;
        // One change at a time, and none while an ingest is between its check and its install.
        let _one = self.safe_point_lock.lock();
        self.change_safe_points_locked(partitions, change)
    }

    /// Changes words: durable, then in force. Equal neighbours go into one range of the edit.
    ///
    /// REQUIRES: `safe_point_lock`; the partitions exist.
    fn change_safe_points_locked(
        &self,
        partitions: &[RangeInclusive<u32>],
        change: impl Fn(u32, &mut SafePoint) -> Result<()>,
    ) -> Result<()> {
        let points = self.versions.current().state().safe_points().clone();
        let mut runs: Vec<(Range<u32>, SafePoint)> = Vec::new();
        let mut changed = false;
        for partition in partitions.iter().flat_map(Clone::clone) {
            let old = &points[partition as usize];
            let mut new = old.clone();
            change(partition, &mut new)?;
            changed |= new != *old;
            match runs.last_mut() {
                Some((run, point)) if *point == new && run.end == partition => run.end += 1,
                _ => runs.push((partition..partition + 1, new)),
            }
        }
        if !changed {
            return Ok(());
        }
        let edit = VersionEdit { safe_points: runs, ..VersionEdit::default() };
        self.install(edit, CacheChange::None, |_| {})?;
        let version = self.versions.current();
        let points = version.state().safe_points();
        let _log = self.log.lock();
        for range in partitions {
            let range = *range.start() as usize..*range.end() as usize + 1;
            let vouching = |point: &SafePoint| point.is_damaged();
            if !points[range.clone()].iter().any(vouching) || rule!(self, damaged_strips_nothing) {
                self.guards.put_in_force(range, points);
            }
        }
        Ok(())
    }
}

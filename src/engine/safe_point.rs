//! Changing the guard and the floor of partitions ([`super::safe_points`] says what they are).
//!
//! ```text
//! fence:      manifest edit (guard), then under the log mutex: guard in force
//!             wait for every write that had picked its memtable before
//! set_floor:  sync the log; manifest edit (floor); then under the log mutex: floor in force,
//!             together with the epoch of the youngest memtable that existed
//! ```
//!
//! # Invariants
//! 1. Durable first, in force second: after a crash a guard or floor that anybody relied on is
//!    there.
//! 2. When `fence` returns, every version at or below the guard that will ever be taken is in a
//!    memtable or table: later ones are refused or stripped.

use std::ops::{Range, RangeInclusive};

use super::error::{Error, Result};
use super::rules::rule;
use super::version::{SafePoint, VersionEdit};
use super::{Engine, Shared};

impl Engine {
    /// Takes no new version at or below `guard` in these partitions from now on; durable.
    /// A guard never goes down: a lower one than there is changes nothing.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for a partition that does not exist; I/O errors of the manifest,
    /// which poison the engine.
    pub fn fence(&self, partitions: RangeInclusive<u32>, guard: u64) -> Result<()> {
        let shared = &self.shared;
        let range = shared.check_partitions(&partitions)?;
        let _one = shared.ingest_lock.lock();
        shared.change_safe_points(&partitions, |point| point.guard = point.guard.max(guard))?;
        let log = shared.log.lock();
        shared.safe_points.set_guard(range, guard);
        drop(log);
        shared.stripes.barrier();
        Ok(())
    }

    /// Declares that every version at or below `floor` which is not live here is dead, durable.
    /// Compaction may forget tombstones below it.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the floor is above a guard or a partition does not exist; I/O
    /// errors of log and manifest, which poison the engine.
    pub fn set_floor(&self, partitions: RangeInclusive<u32>, floor: u64) -> Result<()> {
        let shared = &self.shared;
        let range = shared.check_partitions(&partitions)?;
        let _one = shared.ingest_lock.lock();
        let guard = range.clone().map(|p| shared.safe_points.kept_guard(p)).min().unwrap_or(0);
        if floor > guard {
            return Err(Error::OutOfBounds { what: "floor", found: floor, limit: guard });
        }
        if rule!(shared, floor_after_sync) {
            let end = shared.log.lock().close_frame();
            shared.log.sync(end)?;
        }
        shared.change_safe_points(&partitions, |point| point.floor = point.floor.max(floor))?;
        let log = shared.log.lock();
        let active = &log.active;
        let idle = active.is_empty() && !active.has_writers();
        let epoch = active.epoch() - u64::from(idle);
        shared.safe_points.set_floor(range, floor, epoch);
        drop(log);
        shared.background.wake_compaction(1);
        Ok(())
    }

    /// Marks partitions as having lost data that only `peers` can give back (none: clears the
    /// mark), durable. While marked, guard and floor count as 0 and nothing is purged.
    ///
    /// # Errors
    /// As [`Engine::fence`].
    pub fn set_damaged(&self, partitions: RangeInclusive<u32>, peers: &[u128]) -> Result<()> {
        let shared = &self.shared;
        let range = shared.check_partitions(&partitions)?;
        let _one = shared.ingest_lock.lock();
        shared.change_safe_points(&partitions, |point| point.damaged = peers.into())?;
        let _log = shared.log.lock();
        shared.safe_points.set_damaged(range, !peers.is_empty());
        Ok(())
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

    /// Number of partitions.
    pub fn partitions(&self) -> u32 {
        self.shared.safe_points.len() as u32
    }
}

impl Shared {
    fn check_partitions(&self, partitions: &RangeInclusive<u32>) -> Result<RangeInclusive<usize>> {
        let (first, last) = (*partitions.start() as usize, *partitions.end() as usize);
        if first > last || last >= self.safe_points.len() {
            return Err(Error::OutOfBounds {
                what: "partition",
                found: last as u64,
                limit: self.safe_points.len() as u64 - 1,
            });
        }
        Ok(first..=last)
    }

    /// Makes changed words durable, equal neighbours in one range.
    fn change_safe_points(
        &self,
        partitions: &RangeInclusive<u32>,
        change: impl Fn(&mut SafePoint),
    ) -> Result<()> {
        let points = self.super_version.load().version.state().safe_points().clone();
        let mut runs: Vec<(Range<u32>, SafePoint)> = Vec::new();
        let mut changed = false;
        for partition in partitions.clone() {
            let old = &points[partition as usize];
            let mut new = old.clone();
            change(&mut new);
            changed |= new != *old;
            match runs.last_mut() {
                Some((run, point)) if *point == new => run.end = partition + 1,
                _ => runs.push((partition..partition + 1, new)),
            }
        }
        if !changed {
            return Ok(());
        }
        let edit = VersionEdit { safe_points: runs, ..VersionEdit::default() };
        self.install(edit, super::flush::CacheChange::None, |_| {})
    }
}

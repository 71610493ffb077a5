//! Room on the disk: what of it is kept, and for what.
//!
//! | kept free | for | from |
//! |---|---|---|
//! | a quarter of the reserve, the *floor* | log, manifest | all, but flushes have most of it |
//! | as much as the memtables hold | their tables | writes, compactions |
//! | the rest of the reserve | deletes, rows of other replicas, compactions | clients' values |
//!
//! A write takes room twice, in the log and later in a table, and what it took of the log comes
//! back only with the table. Without room for that one the disk stays full for good: the store
//! takes nothing, flushes nothing and, as a start flushes what the log holds, does not even open.
//! So what memtables hold counts as taken, and all of it can be flushed. What the log takes between
//! two looks, a step of its file or a large write, is what flushes may have of the floor: nothing
//! goes to the log by then.
//!
//! # Invariants
//! 1. A write is taken only where the tables of what was taken before have room beside the floor.
//! 2. Who writes a table looks before each write, and gives up before it takes what is kept: a
//!    disk without any room, for a moment, is one on which an append to the log fails.

use std::sync::atomic::Ordering;

use super::error::{Error, Result};
use super::memtable::Memtable;
use super::options::Options;
use super::vfs::DiskSpace;
use super::{Engine, Shared};

/// From so many millionths of the disk in use on, space that can be had is taken back first.
const SHORT_PPM: u32 = 800_000;
/// The share of the reserve that is the floor.
const RESERVE_FLOOR: u64 = 4;
/// The share of the floor that flushes leave.
const FLOOR_FLUSHED: u64 = 4;
/// What a memtable takes of the disk, in the log and as a table, is less than so many times what
/// it holds, with what the log's file grows ahead.
const TAKEN_PARTS: u64 = 4;

impl Engine {
    /// Whether less than the reserve was free at the last look, half a second ago at most.
    pub fn below_reserve(&self) -> bool {
        self.shared.disk_full.load(Ordering::Relaxed)
    }

    /// The reserve and, beside it, what is to be flushed: bytes that clients' values leave free.
    pub fn reserve_bytes(&self) -> u64 {
        self.shared.reserve_bytes()
    }

    /// How full the disk was at the last look, half a second ago at most: 0 to 1. Costs one load,
    /// so every request may ask.
    pub fn disk_used(&self) -> f64 {
        f64::from(self.shared.disk_used_ppm.load(Ordering::Relaxed)) / 1e6
    }
}

impl Shared {
    /// Compares free space with what is kept. Whether no write has room.
    pub(super) fn look_at_disk(&self) -> bool {
        let Options { disk_reserve_bytes, guard_reserve, memtable_bytes, .. } = self.options;
        // A file system that cannot be asked is taken to have room: writes will tell.
        let Ok(space) = self.vfs.disk_space(&self.dir) else {
            self.fill_max.store(memtable_bytes, Ordering::Relaxed);
            return false;
        };
        let used = space.total.saturating_sub(space.available);
        let used_ppm = used.saturating_mul(1_000_000) / space.total.max(1);
        self.disk_used_ppm.store(used_ppm as u32, Ordering::Relaxed);

        let filled = self.super_version.load().active.list_bytes();
        let unflushed = self.unflushed_bytes();
        let reserve = disk_reserve_bytes.saturating_add(unflushed);
        let full = space.available < reserve;
        // A fast writer could take more than the reserve between two ticks.
        let room = space.available.saturating_sub(reserve) / TAKEN_PARTS;
        let fill_max = filled.saturating_add(usize::try_from(room).unwrap_or(usize::MAX));
        self.fill_max.store(fill_max.min(memtable_bytes), Ordering::Relaxed);
        self.disk_full.store(full, Ordering::Relaxed);
        full && (guard_reserve || space.available < self.floor().saturating_add(unflushed))
    }

    /// Whether no write has room. Below the reserve it is looked each time, for nothing is refused
    /// in between.
    pub(super) fn is_out_of_space(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed) && self.look_at_disk()
    }

    /// Whether space that can be had is to be taken back before anything else is done.
    pub(super) fn is_short_of_space(&self) -> bool {
        let used_ppm = self.disk_used_ppm.load(Ordering::Relaxed);
        used_ppm >= SHORT_PPM || self.disk_full.load(Ordering::Relaxed)
    }

    fn floor(&self) -> u64 {
        self.options.disk_reserve_bytes / RESERVE_FLOOR
    }

    fn reserve_bytes(&self) -> u64 {
        self.options.disk_reserve_bytes.saturating_add(self.unflushed_bytes())
    }

    /// What the tables of all that is not flushed may take.
    fn unflushed_bytes(&self) -> u64 {
        let view = self.super_version.load();
        view.memtables().map(|memtable| memtable.table_bytes_max()).sum()
    }

    /// Bytes that are free, and how many of them stay so: `kept`, or half of what is left where
    /// that is less, for tables are also how space comes back.
    fn space_beside(&self, kept: u64) -> (u64, u64) {
        // As above: what cannot be asked is taken to have room.
        let Ok(DiskSpace { available, .. }) = self.vfs.disk_space(&self.dir) else {
            return (u64::MAX, 0);
        };
        (available, kept.min(available / 2))
    }

    /// Bytes that are free, and how many of them a compaction leaves.
    pub(super) fn compaction_space(&self) -> (u64, u64) {
        self.space_beside(self.floor().saturating_add(self.unflushed_bytes()))
    }

    /// Bytes that the flush of a memtable leaves.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if its table could take them. Nothing is tried then: half a table is of
    /// no use, and the next try would be as soon as the first one has failed.
    pub(super) fn check_flush_room(&self, memtable: &Memtable) -> Result<u64> {
        let (available, kept) = self.space_beside(self.floor() / FLOOR_FLUSHED);
        let reserve = memtable.table_bytes_max().saturating_add(kept);
        match available < reserve {
            true => Err(Error::DiskFull { path: self.dir.clone(), available, reserve }),
            false => Ok(kept),
        }
    }

    /// Refuses a job to go on when it has come to what is kept.
    pub(super) fn check_room(&self, kept: u64) -> Result<()> {
        let (available, _) = self.space_beside(0);
        match available < kept {
            true => Err(Error::DiskFull { path: self.dir.clone(), available, reserve: kept }),
            false => Ok(()),
        }
    }

    pub(super) fn disk_full_error(&self) -> Error {
        let available = self.vfs.disk_space(&self.dir).map_or(0, |space| space.available);
        Error::DiskFull { path: self.dir.clone(), available, reserve: self.reserve_bytes() }
    }
}

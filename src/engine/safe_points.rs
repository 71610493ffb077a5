//! The guard and the floor of each partition.
//!
//! A *guard* `G` fences: no version at or below `G` is taken from now on unless this node holds or
//! has seen it. A *floor* `F <= G` is proven: every version at or below `F` that a row here does
//! not hold live is dead, so a tombstone below it may be forgotten. How they are proven among
//! replicas is not the engine's business; it keeps the words durable in the manifest, holds writes
//! to the guard and lets compaction purge below the floor.
//!
//! A *damaged* partition lost data. It vouches for nothing: its guard and floor count as 0 until
//! the damage is cleared.
//!
//! # Invariants
//! 1. The words change only under the log mutex (readers outside it compare again inside).
//! 2. A floor is installed only after the log is synced up to the moment it vouches for, and names
//!    the youngest memtable of that moment (`floor_epoch`): a purge waits until that is a table.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::key::prefix_of;
use super::version::SafePoint;

#[derive(Default)]
struct Word {
    guard: AtomicU64,
    floor: AtomicU64,
    floor_epoch: AtomicU64,
    damaged: AtomicBool,
}

/// The words of all partitions, as writers and compactions read them.
pub struct SafePoints {
    bits: u32,
    words: Box<[Word]>,
}

impl SafePoints {
    /// The words as the manifest has them, one for each of `2^bits` partitions. `epoch` is what
    /// every floor must wait for.
    pub fn new(bits: u32, points: &[SafePoint], epoch: u64) -> Self {
        debug_assert_eq!(points.len(), 1 << bits);
        let word = |point: &SafePoint| Word {
            guard: point.guard.into(),
            floor: point.floor.into(),
            floor_epoch: epoch.into(),
            damaged: point.is_damaged().into(),
        };
        Self { bits, words: points.iter().map(word).collect() }
    }

    /// The partition of a key: the top bits of its first eight bytes.
    #[inline]
    pub fn partition_of(&self, key: &[u8]) -> usize {
        // A shift by 64 is undefined in the machine: one partition has no bits.
        prefix_of(key).checked_shr(64 - self.bits).unwrap_or(0) as usize
    }

    /// Number of partitions.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// The guard that holds for writes: 0 while the partition is damaged.
    #[inline]
    pub fn guard(&self, partition: usize) -> u64 {
        let word = &self.words[partition];
        // Acquire: pairs with the Release of `set_*`, though the comparison that counts is made
        // under the log mutex.
        if word.damaged.load(Ordering::Acquire) { 0 } else { word.guard.load(Ordering::Acquire) }
    }

    /// The floor that counts: 0 while the partition is damaged.
    pub fn floor(&self, partition: usize) -> u64 {
        let word = &self.words[partition];
        if word.damaged.load(Ordering::Acquire) { 0 } else { word.floor.load(Ordering::Acquire) }
    }

    /// The youngest memtable epoch that existed when the floor was installed.
    pub fn floor_epoch(&self, partition: usize) -> u64 {
        self.words[partition].floor_epoch.load(Ordering::Acquire)
    }

    /// The guard as it is kept, damaged or not.
    pub fn kept_guard(&self, partition: usize) -> u64 {
        self.words[partition].guard.load(Ordering::Acquire)
    }

    /// Raises guards. REQUIRES: the log mutex.
    pub fn set_guard(&self, partitions: RangeInclusive<usize>, guard: u64) {
        for word in &self.words[partitions] {
            word.guard.fetch_max(guard, Ordering::Release);
        }
    }

    /// Raises floors that `epoch` must be flushed for. REQUIRES: the log mutex.
    pub fn set_floor(&self, partitions: RangeInclusive<usize>, floor: u64, epoch: u64) {
        for word in &self.words[partitions] {
            // The epoch first: who reads the new floor must not find the old epoch with it.
            word.floor_epoch.store(epoch, Ordering::Release);
            word.floor.fetch_max(floor, Ordering::Release);
        }
    }

    /// Marks or clears damage. REQUIRES: the log mutex.
    pub fn set_damaged(&self, partitions: RangeInclusive<usize>, damaged: bool) {
        for word in &self.words[partitions] {
            word.damaged.store(damaged, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(bits: u32) -> SafePoints {
        SafePoints::new(bits, &vec![SafePoint::default(); 1 << bits], 0)
    }

    #[test]
    fn partitions_are_contiguous_ranges_of_keys() {
        let points = none(10);
        assert_eq!(points.len(), 1024);
        assert_eq!(points.partition_of(&[0; 8]), 0);
        assert_eq!(points.partition_of(&[0xFF; 8]), 1023);
        assert_eq!(points.partition_of(&[0x80]), 512);
        assert_eq!(none(0).partition_of(&[0xFF; 8]), 0);
    }

    #[test]
    fn a_damaged_partition_vouches_for_nothing() {
        let points = none(1);
        points.set_guard(0..=1, 9);
        points.set_floor(0..=1, 7, 3);
        points.set_damaged(1..=1, true);
        assert_eq!((points.guard(0), points.floor(0)), (9, 7));
        assert_eq!((points.guard(1), points.floor(1)), (0, 0));
        points.set_damaged(1..=1, false);
        assert_eq!((points.guard(1), points.floor(1)), (9, 7));
    }
}

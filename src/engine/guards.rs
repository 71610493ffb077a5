//! The guards of all partitions, as writers check them.
//!
//! A *guard* `G` fences a partition: no version at or below `G` is taken any more unless this node
//! holds or has seen it. A *floor* `F <= G` is proven: every version at or below `F` that a row
//! here does not hold live is dead, so a tombstone below it may be forgotten. How they are proven
//! among replicas is not the engine's business; it keeps the words durable in the manifest
//! ([`super::version::SafePoint`]), holds writes to the guard, and compaction purges below the
//! floor.
//!
//! A *damaged* partition lost data. It vouches for nothing: its guard and floor count as 0 until
//! the damage is mended.
//!
//! What replicas find out when they compare rows comes in past the guard: it was judged by the
//! floors of both ([`Engine::apply_judged`](super::Engine::apply_judged)). Such a *repair* names
//! the floor it was judged under and is taken only while that one is in force. If it brings a
//! version at or below the guard it is *news*, and counted: a round in which news came proves
//! nothing yet.
//!
//! # Invariants
//! 1. A guard changes only under the log mutex, after it is durable. Whoever looked at it outside
//!    compares again inside.
//! 2. The floor that repairs are held to rises under the log mutex too, in the moment in which the
//!    floor's memtable is named and before it is durable: a repair judged by the floor before is
//!    either in that memtable or refused.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::version::{SafePoint, partition_of};

/// See the module page.
pub struct Guards {
    bits: u32,
    /// By partition; 0 where nothing is fenced or the partition is damaged.
    guards: Box<[AtomicU64]>,
    /// The same for the floors that repairs are held to.
    floors: Box<[AtomicU64]>,
    /// Repairs so far that were news, by partition. Written under the log mutex.
    news: Box<[AtomicU64]>,
}

impl Guards {
    /// The guards of `2^bits` partitions.
    pub fn new(bits: u32, points: &[SafePoint]) -> Self {
        debug_assert_eq!(points.len(), 1 << bits);
        let zeros = || points.iter().map(|_| AtomicU64::new(0)).collect();
        let guards = Self { bits, guards: zeros(), floors: zeros(), news: zeros() };
        guards.put_in_force(0..points.len(), points);
        guards
    }

    /// The partition of a key: the top bits of its first eight bytes.
    #[inline]
    pub fn partition_of(&self, key: &[u8]) -> usize {
        partition_of(key, self.bits)
    }

    /// Number of partitions.
    pub fn partitions(&self) -> usize {
        self.guards.len()
    }

    /// The guard that writes are held to.
    #[inline]
    pub fn get(&self, partition: usize) -> u64 {
        self.guards[partition].load(Ordering::Acquire)
    }

    /// The floor that repairs are held to.
    pub fn floor(&self, partition: usize) -> u64 {
        self.floors[partition].load(Ordering::Acquire)
    }

    /// Holds repairs to a floor that is not durable yet. REQUIRES: the log mutex.
    pub fn raise_floor(&self, partition: usize, floor: u64) {
        self.floors[partition].fetch_max(floor, Ordering::AcqRel);
    }

    /// Counts a repair that was news. REQUIRES: the log mutex.
    pub fn count_news(&self, partition: usize) {
        self.news[partition].fetch_add(1, Ordering::AcqRel);
    }

    /// Repairs so far that were news, since the engine was opened.
    pub fn news(&self, partition: usize) -> u64 {
        self.news[partition].load(Ordering::Acquire)
    }

    /// Takes over the words of a range of partitions. REQUIRES: the log mutex.
    pub fn put_in_force(&self, partitions: Range<usize>, points: &[SafePoint]) {
        for partition in partitions {
            let point = &points[partition];
            let vouches = |time| if point.is_damaged() { 0 } else { time };
            self.guards[partition].store(vouches(point.guard), Ordering::Release);
            self.floors[partition].store(vouches(point.floor), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_partition_vouches_for_nothing() {
        let sound = SafePoint { guard: 9, floor: 7, ..SafePoint::default() };
        let damaged = SafePoint { damaged: [1].into(), ..sound.clone() };
        let guards = Guards::new(1, &[sound.clone(), damaged]);
        assert_eq!((guards.get(0), guards.get(1)), (9, 0));
        assert_eq!((guards.floor(0), guards.floor(1)), (7, 0));
        guards.put_in_force(1..2, &[sound.clone(), sound]);
        assert_eq!(guards.get(1), 9);
    }
}

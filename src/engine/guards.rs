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
//! # Invariants
//! 1. A guard changes only under the log mutex, after it is durable. Whoever looked at it outside
//!    compares again inside.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::version::{SafePoint, partition_of};

/// See the module page.
pub struct Guards {
    bits: u32,
    /// By partition; 0 where nothing is fenced or the partition is damaged.
    guards: Box<[AtomicU64]>,
}

impl Guards {
    /// The guards of `2^bits` partitions.
    pub fn new(bits: u32, points: &[SafePoint]) -> Self {
        debug_assert_eq!(points.len(), 1 << bits);
        let guards = Self { bits, guards: points.iter().map(|_| AtomicU64::new(0)).collect() };
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

    /// Takes over the words of a range of partitions. REQUIRES: the log mutex.
    pub fn put_in_force(&self, partitions: Range<usize>, points: &[SafePoint]) {
        for partition in partitions {
            let point = &points[partition];
            let guard = if point.is_damaged() { 0 } else { point.guard };
            self.guards[partition].store(guard, Ordering::Release);
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
        guards.put_in_force(1..2, &[sound.clone(), sound]);
        assert_eq!(guards.get(1), 9);
    }
}

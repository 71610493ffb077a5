//! Safe points: what a partition's replicas have agreed to forget.
//!
//! A partition is named by the top bits of a key's first eight bytes. Its safe point is four words
//! that are durable in the manifest beside the tables they speak of.
//!
//! 1. `floor <= guard`: nothing is proved that was not fenced first.
//! 2. `guard` never goes back, and `floor` only while the partition is damaged: tables were purged
//!    on its word. But all four words together may be taken back to nothing: the partition is
//!    another replica's now. Or all but `damaged`: this one begins as a new replica, and what it
//!    has lost is lost still.

use crate::engine::key::key_prefix;

/// Stands among the damaged peers for all that hold the partition too, where it is not known who
/// they are.
pub const WHOEVER_HOLDS_IT: u128 = 0;

/// What one partition's replicas have agreed on. Times are the merge operator's.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SafePoint {
    /// Fenced up to here: no live version at or below it is taken from a message.
    pub guard: u64,
    /// Proved up to here: a version at or below it that a row does not hold live is dead.
    pub floor: u64,
    /// Epoch of the memtable that was active when `floor` was installed. What it and older ones
    /// hold did not pass the floor, so it must be in tables before anything is purged.
    pub floor_epoch: u64,
    /// Peers still to be exchanged with after a loss of data, ascending; empty when undamaged.
    pub damaged: Box<[u128]>,
}

impl SafePoint {
    /// Whether a loss of data has not been repaired yet: the partition vouches for nothing.
    pub fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }
}

/// The partition of `key`, of `2^bits`.
pub fn partition_of(key: &[u8], bits: u32) -> usize {
    if bits == 0 { 0 } else { (key_prefix(key) >> (64 - bits)) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Partitions are ordered as keys are, so a key range is a range of partitions.
    #[test]
    fn partition_follows_key_order() {
        assert_eq!(partition_of(b"", 10), 0);
        assert_eq!(partition_of(&[0xff; 9], 10), 1023);
        assert_eq!(partition_of(&[0xff; 9], 0), 0);
        assert_eq!(partition_of(&[0x80], 1), 1);
        assert_eq!(partition_of(&[0x7f, 0xff], 1), 0);
    }
}

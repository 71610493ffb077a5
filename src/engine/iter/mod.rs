//! Cursors over sorted sources of records, and their merge.
//!
//! Everything that reads records in order goes through here: scans, flush, compaction, streaming.
//! A [`Cursor`] walks one sorted source, [`LevelCursor`] the tables of a level as one source,
//! [`MergingCursor`] several sources as groups of records of one key. What a group's records mean
//! together is decided in one place for all readers, `join`.
//!
//! Nothing here knows snapshots, expiry or purging: whoever drives the cursors does.

pub mod join;
pub mod level;
pub mod loser_tree;
pub mod merging;

pub use join::{JoinBuffers, Joined, JoinedRow, Joiner, join_group};
pub use level::LevelCursor;
pub use loser_tree::LoserTree;
pub use merging::MergingCursor;

use super::error::Result;
use super::record::Record;

/// Walks the records of one sorted source, one record per key, keys ascending.
///
/// A new cursor stands nowhere (`valid` is false). After an error it stands nowhere too, and may be
/// positioned anew.
pub trait Cursor {
    /// Goes to the first record, or to the end if there is none.
    fn seek_to_first(&mut self) -> Result<()>;

    /// Goes to the first record whose key is at or above `key`, or to the end.
    fn seek(&mut self, key: &[u8]) -> Result<()>;

    /// Goes to the next record, or to the end. REQUIRES: `valid()`.
    fn next(&mut self) -> Result<()>;

    /// Whether the cursor stands on a record.
    fn valid(&self) -> bool;

    /// The key of the record. REQUIRES: `valid()`.
    fn key(&self) -> &[u8];

    /// The record. REQUIRES: `valid()`.
    fn record(&self) -> Record<'_>;

    /// The first eight bytes of the key as a big-endian number, zero padded: unequal numbers order
    /// as the keys do. REQUIRES: `valid()`.
    fn prefix(&self) -> u64;
}

impl<C: Cursor + ?Sized> Cursor for Box<C> {
    fn seek_to_first(&mut self) -> Result<()> {
        (**self).seek_to_first()
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        (**self).seek(key)
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        (**self).next()
    }

    #[inline]
    fn valid(&self) -> bool {
        (**self).valid()
    }

    #[inline]
    fn key(&self) -> &[u8] {
        (**self).key()
    }

    #[inline]
    fn record(&self) -> Record<'_> {
        (**self).record()
    }

    #[inline]
    fn prefix(&self) -> u64 {
        (**self).prefix()
    }
}

#[cfg(test)]
mod tests;

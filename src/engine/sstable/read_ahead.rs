//! Brings the blocks of a walk into memory before it comes to them.
//!
//! Mappings are advised as random, since point reads touch single blocks. A walk over what is not
//! in memory would wait for the disk at each block, and pay two calls to the system for each that
//! is to be checked. Whoever has gone through some blocks in a row goes through the next ones, most
//! likely; so from then on it brings in pieces, each twice as large as the one before up to a
//! bound, and has the next one fetched meanwhile. A walk of a few blocks pays nothing for it.
//!
//! 1. What counts as loaded was loaded without an error. Where a piece cannot be, the walk is told
//!    nothing of it, and finds out block by block which one it is.

use std::ops::Range;

/// Blocks in a row after which a walk is taken to go on.
const IN_A_ROW_MIN: u32 = 4;
/// The first piece, in bytes.
const PIECE_BYTES_MIN: usize = 32 << 10;
/// Pieces grow to this: what a system reads ahead in a file that is read in order. A walk that ends
/// has fetched up to twice as much for nothing.
const PIECE_BYTES_MAX: usize = 128 << 10;

/// How far the blocks of a walk are in memory.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Where the next block begins if it is the one behind the last.
    next: usize,
    in_a_row: u32,
    /// Size of the last piece.
    piece: usize,
    /// End of the last piece that could be loaded.
    loaded: usize,
}

impl ReadAhead {
    /// The walk comes to the frame of a block, in a file of `len` bytes. `load` brings the first
    /// range into memory and has the second one fetched. Returns whether the frame was loaded.
    #[inline]
    pub fn reach(
        &mut self,
        frame: &Range<usize>,
        len: usize,
        load: impl FnOnce(Range<usize>, Range<usize>) -> bool,
    ) -> bool {
        if frame.start != self.next {
            *self = Self::default();
        }
        self.next = frame.end;
        if frame.end <= self.loaded {
            return true;
        }
        if self.in_a_row < IN_A_ROW_MIN {
            self.in_a_row += 1;
            return false;
        }
        self.piece = (self.piece * 2).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
        let end = frame.start.saturating_add(self.piece).max(frame.end).min(len);
        let is_loaded = load(frame.start..end, end..(end + self.piece).min(len));
        if is_loaded {
            self.loaded = end;
        }
        is_loaded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4 << 10;

    /// Walks over blocks from `first` on; how many were loaded, and each call.
    fn walk(
        ahead: &mut ReadAhead,
        blocks: Range<usize>,
        len: usize,
        damaged: usize,
    ) -> (usize, Vec<Range<usize>>) {
        let mut calls = Vec::new();
        let loaded = blocks.filter(|block| {
            let frame = block * BLOCK..(block + 1) * BLOCK;
            ahead.reach(&frame, len, |now, next| {
                assert!(frame.start == now.start && frame.end <= now.end, "not the block");
                assert!(now.end == next.start && next.end <= len, "beyond the file");
                let is_sound = !now.contains(&damaged);
                calls.push(now);
                is_sound
            })
        });
        (loaded.count(), calls)
    }

    #[test]
    fn a_long_walk_loads_large_pieces_and_a_short_one_none() {
        let len = 1000 * BLOCK + 100;
        let mut ahead = ReadAhead::default();
        let few = IN_A_ROW_MIN as usize;
        assert_eq!(walk(&mut ahead, 7..7 + few, len, usize::MAX), (0, vec![]));
        let (loaded, calls) = walk(&mut ahead, 7 + few..1000, len, usize::MAX);
        assert_eq!(loaded, 1000 - 7 - few, "all from then on");
        assert!(calls.len() < 1000 * BLOCK / PIECE_BYTES_MAX + 5, "{} calls", calls.len());
        assert_eq!(walk(&mut ahead, 3..3 + few, len, usize::MAX), (0, vec![]), "a walk of its own");
    }

    /// A piece with a place that the disk does not give back says nothing of the blocks before it.
    #[test]
    fn what_could_not_be_loaded_does_not_count_as_loaded() {
        let mut ahead = ReadAhead::default();
        let (loaded, calls) = walk(&mut ahead, 0..200, 200 * BLOCK, 100 * BLOCK + 7);
        let pieces = calls.iter().filter(|piece| !piece.contains(&(100 * BLOCK + 7)));
        let sound: usize = pieces.map(|piece| piece.len() / BLOCK).sum();
        assert_eq!(loaded, sound);
        assert!(loaded > 150 && loaded < 200 - IN_A_ROW_MIN as usize, "{loaded}");
    }
}

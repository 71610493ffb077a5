//! Which parts of the token space have changed since somebody last looked.
//!
//! The token space is cut into `2^18` leaves. Every write marks the leaf of its token after it can
//! be read, and before a fence that comes later returns; who hashes a leaf takes the mark first and
//! reads then. So a mark that is gone means that every write before it was read, or has set the
//! mark again.
//!
//! Marks live in memory only: after a start all leaves are marked.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A leaf is the tokens that share so many top bits.
pub const LEAF_BITS: u32 = 18;
/// Number of leaves.
pub const LEAVES: usize = 1 << LEAF_BITS;

/// The leaf of a token.
pub fn leaf_of(token: u64) -> u32 {
    (token >> (64 - LEAF_BITS)) as u32
}

/// The first and the last token of a leaf.
pub fn tokens_of(leaf: u32) -> (u64, u64) {
    let first = u64::from(leaf) << (64 - LEAF_BITS);
    (first, first | (u64::MAX >> LEAF_BITS))
}

/// One mark for each leaf.
#[derive(Debug)]
pub struct DirtyLeaves(Box<[AtomicU64]>);

impl DirtyLeaves {
    /// All leaves are marked.
    pub fn all() -> Self {
        Self((0..LEAVES / 64).map(|_| AtomicU64::new(u64::MAX)).collect())
    }

    /// Marks the leaf of a token. Call it when the write can be read.
    pub fn mark(&self, token: u64) {
        self.mark_leaf(leaf_of(token));
    }

    /// Marks the leaf of an engine key, which begins with its token.
    pub fn mark_key(&self, engine_key: &[u8]) {
        if let Some(token) = engine_key.first_chunk() {
            self.mark(u64::from_be_bytes(*token));
        }
    }

    /// Marks a leaf.
    pub fn mark_leaf(&self, leaf: u32) {
        let (word, bit) = self.at(leaf);
        // Who takes the mark after this must be able to read the write before it.
        fence(Ordering::SeqCst);
        // Mostly set already under load: a read costs less than a write to a shared line.
        if word.load(Ordering::SeqCst) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Whether a leaf is marked.
    pub fn is_marked(&self, leaf: u32) -> bool {
        let (word, bit) = self.at(leaf);
        word.load(Ordering::SeqCst) & bit != 0
    }

    /// The first marked leaf of some. Its mark stays.
    pub fn next(&self, leaves: Range<u32>) -> Option<u32> {
        let mut leaf = leaves.start;
        while leaf < leaves.end {
            let marks = self.at(leaf).0.load(Ordering::SeqCst) >> (leaf % 64);
            if marks != 0 {
                let found = leaf + marks.trailing_zeros();
                return (found < leaves.end).then_some(found);
            }
            leaf = (leaf / 64 + 1) * 64;
        }
        None
    }

    /// Takes the mark of a leaf; whether there was one. Read the leaf after, not before.
    pub fn take(&self, leaf: u32) -> bool {
        let (word, bit) = self.at(leaf);
        let had = word.load(Ordering::SeqCst) & bit != 0
            && word.fetch_and(!bit, Ordering::SeqCst) & bit != 0;
        fence(Ordering::SeqCst);
        had
    }

    fn at(&self, leaf: u32) -> (&AtomicU64, u64) {
        (&self.0[leaf as usize / 64], 1 << (leaf % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_the_leaf_whose_bounds_hold_it() {
        for token in [0, 1, u64::MAX, 1 << 63, (1 << 46) - 1, 1 << 46, 0x1234_5678_9abc_def0] {
            let (first, last) = tokens_of(leaf_of(token));
            assert!((first..=last).contains(&token), "{token:x}");
        }
        assert_eq!(leaf_of(u64::MAX) as usize, LEAVES - 1);
        assert_eq!(tokens_of(0).1 + 1, tokens_of(1).0);
    }

    #[test]
    fn a_mark_is_taken_once_and_touches_no_other() {
        let leaves = DirtyLeaves::all();
        assert!((0..LEAVES as u32).all(|leaf| leaves.take(leaf)));
        leaves.mark(u64::MAX);
        assert!(leaves.is_marked(leaf_of(u64::MAX)) && !leaves.is_marked(0));
        assert!(!leaves.take(leaf_of(u64::MAX) - 1));
        assert!(leaves.take(leaf_of(u64::MAX)) && !leaves.take(leaf_of(u64::MAX)));
    }
    #[test]
    fn marked_leaves_are_found_across_words_and_within_bounds() {
        let leaves = DirtyLeaves::all();
        assert_eq!(leaves.next(7..9), Some(7));
        (0..LEAVES as u32).for_each(|leaf| _ = leaves.take(leaf));
        assert_eq!(leaves.next(0..LEAVES as u32), None);
        leaves.mark_leaf(130);
        assert_eq!(leaves.next(3..131), Some(130));
        assert_eq!(leaves.next(130..131), Some(130));
        assert_eq!((leaves.next(3..130), leaves.next(131..LEAVES as u32)), (None, None));
    }
}

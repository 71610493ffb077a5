//! The index: which data block may hold a key. Read where it is mapped.
//!
//! A table of `n` blocks has `n - 1` separators. Separator `i` is above every key of block `i` and
//! not above the first key of block `i + 1`, and as short as that allows. The index section, all
//! integers little endian:
//!
//! | bytes | what |
//! |--:|---|
//! | 4 | number of blocks `n`, at least 1 |
//! | 2 | length `s` of the prefix that all separators share |
//! | 2 | zeros |
//! | 8 (n - 1) | per separator: 8 bytes behind the shared prefix, as a number, zero padded |
//! | 8 (n + 1) | per block: where its frame begins in the file; then where the last one ends |
//! | 4 n | per separator: where it begins in `tails`; then the length of `tails` |
//! | s | the shared prefix |
//! | | `tails`: the separators behind the shared prefix |
//!
//! # Invariants
//! 1. Frames of data blocks fill the file from byte 0 to the end named here, without a gap.
//! 2. [`Index::check`] proves the structure once, at open; lookups still check each slice.

use std::cmp::Ordering;
use std::ops::Range;

use super::block_builder::common_prefix_len;
use super::column::{column, lower_bound, upper_bound};
use super::format::{Checked, Damage, TRAILER_BYTES, array_at};
use crate::engine::key::key_prefix;

const HEADER_BYTES: usize = 8;

/// An index section, parsed in constant time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index<'a> {
    prefixes: &'a [[u8; 8]],
    frames: &'a [[u8; 8]],
    ends: &'a [[u8; 4]],
    shared: &'a [u8],
    tails: &'a [u8],
}

impl<'a> Index<'a> {
    /// Parses the section's payload.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Checked<Self> {
        let header: [u8; HEADER_BYTES] = array_at(bytes, 0, "index header")?;
        let [n0, n1, n2, n3, s0, s1, ..] = header;
        let blocks = u32::from_le_bytes([n0, n1, n2, n3]) as usize;
        let shared_len = usize::from(u16::from_le_bytes([s0, s1]));
        let separators = blocks.checked_sub(1).ok_or(Damage::from("index without a block"))?;
        let prefixes = column(bytes, HEADER_BYTES, separators, "index prefixes")?;
        let at = HEADER_BYTES + 8 * separators;
        let frames = column(bytes, at, blocks + 1, "index offsets")?;
        let at = at + 8 * (blocks + 1);
        let ends = column(bytes, at, blocks, "index separators")?;
        let at = at + 4 * blocks;
        let shared = bytes.get(at..at + shared_len).ok_or(Damage::from("index prefix"))?;
        Ok(Self { prefixes, frames, ends, shared, tails: &bytes[at + shared_len..] })
    }

    /// Checks everything that lookups lean on. The data blocks end at `data_end`.
    pub fn check(&self, data_end: u64) -> Checked<()> {
        let mut end = 0;
        for block in 0..self.blocks() {
            let frame = self.frame(block)?;
            if frame.start != end || frame.end < end + TRAILER_BYTES as u64 {
                return Err(format!("frames of block {block} do not follow each other").into());
            }
            end = frame.end;
        }
        if end != data_end {
            return Err("data blocks do not end at the filter".into());
        }
        if self.end(0) != 0 || self.end(self.prefixes.len()) != self.tails.len() {
            return Err("index separators do not fill the section".into());
        }
        for at in 0..self.prefixes.len() {
            let tail = self.tail(at)?;
            if u64::from_le_bytes(self.prefixes[at]) != key_prefix(tail)
                || (at > 0 && self.tail(at - 1)? >= tail)
            {
                return Err(format!("index separator {at} does not ascend").into());
            }
        }
        Ok(())
    }

    /// Number of data blocks.
    #[inline]
    pub fn blocks(&self) -> usize {
        self.ends.len()
    }

    /// Where the frame of `block` stands in the file.
    #[inline]
    pub fn frame(&self, block: usize) -> Checked<Range<u64>> {
        match self.frames.get(block..).and_then(|frames| frames.first_chunk::<2>()) {
            Some([start, end]) => Ok(u64::from_le_bytes(*start)..u64::from_le_bytes(*end)),
            None => Err("block out of the index".into()),
        }
    }

    fn end(&self, separator: usize) -> usize {
        self.ends.get(separator).map_or(usize::MAX, |end| u32::from_le_bytes(*end) as usize)
    }

    fn tail(&self, separator: usize) -> Checked<&'a [u8]> {
        self.tails
            .get(self.end(separator)..self.end(separator + 1))
            .ok_or(Damage::from("separator out of the index"))
    }

    /// The whole separator between the blocks `at` and `at + 1`.
    pub fn separator(&self, at: usize) -> Checked<Vec<u8>> {
        Ok([self.shared, self.tail(at)?].concat())
    }

    /// The only block that may hold `key`: the number of separators that are not above it.
    #[inline]
    pub fn find(&self, key: &[u8]) -> Checked<usize> {
        let Some(suffix) = key.strip_prefix(self.shared) else {
            let head = &key[..key.len().min(self.shared.len())];
            let below = head.cmp(self.shared) == Ordering::Less;
            return Ok(if below { 0 } else { self.prefixes.len() });
        };
        let prefix = key_prefix(suffix);
        let start = lower_bound(self.prefixes, prefix);
        match self.prefixes.get(start) {
            Some(found) if u64::from_le_bytes(*found) == prefix => {
                self.run_bound(start, prefix, suffix)
            }
            _ => Ok(start),
        }
    }

    /// Binary search with whole separators in the run of equal prefixes that begins at `start`.
    fn run_bound(&self, start: usize, prefix: u64, suffix: &[u8]) -> Checked<usize> {
        let (mut low, mut high) = (start, start + upper_bound(&self.prefixes[start..], prefix));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.tail(middle)? <= suffix {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

/// Collects frames and separators.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    separators: Vec<u8>,
    ends: Vec<usize>,
    frames: Vec<u64>,
}

impl IndexBuilder {
    /// Adds the next block. `boundary` is the last key before it and its first key; `None` for
    /// the first block of the table.
    pub fn add(&mut self, frame: Range<u64>, boundary: Option<(&[u8], &[u8])>) {
        debug_assert_eq!(boundary.is_none(), self.frames.is_empty());
        if let Some((before, first)) = boundary {
            debug_assert!(before < first);
            // One byte more than what both have in common tells them apart, since `first` is the
            // greater one.
            self.separators.extend_from_slice(&first[..=common_prefix_len(before, first)]);
            self.ends.push(self.separators.len());
        } else {
            self.frames.push(frame.start);
        }
        self.frames.push(frame.end);
    }

    /// About how long the section would be, in bytes.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.separators.len() + self.ends.len() * 12 + self.frames.len() * 8 + 4
    }

    /// Appends the section's payload. At least one block was added.
    pub fn finish(&self, out: &mut Vec<u8>) {
        let mut shared = 0;
        if let (Some(first), Some(last)) = (self.iter().next(), self.iter().next_back()) {
            shared = common_prefix_len(first, last);
        }
        out.extend_from_slice(&(self.ends.len() as u32 + 1).to_le_bytes());
        out.extend_from_slice(&(shared as u16).to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        for separator in self.iter() {
            out.extend_from_slice(&key_prefix(&separator[shared..]).to_le_bytes());
        }
        for frame in &self.frames {
            out.extend_from_slice(&frame.to_le_bytes());
        }
        let mut end = 0;
        out.extend_from_slice(&0_u32.to_le_bytes());
        for separator in self.iter() {
            end += separator.len() - shared;
            out.extend_from_slice(&(end as u32).to_le_bytes());
        }
        out.extend_from_slice(self.iter().next().map_or(&[], |first| &first[..shared]));
        for separator in self.iter() {
            out.extend_from_slice(&separator[shared..]);
        }
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        (0..self.ends.len()).map(|at| {
            let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.separators[start..self.ends[at]]
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the keys, the index names the block that a linear search finds.
        #[test]
        fn find_names_the_block_of_the_key(
            keys in proptest::collection::btree_set(
                proptest::collection::vec(0_u8..3, 0..12), 1..60),
            probes in proptest::collection::vec(proptest::collection::vec(0_u8..4, 0..13), 20),
            per_block in 1_usize..5,
        ) {
            let keys: Vec<_> = BTreeSet::into_iter(keys).collect();
            let blocks: Vec<_> = keys.chunks(per_block).collect();
            let mut builder = IndexBuilder::default();
            for (at, block) in blocks.iter().enumerate() {
                let before = at.checked_sub(1).and_then(|at| blocks[at].last());
                let start = at as u64 * 100;
                let boundary = before.map(|before| (before.as_slice(), block[0].as_slice()));
                builder.add(start..start + 100, boundary);
            }
            let mut bytes = Vec::new();
            builder.finish(&mut bytes);
            let index = Index::parse(&bytes).unwrap();
            index.check(blocks.len() as u64 * 100).unwrap();
            prop_assert_eq!(index.blocks(), blocks.len());
            for key in keys.iter().chain(&probes) {
                let block = index.find(key).unwrap();
                let expected = blocks.iter().position(|b| b.contains(key));
                if let Some(expected) = expected {
                    prop_assert_eq!(block, expected);
                }
                // What follows the block is above the key, what precedes it is below.
                prop_assert!(blocks.get(block + 1).is_none_or(|next| &next[0] > key));
                prop_assert!(block == 0 || blocks[block - 1].last().unwrap() < key);
            }
        }

        /// Random bytes are refused or answer something; they never panic.
        #[test]
        fn garbage_is_an_error(bytes: Vec<u8>, key: Vec<u8>) {
            if let Ok(index) = Index::parse(&bytes) {
                let _ = index.check(100);
                let _ = index.find(&key);
                let _ = index.separator(0);
            }
        }
    }
}

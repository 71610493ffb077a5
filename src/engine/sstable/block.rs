//! Reads a data block where it lies: in the mapping, or in a buffer it was decompressed into.
//!
//! A block (the payload of its frame), all integers little endian:
//!
//! | bytes | what |
//! |--:|---|
//! | 4 | number of entries `n`, at least 1 |
//! | 2 | length `s` of the prefix that all keys of the block share |
//! | 1 | bytes of an offset `w`: 2, or 4 in a block longer than 65,535 bytes |
//! | 1 | zero |
//! | 8 n | per entry: the 8 key bytes behind the shared prefix, as a number, zero padded |
//! | w (n + 1) | per entry: where its record begins in the block; then where the last one ends |
//! | s | the shared prefix |
//! | | records |
//!
//! and a record, whose length follows from the column of offsets:
//!
//! | bytes | what |
//! |--:|---|
//! | varint | key length behind the shared prefix, `k`, times 2; + 1 for a Full |
//! | max(k - 8, 0) | the key behind the shared prefix and the 8 bytes in the column |
//! | rest | the row |
//!
//! # Invariants
//! 1. Keys ascend strictly; so the column of prefixes ascends, with equals next to each other.
//! 2. Nothing read here is trusted for memory safety or termination: every slice is checked, and
//!    damage is an answer. [`Block::check`] proves the whole structure once, at the first touch.

use std::cmp::Ordering;

use super::column::{column, lower_bound, upper_bound};
use super::format::{Checked, Damage, array_at};
use crate::engine::key::key_prefix;
use crate::engine::record::Kind;
use crate::engine::varint::split_varint;

/// Bytes before the columns.
pub(super) const BLOCK_HEADER_BYTES: usize = 8;
/// Bytes of an offset.
pub(super) const NARROW: u8 = 2;
const WIDE: u8 = 4;

/// Bytes of an offset in a block of `len` bytes. The builder passes what its length would be with
/// narrow ones: wide ones only make it longer, so the reader, who knows the length, finds the same.
pub(super) fn offset_bytes(len: usize) -> u8 {
    if len <= usize::from(u16::MAX) { NARROW } else { WIDE }
}

/// A block, parsed in constant time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a> {
    bytes: &'a [u8],
    prefixes: &'a [[u8; 8]],
    offsets: Offsets<'a>,
    shared: &'a [u8],
}

/// The column of offsets.
#[derive(Clone, Copy, Debug)]
enum Offsets<'a> {
    Narrow(&'a [[u8; 2]]),
    Wide(&'a [[u8; 4]]),
}

impl<'a> Offsets<'a> {
    #[inline]
    fn parse(bytes: &'a [u8], at: usize, count: usize, width: u8) -> Checked<Self> {
        match width {
            NARROW => column(bytes, at, count, "block offsets").map(Self::Narrow),
            WIDE => column(bytes, at, count, "block offsets").map(Self::Wide),
            _ => Err(Damage::from("block header")),
        }
    }

    #[inline]
    fn get(&self, index: usize) -> usize {
        match self {
            Self::Narrow(column) => column.get(index).map(|at| u16::from_le_bytes(*at).into()),
            Self::Wide(column) => column.get(index).map(|at| u32::from_le_bytes(*at) as usize),
        }
        .unwrap_or(usize::MAX)
    }
}

/// One entry of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// The key bytes in the column, of which the first `min(suffix_len, 8)` count.
    pub prefix: u64,
    /// Key length behind the block's shared prefix.
    pub suffix_len: usize,
    /// The key behind the bytes in the column.
    pub rest: &'a [u8],
    /// What the record claims.
    pub kind: Kind,
    /// Where the row begins in the block.
    pub row_start: usize,
    /// The row.
    pub row: &'a [u8],
}

impl<'a> Block<'a> {
    /// Parses the header. `bytes` may go on behind the block (padding, trailer).
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Checked<Self> {
        let header: [u8; BLOCK_HEADER_BYTES] = array_at(bytes, 0, "block header")?;
        let [n0, n1, n2, n3, s0, s1, width, _] = header;
        let count = u32::from_le_bytes([n0, n1, n2, n3]) as usize;
        let shared_len = usize::from(u16::from_le_bytes([s0, s1]));
        let prefixes = column(bytes, BLOCK_HEADER_BYTES, count, "block prefixes")?;
        let at = BLOCK_HEADER_BYTES + 8 * count;
        let offsets = Offsets::parse(bytes, at, count + 1, width)?;
        let at = at + usize::from(width) * (count + 1);
        let shared = bytes.get(at..at + shared_len).ok_or(Damage::from("block prefix"))?;
        Ok(Self { bytes, prefixes, offsets, shared })
    }

    /// Checks everything that lookups and iteration lean on. `len` is the block's own length.
    pub fn check(&self, len: usize) -> Checked<()> {
        let width = offset_bytes(len);
        if self.prefixes.is_empty() || self.bytes.get(6..8) != Some(&[width, 0]) {
            return Err("block header".into());
        }
        let offsets = usize::from(width) * (self.len() + 1);
        let records = BLOCK_HEADER_BYTES + 8 * self.len() + offsets + self.shared.len();
        if self.offsets.get(0) != records || self.offsets.get(self.len()) != len {
            return Err("records do not fill the block".into());
        }
        let mut before: Option<Entry<'_>> = None;
        for index in 0..self.len() {
            let entry = self.entry(index)?;
            if before.is_some_and(|before| before.compare(&entry) != Ordering::Less) {
                return Err(format!("key of entry {index} does not ascend").into());
            }
            before = Some(entry);
        }
        Ok(())
    }

    /// Number of entries.
    #[inline]
    pub fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// The prefix that all keys share.
    #[inline]
    pub fn shared(&self) -> &'a [u8] {
        self.shared
    }

    /// The entry `index`.
    #[inline]
    pub fn entry(&self, index: usize) -> Checked<Entry<'a>> {
        let damage = || Damage::from("record out of its block");
        let prefix = self.prefixes.get(index).ok_or_else(damage)?;
        let (start, end) = (self.offsets.get(index), self.offsets.get(index + 1));
        let record = self.bytes.get(start..end).ok_or_else(damage)?;
        let (head, rest) = split_varint(record).ok_or_else(damage)?;
        let kind = if head & 1 == Kind::Full as u64 { Kind::Full } else { Kind::Delta };
        let suffix_len = usize::try_from(head >> 1).map_err(|_| damage())?;
        let (rest, row) = rest.split_at_checked(suffix_len.saturating_sub(8)).ok_or_else(damage)?;
        let row_start = end - row.len();
        Ok(Entry { prefix: u64::from_le_bytes(*prefix), suffix_len, rest, kind, row_start, row })
    }

    /// The entry of `key`.
    #[inline]
    pub fn find(&self, key: &[u8]) -> Checked<Option<Entry<'a>>> {
        let Some(suffix) = key.strip_prefix(self.shared) else { return Ok(None) };
        let probe = Probe::new(suffix);
        let mut index = lower_bound(self.prefixes, probe.prefix);
        // Nearly always at most one candidate; a run of equals is searched in `run_bound`.
        if self.run_is_long(index, probe.prefix) {
            index = self.run_bound(index, &probe)?;
        }
        match self.prefixes.get(index) {
            Some(found) if u64::from_le_bytes(*found) == probe.prefix => {
                let entry = self.entry(index)?;
                Ok((probe.compare(&entry) == Ordering::Equal).then_some(entry))
            }
            _ => Ok(None),
        }
    }

    /// The number of entries whose keys are below `key`.
    pub fn lower_bound(&self, key: &[u8]) -> Checked<usize> {
        let head = &key[..key.len().min(self.shared.len())];
        match head.cmp(self.shared) {
            Ordering::Less => return Ok(0),
            Ordering::Greater => return Ok(self.len()),
            Ordering::Equal => {}
        }
        let probe = Probe::new(&key[self.shared.len()..]);
        self.run_bound(lower_bound(self.prefixes, probe.prefix), &probe)
    }

    /// Whether the entry behind `index` has `prefix` too.
    #[inline]
    fn run_is_long(&self, index: usize, prefix: u64) -> bool {
        self.prefixes.get(index + 1).is_some_and(|next| u64::from_le_bytes(*next) == prefix)
    }

    /// Binary search with whole keys in the run of equal prefixes that begins at `start`.
    fn run_bound(&self, start: usize, probe: &Probe<'_>) -> Checked<usize> {
        let (mut low, mut high) =
            (start, start + upper_bound(&self.prefixes[start..], probe.prefix));
        while low < high {
            let middle = low + (high - low) / 2;
            if probe.compare(&self.entry(middle)?) == Ordering::Greater {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

impl Entry<'_> {
    /// Orders two entries of one block by key.
    fn compare(&self, other: &Self) -> Ordering {
        (self.prefix, self.suffix_len.min(8), self.rest).cmp(&(
            other.prefix,
            other.suffix_len.min(8),
            other.rest,
        ))
    }

    /// Makes `key`, which holds the shared prefix and perhaps more, this entry's key.
    #[inline]
    pub fn write_key(&self, shared_len: usize, key: &mut Vec<u8>) {
        key.truncate(shared_len);
        key.extend_from_slice(&self.prefix.to_be_bytes()[..self.suffix_len.min(8)]);
        key.extend_from_slice(self.rest);
    }
}

/// A key behind the shared prefix, taken apart as entries are.
struct Probe<'a> {
    prefix: u64,
    suffix: &'a [u8],
}

impl<'a> Probe<'a> {
    #[inline]
    fn new(suffix: &'a [u8]) -> Self {
        Self { prefix: key_prefix(suffix), suffix }
    }

    /// Orders the probe against an entry of the same prefix.
    ///
    /// With equal numbers the shorter key is the smaller one as long as one of them ends within
    /// the eight bytes: what the other has there are zeros.
    #[inline]
    fn compare(&self, entry: &Entry<'_>) -> Ordering {
        match self.suffix.len().min(8).cmp(&entry.suffix_len.min(8)) {
            Ordering::Equal => self.suffix.get(8..).unwrap_or_default().cmp(entry.rest),
            unequal => unequal,
        }
    }
}

//! Collects the records of one data block and lays them out as `block` reads them.
//!
//! The shared prefix is known only with the last key, so keys and rows wait in two buffers until
//! [`BlockBuilder::finish`] writes the columns.

use super::block::{BLOCK_HEADER_BYTES, NARROW, offset_bytes};
use crate::engine::key::key_prefix;
use crate::engine::record::Kind;
use crate::engine::varint::{put_varint, varint_len};

/// Columns and record header of one entry with a short key in a short block, in bytes.
const ENTRY_BYTES: usize = 8 + NARROW as usize + 1;

/// A block being built. Its buffers are kept from block to block.
#[derive(Debug, Default)]
pub(super) struct BlockBuilder {
    keys: Vec<u8>,
    rows: Vec<u8>,
    entries: Vec<Pending>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    key_end: usize,
    row_end: usize,
    kind: Kind,
}

impl BlockBuilder {
    /// Adds a record. Keys ascend; the caller has checked it, and the lengths.
    pub fn add(&mut self, key: &[u8], kind: Kind, row: &[u8]) {
        self.keys.extend_from_slice(key);
        self.rows.extend_from_slice(row);
        let (key_end, row_end) = (self.keys.len(), self.rows.len());
        self.entries.push(Pending { key_end, row_end, kind });
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// About how long the block would be, in bytes: the shared prefix is counted for each key.
    pub fn bytes(&self) -> usize {
        BLOCK_HEADER_BYTES + self.keys.len() + self.rows.len() + self.entries.len() * ENTRY_BYTES
    }

    /// The key added last. Empty if there is none.
    pub fn last_key(&self) -> &[u8] {
        let start = self.entries.len().checked_sub(2).map_or(0, |i| self.entries[i].key_end);
        &self.keys[start..]
    }

    /// Appends the block to `out` and starts the next one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let start = out.len();
        let first_end = self.entries.first().map_or(0, |entry| entry.key_end);
        let shared = common_prefix_len(&self.keys[..first_end], self.last_key());
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        out.extend_from_slice(&(shared as u16).to_le_bytes());
        let records: usize = self.iter(shared).map(|(key, _, row)| record_bytes(key, row)).sum();
        let columns = |width: u8| 8 * self.len() + usize::from(width) * (self.len() + 1);
        let narrow = BLOCK_HEADER_BYTES + columns(NARROW) + shared + records;
        let width = offset_bytes(narrow);
        out.extend_from_slice(&[width, 0]);
        for (key, ..) in self.iter(shared) {
            out.extend_from_slice(&key_prefix(key).to_le_bytes());
        }
        let mut offset = BLOCK_HEADER_BYTES + columns(width) + shared;
        for (key, _, row) in self.iter(shared) {
            out.extend_from_slice(&(offset as u32).to_le_bytes()[..usize::from(width)]);
            offset += record_bytes(key, row);
        }
        out.extend_from_slice(&(offset as u32).to_le_bytes()[..usize::from(width)]);
        out.extend_from_slice(&self.keys[..shared]);
        for (key, kind, row) in self.iter(shared) {
            put_varint(out, head(key, kind));
            out.extend_from_slice(key.get(8..).unwrap_or_default());
            out.extend_from_slice(row);
        }
        debug_assert_eq!(out.len() - start, offset);
        self.keys.clear();
        self.rows.clear();
        self.entries.clear();
    }

    /// Keys without the first `shared` bytes, kinds and rows.
    fn iter(&self, shared: usize) -> impl Iterator<Item = (&[u8], Kind, &[u8])> {
        let mut before = (0, 0);
        self.entries.iter().map(move |entry| {
            let key = &self.keys[before.0 + shared..entry.key_end];
            let row = &self.rows[before.1..entry.row_end];
            before = (entry.key_end, entry.row_end);
            (key, entry.kind, row)
        })
    }
}

/// What a record begins with: its key behind the shared prefix is `key`.
fn head(key: &[u8], kind: Kind) -> u64 {
    (key.len() as u64) << 1 | kind as u64
}

/// Bytes of a record.
fn record_bytes(key: &[u8], row: &[u8]) -> usize {
    varint_len(head(key, Kind::Full)) + key.len().saturating_sub(8) + row.len()
}

/// How many leading bytes two keys have in common.
pub(super) fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

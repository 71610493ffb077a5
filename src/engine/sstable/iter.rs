//! Walks a table in key order.
//!
//! The cursor owns a reference to its table. The key is put together in a buffer (a block stores
//! it in pieces); the row stays where it is. A cursor that verifies reads each block once, and
//! gives the memory of what it has read back as it goes.

use std::ops::Range;
use std::sync::Arc;

use super::block::Block;
use super::format::Checked;
use super::reader::{BlockBytes, Table};
use crate::engine::error::Result;
use crate::engine::iter::Cursor;
use crate::engine::key::key_prefix;
use crate::engine::record::{Kind, Record};

/// A verifying cursor gives back what it has read in pieces of this size.
const MOVE_ON_BYTES: usize = 1 << 20;

/// A cursor over one table.
#[derive(Debug)]
pub struct TableIter {
    table: Arc<Table>,
    verify: bool,
    /// What lies before was read and given back.
    passed: usize,

    /// The block the cursor is in.
    block: usize,
    /// Its bytes if it was decompressed; else they are in the mapping.
    owned: Option<Vec<u8>>,
    /// Its frame in the mapping.
    frame: Range<usize>,
    /// Number of entries of the block, and which one the cursor is on.
    count: usize,
    entry: usize,
    shared_len: usize,

    valid: bool,
    key: Vec<u8>,
    kind: Kind,
    /// Where the row is in the block.
    row: Range<usize>,
}

impl TableIter {
    pub(super) fn new(table: Arc<Table>, verify: bool) -> Self {
        Self {
            table,
            verify,
            passed: 0,
            block: 0,
            owned: None,
            frame: 0..0,
            count: 0,
            entry: 0,
            shared_len: 0,
            valid: false,
            key: Vec::new(),
            kind: Kind::Delta,
            row: 0..0,
        }
    }
}

impl TableIter {
    /// Makes `block` the current one, checking it if need be.
    fn enter(&mut self, block: usize) -> Result<()> {
        let corrupt = |damage| self.table.block_corruption(block, damage);
        let frame = self.table.index().and_then(|index| index.frame(block)).map_err(corrupt)?;
        let bytes = self.table.block(block, self.verify)?;
        let parsed = Block::parse(&bytes).map_err(corrupt)?;
        self.count = parsed.len();
        self.shared_len = parsed.shared().len();
        self.key.clear();
        self.key.extend_from_slice(parsed.shared());
        self.owned = match bytes {
            BlockBytes::Owned(bytes) => Some(bytes),
            BlockBytes::Mapped(_) => None,
        };
        self.frame = frame.start as usize..frame.end as usize;
        self.block = block;
        self.entry = 0;
        if self.verify && self.frame.start >= self.passed + MOVE_ON_BYTES {
            self.move_on(self.frame.start);
        }
        Ok(())
    }

    fn move_on(&mut self, to: usize) {
        self.table.move_on(self.passed..to);
        self.passed = to;
    }

    /// Goes to `entry` of the current block, or to the first of the next one if there is none.
    fn settle(&mut self, entry: usize) -> Result<()> {
        self.entry = entry;
        if entry >= self.count {
            if self.block + 1 >= self.table.blocks() {
                return Ok(());
            }
            self.enter(self.block + 1)?;
        }
        self.load().map_err(|damage| self.table.block_corruption(self.block, damage))?;
        self.valid = true;
        Ok(())
    }

    #[inline]
    fn load(&mut self) -> Checked<()> {
        // Not `self.bytes()`: the key is written while the bytes are borrowed.
        let bytes = match &self.owned {
            Some(bytes) => bytes,
            None => self.table.mapped(self.frame.clone()),
        };
        let entry = Block::parse(bytes)?.entry(self.entry)?;
        entry.write_key(self.shared_len, &mut self.key);
        self.kind = entry.kind;
        self.row = entry.row_start..entry.row_start + entry.row.len();
        Ok(())
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.owned {
            Some(bytes) => bytes,
            None => self.table.mapped(self.frame.clone()),
        }
    }
}

impl Drop for TableIter {
    fn drop(&mut self) {
        if self.verify && self.frame.end > self.passed {
            self.move_on(self.frame.end);
        }
    }
}

impl Cursor for TableIter {
    fn seek_to_first(&mut self) -> Result<()> {
        self.valid = false;
        self.enter(0)?;
        self.settle(0)
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.valid = false;
        let block = self.table.index().and_then(|index| index.find(key));
        let block = block.map_err(|damage| self.table.index_corruption(damage))?;
        self.enter(block)?;
        let entry = Block::parse(self.bytes()).and_then(|block| block.lower_bound(key));
        let entry = entry.map_err(|damage| self.table.block_corruption(block, damage))?;
        self.settle(entry)
    }

    fn next(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        self.valid = false;
        self.settle(self.entry + 1)
    }

    #[inline]
    fn valid(&self) -> bool {
        self.valid
    }

    #[inline]
    fn key(&self) -> &[u8] {
        &self.key
    }

    #[inline]
    fn record(&self) -> Record<'_> {
        Record { kind: self.kind, row: &self.bytes()[self.row.clone()] }
    }

    #[inline]
    fn prefix(&self) -> u64 {
        key_prefix(&self.key)
    }
}

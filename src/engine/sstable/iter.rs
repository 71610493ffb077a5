//! Walks a table in key order.
//!
//! The cursor owns a reference to its table. The key is put together in a buffer (a block stores
//! it in pieces); the row stays where it is. A cursor that verifies reads each block once, and
//! gives the memory of what it has read back as it goes. One that has gone through some blocks has
//! the next ones brought in ahead of it ([`ReadAhead`]). Keys that were excised from the table are
//! passed by with a seek to the end of their range; a block that can hold no other is not touched.

use std::ops::Range;
use std::sync::Arc;

use super::block::Block;
use super::format::Checked;
use super::read_ahead::ReadAhead;
use super::reader::{BlockBytes, Table};
use crate::engine::error::Result;
use crate::engine::iter::Cursor;
use crate::engine::key::key_prefix;
use crate::engine::ranges::KeyRanges;
use crate::engine::record::{Kind, Record};

/// A verifying cursor gives back what it has read in pieces of this size.
const GIVE_BACK_BYTES: usize = 1 << 20;

/// A cursor over one table.
#[derive(Debug)]
pub struct TableIter {
    table: Arc<Table>,
    verify: bool,
    /// What lies before was read and given back.
    passed: usize,
    ahead: ReadAhead,
    /// Keys to leave out, and how many of their ranges are behind the cursor.
    excised: KeyRanges,
    ranges_passed: usize,

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
            ahead: ReadAhead::default(),
            excised: KeyRanges::default(),
            ranges_passed: 0,
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
    /// The same cursor, which stands nowhere, without these keys either.
    #[must_use]
    pub fn without(mut self, keys: &KeyRanges) -> Self {
        match (self.excised.is_empty(), keys.is_empty()) {
            (true, _) => self.excised = keys.clone(),
            (false, true) => {}
            (false, false) => self.excised = self.excised.union(keys),
        }
        self
    }

    /// Makes `block` the current one, checking it if need be.
    fn enter(&mut self, block: usize) -> Result<()> {
        let corrupt = |damage| self.table.block_corruption(block, damage);
        let (frame, bytes) = self.table.next_block(block, self.verify, &mut self.ahead)?;
        let parsed = Block::parse(&bytes).map_err(corrupt)?;
        self.count = parsed.len();
        self.shared_len = parsed.shared().len();
        self.key.clear();
        self.key.extend_from_slice(parsed.shared());
        self.owned = match bytes {
            BlockBytes::Owned(bytes) => Some(bytes),
            BlockBytes::Mapped(_) => None,
        };
        self.frame = frame;
        self.block = block;
        self.entry = 0;
        if self.verify && self.frame.start >= self.passed + GIVE_BACK_BYTES {
            self.give_back(self.frame.start);
        }
        Ok(())
    }

    fn give_back(&mut self, to: usize) {
        self.table.give_back(self.passed..to);
        self.passed = to;
    }

    /// Goes to `entry` of the current block, or to the first of the next one if there is none.
    fn settle(&mut self, entry: usize) -> Result<()> {
        self.entry = entry;
        while self.entry >= self.count {
            if self.block + 1 >= self.table.blocks() {
                return Ok(());
            }
            if self.excised.is_empty() {
                self.enter(self.block + 1)?;
            } else if !self.enter_next()? {
                return Ok(());
            }
        }
        self.load().map_err(|damage| self.table.block_corruption(self.block, damage))?;
        self.valid = true;
        Ok(())
    }

    /// [`TableIter::enter`] of the next block that may hold a key that is not excised, at the first
    /// such key. `false`: there is none.
    fn enter_next(&mut self) -> Result<bool> {
        let separator = self.table.trusted_index()?.separator(self.block);
        let separator = separator.map_err(|damage| self.table.index_corruption(damage))?;
        match self.excised.holding(&separator).map(|(_, end)| end.clone()) {
            None => self.enter(self.block + 1)?,
            Some(None) => return Ok(false),
            Some(Some(end)) => self.enter_at(&end)?,
        }
        Ok(true)
    }

    /// [`TableIter::enter`] of the block that may hold `key`, at the first key at or above it.
    fn enter_at(&mut self, key: &[u8]) -> Result<()> {
        if *self.table.properties().largest < *key {
            (self.block, self.count, self.entry) = (self.table.blocks() - 1, 0, 0);
            return Ok(());
        }
        let block = self.table.block_of(key)?;
        self.enter(block)?;
        let entry = Block::parse(self.bytes()).and_then(|block| block.lower_bound(key));
        self.entry = entry.map_err(|damage| self.table.block_corruption(block, damage))?;
        Ok(())
    }

    /// Goes on until the cursor stands on a key that is not excised, or at the end.
    #[inline]
    fn pass_excised(&mut self) -> Result<()> {
        if self.excised.is_empty() { Ok(()) } else { self.pass_ranges() }
    }

    fn pass_ranges(&mut self) -> Result<()> {
        while self.valid {
            let ahead = self.excised.ranges().get(self.ranges_passed);
            let Some((_, end)) = ahead.filter(|(start, _)| **start <= *self.key) else {
                return Ok(());
            };
            match end.clone() {
                None => self.valid = false,
                Some(end) => {
                    if *self.key < *end {
                        self.find(&end)?;
                    }
                    self.ranges_passed += 1;
                }
            }
        }
        Ok(())
    }

    /// Goes to the first record at or above `key`, excised or not.
    fn find(&mut self, key: &[u8]) -> Result<()> {
        self.valid = false;
        self.enter_at(key)?;
        self.settle(self.entry)
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
            self.give_back(self.frame.end);
        }
    }
}

impl Cursor for TableIter {
    fn seek_to_first(&mut self) -> Result<()> {
        if !self.excised.is_empty() {
            return self.seek(&[]);
        }
        self.valid = false;
        self.enter(0)?;
        self.settle(0)
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        if self.excised.is_empty() {
            return self.find(key);
        }
        self.valid = false;
        // Below it there is none: whether the first block is to be touched is asked of its keys.
        let key = self.table.properties().smallest.clone().max(key.into());
        self.ranges_passed = self.excised.before(&key);
        match self.excised.holding(&key).map(|(_, end)| end.clone()) {
            None => self.find(&key)?,
            Some(None) => return Ok(()),
            Some(Some(end)) => self.find(&end)?,
        }
        self.pass_excised()
    }

    fn next(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        self.valid = false;
        self.settle(self.entry + 1)?;
        self.pass_excised()
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

//! A cursor over the tables of one level, which do not overlap.
//!
//! It is one sorted source, whatever the number of tables: a merge over levels pays one slot a
//! level. The cursor of a table is made when the walk reaches it, so a short scan of a level of a
//! thousand tables touches one of them.

use std::sync::Arc;

use super::Cursor;
use crate::engine::error::Result;
use crate::engine::record::Record;
use crate::engine::sstable::TableIter;
use crate::engine::version::TableRef;

/// A cursor over disjoint tables in ascending order.
#[derive(Debug)]
pub struct LevelCursor {
    tables: Arc<[TableRef]>,
    verify: bool,
    /// The table the cursor is in.
    at: usize,
    /// Its cursor; kept from seek to seek within the table.
    iter: Option<TableIter>,
}

impl LevelCursor {
    /// A cursor over `tables`. REQUIRES: each table's keys are above those of the table before.
    ///
    /// With `verify` the checksum of every block is checked again, as compaction wants it.
    pub fn new(tables: Arc<[TableRef]>, verify: bool) -> Self {
        debug_assert!(
            tables.is_sorted_by(|a, b| a.meta.largest < b.meta.smallest),
            "tables of a level overlap"
        );
        Self { tables, verify, at: 0, iter: None }
    }

    /// Goes into table `at`, if there is one; `position` places the cursor in it. Where that finds
    /// nothing it goes on to the first record of the tables behind.
    fn enter(
        &mut self,
        at: usize,
        position: impl FnOnce(&mut TableIter) -> Result<()>,
    ) -> Result<()> {
        if at != self.at {
            self.iter = None;
            self.at = at;
        }
        let Some(table) = self.tables.get(at) else { return Ok(()) };
        position(self.iter.get_or_insert_with(|| cursor_of(table, self.verify)))?;
        self.pass_ended()
    }

    /// Goes on from a table that has no more records. One may have none at all: what it holds may
    /// be excised.
    #[inline]
    fn pass_ended(&mut self) -> Result<()> {
        while self.iter.as_ref().is_some_and(|iter| !iter.valid()) {
            let Some(table) = self.tables.get(self.at + 1) else { return Ok(()) };
            let mut iter = cursor_of(table, self.verify);
            self.at += 1;
            self.iter = None;
            iter.seek_to_first()?;
            self.iter = Some(iter);
        }
        Ok(())
    }

    /// The cursor of the current table. The callers' contract says that there is one.
    #[inline]
    fn current(&self) -> &TableIter {
        self.iter.as_ref().expect("REQUIRES valid(), and a valid cursor stands in a table")
    }
}

fn cursor_of(table: &TableRef, verify: bool) -> TableIter {
    if verify { table.iter_verified() } else { table.iter() }
}

impl Cursor for LevelCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        self.enter(0, TableIter::seek_to_first)
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        let at = self.tables.partition_point(|table| &*table.meta.largest < key);
        self.enter(at, |iter| iter.seek(key))
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        let Some(iter) = &mut self.iter else { return Ok(()) };
        iter.next()?;
        if iter.valid() {
            return Ok(());
        }
        self.pass_ended()
    }

    #[inline]
    fn valid(&self) -> bool {
        self.iter.as_ref().is_some_and(Cursor::valid)
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.current().key()
    }

    #[inline]
    fn record(&self) -> Record<'_> {
        self.current().record()
    }

    #[inline]
    fn prefix(&self) -> u64 {
        self.current().prefix()
    }
}

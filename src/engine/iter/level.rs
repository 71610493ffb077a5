//! A cursor over the tables of one level, which do not overlap.
//!
//! It is one sorted source, whatever the number of tables: a merge over levels pays one slot a
//! level. The cursor of a table is made when the walk reaches it, so a short scan of a level of a
//! thousand tables touches one of them.

use std::sync::Arc;

use super::Cursor;
use crate::engine::error::Result;
use crate::engine::record::Record;
use crate::engine::sstable::{Table, TableIter};

/// A cursor over disjoint tables in ascending order.
#[derive(Debug)]
pub struct LevelCursor {
    tables: Arc<[Arc<Table>]>,
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
    pub fn new(tables: Arc<[Arc<Table>]>, verify: bool) -> Self {
        debug_assert!(
            tables.is_sorted_by(|a, b| a.properties().largest < b.properties().smallest),
            "tables of a level overlap"
        );
        Self { tables, verify, at: 0, iter: None }
    }

    /// Goes into table `at`, if there is one; `position` places the cursor in it.
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
        let iter = self
            .iter
            .get_or_insert_with(|| if self.verify { table.iter_verified() } else { table.iter() });
        position(iter)
    }

    /// The cursor of the current table. The callers' contract says that there is one.
    #[inline]
    fn current(&self) -> &TableIter {
        self.iter.as_ref().expect("REQUIRES valid(), and a valid cursor stands in a table")
    }
}

impl Cursor for LevelCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        self.enter(0, TableIter::seek_to_first)
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        // No table is empty, so the first one that ends at or above the key has the answer.
        let at = self.tables.partition_point(|table| &*table.properties().largest < key);
        self.enter(at, |iter| iter.seek(key))
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        let Some(iter) = &mut self.iter else { return Ok(()) };
        iter.next()?;
        if iter.valid() {
            return Ok(());
        }
        self.enter(self.at + 1, TableIter::seek_to_first)
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

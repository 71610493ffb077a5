//! Where one output table ends and the next begins, and who removes outputs that come to nothing.
//!
//! # Invariants
//! 1. A table ends between two keys, never inside one: outputs of a level share no key.
//! 2. No output overlaps much more than ten tables' worth of the level below, or its own compaction
//!    would be large. A table that is half full ends where a table below ends: then it overlaps
//!    that one and not also the next.

use std::path::PathBuf;
use std::sync::Arc;

use super::picker::GRANDPARENTS_MAX;
use crate::engine::error::{Error, Result};
use crate::engine::sstable::{TableBuilder, TableOptions};
use crate::engine::version::{BuiltTable, TableMeta, VersionSet};
use crate::engine::vfs::{File, Vfs};

/// Decides where to cut. Keys come in ascending order.
#[derive(Debug)]
pub struct OutputCutter<'a> {
    /// The tables of the level below the output level, ascending.
    grandparents: &'a [Arc<TableMeta>],
    table_bytes: u64,
    /// The first grandparent that ends at or above the last key.
    at: usize,
    /// Bytes of grandparents that the current output has passed.
    overlap: u64,
}

impl<'a> OutputCutter<'a> {
    /// A cutter of tables of about `table_bytes`.
    pub fn new(grandparents: &'a [Arc<TableMeta>], table_bytes: u64) -> Self {
        Self { grandparents, table_bytes, at: 0, overlap: 0 }
    }

    /// Whether the output, which is `bytes` long so far, ends before `key`. 0 bytes: there is none.
    pub fn ends_before(&mut self, key: &[u8], bytes: u64) -> bool {
        let mut crossed = false;
        while let Some(table) = self.grandparents.get(self.at).filter(|it| *it.largest < *key) {
            self.overlap += table.bytes;
            self.at += 1;
            crossed = true;
        }
        if bytes == 0 {
            self.overlap = 0;
            return false;
        }
        let ends = bytes >= self.table_bytes
            || crossed && bytes >= self.table_bytes / 2
            || self.overlap > self.table_bytes.saturating_mul(GRANDPARENTS_MAX);
        if ends {
            self.overlap = 0;
        }
        ends
    }
}

/// Output tables of a job. Dropped before [`Outputs::keep`] they are removed again; what cannot be
/// removed is an orphan for the next open.
#[derive(Debug)]
pub(super) struct Outputs<'a> {
    pub vfs: &'a dyn Vfs,
    pub versions: &'a VersionSet,
    pub options: TableOptions,
    pub level: u8,
    pub epoch: u64,
    pub now_ms: u64,
    pub tables: Vec<TableMeta>,
    pub created: Vec<PathBuf>,
}

/// The output being written.
#[derive(Debug)]
pub(super) struct Output {
    pub builder: TableBuilder,
    pub purgeable: u64,
    file: Arc<dyn File>,
    path: PathBuf,
    number: u64,
}

impl Outputs<'_> {
    pub fn start(&mut self) -> Result<Output> {
        let number = self.versions.allocate_file_number();
        let path = self.versions.table_path(number);
        let file = self.vfs.create(&path).map_err(Error::io("create", &path))?;
        self.created.push(path.clone());
        let builder = TableBuilder::new(Arc::clone(&file), path.clone(), number, self.options);
        Ok(Output { builder, purgeable: 0, file, path, number })
    }

    /// Completes and syncs a table. Its name is not durable before the directory is synced.
    pub fn finish(&mut self, output: Output) -> Result<()> {
        let Output { builder, purgeable, file, path, number } = output;
        let properties = builder.finish()?;
        let bytes = file.len().map_err(Error::io("measure", &path))?;
        let built = BuiltTable { properties: &properties, bytes, purgeable };
        self.tables.push(TableMeta::of_built(number, self.level, self.epoch, self.now_ms, &built));
        Ok(())
    }

    pub fn keep(mut self) -> Vec<TableMeta> {
        self.created.clear();
        std::mem::take(&mut self.tables)
    }
}

impl Drop for Outputs<'_> {
    fn drop(&mut self) {
        for path in &self.created {
            let _ = self.vfs.remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ranges::KeyRanges;

    fn table(number: u64, smallest: &str, largest: &str, bytes: u64) -> Arc<TableMeta> {
        Arc::new(TableMeta {
            number,
            level: 6,
            epoch: 0,
            bytes,
            entries: 1,
            deltas: 0,
            overwrites: 0,
            purgeable: 0,
            live_time_min: 0,
            time_max: 0,
            created_ms: 0,
            demote_full: false,
            smallest: smallest.as_bytes().into(),
            largest: largest.as_bytes().into(),
            excised: KeyRanges::default(),
            excised_bytes: 0,
        })
    }

    /// The keys a..z, of 10 bytes each, as tables.
    fn cut(grandparents: &[Arc<TableMeta>], table_bytes: u64) -> String {
        let mut cutter = OutputCutter::new(grandparents, table_bytes);
        let (mut text, mut bytes) = (String::new(), 0);
        for key in b'a'..=b'z' {
            if cutter.ends_before(&[key], bytes) {
                text.push('|');
                bytes = 0;
            }
            text.push(char::from(key));
            bytes += 10;
        }
        text
    }

    /// Tables end when they are full, or half full at the end of a table below, or when they
    /// overlap too much; a table below that is passed before the first key counts for nothing.
    #[test]
    fn cuts() {
        assert_eq!(cut(&[], 100), "abcdefghij|klmnopqrst|uvwxyz");
        let aligned = [table(1, "a", "g", 100), table(2, "h", "l", 100)];
        assert_eq!(cut(&aligned, 100), "abcdefg|hijkl|mnopqrstuv|wxyz");
        let large = [table(1, "A", "B", 9_000), table(2, "a", "b", 900), table(3, "c", "c", 200)];
        assert_eq!(cut(&large, 100), "abc|defghijklm|nopqrstuvw|xyz");
    }
}

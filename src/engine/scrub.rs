//! Reading every block again, to find damage before a reader does.
//!
//! A damaged block is *quarantined*: the manifest names its range of keys, reads of other keys go
//! on, reads of its keys fail with the place of the damage, and nothing in its range is purged.
//! Whoever has replicas marks the partition damaged, has the block discarded ([`super::discard`])
//! and fetches the range again.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Corruption, Error, Result};
use super::flush::CacheChange;
use super::sstable::KeyRange;
use super::version::{EditError, Quarantined, TableRef, VersionEdit};
use super::{Engine, Shared};

/// A scrub that is made piece by piece.
#[derive(Debug)]
pub struct ScrubPass {
    /// Numbers of the tables that are left; the last is the one it is in.
    tables: Vec<u64>,
    /// The next block of that one.
    block: usize,
    /// What was found so far.
    pub report: ScrubReport,
}

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Tables read.
    pub tables: u64,
    /// Bytes of their blocks.
    pub bytes: u64,
    /// Damaged blocks.
    pub damaged: Vec<Corruption>,
}

impl Engine {
    /// Verifies the checksum of every block of every table and quarantines what is damaged.
    ///
    /// # Errors
    /// The quarantine could not be written to the manifest. Damage is no error: it is reported.
    pub fn scrub(&self) -> Result<ScrubReport> {
        let mut pass = self.begin_scrub();
        while self.scrub_some(&mut pass, u64::MAX)?.is_some() {}
        Ok(pass.report)
    }

    /// A scrub of the tables there are now, of which nothing is read yet.
    pub fn begin_scrub(&self) -> ScrubPass {
        let view = self.shared.super_version.load();
        let tables = view.version.tables().map(|table| table.meta.number).collect();
        ScrubPass { tables, block: 0, report: ScrubReport::default() }
    }

    /// Goes on with a scrub for about `bytes_max` bytes, at most to the end of a table. Returns how
    /// many were read; `None`: there is nothing left. A table that is gone needs no scrub: what was
    /// made of it was checked on the way.
    ///
    /// # Errors
    /// As [`Engine::scrub`].
    pub fn scrub_some(&self, pass: &mut ScrubPass, bytes_max: u64) -> Result<Option<u64>> {
        self.shared.scrub_some(pass, bytes_max)
    }

    /// [`Engine::scrub`] of one table, by its file. One that is no table any more is not read, and
    /// has no damage.
    ///
    /// # Errors
    /// As [`Engine::scrub`].
    pub fn scrub_file(&self, file: &Path) -> Result<ScrubReport> {
        let version = self.shared.version();
        let mut tables = version.tables();
        let tables = tables.find(|table| table.path() == file).into_iter();
        let tables = tables.map(|table| table.meta.number).collect();
        let mut pass = ScrubPass { tables, block: 0, report: ScrubReport::default() };
        while self.scrub_some(&mut pass, u64::MAX)?.is_some() {}
        Ok(pass.report)
    }

    /// Whether a file is a table that rows are read from.
    pub fn has_table(&self, file: &Path) -> bool {
        let view = self.shared.super_version.load();
        view.version.tables().any(|table| table.path() == file)
    }

    /// The file of a table that rows are read from.
    pub fn table_file(&self, number: u64) -> Option<PathBuf> {
        let view = self.shared.super_version.load();
        view.version.table(number).map(|table| table.path().to_path_buf())
    }

    /// The blocks that cannot be read.
    pub fn quarantined(&self) -> Arc<[Quarantined]> {
        Arc::clone(self.shared.super_version.load().version.state().quarantined())
    }
}

impl Shared {
    /// Quarantines the damaged blocks of a table.
    pub(super) fn scrub_table(&self, number: u64) -> Result<()> {
        let mut pass = ScrubPass { tables: vec![number], block: 0, report: ScrubReport::default() };
        while self.scrub_some(&mut pass, u64::MAX)?.is_some() {}
        Ok(())
    }

    fn scrub_some(&self, pass: &mut ScrubPass, bytes_max: u64) -> Result<Option<u64>> {
        let version = self.version();
        let table = loop {
            let Some(number) = pass.tables.last() else { return Ok(None) };
            match version.table(*number) {
                Some(table) => break table,
                None => drop(pass.tables.pop()),
            }
            pass.block = 0;
        };
        let (mut damaged, mut ranges) = (Vec::new(), Vec::new());
        let mut on_bad = |corruption, range: KeyRange<'_>| {
            ranges.push(quarantined(table, range));
            damaged.push(corruption);
        };
        if pass.block == 0 {
            table.verify_sections(&mut on_bad);
        }
        let (read, next) = table.verify_blocks(pass.block, bytes_max, &mut on_bad);
        self.quarantine(table, ranges)?;
        pass.report.damaged.extend(damaged);
        pass.report.bytes += read;
        self.counters.scrubbed_bytes.add(read);
        pass.block = next.unwrap_or(0);
        if next.is_none() {
            pass.tables.pop();
            pass.report.tables += 1;
        }
        Ok(Some(read))
    }

    /// Records unreadable blocks of a table, unless it is gone or they are known.
    pub(super) fn quarantine(&self, table: &TableRef, mut ranges: Vec<Quarantined>) -> Result<()> {
        let current = self.versions.current();
        ranges.retain(|range| !current.state().quarantined().contains(range));
        // Of a table without an index every block may be anywhere.
        ranges.dedup();
        if ranges.is_empty() || current.table(table.meta.number).is_none() {
            return Ok(());
        }
        self.counters.corruptions.add(ranges.len() as u64);
        // Bytes that rotted after they were checked may have been read, and the cache filled.
        let first = ranges.iter().map(|range| range.smallest.clone()).min().unwrap_or_default();
        let last = ranges.iter().map(|range| range.largest.clone()).max().unwrap_or_default();
        let edit = VersionEdit { quarantined: ranges, ..VersionEdit::default() };
        self.hook("quarantine:checked");
        match self.install(edit, CacheChange::Range { first: &first, last: &last }, |_| {}) {
            // Gone just now, into one that was checked on the way.
            Err(Error::Edit(EditError::NoSuchTable { level: None, .. })) => Ok(()),
            installed => installed,
        }
    }
}

/// A block's range of keys, which may be known only as open bounds, within its table's.
pub(super) fn quarantined(table: &TableRef, (from, to): KeyRange<'_>) -> Quarantined {
    let bound = |bound: Bound<&[u8]>, table_end: &[u8]| match bound {
        Bound::Included(key) | Bound::Excluded(key) => key.into(),
        Bound::Unbounded => table_end.into(),
    };
    Quarantined {
        table: table.meta.number,
        smallest: bound(from, &table.meta.smallest),
        largest: bound(to, &table.meta.largest),
    }
}

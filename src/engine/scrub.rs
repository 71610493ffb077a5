//! Reading every block again, to find damage before a reader does.
//!
//! A damaged block is *quarantined*: the manifest names its range of keys, reads of other keys go
//! on, reads of its keys fail with the place of the damage, and nothing in its range is purged.
//! Whoever has replicas marks the partition damaged, has the block discarded ([`super::discard`])
//! and fetches the range again.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use super::error::{Corruption, Result};
use super::flush::CacheChange;
use super::sstable::KeyRange;
use super::version::{Quarantined, TableRef, VersionEdit};
use super::{Engine, Shared};

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Tables read.
    pub tables: u64,
    /// Their size in bytes.
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
        self.shared.scrub()
    }

    /// [`Engine::scrub`] of one table, by its file. A file that is no table any more is none to be
    /// damaged.
    ///
    /// # Errors
    /// As [`Engine::scrub`].
    pub fn scrub_file(&self, file: &Path) -> Result<ScrubReport> {
        let view = self.shared.super_version.load_full();
        let mut tables = view.version.tables();
        let table = tables.find(|table| table.table().path() == file);
        let mut report = ScrubReport::default();
        table.map_or(Ok(()), |table| self.shared.scrub_into(table, &mut report))?;
        Ok(report)
    }

    /// The blocks that cannot be read.
    pub fn quarantined(&self) -> Arc<[Quarantined]> {
        Arc::clone(self.shared.super_version.load().version.state().quarantined())
    }
}

impl Shared {
    fn scrub(&self) -> Result<ScrubReport> {
        let view = self.super_version.load_full();
        let mut report = ScrubReport::default();
        for table in view.version.tables() {
            self.scrub_into(table, &mut report)?;
        }
        Ok(report)
    }

    fn scrub_into(&self, table: &TableRef, report: &mut ScrubReport) -> Result<()> {
        report.damaged.extend(self.scrub_table(table)?);
        report.tables += 1;
        report.bytes += table.meta.bytes;
        Ok(())
    }

    /// Verifies one table and quarantines its damaged blocks, which are returned.
    pub(super) fn scrub_table(&self, table: &TableRef) -> Result<Vec<Corruption>> {
        let (mut damaged, mut ranges) = (Vec::new(), Vec::new());
        table.table().verify_all(&mut |corruption, range| {
            ranges.push(quarantined(table, range));
            damaged.push(corruption);
        });
        self.quarantine(table, ranges)?;
        Ok(damaged)
    }

    /// Records unreadable blocks of a table, unless it is gone or they are known.
    pub(super) fn quarantine(&self, table: &TableRef, mut ranges: Vec<Quarantined>) -> Result<()> {
        let current = self.versions.current();
        ranges.retain(|range| !current.state().quarantined().contains(range));
        if ranges.is_empty() || current.table(table.meta.number).is_none() {
            return Ok(());
        }
        self.counters.corruptions.add(ranges.len() as u64);
        let edit = VersionEdit { quarantined: ranges, ..VersionEdit::default() };
        self.install(edit, CacheChange::None, |_| {})
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

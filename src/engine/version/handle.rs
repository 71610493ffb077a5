//! An open table, and the removal of its file once nobody reads it any more.
//!
//! # Invariants
//! 1. A file is reached through its [`TableRef`] alone, whose meta names the keys that are excised:
//!    they are left out here, for every reader, and nowhere else.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::table_meta::TableMeta;
use crate::engine::error::{Corruption, Result};
use crate::engine::ranges::KeyRanges;
use crate::engine::record::Record;
use crate::engine::sstable::{KeyHash, KeyRange, Properties, Table, TableIter, TableRecord};
use crate::engine::vfs::Vfs;

/// What became of the files of obsolete tables. All counters only grow.
#[derive(Debug, Default)]
pub struct FileCounters {
    /// Files removed.
    pub removed: AtomicU64,
    /// Files that could not be removed. They stay until the next open, which removes orphans.
    pub remove_errors: AtomicU64,
}

/// An open table file. Shared by every [`Version`](super::Version) that holds the table; the last
/// one to go removes the file if it is obsolete.
#[derive(Debug)]
pub struct TableHandle {
    // Constant after open.
    table: Arc<Table>,
    vfs: Arc<dyn Vfs>,
    counters: Arc<FileCounters>,

    /// Set once, after the edit that removed the table is durable. Release/acquire through the
    /// reference count of the handle: `drop` runs after every other holder is gone.
    obsolete: AtomicBool,
}

impl TableHandle {
    pub(super) fn open(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        number: u64,
        verify_every_read: bool,
        counters: &Arc<FileCounters>,
    ) -> Result<Arc<Self>> {
        let path = TableMeta::path(dir, number);
        let table = Table::open(&**vfs, &path, number, verify_every_read)?;
        Ok(Arc::new(Self {
            table: Arc::new(table),
            vfs: Arc::clone(vfs),
            counters: Arc::clone(counters),
            obsolete: AtomicBool::new(false),
        }))
    }

    /// Has the file removed when the last holder lets go.
    pub(super) fn mark_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Drop for TableHandle {
    fn drop(&mut self) {
        if !self.obsolete.load(Ordering::Acquire) {
            return;
        }
        let counter = match self.vfs.remove(self.table.path()) {
            Ok(()) => &self.counters.removed,
            Err(_) => &self.counters.remove_errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A table in its place in the tree.
#[derive(Clone, Debug)]
pub struct TableRef {
    /// What the manifest says of it.
    pub meta: Arc<TableMeta>,
    /// Its open file.
    pub handle: Arc<TableHandle>,
}

impl TableRef {
    /// Whether its filter does not exclude a key at the first look: [`Table::looks_likely`].
    #[inline]
    pub fn looks_likely(&self, hash: &KeyHash) -> bool {
        self.handle.table.looks_likely(hash)
    }

    /// Whether it may hold `key`; `false` is certain.
    #[inline]
    pub fn may_hold(&self, key: &[u8], hash: &KeyHash) -> bool {
        self.handle.table.may_contain(hash) && !self.meta.excised.contains(key)
    }

    /// The record of `key`: [`Table::find`].
    ///
    /// # Errors
    /// As [`Table::find`].
    #[inline]
    pub fn find(&self, key: &[u8], is_cold: bool) -> Result<Option<TableRecord<'_>>> {
        if self.meta.excised.contains(key) {
            return Ok(None);
        }
        self.handle.table.find(key, is_cold)
    }

    /// A cursor over its records. Whoever keeps it beyond this reads on safely: an open mapping
    /// outlives its file's name.
    pub fn iter(&self) -> TableIter {
        self.handle.table.iter().without(&self.meta.excised)
    }

    /// A cursor that checks every block's checksum again: [`Table::iter_verified`].
    pub fn iter_verified(&self) -> TableIter {
        self.handle.table.iter_verified().without(&self.meta.excised)
    }

    /// [`Table::visit_sound`] of its records.
    ///
    /// # Errors
    /// As [`Table::visit_sound`].
    pub fn visit_sound(
        &self,
        on_record: &mut dyn FnMut(&[u8], Record<'_>) -> Result<()>,
        on_bad: &mut dyn FnMut(KeyRange<'_>) -> Result<()>,
    ) -> Result<()> {
        let excised = &self.meta.excised;
        let mut on_visible = |key: &[u8], record: Record<'_>| {
            if excised.contains(key) { Ok(()) } else { on_record(key, record) }
        };
        let mut on_visible_bad = |range: KeyRange<'_>| {
            if self.is_excised(range) { Ok(()) } else { on_bad(range) }
        };
        self.handle.table.visit_sound(&mut on_visible, &mut on_visible_bad)
    }

    /// Whether all keys of a block, known by its bounds, are excised: nobody reads it any more.
    fn is_excised(&self, (first, last): KeyRange<'_>) -> bool {
        let excised = &self.meta.excised;
        match (first, last) {
            (Bound::Included(first), Bound::Included(last)) => excised.contains_all(first, last),
            (Bound::Included(first), Bound::Excluded(end)) => excised.contains_until(first, end),
            _ => false,
        }
    }

    /// About how many bytes of its file are of `keys`, by the index: no block is read.
    pub fn bytes_of(&self, keys: &KeyRanges) -> u64 {
        let bytes_of = |(start, end): &(Vec<u8>, Option<Vec<u8>>)| {
            self.handle.table.bytes_between(start, end.as_deref())
        };
        keys.ranges().iter().map(bytes_of).sum()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.handle.table.path()
    }

    /// [`Table::verify_sections`] of the file.
    pub fn verify_sections(&self, on_bad: &mut dyn FnMut(Corruption, KeyRange<'_>)) {
        self.handle.table.verify_sections(on_bad);
    }

    /// [`Table::verify_blocks`] of the file, but for blocks of which all keys are excised.
    pub fn verify_blocks(
        &self,
        first: usize,
        bytes_max: u64,
        on_bad: &mut dyn FnMut(Corruption, KeyRange<'_>),
    ) -> (u64, Option<usize>) {
        self.handle.table.verify_blocks(first, bytes_max, &mut self.of_visible(on_bad))
    }

    /// Passes on what is wrong with blocks of which not all keys are excised.
    fn of_visible<'f>(
        &'f self,
        on_bad: &'f mut dyn FnMut(Corruption, KeyRange<'_>),
    ) -> impl FnMut(Corruption, KeyRange<'_>) + 'f {
        move |corruption, range| {
            if !self.is_excised(range) {
                on_bad(corruption, range);
            }
        }
    }

    /// Number of its data blocks.
    #[cfg(test)]
    pub(in crate::engine) fn blocks(&self) -> usize {
        self.handle.table.blocks()
    }

    /// [`Table::trust_all`] of the file.
    #[cfg(test)]
    pub(in crate::engine) fn trust_all(&self) {
        self.handle.table.trust_all();
    }

    /// A table in memory, with these keys excised.
    #[cfg(test)]
    pub(in crate::engine) fn of_table(table: Arc<Table>, excised: KeyRanges) -> Self {
        let built =
            BuiltTable { properties: table.properties(), bytes: table.file_bytes(), purgeable: 0 };
        let meta = TableMeta::of_built(table.number(), 1, 0, 0, &built);
        let handle = TableHandle {
            table,
            vfs: Arc::new(crate::engine::vfs::mem::MemVfs::new()),
            counters: Arc::default(),
            obsolete: AtomicBool::new(false),
        };
        Self { meta: Arc::new(TableMeta { excised, ..meta }), handle: Arc::new(handle) }
    }
}

impl TableMeta {
    /// The description of table `number` that was just built.
    ///
    /// `bytes` is the length of the file, `purgeable` as in [`TableMeta::purgeable`].
    pub fn of_built(
        number: u64,
        level: u8,
        epoch: u64,
        created_ms: u64,
        built: &BuiltTable<'_>,
    ) -> Self {
        let properties = built.properties;
        Self {
            number,
            level,
            epoch,
            bytes: built.bytes,
            entries: properties.entries,
            deltas: properties.deltas,
            overwrites: 0,
            purgeable: built.purgeable,
            live_time_min: properties.live_time_min,
            time_max: properties.time_max,
            created_ms,
            demote_full: false,
            smallest: properties.smallest.clone(),
            largest: properties.largest.clone(),
            excised: KeyRanges::default(),
            excised_bytes: 0,
        }
    }
}

/// What is known of a table after `TableBuilder::finish`.
#[derive(Clone, Copy, Debug)]
pub struct BuiltTable<'a> {
    /// What `finish` returned.
    pub properties: &'a Properties,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Records that could be forgotten under a floor that is high enough.
    pub purgeable: u64,
}

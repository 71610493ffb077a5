//! An open table, and the removal of its file once nobody reads it any more.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::table_meta::TableMeta;
use crate::engine::error::Result;
use crate::engine::sstable::{Properties, Table};
use crate::engine::vfs::Vfs;

/// What became of obsolete files. All counters only grow.
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

    /// The table. Whoever keeps a clone of the `Arc` beyond the handle reads on safely: an open
    /// mapping outlives its file's name.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
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
    /// The open table.
    pub fn table(&self) -> &Arc<Table> {
        self.handle.table()
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
            purgeable: built.purgeable,
            live_time_min: properties.live_time_min,
            time_max: properties.time_max,
            created_ms,
            demote_full: false,
            smallest: properties.smallest.clone(),
            largest: properties.largest.clone(),
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

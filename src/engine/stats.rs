//! What the engine counts: plain atomics, read when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

use super::cache::RowCacheStats;
use super::commit_log::LogStats;
use super::options::LEVELS;
use super::vfs::DiskSpace;
use super::{Engine, Shared};

/// A counter that many threads add to.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of a running engine.
#[derive(Default)]
pub(super) struct Counters {
    pub flushes: Counter,
    pub flushed_bytes: Counter,
    pub compactions: Counter,
    pub trivial_moves: Counter,
    pub compacted_bytes_read: Counter,
    pub compacted_bytes_written: Counter,
    pub compactions_put_off: Counter,
    pub rows_purged: Counter,
    pub stalls: Counter,
    pub slowed: Counter,
    pub stall_ms: Counter,
    pub corruptions: Counter,
    pub scrubbed_bytes: Counter,
    pub background_errors: Counter,
}

/// Tables of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelStats {
    /// Number of tables.
    pub tables: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Their records, excised ones included.
    pub entries: u64,
    /// About how many of the bytes are of keys that were excised: they come back as free space.
    pub excised_bytes: u64,
}

/// The engine's figures at one moment. Counters count since the engine was opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Tables, level 0 first.
    pub levels: [LevelStats; LEVELS],
    /// Memory of the active and sealed memtables, in bytes.
    pub memtable_bytes: u64,
    /// Bytes of the records in them, those that were replaced there too.
    pub memtable_record_bytes: u64,
    /// Keys in them.
    pub memtable_entries: u64,
    /// Memtables that wait for their flush.
    pub memtables_sealed: u64,
    /// The commit log.
    pub log: LogStats,
    /// The row cache.
    pub cache: RowCacheStats,
    /// Memtables that became tables.
    pub flushes: u64,
    /// Bytes of tables written by flushes and ingests.
    pub flushed_bytes: u64,
    /// Compactions that merged tables.
    pub compactions: u64,
    /// Compactions that only moved a table down.
    pub trivial_moves: u64,
    /// Bytes of compaction inputs.
    pub compacted_bytes_read: u64,
    /// Bytes of compaction outputs.
    pub compacted_bytes_written: u64,
    /// Times that there was no room on the disk for a compaction that was due: it waits, or is
    /// tried in less.
    pub compactions_put_off: u64,
    /// Rows forgotten below the floor.
    pub rows_purged: u64,
    /// Bytes that compaction should still move to reach its targets.
    pub compaction_debt_bytes: u64,
    /// Writes that had to wait for a memtable or for level 0.
    pub stalls: u64,
    /// Writes that waited a millisecond because writers were ahead of flush or compaction.
    pub slowed: u64,
    /// Time they waited, in milliseconds.
    pub stall_ms: u64,
    /// Damaged blocks met.
    pub corruptions: u64,
    /// Bytes of tables that were read only to see that they can be.
    pub scrubbed_bytes: u64,
    /// Flushes and compactions that failed, and flushes after which a segment of the log could not
    /// be taken back.
    pub background_errors: u64,
    /// Obsolete table files removed.
    pub files_removed: u64,
    /// Obsolete table files that could not be removed; the next open does it.
    pub remove_errors: u64,
    /// Superseded versions that a reader still holds; their tables keep their space.
    pub pinned_versions: u64,
    /// For how long the oldest of them has been superseded, in milliseconds.
    pub oldest_pin_ms: u64,
    /// Length of the manifest, in bytes.
    pub manifest_bytes: u64,
    /// The disk, if it could be asked.
    pub disk: Option<DiskSpace>,
    /// Why writes are refused, if they are.
    pub poisoned: Option<String>,
}

impl Stats {
    /// Bytes of all tables.
    pub fn table_bytes(&self) -> u64 {
        self.levels.iter().map(|level| level.bytes).sum()
    }

    /// About how many bytes of tables are of excised keys.
    pub fn excised_bytes(&self) -> u64 {
        self.levels.iter().map(|level| level.excised_bytes).sum()
    }

    /// Bytes of all tables, and of what is still to become one, without those of excised keys.
    pub fn data_bytes(&self) -> u64 {
        self.table_bytes().saturating_sub(self.excised_bytes()) + self.memtable_record_bytes
    }
}

impl Engine {
    /// The engine's figures now. Cheap enough to be asked every second, not for every request.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

impl Shared {
    fn stats(&self) -> Stats {
        let view = self.super_version.load_full();
        let levels = std::array::from_fn(|level| {
            let tables = view.version.level(level).tables();
            LevelStats {
                tables: tables.len() as u64,
                bytes: tables.iter().map(|table| table.meta.bytes).sum(),
                entries: tables.iter().map(|table| table.meta.entries).sum(),
                excised_bytes: tables.iter().map(|table| table.meta.excised_bytes).sum(),
            }
        });
        let (pinned, oldest_pin_ms) = self.versions.pinned_versions(self.now_ms());
        let files = self.versions.file_counters();
        let counters = &self.counters;
        Stats {
            levels,
            memtable_bytes: view.memtables().map(|memtable| memtable.bytes() as u64).sum(),
            memtable_record_bytes: view.memtables().map(|one| one.list_bytes() as u64).sum(),
            memtable_entries: view.memtables().map(|memtable| memtable.entries() as u64).sum(),
            memtables_sealed: view.sealed() as u64,
            log: self.log.stats(),
            cache: self.cache.stats(),
            flushes: counters.flushes.get(),
            flushed_bytes: counters.flushed_bytes.get(),
            compactions: counters.compactions.get(),
            trivial_moves: counters.trivial_moves.get(),
            compacted_bytes_read: counters.compacted_bytes_read.get(),
            compacted_bytes_written: counters.compacted_bytes_written.get(),
            compactions_put_off: counters.compactions_put_off.get(),
            rows_purged: counters.rows_purged.get(),
            compaction_debt_bytes: self.compaction_debt(&view.version),
            stalls: counters.stalls.get(),
            slowed: counters.slowed.get(),
            stall_ms: counters.stall_ms.get(),
            corruptions: counters.corruptions.get(),
            scrubbed_bytes: counters.scrubbed_bytes.get(),
            background_errors: counters.background_errors.get(),
            files_removed: files.removed.load(Ordering::Relaxed),
            remove_errors: files.remove_errors.load(Ordering::Relaxed),
            pinned_versions: pinned as u64,
            oldest_pin_ms,
            manifest_bytes: self.versions.manifest_bytes(),
            disk: self.vfs.disk_space(&self.dir).ok(),
            poisoned: self.poisoned_by(),
        }
    }
}

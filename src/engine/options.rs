//! What can be set, with units, defaults and limits.

use super::error::{Error, Result};
use super::sstable::TableOptions;

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// After its log bytes are synced to disk. Survives power loss. Concurrent writers share a
    /// sync.
    Always,
    /// After its log bytes are handed to the operating system; they are synced every
    /// `sync_interval_ms`. Survives `kill -9`; power loss may take the last interval.
    Interval,
    /// After its log bytes are handed to the operating system, which syncs when it likes.
    /// Survives `kill -9`.
    Os,
}

/// Compression of data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None: reads hand out the mapped bytes.
    None,
    /// LZ4: about half the size for text, a copy and a decompression per block read.
    Lz4,
}

/// Options of one engine. `Default` is right for a node; sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// When a write is acknowledged.
    pub sync_mode: SyncMode,
    /// Interval of [`SyncMode::Interval`], in milliseconds.
    pub sync_interval_ms: u64,
    /// Size of a full log segment.
    pub log_segment_bytes: u32,
    /// A memtable is sealed when it holds this much.
    pub memtable_bytes: usize,
    /// Sealed memtables that may wait for their flush before writers must wait.
    pub sealed_memtables_max: usize,
    /// How long a write may wait for a memtable before it fails with `Stalled`.
    pub stall_timeout_ms: u64,
    /// Row cache size; 0 turns it off.
    pub row_cache_bytes: usize,
    /// Eviction age of a row cache entry, in milliseconds. Never a matter of correctness.
    pub row_cache_ttl_ms: u64,
    /// Target size of a data block.
    pub block_bytes: usize,
    /// Filter bits per key.
    pub filter_bits_per_key: u32,
    /// Target size of a table.
    pub table_bytes: u64,
    /// Compression of tables at levels 0 and 1.
    pub compression_upper: Compression,
    /// Compression of tables below level 1.
    pub compression_lower: Compression,
    /// Number of tables at level 0 that starts a compaction.
    pub level0_tables_trigger: usize,
    /// Number of tables at level 0 at which pressure reaches 1 and writers wait.
    pub level0_tables_stop: usize,
    /// Most bytes that the base level is to hold: it has a `level_ratio`-th of the level below, or
    /// what level 0 brings at once.
    pub base_level_bytes: u64,
    /// Size ratio between two levels.
    pub level_ratio: u64,
    /// Bits of the key's first eight bytes that name its partition (`2^bits` partitions), the unit
    /// of safe points. 0: one partition.
    pub partition_bits: u32,
    /// Bytes a second compaction may write once it is not behind; 0 is no limit.
    pub compaction_bytes_per_second: u64,
    /// Space that client writes leave free, beside what is to be flushed, so that compaction can
    /// finish.
    pub disk_reserve_bytes: u64,
    /// Refuse every write below the reserve. Off: the caller keeps out those that are not to have
    /// it ([`Engine::below_reserve`](super::Engine::below_reserve)), and the others are taken until
    /// a quarter of it and what is to be flushed is left.
    pub guard_reserve: bool,
    /// Verify block checksums at every read instead of at the first touch.
    pub verify_every_read: bool,
    /// Make a store of a directory without one. Off: that is damage, for the caller knows that
    /// there was one, and that its files are elsewhere or lost.
    pub create_if_missing: bool,
    /// Open although the log has a damaged frame below what was durable, dropping what follows it.
    pub accept_log_corruption: bool,
    /// Threads that compact. With 0 nothing runs in the background: the caller calls
    /// `Engine::step`, as simulations do.
    pub compaction_threads: usize,
}

/// Longest key the engine takes, in bytes.
pub const KEY_BYTES_MAX: usize = 64 * 1024 - 1;
/// Longest row state the engine takes, in bytes.
pub const ROW_BYTES_MAX: usize = 32 << 20;
/// Longest row state that tables hold, in bytes. Far above what is taken at a time, because it is a
/// join of such states: a join that cannot be stored could not be replayed either, and the store
/// not be opened. Nobody gets here: fifteen replicas that do not see each other, each with as much
/// as it takes, come to half of it.
pub const JOINED_BYTES_MAX: usize = 1 << 30;
/// Levels of the tree, level 0 included.
pub const LEVELS: usize = 7;

impl Default for Options {
    fn default() -> Self {
        Self {
            sync_mode: SyncMode::Always,
            sync_interval_ms: 100,
            log_segment_bytes: 64 << 20,
            memtable_bytes: 50 << 20,
            sealed_memtables_max: 3,
            stall_timeout_ms: 10_000,
            row_cache_bytes: 256 << 20,
            row_cache_ttl_ms: 3_600_000,
            block_bytes: 4 << 10,
            filter_bits_per_key: 10,
            table_bytes: 32 << 20,
            compression_upper: Compression::None,
            compression_lower: Compression::None,
            level0_tables_trigger: 6,
            level0_tables_stop: 24,
            base_level_bytes: 512 << 20,
            level_ratio: 10,
            partition_bits: 10,
            compaction_bytes_per_second: 0,
            disk_reserve_bytes: 64 << 20,
            guard_reserve: true,
            verify_every_read: false,
            create_if_missing: true,
            accept_log_corruption: false,
            compaction_threads: 1,
        }
    }
}

impl Options {
    /// How tables of `level` are built.
    pub(crate) fn table_options(&self, level: usize) -> TableOptions {
        let compression = if level <= 1 { self.compression_upper } else { self.compression_lower };
        TableOptions {
            block_bytes: self.block_bytes,
            filter_bits_per_key: self.filter_bits_per_key,
            compression,
        }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] naming the first option that is out of bounds.
    pub fn validate(&self) -> Result<()> {
        let at_least = |what, found: u64, limit: u64| {
            if found < limit { Err(Error::OutOfBounds { what, found, limit }) } else { Ok(()) }
        };
        let at_most = |what, found: u64, limit: u64| {
            if found > limit { Err(Error::OutOfBounds { what, found, limit }) } else { Ok(()) }
        };
        at_least("sync_interval_ms", self.sync_interval_ms, 1)?;
        at_least("log_segment_bytes", self.log_segment_bytes.into(), 4 << 10)?;
        at_most("log_segment_bytes", self.log_segment_bytes.into(), 1 << 30)?;
        at_least("memtable_bytes", self.memtable_bytes as u64, 1 << 10)?;
        at_most("memtable_bytes", self.memtable_bytes as u64, 4 << 30)?;
        at_least("sealed_memtables_max", self.sealed_memtables_max as u64, 1)?;
        at_least("block_bytes", self.block_bytes as u64, 64)?;
        at_most("block_bytes", self.block_bytes as u64, 1 << 20)?;
        at_most("filter_bits_per_key", self.filter_bits_per_key.into(), 32)?;
        at_least("table_bytes", self.table_bytes, 1 << 10)?;
        at_least("level0_tables_trigger", self.level0_tables_trigger as u64, 1)?;
        at_least(
            "level0_tables_stop",
            self.level0_tables_stop as u64,
            self.level0_tables_trigger as u64 + 1,
        )?;
        at_least("base_level_bytes", self.base_level_bytes, 1 << 10)?;
        at_least("level_ratio", self.level_ratio, 2)?;
        at_most("partition_bits", self.partition_bits.into(), 14)?;
        at_most("compaction_threads", self.compaction_threads as u64, 64)
    }
}

//! The one face that all engines show to the workloads.
//!
//! Every engine is called the way its own documentation recommends for speed: values are read
//! where they lie (`get_with`, `get_pinned`, a reference-counted slice), and no engine pays for
//! a feature that another lacks, except where [`Store::merge`] says so.
//!
//! # Invariants
//! 1. A write is acknowledged in the same class by all: [`Durability::Os`] has handed its log
//!    record to the operating system (it survives `kill -9`), [`Durability::Disk`] has synced it
//!    (it survives power loss).
//! 2. All get the settings of [`MEMTABLE_BYTES`], [`CACHE_BYTES`] and [`FILTER_BITS_PER_KEY`], the
//!    log on, leveled compaction, and two background threads: one to flush, one to compact.

mod fjall;
mod pairdb;
mod rocksdb;

use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What ends a run. A benchmark that met an error has no result.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// A result of the harness.
pub type Result<T> = std::result::Result<T, Failure>;

/// A memtable is sealed at this size.
pub const MEMTABLE_BYTES: usize = 64 << 20;
/// PairDB: row cache. RocksDB and fjall: block cache.
pub const CACHE_BYTES: usize = 256 << 20;
/// Of the filters of all tables.
pub const FILTER_BITS_PER_KEY: u32 = 10;
/// Target size of a data block.
pub const BLOCK_BYTES: usize = 4 << 10;

/// An engine under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum EngineName {
    /// This project's engine with the operator `Newest`.
    Pairdb,
    /// RocksDB, reading its tables with pread into the block cache (its default).
    Rocksdb,
    /// RocksDB, reading its tables through mmap. Not in the default set.
    RocksdbMmap,
    /// fjall 3.
    Fjall,
}

impl EngineName {
    /// The name in results and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pairdb => "pairdb",
            Self::Rocksdb => "rocksdb",
            Self::RocksdbMmap => "rocksdb-mmap",
            Self::Fjall => "fjall",
        }
    }
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After its log record was handed to the operating system.
    Os,
    /// After its log record was synced to disk.
    Disk,
}

/// Compression of data blocks, at all levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// None.
    None,
    /// LZ4.
    Lz4,
}

/// An open engine.
pub trait Store: Send + Sync {
    /// Sets a key without reading it.
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Deletes a key without reading it.
    fn delete(&self, key: &[u8]) -> Result<()>;

    /// Hands the value of a key, if there is one, to `use_value` where it lies.
    fn get(&self, key: &[u8], use_value: &mut dyn FnMut(Option<&[u8]>)) -> Result<()>;

    /// Walks up to `count` live keys from `from` on; says how many there were.
    fn scan(
        &self,
        from: &[u8],
        count: usize,
        use_row: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<usize>;

    /// Reads a key and replaces its value. PairDB's is atomic, as its API is; the others read and
    /// then write, as YCSB does.
    fn read_modify_write(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.get(key, &mut |old| {
            std::hint::black_box(old.map(<[u8]>::len));
        })?;
        self.put(key, value)
    }

    /// Joins a state of `time` into a key; the greater time wins. PairDB and RocksDB (merge
    /// operator) do it blindly; fjall has no such call and reads, compares and writes under a lock.
    fn merge(&self, key: &[u8], time: u64, value: &[u8]) -> Result<()>;

    /// Makes the memtables tables and waits until no compaction is left to do.
    fn settle(&self) -> Result<()>;

    /// Lets a minute pass for an engine that does something after a minute of rest: whether it
    /// does.
    fn pass_a_minute(&self) -> bool {
        false
    }

    /// Bytes written so far through mappings of files, which the kernel does not count as written.
    fn mapped_bytes(&self) -> u64 {
        0
    }

    /// A clean close.
    fn close(self: Box<Self>) -> Result<()>;

    /// Every option in force.
    fn options(&self) -> Result<String>;
}

/// Opens or creates the store in `dir`.
pub fn open(
    engine: EngineName,
    dir: &Path,
    durability: Durability,
    compression: Compression,
) -> Result<Box<dyn Store>> {
    Ok(match engine {
        EngineName::Pairdb => Box::new(pairdb::PairDb::open(dir, durability, compression)?),
        EngineName::Rocksdb => Box::new(rocksdb::Rocks::open(dir, durability, compression, false)?),
        EngineName::RocksdbMmap => {
            Box::new(rocksdb::Rocks::open(dir, durability, compression, true)?)
        }
        EngineName::Fjall => Box::new(fjall::Fjall::open(dir, durability, compression)?),
    })
}

/// Asks `idle` until it has said yes for `quiet` without a no in between.
fn wait_until_idle(quiet: Duration, mut idle: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(600);
    let mut since = None;
    loop {
        let now = Instant::now();
        if !idle() {
            since = None;
        } else if now - *since.get_or_insert(now) >= quiet {
            return Ok(());
        }
        if now > deadline {
            return Err("compaction did not come to rest in ten minutes".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A value with its time before it, for the engines that know no times.
fn timed(time: u64, value: &[u8]) -> Vec<u8> {
    let mut state = Vec::with_capacity(8 + value.len());
    state.extend_from_slice(&time.to_be_bytes());
    state.extend_from_slice(value);
    state
}

//! fjall 3.

use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{
    BLOCK_BYTES, CACHE_BYTES, Compression, Durability, FILTER_BITS_PER_KEY, MEMTABLE_BYTES, Result,
    Store,
};

/// RocksDB and PairDB have one thread to flush and one to compact as well.
const WORKERS: usize = 2;

/// See the module page.
pub struct Fjall {
    db: Database,
    keys: Keyspace,
    durability: Durability,
    options: KeyspaceCreateOptions,
    /// Make [`Store::merge`] atomic.
    stripes: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl Fjall {
    /// Opens or creates the store in `dir`. What is not set here is fjall's default.
    pub fn open(dir: &Path, durability: Durability, compression: Compression) -> Result<Self> {
        let db = Database::builder(dir)
            .cache_size(CACHE_BYTES as u64)
            .worker_threads(WORKERS)
            .journal_compression(CompressionType::None)
            .open()?;
        let bits = BloomConstructionPolicy::BitsPerKey(FILTER_BITS_PER_KEY as f32);
        let options = KeyspaceCreateOptions::default()
            .max_memtable_size(MEMTABLE_BYTES as u64)
            .data_block_size_policy(BlockSizePolicy::all(BLOCK_BYTES as u32))
            .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(bits)))
            .data_block_compression_policy(CompressionPolicy::all(match compression {
                Compression::None => CompressionType::None,
                Compression::Lz4 => CompressionType::Lz4,
            }));
        let keys = db.keyspace("default", || options.clone())?;
        let stripes = (0..64).map(|_| Mutex::new(())).collect();
        Ok(Self { db, keys, durability, options, stripes, hasher: RandomState::new() })
    }

    /// fjall hands each write to the operating system by itself; a sync is a second call.
    fn persist(&self) -> Result<()> {
        match self.durability {
            Durability::Os => Ok(()),
            Durability::Disk => Ok(self.db.persist(PersistMode::SyncData)?),
        }
    }
}

impl Store for Fjall {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.keys.insert(key, value)?;
        self.persist()
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.keys.remove(key)?;
        self.persist()
    }

    fn get(&self, key: &[u8], use_value: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        use_value(self.keys.get(key)?.as_deref());
        Ok(())
    }

    fn scan(
        &self,
        from: &[u8],
        count: usize,
        use_row: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<usize> {
        let mut found = 0;
        for row in self.keys.range(from..).take(count) {
            let (key, value) = row.into_inner()?;
            use_row(&key, &value);
            found += 1;
        }
        Ok(found)
    }

    fn merge(&self, key: &[u8], time: u64, value: &[u8]) -> Result<()> {
        let stripe = self.hasher.hash_one(key) as usize % self.stripes.len();
        let _held = self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner);
        let state = super::timed(time, value);
        if self.keys.get(key)?.is_some_and(|old| *old >= *state) {
            return Ok(());
        }
        self.keys.insert(key, state)?;
        self.persist()
    }

    fn settle(&self) -> Result<()> {
        self.keys.rotate_memtable_and_wait()?;
        // Between two compactions there may be none that is active: hence the quiet time.
        super::wait_until_idle(Duration::from_millis(500), || {
            self.db.outstanding_flushes() == 0 && self.db.active_compactions() == 0
        })
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    fn options(&self) -> Result<String> {
        let options = &self.options;
        let mut text = String::from("fjall 3, journal flushed to the system at every write\n");
        let mut line = |name: &str, value: &dyn std::fmt::Debug| {
            writeln!(text, "{name} = {value:?}").map_err(super::Failure::from)
        };
        line("cache_size", &self.db.cache_capacity())?;
        line("worker_threads", &WORKERS)?;
        line("journal_compression", &CompressionType::None)?;
        line("max_journaling_size (default)", &(512u64 << 20))?;
        line("max_memtable_size", &MEMTABLE_BYTES)?;
        line("compaction_strategy (default)", &options.compaction_strategy.get_name())?;
        line("data_block_size_policy", &options.data_block_size_policy)?;
        line("data_block_compression_policy", &options.data_block_compression_policy)?;
        line("index_block_compression_policy", &options.index_block_compression_policy)?;
        line("data_block_restart_interval_policy", &options.data_block_restart_interval_policy)?;
        line("index_block_restart_interval_policy", &options.index_block_restart_interval_policy)?;
        line("data_block_hash_ratio_policy", &options.data_block_hash_ratio_policy)?;
        line("filter_policy", &options.filter_policy)?;
        line("filter_block_pinning_policy", &options.filter_block_pinning_policy)?;
        line("index_block_pinning_policy", &options.index_block_pinning_policy)?;
        line("filter_block_partitioning_policy", &options.filter_block_partitioning_policy)?;
        line("index_block_partitioning_policy", &options.index_block_partitioning_policy)?;
        line("expect_point_read_hits", &options.expect_point_read_hits)?;
        line("key-value separation", &options.kv_separation_opts.is_some())?;
        Ok(text)
    }
}

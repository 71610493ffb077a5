//! PairDB's engine, with the newest write of a key as its row state.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pairdb::engine::clock::{Clock, SystemClock};
use pairdb::engine::newest::Newest;
use pairdb::engine::options;
use pairdb::engine::{Engine, Environment, Options, SyncMode};

use super::{
    BLOCK_BYTES, CACHE_BYTES, Compression, Durability, FILTER_BITS_PER_KEY, MEMTABLE_BYTES, Result,
    Store,
};

/// See the module page.
pub struct PairDb {
    engine: Engine,
    /// The time of the next write. RocksDB and fjall count their sequence numbers themselves.
    time: AtomicU64,
    clock: Arc<Forward>,
}

/// The system's clock, and what it was put forward.
#[derive(Debug, Default)]
struct Forward {
    clock: SystemClock,
    ns: AtomicU64,
}

impl Clock for Forward {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns() + self.ns.load(Ordering::Relaxed)
    }
}

impl PairDb {
    /// Opens or creates the store in `dir`.
    pub fn open(dir: &Path, durability: Durability, compression: Compression) -> Result<Self> {
        let compression = match compression {
            Compression::None => options::Compression::None,
            Compression::Lz4 => options::Compression::Lz4,
        };
        let options = Options {
            sync_mode: match durability {
                Durability::Os => SyncMode::Os,
                Durability::Disk => SyncMode::Always,
            },
            memtable_bytes: MEMTABLE_BYTES,
            row_cache_bytes: CACHE_BYTES,
            block_bytes: BLOCK_BYTES,
            filter_bits_per_key: FILTER_BITS_PER_KEY,
            compression_upper: compression,
            compression_lower: compression,
            ..Options::default()
        };
        let clock = Arc::new(Forward::default());
        let environment = Environment { clock: clock.clone(), ..Environment::default() };
        let engine = Engine::open_in(dir, options, Arc::new(Newest), environment)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        Ok(Self { engine, time: AtomicU64::new(now), clock })
    }

    fn next_time(&self) -> u64 {
        self.time.fetch_add(1, Ordering::Relaxed)
    }

    fn apply(&self, key: &[u8], row: &[u8]) -> Result<()> {
        let position = self.engine.apply(&[(key, row)])?;
        Ok(self.engine.wait_durable(position)?)
    }
}

impl Store for PairDb {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.apply(key, &Newest::value(self.next_time(), value))
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.apply(key, &Newest::tombstone(self.next_time()))
    }

    fn get(&self, key: &[u8], use_value: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        self.engine.get_with(key, |row| {
            let value = row.map(Newest::decode).transpose()?.flatten();
            use_value(value);
            Ok(())
        })?
    }

    fn scan(
        &self,
        from: &[u8],
        count: usize,
        use_row: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<usize> {
        let mut scan = self.engine.scan(from, None)?;
        let mut found = 0;
        while found < count {
            let Some((key, row)) = scan.next()? else { break };
            if let Some(value) = Newest::decode(row)? {
                use_row(key, value);
                found += 1;
            }
        }
        Ok(found)
    }

    fn read_modify_write(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let time = self.next_time();
        let position = self.engine.update::<pairdb::engine::Error>(&[key], |_, row, _| {
            std::hint::black_box(row.map(<[u8]>::len));
            Ok(Some(Newest::value(time, value)))
        })?;
        Ok(self.engine.wait_durable(position)?)
    }

    fn merge(&self, key: &[u8], time: u64, value: &[u8]) -> Result<()> {
        self.apply(key, &Newest::value(time, value))
    }

    fn settle(&self) -> Result<()> {
        self.engine.flush()?;
        super::wait_until_idle(Duration::from_millis(50), || {
            let stats = self.engine.stats();
            stats.compaction_debt_bytes == 0 && stats.memtables_sealed == 0
        })
    }

    fn pass_a_minute(&self) -> bool {
        self.clock.ns.fetch_add(61_000_000_000, Ordering::Relaxed);
        true
    }

    fn mapped_bytes(&self) -> u64 {
        self.engine.stats().log.bytes_prepared
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.engine.close()?)
    }

    fn options(&self) -> Result<String> {
        Ok(format!("PairDB, operator Newest\n{:#?}\n", self.engine.options()))
    }
}

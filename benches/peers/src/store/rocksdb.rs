//! RocksDB.

use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, MergeOperands, Options, ReadOptions,
    WaitForCompactOptions, WriteOptions,
};

use super::{
    BLOCK_BYTES, CACHE_BYTES, Compression, Durability, FILTER_BITS_PER_KEY, MEMTABLE_BYTES, Result,
    Store,
};

/// See the module page.
pub struct Rocks {
    db: DB,
    dir: PathBuf,
    write: WriteOptions,
    read: ReadOptions,
}

/// The operand with the greatest bytes wins: they start with the time.
fn newest(_key: &[u8], existing: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    existing.into_iter().chain(operands.iter()).max().map(<[u8]>::to_vec)
}

impl Rocks {
    /// Opens or creates the store in `dir`. What is not set here is RocksDB's default; the whole
    /// of it is printed by [`Store::options`].
    pub fn open(
        dir: &Path,
        durability: Durability,
        compression: Compression,
        mmap: bool,
    ) -> Result<Self> {
        let mut table = BlockBasedOptions::default();
        table.set_block_size(BLOCK_BYTES);
        table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        table.set_bloom_filter(f64::from(FILTER_BITS_PER_KEY), false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(MEMTABLE_BYTES);
        options.set_compression_type(match compression {
            Compression::None => DBCompressionType::None,
            Compression::Lz4 => DBCompressionType::Lz4,
        });
        options.set_allow_mmap_reads(mmap);
        options.set_block_based_table_factory(&table);
        options.set_merge_operator_associative("newest", newest);
        let mut write = WriteOptions::default();
        write.set_sync(durability == Durability::Disk);
        let db = DB::open(&options, dir)?;
        Ok(Self { db, dir: dir.to_owned(), write, read: ReadOptions::default() })
    }
}

impl Store for Rocks {
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.db.put_opt(key, value, &self.write)?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.db.delete_opt(key, &self.write)?)
    }

    fn get(&self, key: &[u8], use_value: &mut dyn FnMut(Option<&[u8]>)) -> Result<()> {
        use_value(self.db.get_pinned_opt(key, &self.read)?.as_deref());
        Ok(())
    }

    fn scan(
        &self,
        from: &[u8],
        count: usize,
        use_row: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<usize> {
        let mut cursor = self.db.raw_iterator_opt(ReadOptions::default());
        cursor.seek(from);
        let mut found = 0;
        while found < count {
            let Some((key, value)) = cursor.item() else { break };
            use_row(key, value);
            found += 1;
            cursor.next();
        }
        cursor.status()?;
        Ok(found)
    }

    fn merge(&self, key: &[u8], time: u64, value: &[u8]) -> Result<()> {
        Ok(self.db.merge_opt(key, super::timed(time, value), &self.write)?)
    }

    fn settle(&self) -> Result<()> {
        let mut options = WaitForCompactOptions::default();
        options.set_flush(true);
        Ok(self.db.wait_for_compact(&options)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.db.flush_wal(true)?;
        self.db.cancel_all_background_work(true);
        Ok(())
    }

    fn options(&self) -> Result<String> {
        let mut newest: Option<PathBuf> = None;
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let is_options = path.file_name().is_some_and(|name| {
                name.to_string_lossy().starts_with("OPTIONS-") && path.extension().is_none()
            });
            if is_options && newest.as_ref().is_none_or(|other| *other < path) {
                newest = Some(path);
            }
        }
        Ok(std::fs::read_to_string(newest.ok_or("RocksDB wrote no OPTIONS file")?)?)
    }
}

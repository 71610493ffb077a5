//! Writes a table: data blocks as they fill, then filter, index, properties, footer, sync.
//!
//! It does not name, rename or delete files, nor sync directories: that is the installer's part.
//! A build that failed or was dropped leaves a file without a footer, which no reader accepts.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::block_builder::BlockBuilder;
use super::filter::{self, KeyHash};
use super::format::{Encoding, FOOTER_BYTES, Footer, Section, close_frame};
use super::index::IndexBuilder;
use super::properties::Properties;
use crate::engine::error::{Error, Result};
use crate::engine::options::{Compression, JOINED_BYTES_MAX, KEY_BYTES_MAX};
use crate::engine::record::Kind;
use crate::engine::vfs::File;

/// Bytes that are gathered before a write, and written before writeback is asked for.
const WRITE_BYTES: usize = 1 << 20;
/// Sections have 32-bit lengths. No sane table comes near; one that does fails while it is built.
const ENTRIES_MAX: u64 = 1 << 28;
const INDEX_BYTES_MAX: u64 = 1 << 31;

/// How a table is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Target size of a data block before compression, in bytes.
    pub block_bytes: usize,
    /// Filter bits per key; 0 builds no filter.
    pub filter_bits_per_key: u32,
    /// Compression of data blocks. A block that gains less than an eighth is stored as it is.
    pub compression: Compression,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self { block_bytes: 4 << 10, filter_bits_per_key: 10, compression: Compression::None }
    }
}

/// What the merge operator says of a row, for the table's properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowInfo {
    /// Time of the row's oldest live version; `u64::MAX` if none is live.
    pub live_time_min: u64,
    /// Greatest time in the row.
    pub time_max: u64,
}

/// A table being written.
#[derive(Debug)]
pub struct TableBuilder {
    file: Arc<dyn File>,
    path: PathBuf,
    number: u64,
    options: TableOptions,

    /// Bytes not yet written, which belong at `written`.
    buffer: Vec<u8>,
    written: u64,
    /// The last write, which the system may still be bringing to the disk.
    on_its_way: Range<u64>,

    block: BlockBuilder,
    /// A block before its compression.
    raw: Vec<u8>,
    index: IndexBuilder,
    hashes: Vec<u64>,

    /// The first key of the block being built.
    block_first: Vec<u8>,
    /// The last key of the block before; `None` before the first one is written.
    block_before: Option<Vec<u8>>,
    last: Vec<u8>,
    properties: Properties,
}

impl TableBuilder {
    /// Starts table `number` in the empty `file`; `path` is for error messages.
    pub fn new(file: Arc<dyn File>, path: PathBuf, number: u64, options: TableOptions) -> Self {
        Self {
            file,
            path,
            number,
            options,
            buffer: Vec::with_capacity(WRITE_BYTES + options.block_bytes),
            written: 0,
            on_its_way: 0..0,
            block: BlockBuilder::default(),
            raw: Vec::new(),
            index: IndexBuilder::default(),
            hashes: Vec::new(),
            block_first: Vec::new(),
            block_before: None,
            last: Vec::new(),
            properties: Properties {
                entries: 0,
                deltas: 0,
                live_time_min: u64::MAX,
                time_max: 0,
                key_bytes: 0,
                row_bytes: 0,
                raw_bytes: 0,
                blocks: 0,
                compression: options.compression,
                smallest: Box::default(),
                largest: Box::default(),
            },
        }
    }

    /// Adds a record. REQUIRES: `key` is above every key added before.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for a key or row longer than tables hold, or a table that grew
    /// beyond what its sections can hold; `Corruption` for a key
    /// that does not ascend, because then a source of the merge is not in order; `Io` if writing
    /// failed. After an error the table is lost: drop the builder.
    pub fn add(&mut self, key: &[u8], kind: Kind, row: &[u8], info: RowInfo) -> Result<()> {
        at_most("key bytes", key.len() as u64, KEY_BYTES_MAX as u64)?;
        at_most("row bytes", row.len() as u64, JOINED_BYTES_MAX as u64)?;
        at_most("entries of a table", self.properties.entries, ENTRIES_MAX)?;
        let properties = &mut self.properties;
        if properties.entries == 0 {
            properties.smallest = key.into();
        } else if key <= self.last.as_slice() {
            return Err(Error::corrupt(
                &self.path,
                self.written,
                "keys to be written do not ascend",
            ));
        }
        properties.entries += 1;
        properties.deltas += u64::from(kind == Kind::Delta);
        properties.live_time_min = properties.live_time_min.min(info.live_time_min);
        properties.time_max = properties.time_max.max(info.time_max);
        properties.key_bytes += key.len() as u64;
        properties.row_bytes += row.len() as u64;

        if self.block.is_empty() {
            self.block_first.clear();
            self.block_first.extend_from_slice(key);
        }
        if self.options.filter_bits_per_key > 0 {
            self.hashes.push(KeyHash::new(key).hash());
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        self.block.add(key, kind, row);

        if self.block.bytes() >= self.options.block_bytes { self.finish_block() } else { Ok(()) }
    }

    /// About how long the file would be if it were finished now, in bytes.
    pub fn bytes_so_far(&self) -> u64 {
        self.written + self.unwritten_bytes()
    }

    /// About how much would be written if it were finished now, in bytes.
    pub fn unwritten_bytes(&self) -> u64 {
        let filter = self.hashes.len() * self.options.filter_bits_per_key as usize / 8;
        let pending = self.buffer.len() + self.block.bytes() + self.index.bytes() + filter;
        (pending + FOOTER_BYTES) as u64
    }

    /// Records added so far.
    pub fn entries(&self) -> u64 {
        self.properties.entries
    }

    /// Writes what is left and syncs the file. The directory is the caller's to sync.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if no record was added; `Io` if writing or syncing failed.
    pub fn finish(mut self) -> Result<Properties> {
        if self.properties.entries == 0 {
            return Err(Error::OutOfBounds { what: "entries of a table", found: 0, limit: 1 });
        }
        if !self.block.is_empty() {
            self.finish_block()?;
        }
        self.properties.largest = self.last.as_slice().into();

        let mut filter = Section { offset: self.offset(), len: 0 };
        if !self.hashes.is_empty() {
            let bytes = filter::build(&self.hashes, self.options.filter_bits_per_key);
            filter = self.section(|out| out.extend_from_slice(&bytes));
        }
        let index = std::mem::take(&mut self.index);
        let index = self.section(|out| index.finish(out));
        let own = self.properties.clone();
        let properties = self.section(|out| own.encode(out));

        let offset = self.offset();
        let file_len = offset + FOOTER_BYTES as u64;
        let footer = Footer { number: self.number, file_len, filter, index, properties };
        footer.encode(offset, &mut self.buffer);
        self.write()?;
        self.file.sync_data().map_err(Error::io("sync", &self.path))?;
        Ok(self.properties)
    }

    /// Where the next byte of the buffer belongs in the file.
    fn offset(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn section(&mut self, payload: impl FnOnce(&mut Vec<u8>)) -> Section {
        let (start, offset) = (self.buffer.len(), self.offset());
        payload(&mut self.buffer);
        let len = self.buffer.len() - start;
        close_frame(&mut self.buffer, start, self.number, offset, Encoding::None, len);
        Section { offset, len: self.offset() - offset }
    }

    fn finish_block(&mut self) -> Result<()> {
        let (start, offset) = (self.buffer.len(), self.offset());
        let mut encoding = Encoding::None;
        let raw_len = match self.options.compression {
            Compression::None => {
                self.block.finish(&mut self.buffer);
                self.buffer.len() - start
            }
            Compression::Lz4 => {
                self.raw.clear();
                self.block.finish(&mut self.raw);
                encoding = compress(&self.raw, &mut self.buffer);
                self.raw.len()
            }
        };
        close_frame(&mut self.buffer, start, self.number, offset, encoding, raw_len);
        self.properties.raw_bytes += raw_len as u64;
        self.properties.blocks += 1;
        let boundary = self.block_before.as_deref().map(|before| (before, &*self.block_first));
        self.index.add(offset..self.written + self.buffer.len() as u64, boundary);
        at_most("index bytes", self.index.bytes() as u64, INDEX_BYTES_MAX)?;
        let before = self.block_before.get_or_insert_default();
        before.clear();
        before.extend_from_slice(&self.last);
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    /// Two writes at most are on their way to the disk. A table is made faster than any disk takes
    /// it, and a sync of the log that meets tens of megabytes of it in the queue waits for all of
    /// them.
    fn write(&mut self) -> Result<()> {
        let (offset, len) = (self.written, self.buffer.len() as u64);
        self.file.write_at(offset, &self.buffer).map_err(Error::io("write", &self.path))?;
        self.file.start_writeback(offset, len);
        self.written += len;
        self.buffer.clear();
        let before = std::mem::replace(&mut self.on_its_way, offset..self.written);
        if before.is_empty() {
            return Ok(());
        }
        let (offset, len) = (before.start, before.end - before.start);
        self.file.wait_writeback(offset, len).map_err(Error::io("write", &self.path))
    }
}

fn at_most(what: &'static str, found: u64, limit: u64) -> Result<()> {
    if found > limit { Err(Error::OutOfBounds { what, found, limit }) } else { Ok(()) }
}

/// Appends `raw` to `out`, compressed if it is worth it.
fn compress(raw: &[u8], out: &mut Vec<u8>) -> Encoding {
    let start = out.len();
    out.resize(start + lz4_flex::block::get_maximum_output_size(raw.len()), 0);
    let encoding = match lz4_flex::block::compress_into(raw, &mut out[start..]) {
        Ok(len) if len < raw.len() - raw.len() / 8 => {
            out.truncate(start + len);
            return Encoding::Lz4;
        }
        _ => Encoding::None,
    };
    out.truncate(start);
    out.extend_from_slice(raw);
    encoding
}

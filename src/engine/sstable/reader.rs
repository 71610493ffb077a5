//! Opens a table and looks keys up in it.
//!
//! A lookup probes the filter ([`Table::may_contain`]), then finds the block in the index and the
//! record in the block ([`Table::find`]), all in the mapped bytes: no lock, no reference count, and
//! no allocation unless the block is compressed.
//!
//! # Invariants
//! 1. [`Table::open`] checks length, footer, filter, index and properties, and reads no data block.
//!    A damaged filter is done without, since it says nothing that the blocks do not say.
//! 2. A block's bytes are believed after its checksum and structure were checked once; the bitmap
//!    `touched` remembers it. Two threads may check the same block at the same time, harmlessly.
//! 3. What is checked is loaded before it is touched: what the disk does not give back is damage
//!    like any other, where a mapping would end the process.
//! 4. A block in which damage was found once is not believed again, whoever found it: its checksum
//!    is checked at every read. So it is with a filter, which then denies no key, and an index:
//!    what looks something up in it fails. A walk that checks each block goes on.

use std::hint::black_box;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::block::{Block, Entry};
use super::filter::{Filter, KeyHash};
use super::format::{
    Checked, Damage, Encoding, FOOTER_BYTES, FORMAT_VERSION, Footer, FooterError, Frame, Section,
    TRAILER_BYTES,
};
use super::index::Index;
use super::iter::TableIter;
use super::properties::Properties;
use super::read_ahead::ReadAhead;
use crate::engine::error::{Error, Result};
use crate::engine::options::Compression;
use crate::engine::record::Kind;
use crate::engine::scale::scale;
use crate::engine::vfs::{Mapping, Vfs};

/// What a fault of a mapping fetches.
const PAGE_BYTES: u64 = 4 << 10;

/// An open table.
#[derive(Debug)]
pub struct Table {
    // Constant after open.
    pub(super) map: Mapping,
    path: PathBuf,
    number: u64,
    pub(super) footer: Footer,
    verify_every_read: bool,
    /// `None`: there is none, or none that was sound at open.
    filter: Option<(Filter, Range<usize>)>,
    index: Range<usize>,
    blocks: usize,
    properties: Properties,

    /// What was found wrong with the filter, at open or since, and with the index since.
    pub(super) filter_damage: OnceLock<Damage>,
    pub(super) index_damage: OnceLock<Damage>,
    /// One bit per block that was checked. Relaxed: the bytes never change, so the bit orders
    /// nothing; a bit seen late costs one more check.
    touched: Box<[AtomicU64]>,
    /// One bit per block that was found damaged; never cleared.
    distrusted: Box<[AtomicU64]>,
}

/// A record found in a table.
#[derive(Debug)]
pub struct TableRecord<'a> {
    /// What the record claims.
    pub kind: Kind,
    /// The row.
    pub row: RowRef<'a>,
}

/// The bytes of a row: in the mapping, or in a block that was decompressed for them.
#[derive(Debug)]
pub enum RowRef<'a> {
    /// In the mapping; lives as long as the table is borrowed.
    Mapped(&'a [u8]),
    /// In a block of its own.
    Owned {
        /// The decompressed block.
        block: Vec<u8>,
        /// Where the row is in it.
        range: Range<usize>,
    },
}

impl Deref for RowRef<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(row) => row,
            Self::Owned { block, range } => &block[range.clone()],
        }
    }
}

/// The bytes of one block, decoded.
pub(super) enum BlockBytes<'a> {
    /// In the mapping; padding and trailer follow the block.
    Mapped(&'a [u8]),
    Owned(Vec<u8>),
}

impl Deref for BlockBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Table {
    /// Maps the table `number` at `path` and checks everything but its data blocks.
    ///
    /// # Errors
    /// `Io` if the file cannot be mapped, `Corruption` if it is not a whole table of that number
    /// that is sound but for its filter, `FormatTooNew` if a later version of the program wrote it.
    pub fn open(vfs: &dyn Vfs, path: &Path, number: u64, verify_every_read: bool) -> Result<Self> {
        let map = vfs.map(path).map_err(Error::io("map", path))?;
        Self::from_mapping(map, path, number, verify_every_read)
    }

    /// As [`Table::open`], of a file that is mapped.
    pub(super) fn from_mapping(
        map: Mapping,
        path: &Path,
        number: u64,
        verify_every_read: bool,
    ) -> Result<Self> {
        let unread = |Damage(what): Damage| Error::corrupt(path, map.len() as u64, what);
        load(&map, map.len().saturating_sub(FOOTER_BYTES)..map.len()).map_err(unread)?;
        let footer = Footer::decode(&map, number).map_err(|error| match error {
            FooterError::TooNew(found) => {
                let (file, supported) = (path.to_path_buf(), FORMAT_VERSION);
                Error::FormatTooNew { file, found, supported }
            }
            FooterError::Damage(Damage(what)) => Error::corrupt(path, map.len() as u64, what),
        })?;
        let corrupt = |section: Section| {
            move |Damage(what): Damage| Error::corrupt(path, section.offset, what)
        };
        let payload = |section: Section| payload(&map, number, section).map_err(corrupt(section));

        // At once: the map is advised as random, so each page would be waited for by itself.
        let checked = usize::try_from(footer.filter.offset).unwrap_or(usize::MAX).min(map.len());
        map.fetch(checked..map.len());
        let (mut filter, filter_damage) = (None, OnceLock::new());
        if footer.filter.len > 0 {
            match filter_at(&map, number, footer.filter) {
                Ok(found) => filter = Some(found),
                Err(damage) => drop(filter_damage.set(damage)),
            }
        }
        let range = payload(footer.properties)?;
        let properties = Properties::decode(&map[range]).map_err(corrupt(footer.properties))?;
        let index = payload(footer.index)?;
        let blocks = check_index(&map[index.clone()], footer.filter.offset, &properties)
            .map_err(corrupt(footer.index))?;
        let bit_per_block = || (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            touched: bit_per_block(),
            distrusted: bit_per_block(),
            path: path.to_path_buf(),
            map,
            number,
            footer,
            verify_every_read,
            filter,
            index,
            blocks,
            properties,
            filter_damage,
            index_damage: OnceLock::new(),
        })
    }

    /// The record of `key`. Without copying, unless its block is compressed. The filter is not
    /// asked: the caller has done that, so that it can ask all tables before it reads any. With
    /// `is_cold` the block is taken to be on the disk ([`Mapping::fetch`]).
    ///
    /// # Errors
    /// `Corruption` if the block that may hold the key is damaged, or the index that tells which
    /// one that is.
    #[inline]
    pub fn find(&self, key: &[u8], is_cold: bool) -> Result<Option<TableRecord<'_>>> {
        let block = self.block_of(key)?;
        if is_cold {
            self.fetch(block);
        }
        match self.block(block, self.verify_every_read, false)? {
            BlockBytes::Mapped(bytes) => {
                load_columns(bytes);
                let found = Block::parse(bytes).and_then(|block| block.find(key));
                let found = found.map_err(|damage| self.block_corruption(block, damage))?;
                Ok(found
                    .map(|entry| TableRecord { kind: entry.kind, row: RowRef::Mapped(entry.row) }))
            }
            BlockBytes::Owned(bytes) => self.get_in_owned(block, bytes, key),
        }
    }

    #[cold]
    fn get_in_owned(
        &self,
        block: usize,
        bytes: Vec<u8>,
        key: &[u8],
    ) -> Result<Option<TableRecord<'_>>> {
        let found = Block::parse(&bytes).and_then(|block| block.find(key));
        let found = found.map_err(|damage| self.block_corruption(block, damage))?;
        let Some(Entry { kind, row_start, row, .. }) = found else { return Ok(None) };
        let range = row_start..row_start + row.len();
        Ok(Some(TableRecord { kind, row: RowRef::Owned { block: bytes, range } }))
    }

    /// Whether the table may hold the key, by two probes of its filter that no branch stands
    /// between; `false` is certain.
    #[inline]
    pub fn looks_likely(&self, hash: &KeyHash) -> bool {
        let filter = self.filter.as_ref();
        filter.is_none_or(|(filter, range)| filter.looks_likely(&self.map[range.clone()], hash))
            | self.filter_damage.get().is_some()
    }

    /// Whether the table may hold the key; `false` is certain.
    #[inline]
    pub fn may_contain(&self, hash: &KeyHash) -> bool {
        let filter = self.filter.as_ref();
        filter.is_none_or(|(filter, range)| filter.may_contain(&self.map[range.clone()], hash))
            | self.filter_damage.get().is_some()
    }

    /// A cursor over the whole table.
    pub fn iter(self: &Arc<Self>) -> TableIter {
        TableIter::new(Arc::clone(self), self.verify_every_read)
    }

    /// A cursor that checks every block's checksum again, for compaction: what it copies wrongly
    /// would be wrong for good.
    pub fn iter_verified(self: &Arc<Self>) -> TableIter {
        TableIter::new(Arc::clone(self), true)
    }

    /// About how many bytes of the file are of keys from `start` to `end`, exclusive (`None`: to
    /// the last): its share of the data blocks, as the index says. Reads no block.
    pub fn bytes_between(&self, start: &[u8], end: Option<&[u8]>) -> u64 {
        let offset = |key: &[u8]| -> Checked<u64> {
            let index = self.index()?;
            let last = self.blocks - 1;
            if *self.properties.largest < *key {
                return Ok(index.frame(last)?.end);
            }
            Ok(index.frame(index.find(key)?)?.start)
        };
        let data_end = self.index().and_then(|index| index.frame(self.blocks - 1));
        let data_end = data_end.map_or(0, |frame| frame.end);
        let end = end.map_or(Ok(data_end), offset);
        let (start, end) = (offset(start).unwrap_or(0), end.unwrap_or(0));
        scale(self.file_bytes(), end.saturating_sub(start), data_end)
    }

    /// What the table says about itself.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The file's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Makes all blocks pass for checked ones, as if their bytes had rotted after the first touch.
    #[cfg(test)]
    pub(in crate::engine) fn trust_all(&self) {
        self.touched.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
    }

    /// Number of data blocks.
    pub(in crate::engine) fn blocks(&self) -> usize {
        self.blocks
    }

    /// The index, checked at open.
    #[inline]
    pub(super) fn index(&self) -> Checked<Index<'_>> {
        Index::parse(&self.map[self.index.clone()])
    }

    /// The index, for whoever would not notice that it is wrong.
    #[inline]
    pub(super) fn trusted_index(&self) -> Result<Index<'_>> {
        match self.index_damage.get() {
            None => self.index().map_err(|damage| self.index_corruption(damage)),
            Some(damage) => Err(self.index_corruption(damage.clone())),
        }
    }

    /// The only block that may hold `key`.
    #[inline]
    pub(super) fn block_of(&self, key: &[u8]) -> Result<usize> {
        let block = self.trusted_index()?.find(key);
        block.map_err(|damage| self.index_corruption(damage))
    }

    /// The bytes of a block; checked if this is the first touch, or if `verify`. One that
    /// `is_loaded` is not brought into memory first.
    #[inline]
    pub(super) fn block(
        &self,
        block: usize,
        verify: bool,
        is_loaded: bool,
    ) -> Result<BlockBytes<'_>> {
        let frame = self.frame(block).map_err(|damage| self.block_corruption(block, damage))?;
        let seen = |word: &AtomicU64| word.load(Ordering::Relaxed) & (1 << (block % 64)) != 0;
        if verify {
            return self.check_block(block, frame, is_loaded);
        }
        if !self.touched.get(block / 64).is_some_and(seen) {
            if !is_loaded {
                // All of it is read, and it was not read before.
                self.fetch(block);
            }
            return self.check_block(block, frame, is_loaded);
        }
        match self.properties.compression {
            Compression::None => Ok(BlockBytes::Mapped(frame)),
            Compression::Lz4 => self.decode_block(block, frame),
        }
    }

    /// Has a block fetched from the disk at once, if it is in several pages.
    #[cold]
    fn fetch(&self, block: usize) {
        let Ok(Range { start, end }) = self.index().and_then(|index| index.frame(block)) else {
            return;
        };
        if start / PAGE_BYTES < end.saturating_sub(1) / PAGE_BYTES && end <= self.file_bytes() {
            self.map.fetch(start as usize..end as usize);
        }
    }

    /// [`Table::block`] of a walk over blocks, which is read `ahead` for; and its frame.
    #[inline]
    pub(super) fn next_block(
        &self,
        block: usize,
        verify: bool,
        ahead: &mut ReadAhead,
    ) -> Result<(Range<usize>, BlockBytes<'_>)> {
        // Whoever has each block checked finds out by its checksum, which holds its place too.
        let index = if verify { self.index() } else { Ok(self.trusted_index()?) };
        let frame = index.and_then(|index| index.frame(block));
        let frame = frame.map_err(|damage| self.block_corruption(block, damage))?;
        let frame = frame.start as usize..frame.end as usize;
        let load = |now, next| self.load_ahead(now, next);
        let is_loaded = ahead.reach(&frame, self.map.len(), load);
        Ok((frame, self.block(block, verify, is_loaded)?))
    }

    /// Brings a range into memory ([`Mapping::load`]) and has the `next` one fetched meanwhile.
    /// Whether that could be done.
    #[cold]
    fn load_ahead(&self, range: Range<usize>, next: Range<usize>) -> bool {
        self.map.fetch(range.start..next.end);
        self.map.load(range).is_ok()
    }

    /// A hint: see [`Mapping::give_back`].
    pub(super) fn give_back(&self, range: Range<usize>) {
        self.map.give_back(range);
    }

    /// Bytes of the mapping; `range` was found in it before.
    #[inline]
    pub(super) fn mapped(&self, range: Range<usize>) -> &[u8] {
        &self.map[range]
    }

    /// The frame of a block in the mapping.
    #[inline]
    fn frame(&self, block: usize) -> Checked<&[u8]> {
        let Range { start, end } = self.index()?.frame(block)?;
        self.map.get(start as usize..end as usize).ok_or(Damage::from("block out of the file"))
    }

    #[cold]
    fn check_block<'a>(
        &'a self,
        block: usize,
        bytes: &'a [u8],
        is_loaded: bool,
    ) -> Result<BlockBytes<'a>> {
        let checked = || -> Checked<BlockBytes<'a>> {
            let Range { start: offset, end } = self.index()?.frame(block)?;
            if !is_loaded {
                load(&self.map, offset as usize..end as usize)?;
            }
            let frame = Frame::verify(bytes, self.number, offset)?;
            let bytes = match (frame.encoding, self.properties.compression) {
                (Encoding::Lz4, Compression::None) => {
                    return Err("compressed block in a table without compression".into());
                }
                (Encoding::Lz4, Compression::Lz4) => BlockBytes::Owned(frame.decompress()?),
                (Encoding::None, _) => BlockBytes::Mapped(bytes),
            };
            Block::parse(&bytes)?.check(frame.raw_len)?;
            Ok(bytes)
        };
        let checked = checked();
        self.remember(block, checked.is_ok());
        checked.map_err(|damage| self.block_corruption(block, damage))
    }

    /// Takes note of what a check of a block came to.
    fn remember(&self, block: usize, is_sound: bool) {
        let (word, bit) = (block / 64, 1 << (block % 64));
        let (Some(touched), Some(distrusted)) = (self.touched.get(word), self.distrusted.get(word))
        else {
            return;
        };
        // Of two that disagree at the same time at least one sees the other: each sets its own bit
        // before it looks at, or clears, the other's.
        let bits = if is_sound { touched } else { distrusted };
        bits.fetch_or(bit, Ordering::SeqCst);
        if distrusted.load(Ordering::SeqCst) & bit != 0 {
            touched.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    #[cold]
    fn decode_block<'a>(&self, block: usize, bytes: &'a [u8]) -> Result<BlockBytes<'a>> {
        let decoded = Frame::parse(bytes).and_then(|frame| match frame.encoding {
            Encoding::None => Ok(BlockBytes::Mapped(bytes)),
            Encoding::Lz4 => frame.decompress().map(BlockBytes::Owned),
        });
        decoded.map_err(|damage| self.block_corruption(block, damage))
    }

    #[cold]
    pub(super) fn block_corruption(&self, block: usize, damage: Damage) -> Error {
        let frame = self.index().and_then(|index| index.frame(block));
        self.corruption(frame.map_or(0, |frame| frame.start), damage)
    }

    #[cold]
    pub(super) fn index_corruption(&self, damage: Damage) -> Error {
        self.corruption(self.index.start as u64, damage)
    }

    fn corruption(&self, offset: u64, Damage(what): Damage) -> Error {
        Error::corrupt(&self.path, offset, what)
    }
}

/// Loads the cache lines that a search in a small block will ask for, all at once.
///
/// The search loads header, prefixes and offsets one after the other, each address depending on
/// what came before; in a table larger than the processor's cache every one of them waits for
/// memory. These loads depend on nothing and overlap. Random gets of a 125 MB table with 116-byte
/// entries took about a fifth less time with them, in twelve alternating rounds of one process
/// (opt-level 1, a busy two-core machine).
#[inline]
fn load_columns(block: &[u8]) {
    for at in (0..512).step_by(64) {
        black_box(block.get(at).copied());
    }
}

/// Brings a part of the file into memory that is about to be checked: [`Mapping::load`].
pub(super) fn load(map: &Mapping, range: Range<usize>) -> Checked<()> {
    map.load(range).map_err(|error| Damage(format!("it cannot be read: {error}").into()))
}

/// Where the payload of a section is in the file, after checking its frame.
pub(super) fn payload(map: &Mapping, number: u64, section: Section) -> Checked<Range<usize>> {
    let start = usize::try_from(section.offset).ok();
    let len = usize::try_from(section.len).ok();
    let range = start.zip(len).and_then(|(start, len)| Some(start..start.checked_add(len)?));
    let bytes = range.clone().and_then(|range| map.get(range));
    let (Some(range), Some(bytes)) = (range, bytes) else {
        return Err("section out of the file".into());
    };
    load(map, range.clone())?;
    let frame = Frame::verify(bytes, number, section.offset)?;
    if frame.encoding != Encoding::None {
        return Err("section is compressed".into());
    }
    debug_assert!(frame.payload.len() + TRAILER_BYTES <= bytes.len());
    Ok(range.start..range.start + frame.payload.len())
}

/// The filter in a section, and where it is in the file.
pub(super) fn filter_at(
    map: &Mapping,
    number: u64,
    section: Section,
) -> Checked<(Filter, Range<usize>)> {
    let range = payload(map, number, section)?;
    Ok((Filter::parse(&map[range.clone()])?, range))
}

/// The number of blocks of a sound index whose data blocks end at `data_end`.
fn check_index(bytes: &[u8], data_end: u64, properties: &Properties) -> Checked<usize> {
    let index = Index::parse(bytes)?;
    index.check(data_end)?;
    if index.blocks() as u64 != u64::from(properties.blocks) {
        return Err(format!("{} blocks, expected {}", index.blocks(), properties.blocks).into());
    }
    Ok(index.blocks())
}

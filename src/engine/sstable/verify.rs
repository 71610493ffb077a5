//! Reads a whole table again, whatever was checked of it before, and tells which keys damage
//! touches.
//!
//! It changes nothing, and does not decide what becomes of damaged blocks
//! ([`scrub`](crate::engine::scrub), [`discard`](crate::engine::discard)).
//!
//! 1. A damaged block is told with all keys that it may have held, by the index; a damaged section,
//!    or a block of a damaged index, with all keys of the table.
//! 2. The walk over the blocks goes on behind a damaged one.
//! 3. A filter or an index in which damage is found is not believed from then on: unlike a block it
//!    is not checked again at each use.

use std::ops::Bound;

use super::block::Block;
use super::format::{Damage, FOOTER_BYTES, Footer, FooterError};
use super::read_ahead::ReadAhead;
use super::reader::{Table, filter_at, load, payload};
use crate::engine::error::{Corruption, Error, Result};
use crate::engine::record::Record;

/// Bounds of keys, as `RangeBounds<[u8]>`.
pub type KeyRange<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

impl Table {
    /// Checks everything, whether or not it was checked before, and reports each damaged block with
    /// the keys it may have held; a damaged section with all keys of the table.
    pub fn verify_all(&self, on_bad: &mut dyn FnMut(Corruption, KeyRange<'_>)) {
        self.verify_sections(on_bad);
        self.verify_blocks(0, u64::MAX, on_bad);
    }

    /// [`Table::verify_all`] without the blocks. A filter that was damaged at open stays so,
    /// whatever its bytes say now: only a table that is written anew has one again.
    pub fn verify_sections(&self, on_bad: &mut dyn FnMut(Corruption, KeyRange<'_>)) {
        let range = (
            Bound::Included(&*self.properties().smallest),
            Bound::Included(&*self.properties().largest),
        );
        let mut report = |offset, Damage(what): Damage| {
            let (file, what) = (self.path().to_path_buf(), what.into());
            on_bad(Corruption { file, offset, what }, range);
        };
        let end = self.map.len();
        let loaded = load(&self.map, end.saturating_sub(FOOTER_BYTES)..end);
        let decoded = loaded.and_then(|()| match Footer::decode(&self.map, self.number()) {
            Ok(_) => Ok(()),
            Err(FooterError::Damage(damage)) => Err(damage),
            Err(FooterError::TooNew(_)) => Err("format version".into()),
        });
        if let Err(damage) = decoded {
            report(self.file_bytes(), damage);
        }
        // Where they are is known from the open.
        let footer = &self.footer;
        let check = |section| payload(&self.map, self.number(), section).err();
        // The first of two that find something is the one who is remembered.
        if footer.filter.len > 0
            && let Err(damage) = filter_at(&self.map, self.number(), footer.filter)
        {
            let _ = self.filter_damage.set(damage);
        }
        if let Some(damage) = check(footer.index) {
            let _ = self.index_damage.set(damage);
        }
        if let Some(damage) = self.filter_damage.get() {
            report(footer.filter.offset, damage.clone());
        }
        if let Some(damage) = self.index_damage.get() {
            report(footer.index.offset, damage.clone());
        }
        if let Some(damage) = check(footer.properties) {
            report(footer.properties.offset, damage);
        }
    }

    /// [`Table::verify_all`] of the blocks from `first` on, until there were `bytes_max` bytes of
    /// them; and the bytes read, with the block to go on with. The memory of what was read is given
    /// back.
    pub fn verify_blocks(
        &self,
        first: usize,
        bytes_max: u64,
        on_bad: &mut dyn FnMut(Corruption, KeyRange<'_>),
    ) -> (u64, Option<usize>) {
        let (mut start, mut end, mut block) = (None, 0_u64, first);
        let mut ahead = ReadAhead::default();
        // The index may be damaged: where a block begins and ends is anywhere then.
        while block < self.blocks() && end.saturating_sub(start.unwrap_or(end)) < bytes_max {
            if let Ok(frame) = self.index().and_then(|index| index.frame(block)) {
                start = start.or(Some(frame.start));
                end = end.max(frame.end);
            }
            if let Err(Error::Corruption(corruption)) = self.next_block(block, true, &mut ahead) {
                self.with_keys_of(block, |range| on_bad(corruption, range));
            }
            block += 1;
        }
        let range = start.unwrap_or(end)..end.min(self.file_bytes());
        if range.start < range.end {
            self.give_back(range.start as usize..range.end as usize);
        }
        (range.end.saturating_sub(range.start), (block < self.blocks()).then_some(block))
    }

    /// Visits every record whose block is sound, in key order; of each damaged block it tells the
    /// keys that it may have held. Every checksum is checked again.
    ///
    /// # Errors
    /// Those of the two that are called.
    pub fn visit_sound(
        &self,
        on_record: &mut dyn FnMut(&[u8], Record<'_>) -> Result<()>,
        on_bad: &mut dyn FnMut(KeyRange<'_>) -> Result<()>,
    ) -> Result<()> {
        let (mut key, mut ahead) = (Vec::new(), ReadAhead::default());
        for block in 0..self.blocks() {
            let bytes = match self.next_block(block, true, &mut ahead) {
                Ok((_, bytes)) => bytes,
                Err(Error::Corruption(_)) => {
                    self.with_keys_of(block, &mut *on_bad)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let damaged = |damage| self.block_corruption(block, damage);
            let parsed = Block::parse(&bytes).map_err(damaged)?;
            let shared_len = parsed.shared().len();
            key.clear();
            key.extend_from_slice(parsed.shared());
            for index in 0..parsed.len() {
                let entry = parsed.entry(index).map_err(damaged)?;
                entry.write_key(shared_len, &mut key);
                on_record(&key, Record { kind: entry.kind, row: entry.row })?;
            }
        }
        Ok(())
    }

    /// Calls `told` with the keys that a block may hold.
    fn with_keys_of<R>(&self, block: usize, told: impl FnOnce(KeyRange<'_>) -> R) -> R {
        let (start, end) = self.block_keys(block);
        let start = start.as_deref().unwrap_or(&self.properties().smallest);
        let end = match &end {
            Some(end) => Bound::Excluded(end.as_slice()),
            None => Bound::Included(&*self.properties().largest),
        };
        told((Bound::Included(start), end))
    }

    /// The separators around a block; `None` at the ends of the table, and where they may be wrong.
    fn block_keys(&self, block: usize) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let separator = |at: Option<usize>| self.trusted_index().ok()?.separator(at?).ok();
        (separator(block.checked_sub(1)), separator(Some(block)))
    }
}

//! Taking keys out of the tables for good: rows that are no business of this store any more.
//!
//! A state never shrinks, so there is no record that says "nothing is here". Instead every table
//! that holds such a key is replaced, at its level and in its age:
//!
//! ```text
//! flush all that was written so far
//! for each piece of the keys, about as large as the tables that reach beyond it:
//!   reserve all tables that hold such a key of the piece; wait while a compaction has one
//!   where all keys of a range go: excise it, that is, have the manifest say that the table is
//!     without it; a table that is all within goes
//!   where some go: write what stays of the table to a new one; but each key that goes is excised
//!     from a table with an unreadable block, which cannot be written anew
//!   if it is still permitted: one manifest edit, cache dropped for what goes, new version
//! ```
//!
//! An excised range costs its bounds in the manifest. Its bytes come back when the table is
//! compacted, at the latest when the store rests ([`super::compaction`]). An unreadable block
//! hinders only the removal of single keys that it may hold: nobody can say which it does hold.
//!
//! What is said of a key lies in several tables, and no order of going is right for all of them: a
//! delete in a newer table hides an older value, one in an older table a value that came late. So
//! all tables of a piece are replaced at once.
//!
//! # Invariants
//! 1. A table is replaced by one that holds the same records under every key that stays.
//! 2. Nothing is installed but inside the permit, so the caller decides up to when it holds that
//!    nobody writes such a key.
//! 3. After a crash or a refusal some keys have gone and others not: of each that goes there is all
//!    that there was, or nothing. Calling again ends it.
//! 4. Keys are excised from a table only while it is reserved: no compaction that began before
//!    still reads it whole.

use std::time::Duration;

use super::compaction::Picker;
use super::error::{Error, Result};
use super::flush::{CacheChange, TableOutput, Unnamed};
use super::iter::Cursor;
use super::options::KEY_BYTES_MAX;
use super::ranges::{KeyRanges, Range};
use super::rules::rule;
use super::sstable::TableIter;
use super::version::{TableMeta, TableRef, Version, VersionEdit};
use super::{Engine, Shared};

/// How long a table that a compaction has is waited for before it is looked at again.
const BUSY_WAIT: Duration = Duration::from_millis(200);
/// A piece of the keys is at least so many tables.
const PIECE_TABLES: u64 = 8;
/// After this many bytes it is looked whether to wait or to stop.
pub(super) const CHECK_BYTES: u64 = 256 << 10;

/// Runs what it is given if that may still be done, and says whether it did.
pub type Permit<'p> = dyn Fn(&mut dyn FnMut() -> Result<()>) -> Result<bool> + 'p;

impl Engine {
    /// Removes all keys of the ranges `wholly`, and of the ranges `in_part` those that `goes`
    /// names, from everything written before the call. The first costs nearly nothing, the second
    /// the rewriting of each table that holds such a key.
    ///
    /// Returns about how many bytes of tables went out of sight, or `None` if the permit was
    /// refused: then some of the keys may be left.
    ///
    /// Nobody may write such a key while the permit is given.
    ///
    /// # Errors
    /// A table could not be written, or not be read where keys go in part;
    /// [`Error::OutOfBounds`] for a range that begins or ends with what can be no key;
    /// [`Error::DiskFull`]; [`Error::Closed`].
    pub fn remove(
        &self,
        wholly: &[Range],
        in_part: &[Range],
        goes: &dyn Fn(&[u8]) -> bool,
        permit: &Permit<'_>,
    ) -> Result<Option<u64>> {
        let shared = &self.shared;
        let going = Going::new(wholly, in_part, goes)?;
        shared.flush_all()?;
        let mut removed = 0;
        let mut from = Vec::new();
        loop {
            let installs = shared.background.installs();
            if shared.closed() {
                return Err(Error::Closed);
            }
            let version = shared.version();
            let end = shared.end_of_piece(&version, &from);
            let piece = (from, end);
            match shared.remove_piece(&version, &going.within(&piece), permit)? {
                Piece::Gone(bytes) => removed += bytes,
                Piece::Refused => return Ok(None),
                Piece::Busy => {
                    shared.background.wait_for_install(installs, BUSY_WAIT);
                    from = piece.0;
                    continue;
                }
            }
            match piece.1 {
                Some(next) => from = next,
                None => return Ok(Some(removed)),
            }
        }
    }
}

/// The keys that go.
struct Going<'g> {
    wholly: KeyRanges,
    in_part: KeyRanges,
    /// Asked of keys of `in_part` only.
    goes: &'g dyn Fn(&[u8]) -> bool,
}

impl<'g> Going<'g> {
    fn new(wholly: &[Range], in_part: &[Range], goes: &'g dyn Fn(&[u8]) -> bool) -> Result<Self> {
        let ends = wholly.iter().flat_map(|(start, end)| [Some(start), end.as_ref()]);
        let longest = ends.flatten().map(Vec::len).max().unwrap_or(0);
        check_bounds(longest)?;
        let of = |ranges: &[Range]| KeyRanges::of(ranges.iter().cloned());
        Ok(Self { wholly: of(wholly), in_part: of(in_part), goes })
    }

    fn within(&self, piece: &Range) -> Self {
        let (wholly, in_part) = (self.wholly.within(piece), self.in_part.within(piece));
        Self { wholly, in_part, goes: self.goes }
    }

    fn has(&self, key: &[u8]) -> bool {
        self.wholly.contains(key) || self.in_part.contains(key) && (self.goes)(key)
    }

    /// What is to be done with a table. One with an unreadable block is not written anew.
    fn change_of(&self, table: &TableRef, has_unreadable: bool) -> Result<Change> {
        let mut goes = self.wholly.touching(&table.meta.smallest, &table.meta.largest);
        if has_unreadable {
            goes = goes.union(&self.keys_in_part(table)?);
        } else if self.holds_any_in_part(table)? {
            return Ok(Change::Rewrite);
        }
        let is_more = table.meta.excised.union(&goes) != table.meta.excised;
        Ok(if is_more { Change::Excise(goes) } else { Change::None })
    }

    /// Whether a table holds a key that goes of a range that goes in part.
    fn holds_any_in_part(&self, table: &TableRef) -> Result<bool> {
        let Some(mut iter) = self.cursor_in_part(table, TableRef::iter)? else { return Ok(false) };
        while iter.valid() {
            if (self.goes)(iter.key()) {
                return Ok(true);
            }
            iter.next()?;
        }
        Ok(false)
    }

    /// All these keys of a table, as ranges in which it has no other.
    fn keys_in_part(&self, table: &TableRef) -> Result<KeyRanges> {
        let mut runs: Vec<Range> = Vec::new();
        let mut is_run = false;
        let cursor = self.cursor_in_part(table, TableRef::iter_verified)?;
        let Some(mut iter) = cursor else { return Ok(KeyRanges::default()) };
        while iter.valid() {
            let key = iter.key();
            let goes = (self.goes)(key);
            if goes {
                let behind = [key, &[0]].concat();
                check_bounds(behind.len())?;
                match runs.last_mut() {
                    // Between two ranges there may be keys that nobody was asked about.
                    Some((start, end)) if is_run && self.in_part.contains_all(start, key) => {
                        *end = Some(behind);
                    }
                    _ => runs.push((key.to_vec(), Some(behind))),
                }
            }
            is_run = goes;
            iter.next()?;
        }
        Ok(KeyRanges::of(runs))
    }

    /// A cursor over what a table holds of the ranges that go in part, and no block beside them.
    fn cursor_in_part(
        &self,
        table: &TableRef,
        cursor: impl FnOnce(&TableRef) -> TableIter,
    ) -> Result<Option<TableIter>> {
        let ranges = self.in_part.touching(&table.meta.smallest, &table.meta.largest);
        if ranges.is_empty() {
            return Ok(None);
        }
        let mut iter = cursor(table).without(&ranges.complement());
        iter.seek_to_first()?;
        Ok(Some(iter))
    }
}

/// Refuses what is longer than a key.
fn check_bounds(longest: usize) -> Result<()> {
    if longest > KEY_BYTES_MAX {
        let (found, limit) = (longest as u64, KEY_BYTES_MAX as u64);
        return Err(Error::OutOfBounds { what: "key bytes", found, limit });
    }
    Ok(())
}

/// What is to be done with a table.
enum Change {
    /// All of its keys that go are gone already.
    None,
    /// These ranges go, of which some are gone.
    Excise(KeyRanges),
    /// Single keys go.
    Rewrite,
}

/// What became of a piece of the keys.
enum Piece {
    /// It holds no such key any more; about so many bytes went.
    Gone(u64),
    /// A compaction has a table that does, or the room.
    Busy,
    /// The permit was refused.
    Refused,
}

impl Shared {
    /// Where the piece that begins at `from` ends; `None`: behind the last key. A table that
    /// reaches beyond its end is replaced again for the next piece, so the tables within are to
    /// weigh as much.
    fn end_of_piece(&self, version: &Version, from: &[u8]) -> Option<Vec<u8>> {
        let ahead = |table: &&TableRef| *table.meta.largest >= *from;
        let mut tables: Vec<&TableRef> = version.tables().filter(ahead).collect();
        tables.sort_by(|one, other| one.meta.largest.cmp(&other.meta.largest));
        let least = self.options.table_bytes.saturating_mul(PIECE_TABLES);
        let mut within = 0_u64;
        for (at, table) in tables.iter().enumerate() {
            within += table.meta.bytes;
            let end = &table.meta.largest;
            let beyond = tables[at + 1..].iter().filter(|table| table.meta.smallest <= *end);
            if within >= least
                && within >= beyond.map(|table| table.meta.bytes).sum::<u64>()
                // The end may become that of an excised range, which is as long as a key at most.
                && end.len() < KEY_BYTES_MAX
            {
                return Some([&**end, &[0]].concat());
            }
        }
        None
    }

    fn remove_piece(
        &self,
        version: &Version,
        going: &Going<'_>,
        permit: &Permit<'_>,
    ) -> Result<Piece> {
        let mut tables = Vec::new();
        for table in version.tables() {
            match going.change_of(table, version.state().has_unreadable(table.meta.number))? {
                Change::None => {}
                change => tables.push((table, change)),
            }
        }
        if tables.is_empty() {
            // A row that compaction purged may live on in the cache.
            let (edit, none) = (VersionEdit::default(), Unnamed::new(self));
            let is_gone = !self.cache.is_on() || self.install_without(edit, none, going, permit)?;
            return Ok(if is_gone { Piece::Gone(0) } else { Piece::Refused });
        }
        let numbers: Vec<u64> = tables.iter().map(|(table, _)| table.meta.number).collect();
        // What is only excised is not written.
        let rewritten = tables.iter().filter(|(_, change)| matches!(change, Change::Rewrite));
        let room_bytes = rewritten.map(|(table, _)| table.meta.visible_bytes()).sum();
        let pick = |picker: &Picker<'_>| picker.pick_tables(&numbers, room_bytes);
        let Some(reserved) = self.reserve_in_place(pick) else {
            return Ok(Piece::Busy);
        };
        let (mut edit, mut removed) = (VersionEdit::default(), 0);
        let mut unnamed = Unnamed::new(self);
        let output = self.table_output(self.compaction_space().1);
        // As they are now: a compaction may have moved one since.
        for (table, (_, change)) in reserved.tables().zip(&tables) {
            edit.removed.push((table.meta.level, table.meta.number));
            let left = match change {
                Change::Rewrite => {
                    let left = self.without(table, &|key| going.has(key), &output)?;
                    left.iter().for_each(|table| unnamed.add(table));
                    left
                }
                Change::Excise(ranges) => excised(table, ranges),
                Change::None => Some(TableMeta::clone(&table.meta)),
            };
            let left_bytes = left.as_ref().map_or(0, TableMeta::visible_bytes);
            removed += table.meta.visible_bytes().saturating_sub(left_bytes);
            edit.added.extend(left);
        }
        let installed = self.install_without(edit, unnamed, going, permit)?;
        Ok(if installed { Piece::Gone(removed) } else { Piece::Refused })
    }

    /// Installs tables without the keys that go, of which those that were written are `unnamed`
    /// yet, and has the cache forget the keys: if it is permitted.
    fn install_without(
        &self,
        edit: VersionEdit,
        mut unnamed: Unnamed<'_>,
        going: &Going<'_>,
        permit: &Permit<'_>,
    ) -> Result<bool> {
        let goes = |key: &[u8]| going.has(key);
        let cache = || match rule!(self, removal_drops_cache) {
            true => CacheChange::Removed(&goes),
            false => CacheChange::None,
        };
        let mut edit = Some(edit);
        permit(&mut || {
            let Some(edit) = edit.take() else { return Ok(()) };
            unnamed.keep();
            self.install(edit, cache(), |_| {})
        })
    }

    /// Writes the table that replaces another, without the keys that go; `None` if nothing is left.
    fn without(
        &self,
        table: &TableRef,
        goes: &dyn Fn(&[u8]) -> bool,
        output: &TableOutput<'_>,
    ) -> Result<Option<TableMeta>> {
        let meta = &table.meta;
        let mut iter = table.iter_verified();
        iter.seek_to_first()?;
        while iter.valid() && goes(iter.key()) {
            iter.next()?;
        }
        if !iter.valid() {
            return Ok(None);
        }
        let mut unchecked = 0;
        let kept =
            output.write_at(usize::from(meta.level), meta.epoch, meta.demote_full, |add| {
                while iter.valid() {
                    let (key, record) = (iter.key(), iter.record());
                    if !goes(key) {
                        unchecked += (key.len() + record.row.len()) as u64;
                        add(key, record.kind, record.row)?;
                    }
                    if unchecked >= CHECK_BYTES {
                        self.pace(std::mem::take(&mut unchecked));
                        if self.closed() {
                            return Err(Error::Closed);
                        }
                    }
                    iter.next()?;
                }
                Ok(())
            })?;
        Ok(Some(kept.in_place_of(meta)))
    }
}

/// The same table without the ranges that go; `None` if nothing is left. No block is read.
fn excised(table: &TableRef, ranges: &KeyRanges) -> Option<TableMeta> {
    let meta = &table.meta;
    let excised = meta.excised.union(ranges);
    if excised.contains_all(&meta.smallest, &meta.largest) {
        return None;
    }
    let excised_bytes = table.bytes_of(&excised);
    Some(TableMeta { excised, excised_bytes, ..TableMeta::clone(meta) })
}

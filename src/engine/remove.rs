//! Taking keys out of the tables for good: rows that are no business of this store any more.
//!
//! A state never shrinks, so there is no record that says "nothing is here". Instead every table
//! that holds such a key is written anew without it, at its level and in its age:
//!
//! ```text
//! flush all that was written so far
//! for each piece of the keys, about as large as the tables that reach beyond it:
//!   reserve all tables that hold such a key of the piece; wait while a compaction has one
//!   write what stays of each to a new table
//!   if it is still permitted: one manifest edit, cache dropped for the piece, new version
//! ```
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

use std::time::Duration;

use super::error::{Error, Result};
use super::flush::{CacheChange, Unnamed};
use super::iter::Cursor;
use super::version::{TableMeta, TableRef, Version, VersionEdit};
use super::{Engine, Shared};

/// How long a table that a compaction has is waited for before it is looked at again.
const BUSY_WAIT: Duration = Duration::from_millis(200);
/// A piece of the keys is at least so many tables.
const PIECE_TABLES: u64 = 8;
/// After this many bytes it is looked whether to wait or to stop.
pub(super) const CHECK_BYTES: u64 = 256 << 10;

/// A range of keys: the first, and the first behind it (`None`: to the last key).
pub type Range = (Vec<u8>, Option<Vec<u8>>);

/// Runs what it is given if that may still be done, and says whether it did.
pub type Permit<'p> = dyn Fn(&mut dyn FnMut() -> Result<()>) -> Result<bool> + 'p;

impl Engine {
    /// Removes the keys of `ranges` that `goes` names, from everything written before the call.
    /// Returns how many records went, or `None` if the permit was refused: then some may be left.
    ///
    /// Nobody may write such a key while the permit is given.
    ///
    /// # Errors
    /// A table could not be read or written; [`Error::Corruption`] too of a table that cannot be
    /// written anew because of a block in it that nobody asked for; [`Error::Closed`].
    pub fn remove(
        &self,
        ranges: &[Range],
        goes: &dyn Fn(&[u8]) -> bool,
        permit: &Permit<'_>,
    ) -> Result<Option<u64>> {
        let shared = &self.shared;
        shared.flush_all()?;
        let mut removed = 0;
        let mut from = Vec::new();
        loop {
            let installs = shared.background.installs();
            if shared.closed() {
                return Err(Error::Closed);
            }
            let view = shared.super_version.load_full();
            let end = shared.end_of_piece(&view.version, &from);
            let piece = (from, end);
            match shared.remove_piece(&view.version, &piece, ranges, goes, permit)? {
                Piece::Gone(records) => removed += records,
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

/// What became of a piece of the keys.
enum Piece {
    /// It holds no such key any more; so many records went.
    Gone(u64),
    /// A compaction has a table that does.
    Busy,
    /// The permit was refused.
    Refused,
}

impl Shared {
    /// Where the piece that begins at `from` ends; `None`: behind the last key. A table that
    /// reaches beyond its end is written again for the next piece, so the tables within are to
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
            if within >= least && within >= beyond.map(|table| table.meta.bytes).sum::<u64>() {
                return Some([&**end, &[0]].concat());
            }
        }
        None
    }

    fn remove_piece(
        &self,
        version: &Version,
        piece: &Range,
        ranges: &[Range],
        goes: &dyn Fn(&[u8]) -> bool,
        permit: &Permit<'_>,
    ) -> Result<Piece> {
        let (first, end) = (&piece.0[..], piece.1.as_deref());
        let goes = |key: &[u8]| key >= first && end.is_none_or(|end| key < end) && goes(key);
        let ranges: Vec<Range> = ranges.iter().filter_map(|range| common(range, piece)).collect();
        let mut tables = Vec::new();
        for table in version.tables() {
            if holds_any(table, &ranges, &goes)? {
                tables.push(table);
            }
        }
        let (Some(smallest), Some(largest)) = (
            tables.iter().map(|table| &table.meta.smallest).min(),
            tables.iter().map(|table| &table.meta.largest).max(),
        ) else {
            return Ok(Piece::Gone(0));
        };
        let numbers: Vec<u64> = tables.iter().map(|table| table.meta.number).collect();
        let Some(reserved) = self.reserve(|picker| picker.pick_tables(&numbers)) else {
            let unreadable = tables.iter().copied().find(|table| self.is_unreadable(table));
            return unreadable.map_or(Ok(Piece::Busy), |table| Err(damage(table)));
        };
        let (mut edit, mut removed) = (VersionEdit::default(), 0);
        let mut unnamed = Unnamed::new(self);
        // As they are now: a compaction may have moved one since.
        for table in reserved.tables() {
            edit.removed.push((table.meta.level, table.meta.number));
            let (kept, records) = self.without(table, &goes)?;
            kept.iter().for_each(|table| unnamed.add(table));
            edit.added.extend(kept);
            removed += records;
        }
        let mut edit = Some(edit);
        let installed = permit(&mut || {
            let Some(edit) = edit.take() else { return Ok(()) };
            unnamed.keep();
            self.install(edit, CacheChange::Ingested { first: smallest, last: largest }, |_| {})
        })?;
        Ok(if installed { Piece::Gone(removed) } else { Piece::Refused })
    }

    /// Whether a table is left alone for good, unlike one that a compaction has.
    fn is_unreadable(&self, table: &TableRef) -> bool {
        let view = self.super_version.load();
        view.version.state().quarantined().iter().any(|range| range.table == table.meta.number)
    }

    /// Writes the table that replaces another, without the keys that go; `None` if nothing is left.
    /// And how many records go.
    fn without(
        &self,
        table: &TableRef,
        goes: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(Option<TableMeta>, u64)> {
        let meta = &table.meta;
        let mut iter = table.table().iter_verified();
        iter.seek_to_first()?;
        let mut removed = 0;
        while iter.valid() && goes(iter.key()) {
            removed += 1;
            iter.next()?;
        }
        if !iter.valid() {
            return Ok((None, removed));
        }
        let mut unchecked = 0;
        let kept = self.table_output().write_at(
            usize::from(meta.level),
            meta.epoch,
            meta.demote_full,
            |add| {
                while iter.valid() {
                    let (key, record) = (iter.key(), iter.record());
                    if goes(key) {
                        removed += 1;
                    } else {
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
            },
        )?;
        Ok((Some(TableMeta { created_ms: meta.created_ms, ..kept }), removed))
    }
}

/// What two ranges have in common, if anything.
fn common(one: &Range, other: &Range) -> Option<Range> {
    let start = one.0.clone().max(other.0.clone());
    let end = match (&one.1, &other.1) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.as_ref().or(other.as_ref()),
    };
    end.is_none_or(|end| start < *end).then(|| (start, end.cloned()))
}

/// What is wrong with a table with an unreadable block.
#[cold]
fn damage(table: &TableRef) -> Error {
    let mut first = None;
    table.table().verify_all(&mut |corruption, _| {
        first.get_or_insert(corruption);
    });
    let (path, what) = (table.table().path(), "a block could not be read");
    first.map_or_else(|| Error::corrupt(path, 0, what), Error::Corruption)
}

/// Whether a table holds a key that goes.
fn holds_any(table: &TableRef, ranges: &[Range], goes: &dyn Fn(&[u8]) -> bool) -> Result<bool> {
    let mut iter = table.table().iter();
    for (start, end) in ranges {
        let is_behind = end.as_ref().is_some_and(|end| *table.meta.smallest >= **end);
        if is_behind || *table.meta.largest < **start {
            continue;
        }
        iter.seek(start)?;
        while iter.valid() && end.as_ref().is_none_or(|end| iter.key() < &end[..]) {
            if goes(iter.key()) {
                return Ok(true);
            }
            iter.next()?;
        }
    }
    Ok(false)
}

//! Taking keys out of the tables for good: rows that are no business of this store any more.
//!
//! A state never shrinks, so there is no record that says "nothing is here". Instead every table
//! that holds such a key is written anew without it, at its level and in its age:
//!
//! ```text
//! flush all that was written so far
//! until no table holds such a key:
//!   reserve a table that does and that no compaction has
//!   write what stays to a new table
//!   if it is still permitted: manifest edit, cache dropped for its range, new version
//! ```
//!
//! # Invariants
//! 1. A table is replaced by one that holds the same records under every key that stays.
//! 2. Nothing is installed but inside the permit, so the caller decides up to when it holds that
//!    nobody writes such a key.
//! 3. After a crash some tables may have been replaced and others not: of a key that goes an older
//!    state may be left, never a newer one than there was. Calling again ends it.

use std::time::Duration;

use super::error::{Error, Result};
use super::flush::CacheChange;
use super::iter::Cursor;
use super::version::{TableMeta, TableRef, VersionEdit};
use super::{Engine, Shared};

/// How long a table that a compaction has is waited for before it is looked at again.
const BUSY_WAIT: Duration = Duration::from_millis(200);
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
    /// A table could not be read or written; [`Error::Closed`].
    pub fn remove(
        &self,
        ranges: &[Range],
        goes: &dyn Fn(&[u8]) -> bool,
        permit: &Permit<'_>,
    ) -> Result<Option<u64>> {
        self.shared.flush_all()?;
        let mut removed = 0;
        loop {
            let installs = self.shared.background.installs();
            match self.shared.remove_once(ranges, goes, permit)? {
                Pass::Clean => return Ok(Some(removed)),
                Pass::Refused => return Ok(None),
                Pass::Removed(records) => removed += records,
                Pass::Busy => {
                    self.shared.background.wait_for_install(installs, BUSY_WAIT);
                }
            }
        }
    }
}

/// What one look over all tables came to.
enum Pass {
    /// No table holds such a key.
    Clean,
    /// So many records went.
    Removed(u64),
    /// All that do are inputs of compactions.
    Busy,
    /// The permit was refused.
    Refused,
}

impl Shared {
    fn remove_once(
        &self,
        ranges: &[Range],
        goes: &dyn Fn(&[u8]) -> bool,
        permit: &Permit<'_>,
    ) -> Result<Pass> {
        let view = self.super_version.load_full();
        let mut pass = Pass::Clean;
        for table in view.version.tables() {
            if self.closed() {
                return Err(Error::Closed);
            }
            if !holds_any(table, ranges, goes)? {
                continue;
            }
            let Some(reserved) = self.reserve(|picker| picker.pick_table(table.meta.number)) else {
                if matches!(pass, Pass::Clean) {
                    pass = Pass::Busy;
                }
                continue;
            };
            let (edit, records) = self.without(table, goes)?;
            let (first, last) = (&table.meta.smallest, &table.meta.largest);
            let mut edit = Some(edit);
            let installed = permit(&mut || {
                let Some(edit) = edit.take() else { return Ok(()) };
                self.install(edit, CacheChange::Ingested { first, last }, |_| {})
            })?;
            drop(reserved);
            if !installed {
                if let Some(added) = edit.iter().flat_map(|edit| &edit.added).next() {
                    // If this fails, the next open does it.
                    let _ = self.vfs.remove(&self.versions.table_path(added.number));
                }
                return Ok(Pass::Refused);
            }
            let before = if let Pass::Removed(before) = pass { before } else { 0 };
            pass = Pass::Removed(before + records);
        }
        Ok(pass)
    }

    /// The edit that replaces a table by one without the keys that go, which is written, and how
    /// many records go.
    fn without(
        &self,
        table: &TableRef,
        goes: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(VersionEdit, u64)> {
        let meta = &table.meta;
        let mut edit =
            VersionEdit { removed: vec![(meta.level, meta.number)], ..VersionEdit::default() };
        let mut iter = table.table().iter_verified();
        iter.seek_to_first()?;
        let mut removed = 0;
        while iter.valid() && goes(iter.key()) {
            removed += 1;
            iter.next()?;
        }
        if !iter.valid() {
            return Ok((edit, removed));
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
        edit.added.push(TableMeta { created_ms: meta.created_ms, ..kept });
        Ok((edit, removed))
    }
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

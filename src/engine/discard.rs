//! Giving up what cannot be read: a table with quarantined blocks is written anew without them, at
//! its level and in its age. So is one with a row that cannot be decoded though its block is sound.
//!
//! What such a block held is lost to this store, and older records of its keys that it hid are seen
//! again. So the caller has a say on every range: it marks the partitions as damaged before
//! ([`Engine::set_damaged`]) and fetches them from elsewhere after, or keeps the block, whose keys
//! then go on to fail by name.
//!
//! # Invariants
//! 1. A table is replaced by one that holds the same records under all keys whose blocks are sound.
//! 2. Nothing goes that was not quarantined before, range for range: what turns out to be damaged
//!    only now is quarantined, and its table stays until the caller was asked about that too.
//! 3. Nothing is installed but inside the permit.

use std::cell::RefCell;

use super::compaction::Picker;
use super::error::{Error, Result};
use super::flush::{CacheChange, Unnamed};
use super::remove::{CHECK_BYTES, Permit};
use super::scrub::quarantined;
use super::version::{Quarantined, TableMeta, TableRef, VersionEdit};
use super::{Engine, Shared};

impl Engine {
    /// Writes the tables with quarantined blocks anew without these blocks, where `may_go` says
    /// yes to every one of a table. Returns how many blocks went.
    ///
    /// # Errors
    /// A table could not be read or written; [`Error::DiskFull`]; [`Error::Closed`].
    pub fn discard(
        &self,
        may_go: &dyn Fn(&Quarantined) -> bool,
        permit: &Permit<'_>,
    ) -> Result<u64> {
        let version = self.shared.version();
        let all = version.state().quarantined();
        let mut discarded = 0;
        for table in version.tables() {
            let number = table.meta.number;
            let ranges: Vec<&Quarantined> = all.iter().filter(|it| it.table == number).collect();
            if !ranges.is_empty() && ranges.iter().all(|range| may_go(range)) {
                discarded += self.shared.discard_from(table, &ranges, permit)?;
            }
        }
        Ok(discarded)
    }
}

impl Shared {
    fn discard_from(
        &self,
        table: &TableRef,
        ranges: &[&Quarantined],
        permit: &Permit<'_>,
    ) -> Result<u64> {
        let number = table.meta.number;
        // A job that began before the damage was found has it, or the room: the next call finds it
        // free, or gone with what the job could read.
        let pick = |picker: &Picker<'_>| picker.pick_quarantined(number);
        let Some(reserved) = self.reserve_in_place(pick) else { return Ok(0) };
        // It may have been set aside since the caller looked.
        let table = reserved.table();
        let meta = &table.meta;
        let (kept, bad) = self.without_bad_blocks(table)?;
        let mut unnamed = Unnamed::new(self);
        kept.iter().for_each(|table| unnamed.add(table));
        let edit = VersionEdit {
            removed: vec![(meta.level, meta.number)],
            added: kept.into_iter().collect(),
            ..VersionEdit::default()
        };
        let is_known = |range: &Quarantined| ranges.contains(&range);
        let mut edit = Some(edit);
        let installed = bad.iter().all(is_known)
            && permit(&mut || {
                let Some(edit) = edit.take() else { return Ok(()) };
                let (first, last) = (&meta.smallest, &meta.largest);
                unnamed.keep();
                self.install(edit, CacheChange::Range { first, last }, |_| {})
            })?;
        if installed {
            return Ok(ranges.len() as u64);
        }
        self.quarantine(table, bad)?;
        Ok(0)
    }

    /// A table of the rows of another that can be read, if there are any, and the ranges of what
    /// cannot: bad blocks, and rows that cannot be decoded.
    fn without_bad_blocks(
        &self,
        table: &TableRef,
    ) -> Result<(Option<TableMeta>, Vec<Quarantined>)> {
        let (meta, bad) = (&table.meta, RefCell::new(Vec::new()));
        let number = meta.number;
        let mut unpaced = 0;
        let mut records = 0_u64;
        let level = usize::from(meta.level);
        let output = self.table_output(self.compaction_space().1);
        let written = output.write_at(level, meta.epoch, meta.demote_full, |add| {
            table.visit_sound(
                &mut |key, record| {
                    unpaced += (key.len() + record.row.len()) as u64;
                    if unpaced >= CHECK_BYTES {
                        self.pace(std::mem::take(&mut unpaced));
                        if self.closed() {
                            return Err(Error::Closed);
                        }
                    }
                    match add(key, record.kind, record.row) {
                        Err(Error::Merge(_)) => {
                            let (table, smallest, largest) = (number, key.into(), key.into());
                            bad.borrow_mut().push(Quarantined { table, smallest, largest });
                            Ok(())
                        }
                        added => {
                            records += u64::from(added.is_ok());
                            added
                        }
                    }
                },
                &mut |range| {
                    bad.borrow_mut().push(quarantined(table, range));
                    Ok(())
                },
            )
        });
        let kept = match written {
            // No table is made of nothing.
            Err(Error::OutOfBounds { .. }) if records == 0 && !bad.borrow().is_empty() => None,
            written => Some(written?.in_place_of(meta)),
        };
        Ok((kept, bad.into_inner()))
    }
}

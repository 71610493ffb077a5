//! What the manifest says of a table.
//!
//! | field | bytes |
//! |---|---|
//! | number, epoch, bytes, entries, deltas, purgeable | 6 x u64 |
//! | live_time_min, time_max, created_ms | 3 x u64 |
//! | level | u8 |
//! | flags: 1 = demote_full | u8 |
//! | smallest, largest | u16 length + bytes, each |

use std::fmt;
use std::path::{Path, PathBuf};

use super::wire::{Reader, WireError, put_key};

const FLAG_DEMOTE_FULL: u8 = 1;

/// A table as the manifest describes it. Immutable; moving it to another level makes a new one.
#[derive(Clone, PartialEq, Eq)]
pub struct TableMeta {
    /// File number, unique for the life of the store.
    pub number: u64,
    /// Level, 0 the newest.
    pub level: u8,
    /// Epoch of the newest memtable or ingest whose records it holds. Orders level 0.
    pub epoch: u64,
    /// File size in bytes.
    pub bytes: u64,
    /// Records.
    pub entries: u64,
    /// Records of kind Delta.
    pub deltas: u64,
    /// Records that could be forgotten under a floor that is high enough: nothing but tombstones
    /// and versions that expire.
    pub purgeable: u64,
    /// Time of the oldest live version in it, `u64::MAX` if none.
    pub live_time_min: u64,
    /// The greatest time in it; `u64::MAX` if unknown.
    pub time_max: u64,
    /// When it was written, in milliseconds of the engine's clock. Starts idle compactions; never
    /// a matter of correctness.
    pub created_ms: u64,
    /// Its records of kind Full are another node's claims: read them as Deltas.
    pub demote_full: bool,
    /// The first key.
    pub smallest: Box<[u8]>,
    /// The last key.
    pub largest: Box<[u8]>,
}

impl fmt::Debug for TableMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "table {} (level {}, epoch {}, {} bytes, {}..={}{})",
            self.number,
            self.level,
            self.epoch,
            self.bytes,
            self.smallest.escape_ascii(),
            self.largest.escape_ascii(),
            if self.demote_full { ", demote_full" } else { "" },
        )
    }
}

impl TableMeta {
    /// The name of table file `number` in `dir`.
    pub fn path(dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("{number:010}.sst"))
    }

    /// The number in a table file's name; `None` if it is not the name of a table.
    pub fn number_of(path: &Path) -> Option<u64> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".sst")?;
        let digits = stem.len() >= 10 && stem.bytes().all(|b| b.is_ascii_digit());
        if digits { stem.parse().ok() } else { None }
    }

    /// Whether `key` lies in its key range.
    pub fn covers(&self, key: &[u8]) -> bool {
        *self.smallest <= *key && *key <= *self.largest
    }

    /// Whether its key range and `smallest..=largest` share a key.
    pub fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        *self.smallest <= *largest && *smallest <= *self.largest
    }

    /// The partitions its key range touches, as indices.
    pub fn partitions(&self, bits: u32) -> std::ops::RangeInclusive<usize> {
        super::partition_of(&self.smallest, bits)..=super::partition_of(&self.largest, bits)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for word in [
            self.number,
            self.epoch,
            self.bytes,
            self.entries,
            self.deltas,
            self.purgeable,
            self.live_time_min,
            self.time_max,
            self.created_ms,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.push(self.level);
        out.push(if self.demote_full { FLAG_DEMOTE_FULL } else { 0 });
        put_key(out, &self.smallest);
        put_key(out, &self.largest);
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut words = [0; 9];
        for word in &mut words {
            *word = from.u64("table meta")?;
        }
        let [number, epoch, bytes, entries, deltas, purgeable, live_min, time_max, created] = words;
        let level = from.u8("table level")?;
        let flags = from.u8("table flags")?;
        if flags & !FLAG_DEMOTE_FULL != 0 {
            return Err(WireError::Bad { what: "table flags", found: flags.into() });
        }
        Ok(Self {
            number,
            level,
            epoch,
            bytes,
            entries,
            deltas,
            purgeable,
            live_time_min: live_min,
            time_max,
            created_ms: created,
            demote_full: flags & FLAG_DEMOTE_FULL != 0,
            smallest: from.key("smallest key")?,
            largest: from.key("largest key")?,
        })
    }
}

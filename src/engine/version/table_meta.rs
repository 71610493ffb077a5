//! What the manifest says of a table.
//!
//! | field | bytes |
//! |---|---|
//! | number, epoch, bytes, entries, deltas, purgeable | 6 x u64 |
//! | live_time_min, time_max, created_ms | 3 x u64 |
//! | level | u8 |
//! | flags: 1 = demote_full, 2 = keys are excised from it, 4 = it has overwrites | u8 |
//! | smallest, largest | u16 length + bytes, each |
//! | with flag 4: overwrites | u64 |
//! | with flag 2: excised bytes | u64 |
//! | with flag 2: number of excised ranges | u32 |
//! | each: first key | u16 length + bytes |
//! | each: 1 = it ends, 0 = it goes to the last key | u8 |
//! | each, if it ends: first key behind it | u16 length + bytes |

use std::fmt;
use std::path::{Path, PathBuf};

use super::wire::{Reader, WireError, put_key};
use crate::engine::ranges::KeyRanges;
use crate::engine::scale::scale;

const FLAG_DEMOTE_FULL: u8 = 1;
const FLAG_EXCISED: u8 = 2;
const FLAG_OVERWRITES: u8 = 4;

/// A table as the manifest describes it. Immutable; moving it to another level, or excising keys
/// from it, makes a new one.
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
    /// About how many of its records have a key that an older table holds too: what they overwrite
    /// is on disk until they meet it. Counted by the filters when a memtable is flushed, reckoned
    /// from there on; of no meaning at the last level. Sizes the base level; never a matter of
    /// correctness.
    pub overwrites: u64,
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
    /// Its records of kind Full may lack something that lies below them: read them as Deltas. So it
    /// is where the rows are another node's (an ingest), and where the table was set aside for an
    /// unreadable block: newer tables pass it on their way down.
    pub demote_full: bool,
    /// The first key.
    pub smallest: Box<[u8]>,
    /// The last key.
    pub largest: Box<[u8]>,
    /// Keys that are not in it any more, whatever its file says. Beyond `smallest..=largest` they
    /// say nothing.
    pub excised: KeyRanges,
    /// About how many of `bytes` are theirs.
    pub excised_bytes: u64,
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
        )?;
        for (start, end) in self.excised.ranges() {
            let end = end.as_deref().unwrap_or_default().escape_ascii();
            write!(f, " without {}..{end}", start.escape_ascii())?;
        }
        Ok(())
    }
}

impl TableMeta {
    /// The same as what is left of `older`: its records are no younger for being written anew.
    #[must_use]
    pub fn in_place_of(self, older: &Self) -> Self {
        let overwrites = scale(older.overwrites, self.entries, older.entries);
        Self { created_ms: older.created_ms, overwrites, ..self }
    }

    /// About how many of the records that readers can find overwrite something.
    pub fn visible_overwrites(&self) -> u64 {
        scale(self.overwrites, self.visible_bytes(), self.bytes)
    }

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

    /// About how many bytes of it readers can find.
    pub fn visible_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.excised_bytes)
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
        let demote_full = if self.demote_full { FLAG_DEMOTE_FULL } else { 0 };
        let excised = if self.excised.is_empty() { 0 } else { FLAG_EXCISED };
        let overwrites = if self.overwrites == 0 { 0 } else { FLAG_OVERWRITES };
        out.push(demote_full | excised | overwrites);
        put_key(out, &self.smallest);
        put_key(out, &self.largest);
        if overwrites != 0 {
            out.extend_from_slice(&self.overwrites.to_le_bytes());
        }
        if excised != 0 {
            self.encode_excised(out);
        }
    }

    fn encode_excised(&self, out: &mut Vec<u8>) {
        let ranges = self.excised.ranges();
        let count = u32::try_from(ranges.len()).expect("there are at most as many as partitions");
        out.extend_from_slice(&self.excised_bytes.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for (start, end) in ranges {
            put_key(out, start);
            out.push(u8::from(end.is_some()));
            if let Some(end) = end {
                put_key(out, end);
            }
        }
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut words = [0; 9];
        for word in &mut words {
            *word = from.u64("table meta")?;
        }
        let [number, epoch, bytes, entries, deltas, purgeable, rest @ ..] = words;
        let [live_time_min, time_max, created_ms] = rest;
        let level = from.u8("table level")?;
        let flags = from.u8("table flags")?;
        if flags & !(FLAG_DEMOTE_FULL | FLAG_EXCISED | FLAG_OVERWRITES) != 0 {
            return Err(WireError::Bad { what: "table flags", found: flags.into() });
        }
        let (smallest, largest) = (from.key("smallest key")?, from.key("largest key")?);
        let has_overwrites = flags & FLAG_OVERWRITES != 0;
        let overwrites = if has_overwrites { from.u64("overwrites")? } else { 0 };
        let is_cut = flags & FLAG_EXCISED != 0;
        let (excised_bytes, excised) =
            if is_cut { decode_excised(from)? } else { (0, KeyRanges::default()) };
        Ok(Self {
            number,
            level,
            epoch,
            bytes,
            entries,
            deltas,
            overwrites,
            purgeable,
            live_time_min,
            time_max,
            created_ms,
            demote_full: flags & FLAG_DEMOTE_FULL != 0,
            smallest,
            largest,
            excised,
            excised_bytes,
        })
    }
}

/// The ranges are judged with the edit they come in.
fn decode_excised(from: &mut Reader<'_>) -> Result<(u64, KeyRanges), WireError> {
    let bytes = from.u64("excised bytes")?;
    let mut ranges = Vec::new();
    for _ in 0..from.u32("number of excised ranges")? {
        let start = from.key("first excised key")?.into_vec();
        let end = match from.u8("whether an excised range ends")? {
            0 => None,
            1 => Some(from.key("end of an excised range")?.into_vec()),
            found => {
                let (what, found) = ("whether an excised range ends", found.into());
                return Err(WireError::Bad { what, found });
            }
        };
        ranges.push((start, end));
    }
    Ok((bytes, KeyRanges::unchecked(ranges)))
}

//! One change of the store: which tables come and go, and the words that go with them.
//!
//! An edit is the unit of atomicity on disk. Its encoding is a row of fields, each a tag byte and a
//! body; a field may come several times where it says "each". Integers are little-endian.
//!
//! | tag | field | body |
//! |---|---|---|
//! | 1 | snapshot: the edit replaces everything before it | - |
//! | 2 | partition bits (in snapshots only) | u8 |
//! | 3 | table removed, each | level u8, number u64 |
//! | 4 | table added, each | see [`TableMeta`] |
//! | 5 | flushed position | u64 |
//! | 6 | next file number | u64 |
//! | 7 | next epoch | u64 |
//! | 8 | safe point of a range of partitions, each | first u32, end u32, words as below |
//! | 9 | quarantined key range, each | table number u64, smallest, largest: u16 length + bytes |
//!
//! The words of a safe point are guard, floor and floor epoch (u64 each), the number of damaged
//! peers (u16) and the peers (u128 each).
//!
//! It does not judge whether a change is allowed: see [`VersionState`](super::VersionState).

use std::ops::Range;

use super::safe_point::SafePoint;
use super::table_meta::TableMeta;
use super::wire::{Reader, WireError, put_key};
use crate::engine::position::Position;

const TAG_SNAPSHOT: u8 = 1;
const TAG_PARTITION_BITS: u8 = 2;
const TAG_REMOVED: u8 = 3;
const TAG_ADDED: u8 = 4;
const TAG_FLUSHED: u8 = 5;
const TAG_FILE_NEXT: u8 = 6;
const TAG_EPOCH_NEXT: u8 = 7;
const TAG_SAFE_POINT: u8 = 8;
const TAG_QUARANTINED: u8 = 9;

/// One change; see the module page. `Default` changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct VersionEdit {
    /// Set in the first edit of a manifest: the number of partition bits, and that the edit
    /// replaces everything.
    pub(crate) snapshot: Option<u32>,
    /// Tables that go, by level and number. A table that moves is removed and added.
    pub removed: Vec<(u8, u64)>,
    /// Tables that come.
    pub added: Vec<TableMeta>,
    /// Everything before it in the log is in tables.
    pub flushed: Option<Position>,
    /// File numbers from here on are unused.
    pub file_next: Option<u64>,
    /// Epochs from here on are unused.
    pub epoch_next: Option<u64>,
    /// New safe points, by range of partitions.
    pub safe_points: Vec<(Range<u32>, SafePoint)>,
    /// Unreadable blocks of tables. They go with their table, or when they are excised from it.
    pub quarantined: Vec<Quarantined>,
}

/// The key range of an unreadable block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The table that holds it.
    pub table: u64,
    /// The least key that it may have held.
    pub smallest: Box<[u8]>,
    /// The greatest key that it may have held.
    pub largest: Box<[u8]>,
}

impl Quarantined {
    /// Whether all keys that the block may have held are excised from its table.
    pub fn is_excised_from(&self, table: &TableMeta) -> bool {
        let (first, last) = (&self.smallest, &self.largest);
        // A single row, and the last block of a table, end with a key of theirs; any other block
        // with the first key that is not, which may stay.
        let is_behind = first < last && *last < table.largest;
        table.excised.contains_all(first, last)
            || is_behind && table.excised.contains_until(first, last)
    }
}

impl VersionEdit {
    /// Appends the encoding.
    ///
    /// # Panics
    /// If a key is longer than `KEY_BYTES_MAX` or a partition has more than 65,535 peers.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Some(bits) = self.snapshot {
            out.push(TAG_SNAPSHOT);
            out.extend_from_slice(&[TAG_PARTITION_BITS, bits as u8]);
        }
        for (level, number) in &self.removed {
            out.extend_from_slice(&[TAG_REMOVED, *level]);
            out.extend_from_slice(&number.to_le_bytes());
        }
        for table in &self.added {
            out.push(TAG_ADDED);
            table.encode(out);
        }
        let flushed = self.flushed.map(Position::to_u64);
        for (tag, word) in [
            (TAG_FLUSHED, flushed),
            (TAG_FILE_NEXT, self.file_next),
            (TAG_EPOCH_NEXT, self.epoch_next),
        ] {
            if let Some(word) = word {
                out.push(tag);
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        for (partitions, point) in &self.safe_points {
            encode_safe_point(partitions, point, out);
        }
        for range in &self.quarantined {
            out.push(TAG_QUARANTINED);
            out.extend_from_slice(&range.table.to_le_bytes());
            put_key(out, &range.smallest);
            put_key(out, &range.largest);
        }
    }

    /// Reads an encoding.
    ///
    /// # Errors
    /// The field that could not be read. Never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        let mut edit = Self::default();
        while !from.is_empty() {
            match from.u8("tag")? {
                TAG_SNAPSHOT => {
                    let tag = from.u8("tag of partition bits")?;
                    if tag != TAG_PARTITION_BITS {
                        return Err(WireError::Bad { what: "tag", found: tag.into() });
                    }
                    edit.snapshot = Some(from.u8("partition bits")?.into());
                }
                TAG_REMOVED => {
                    edit.removed.push((from.u8("level")?, from.u64("table number")?));
                }
                TAG_ADDED => edit.added.push(TableMeta::decode(&mut from)?),
                TAG_FLUSHED => edit.flushed = Some(Position::from_u64(from.u64("position")?)),
                TAG_FILE_NEXT => edit.file_next = Some(from.u64("next file number")?),
                TAG_EPOCH_NEXT => edit.epoch_next = Some(from.u64("next epoch")?),
                TAG_SAFE_POINT => edit.safe_points.push(decode_safe_point(&mut from)?),
                TAG_QUARANTINED => edit.quarantined.push(Quarantined {
                    table: from.u64("table number")?,
                    smallest: from.key("smallest key")?,
                    largest: from.key("largest key")?,
                }),
                tag => return Err(WireError::Bad { what: "tag", found: tag.into() }),
            }
        }
        Ok(edit)
    }
}

fn encode_safe_point(partitions: &Range<u32>, point: &SafePoint, out: &mut Vec<u8>) {
    out.push(TAG_SAFE_POINT);
    out.extend_from_slice(&partitions.start.to_le_bytes());
    out.extend_from_slice(&partitions.end.to_le_bytes());
    for word in [point.guard, point.floor, point.floor_epoch] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let peers = u16::try_from(point.damaged.len()).expect("a partition has few replicas");
    out.extend_from_slice(&peers.to_le_bytes());
    for peer in &point.damaged {
        out.extend_from_slice(&peer.to_le_bytes());
    }
}

fn decode_safe_point(from: &mut Reader<'_>) -> Result<(Range<u32>, SafePoint), WireError> {
    let partitions = from.u32("first partition")?..from.u32("end of partitions")?;
    let guard = from.u64("guard")?;
    let floor = from.u64("floor")?;
    let floor_epoch = from.u64("floor epoch")?;
    let peers = from.u16("number of peers")?;
    let damaged = (0..peers).map(|_| from.u128("peer")).collect::<Result<_, _>>()?;
    Ok((partitions, SafePoint { guard, floor, floor_epoch, damaged }))
}

//! What a table says about itself.
//!
//! The properties section, all integers little endian:
//!
//! | bytes | what |
//! |--:|---|
//! | 8 | entries |
//! | 8 | Deltas among them |
//! | 8 | time of the oldest live version |
//! | 8 | greatest time |
//! | 8 | bytes of keys |
//! | 8 | bytes of rows |
//! | 8 | bytes of data blocks before compression |
//! | 4 | data blocks |
//! | 4 | compression: 0 none, 1 LZ4 |
//! | 4 | length of the smallest key |
//! | 4 | length of the largest key |
//! | | the smallest key, then the largest one |

use super::format::{Checked, u32_at, u64_at};
use crate::engine::options::{Compression, KEY_BYTES_MAX};

const FIXED_BYTES: usize = 72;

/// What a table says about itself. Written at the end of the build, read at open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Records, one per key.
    pub entries: u64,
    /// Records that are Deltas.
    pub deltas: u64,
    /// Time of the oldest live version in the table, in the merge operator's clock; `u64::MAX` if
    /// none is live.
    pub live_time_min: u64,
    /// Greatest time in the table, in the merge operator's clock.
    pub time_max: u64,
    /// Bytes of all keys.
    pub key_bytes: u64,
    /// Bytes of all rows.
    pub row_bytes: u64,
    /// Bytes of the data blocks before compression.
    pub raw_bytes: u64,
    /// Number of data blocks.
    pub blocks: u32,
    /// Whether data blocks may be compressed.
    pub compression: Compression,
    /// The smallest key.
    pub smallest: Box<[u8]>,
    /// The largest key.
    pub largest: Box<[u8]>,
}

impl Properties {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for number in [
            self.entries,
            self.deltas,
            self.live_time_min,
            self.time_max,
            self.key_bytes,
            self.row_bytes,
            self.raw_bytes,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let compression = match self.compression {
            Compression::None => 0_u32,
            Compression::Lz4 => 1,
        };
        let (smallest, largest) = (self.smallest.len() as u32, self.largest.len() as u32);
        for number in [self.blocks, compression, smallest, largest] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.smallest);
        out.extend_from_slice(&self.largest);
    }

    pub(super) fn decode(bytes: &[u8]) -> Checked<Self> {
        let long = |at: usize| u64_at(bytes, at * 8, "properties");
        let short = |at: usize| u32_at(bytes, 56 + at * 4, "properties");
        let compression = match short(1)? {
            0 => Compression::None,
            1 => Compression::Lz4,
            other => return Err(format!("properties name compression {other}").into()),
        };
        let (smallest_len, largest_len) = (short(2)? as usize, short(3)? as usize);
        let keys = bytes.get(FIXED_BYTES..).unwrap_or_default();
        let longest = smallest_len.max(largest_len);
        if longest > KEY_BYTES_MAX || keys.len() != smallest_len + largest_len {
            return Err("properties name keys of the wrong length".into());
        }
        let (smallest, largest) = keys.split_at(smallest_len);
        let properties = Self {
            entries: long(0)?,
            deltas: long(1)?,
            live_time_min: long(2)?,
            time_max: long(3)?,
            key_bytes: long(4)?,
            row_bytes: long(5)?,
            raw_bytes: long(6)?,
            blocks: short(0)?,
            compression,
            smallest: smallest.into(),
            largest: largest.into(),
        };
        if properties.entries == 0
            || properties.deltas > properties.entries
            || properties.smallest > properties.largest
        {
            return Err("properties contradict each other".into());
        }
        Ok(properties)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Properties survive encoding; truncated or random bytes are refused, never a panic.
        #[test]
        fn round_trip_and_garbage(
            numbers: [u64; 6],
            deltas in 0_u64..10,
            mut smallest: Vec<u8>,
            mut largest: Vec<u8>,
            garbage: Vec<u8>,
            cut: proptest::sample::Index,
        ) {
            if smallest > largest {
                std::mem::swap(&mut smallest, &mut largest);
            }
            let properties = Properties {
                entries: 10 + numbers[0] / 2,
                deltas,
                live_time_min: numbers[1],
                time_max: numbers[2],
                key_bytes: numbers[3],
                row_bytes: numbers[4],
                raw_bytes: numbers[5],
                blocks: 7,
                compression: Compression::Lz4,
                smallest: smallest.into(),
                largest: largest.into(),
            };
            let mut bytes = Vec::new();
            properties.encode(&mut bytes);
            prop_assert_eq!(Properties::decode(&bytes), Ok(properties));
            prop_assert!(Properties::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let _ = Properties::decode(&garbage);
        }
    }
}

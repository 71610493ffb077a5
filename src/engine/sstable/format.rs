//! What every part of a table file is wrapped in: frames, section handles, the footer.
//!
//! This file knows bytes, offsets and checksums. It does not know keys or records.
//!
//! All integers are little endian. A **frame** holds one data block or one section:
//!
//! | bytes | what |
//! |--:|---|
//! | n | payload, as stored |
//! | 0..=7 | zeros up to a multiple of 8, so that columns of the next frame are aligned |
//! | 1 | encoding of the payload: 0 none, 1 LZ4 block |
//! | 3 | zeros |
//! | 4 | length of the payload before encoding |
//! | 4 | length of the payload as stored, `n` |
//! | 4 | CRC-32 of file number, frame offset (8 bytes each) and all of the frame before it |
//!
//! The footer is the last [`FOOTER_BYTES`] bytes of the file:
//!
//! | at | bytes | what |
//! |--:|--:|---|
//! | 0 | 8 | file number |
//! | 8 | 8 | file length, footer included |
//! | 16 | 16 | filter: offset and length of its frame; length 0 if there is none |
//! | 32 | 16 | index: offset and length of its frame |
//! | 48 | 16 | properties: offset and length of their frame |
//! | 64 | 4 | zeros |
//! | 68 | 4 | CRC-32 of file number, footer offset (8 bytes each) and bytes 0..68 |
//! | 72 | 4 | format version |
//! | 76 | 4 | format version, inverted |
//! | 80 | 8 | magic, `PairSST` and a line feed |
//!
//! # Invariants
//! 1. Every byte of a file is covered by exactly one checksum, or is compared with a constant.
//! 2. The checksum covers where the bytes belong (file number, offset): a block that the disk
//!    wrote to, or read from, another place does not pass for the right one.
//! 3. Version and magic stay the last 16 bytes in every later format, so that an old program can
//!    tell "too new" from "damaged".

use std::borrow::Cow;

use crate::engine::checksum::of_placed as checksum;
use crate::engine::options::{JOINED_BYTES_MAX, KEY_BYTES_MAX};

/// The last eight bytes of every table.
pub(super) const MAGIC: [u8; 8] = *b"PairSST\n";
/// The format this program writes. It reads no older one: there was no release with one.
pub(super) const FORMAT_VERSION: u32 = 2;
/// Length of the footer, in bytes.
pub(super) const FOOTER_BYTES: usize = 88;
/// What a frame adds behind its padded payload, in bytes.
pub(super) const TRAILER_BYTES: usize = 16;
/// No data block is longer: its largest target size, one more row and key, columns.
pub(super) const BLOCK_BYTES_MAX: usize = JOINED_BYTES_MAX + 2 * KEY_BYTES_MAX + (16 << 20);

const ENCODING_NONE: u8 = 0;
const ENCODING_LZ4: u8 = 1;

/// Bytes that do not say what they should. The table adds file and offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage(pub Cow<'static, str>);

impl From<&'static str> for Damage {
    fn from(what: &'static str) -> Self {
        Self(Cow::Borrowed(what))
    }
}

impl From<String> for Damage {
    fn from(what: String) -> Self {
        Self(Cow::Owned(what))
    }
}

/// Result of reading bytes that may be damaged.
pub(super) type Checked<T> = Result<T, Damage>;

/// The `N` bytes of `bytes` at `at`, or damage named `what`.
pub(super) fn array_at<const N: usize>(
    bytes: &[u8],
    at: usize,
    what: &'static str,
) -> Checked<[u8; N]> {
    bytes.get(at..).and_then(|b| b.first_chunk::<N>()).copied().ok_or(Damage::from(what))
}

/// A little-endian `u32` of `bytes` at `at`, or damage named `what`.
pub(super) fn u32_at(bytes: &[u8], at: usize, what: &'static str) -> Checked<u32> {
    array_at(bytes, at, what).map(u32::from_le_bytes)
}

/// A little-endian `u64` of `bytes` at `at`, or damage named `what`.
pub(super) fn u64_at(bytes: &[u8], at: usize, what: &'static str) -> Checked<u64> {
    array_at(bytes, at, what).map(u64::from_le_bytes)
}

/// Where a frame stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Section {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Length of the frame, trailer included.
    pub len: u64,
}

/// How a frame's payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As it is.
    None,
    /// As an LZ4 block.
    Lz4,
}

/// Closes the frame whose stored payload begins at `start` of `out`: pads it, adds the trailer.
///
/// `offset` is the place of the frame in file `number`, `raw_len` the payload's length before it
/// was encoded.
pub(super) fn close_frame(
    out: &mut Vec<u8>,
    start: usize,
    number: u64,
    offset: u64,
    encoding: Encoding,
    raw_len: usize,
) {
    let stored_len = out.len() - start;
    debug_assert!(u32::try_from(raw_len).is_ok() && u32::try_from(stored_len).is_ok());
    out.resize(start + stored_len.next_multiple_of(8), 0);
    let encoding = match encoding {
        Encoding::None => ENCODING_NONE,
        Encoding::Lz4 => ENCODING_LZ4,
    };
    out.extend_from_slice(&[encoding, 0, 0, 0]);
    out.extend_from_slice(&(raw_len as u32).to_le_bytes());
    out.extend_from_slice(&(stored_len as u32).to_le_bytes());
    let crc = checksum(number, offset, &out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// A frame whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    /// How the payload is stored.
    pub encoding: Encoding,
    /// The payload's length once decoded.
    pub raw_len: usize,
    /// The payload as stored.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks the frame `bytes`, which stand at `offset` of file `number`.
    pub fn verify(bytes: &'a [u8], number: u64, offset: u64) -> Checked<Self> {
        let Some((covered, crc)) = bytes.split_last_chunk::<4>() else {
            return Err("frame shorter than its checksum".into());
        };
        let found = checksum(number, offset, covered);
        let expected = u32::from_le_bytes(*crc);
        if found != expected {
            return Err(format!("checksum is {found:#010x}, expected {expected:#010x}").into());
        }
        Self::parse(bytes)
    }

    /// Reads the trailer of a frame that was verified before.
    pub fn parse(bytes: &'a [u8]) -> Checked<Self> {
        let Some(padded) = bytes.len().checked_sub(TRAILER_BYTES) else {
            return Err("frame shorter than its trailer".into());
        };
        let encoding = match array_at::<4>(bytes, padded, "frame trailer")? {
            [ENCODING_NONE, 0, 0, 0] => Encoding::None,
            [ENCODING_LZ4, 0, 0, 0] => Encoding::Lz4,
            other => return Err(format!("frame has unknown encoding {other:?}").into()),
        };
        let raw_len = u32_at(bytes, padded + 4, "frame trailer")? as usize;
        let stored_len = u32_at(bytes, padded + 8, "frame trailer")? as usize;
        if stored_len.next_multiple_of(8) != padded {
            return Err(format!("frame of {padded} bytes names {stored_len}").into());
        }
        let fits = match encoding {
            Encoding::None => raw_len == stored_len,
            Encoding::Lz4 => raw_len <= BLOCK_BYTES_MAX,
        };
        if !fits {
            return Err(format!("{stored_len} stored bytes name {raw_len} decoded ones").into());
        }
        Ok(Self { encoding, raw_len, payload: &bytes[..stored_len] })
    }

    /// The decoded payload of an LZ4 frame.
    pub fn decompress(&self) -> Checked<Vec<u8>> {
        // No LZ4 block grows more than 255-fold, so garbage cannot ask for much memory.
        if self.raw_len > self.payload.len().saturating_mul(255) {
            return Err(format!("{} bytes cannot hold {}", self.payload.len(), self.raw_len).into());
        }
        let mut raw = vec![0; self.raw_len];
        match lz4_flex::block::decompress_into(self.payload, &mut raw) {
            Ok(len) if len == self.raw_len => Ok(raw),
            Ok(len) => Err(format!("decoded to {len} bytes, expected {}", self.raw_len).into()),
            Err(error) => Err(format!("LZ4: {error}").into()),
        }
    }
}

/// The end of a table file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// The file's number, part of every checksum in it.
    pub number: u64,
    /// The file's length.
    pub file_len: u64,
    /// The filter's frame; empty if the table has no filter.
    pub filter: Section,
    /// The index's frame.
    pub index: Section,
    /// The properties' frame.
    pub properties: Section,
}

/// Why a footer was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FooterError {
    /// Damaged.
    Damage(Damage),
    /// Of a later format.
    TooNew(u32),
}

impl From<Damage> for FooterError {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl Footer {
    /// Appends the footer, which begins at `offset` of its file.
    pub fn encode(&self, offset: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.file_len.to_le_bytes());
        for section in [self.filter, self.index, self.properties] {
            out.extend_from_slice(&section.offset.to_le_bytes());
            out.extend_from_slice(&section.len.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        let crc = checksum(self.number, offset, &out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&(!FORMAT_VERSION).to_le_bytes());
        out.extend_from_slice(&MAGIC);
        debug_assert_eq!(out.len() - start, FOOTER_BYTES);
    }

    /// Reads the footer of the whole file `bytes`, which is meant to have `number`.
    ///
    /// The sections are checked to follow each other without a gap up to the footer.
    pub fn decode(bytes: &[u8], number: u64) -> Result<Self, FooterError> {
        let Some((_, tail)) = bytes.split_last_chunk::<16>() else {
            return Err(Damage::from("file shorter than a footer").into());
        };
        if tail[8..] != MAGIC {
            return Err(Damage::from("no table: the magic is missing").into());
        }
        let version = u32_at(tail, 0, "footer")?;
        if version != !u32_at(tail, 4, "footer")? || version == 0 {
            return Err(Damage::from("format version is damaged").into());
        }
        if version > FORMAT_VERSION {
            return Err(FooterError::TooNew(version));
        }
        if version < FORMAT_VERSION {
            return Err(Damage::from("format version 1, of before the first release").into());
        }
        let Some(at) = bytes.len().checked_sub(FOOTER_BYTES) else {
            return Err(Damage::from("file shorter than a footer").into());
        };
        let footer = &bytes[at..];
        let found = checksum(number, at as u64, &footer[..68]);
        let expected = u32_at(footer, 68, "footer")?;
        if found != expected {
            let what = format!("footer checksum is {found:#010x}, expected {expected:#010x}");
            return Err(Damage::from(what).into());
        }
        let section = |at| -> Checked<Section> {
            let offset = u64_at(footer, at, "footer")?;
            Ok(Section { offset, len: u64_at(footer, at + 8, "footer")? })
        };
        let footer = Self {
            number: u64_at(footer, 0, "footer")?,
            file_len: u64_at(footer, 8, "footer")?,
            filter: section(16)?,
            index: section(32)?,
            properties: section(48)?,
        };
        footer.check(bytes.len() as u64, number)?;
        Ok(footer)
    }

    fn check(&self, len: u64, number: u64) -> Checked<()> {
        if self.number != number || self.file_len != len {
            return Err(format!(
                "footer names file {} of {} bytes, expected {number} of {len}",
                self.number, self.file_len
            )
            .into());
        }
        let mut end = self.filter.offset;
        for section in [self.filter, self.index, self.properties] {
            if section.offset != end {
                return Err("sections do not follow each other".into());
            }
            end = end.checked_add(section.len).ok_or(Damage::from("section too long"))?;
        }
        if end != len - FOOTER_BYTES as u64 {
            return Err("sections do not end at the footer".into());
        }
        Ok(())
    }
}

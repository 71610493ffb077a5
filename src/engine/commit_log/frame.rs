//! The codec of frames: what one write of the log puts down; byte table on the module page.
//!
//! It does not read or write files. Its parsers take any bytes, allocate nothing and never panic.

use crate::engine::Position;

/// Header of a frame, in bytes.
pub(super) const HEADER_BYTES: usize = 24;
/// Lengths in front of each record, in bytes.
pub(super) const RECORD_HEADER_BYTES: usize = 6;
/// Frames begin at multiples of this, so that recovery can look for one after a damaged one.
pub(super) const ALIGN: usize = 8;

/// `len` rounded up to where the next frame may begin.
pub(super) const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// What the header of a frame says, apart from its checksum and its own place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the records, without padding.
    pub(super) body_bytes: u32,
    /// The log up to here was synced when the frame was written.
    pub(super) durable_upto: Position,
}

impl Header {
    /// Reads the header found at `position` of a file of `file_bytes`. `None` if it is not that of
    /// a frame written there: stale bytes of a recycled file name another segment, and a frame
    /// inside a row (a user may store anything) another offset.
    pub(super) fn parse(
        bytes: &[u8; HEADER_BYTES],
        position: Position,
        file_bytes: u64,
    ) -> Option<Self> {
        let header = Self {
            body_bytes: u32_at(bytes, 4),
            durable_upto: Position::from_u64(u64_at(bytes, 16)),
        };
        let end = u64::from(position.offset()) + header.frame_bytes() as u64;
        let is_frame = u32_at(bytes, 8) == position.segment()
            && u32_at(bytes, 12) == position.offset()
            && header.body_bytes as usize >= RECORD_HEADER_BYTES
            && end <= file_bytes.min(u64::from(u32::MAX))
            && header.durable_upto <= position;
        is_frame.then_some(header)
    }

    /// Bytes of the whole frame, padding included.
    pub(super) fn frame_bytes(self) -> usize {
        aligned(HEADER_BYTES + self.body_bytes as usize)
    }
}

/// Completes `frame` (space for the header, body, padding), to be written at `position`.
pub(super) fn seal(frame: &mut [u8], body_bytes: usize, position: Position, durable: Position) {
    debug_assert_eq!(frame.len(), aligned(HEADER_BYTES + body_bytes));
    frame[4..8].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    frame[8..12].copy_from_slice(&position.segment().to_le_bytes());
    frame[12..16].copy_from_slice(&position.offset().to_le_bytes());
    frame[16..24].copy_from_slice(&durable.to_u64().to_le_bytes());
    let crc = crc32fast::hash(&frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Whether a whole frame (its length from [`Header::frame_bytes`]) is as it was sealed.
pub(super) fn verify(frame: &[u8]) -> bool {
    frame.len() >= HEADER_BYTES && crc32fast::hash(&frame[4..]) == u32_at(frame, 0)
}

/// Bytes that a record takes in a frame.
pub(super) fn record_bytes(key: &[u8], row: &[u8]) -> usize {
    RECORD_HEADER_BYTES + key.len() + row.len()
}

/// Appends a record to a frame's body. The caller has checked the lengths.
pub(super) fn put_record(body: &mut Vec<u8>, key: &[u8], row: &[u8]) {
    let mut header = [0; RECORD_HEADER_BYTES];
    header[..2].copy_from_slice(&(key.len() as u16).to_le_bytes());
    header[2..].copy_from_slice(&(row.len() as u32).to_le_bytes());
    body.extend_from_slice(&header);
    body.extend_from_slice(key);
    body.extend_from_slice(row);
}

/// A body that does not divide into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The records of a body as (key, row); ends after the first error.
pub(super) fn records(body: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), Malformed>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let record = split_record(rest);
        rest = record.map_or(&[], |(_, _, rest)| rest);
        Some(record.map(|(key, row, _)| (key, row)).ok_or(Malformed))
    })
}

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES)?;
    let key_bytes = usize::from(u16::from_le_bytes([header[0], header[1]]));
    let (key, rest) = rest.split_at_checked(key_bytes)?;
    let (row, rest) = rest.split_at_checked(u32_at(header, 2) as usize)?;
    Some((key, row, rest))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

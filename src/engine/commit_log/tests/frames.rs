//! The codec: what is sealed is read back, and nothing else is.

use proptest::prelude::*;

use super::super::frame::{self, HEADER_BYTES, Header};
use super::super::segment;
use crate::engine::{Error, Position};
use std::path::Path;

type Record = (Vec<u8>, Vec<u8>);

fn sealed(records: &[Record], position: Position, durable: Position) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    records.iter().for_each(|(key, row)| frame::put_record(&mut bytes, key, row));
    let body_bytes = bytes.len() - HEADER_BYTES;
    bytes.resize(frame::aligned(bytes.len()), 0);
    frame::seal(&mut bytes, body_bytes, position, durable);
    bytes
}

/// What a reader takes for the frame at `position`.
fn read(bytes: &[u8], position: Position) -> Option<(Header, Vec<Record>)> {
    let header_bytes = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
    let file_bytes = u64::from(position.offset()) + bytes.len() as u64;
    let header = Header::parse(header_bytes, position, file_bytes)?;
    let frame = bytes.get(..header.frame_bytes())?;
    let body = HEADER_BYTES..HEADER_BYTES + header.body_bytes as usize;
    let records = frame::records(frame.get(body)?).collect::<Result<Vec<_>, _>>().ok()?;
    let owned = records.into_iter().map(|(key, row)| (key.to_vec(), row.to_vec())).collect();
    frame::verify(frame).then_some((header, owned))
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let bytes = |len| proptest::collection::vec(any::<u8>(), 0..len);
    proptest::collection::vec((bytes(20), bytes(200)), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Law: a frame is read back where it was written, and nowhere else.
    #[test]
    fn frames_are_read_back_only_where_they_were_written(
        records in records(), segment in 1_u32..9, slot in 4_u32..1000, durable in 0_u32..9,
    ) {
        let position = Position::new(segment, slot * 8);
        let durable = Position::new(durable.min(segment - 1), 77);
        let bytes = sealed(&records, position, durable);
        let (header, found) = read(&bytes, position).unwrap();
        prop_assert_eq!(header.durable_upto, durable);
        prop_assert_eq!(found, records);
        prop_assert_eq!(read(&bytes, Position::new(segment + 1, slot * 8)), None);
        prop_assert_eq!(read(&bytes, Position::new(segment, slot * 8 + 8)), None);
    }

    /// Law: any changed bit and any missing byte makes it no frame.
    #[test]
    fn a_changed_frame_is_no_frame(records in records(), bit: u32, cut: u32) {
        let position = Position::new(3, 64);
        let bytes = sealed(&records, position, Position::ZERO);
        let mut flipped = bytes.clone();
        flipped[bit as usize / 8 % bytes.len()] ^= 1 << (bit % 8);
        prop_assert_eq!(read(&flipped, position), None);
        prop_assert_eq!(read(&bytes[..cut as usize % bytes.len()], position), None);
    }

    /// Law: garbage is refused without a panic, also behind a header that looks right.
    #[test]
    fn garbage_is_no_frame(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), len: u32) {
        let position = Position::new(3, 64);
        prop_assert_eq!(read(&bytes, position), None);
        if let Some(header) = bytes.get_mut(..HEADER_BYTES) {
            header[4..8].copy_from_slice(&len.to_le_bytes());
            header[8..12].copy_from_slice(&3_u32.to_le_bytes());
            header[12..16].copy_from_slice(&64_u32.to_le_bytes());
            header[16..24].fill(0);
        }
        prop_assert_eq!(read(&bytes, position), None);
        let total: usize = frame::records(&bytes)
            .flatten()
            .map(|(key, row)| frame::record_bytes(key, row))
            .sum();
        prop_assert!(total <= bytes.len());
    }

    /// Law: a segment header is read back whole or not at all.
    #[test]
    fn a_changed_segment_header_is_none(number: u32, end: u64, bit in 0_usize..28 * 8) {
        let header = segment::Header { number, previous_end: Position::from_u64(end) };
        let mut bytes = header.encode();
        let path = Path::new("0000000001.log");
        prop_assert_eq!(segment::Header::decode(&bytes, path).unwrap(), Some(header));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(segment::Header::decode(&bytes, path).unwrap(), None);
    }
}

/// A later program's segment is refused by name instead of being taken for the end of the log.
#[test]
fn a_newer_format_is_named() {
    let mut bytes = segment::Header { number: 1, previous_end: Position::ZERO }.encode();
    bytes[8] = 2;
    let crc = crc32fast::hash(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    let error = segment::Header::decode(&bytes, Path::new("0000000001.log")).unwrap_err();
    assert!(matches!(error, Error::FormatTooNew { found: 2, supported: 1, .. }));
}

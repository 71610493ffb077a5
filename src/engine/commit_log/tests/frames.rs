//! The codec: what is sealed is read back, and nothing else is.

use proptest::prelude::*;

use super::super::frame::{
    self, Before, HEADER_BYTES_MAX, HEADER_BYTES_MIN, Header, Malformed, Records,
};
use super::super::segment;
use crate::engine::varint::varint_len;
use crate::engine::{Error, Position};
use std::path::Path;

type Record = (Vec<u8>, Vec<u8>);

fn sealed(records: &[Record], position: Position, durable: Position) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES_MAX];
    let mut last = Before::default();
    records.iter().for_each(|(key, row)| frame::put_record(&mut bytes, &mut last, key, row));
    let body_bytes = bytes.len() - HEADER_BYTES_MAX;
    let space = &mut bytes[..HEADER_BYTES_MAX];
    let header_bytes = frame::put_header(space, body_bytes, position, durable);
    assert!((HEADER_BYTES_MIN..=HEADER_BYTES_MAX).contains(&header_bytes));
    let mut bytes = bytes.split_off(HEADER_BYTES_MAX - header_bytes);
    frame::seal(&mut bytes, position);
    bytes
}

/// What a reader takes for the frame at `position`.
fn read(bytes: &[u8], position: Position) -> Option<(Header, Vec<Record>)> {
    let file_bytes = u64::from(position.offset()) + bytes.len() as u64;
    let header = Header::parse(bytes, position, file_bytes)?;
    let frame = bytes.get(..header.frame_bytes())?;
    let body = frame.get(header.header_bytes..)?;
    let records = all_records(body);
    assert_eq!(records.is_ok(), frame::is_whole(body));
    frame::verify(frame, position).then_some((header, records.ok()?))
}

fn all_records(body: &[u8]) -> Result<Vec<Record>, Malformed> {
    let (mut records, mut all) = (Records::new(body), Vec::new());
    while let Some((key, row)) = records.next()? {
        all.push((key.to_vec(), row.to_vec()));
    }
    Ok(all)
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let bytes = |len| proptest::collection::vec(any::<u8>(), 0..len);
    // Few values, so that heads have bytes in common; short rows, that lack some; and rows and
    // keys that are often as long as those before.
    let head = proptest::collection::vec(0_u8..3, 0..11);
    let rest = prop_oneof![bytes(200), Just(vec![7; 150])];
    let row = (head, rest).prop_map(|(head, rest)| match head.len() {
        ..8 => head,
        _ => [&head[..8], &rest].concat(),
    });
    let key = prop_oneof![bytes(20), Just(b"key".to_vec())];
    proptest::collection::vec((key, row), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Law: a frame is read back where it was written, and nowhere else.
    #[test]
    fn frames_are_read_back_only_where_they_were_written(
        records in records(), segment in 1_u32..9, offset in 32_u32..8000, durable in 0_u32..10,
        elsewhere in 1_u32..100,
    ) {
        let position = Position::new(segment, offset);
        let durable = match durable {
            0 => Position::ZERO,
            9 => position,
            durable => Position::new(durable.min(segment - 1), 77),
        };
        let bytes = sealed(&records, position, durable);
        let (header, found) = read(&bytes, position).unwrap();
        prop_assert_eq!(header.durable_upto, durable);
        prop_assert_eq!(found, records);
        prop_assert_eq!(read(&bytes, Position::new(segment + elsewhere, offset)), None);
        prop_assert_eq!(read(&bytes, Position::new(segment, offset + elsewhere)), None);
    }

    /// Law: the search for a mark finds a frame wherever it stands, among zeros and garbage.
    #[test]
    fn a_frame_is_found_by_its_mark(
        records in records(), garbage in proptest::collection::vec(any::<u8>(), 0..200),
        zeros in 0_usize..200, first in 0_u32..9000,
    ) {
        let before = garbage.len() + zeros;
        let position = Position::new(3, first + before as u32);
        let frame = sealed(&records, position, Position::ZERO);
        let bytes = [&garbage[..], &vec![0; zeros], &frame].concat();
        // One in millions of places of garbage bears its own mark.
        let found = frame::find_mark(&bytes, Position::new(3, first));
        prop_assert!(found.is_some_and(|at| at == before || at < garbage.len()));
        prop_assert_eq!(frame::find_mark(&vec![0; 5000], position), None);
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

    /// Law: garbage is refused without a panic, also behind a mark that is right.
    #[test]
    fn garbage_is_no_frame(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let position = Position::new(3, 64);
        let mark = sealed(&[(vec![1], vec![2])], position, Position::ZERO);
        prop_assert_eq!(read(&bytes, position), None);
        if let Some(start) = bytes.get_mut(..frame::MARK_BYTES) {
            start.copy_from_slice(&mark[..frame::MARK_BYTES]);
        }
        prop_assert_eq!(read(&bytes, position), None);
        let mut records = Records::new(&bytes);
        let mut total = 0;
        while let Ok(Some((key, row))) = records.next() {
            total += key.len() + row.len().saturating_sub(8) + 1;
        }
        prop_assert!(total <= bytes.len());
    }

    /// Law: what a record has in common with the one before it in the frame is not written again.
    #[test]
    fn what_records_have_in_common_is_written_once(records in records()) {
        let (mut body, mut last) = (Vec::new(), Before::default());
        let mut before: Option<&Record> = None;
        for record in &records {
            let (key, row) = record;
            let start = body.len();
            frame::put_record(&mut body, &mut last, key, row);
            let byte = |at: usize| before.and_then(|(_, row)| row.get(at));
            let has = |at: usize| row.get(at).is_some_and(|own| byte(at) == Some(own));
            let alone = [0, 1, 2, 3, 6, 7].into_iter().filter(|at| has(*at)).count();
            let pair = if has(4) && has(5) { 2 } else { 0 };
            let long = |(key, row): &Record| (key.len(), row.len());
            let as_long = before.is_some_and(|before| long(before) == long(record));
            let lengths = if as_long { 1 + varint_len(row.len() as u64) } else { 0 };
            let saved = alone + pair + lengths;
            prop_assert_eq!(body.len() - start, frame::record_bytes_max(key, row) - saved);
            before = Some(record);
        }
        prop_assert_eq!(all_records(&body), Ok(records));
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

/// Another program's segment is refused by name instead of being taken for the end of the log.
#[test]
fn another_format_is_named() {
    let decoded = |version| {
        let mut bytes = segment::Header { number: 1, previous_end: Position::ZERO }.encode();
        bytes[8] = version;
        let crc = crc32fast::hash(&bytes[..24]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
        segment::Header::decode(&bytes, Path::new("0000000001.log")).unwrap_err()
    };
    assert!(matches!(decoded(5), Error::FormatTooNew { found: 5, supported: 4, .. }));
    for old in [1, 2, 3] {
        let named = format!("version {old}");
        assert!(matches!(decoded(old), Error::Corruption(found) if found.what.contains(&named)));
    }
}

//! The bytes of format 4, as they were when it was frozen.

use super::*;

const GOLDEN: &str = include_str!("../../../../tests/golden/commit-log-v4.hex");

/// Two groups: records 0 and 1 in one append, synced; then record 2, twice, and one without bytes.
fn written() -> Vec<u8> {
    let vfs = disk();
    let log = create(&vfs, SMALL, 7).unwrap();
    let (zero, one) = (0_u64.to_be_bytes(), 1_u64.to_be_bytes());
    let end = log.lock().append(&[(&zero, &row(0)), (&one, &row(1))]).unwrap();
    log.sync(end).unwrap();
    append(&log, 2).unwrap();
    append(&log, 2).unwrap();
    let end = append(&log, 6).unwrap();
    log.write_out(end).unwrap();
    let bytes = vfs.map(&directory().join("0000000007.log")).unwrap();
    assert!(bytes[log.written_upto().offset() as usize..].iter().all(|byte| *byte == 0));
    bytes[..log.written_upto().offset() as usize].to_vec()
}

fn golden() -> Vec<u8> {
    let digits: Vec<u8> = GOLDEN.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// If this fails, the format has changed: a new version number, and a reader for the old one.
#[test]
fn the_format_is_what_it_was() {
    let hex: Vec<String> = written()
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    assert!(written() == golden(), "written now:\n{}", hex.join("\n"));
}

#[test]
fn a_segment_of_format_4_is_read() {
    let vfs = disk();
    let file = vfs.create(&directory().join("0000000007.log")).unwrap();
    file.write_at(0, &golden()).unwrap();
    let (records, recovered) = replay(&vfs, Position::ZERO, false).unwrap();
    assert_eq!(records, [0, 1, 2, 2, 6]);
    assert_eq!(recovered.end, Position::new(7, golden().len() as u32));
}

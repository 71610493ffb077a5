//! Torn tail or corruption: what decides is whether the missing bytes had been durable.

use super::*;
use crate::engine::{Corruption, Error};

/// A log of three segments, each record a frame and synced on its own, except the last two, which
/// are only written, in one group. Returns the position behind each record.
fn log_on(vfs: &MemVfs) -> Vec<Position> {
    let log = create(vfs, LogOptions { grow_bytes: 4096, ..SMALL }, 1).unwrap();
    let mut ends = Vec::new();
    for index in 0..36 {
        let end = append(&log, index).unwrap();
        if index < 34 {
            log.sync(end).unwrap();
        } else if index == 35 {
            log.write_out(end).unwrap();
        }
        ends.push(log.lock().close_frame());
    }
    assert_eq!(log.stats().segments, 3, "{ends:?}");
    ends
}

fn flip(vfs: &MemVfs, segment: u32, offset: u64) {
    let path = directory().join(format!("{segment:010}.log"));
    let file = vfs.open(&path).unwrap();
    let mut byte = [0];
    assert_eq!(file.read_at(offset, &mut byte).unwrap(), 1);
    file.write_at(offset, &[byte[0] ^ 0x10]).unwrap();
}

fn corruption(vfs: &MemVfs) -> Corruption {
    match replay(vfs, Position::ZERO, false) {
        Err(Error::Corruption(corruption)) => corruption,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bad_frame_below_what_was_durable_is_corruption() {
    let vfs = disk();
    let ends = log_on(&vfs);
    flip(&vfs, 1, u64::from(ends[4].offset()) + 30);
    let found = corruption(&vfs);
    assert!(found.file.ends_with("0000000001.log"));
    assert_eq!(found.offset, u64::from(ends[4].offset()));
    assert!(found.what.contains("durable up to 3:"), "{}", found.what);
    let (records, recovered) = replay(&vfs, Position::ZERO, true).unwrap();
    assert_eq!((records, recovered.end), (numbers(5), ends[4]), "accepted: the end of the log");
    assert_eq!(recovered.cut, Some((found.file, found.offset)));
    assert_eq!(recovered.last_segment_number, 3);
}

/// Pages of zeros in the middle are a lost write, not the end: the search for later frames passes
/// over zeros a page at a time, and must not pass over what follows them.
#[test]
fn pages_of_zeros_below_what_was_durable_are_corruption() {
    let vfs = disk();
    let log = create(&vfs, LogOptions { segment_bytes: 64 << 10, ..SMALL }, 1).unwrap();
    let mut end = Position::ZERO;
    for index in 0..10_000 {
        end = append(&log, index).unwrap();
        log.sync(end).unwrap();
        if end.offset() > 40 << 10 {
            break;
        }
    }
    assert!(end.offset() > 40 << 10);
    let file = vfs.open(&directory().join("0000000001.log")).unwrap();
    file.write_at(10 << 10, &[0; 20 << 10]).unwrap();
    let found = corruption(&vfs);
    assert!((9 << 10..=10 << 10).contains(&found.offset), "{found}");
    assert!(found.what.contains("durable up to 1:"), "{}", found.what);
}

#[test]
fn a_bad_frame_above_what_was_durable_is_a_torn_tail() {
    let vfs = disk();
    let ends = log_on(&vfs);
    flip(&vfs, 3, u64::from(ends[34].offset()) + 4);
    let (records, recovered) = replay(&vfs, Position::ZERO, false).unwrap();
    assert_eq!((records, recovered.end), (numbers(35), ends[34]));
    assert!(recovered.cut.is_some());
}

/// The header of a log's first segment is lost with its first group: nothing was durable yet.
#[test]
fn a_log_that_was_never_synced_may_lose_its_header() {
    let vfs = disk();
    let log = create(&vfs, SMALL, 1).unwrap();
    for index in 0..3 {
        let end = append(&log, index).unwrap();
        log.write_out(end).unwrap();
    }
    flip(&vfs, 1, 9);
    let (records, recovered) = replay(&vfs, Position::ZERO, false).unwrap();
    assert_eq!((records, recovered.end), (numbers(0), Position::ZERO));
    assert!(recovered.cut.is_some());
}

#[test]
fn a_missing_segment_is_a_hole() {
    let vfs = disk();
    let ends = log_on(&vfs);
    vfs.remove(&directory().join("0000000002.log")).unwrap();
    let last_of_first = ends.iter().rposition(|end| end.segment() == 1).unwrap();
    assert_eq!(corruption(&vfs).offset, u64::from(ends[last_of_first].offset()));
    let (records, recovered) = replay(&vfs, Position::ZERO, true).unwrap();
    assert_eq!(records, numbers(last_of_first as u64 + 1), "not what lies behind the hole");
    assert_eq!(recovered.end, ends[last_of_first]);
    let from = ends[35].max(Position::new(3, 0));
    assert_eq!(replay(&vfs, from, false).unwrap().0, numbers(0), "flushed: not missed");
}

#[test]
fn a_hole_that_was_never_durable_is_a_torn_tail() {
    let vfs = disk();
    let log = create(&vfs, SMALL, 1).unwrap();
    for index in 0..36 {
        let end = append(&log, index).unwrap();
        log.write_out(end).unwrap();
    }
    assert!(log.stats().segments > 2);
    vfs.remove(&directory().join("0000000002.log")).unwrap();
    let (records, recovered) = replay(&vfs, Position::ZERO, false).unwrap();
    assert!(!records.is_empty() && records == numbers(records.len() as u64));
    assert_eq!(recovered.end.segment(), 1);
    assert!(recovered.cut.is_some(), "segment 3 is not replayed");
}

#[test]
fn the_first_segment_may_be_gone_when_all_of_it_was_flushed() {
    let vfs = disk();
    let ends = log_on(&vfs);
    vfs.remove(&directory().join("0000000001.log")).unwrap();
    let last_of_first = ends.iter().rposition(|end| end.segment() == 1).unwrap();
    let (records, _) = replay(&vfs, ends[last_of_first], false).unwrap();
    assert_eq!(records, (last_of_first as u64 + 1..36).collect::<Vec<_>>());
    assert!(replay(&vfs, ends[last_of_first - 1], false).is_err(), "one record is missing");
}

/// A user may store the bytes of a log in a row: they are no frames there.
#[test]
fn frames_inside_rows_are_no_frames() {
    let vfs = disk();
    log_on(&vfs);
    let bytes = vfs.map(&directory().join("0000000003.log")).unwrap();
    let vfs = disk();
    let log = create(&vfs, SMALL, 3).unwrap();
    let end = log.lock().append(&[(b"kk", &bytes[..3000])]).unwrap();
    log.write_out(end).unwrap();
    flip(&vfs, 3, 32 + 4);
    let mut records = 0;
    let recovered = recover(&vfs, directory(), Position::ZERO, false, &mut |_, _, _| {
        records += 1;
        Ok(())
    });
    assert_eq!((recovered.unwrap().end, records), (Position::new(3, 32), 0), "torn, not corrupt");
}

/// Law: one flipped bit anywhere gives an honest answer: an error where durable bytes are hit (or
/// their loss proven), otherwise a prefix; never a wrong record.
#[test]
fn any_flipped_bit_gives_corruption_or_a_prefix() {
    let original = disk();
    let ends = log_on(&original);
    let durable_known = ends[33];
    for segment in 1..=3 {
        for offset in (0..4096_u32).step_by(3) {
            let vfs = original.crash_clone_kill();
            flip(&vfs, segment, offset.into());
            let at = Position::new(segment, offset);
            let used = ends.iter().any(|end| end.segment() == segment && at < *end);
            let is_known = used && at < durable_known && !(28..32).contains(&offset);
            match replay(&vfs, Position::ZERO, false) {
                Ok((records, _)) => {
                    assert!(!is_known, "{at} was durable, {} records", records.len());
                    let expected = if used && !(28..32).contains(&offset) { 34 } else { 36 };
                    assert!(
                        records.len() >= expected - 1 && records == numbers(records.len() as u64)
                    );
                }
                Err(Error::Corruption(_)) => assert!(is_known, "{at} was not durable"),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// A directory of garbage is an empty log; a damaged length asks for no memory.
#[test]
fn garbage_files_hold_no_log() {
    let vfs = disk();
    for number in 1..4_u32 {
        let file = vfs.create(&directory().join(format!("{number:010}.log"))).unwrap();
        let mut state = number;
        let garbage = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        file.write_at(0, &garbage.take(5000 * number as usize).collect::<Vec<_>>()).unwrap();
    }
    for name in ["1.log", "00000000001.log", "+000000001.log", "x.spare", "LOCK"] {
        vfs.create(&directory().join(name)).unwrap();
    }
    let (records, recovered) = replay(&vfs, Position::ZERO, false).unwrap();
    assert_eq!((records, recovered.end, recovered.cut), (numbers(0), Position::ZERO, None));
    assert_eq!(recovered.last_segment_number, 3);
}

//! Each rule of `VersionState::apply`, broken once.

use super::*;

fn state(tables: &[TableMeta]) -> VersionState {
    VersionState::new(3).apply(&add(tables.iter().cloned())).unwrap()
}

/// Two tables of a level >= 1 must not share a key, not even one; level 0 may overlap freely.
#[test]
fn levels_are_disjoint() {
    let error = state(&[meta(1, 1, "a", "c")]).apply(&add([meta(2, 1, "c", "d")])).unwrap_err();
    assert_eq!(error, EditError::Overlap { level: 1, left: 1, right: 2 });
    state(&[meta(1, 1, "a", "c")]).apply(&add([meta(2, 1, "d", "e")])).unwrap();
    state(&[meta(1, 0, "a", "c")]).apply(&add([meta(2, 0, "a", "c")])).unwrap();
}

/// Epochs order level 0, so two tables there cannot share one.
#[test]
fn epochs_of_level0_are_unique() {
    let twin = TableMeta { epoch: 1, ..meta(2, 0, "x", "y") };
    let error = state(&[meta(1, 0, "a", "b")]).apply(&add([twin])).unwrap_err();
    assert_eq!(error, EditError::EpochTaken { epoch: 1, left: 1, right: 2 });
    let newest_first = state(&[meta(1, 0, "a", "b"), meta(3, 0, "a", "b"), meta(2, 0, "a", "b")]);
    let numbers: Vec<_> = newest_first.level(0).iter().map(|table| table.number).collect();
    assert_eq!(numbers, [3, 2, 1]);
}

/// A table is there once, at a level that exists, with a key range that is not inverted.
#[test]
fn added_tables_make_sense() {
    let one = state(&[meta(1, 1, "a", "b")]);
    let refused = |table| one.apply(&add([table])).unwrap_err();
    assert_eq!(refused(meta(1, 2, "x", "y")), EditError::TableTaken { number: 1 });
    assert_eq!(refused(meta(2, 7, "x", "y")), EditError::NoSuchLevel { number: 2, level: 7 });
    assert_eq!(refused(meta(2, 2, "y", "x")), EditError::RangeInverted { number: 2 });
    let range = |start: &str, end: &str| (start.into(), Some(end.into()));
    let one_after_the_other = [range("x", "y"), range("y", "z")];
    for ranges in [vec![range("y", "x")], vec![range("x", "x")], one_after_the_other.to_vec()] {
        let excised = KeyRanges::unchecked(ranges);
        let table = TableMeta { excised, ..meta(2, 2, "x", "z") };
        assert_eq!(refused(table), EditError::ExcisedDisorder { number: 2 });
    }
}

/// What is removed must be at the level named; a move is a removal and an addition.
#[test]
fn removed_tables_are_there() {
    let one = state(&[meta(1, 1, "a", "b")]);
    let remove = |level, number| VersionEdit { removed: vec![(level, number)], ..add([]) };
    for (level, number) in [(2, 1), (1, 2), (9, 1)] {
        let error = one.apply(&remove(level, number)).unwrap_err();
        assert_eq!(error, EditError::NoSuchTable { number, level: Some(level) });
    }
    let moved = VersionEdit { added: vec![meta(1, 2, "a", "b")], ..remove(1, 1) };
    assert_eq!(one.apply(&moved).unwrap().level(2).len(), 1);
}

/// A flushed position that went back would replay records that a purge has forgotten.
#[test]
fn flushed_never_goes_back() {
    let flushed = |at| VersionEdit { flushed: Some(position(at)), ..add([]) };
    let state = VersionState::new(3).apply(&flushed(9)).unwrap();
    let error = state.apply(&flushed(8)).unwrap_err();
    assert!(matches!(error, EditError::GoesBack { what: "flushed position", .. }));
    assert_eq!(state.apply(&flushed(9)).unwrap().flushed(), position(9));
}

/// `floor <= guard`; the guard never goes back, and the floor only by or after damage.
#[test]
fn safe_points_keep_their_order() {
    let set = |range, point| VersionEdit { safe_points: vec![(range, point)], ..add([]) };
    let state = VersionState::new(3).apply(&set(2..5, point(10, 8, &[]))).unwrap();
    assert_eq!(state.safe_points()[4].floor, 8);
    assert_eq!(state.safe_points()[5], SafePoint::default());

    let error = state.apply(&set(2..3, point(10, 11, &[]))).unwrap_err();
    assert_eq!(error, EditError::FloorAboveGuard { partition: 2, floor: 11, guard: 10 });
    let error = state.apply(&set(0..8, point(9, 8, &[]))).unwrap_err();
    assert_eq!(error, EditError::GoesBack { what: "guard", from: 10, to: 9 });
    let error = state.apply(&set(4..5, point(10, 7, &[]))).unwrap_err();
    assert_eq!(error, EditError::GoesBack { what: "floor", from: 8, to: 7 });
    let damaged = state.apply(&set(4..5, point(10, 0, &[7]))).unwrap();
    damaged.apply(&set(4..5, point(10, 0, &[]))).unwrap();
    let reset = state.apply(&set(2..4, SafePoint::default())).unwrap();
    assert_eq!(reset.safe_points()[3], SafePoint::default(), "all words at once may be taken back");
    assert_eq!(reset.safe_points()[4].floor, 8);

    for range in [0..9, 3..3, 8..9] {
        let error = state.apply(&set(range, point(10, 8, &[]))).unwrap_err();
        assert!(matches!(error, EditError::NoSuchPartition { partitions: 8, .. }));
    }
}

/// A quarantined block belongs to a table that is there, and is forgotten with it.
#[test]
fn quarantine_goes_with_its_table() {
    let bad = |table, smallest: &str, largest: &str| VersionEdit {
        quarantined: vec![Quarantined {
            table,
            smallest: smallest.as_bytes().into(),
            largest: largest.as_bytes().into(),
        }],
        ..VersionEdit::default()
    };
    let one = state(&[meta(1, 1, "a", "f")]);
    let missing = EditError::NoSuchTable { number: 2, level: None };
    assert_eq!(one.apply(&bad(2, "b", "c")).unwrap_err(), missing);
    let inverted = EditError::RangeInverted { number: 1 };
    assert_eq!(one.apply(&bad(1, "c", "b")).unwrap_err(), inverted);

    let sick = one.apply(&bad(1, "b", "c")).unwrap().apply(&bad(1, "b", "c")).unwrap();
    assert_eq!(sick.quarantined().len(), 1, "the same block twice is one block");
    let mut moved = add([meta(1, 2, "a", "f")]);
    moved.removed = vec![(1, 1)];
    assert_eq!(sick.apply(&moved).unwrap().quarantined().len(), 1);
    moved.added = vec![meta(2, 2, "a", "f")];
    assert_eq!(sick.apply(&moved).unwrap().quarantined().len(), 0);
}

/// A quarantined block is forgotten when all its keys are excised, and not before: a range that
/// ends with its last key leaves that one, unless the block ends before it.
#[test]
fn quarantine_goes_with_its_last_key() {
    let bad = |smallest: &str, largest: &str| Quarantined {
        table: 1,
        smallest: smallest.as_bytes().into(),
        largest: largest.as_bytes().into(),
    };
    let blocks = [bad("a", "c"), bad("d", "d"), bad("d", "f")];
    let edit = VersionEdit { quarantined: blocks.to_vec(), ..add([meta(1, 1, "a", "f")]) };
    let sick = VersionState::new(3).apply(&edit).unwrap();
    let left = |start: &str, end: Option<&str>| {
        let excised = KeyRanges::of([(start.into(), end.map(Into::into))]);
        let added = vec![TableMeta { excised, ..meta(1, 1, "a", "f") }];
        let edit = VersionEdit { removed: vec![(1, 1)], added, ..VersionEdit::default() };
        let next = sick.apply(&edit).unwrap();
        let again = VersionEdit { quarantined: blocks.to_vec(), ..VersionEdit::default() };
        assert_eq!(next.apply(&again).unwrap(), next, "nor is it found again");
        blocks.iter().map(|block| next.quarantined().contains(block)).collect::<Vec<_>>()
    };
    assert_eq!(left("a", Some("b")), [true, true, true]);
    assert_eq!(left("a", Some("c")), [false, true, true], "its end is the first key behind it");
    assert_eq!(left("b", None), [true, false, false]);
    assert_eq!(left("d", Some("d+")), [true, false, true]);
    assert_eq!(left("d", Some("f")), [true, false, true], "the last block ends with a key");
    assert_eq!(left("a", Some("f+")), [false, false, false]);
}

/// Numbers stay above whatever an edit names, so that none is given twice.
#[test]
fn counters_stay_above_what_is_used() {
    let mut edit = add([TableMeta { epoch: 70, ..meta(40, 0, "a", "b") }]);
    edit.safe_points = vec![(0..1, SafePoint { floor_epoch: 90, ..SafePoint::default() })];
    let state = VersionState::new(3).apply(&edit).unwrap();
    assert_eq!((state.file_next(), state.epoch_next()), (41, 91));
}

/// A range of a level is found by key, its ends included; level 0 is searched table by table.
#[test]
fn overlapping_finds_both_ends() {
    let tables = [("a", "c"), ("e", "g"), ("i", "k")];
    let level = |level: u8| {
        let add = |(at, (smallest, largest)): (usize, &(&str, &str))| {
            meta(at as u64 + 1, level, smallest, largest)
        };
        state(&tables.iter().enumerate().map(add).collect::<Vec<_>>())
    };
    for (smallest, largest, expected) in [
        ("c", "e", vec![1, 2]),
        ("d", "d", vec![]),
        ("g", "z", vec![2, 3]),
        ("", "a", vec![1]),
        ("l", "z", vec![]),
        ("", "z", vec![1, 2, 3]),
    ] {
        for at in [0, 3] {
            let state = level(at as u8);
            let found = state.overlapping(at, smallest.as_bytes(), largest.as_bytes());
            let mut found: Vec<_> = found.map(|table| table.number).collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{smallest}..={largest} at level {at}");
        }
    }
}

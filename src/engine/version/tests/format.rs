//! The bytes of edits and manifests: round trips, the golden file, damage.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::engine::Error;

fn write(vfs: &MemVfs, name: &str, bytes: &[u8]) {
    let path = dir().join(name);
    if vfs.exists(&path).unwrap() {
        vfs.remove(&path).unwrap();
    }
    vfs.create(&path).unwrap().write_at(0, bytes).unwrap();
}

fn read(vfs: &MemVfs, name: &str) -> Vec<u8> {
    let file = vfs.open(&dir().join(name)).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Every field once.
fn edits() -> Vec<VersionEdit> {
    let ranges = [(b"b".to_vec(), Some(b"c".to_vec())), (b"k".to_vec(), None)];
    let mut moved = add([TableMeta {
        demote_full: true,
        excised: KeyRanges::of(ranges),
        excised_bytes: 60,
        overwrites: 2,
        ..meta(3, 2, "a", "m")
    }]);
    moved.removed = vec![(0, 1), (1, 2)];
    let bad = Quarantined { table: 3, smallest: (*b"b").into(), largest: (*b"c").into() };
    moved.quarantined = vec![bad];
    vec![
        VersionEdit {
            flushed: Some(position(77)),
            file_next: Some(20),
            epoch_next: Some(30),
            ..add([meta(1, 0, "a", "m"), meta(2, 1, "b", "c")])
        },
        moved,
        VersionEdit {
            safe_points: vec![(0..8, point(9, 8, &[])), (3..4, point(10, 0, &[1, u128::MAX]))],
            ..VersionEdit::default()
        },
    ]
}

/// A manifest of a snapshot and `edits`, and the state after each frame.
fn manifest(vfs: &MemVfs) -> (String, Vec<VersionState>, Vec<u64>) {
    let mut states = vec![VersionState::new(3)];
    let mut manifest =
        Manifest::create(Arc::new(vfs.clone()), &dir(), 1, states.last().unwrap()).unwrap();
    manifest.install().unwrap();
    let mut ends = vec![manifest.bytes()];
    for edit in edits() {
        states.push(states.last().unwrap().apply(&edit).unwrap());
        manifest.append(&edit).unwrap();
        ends.push(manifest.bytes());
    }
    (manifest.path().file_name().unwrap().to_str().unwrap().to_owned(), states, ends)
}

fn recover(vfs: &MemVfs) -> Result<Recovered> {
    Manifest::recover(vfs, &dir(), 3).map(|found| found.expect("there is a CURRENT"))
}

/// What is appended is found again, and a snapshot says the same as the edits it replaces.
#[test]
fn manifest_round_trip() {
    let vfs = mem();
    let (_, states, _) = manifest(&vfs);
    let last = states.last().unwrap();
    let found = recover(&vfs).unwrap();
    assert_eq!((&found.state, found.number, found.torn_bytes), (last, 1, 0));

    let second = Manifest::create(Arc::new(vfs.clone()), &dir(), 2, last).unwrap();
    assert_eq!(recover(&vfs).unwrap().number, 1, "not in use before it is installed");
    second.install().unwrap();
    let found = recover(&vfs).unwrap();
    assert_eq!((&found.state, found.number), (last, 2));
}

/// The format is frozen: a change of any byte needs a new format version and a new golden file.
#[test]
fn manifest_golden() {
    let vfs = mem();
    let (name, states, _) = manifest(&vfs);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/manifest-v3.hex");
    let hex: String = read(&vfs, &name)
        .chunks(32)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&golden, &hex).unwrap();
    }
    assert_eq!(hex, std::fs::read_to_string(&golden).unwrap());
    write(&vfs, &name, &golden_bytes("manifest-v3.hex"));
    assert_eq!(&recover(&vfs).unwrap().state, states.last().unwrap());
    assert_eq!(read(&vfs, "CURRENT"), b"MANIFEST-0000000001 6552f8a6\n");
}

fn golden_bytes(name: &str) -> Vec<u8> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let hex = std::fs::read_to_string(golden).unwrap();
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|p| digit(p[0]) << 4 | digit(p[1])).collect()
}

/// A manifest that was written before keys could be excised from a table says the same as then.
#[test]
fn a_manifest_of_format_1_is_read() {
    an_old_manifest_is_read("manifest-v1.hex", |table| {
        (table.excised, table.excised_bytes) = (KeyRanges::default(), 0);
        table.overwrites = 0;
    });
}

/// So does one that was written before overwrites were counted.
#[test]
fn a_manifest_of_format_2_is_read() {
    an_old_manifest_is_read("manifest-v2.hex", |table| table.overwrites = 0);
}

/// The golden file has the edits of today as far as they could be said then.
fn an_old_manifest_is_read(golden: &str, as_then: impl FnMut(&mut TableMeta)) {
    let vfs = mem();
    let (name, _, _) = manifest(&vfs);
    write(&vfs, &name, &golden_bytes(golden));
    let mut then = edits();
    then.iter_mut().flat_map(|edit| &mut edit.added).for_each(as_then);
    let new = VersionState::new(3);
    let state = then.iter().fold(new, |state, edit| state.apply(edit).unwrap());
    let found = recover(&vfs).unwrap();
    assert_eq!((found.state, found.torn_bytes), (state, 0));
}

/// A manifest cut anywhere behind its snapshot is the one before its last edit, or before that.
#[test]
fn torn_tail_is_cut() {
    let vfs = mem();
    let (name, states, ends) = manifest(&vfs);
    let bytes = read(&vfs, &name);
    for len in 0..bytes.len() {
        write(&vfs, &name, &bytes[..len]);
        match ends.iter().rposition(|end| *end <= len as u64) {
            None => assert!(matches!(recover(&vfs), Err(Error::Corruption(_))), "cut at {len}"),
            Some(whole) => {
                let found = recover(&vfs).unwrap();
                assert_eq!(found.state, states[whole], "cut at {len}");
                assert_eq!(found.torn_bytes, len as u64 - ends[whole]);
            }
        }
    }
}

/// A flipped bit before the last edit is corruption, named by file and frame; in the last edit it
/// passes for a torn write. It is never taken for another edit.
#[test]
fn flipped_bits_are_found() {
    let vfs = mem();
    let (name, states, ends) = manifest(&vfs);
    let bytes = read(&vfs, &name);
    let last = ends[ends.len() - 2] as usize;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            write(&vfs, &name, &bad);
            match recover(&vfs) {
                Err(Error::Corruption(found)) => {
                    assert_eq!(found.file, dir().join(&name));
                    assert!(at < last && found.offset <= at as u64, "{found}, flipped {at}");
                }
                Ok(found) => {
                    assert!(at >= last, "byte {at} bit {bit}");
                    assert_eq!(found.state, states[states.len() - 2]);
                }
                Err(other) => panic!("byte {at} bit {bit}: {other}"),
            }
        }
    }
}

/// `CURRENT` is believed only as a whole.
#[test]
fn flipped_current_is_found() {
    let vfs = mem();
    manifest(&vfs);
    let line = read(&vfs, "CURRENT");
    for at in 0..line.len() * 8 {
        let mut bad = line.clone();
        bad[at / 8] ^= 1 << (at % 8);
        write(&vfs, "CURRENT", &bad);
        assert!(matches!(recover(&vfs), Err(Error::Corruption(_))), "bit {at}");
    }
    write(&vfs, "CURRENT", &line[..line.len() - 1]);
    assert!(matches!(recover(&vfs), Err(Error::Corruption(_))));
}

/// A manifest of a later program is refused by name, not called damaged.
#[test]
fn newer_format_is_refused() {
    let vfs = mem();
    let (name, _, _) = manifest(&vfs);
    let mut bytes = read(&vfs, &name);
    bytes[8..12].copy_from_slice(&4_u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&(!4_u32).to_le_bytes());
    write(&vfs, &name, &bytes);
    let error = recover(&vfs).unwrap_err();
    assert!(matches!(error, Error::FormatTooNew { found: 4, supported: 3, .. }), "{error}");
}

/// Safe points are by partition: options with other partitions than the store's are refused.
#[test]
fn other_partition_bits_are_refused() {
    let vfs = mem();
    manifest(&vfs);
    let error = Manifest::recover(&vfs, &dir(), 4).unwrap_err();
    let expected = EditError::PartitionBits { found: 3, expected: 4 };
    assert!(matches!(error, Error::Edit(edit) if edit == expected));
}

fn any_key() -> impl Strategy<Value = Box<[u8]>> {
    vec(any::<u8>(), 0..9).prop_map(Into::into)
}

fn any_edit() -> impl Strategy<Value = VersionEdit> {
    let range = (any_key(), proptest::option::of(any_key()));
    let range = range.prop_map(|(start, end)| (start.into_vec(), end.map(<[u8]>::into_vec)));
    let excised = vec(range, 0..3).prop_map(KeyRanges::unchecked);
    let (bools, words) = (any::<bool>(), any::<[u64; 11]>());
    let table = (words, any::<u8>(), bools, any_key(), any_key(), excised).prop_map(
        |(w, level, demote_full, smallest, largest, excised)| TableMeta {
            number: w[0],
            level,
            epoch: w[1],
            bytes: w[2],
            entries: w[3],
            deltas: w[4],
            overwrites: w[10],
            purgeable: w[5],
            live_time_min: w[6],
            time_max: w[7],
            created_ms: w[8],
            demote_full,
            smallest,
            largest,
            excised_bytes: if excised.is_empty() { 0 } else { w[9] },
            excised,
        },
    );
    let safe_point = (any::<[u32; 2]>(), any::<[u64; 3]>(), vec(any::<u128>(), 0..3)).prop_map(
        |([start, end], [guard, floor, floor_epoch], damaged)| {
            (start..end, SafePoint { guard, floor, floor_epoch, damaged: damaged.into() })
        },
    );
    let bad = (any::<u64>(), any_key(), any_key())
        .prop_map(|(table, smallest, largest)| Quarantined { table, smallest, largest });
    (
        proptest::option::of(0_u32..15),
        vec(any::<(u8, u64)>(), 0..4),
        vec(table, 0..4),
        any::<[Option<u64>; 3]>(),
        vec(safe_point, 0..4),
        vec(bad, 0..3),
    )
        .prop_map(|(snapshot, removed, added, words, safe_points, quarantined)| VersionEdit {
            snapshot,
            removed,
            added,
            flushed: words[0].map(Position::from_u64),
            file_next: words[1],
            epoch_next: words[2],
            safe_points,
            quarantined,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// An edit survives its encoding; changed or cut bytes give an edit or an error, never a
    /// panic, and a state judges whatever they give.
    #[test]
    fn edit_round_trip(edit in any_edit(), flips in vec(any::<(prop::sample::Index, u8)>(), 1..4)) {
        let mut bytes = Vec::new();
        edit.encode(&mut bytes);
        prop_assert_eq!(VersionEdit::decode(&bytes), Ok(edit.clone()));
        let _ = VersionState::new(3).apply(&edit);
        for (at, mask) in &flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
        }
        if let Ok(edit) = VersionEdit::decode(&bytes) {
            let _ = VersionState::new(3).apply(&edit);
        }
        bytes.pop();
        let _ = VersionEdit::decode(&bytes);
    }

    /// Random bytes are no manifest, with or without a sound header.
    #[test]
    fn garbage_is_refused(garbage in vec(any::<u8>(), 0..300), with_header: bool) {
        let vfs = mem();
        let (name, _, _) = manifest(&vfs);
        let header = read(&vfs, &name)[..16].to_vec();
        let bytes = if with_header { [header, garbage].concat() } else { garbage };
        write(&vfs, &name, &bytes);
        prop_assert!(recover(&vfs).is_err());
    }
}

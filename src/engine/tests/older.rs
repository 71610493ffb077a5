//! A store that an older program has left behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::row::Row;
use super::{open, tiny};
use crate::engine::Engine;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::mem::MemVfs;

const KEYS: u32 = 100;

fn key(n: u32) -> String {
    format!("key{n:03}")
}

fn put(engine: &Engine, n: u32, value: u32) {
    let row = Row::default().write(1, u64::from(value), true, Some(value)).encode();
    engine.apply(&[(key(n).as_bytes(), &row)]).expect("taken");
}

/// The value of each key, by single reads and by a scan.
fn values(engine: &Engine) -> Vec<Option<u32>> {
    let value = |row: &[u8]| Row::decode(row).expect("a row").values()[0];
    let get = |n| engine.get(key(n).as_bytes()).expect("reads").map(|row| value(&row));
    let values: Vec<_> = (0..KEYS).map(get).collect();
    let mut scan = engine.scan(b"", None).expect("a scan");
    for (n, expected) in (0..).zip(&values).filter(|(_, value)| value.is_some()) {
        let (found, row) = scan.next().expect("reads").expect("one more");
        assert_eq!((found, Some(value(row))), (key(n).as_bytes(), *expected));
    }
    assert!(scan.next().expect("reads").is_none());
    values
}

/// The manifest in use, by `CURRENT`.
fn manifest(vfs: &MemVfs) -> PathBuf {
    let current = read(vfs, Path::new("/db/CURRENT"));
    let name = current.split(|byte| *byte == b' ').next().expect("a name");
    Path::new("/db").join(std::str::from_utf8(name).expect("ASCII"))
}

fn read(vfs: &MemVfs, path: &Path) -> Vec<u8> {
    let file = vfs.open(path).expect("opens");
    let mut bytes = vec![0; file.len().expect("there") as usize];
    file.read_at(0, &mut bytes).expect("reads");
    bytes
}

fn format_of(manifest: &[u8]) -> u32 {
    u32::from_le_bytes(manifest[8..12].try_into().expect("four bytes"))
}

/// A manifest of format 1 that says what is in the store: a snapshot of an empty one, and the
/// tables. By the tables of docs/formats.md, not by what writes manifests now.
fn format_1(number: u64, engine: &Engine) -> Vec<u8> {
    let version = engine.shared.version();
    let state = version.state();
    let mut snapshot = vec![1, 2, state.partition_bits() as u8];
    let mut tables = Vec::new();
    let words = [(5, state.flushed().to_u64()), (6, state.file_next()), (7, state.epoch_next())];
    for (tag, word) in words {
        snapshot.push(tag);
        snapshot.extend_from_slice(&word.to_le_bytes());
    }
    for table in state.tables() {
        tables.push(4);
        let sizes = [table.bytes, table.entries, table.deltas, table.purgeable];
        let times = [table.live_time_min, table.time_max, table.created_ms];
        let words = [&[table.number, table.epoch][..], &sizes, &times].concat();
        tables.extend(words.into_iter().flat_map(u64::to_le_bytes));
        tables.extend_from_slice(&[table.level, u8::from(table.demote_full)]);
        for key in [&table.smallest, &table.largest] {
            tables.extend_from_slice(&(key.len() as u16).to_le_bytes());
            tables.extend_from_slice(key);
        }
    }
    let mut bytes = [&b"PairMAN\n"[..], &1_u32.to_le_bytes(), &(!1_u32).to_le_bytes()].concat();
    for edit in [snapshot, tables] {
        let len = (edit.len() as u32).to_le_bytes();
        let place = [number.to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat();
        let checksum = |what: &[u8]| crc32fast::hash(&[&place, what].concat()).to_le_bytes();
        let frame = [&len[..], &checksum(&len), &checksum(&edit), &edit].concat();
        bytes.extend_from_slice(&frame);
    }
    bytes
}

/// Such a store opens with all its rows, is one of today from then on, and what only today's
/// manifests can say of its tables is there after the next start.
#[test]
fn a_store_with_a_manifest_of_format_1_opens_and_goes_on() {
    let vfs = MemVfs::new();
    let reopen = || open(Arc::new(vfs.clone()), tiny()).expect("opens");
    let engine = reopen();
    (0..KEYS).for_each(|n| put(&engine, n, 1));
    engine.compact_all().expect("compacts");
    (0..KEYS).step_by(2).for_each(|n| put(&engine, n, 2));
    engine.close().expect("closes");
    let levels: Vec<u8> = engine.shared.version().tables().map(|it| it.meta.level).collect();
    assert!(levels.len() > 2 && levels.contains(&0) && levels.iter().any(|it| *it > 0));

    let path = manifest(&vfs);
    let number = path.to_str().and_then(|path| path.rsplit('-').next()).expect("a number");
    let old = format_1(number.parse().expect("digits"), &engine);
    drop(engine);
    vfs.remove(&path).expect("there");
    let file = vfs.create(&path).expect("creates");
    file.write_at(0, &old).expect("writes");
    file.sync_data().expect("syncs");
    vfs.sync_dir(Path::new("/db")).expect("syncs");

    let engine = reopen();
    let expected: Vec<_> = (0..KEYS).map(|n| Some(2 - n % 2)).collect();
    assert_eq!(values(&engine), expected);
    assert_eq!((format_of(&old), format_of(&read(&vfs, &manifest(&vfs)))), (1, 3));
    put(&engine, 0, 3);
    let goes = [(key(10).into_bytes(), Some(key(20).into_bytes()))];
    let removed = engine.remove(&goes, &[], &|_| false, &|install| install().map(|()| true));
    assert!(removed.expect("removes").is_some_and(|bytes| bytes > 0));
    let after = values(&engine);
    let kept = |n: usize| if n == 0 { Some(3) } else { expected[n] };
    let expected: Vec<_> =
        (0..KEYS as usize).map(|n| kept(n).filter(|_| !(10..20).contains(&n))).collect();
    assert_eq!(after, expected);
    // Without a clean stop too.
    let killed = vfs.crash_clone_kill();
    drop(engine);
    for vfs in [vfs, killed] {
        assert_eq!(values(&open(Arc::new(vfs), tiny()).expect("opens")), expected);
    }
}

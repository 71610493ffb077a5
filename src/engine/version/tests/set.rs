//! The version set: what is found, what is handed out, what is removed when.

use super::*;
use crate::engine::Error;
use crate::engine::sstable::KeyHash;
use crate::engine::vfs::fault::{Fault, FaultVfs, Operation};

fn open(vfs: &MemVfs) -> VersionSet {
    VersionSet::recover(Arc::new(vfs.clone()), &dir(), &options()).unwrap()
}

fn numbers<'a>(tables: impl Iterator<Item = &'a TableRef>) -> Vec<u64> {
    tables.map(|table| table.meta.number).collect()
}

/// A lookup visits level 0 newest first, then one table a level; keys that share their first eight
/// bytes are told apart.
#[test]
fn candidates_are_newest_first() {
    let vfs = mem();
    let set = open(&vfs);
    let mut tables = Vec::new();
    for (level, keys) in [
        (2, ["a", "c"]),
        (2, ["prefix-8a", "prefix-8c"]),
        (2, ["prefix-8e", "prefix-8g"]),
        (0, ["b", "z"]),
        (0, ["a", "b"]),
    ] {
        tables.push(build(&set, &vfs, level, &keys).unwrap());
    }
    let version = set.log_and_apply(add(tables), 0).unwrap();
    for (key, expected) in [
        ("a", vec![5, 1]),
        ("b", vec![5, 4, 1]),
        ("d", vec![4]),
        ("prefix-8b", vec![4, 2]),
        ("prefix-8d", vec![4]),
        ("prefix-8g", vec![4, 3]),
        ("prefix-8h", vec![4]),
        ("", vec![]),
        ("zz", vec![]),
    ] {
        assert_eq!(numbers(version.candidates(key.as_bytes())), expected, "{key}");
    }
    assert_eq!(numbers(version.overlapping(2, b"c", b"prefix-8e")), [1, 2, 3]);
    assert_eq!(numbers(version.overlapping(2, b"d", b"e")), [0_u64; 0]);
    assert_eq!(numbers(version.overlapping(0, b"c", b"d")), [4]);
    let hash = KeyHash::new(b"a");
    let holds = |except: &[u64]| {
        version.may_hold(b"a", &hash, |table| !except.contains(&table.meta.number))
    };
    assert!(holds(&[1]) && holds(&[5]) && !holds(&[1, 5]));
}

/// A table's file goes when the last version that holds it does, not before; a table that only
/// moves keeps its file.
#[test]
fn obsolete_files_go_with_their_last_reader() {
    let vfs = mem();
    let set = open(&vfs);
    let (one, two) = (build(&set, &vfs, 0, &["a"]).unwrap(), build(&set, &vfs, 0, &["b"]).unwrap());
    let there = |number| vfs.exists(&set.table_path(number)).unwrap();
    let reader = set.log_and_apply(add([one.clone(), two.clone()]), 10).unwrap();
    let mut edit = add([TableMeta { level: 1, ..two }]);
    edit.removed = vec![(0, 1), (0, 2)];
    set.log_and_apply(edit, 20).unwrap();
    assert!(there(1) && there(2));
    assert_eq!(set.pinned_versions(25), (1, 5));
    drop(reader);
    assert!(!there(1) && there(2));
    assert_eq!(set.pinned_versions(25), (0, 0));
    assert_eq!(set.file_counters().removed.load(std::sync::atomic::Ordering::Relaxed), 1);
    drop(set);
    assert_eq!(numbers(open(&vfs).current().tables()), [2]);
}

/// A file that cannot be removed is counted and removed by the next open.
#[test]
fn failed_removal_is_counted() {
    let vfs = mem();
    let faults = FaultVfs::new(Arc::new(vfs.clone()));
    let set = VersionSet::recover(Arc::new(faults.clone()), &dir(), &options()).unwrap();
    let table = build(&set, &vfs, 0, &["a"]).unwrap();
    set.log_and_apply(add([table]), 0).unwrap();
    faults.inject(Fault { operation: Some(Operation::Remove), ..Fault::default() });
    set.log_and_apply(VersionEdit { removed: vec![(0, 1)], ..add([]) }, 0).unwrap();
    let errors = &set.file_counters().remove_errors;
    assert_eq!(errors.load(std::sync::atomic::Ordering::Relaxed), 1);
    let path = set.table_path(1);
    drop(set);
    assert!(vfs.exists(&path).unwrap());
    assert!(open(&vfs).recovery().orphans_removed >= 1);
    assert!(!vfs.exists(&path).unwrap());
}

/// Tables and manifests that nobody names are removed at open; other files are left alone; numbers
/// go on above all that were seen.
#[test]
fn orphans_are_removed() {
    let vfs = mem();
    drop(open(&vfs));
    let names = ["0000000040.sst", "MANIFEST-0000000009", "0000000001.log", "notes.sst", "LOCK"];
    for name in names {
        vfs.create(&dir().join(name)).unwrap();
    }
    let set = open(&vfs);
    let list = vfs.list(&dir()).unwrap();
    let list: Vec<_> = list.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(list, ["0000000001.log", "CURRENT", "LOCK", "MANIFEST-0000000010", "notes.sst"]);
    assert_eq!(set.allocate_file_number(), 41);
    assert_eq!(set.recovery().orphans_removed, 3);
}

/// Tables without a `CURRENT` are somebody's data: they are not removed as orphans.
#[test]
fn tables_without_current_are_refused() {
    let vfs = mem();
    vfs.create(&dir().join("0000000001.sst")).unwrap();
    let error = VersionSet::recover(Arc::new(vfs.clone()), &dir(), &options()).unwrap_err();
    assert!(matches!(error, Error::Corruption(_)), "{error}");
    assert!(vfs.exists(&dir().join("0000000001.sst")).unwrap());
}

/// A table that the manifest names and the directory lacks is named.
#[test]
fn missing_file_is_named() {
    let vfs = mem();
    let set = open(&vfs);
    let table = build(&set, &vfs, 0, &["a"]).unwrap();
    set.log_and_apply(add([table]), 0).unwrap();
    vfs.remove(&set.table_path(1)).unwrap();
    drop(set);
    let error = VersionSet::recover(Arc::new(vfs.clone()), &dir(), &options()).unwrap_err();
    let Error::Corruption(corruption) = &error else { panic!("{error}") };
    assert_eq!(corruption.file, dir().join("0000000001.sst"));
}

/// An edit that breaks a rule, or adds a table whose file is no table, changes nothing and
/// poisons nothing.
#[test]
fn refused_edit_changes_nothing() {
    let vfs = mem();
    let set = open(&vfs);
    let before = essence(set.current().state());
    let bytes = set.manifest_bytes();
    assert!(matches!(
        set.log_and_apply(VersionEdit { removed: vec![(0, 9)], ..add([]) }, 0),
        Err(Error::Edit(EditError::NoSuchTable { number: 9, level: Some(0) }))
    ));
    vfs.create(&set.table_path(5)).unwrap().write_at(0, b"no table").unwrap();
    assert!(matches!(set.log_and_apply(add([meta(5, 0, "a", "b")]), 0), Err(Error::Corruption(_))));
    assert_eq!((essence(set.current().state()), set.manifest_bytes()), (before, bytes));
    set.log_and_apply(VersionEdit::default(), 0).unwrap();
}

/// After a failed write or sync of the manifest nobody knows what it holds: later edits are
/// refused, readers keep their version, and a new open finds one of the two.
#[test]
fn failed_sync_poisons() {
    for operation in [Operation::WriteAt, Operation::SyncData] {
        let vfs = mem();
        let faults = FaultVfs::new(Arc::new(vfs.clone()));
        let set = VersionSet::recover(Arc::new(faults.clone()), &dir(), &options()).unwrap();
        let path_contains = "MANIFEST".into();
        faults.inject(Fault { operation: Some(operation), path_contains, ..Fault::default() });
        let flushed = VersionEdit { flushed: Some(position(1)), ..add([]) };
        let error = set.log_and_apply(flushed.clone(), 0).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        let error = set.log_and_apply(flushed, 0).unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{error}");
        assert_eq!(set.current().state().flushed(), Position::ZERO);
        drop(set);
        assert!(open(&vfs).current().state().flushed() <= position(1));
    }
}

/// A manifest stays within a few snapshots, whatever the number of edits.
#[test]
fn manifest_is_rewritten() {
    let vfs = mem();
    let set = open(&vfs);
    for at in 1..2_000 {
        set.log_and_apply(VersionEdit { flushed: Some(position(at)), ..add([]) }, 0).unwrap();
        assert!(set.manifest_bytes() < 1_200, "{} bytes", set.manifest_bytes());
    }
    let manifests = vfs.list(&dir()).unwrap();
    assert_eq!(manifests.len(), 2, "{manifests:?}");
    // Those are counted as tables are, and a manifest is none.
    assert_eq!(set.file_counters().removed.load(std::sync::atomic::Ordering::Relaxed), 0);
    drop(set);
    assert_eq!(open(&vfs).current().state().flushed(), position(1_999));
}

/// A rewrite that fails before the switch is put off: the old manifest goes on.
#[test]
fn failed_rewrite_is_put_off() {
    let vfs = mem();
    let faults = FaultVfs::new(Arc::new(vfs.clone()));
    let set = VersionSet::recover(Arc::new(faults.clone()), &dir(), &options()).unwrap();
    faults.inject(Fault { operation: Some(Operation::Create), ..Fault::default() });
    for at in 1..200 {
        set.log_and_apply(VersionEdit { flushed: Some(position(at)), ..add([]) }, 0).unwrap();
    }
    drop(set);
    assert_eq!(open(&vfs).current().state().flushed(), position(199));
}

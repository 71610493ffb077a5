//! What an engine does, and leaves on the disk, after it has failed for good.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::row::Row;
use super::{open, tiny};
use crate::engine::flush::CacheChange;
use crate::engine::version::VersionEdit;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{Effect, Fault, FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, SyncMode};

fn tables(disk: &MemVfs) -> usize {
    let files = disk.list(Path::new("/db")).expect("lists");
    files.iter().filter(|file| file.extension().is_some_and(|it| it == "sst")).count()
}

fn put(engine: &Engine, n: u32) {
    let row = Row::default().write(1, u64::from(n) + 1, true, Some(n)).encode();
    let position = engine.apply(&[(&n.to_be_bytes(), &row)]).expect("taken");
    engine.wait_durable(position).expect("durable");
}

/// The next sync of the manifest fails.
fn break_manifest(vfs: &FaultVfs) {
    vfs.inject(Fault {
        operation: Some(Operation::SyncData),
        path_contains: "MANIFEST".into(),
        ..Fault::default()
    });
}

/// A store that can install nothing builds nothing: its disk does not fill with tables of which
/// nobody knows. What was written stays readable, and is there after a restart.
#[test]
fn a_poisoned_engine_writes_no_more_tables() {
    let disk = MemVfs::new();
    let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
    let engine = open(vfs.clone(), tiny()).expect("opens");
    (0..100).for_each(|n| put(&engine, n));
    break_manifest(&vfs);
    engine.flush().expect_err("the manifest cannot be synced");
    let left = tables(&disk);
    for _ in 0..10 {
        let (flushed, stepped) = (engine.flush(), engine.step());
        assert!(matches!(flushed, Err(Error::Poisoned { .. })), "{flushed:?}");
        assert!(matches!(stepped, Err(Error::Poisoned { .. })), "{stepped:?}");
    }
    assert_eq!(tables(&disk), left);
    let count = |engine: &Engine| {
        (0..100_u32).filter(|n| engine.get(&n.to_be_bytes()).expect("reads").is_some()).count()
    };
    assert_eq!(count(&engine), 100);
    drop(engine);
    assert_eq!(count(&open(Arc::new(disk), tiny()).expect("opens")), 100);
}

/// A write whose sync failed may be on disk or not. Whoever was shown it from memory would miss it
/// after the restart, which is the only way on.
#[test]
fn nothing_is_read_after_the_log_has_failed() {
    let disk = MemVfs::new();
    let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
    let engine = open(vfs.clone(), tiny()).expect("opens");
    put(&engine, 1);
    let fault = Fault { operation: Some(Operation::SyncData), ..Fault::default() };
    vfs.inject(fault);
    let row = Row::default().write(1, 3, true, Some(2)).encode();
    let position = engine.apply(&[(&2_u32.to_be_bytes(), &row)]).expect("taken");
    engine.wait_durable(position).expect_err("the log cannot be synced");
    for n in [1_u32, 2] {
        let read = engine.get(&n.to_be_bytes());
        assert!(matches!(read, Err(Error::Poisoned { .. })), "{n}");
    }
    assert!(matches!(engine.scan(b"", None).map(drop), Err(Error::Poisoned { .. })));
    drop(engine);
    let engine = open(Arc::new(disk), tiny()).expect("opens");
    assert!(engine.get(&1_u32.to_be_bytes()).expect("reads").is_some());
}

/// A compaction that was under way when the manifest failed takes its tables back.
#[test]
fn a_compaction_that_cannot_be_installed_leaves_no_tables() {
    let disk = MemVfs::new();
    let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
    let engine = open(vfs.clone(), tiny()).expect("opens");
    for _ in 0..2 {
        (0..20).for_each(|n| put(&engine, n));
        engine.flush().expect("flushes");
    }
    (0..20).for_each(|n| put(&engine, n));
    engine.flush().expect("flushes");
    let before = tables(&disk);
    let hook = Box::new({
        let vfs = vfs.clone();
        move |shared: &super::Shared| {
            break_manifest(&vfs);
            let (first, last) = (&[][..], &[255][..]);
            let change = CacheChange::Ingested { first, last };
            let installed = shared.install(VersionEdit::default(), change, |_| {});
            installed.expect_err("the manifest cannot be synced");
        }
    });
    engine.shared.hooks.lock().insert("compact:merged", hook);
    engine.compact_all().expect_err("poisoned meanwhile");
    assert_eq!(tables(&disk), before);
}

/// Waits until `is_so`, a minute at most.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::yield_now();
    }
}

/// A process that has no descriptor left, or no memory for a mapping, may have one in a moment: a
/// flush and a compaction that met this are tried again, and leave no table behind.
#[test]
fn running_out_of_descriptors_is_no_failure_for_good() {
    let numbers = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    for (operation, number) in [Operation::Create, Operation::Map]
        .into_iter()
        .flat_map(|operation| numbers.map(|number| (operation, number)))
    {
        let disk = MemVfs::new();
        let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
        let fault = Fault {
            operation: Some(operation),
            path_contains: ".sst".into(),
            effect: Effect::FailOs(number),
            ..Fault::default()
        };
        let options = Options { compaction_threads: 1, level0_tables_trigger: 2, ..tiny() };
        let engine = open(vfs.clone(), options).expect("opens");
        let stats = || engine.stats();
        put(&engine, 0);
        vfs.inject(fault.clone());
        engine.shared.seal(false);
        wait_until("a flush", || stats().flushes == 1 || stats().poisoned.is_some());
        assert_eq!((stats().poisoned, stats().background_errors), (None, 1), "{operation:?}");

        put(&engine, 0);
        // The next table after the flush's is the compaction's.
        vfs.inject(Fault { skip: 1, ..fault });
        engine.shared.seal(false);
        wait_until("a compaction", || stats().compactions == 1 || stats().poisoned.is_some());
        assert_eq!((stats().poisoned, stats().background_errors), (None, 2), "{operation:?}");
        engine.close().expect("closes");
        drop(engine);
        assert_eq!(tables(&disk), 1, "{operation:?}");
    }
}

/// A table that cannot be opened after it was written is not named by the manifest: who asked for
/// it learns it, and nobody else is concerned.
#[test]
fn what_fails_before_the_manifest_is_written_changes_nothing() {
    let disk = MemVfs::new();
    let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
    let engine = open(vfs.clone(), tiny()).expect("opens");
    put(&engine, 1);
    vfs.inject(Fault {
        operation: Some(Operation::Map),
        path_contains: ".sst".into(),
        ..Fault::default()
    });
    let failed = engine.flush();
    assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");
    assert_eq!((engine.poisoned(), tables(&disk)), (None, 0));
    put(&engine, 2);
    engine.flush().expect("flushes");
    drop(engine);
    let engine = open(Arc::new(disk), tiny()).expect("opens");
    assert!([1_u32, 2].iter().all(|n| engine.get(&n.to_be_bytes()).expect("reads").is_some()));
}

/// A memtable is flushed when it is a table that the manifest names, whatever becomes of the
/// segments of the log that it came from: one that cannot be taken back just now is tried again
/// after the next flush.
#[test]
fn a_segment_that_cannot_be_taken_back_is_no_failure_of_the_flush() {
    let ways = [
        (SyncMode::Always, Operation::Rename, ".spare"),
        (SyncMode::Os, Operation::Remove, ".log"),
    ];
    for ((sync_mode, operation, file), number) in
        ways.into_iter().flat_map(|way| [libc::EACCES, libc::EIO, libc::ENOSPC].map(|no| (way, no)))
    {
        let disk = MemVfs::new();
        let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
        let options = Options { sync_mode, memtable_bytes: 256 << 10, ..tiny() };
        let engine = open(vfs.clone(), options.clone()).expect("opens");
        let logs = || {
            let mut files = disk.list(Path::new("/db")).expect("lists");
            files.retain(|file| file.extension().is_some_and(|it| it == "log"));
            files
        };
        (0..600).for_each(|n| put(&engine, n));
        let before = logs();
        assert!(before.len() > 2, "{before:?}");
        vfs.inject(Fault {
            operation: Some(operation),
            path_contains: file.into(),
            effect: Effect::FailOs(number),
            ..Fault::default()
        });
        engine.flush().expect("it is a table");
        let stats = engine.stats();
        assert_eq!((stats.flushes, stats.background_errors, stats.poisoned), (1, 1, None));
        assert_eq!(logs(), [before[0].clone(), before[before.len() - 1].clone()], "the others");
        put(&engine, 600);
        engine.flush().expect("flushes");
        assert_eq!((engine.stats().background_errors, logs().len()), (1, 1));
        engine.close().expect("closes");
        drop(engine);
        let engine = open(Arc::new(disk), options).expect("opens");
        let has = |n: u32| engine.get(&n.to_be_bytes()).expect("reads").is_some();
        assert!((0..601).all(has));
    }
}

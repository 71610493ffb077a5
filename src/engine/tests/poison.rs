//! What an engine does, and leaves on the disk, after it has failed for good.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use super::row::{Row, RowJoin};
use super::{StoppedClock, open, tiny};
use crate::engine::flush::CacheChange;
use crate::engine::version::VersionEdit;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{Effect, Fault, FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Environment, Error, MergeError, MergeOperator, Options, SyncMode};

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
            let change = CacheChange::Range { first, last };
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

/// Joins rows, but panics once where it is told to.
struct Panics {
    in_join: Arc<AtomicBool>,
    in_flush: Arc<AtomicBool>,
}

impl MergeOperator for Panics {
    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        assert!(!self.in_join.swap(false, Ordering::SeqCst), "told to");
        RowJoin { checks_claims: true }.join(a, b, out)
    }

    fn time_max(&self, row: &[u8]) -> Result<u64, MergeError> {
        assert!(!self.in_flush.swap(false, Ordering::SeqCst), "told to");
        RowJoin { checks_claims: true }.time_max(row)
    }
}

/// Longer than anything takes that waits for nobody.
const LONG: Duration = Duration::from_secs(20);

/// A write whose caller panics when it is logged and not yet in memory is one of which memory and
/// log may say different things: nothing is taken or flushed after it, and nobody waits for it.
#[test]
fn a_panic_in_a_write_is_waited_for_by_nobody() {
    for observes in [false, true] {
        let in_join = Arc::new(AtomicBool::new(false));
        let operator = Panics { in_join: in_join.clone(), in_flush: Arc::default() };
        let environment =
            Environment { vfs: Arc::new(MemVfs::new()), clock: Arc::new(StoppedClock) };
        let engine = Engine::open_in(Path::new("/db"), tiny(), Arc::new(operator), environment);
        let engine = Arc::new(engine.expect("opens"));
        put(&engine, 1);
        if observes {
            let is_told = in_join.clone();
            engine.observe(Box::new(move |_| {
                assert!(!is_told.swap(false, Ordering::SeqCst), "told to");
            }));
        }
        let (tell, told) = channel();
        let flushing = Arc::downgrade(&engine);
        let seal = Box::new(move |shared: &super::Shared| {
            shared.seal(false);
            thread::spawn(move || {
                let engine = flushing.upgrade().expect("it is there");
                let _ = tell.send(engine.shared.flush_first());
            });
            // For the flush to wait for the write.
            thread::sleep(Duration::from_millis(50));
        });
        engine.shared.hooks.lock().insert("write:picked", seal);
        in_join.store(true, Ordering::SeqCst);
        let n = if observes { 2 } else { 1 };
        let written = catch_unwind(AssertUnwindSafe(|| put(&engine, n)));
        assert!(written.is_err() && !in_join.load(Ordering::SeqCst));
        let flushed = told.recv_timeout(LONG).expect("it does not wait for ever");
        assert!(matches!(flushed, Err(Error::Poisoned { .. })), "{flushed:?}");
        assert_eq!(engine.stats().flushes, 0);
        let row = Row::default().write(1, 9, true, Some(9)).encode();
        let refused = engine.apply(&[(&3_u32.to_be_bytes(), &row)]);
        assert!(matches!(refused, Err(Error::Poisoned { .. })), "{refused:?}");
        let (tell, told) = channel();
        let closing = engine.clone();
        thread::spawn(move || tell.send(closing.close()));
        let closed = told.recv_timeout(LONG).expect("it does not wait for ever");
        assert!(matches!(closed, Err(Error::Poisoned { .. })), "{closed:?}");
    }
}

/// A thread of the engine does not end unnoticed: nobody would flush, or compact, from then on.
#[test]
fn a_panic_of_a_thread_poisons_the_engine() {
    let in_flush = Arc::new(AtomicBool::new(false));
    let operator = Panics { in_join: Arc::default(), in_flush: in_flush.clone() };
    let environment = Environment { vfs: Arc::new(MemVfs::new()), clock: Arc::new(StoppedClock) };
    let options = Options { compaction_threads: 1, ..tiny() };
    let engine = Engine::open_in(Path::new("/db"), options, Arc::new(operator), environment);
    let engine = engine.expect("opens");
    put(&engine, 1);
    in_flush.store(true, Ordering::SeqCst);
    engine.shared.seal(false);
    wait_until("poison", || engine.poisoned().is_some());
    let cause = engine.poisoned().expect("poisoned");
    assert!(cause.contains("pairdb-flush"), "{cause}");
    let row = Row::default().write(1, 9, true, Some(9)).encode();
    let refused = engine.apply(&[(&2_u32.to_be_bytes(), &row)]);
    assert!(matches!(refused, Err(Error::Poisoned { .. })), "{refused:?}");
    let closed = engine.close();
    assert!(matches!(closed, Err(Error::Poisoned { .. })), "{closed:?}");
}

//! What a clean close leaves behind: tables, a manifest, and no log.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use parking_lot::Mutex;

use super::row::Row;
use super::{open, tiny};
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{Effect, Fault, FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, Result, SyncMode};

fn logs(disk: &MemVfs) -> Vec<PathBuf> {
    let mut files = disk.list(Path::new("/db")).expect("lists");
    let is_log = |file: &PathBuf| file.extension().is_some_and(|it| it == "log" || it == "spare");
    files.retain(is_log);
    files
}

fn row(n: u32) -> Vec<u8> {
    Row::default().write(1, u64::from(n) + 1, true, Some(n)).encode()
}

fn put(engine: &Engine, n: u32) {
    let position = engine.apply(&[(&n.to_be_bytes(), &row(n))]).expect("taken");
    engine.wait_durable(position).expect("durable");
}

fn count(engine: &Engine) -> usize {
    let held = |n: &u32| engine.get(&n.to_be_bytes()).expect("read").is_some();
    (0..1_000).filter(held).count()
}

/// Space after a close is about the data, and an open has no log to look through. What is written
/// after that open survives a power loss, although its log begins behind an end without files.
#[test]
fn a_clean_close_leaves_no_log() {
    for sync_mode in [SyncMode::Always, SyncMode::Os] {
        let options = Options { sync_mode, ..tiny() };
        let disk = MemVfs::new();
        for life in 0..3 {
            let engine = open(Arc::new(disk.clone()), options.clone()).expect("opens");
            assert_eq!(count(&engine), 300 * life as usize);
            (300 * life..300 * (life + 1)).for_each(|n| put(&engine, n));
            assert!(!logs(&disk).is_empty());
            if sync_mode == SyncMode::Always {
                let lost = Arc::new(disk.crash_clone(u64::from(life)));
                let lost = open(lost, options.clone()).expect("opens after a power loss");
                assert_eq!(count(&lost), 300 * (life + 1) as usize);
            }
            engine.close().expect("closes");
            assert_eq!(logs(&disk), [] as [PathBuf; 0], "{sync_mode:?}, life {life}");
        }
        // A store that was only opened leaves none either.
        open(Arc::new(disk.clone()), options.clone()).expect("opens").close().expect("closes");
        assert_eq!(logs(&disk), [] as [PathBuf; 0]);
    }
}

/// Law: from the manifest's last word on, whatever of the log a crash during the close leaves is
/// not read again; before it, all of it is there.
#[test]
fn a_crash_during_the_close_leaves_all_of_the_log_or_none_that_counts() {
    let disk = MemVfs::new();
    let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
    let engine = open(vfs.clone(), tiny()).expect("opens");
    (0..50).for_each(|n| put(&engine, n));
    let moments = Arc::new(Mutex::new(Vec::new()));
    vfs.on_call({
        let (moments, disk) = (moments.clone(), disk.clone());
        move |n, call| {
            if call.operation.changes_disk() {
                let kept = [disk.crash_clone_kill(), disk.crash_clone(n), disk.crash_clone(n + 1)];
                moments.lock().extend(kept.map(|disk| (format!("{call:?}"), disk)));
            }
        }
    });
    engine.close().expect("closes");
    let moments = std::mem::take(&mut *moments.lock());
    assert!(moments.len() >= 3 * 10, "{}", moments.len());
    for (moment, disk) in moments {
        let engine = open(Arc::new(disk.clone()), tiny()).expect("opens");
        assert_eq!(count(&engine), 50, "before {moment}");
        engine.close().expect("closes");
        assert_eq!(logs(&disk), [] as [PathBuf; 0], "before {moment}");
    }
}

/// A write that comes when the log has ended is refused, not lost.
#[test]
fn a_write_after_the_end_of_the_log_is_refused() {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), tiny()).expect("opens");
    put(&engine, 0);
    engine.flush().expect("flushes");
    let end = Box::new(|shared: &super::Shared| shared.end_log().expect("ends"));
    engine.shared.hooks.lock().insert("apply:checked", end);
    let refused = engine.apply(&[(&1_u32.to_be_bytes(), &row(1))]);
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    drop(engine);
    assert_eq!(count(&open(disk, tiny()).expect("opens")), 1);
}

/// A write that has picked its memtable when the store closes keeps the log: it is replayed.
#[test]
fn a_write_under_way_at_the_close_keeps_the_log() {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), tiny()).expect("opens");
    put(&engine, 0);
    engine.flush().expect("flushes");
    let end = Box::new(|shared: &super::Shared| shared.end_log().expect("keeps the log"));
    engine.shared.hooks.lock().insert("write:picked", end);
    put(&engine, 1);
    // The close may have left a mark by now that says nothing came after it.
    let refused = engine.apply(&[(&2_u32.to_be_bytes(), &row(2))]);
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    drop(engine);
    assert!(!logs(&disk).is_empty());
    assert_eq!(count(&open(disk, tiny()).expect("opens")), 2);
}

/// A write that ends while the close looks whether there is one is not taken for none.
#[test]
fn a_write_that_ends_while_the_close_looks_keeps_the_log() {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), tiny()).expect("opens");
    put(&engine, 0);
    engine.flush().expect("flushes");
    let (picked, is_picked) = channel();
    let (go_on, goes_on) = channel();
    let wait = Box::new(move |_: &super::Shared| {
        picked.send(()).expect("awaited");
        goes_on.recv().expect("told to go on");
    });
    engine.shared.hooks.lock().insert("write:picked", wait);
    thread::scope(|scope| {
        scope.spawn(|| engine.apply(&[(&1_u32.to_be_bytes(), &row(1))]).expect("taken"));
        is_picked.recv().expect("the write has its memtable");
        let let_end = Box::new(move |shared: &super::Shared| {
            go_on.send(()).expect("awaited");
            let active = Arc::clone(&shared.super_version.load().active);
            while active.has_writers() {
                thread::yield_now();
            }
        });
        engine.shared.hooks.lock().insert("untouched:looked", let_end);
        engine.shared.end_log().expect("keeps the log");
    });
    drop(engine);
    assert!(!logs(&disk).is_empty());
    assert_eq!(count(&open(disk, tiny()).expect("opens")), 2);
}

/// An engine whose log thread is in the middle of a sync, and what the callback of a write that
/// came after it was told. The sync ends when the threads are told to stop.
fn engine_in_a_sync(vfs: &Arc<FaultVfs>) -> (Engine, Receiver<Result<()>>) {
    let engine = open(vfs.clone(), Options { compaction_threads: 1, ..tiny() }).expect("opens");
    let (began, begins) = channel();
    let shared = engine.shared.clone();
    vfs.hold_calls(move |call| {
        let is_log = call.path.extension().is_some_and(|extension| extension == "log");
        if is_log && call.operation == Operation::SyncData {
            // Nobody listens to the later ones.
            let _ = began.send(());
            while !shared.background.stop_flag().load(Ordering::SeqCst) {
                thread::yield_now();
            }
        }
    });
    let position = engine.apply(&[(&0_u32.to_be_bytes(), &row(0))]).expect("taken");
    engine.on_durable(position, Box::new(|_| {}));
    begins.recv().expect("the log thread syncs");
    let position = engine.apply(&[(&1_u32.to_be_bytes(), &row(1))]).expect("taken");
    let (tell, told) = channel();
    engine.on_durable(position, Box::new(move |outcome| tell.send(outcome).expect("awaited")));
    (engine, told)
}

/// A close that cannot flush syncs the log all the same, and tells who waits for it.
#[test]
fn a_close_that_cannot_flush_makes_writes_durable_and_says_so() {
    let disk = Arc::new(MemVfs::new());
    let vfs = Arc::new(FaultVfs::new(disk.clone()));
    let (engine, told) = engine_in_a_sync(&vfs);
    vfs.inject(Fault {
        operation: Some(Operation::Create),
        path_contains: ".sst".into(),
        times: u64::MAX,
        effect: Effect::Fail(ErrorKind::StorageFull),
        ..Fault::default()
    });
    engine.close().expect_err("there is no room for a table");
    assert!(matches!(told.try_recv(), Ok(Ok(()))));
    let refused = engine.apply(&[(&2_u32.to_be_bytes(), &row(2))]);
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    let lost = Arc::new(disk.crash_clone(1));
    assert_eq!(count(&open(lost, tiny()).expect("opens after a power loss")), 2);
}

/// Whoever waits for a write of an engine that goes away without a close is told that nobody will
/// know its fate.
#[test]
fn a_callback_is_called_when_the_engine_is_dropped() {
    let (engine, told) = engine_in_a_sync(&Arc::new(FaultVfs::new(Arc::new(MemVfs::new()))));
    drop(engine);
    let outcome = told.try_recv().expect("called");
    assert!(matches!(outcome, Err(Error::Poisoned { .. })), "{outcome:?}");
}

//! What a clean close leaves behind: tables, a manifest, and no log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::row::Row;
use super::{open, tiny};
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, SyncMode};

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

//! Who lets go of something last does not free it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use super::row::Row;
use super::{open, tiny};
use crate::engine::reaper::THREAD;
use crate::engine::version::Version;
use crate::engine::vfs::fault::{FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Options, Shared};

fn put(engine: &Engine, value: u32) {
    let row = Row::default().write(1, u64::from(value), true, Some(value)).encode();
    engine.apply(&[(b"key", &row)]).expect("taken");
}

/// A job takes seconds, and writers go on: what it keeps are tables.
#[test]
fn no_compaction_keeps_memtables_that_are_flushed_meanwhile() {
    let engine = Arc::new(open(Arc::new(MemVfs::new()), tiny()).expect("opens"));
    for value in 1..=2 {
        put(&engine, value);
        engine.flush().expect("flushes");
    }
    let (tell, told) = channel();
    let within = Arc::downgrade(&engine);
    let in_the_middle = Box::new(move |shared: &Shared| {
        let engine = within.upgrade().expect("it compacts");
        put(&engine, 3);
        let memtable = Arc::downgrade(&shared.super_version.load().active);
        engine.flush().expect("flushes");
        tell.send(memtable.upgrade().is_none()).expect("the test waits");
    });
    engine.shared.hooks.lock().insert("compact:merged", in_the_middle);
    engine.compact_all().expect("compacts");
    assert_eq!(told.recv(), Ok(true), "the job keeps it");
}

/// Holds tables of two levels while they are compacted and lets go of them last: nothing of it is
/// done by who held them.
fn lets_go_last<H>(hold: impl Fn(&Engine) -> H) {
    let vfs = Arc::new(FaultVfs::new(Arc::new(MemVfs::new())));
    let (tell, removed_by) = channel();
    vfs.hold_calls(move |call| {
        let is_table = call.path.extension().is_some_and(|end| end == "sst");
        if is_table && call.operation == Operation::Remove {
            // Those that go when the engine does nobody waits for.
            let by = thread::current().name().map(str::to_owned);
            let _ = tell.send((call.path.to_path_buf(), by));
        }
    });
    let engine = open(vfs, Options { compaction_threads: 1, ..tiny() }).expect("opens");
    put(&engine, 1);
    engine.compact_all().expect("compacts");
    put(&engine, 2);
    engine.flush().expect("flushes");
    let tables = |version: &Version| version.tables().map(|it| it.path().to_owned()).collect();
    let before: BTreeSet<PathBuf> = tables(&engine.shared.version());
    let held = hold(&engine);
    engine.compact_all().expect("compacts");
    assert!(before.is_disjoint(&tables(&engine.shared.version())), "all are compacted");
    drop(held);
    engine.close().expect("closes");
    let removed: BTreeMap<PathBuf, Option<String>> = removed_by.try_iter().collect();
    assert!(before.iter().all(|path| removed.contains_key(path)), "{removed:?}");
    assert!(removed.values().all(|by| by.as_deref() == Some(THREAD)), "{removed:?}");
}

/// A reader that was put off the processor wakes up, the last one to hold tables that have been
/// compacted meanwhile.
#[test]
fn no_reader_removes_the_files_of_tables_that_it_held_last() {
    lets_go_last(|engine| engine.shared.super_version.load_full());
}

/// A client reads a range for as long as it likes, and ends when all of its tables were compacted.
#[test]
fn no_scan_removes_the_files_of_tables_that_it_held_last() {
    lets_go_last(|engine| {
        let mut scan = engine.scan(b"", None).expect("a scan");
        assert!(scan.next().expect("readable").is_some());
        scan
    });
}

//! Who lets go of something last does not free it.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use super::row::Row;
use super::{open, tiny};
use crate::engine::Options;
use crate::engine::reaper::THREAD;
use crate::engine::vfs::fault::{FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;

/// A reader that was put off the processor wakes up, the last one to hold tables that have been
/// compacted meanwhile.
#[test]
fn no_reader_removes_the_files_of_tables_that_it_held_last() {
    let vfs = Arc::new(FaultVfs::new(Arc::new(MemVfs::new())));
    let (tell, removed_by) = channel();
    vfs.hold_calls(move |call| {
        let is_table = call.path.extension().is_some_and(|end| end == "sst");
        if is_table && call.operation == Operation::Remove {
            // Those that go when the engine does nobody waits for.
            let _ = tell.send(thread::current().name().map(str::to_owned));
        }
    });
    let engine = open(vfs, Options { compaction_threads: 1, ..tiny() }).expect("opens");
    for value in 1..=2 {
        let row = Row::default().write(1, u64::from(value), true, Some(value)).encode();
        engine.apply(&[(b"key", &row)]).expect("taken");
        engine.flush().expect("flushes");
    }
    let view = engine.shared.super_version.load_full();
    let held = view.version.tables().count() as u64;
    assert!(held >= 1);
    engine.compact_all().expect("compacts");
    let before = engine.stats().files_removed;
    drop(view);
    engine.close().expect("closes");
    let removed = engine.stats().files_removed;
    assert!(removed > before, "it held none that was compacted");
    let by: Vec<_> = removed_by.try_iter().collect();
    assert_eq!(by.len() as u64, removed);
    assert!(by.iter().all(|name| name.as_deref() == Some(THREAD)), "{by:?}");
}

//! A disk that hangs, memory that takes long to be had: who has to wait for it, and who has not.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use super::row::Row;
use super::{open, tiny};
use crate::engine::vfs::fault::{FaultVfs, Operation};
use crate::engine::vfs::hold::Hold;
use crate::engine::vfs::mem::MemVfs;

/// The manifest's sync hangs. Whoever asks for figures, to see what is wrong, is answered.
#[test]
fn figures_do_not_wait_for_the_manifest() {
    let vfs = FaultVfs::new(Arc::new(MemVfs::new()));
    let engine = Arc::new(open(Arc::new(vfs.clone()), tiny()).expect("opens"));
    let row = Row::default().write(1, 1, true, Some(1)).encode();
    engine.apply(&[(b"key", &row)]).expect("taken");
    let before = engine.stats().manifest_bytes;
    assert!(before > 0);

    let (tell, told) = channel();
    let syncs = Hold::of(&vfs, Operation::SyncData, "MANIFEST");
    syncs.close();
    thread::scope(|scope| {
        let flush = scope.spawn(|| engine.flush());
        syncs.wait_for_more_than(0);
        let asked = Arc::clone(&engine);
        scope.spawn(move || tell.send(asked.stats()).expect("awaited"));
        let figures = told.recv_timeout(Duration::from_secs(10));
        syncs.open();
        flush.join().expect("no panic").expect("flushes");
        assert_eq!(figures.expect("answered while it hangs").manifest_bytes, before);
    });
    assert!(engine.stats().manifest_bytes > before);
}

/// The next memtable is the one that was made ahead, whole: nothing of it is made while the log is
/// locked.
#[test]
fn the_next_memtable_is_the_one_that_was_made_ahead() {
    let engine = open(Arc::new(MemVfs::new()), tiny()).expect("opens");
    let row = Row::default().write(1, 1, true, Some(1)).encode();
    engine.apply(&[(b"key", &row)]).expect("taken");
    engine.shared.flush_first().expect("there is nothing to flush");
    let ahead = engine.shared.blank.lock().as_ref().expect("one was made").address();
    engine.shared.seal(false);
    assert_eq!(Arc::as_ptr(&engine.shared.super_version.load().active), ahead);
    assert!(engine.shared.blank.lock().is_none());
}

/// The memory of the next memtable is made while nobody has to wait for whoever makes it: neither
/// writers, for the log, nor who seals the one after, for what was made ahead.
#[test]
fn nobody_waits_for_the_memory_of_the_next_memtable() {
    for flushes in [false, true] {
        let engine = open(Arc::new(MemVfs::new()), tiny()).expect("opens");
        let row = Row::default().write(1, 1, true, Some(1)).encode();
        engine.apply(&[(b"key", &row)]).expect("taken");
        drop(engine.shared.blank.lock().take());
        let (tell, told) = channel();
        let other = Arc::clone(&engine.shared);
        let look = Box::new(move |_: &super::Shared| {
            let (free, is_free) = channel();
            thread::spawn(move || {
                drop(other.log.lock());
                drop(other.blank.lock());
                free.send(())
            });
            tell.send(is_free.recv_timeout(Duration::from_secs(10)).is_ok()).expect("awaited");
        });
        engine.shared.hooks.lock().insert("blank:new", look);
        if flushes {
            engine.shared.flush_first().expect("there is nothing to flush");
        } else {
            engine.shared.seal(false);
        }
        assert!(told.try_recv().expect("one was made"), "flushes: {flushes}");
    }
}

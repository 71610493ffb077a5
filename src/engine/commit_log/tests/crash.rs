//! A crash at every call of the file system, and a failure of every call.
//!
//! The law: what is recovered is a prefix of what was appended, contains all that was promised, and
//! no crash is taken for corruption.

use std::io::ErrorKind;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::engine::commit_log::{next_segment_number, remove_segments};
use crate::engine::vfs::fault::FaultVfs;

/// What was promised so far. Records are numbered from 0.
#[derive(Clone, Copy, Debug, Default)]
struct Promises {
    appended: u64,
    written: u64,
    durable: u64,
    /// What the manifest would say: all records below the second are in tables.
    flushed: (Position, u64),
}

/// The life of a log: appends, syncs, writes, flushes, some before their log is synced, and its
/// clean end. Where not each write is synced, room is made ahead now and then.
fn live(vfs: &FaultVfs, sync_mode: SyncMode, promises: &Mutex<Promises>) -> Result<()> {
    let log = create(vfs, LogOptions { sync_mode, ..SMALL }, 1)?;
    let mut sealed = (Position::ZERO, 0);
    for index in 0..150 {
        promises.lock().appended = index + 1;
        let end = append(&log, index)?;
        if index % 5 != 0 {
            log.make_room();
        }
        if index % 3 == 1 {
            log.write_out(end)?;
            promises.lock().written = index + 1;
        }
        if index % 4 == 2 {
            log.sync(end)?;
            promises.lock().written = index + 1;
            promises.lock().durable = index + 1;
        }
        if index % 16 == 7 {
            let mut log = log.lock();
            sealed = (if index % 32 == 7 { log.cut() } else { log.close_frame() }, index + 1);
        }
        // A flush takes no time or as long as two segments.
        if index % 32 == 7 || index % 16 == 5 {
            let mut promises = promises.lock();
            promises.flushed = sealed;
            promises.written = promises.written.max(sealed.1);
            promises.durable = promises.durable.max(sealed.1);
            drop(promises);
            log.retire(sealed.0)?;
        }
    }
    let end = log.lock().end()?;
    *promises.lock() = Promises { appended: 150, written: 150, durable: 150, flushed: (end, 150) };
    log.remove_files()
}

/// Recovers and checks the law; the number of records that are there, flushed ones included.
fn check(vfs: &MemVfs, promises: Promises, at_least: u64, what: &str) -> u64 {
    let (from, first) = promises.flushed;
    let (found, _) = replay(vfs, from, false).unwrap_or_else(|error| panic!("{what}: {error}"));
    let end = first + found.len() as u64;
    assert_eq!(found, (first..end).collect::<Vec<_>>(), "{what}: a prefix");
    assert!(at_least <= end && end <= promises.appended.max(first), "{what}: {end}, {promises:?}");
    end
}

/// Goes on after the crash as an engine would, once without telling its manifest anything, and
/// checks that nothing from before comes back, goes, or hides the new records.
fn live_on(vfs: &MemVfs, promises: Promises, end: u64, what: &str) {
    let (from, first) = promises.flushed;
    let next = next_segment_number(vfs, directory(), [from]).unwrap();
    let log = create(vfs, SMALL, next).unwrap();
    let (found, _) = replay(&vfs.crash_clone_kill(), Position::new(next, 0), false).unwrap();
    assert_eq!(found, numbers(0), "{what}: a number is used once");
    for index in end..end + 20 {
        let end = append(&log, index).unwrap();
        log.sync(end).unwrap();
    }
    let vfs = vfs.crash_clone(end);
    let (found, _) = replay(&vfs, from, false).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(found, (first..end + 20).collect::<Vec<_>>(), "{what}: old and new");
    remove_segments(&vfs, directory(), next).unwrap();
    let (found, _) = replay(&vfs, Position::new(next, 0), false).unwrap();
    assert_eq!(found, (end..end + 20).collect::<Vec<_>>(), "{what}: new only");
}

#[test]
fn a_crash_at_any_call_recovers_a_prefix_with_all_that_was_promised() {
    [SyncMode::Always, SyncMode::Interval].into_iter().for_each(crash_at_any_call);
}

fn crash_at_any_call(sync_mode: SyncMode) {
    let mem = disk();
    let vfs = FaultVfs::new(Arc::new(mem.clone()));
    let promises = Arc::new(Mutex::new(Promises::default()));
    let (seen, disk) = (Arc::clone(&promises), mem.clone());
    vfs.on_call(move |number, call| {
        if !call.operation.changes_disk() {
            return;
        }
        let promises = *seen.lock();
        let what = format!("{sync_mode:?}, killed at call {number}, {call:?}");
        check(&disk.crash_clone_kill(), promises, promises.written, &what);
        for seed in 0..8 {
            let seed = number * 100 + seed;
            let what = format!("{sync_mode:?}, power lost at {number}, {call:?}, seed {seed}");
            let after = disk.crash_clone(seed);
            let end = check(&after, promises, promises.durable, &what);
            if seed % 4 == 0 {
                live_on(&after, promises, end, &what);
            }
        }
    });
    live(&vfs, sync_mode, &promises).unwrap();
    assert!(vfs.calls() > 100, "{} calls", vfs.calls());
    assert!(promises.lock().durable > 140);
}

#[test]
fn a_failure_of_any_call_breaks_no_promise() {
    [SyncMode::Always, SyncMode::Interval].into_iter().for_each(failure_of_any_call);
}

fn failure_of_any_call(sync_mode: SyncMode) {
    for number in 1.. {
        let mem = disk();
        let vfs = FaultVfs::new(Arc::new(mem.clone()));
        vfs.fail_call(number, ErrorKind::Other);
        let promises = Mutex::new(Promises::default());
        let outcome = live(&vfs, sync_mode, &promises);
        let promises = *promises.lock();
        let what = format!("{sync_mode:?}, call {number} failed");
        check(&mem.crash_clone_kill(), promises, promises.written, &what);
        for seed in 0..4 {
            check(&mem.crash_clone(seed), promises, promises.durable, &what);
        }
        if outcome.is_ok() && vfs.calls() < number {
            assert!(number > 100);
            break;
        }
    }
}

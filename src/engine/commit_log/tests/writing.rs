//! Appending: positions, bounds, group commit, rotation, recycling, poison.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::*;
use crate::engine::Error;
use crate::engine::commit_log::{next_segment_number, remove_segments};
use crate::engine::vfs::fault::{Effect, Fault, FaultVfs, Operation};
use crate::engine::vfs::os::OsVfs;

fn names(vfs: &dyn Vfs) -> Vec<PathBuf> {
    vfs.list(directory()).unwrap()
}

/// Written, durable and called back are three different things, and positions tell them apart.
#[test]
fn positions_tell_appended_written_and_durable_apart() {
    let vfs = disk();
    let log = create(&vfs, SMALL, 1).unwrap();
    let first = append(&log, 0).unwrap();
    let second = append(&log, 1).unwrap();
    assert!(first < second && log.appended_upto() == second);
    assert_eq!(log.written_upto(), Position::ZERO);
    assert_eq!(replay(&vfs, Position::ZERO, false).unwrap().0, numbers(0), "still in the buffer");

    log.write_out(first).unwrap();
    assert!(
        log.written_upto() >= second && log.durable_upto() < first,
        "whatever waits goes along"
    );
    assert_eq!(replay(&vfs.crash_clone_kill(), Position::ZERO, false).unwrap().0, numbers(2));

    let called = Arc::new(Mutex::new(Vec::new()));
    for (name, upto) in [(2, second), (1, first)] {
        let called = Arc::clone(&called);
        log.on_durable(upto, Box::new(move |result| called.lock().push((name, result.is_ok()))));
    }
    assert!(called.lock().is_empty());
    log.sync(second).unwrap();
    assert_eq!(*called.lock(), [(1, true), (2, true)], "in the order of the log");
    let late = Arc::clone(&called);
    log.on_durable(first, Box::new(move |_| late.lock().clear()));
    assert!(called.lock().is_empty(), "already durable: at once");
    for seed in 0..20 {
        assert_eq!(replay(&vfs.crash_clone(seed), Position::ZERO, false).unwrap().0, numbers(2));
    }
    let stats = log.stats();
    assert_eq!((stats.records, stats.frames, stats.syncs, stats.segments), (2, 1, 1, 1));
    assert!(matches!(log.sync(Position::new(9, 9)), Err(Error::OutOfBounds { .. })));
}

/// The engine seals a memtable at a frame's border: recovery from there replays what follows only.
#[test]
fn recovery_begins_exactly_at_a_closed_frame() {
    let vfs = disk();
    let log = CommitLog::create(Arc::new(vfs.clone()), directory(), SMALL, 1, 7_u32).unwrap();
    for index in 0..2 {
        append(&log, index).unwrap();
    }
    let mut guard = log.lock();
    let border = guard.close_frame();
    assert_eq!(guard.close_frame(), border, "nothing to close");
    *guard += 1;
    assert_eq!(*guard, 8, "the state is the guard's");
    drop(guard);
    let end = append(&log, 2).unwrap();
    log.write_out(end).unwrap();
    let (found, recovered) = replay(&vfs, border, false).unwrap();
    assert_eq!((found, recovered.records), (vec![2], 1));
    assert_eq!(recovered.end, log.written_upto());
    assert_eq!(replay(&vfs, recovered.end, false).unwrap().0, numbers(0));
    assert_eq!(
        replay(&vfs, Position::new(1, 4000), false).unwrap().0,
        numbers(0),
        "beyond the end"
    );
}

/// What cannot be recovered is refused before anything is changed.
#[test]
fn what_does_not_fit_is_refused_up_front() {
    let vfs = disk();
    let log = create(&vfs, SMALL, 1).unwrap();
    // The key's length takes a byte, the row's two, what it shares with the row before one.
    let max = log.append_bytes_max() - 4 - 1;
    let mut guard = log.lock();
    guard.append(&[(b"k", &vec![1; max])]).unwrap();
    let whole = guard.close_frame();
    assert!((4080..=4096).contains(&whole.offset()), "a whole segment: {whole}");
    let too_long = guard.append(&[(b"k", &vec![1; max + 1])]);
    assert!(matches!(too_long, Err(Error::OutOfBounds { found: 4043, limit: 4042, .. })));
    let long_key = guard.append(&[(&vec![1; 1 << 16], b"")]);
    assert!(matches!(long_key, Err(Error::OutOfBounds { what: "key bytes", .. })));
    assert_eq!(guard.append(&[]).unwrap(), whole);
    let next = guard.append(&[(b"k", b"")]).unwrap();
    assert_eq!(next, Position::new(2, 32 + 9 + 4), "not a byte more in segment 1");
    drop(guard);
    assert_eq!(log.appended_upto(), next);
    log.sync(next).unwrap();
    let mut records = 0;
    recover(&vfs, directory(), Position::ZERO, false, &mut |_, _, _| {
        records += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(records, 2);
    assert!(matches!(create(&vfs, SMALL, 1), Err(Error::OutOfBounds { .. })), "segment 1 is there");
}

/// The buffer is bounded: who finds it full writes it out before appending.
#[test]
fn a_full_buffer_is_written_out_by_who_wants_to_append() {
    let log = create(&disk(), SMALL, 1).unwrap();
    for index in 0..60 {
        append(&log, index).unwrap();
        let waiting = log.stats().records.abs_diff(index + 1);
        assert!(waiting <= 30, "{waiting} records wait");
    }
    assert!(log.stats().records >= 30);
}

/// Many threads, some of which ask for durability, over many segments: every record exactly once,
/// each thread's in its order, and each sync that returned kept its promise.
///
/// What `power_loss` answers is looked at beside the writers only if it `is_apart`. Of files that
/// change while they are read a piece may be missing whose sync a later piece tells of.
fn many_threads(
    vfs: Arc<dyn Vfs>,
    directory: &Path,
    is_apart: bool,
    power_loss: impl Fn() -> Arc<dyn Vfs> + Sync,
) {
    const THREADS: u64 = 8;
    const EACH: u64 = 150;
    let writing = RwLock::new(());
    let log = CommitLog::create(vfs, directory, SMALL, 1, ()).unwrap();
    let called = AtomicU64::new(0);
    let called_back = Arc::new(called);
    let recovered = |vfs: Arc<dyn Vfs>| {
        let mut found = Vec::new();
        recover(&*vfs, directory, Position::ZERO, false, &mut |_, key, bytes| {
            let index = u64::from_be_bytes(key.try_into().unwrap());
            assert_eq!(bytes, row(index));
            found.push((index / 1000, index % 1000));
            Ok(())
        })
        .unwrap();
        found
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (log, called_back) = (&log, Arc::clone(&called_back));
            let (power_loss, recovered, writing) = (&power_loss, &recovered, &writing);
            scope.spawn(move || {
                for index in 0..EACH {
                    let written = writing.read();
                    let end = append(log, thread * 1000 + index).unwrap();
                    let called_back = Arc::clone(&called_back);
                    let done = move |result: Result<()>| {
                        result.unwrap();
                        called_back.fetch_add(1, Ordering::Relaxed);
                    };
                    log.on_durable(end, Box::new(done));
                    match index % 3 {
                        0 => log.write_out(end).unwrap(),
                        1 => log.sync(end).unwrap(),
                        _ => {}
                    }
                    if index % 50 == 49 {
                        log.sync(end).unwrap();
                        drop(written);
                        let _nobody_writes = (!is_apart).then(|| writing.write());
                        assert!(recovered(power_loss()).contains(&(thread, index)));
                    }
                }
            });
        }
    });
    log.sync(log.appended_upto()).unwrap();
    assert_eq!(called_back.load(Ordering::Relaxed), THREADS * EACH);
    let found = recovered(power_loss());
    for thread in 0..THREADS {
        let of_thread = found.iter().filter(|(of, _)| *of == thread).map(|(_, index)| *index);
        assert!(of_thread.eq(0..EACH), "each once, in order");
    }
    let stats = log.stats();
    assert!(found.len() as u64 == stats.records && stats.segments > 10);
    assert!(stats.frames < stats.records, "groups were shared");
}

#[test]
fn threads_share_groups_in_memory() {
    let vfs = disk();
    many_threads(Arc::new(vfs.clone()), directory(), true, || Arc::new(vfs.crash_clone(1)));
}

#[test]
fn threads_share_groups_on_real_files() {
    let directory = tempfile::tempdir().unwrap();
    many_threads(Arc::new(OsVfs), directory.path(), false, || Arc::new(OsVfs));
}

/// A log runs through many segments on the same few files; stale frames never come back.
#[test]
fn flushed_segments_are_recycled() {
    let vfs = disk();
    let log = create(&vfs, SMALL, 1).unwrap();
    let (mut flushed, mut flushed_records) = (Position::ZERO, 0);
    for index in 0..300 {
        let end = append(&log, index).unwrap();
        log.sync(end).unwrap();
        if index % 20 == 19 {
            (flushed, flushed_records) = (log.lock().close_frame(), index + 1);
            log.retire(flushed).unwrap();
        }
        let (found, recovered) = replay(&vfs, flushed, false).unwrap();
        assert!(found.into_iter().eq(flushed_records..=index));
        assert_eq!(recovered.cut, None, "stale frames are not taken for the log");
        assert!(names(&vfs).len() <= 5, "{:?}", names(&vfs));
    }
    let stats = log.stats();
    assert!(stats.segments > 10 && stats.segments_from_spares > stats.segments / 2, "{stats:?}");
}

/// A flush overtakes the log: its position lies in a segment that no byte has reached. The segment
/// is begun then, so that the one before can go.
#[test]
fn a_flush_may_overtake_the_log() {
    let vfs = disk();
    let options = LogOptions { group_bytes_max: 1 << 20, sync_mode: SyncMode::Os, ..SMALL };
    let log = create(&vfs, options, 1).unwrap();
    let mut index = 0;
    while log.appended_upto().segment() == 1 {
        append(&log, index).unwrap();
        index += 1;
    }
    let flushed = log.lock().close_frame();
    log.retire(flushed).unwrap();
    assert_eq!(names(&vfs), ["0000000002.log"].map(PathBuf::from));
    assert_eq!(replay(&vfs, flushed, false).unwrap().0, numbers(0));
    let end = append(&log, index).unwrap();
    log.sync(end).unwrap();
    assert_eq!(replay(&vfs.crash_clone(0), flushed, false).unwrap().0, [index]);
}

/// A segment ends where a memtable is sealed, if it holds enough: so its space is free as soon as
/// the memtable is flushed, and not one memtable later.
#[test]
fn a_cut_frees_the_segment_before_it() {
    let vfs = disk();
    let log = create(&vfs, LogOptions { sync_mode: SyncMode::Os, ..SMALL }, 1).unwrap();
    append(&log, 0).unwrap();
    assert_eq!(log.lock().cut().segment(), 1, "too little in it");
    append(&log, 5).unwrap();
    let cut = log.lock().cut();
    assert_eq!(cut, Position::new(2, 32));
    log.retire(cut).unwrap();
    assert_eq!(names(&vfs), ["0000000002.log"].map(PathBuf::from));
    let end = append(&log, 6).unwrap();
    log.sync(end).unwrap();
    for seed in 0..4 {
        let found = replay(&vfs.crash_clone(seed), cut, false).unwrap();
        assert_eq!((found.0, found.1.end, found.1.cut), (vec![6], log.appended_upto(), None));
    }
}

/// A file is as long as its log needs, to the next step, which doubles; no longer than a segment.
#[test]
fn files_grow_in_steps() {
    let vfs = disk();
    let log = create(&vfs, LogOptions { segment_bytes: 8000, ..SMALL }, 1).unwrap();
    let file = vfs.open(&directory().join("0000000001.log")).unwrap();
    assert_eq!(file.len().unwrap(), 0, "nothing before the first write");
    let mut lens = Vec::new();
    while log.appended_upto().segment() == 1 {
        let end = append(&log, 1).unwrap();
        log.write_out(end).unwrap();
        lens.push(file.len().unwrap());
    }
    lens.dedup();
    assert_eq!(lens, [1024, 2048, 4096, 8000]);
}

/// A flushed segment is kept for reuse where blocks that are written already make syncs cheaper,
/// not beyond its log, and no number is ever used twice. Elsewhere it only takes space.
#[test]
fn one_flushed_segment_is_kept_as_long_as_its_log() {
    let fill = |log: &CommitLog<()>, segments: u64| {
        while log.stats().segments < segments {
            let end = append(log, 4).unwrap();
            log.write_out(end).unwrap();
        }
        log.retire(log.lock().close_frame()).unwrap();
    };
    let vfs = disk();
    let log = create(&vfs, SMALL, 1).unwrap();
    fill(&log, 4);
    assert_eq!(names(&vfs), ["0000000001.spare", "0000000004.log"].map(PathBuf::from));
    drop(log);
    let next = next_segment_number(&vfs, directory(), [Position::ZERO]).unwrap();
    assert_eq!(next, 5);
    let named = Position::new(8, 100);
    assert_eq!(next_segment_number(&vfs, directory(), [named]).unwrap(), 9, "and the manifest");
    let log = create(&vfs, SMALL, 9).unwrap();
    remove_segments(&vfs, directory(), 9).unwrap();
    assert_eq!(names(&vfs), ["0000000009.log"].map(PathBuf::from), "the spare is gone");
    fill(&log, 4);
    assert_eq!(names(&vfs), ["0000000009.spare", "0000000012.log"].map(PathBuf::from));
    fill(&log, 5);
    assert_eq!(log.stats().segments_from_spares, 1);
    drop(log);

    let options = LogOptions { sync_mode: SyncMode::Os, ..SMALL };
    let log = create(&vfs, options, 20).unwrap();
    remove_segments(&vfs, directory(), 20).unwrap();
    fill(&log, 4);
    assert_eq!(names(&vfs), ["0000000023.log"].map(PathBuf::from), "nor is the old spare left");
}

/// The end of a log is behind everything that is in its files, and nothing comes after it.
#[test]
fn an_ended_log_takes_nothing_and_leaves_nothing() {
    let vfs = disk();
    let log = create(&vfs, SMALL, 1).unwrap();
    for index in 0..30 {
        let end = append(&log, index).unwrap();
        log.sync(end).unwrap();
    }
    log.retire(log.lock().close_frame()).unwrap();
    append(&log, 30).unwrap();
    let last = log.appended_upto().segment();
    assert!(names(&vfs).len() == 2 && last > 2, "{:?}", names(&vfs));
    let end = log.lock().end().unwrap();
    assert_eq!(end, Position::new(last + 1, 0));
    assert!(matches!(append(&log, 31), Err(Error::Closed)));
    log.sync(end).unwrap();
    assert_eq!(log.durable_upto(), end, "who waits is told");
    assert_eq!(replay(&vfs, end, false).unwrap().0, numbers(0), "flushed: not read again");
    log.remove_files().unwrap();
    assert_eq!(names(&vfs), [] as [PathBuf; 0]);
    drop(log);
    let next = next_segment_number(&vfs, directory(), [end]).unwrap();
    assert_eq!(next, last + 2);
    let log = create(&vfs, SMALL, next).unwrap();
    let written = append(&log, 7).unwrap();
    log.sync(written).unwrap();
    assert_eq!(replay(&vfs.crash_clone(1), end, false).unwrap().0, [7], "goes on behind the end");
}

/// A sync fails: its caller gets the error, everyone after it `Poisoned`, and nobody syncs again.
#[test]
fn a_failed_sync_poisons_and_is_not_repeated() {
    let vfs = FaultVfs::new(Arc::new(disk()));
    let log = create(&vfs, LogOptions { sync_mode: SyncMode::Os, ..SMALL }, 1).unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&syncs);
    vfs.on_call(move |_, call| {
        counted.fetch_add(u64::from(call.operation == Operation::SyncData), Ordering::Relaxed);
    });
    let durable = append(&log, 0).unwrap();
    log.sync(durable).unwrap();
    vfs.inject(Fault { operation: Some(Operation::SyncData), ..Fault::default() });
    let end = append(&log, 1).unwrap();
    let told = Arc::new(Mutex::new(None));
    let teller = Arc::clone(&told);
    log.on_durable(end, Box::new(move |result| *teller.lock() = Some(result)));
    assert!(matches!(log.sync(end), Err(Error::Io { operation: "sync", .. })));
    assert!(matches!(told.lock().take(), Some(Err(Error::Poisoned { .. }))));
    assert!(matches!(log.sync(end), Err(Error::Poisoned { .. })));
    assert!(matches!(append(&log, 2), Err(Error::Poisoned { .. })));
    log.sync(durable).unwrap();
    let teller = Arc::clone(&told);
    log.on_durable(end, Box::new(move |result| *teller.lock() = Some(result)));
    assert!(matches!(told.lock().take(), Some(Err(Error::Poisoned { .. }))));
    assert_eq!(syncs.load(Ordering::Relaxed), 2, "never again");
    assert!(log.poisoned().unwrap().contains("cannot sync /log/0000000001.log"));
    assert_eq!(log.durable_upto(), durable.max(log.durable_upto()));
}

/// A write stops half way: later bytes must not follow the gap.
#[test]
fn a_short_write_poisons_and_leaves_a_torn_tail() {
    let mem = disk();
    let vfs = FaultVfs::new(Arc::new(mem.clone()));
    let log = create(&vfs, SMALL, 1).unwrap();
    let end = append(&log, 0).unwrap();
    log.sync(end).unwrap();
    let effect = Effect::ShortWrite(40, ErrorKind::StorageFull);
    vfs.inject(Fault { operation: Some(Operation::WriteAt), effect, ..Fault::default() });
    let end = append(&log, 1).unwrap();
    assert!(matches!(log.write_out(end), Err(Error::Io { operation: "write", .. })));
    assert!(matches!(log.write_out(end), Err(Error::Poisoned { .. })));
    assert!(matches!(log.sync(end), Err(Error::Poisoned { .. })));
    assert!(matches!(log.lock().append(&[(b"k", b"v")]), Err(Error::Poisoned { .. })));
    let (found, recovered) = replay(&mem, Position::ZERO, false).unwrap();
    assert_eq!(found, numbers(1));
    assert!(recovered.cut.is_some_and(|(path, _)| path.ends_with("0000000001.log")));
}

/// Threads wait for a sync that fails: all of them learn it, and no promise given is broken.
#[test]
fn waiters_of_a_failed_sync_all_learn_it() {
    for skip in 0..6 {
        let mem = disk();
        let vfs = FaultVfs::new(Arc::new(mem.clone()));
        let log = create(&vfs, SMALL, 1).unwrap();
        vfs.inject(Fault { operation: Some(Operation::SyncData), skip, ..Fault::default() });
        let promised = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (log, promised) = (&log, &promised);
                scope.spawn(move || {
                    for index in thread * 1000.. {
                        match append(log, index).and_then(|end| log.sync(end)) {
                            Ok(()) => promised.lock().push(index),
                            Err(_) => break,
                        }
                    }
                });
            }
        });
        assert!(log.poisoned().is_some());
        for seed in 0..10 {
            let found = replay(&mem.crash_clone(seed), Position::ZERO, false).unwrap().0;
            assert!(promised.lock().iter().all(|index| found.contains(index)));
        }
    }
}

/// Without space for the next step the write fails, and with it the log; what was promised stays.
#[test]
fn a_log_that_cannot_grow_poisons_and_keeps_its_promises() {
    let mem = disk();
    let log = create(&mem, LogOptions { grow_bytes: 4096, segment_bytes: 16 << 10, ..SMALL }, 1);
    let log = log.unwrap();
    mem.set_space_limit(Some(4096));
    let promised = (0..).find(|index| append(&log, *index).and_then(|end| log.sync(end)).is_err());
    assert!(log.poisoned().unwrap().contains("cannot allocate /log/0000000001.log"));
    let promised = promised.unwrap();
    assert!(promised > 5);
    assert_eq!(replay(&mem.crash_clone(3), Position::ZERO, false).unwrap().0, numbers(promised));
}

/// A step ahead is a courtesy: where the disk has room for the record and not for the step, the
/// record is taken.
#[test]
fn a_log_without_room_for_a_step_grows_by_what_it_needs() {
    let mem = disk();
    let log = create(&mem, LogOptions { grow_bytes: 4096, segment_bytes: 64 << 10, ..SMALL }, 1);
    let log = log.unwrap();
    // The step after 8 KiB is to 16 KiB.
    mem.set_space_limit(Some(12 << 10));
    let mut index = 0;
    while log.appended_upto().offset() < 11 << 10 {
        append(&log, index).and_then(|end| log.sync(end)).unwrap();
        index += 1;
    }
    mem.set_space_limit(None);
    append(&log, index).and_then(|end| log.sync(end)).unwrap();
    assert_eq!(replay(&mem.crash_clone(3), Position::ZERO, false).unwrap().0, numbers(index + 1));
    let file = mem.open(&directory().join("0000000001.log")).unwrap();
    assert!(file.len().unwrap() >= 16 << 10, "in steps again");
}

/// Where writes are not synced one by one, room is made ahead a step at a time, before the one
/// before is used up, and no further than the segment goes.
#[test]
fn room_is_made_a_step_ahead() {
    let vfs = disk();
    let log = create(&vfs, LogOptions { sync_mode: SyncMode::Os, ..SMALL }, 1).unwrap();
    let file = vfs.open(&directory().join("0000000001.log")).unwrap();
    let mut lens = Vec::new();
    while log.appended_upto().segment() == 1 {
        let end = append(&log, 1).unwrap();
        log.write_out(end).unwrap();
        let written = u64::from(end.offset());
        if log.wants_room() {
            log.make_room();
            assert!(!log.wants_room(), "once is enough");
        }
        lens.push(file.len().unwrap());
        let ahead = file.len().unwrap() - written.min(4096);
        assert!((256..=1024).contains(&ahead) || file.len().unwrap() == 4096, "{ahead} ahead");
    }
    lens.dedup();
    assert!(lens.len() > 4 && lens.last() == Some(&4096), "{lens:?}");
    let (found, recovered) = replay(&vfs.crash_clone_kill(), Position::ZERO, false).unwrap();
    assert_eq!((found.len() as u64, recovered.cut), (log.stats().records, None));
}

/// Room that cannot be made is not asked for again in that file, and the log goes on without.
#[test]
fn a_log_without_room_ahead_grows_with_its_writes() {
    let vfs = FaultVfs::new(Arc::new(disk()));
    vfs.inject(Fault { operation: Some(Operation::Prepare), ..Fault::default() });
    let log = create(&vfs, LogOptions { sync_mode: SyncMode::Os, ..SMALL }, 1).unwrap();
    let mut made = 0;
    let mut index = 0;
    while log.appended_upto().segment() < 3 {
        let end = append(&log, index).unwrap();
        log.write_out(end).unwrap();
        if log.wants_room() {
            log.make_room();
            made += u64::from(log.appended_upto().segment() == 1);
        }
        index += 1;
    }
    assert_eq!(made, 1, "of segment 1 only once");
    assert!(log.poisoned().is_none());
    assert_eq!(replay(&vfs, Position::ZERO, false).unwrap().0, numbers(index));
}

/// Real files until there is no space: an error as any other, not a signal, and what was promised
/// is there and can be synced. On a small file system of its own:
/// `TMPDIR=/mnt/small cargo test --lib full_file_system -- --ignored`.
#[test]
#[ignore = "fills the file system of the temporary directory"]
fn a_full_file_system_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let sync_mode = SyncMode::Os;
    let options = LogOptions { sync_mode, segment_bytes: 8 << 20, grow_bytes: 1 << 20, ..SMALL };
    let log = CommitLog::create(Arc::new(OsVfs), directory.path(), options, 1, ()).unwrap();
    let mut promised = 0;
    let error = loop {
        if let Err(error) = append(&log, promised).and_then(|end| log.write_out(end)) {
            break error;
        }
        promised += 1;
        if log.wants_room() {
            log.make_room();
        }
    };
    assert!(error.is_storage_full(), "{error}");
    let stats = log.stats();
    assert!(stats.bytes_prepared * 10 > stats.bytes * 9, "{stats:?}");
    let mut found = 0;
    let mut count = |_: Position, _: &[u8], _: &[u8]| {
        found += 1;
        Ok(())
    };
    recover(&OsVfs, directory.path(), Position::ZERO, false, &mut count).unwrap();
    assert_eq!(found, promised);
    for name in OsVfs.list(directory.path()).unwrap() {
        OsVfs.open(&directory.path().join(name)).unwrap().sync_data().unwrap();
    }
}

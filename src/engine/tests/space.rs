//! A disk with little room left: what is begun there and what waits.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::row::Row;
use super::{open, tiny};
use crate::engine::compaction::Picker;
use crate::engine::options::Compression;
use crate::engine::pressure::OnStall;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{Fault, FaultVfs, Operation};
use crate::engine::vfs::hold::Hold;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, Quarantined, Result};

fn options() -> Options {
    Options {
        memtable_bytes: 1 << 20,
        level0_tables_trigger: 1,
        table_bytes: 1 << 20,
        base_level_bytes: 1 << 20,
        compression_lower: Compression::None,
        ..tiny()
    }
}

/// A table of level 0 with these keys.
fn flush(engine: &Engine, keys: std::ops::Range<u32>, time: u64) {
    for n in keys {
        let row = Row::default().write(1, time, true, Some(n)).encode();
        let position = engine.apply(&[(&n.to_be_bytes(), &row)]).expect("taken");
        engine.wait_durable(position).expect("durable");
    }
    engine.flush().expect("flushes");
}

/// A table of level 0 over one with the same keys. Their bytes: what a compaction may take.
fn table_over_table(engine: &Engine) -> u64 {
    flush(engine, 0..2_000, 1);
    while engine.step().expect("moves it down") {}
    flush(engine, 0..2_000, 2);
    assert_eq!(engine.stats().compactions, 0);
    let bytes = engine.stats().table_bytes();
    assert!(bytes > 64 << 10, "{bytes}");
    bytes
}

/// Lets files take `bytes` more.
fn leave(disk: &MemVfs, bytes: u64) {
    disk.set_space_limit(None);
    let space = disk.disk_space(Path::new("/db")).expect("in memory");
    disk.set_space_limit(Some(space.total - space.available + bytes));
}

/// A compaction that the disk has no room for leaves what log and manifest need: it is given up,
/// and not tried at once again. It is begun when there is room.
#[test]
fn a_compaction_without_room_waits() {
    let disk = MemVfs::new();
    let engine = open(Arc::new(disk.clone()), options()).expect("opens");
    let job_bytes = table_over_table(&engine);
    leave(&disk, job_bytes / 4);
    for _ in 0..3 {
        assert!(!engine.step().expect("it is given up"), "nothing is done, and nobody spins");
    }
    let refused = engine.compact_all();
    assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
    let stats = engine.stats();
    assert_eq!((stats.compactions, stats.poisoned), (0, None));
    assert!(stats.compactions_put_off >= 4, "{}", stats.compactions_put_off);

    leave(&disk, 2 * job_bytes);
    assert!(engine.step().expect("compacts"));
    assert_eq!(engine.stats().compactions, 1);
    let put_off = engine.stats().compactions_put_off;
    assert!(!engine.step().expect("there is nothing to do"));
    assert_eq!(engine.stats().compactions_put_off, put_off);
}

/// What a compaction leaves out may be what fills the disk: it is tried where its outputs could
/// have no room, and need less.
#[test]
fn a_compaction_that_needs_less_than_it_could_frees_the_disk() {
    let disk = MemVfs::new();
    let engine = open(Arc::new(disk.clone()), options()).expect("opens");
    let job_bytes = table_over_table(&engine);
    leave(&disk, job_bytes / 4 * 3);
    assert!(engine.step().expect("compacts"));
    assert_eq!(engine.stats().compactions, 1);
    assert!(engine.stats().table_bytes() < job_bytes * 2 / 3);
}

/// What takes no room, or less than there is, goes on beside what waits.
#[test]
fn moves_and_small_compactions_go_on_without_room_for_large_ones() {
    let disk = MemVfs::new();
    let engine = open(Arc::new(disk.clone()), options()).expect("opens");
    flush(&engine, 0..2_000, 1);
    flush(&engine, 2_000..4_000, 1);
    let bytes = engine.stats().table_bytes();
    leave(&disk, bytes / 4);
    while engine.step().expect("moves tables") {}
    let stats = engine.stats();
    assert!(stats.trivial_moves > 0 && stats.compactions == 0);

    disk.set_space_limit(None);
    flush(&engine, 4_100..4_110, 2);
    flush(&engine, 4_100..4_110, 3);
    leave(&disk, bytes / 4);
    while engine.step().expect("merges the two small ones") {}
    assert!(engine.stats().compactions > 0);
}

/// The reserve is there for compaction, but for a part that log and manifest go on with.
#[test]
fn a_compaction_leaves_a_quarter_of_the_reserve() {
    const RESERVE_BYTES: u64 = 256 << 10;
    for (lacking, put_off) in [(0, 0), (1, 1)] {
        let disk = MemVfs::new();
        let options = Options { disk_reserve_bytes: RESERVE_BYTES, ..options() };
        let engine = open(Arc::new(disk.clone()), options).expect("opens");
        let job_bytes = table_over_table(&engine);
        leave(&disk, RESERVE_BYTES / 4 + job_bytes - lacking);
        assert!(engine.step().expect("compacts"));
        let stats = engine.stats();
        assert_eq!((stats.compactions, stats.compactions_put_off), (1, put_off));
    }
}

/// What the engine lacks may come back at any moment: of a job that ends just when there was found
/// to be no room beside it, say. Then there is room, and `compact_all` does not say otherwise.
#[test]
fn a_compaction_of_all_does_not_fail_for_room_that_came_back() {
    let disk = MemVfs::new();
    let engine = open(Arc::new(disk.clone()), options()).expect("opens");
    flush(&engine, 10_000..11_000, 1);
    let other = engine.shared.super_version.load().version.level(0).tables()[0].meta.clone();
    while engine.step().expect("moves it down") {}
    table_over_table(&engine);
    let pick = |picker: &Picker<'_>| picker.pick_tables(&[other.number], other.bytes);
    let busy = engine.shared.reserve(pick).expect("is idle");
    leave(&disk, engine.stats().table_bytes() - 1);
    engine.shared.hooks.lock().insert(
        "compact:put_off",
        Box::new(|shared| {
            shared.compacting.lock().clear();
            // Nobody waits for it in vain.
            shared.background.progress();
        }),
    );
    engine.compact_all().expect("there is room");
    assert!(engine.shared.hooks.lock().is_empty(), "there was none before");
    drop(busy);
    let view = engine.shared.super_version.load();
    assert!(view.version.level(0).tables().is_empty());
}

/// Files that a job replaced are removed a little later than it ends, when nobody reads them any
/// more: that is waited for.
#[test]
fn a_compaction_of_all_waits_for_files_that_are_about_to_be_removed() {
    let disk = MemVfs::new();
    let vfs = FaultVfs::new(Arc::new(disk.clone()));
    let options = Options { compaction_threads: 1, level0_tables_trigger: 10, ..options() };
    let engine = open(Arc::new(vfs.clone()), options).expect("opens");
    for time in 1..=2 {
        for keys in [0..2_000, 10_000..12_000] {
            flush(&engine, keys, time);
        }
    }
    let removals = Hold::of(&vfs, Operation::Remove, "sst");
    removals.close();
    // For one half after the other, if the first one's files are gone by then.
    leave(&disk, engine.stats().table_bytes() / 5 * 4);
    let reader = engine.shared.super_version.load_full();
    std::thread::scope(|scope| {
        let compacted = scope.spawn(|| engine.compact_all());
        let patience = Instant::now() + Duration::from_secs(60);
        while engine.stats().compactions_put_off == 0 && !compacted.is_finished() {
            assert!(Instant::now() < patience, "nothing is put off");
            std::thread::yield_now();
        }
        assert!(engine.stats().compactions_put_off > 0);
        drop(reader);
        removals.open();
        compacted.join().expect("no panic").expect("there is room");
    });
    assert!(engine.shared.super_version.load().version.level(0).tables().is_empty());
}

/// Keys that go take the room of what is written without them: nothing where whole ranges go, or
/// what would give room back would wait for it.
#[test]
fn a_removal_takes_the_room_of_what_it_writes() {
    for (in_part, expected) in [(false, 1), (true, 0)] {
        let disk = MemVfs::new();
        let engine = open(Arc::new(disk.clone()), options()).expect("opens");
        flush(&engine, 10_000..12_000, 1);
        while engine.step().expect("moves it down") {}
        table_over_table(&engine);
        let lower = engine.stats().table_bytes() / 3 * 2;
        leave(&disk, lower + lower / 8 * 3);
        let keys = |key: u32| key.to_be_bytes().to_vec();
        let range = [(keys(10_000), Some(keys(11_000)))];
        let (wholly, some) = if in_part { (&[][..], &range[..]) } else { (&range[..], &[][..]) };
        let removed = engine.remove(wholly, some, &|_| true, &|install| {
            engine.step()?;
            assert_eq!(engine.stats().compactions, expected, "beside the removal");
            install().map(|()| true)
        });
        assert!(removed.expect("there is room").is_some_and(|bytes| bytes > 0));
        engine.compact_all().expect("there is room");
    }
}

const FLOOR: u64 = 64 << 10;

/// A store that keeps little of the disk, where rows of other replicas may have the reserve.
fn small_reserve() -> Options {
    Options {
        memtable_bytes: 1 << 20,
        log_segment_bytes: 4 << 20,
        disk_reserve_bytes: 4 * FLOOR,
        guard_reserve: false,
        ..tiny()
    }
}

fn row_of(n: u32) -> Vec<u8> {
    Row::default().write(1, 1, true, Some(n)).encode()
}

fn try_put(engine: &Engine, n: u32) -> Result<()> {
    let position = engine.apply_with(&[(&n.to_be_bytes(), &row_of(n))], OnStall::Refuse)?;
    engine.wait_durable(position)
}

/// Writes keys from 0 on until the active memtable holds so much. Their number.
fn fill(engine: &Engine, bytes: usize) -> u32 {
    let mut n = 0;
    while engine.shared.super_version.load().active.list_bytes() < bytes {
        try_put(engine, n).expect("taken");
        n += 1;
    }
    n
}

fn holds_all(engine: &Engine, count: u32) -> bool {
    (0..count).all(|n| engine.get(&n.to_be_bytes()).expect("reads") == Some(row_of(n)))
}

fn available(disk: &MemVfs) -> u64 {
    disk.disk_space(Path::new("/db")).expect("in memory").available
}

/// Over `disk`; counts the tables that are begun, and asserts that each write to one leaves `kept`
/// bytes.
fn watched(disk: &MemVfs, kept: u64) -> (FaultVfs, Arc<AtomicUsize>) {
    let (vfs, begun) = (FaultVfs::new(Arc::new(disk.clone())), Arc::new(AtomicUsize::new(0)));
    let (disk, count) = (disk.clone(), begun.clone());
    vfs.on_call(move |_, call| {
        if call.path.extension().is_none_or(|it| it != "sst") {
            return;
        }
        match call.operation {
            Operation::Create => drop(count.fetch_add(1, Ordering::Relaxed)),
            Operation::WriteAt => {
                let left = available(&disk).saturating_sub(call.len);
                assert!(left >= kept, "{left} bytes are left for the log");
            }
            _ => {}
        }
    });
    (vfs, begun)
}

/// A flush without room writes nothing, however often it is tried: each try would take the last
/// byte for a moment, and an append to the log that comes then fails for good.
#[test]
fn a_flush_without_room_writes_nothing() {
    let disk = MemVfs::new();
    let (vfs, begun) = watched(&disk, FLOOR / 4);
    let engine = open(Arc::new(vfs), small_reserve()).expect("opens");
    let count = fill(&engine, (1 << 20) / 10 * 9);
    leave(&disk, 100 << 10);
    for _ in 0..3 {
        let flushed = engine.flush();
        assert!(matches!(flushed, Err(Error::DiskFull { .. })), "{flushed:?}");
        assert!(!engine.step().expect("it waits"), "nothing is done, and nobody spins");
        let refused = try_put(&engine, count);
        assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
    }
    assert_eq!(begun.load(Ordering::Relaxed), 0);
    assert_eq!(engine.stats().poisoned, None);

    leave(&disk, 2 << 20);
    engine.flush().expect("there is room");
    assert_eq!(begun.load(Ordering::Relaxed), 1);
    try_put(&engine, count).expect("there is room");
    assert!(holds_all(&engine, count + 1));
}

/// What was taken can be flushed, and by the next start too: writes are refused before it has no
/// room, however fast they come, for nobody looks at the disk but they.
#[test]
fn what_was_taken_has_room_for_its_flush() {
    for (room, is_flushed) in [(1, true), (1, false), (3, true), (3, false), (7, true), (7, false)]
    {
        let disk = MemVfs::new();
        let (vfs, _) = watched(&disk, FLOOR / 4);
        let options = Options { memtable_bytes: 256 << 10, ..small_reserve() };
        let engine = open(Arc::new(vfs.clone()), options.clone()).expect("opens");
        leave(&disk, room * (256 << 10));
        assert!(!engine.step().expect("looks at the disk"));
        let mut count = 0;
        let refused = loop {
            match try_put(&engine, count) {
                Ok(()) => count += 1,
                Err(refused) => break refused,
            }
        };
        assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
        assert!(engine.refusal().is_some() && engine.pressure() >= 1.0);
        if is_flushed {
            engine.flush().expect("has room");
        }
        drop(engine);
        let engine = open(Arc::new(vfs), options).expect("has room");
        assert!(holds_all(&engine, count));
        assert_eq!(engine.stats().poisoned, None);
        disk.set_space_limit(None);
        try_put(&engine, count).expect("there is room");
    }
}

/// A compaction leaves what the flush of the memtables takes, or the flush would wait for it.
#[test]
fn a_compaction_leaves_room_for_flushes() {
    for (lacking, put_off) in [(0, 0), (1, 1)] {
        let disk = MemVfs::new();
        let engine = open(Arc::new(disk.clone()), options()).expect("opens");
        let job_bytes = table_over_table(&engine);
        for n in 10_000..10_200 {
            try_put(&engine, n).expect("taken");
        }
        let unflushed = engine.shared.super_version.load().active.table_bytes_max();
        leave(&disk, job_bytes + unflushed - lacking);
        engine.step().expect("compacts");
        assert_eq!(engine.stats().compactions_put_off, put_off);
    }
}

/// A removal that writes, and one of blocks that cannot be read, leave what is kept.
#[test]
fn tables_that_are_written_anew_leave_the_floor() {
    for room in [0, 16 << 10, 48 << 10] {
        let disk = MemVfs::new();
        let (vfs, _) = watched(&disk, FLOOR);
        let engine = open(Arc::new(vfs), small_reserve()).expect("opens");
        let count = fill(&engine, (1 << 20) / 10 * 9);
        engine.flush().expect("flushes");
        leave(&disk, 2 * FLOOR + room);
        let all = [(vec![0], None)];
        let is_odd = |key: &[u8]| key.last().is_some_and(|last| last % 2 == 1);
        let remove = || engine.remove(&[], &all, &is_odd, &|install| install().map(|()| true));
        let removed = remove();
        assert!(matches!(removed, Err(Error::DiskFull { .. })), "{removed:?}");
        assert!(holds_all(&engine, count));

        let view = engine.shared.super_version.load_full();
        let table = view.version.tables().next().expect("it is there");
        let (smallest, largest) = (table.meta.smallest.clone(), table.meta.smallest.clone());
        let range = Quarantined { table: table.meta.number, smallest, largest };
        engine.shared.quarantine(table, vec![range]).expect("is written");
        drop(view);
        let discarded = engine.discard(&|_| true, &|install| install().map(|()| true));
        assert!(matches!(discarded, Err(Error::DiskFull { .. })), "{discarded:?}");
        assert_eq!(engine.stats().poisoned, None);

        disk.set_space_limit(None);
        let discarded = engine.discard(&|_| true, &|install| install().map(|()| true));
        assert_eq!(discarded.expect("there is room"), 1);
        assert!(remove().expect("there is room").is_some_and(|bytes| bytes > 0));
        assert_eq!(engine.get(&1_u32.to_be_bytes()).expect("reads"), None);
        assert_eq!(engine.get(&2_u32.to_be_bytes()).expect("reads"), Some(row_of(2)));
    }
}

/// A start brings the log into tables one by one, and gives back what each of them came from: it
/// needs room for one, and one that ends early has done a part.
#[test]
fn a_start_needs_room_for_one_table() {
    let disk = MemVfs::new();
    // Each memtable has segments of its own.
    let options = Options { memtable_bytes: 3 << 20, log_segment_bytes: 256 << 10, ..tiny() };
    let engine = open(Arc::new(disk.clone()), options.clone()).expect("opens");
    let count = fill(&engine, (3 << 20) - 1);
    drop(engine);
    let options = Options { memtable_bytes: 256 << 10, ..options };
    let whole = {
        let disk = disk.crash_clone_kill();
        let engine = open(Arc::new(disk), options.clone()).expect("opens");
        engine.stats().table_bytes()
    };
    leave(&disk, whole / 2);
    let vfs = FaultVfs::new(Arc::new(disk.clone()));
    let fault = Fault {
        operation: Some(Operation::Create),
        path_contains: "sst".into(),
        skip: 3,
        ..Fault::default()
    };
    vfs.inject(fault);
    open(Arc::new(vfs), options.clone()).expect_err("the fourth table cannot be made");
    let files = disk.list(Path::new("/db")).expect("lists");
    let tables = files.iter().filter(|file| file.extension().is_some_and(|it| it == "sst"));
    assert_eq!(tables.count(), 3);
    let engine = open(Arc::new(disk), options).expect("opens");
    assert!(holds_all(&engine, count));
}

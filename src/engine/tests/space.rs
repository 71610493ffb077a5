//! A disk with little room left: what is begun there and what waits.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::row::Row;
use super::{open, tiny};
use crate::engine::compaction::Picker;
use crate::engine::options::Compression;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{FaultVfs, Operation};
use crate::engine::vfs::hold::Hold;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options};

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

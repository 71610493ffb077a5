//! Whole ranges of keys that go: what it costs, and how their space comes back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::row::{Row, RowJoin};
use super::{StoppedClock, open, tiny};
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Environment, Options, Range};

const KEYS: u32 = 8_000;
const PARTS: u32 = 64;
const MINUTE_MS: u64 = 60_000;

fn key(n: u32) -> [u8; 4] {
    (n * (u32::MAX / KEYS)).to_be_bytes()
}

/// Where key `n` is, if the keys are in so many parts.
fn part_of(n: u32) -> u32 {
    n * PARTS / KEYS
}

/// All keys of every fourth part: as they go from a node when a fourth one joins three.
fn quarter() -> Vec<Range> {
    let first_of = |part: u32| (0..KEYS).find(|n| part_of(*n) == part).map(|n| key(n).to_vec());
    let parts = (0..PARTS).filter(|part| part % 4 == 3);
    parts.map(|part| (first_of(part).expect("a key"), first_of(part + 1))).collect()
}

fn goes(n: u32) -> bool {
    part_of(n) % 4 == 3
}

fn everything() -> Vec<Range> {
    vec![(Vec::new(), None)]
}

/// Tables as large, beside what the manifest says of one, as they are in earnest.
fn options() -> Options {
    Options {
        memtable_bytes: 112 << 10,
        table_bytes: 64 << 10,
        base_level_bytes: 128 << 10,
        level_ratio: 10,
        ..tiny()
    }
}

fn filled(vfs: Arc<dyn Vfs>) -> Engine {
    let engine = open(vfs, options()).expect("opens");
    for round in 1..=2_u64 {
        for n in 0..KEYS {
            let n = n * 7 % KEYS;
            let row = Row::default().write(1, round, true, Some(round as u32)).encode();
            let position = engine.apply(&[(&key(n), &row)]).expect("writes");
            if n.is_multiple_of(64) {
                engine.wait_durable(position).expect("durable");
                while engine.step().expect("works") {}
            }
        }
    }
    engine.flush().expect("flushes");
    while engine.step().expect("works") {}
    engine
}

fn remove(engine: &Engine, ranges: &[Range]) -> u64 {
    let removed = engine.remove(ranges, &[], &|_| false, &|install| install().map(|()| true));
    removed.expect("removes").expect("permitted")
}

fn check(engine: &Engine) {
    let mut scan = engine.scan(&[], None).expect("scans");
    for n in 0..KEYS {
        let row = engine.get(&key(n)).expect("reads");
        let values = row.map(|row| Row::decode(&row).expect("a row").values()).unwrap_or_default();
        assert_eq!(values, if goes(n) { vec![] } else { vec![2] }, "key {n}");
        if !goes(n) {
            let found = scan.next().expect("scans").map(|(key, _)| key.to_vec());
            assert_eq!(found, Some(key(n).to_vec()));
        }
    }
    assert!(scan.next().expect("scans").is_none());
}

/// Lets the clock show this, and the engine do what is to be done then.
fn work_at(engine: &Engine, now_ms: u64) {
    engine.shared.now_ms.store(now_ms, Ordering::Relaxed);
    while engine.shared.compact_once().expect("works") {}
}

/// Counts what is written to and read from files from now on.
fn count(faults: &FaultVfs) -> Arc<[AtomicU64; 2]> {
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let counted = Arc::clone(&counts);
    faults.on_call(move |_, call| match call.operation {
        Operation::WriteAt => drop(counted[0].fetch_add(call.len, Ordering::Relaxed)),
        Operation::ReadAt | Operation::Map => drop(counted[1].fetch_add(1, Ordering::Relaxed)),
        _ => {}
    });
    counts
}

/// A quarter of the keys, scattered over all tables: what it writes is the bounds of the ranges.
#[test]
fn a_quarter_of_the_keys_goes_for_a_hundredth_of_their_bytes() {
    let faults = FaultVfs::new(Arc::new(MemVfs::new()));
    let engine = filled(Arc::new(faults.clone()));
    let before = engine.stats();
    assert!(before.levels.iter().map(|level| level.tables).sum::<u64>() > 5);
    let counts = count(&faults);
    let removed = remove(&engine, &quarter());
    let [written, opened] = [&counts[0], &counts[1]].map(|it| it.load(Ordering::Relaxed));
    let all = before.table_bytes();
    println!("of {all} bytes {removed} go for {written} written; {opened} files were opened");
    assert!((all / 5..all / 3).contains(&removed), "about a quarter goes: {removed} of {all}");
    assert!(written * 100 < all, "{written} bytes are written for {all}");
    assert_eq!(opened, 0, "no file is opened anew");
    let after = engine.stats();
    assert_eq!(after.compacted_bytes_written, before.compacted_bytes_written);
    assert_eq!(all - after.table_bytes() + after.excised_bytes(), removed);
    assert_eq!(after.data_bytes(), all - removed, "as the others are told");
    check(&engine);
}

/// A node that gives everything away reads and writes none of it.
#[test]
fn when_all_keys_go_the_tables_go_unread() {
    let disk = MemVfs::new();
    let faults = FaultVfs::new(Arc::new(disk.clone()));
    let engine = filled(Arc::new(faults.clone()));
    let counts = count(&faults);
    let all = engine.stats().table_bytes();
    assert_eq!(remove(&engine, &everything()), all);
    assert_eq!(counts[1].load(Ordering::Relaxed), 0);
    assert_eq!((engine.stats().table_bytes(), engine.stats().excised_bytes()), (0, 0));
    let files = disk.list(Path::new("/db")).expect("lists");
    assert!(files.iter().all(|file| file.extension().is_none_or(|end| end != "sst")));
}

/// The space of what went comes back when the store rests, and what stays is as it was; a restart
/// and a checkpoint in between show none of it.
#[test]
fn a_store_at_rest_gets_the_space_back() {
    let disk = MemVfs::new();
    let engine = filled(Arc::new(disk.clone()));
    work_at(&engine, MINUTE_MS);
    let before = engine.stats().table_bytes();
    remove(&engine, &quarter());
    let excised = engine.stats().excised_bytes();
    engine.checkpoint(Path::new("/copy")).expect("is made");
    work_at(&engine, MINUTE_MS + 1);
    assert_eq!(engine.stats().excised_bytes(), excised, "it has not rested for a minute");
    let reopened = open(Arc::new(disk.crash_clone(1)), options()).expect("opens");
    assert_eq!(reopened.stats().excised_bytes(), excised, "it is not forgotten");
    check(&reopened);
    let environment = Environment { vfs: Arc::new(disk.clone()), clock: Arc::new(StoppedClock) };
    let operator = Arc::new(RowJoin { checks_claims: true });
    let copy = Engine::open_in(Path::new("/copy"), options(), operator, environment);
    check(&copy.expect("opens"));
    work_at(&engine, 2 * MINUTE_MS);
    let after = engine.stats();
    assert!(after.excised_bytes() * 20 < after.table_bytes(), "{after:?}");
    assert!(after.table_bytes() * 100 < before * 85, "{} of {before}", after.table_bytes());
    check(&engine);
    // The same in whatever is left: when it is old.
    work_at(&engine, 60 * 24 * 60 * MINUTE_MS);
    assert_eq!(engine.stats().excised_bytes(), 0);
    check(&engine);
}

/// Under load space is taken back where that writes no more than it frees, and everywhere first
/// where the disk is short of it.
#[test]
fn a_busy_store_takes_back_what_costs_least_and_a_full_one_all() {
    let disk = MemVfs::new();
    let engine = filled(Arc::new(disk));
    let halves: Vec<Range> = quarter().into_iter().step_by(2).collect();
    remove(&engine, &halves);
    work_at(&engine, 1);
    let excised = engine.stats().excised_bytes();
    assert!(excised > 0, "an eighth is not worth it");
    let mut most = quarter();
    most.extend((0..PARTS).filter(|part| part % 4 < 2).map(|part| {
        let first = (0..KEYS).find(|n| part_of(*n) == part).expect("a key");
        let behind = (0..KEYS).find(|n| part_of(*n) == part + 1).expect("a key");
        (key(first).to_vec(), Some(key(behind).to_vec()))
    }));
    remove(&engine, &most);
    work_at(&engine, 2);
    let stats = engine.stats();
    assert!(stats.excised_bytes() * 2 < stats.table_bytes(), "{stats:?}");

    let engine = filled(Arc::new(MemVfs::new()));
    remove(&engine, &quarter());
    work_at(&engine, 1);
    assert!(engine.stats().excised_bytes() > 0);
    engine.shared.disk_full.store(true, Ordering::Relaxed);
    work_at(&engine, 2);
    let stats = engine.stats();
    assert!(stats.excised_bytes() * 20 < stats.table_bytes(), "{stats:?}");
    check(&engine);
}

/// A table of level 0 has its epoch for itself: it is rewritten as one, however large it is.
#[test]
fn a_table_of_level_0_stays_one_when_its_space_is_taken_back() {
    let options = Options { table_bytes: 1 << 10, memtable_bytes: 4 << 20, ..options() };
    let engine = open(Arc::new(MemVfs::new()), options).expect("opens");
    for n in 0..KEYS {
        let row = Row::default().write(1, 2, true, Some(2)).encode();
        engine.apply(&[(&key(n), &row)]).expect("writes");
    }
    engine.flush().expect("flushes");
    remove(&engine, &quarter());
    engine.shared.disk_full.store(true, Ordering::Relaxed);
    work_at(&engine, 1);
    let stats = engine.stats();
    assert_eq!((stats.levels[0].tables, stats.excised_bytes()), (1, 0));
    assert!(stats.compactions > 0);
    check(&engine);
}

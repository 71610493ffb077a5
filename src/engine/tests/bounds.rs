//! What must not grow: disk under overwrites and deletes, memory under a sustained load, and the
//! work of opening with the size of the store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::row::Row;
use super::{StoppedClock, open, tiny};
use crate::engine::options::LEVELS;
use crate::engine::vfs::fault::{FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Environment, MergeError, MergeOperator, Options};

fn key(n: u64) -> Vec<u8> {
    format!("{n:08}").into_bytes()
}

/// A blind write of every key, with the work that threads would do in between.
fn write_all(engine: &Engine, keys: u64, time: u64, value: Option<u32>) {
    for n in 0..keys {
        let row = Row::default().write(1, time, true, value).encode();
        let position = engine.apply(&[(&key(n), &row)]).expect("taken");
        engine.wait_durable(position).expect("durable");
        if n % 16 == 0 {
            engine.step().expect("works");
        }
    }
}

fn table_bytes(engine: &Engine) -> u64 {
    engine.stats().table_bytes()
}

fn settle(engine: &Engine) {
    engine.flush().expect("flushes");
    while engine.step().expect("works") {}
}

/// No file and no tombstone is kept for ever: overwrites are reclaimed by compaction alone, and
/// after a delete of everything, proven by a floor, nothing is left.
#[test]
fn disk_comes_back_after_overwrites_and_deletes() {
    let options = tiny();
    let disk = MemVfs::new();
    let engine = open(Arc::new(disk), options).expect("opens");
    write_all(&engine, 400, 1, Some(1));
    engine.compact_all().expect("compacts");
    let once = table_bytes(&engine);
    for round in 2..30 {
        write_all(&engine, 400, round, Some(round as u32));
        settle(&engine);
        let now = table_bytes(&engine);
        assert!(now < 4 * once, "{now} bytes after {round} rounds, {once} after one");
    }
    write_all(&engine, 400, 30, None);
    settle(&engine);
    engine.fence(0..=0, 30).expect("fences");
    engine.set_floor(0..=0, 30).expect("sets the floor");
    engine.compact_all().expect("compacts");
    let left = engine.stats();
    assert_eq!(left.levels, <[_; LEVELS]>::default(), "tables of forgotten rows are left");
    assert_eq!(left.pinned_versions, 0);
    assert_eq!(engine.get(&key(1)).expect("reads"), None);
}

/// Memtables and cache stay within what the options say while one writer never pauses.
#[test]
fn memory_stays_within_its_bounds_under_overwrites() {
    let options = Options {
        memtable_bytes: 64 << 10,
        row_cache_bytes: 256 << 10,
        log_segment_bytes: 64 << 10,
        ..tiny()
    };
    let engine = open(Arc::new(MemVfs::new()), options.clone()).expect("opens");
    // One insert may be the last straw, and a chunk of the arena is reserved ahead.
    let one_memtable = 2 * options.memtable_bytes as u64 + (1 << 20);
    let memtables = (options.sealed_memtables_max as u64 + 1) * one_memtable;
    for time in 1..40_000u64 {
        let row = Row::default().write(1, time, true, Some(time as u32)).encode();
        let position = engine.apply(&[(&key(time % 700), &row)]).expect("taken");
        engine.wait_durable(position).expect("durable");
        engine.get(&key(time * 7 % 700)).expect("reads");
        if time % 500 == 0 {
            let stats = engine.stats();
            assert!(stats.memtable_bytes <= memtables, "{} of memtables", stats.memtable_bytes);
            assert!(stats.cache.bytes <= options.row_cache_bytes as u64);
        }
    }
}

/// Opening reads the manifest and maps the tables; it reads no data, however much there is.
#[test]
fn opening_reads_no_data() {
    let bytes_read_at_open = |keys: u64| {
        let disk = MemVfs::new();
        let engine = open(Arc::new(disk.clone()), tiny()).expect("opens");
        write_all(&engine, keys, 1, Some(1));
        engine.close().expect("closes");
        drop(engine);
        let vfs = Arc::new(FaultVfs::new(Arc::new(disk)));
        let read = Arc::new(Mutex::new(0));
        vfs.on_call({
            let read = read.clone();
            move |_, call| {
                if call.operation == Operation::ReadAt && !is_manifest(&call.path) {
                    *read.lock() += call.len;
                }
            }
        });
        let engine = open(vfs, tiny()).expect("reopens");
        assert!(engine.get(&key(keys - 1)).expect("reads").is_some());
        let read = *read.lock();
        (table_bytes(&engine), read)
    };
    let (small, small_read) = bytes_read_at_open(50);
    let (large, large_read) = bytes_read_at_open(3_000);
    assert!(large > 20 * small);
    assert!(
        large_read <= small_read + 4096,
        "{large_read} bytes read, {small_read} of a small one"
    );
}

fn is_manifest(path: &std::path::Path) -> bool {
    path.to_string_lossy().contains("MANIFEST") || path.ends_with("CURRENT")
}

/// Rows that are sets of pieces, each named by its first byte.
struct Pieces;

const PIECE_BYTES: usize = 1 << 20;

impl MergeOperator for Pieces {
    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        let pieces = a.chunks(PIECE_BYTES).chain(b.chunks(PIECE_BYTES));
        let pieces: BTreeMap<u8, &[u8]> = pieces.map(|piece| (piece[0], piece)).collect();
        pieces.values().for_each(|piece| out.extend_from_slice(piece));
        Ok(())
    }
}

/// What is accepted row by row may be larger than any row when it is joined: siblings of several
/// replicas that could not see each other. It is kept all the same, in every place that joins.
#[test]
fn rows_that_join_to_more_than_any_of_them_may_be_are_kept() {
    let disk = MemVfs::new();
    let options = Options { log_segment_bytes: 64 << 20, memtable_bytes: 1 << 30, ..tiny() };
    let open = || {
        let vfs = Arc::new(disk.clone());
        let environment = Environment { vfs, clock: Arc::new(StoppedClock) };
        Engine::open_in(Path::new("/db"), options.clone(), Arc::new(Pieces), environment)
    };
    let pieces = |names: Range<u8>| -> Vec<u8> {
        names.flat_map(|name| std::iter::repeat_n(name, PIECE_BYTES)).collect()
    };
    let engine = open().expect("opens");
    for names in [0..16, 16..32, 32..48] {
        engine.apply(&[(b"key", &pieces(names))]).expect("taken");
    }
    drop(engine);
    let engine = open().expect("what the log holds can be replayed");
    assert!(engine.get(b"key").expect("reads") == Some(pieces(0..48)));
    engine.apply(&[(b"key", &pieces(48..64))]).expect("taken");
    engine.compact_all().expect("tables are joined");
    engine.close().expect("closes");
    drop(engine);
    let engine = open().expect("opens");
    assert!(engine.get(b"key").expect("reads") == Some(pieces(0..64)));
    assert_eq!(engine.scrub().expect("scrubs").damaged, []);
}

//! Writers that are ahead of the flush.

use std::sync::Arc;

use super::row::Row;
use super::{open, tiny};
use crate::engine::pressure::OnStall;
use crate::engine::vfs::fault::{FaultVfs, Operation};
use crate::engine::vfs::hold::Hold;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Options};

fn put(engine: &Engine, i: u32, on_stall: OnStall) {
    let row = Row::default().write(1, u64::from(i), true, Some(i)).encode();
    let key = i.to_be_bytes();
    engine.apply_with(&[(&key, &row)], on_stall).expect("taken");
}

/// A flush hangs. Writers go on at a slow pace long before memory is full; those that must not wait
/// are not slowed; and with the flush that is over.
#[test]
fn writers_are_slowed_before_they_would_have_to_stop() {
    let vfs = FaultVfs::new(Arc::new(MemVfs::new()));
    let options = Options { compaction_threads: 1, memtable_bytes: 16 << 10, ..tiny() };
    let engine = open(Arc::new(vfs.clone()), options).expect("opens");
    let flushes = Hold::of(&vfs, Operation::Create, "sst");
    flushes.close();
    let filled = || engine.shared.super_version.load().active.list_bytes();
    let sealed = || engine.shared.super_version.load().sealed();
    let mut i = 0;
    while sealed() == 0 || filled() < (16 << 10) / 16 {
        put(&engine, i, OnStall::Wait);
        i += 1;
    }
    assert_eq!(engine.stats().slowed, 0, "the first sixteenth is free");
    while filled() < (16 << 10) / 4 {
        put(&engine, i, OnStall::Refuse);
        i += 1;
    }
    assert_eq!(engine.stats().slowed, 0, "who must not wait does not");
    for _ in 0..5 {
        put(&engine, i, OnStall::Wait);
        i += 1;
    }
    let stats = engine.stats();
    assert_eq!((stats.slowed, stats.stalls), (5, 0));
    flushes.open();
    engine.flush().expect("flushes");
    put(&engine, i, OnStall::Wait);
    assert_eq!(engine.stats().slowed, 5);
}

/// The rate limit goes up while compaction falls behind, not only when the next job begins.
#[test]
fn the_pace_follows_what_is_installed() {
    let options = Options {
        compaction_bytes_per_second: 1,
        level0_tables_trigger: 2,
        level0_tables_stop: 10_000,
        ..tiny()
    };
    let engine = open(Arc::new(FaultVfs::new(Arc::new(MemVfs::new()))), options).expect("opens");
    let debt = || engine.stats().compaction_debt_bytes;
    assert!(engine.shared.pacer.take(1 << 20, 1) > 0, "paced as long as it keeps up");
    let mut i = 0;
    while debt() < 16 * (4 << 10) {
        assert!(engine.shared.pacer.take(1 << 20, 1) > 0, "{} bytes behind", debt());
        for _ in 0..20 {
            i += 1;
            put(&engine, i, OnStall::Wait);
        }
        engine.flush().expect("flushes");
    }
    assert_eq!(engine.shared.pacer.take(1 << 20, 1), 0, "{} bytes behind", debt());
}

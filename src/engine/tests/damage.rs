//! Flipped bits in tables: found, named, contained.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::row::Row;
use super::{open, tiny};
use crate::engine::vfs::Vfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options};

fn key(n: u64) -> Vec<u8> {
    format!("{n:08}").into_bytes()
}

fn tables(disk: &MemVfs) -> Vec<PathBuf> {
    let mut files = disk.list(Path::new("/db")).expect("lists");
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sst"));
    files.into_iter().map(|file| Path::new("/db").join(file)).collect()
}

/// A store of some tables, the first of which has a flipped bit in its first data block.
fn damaged_store(options: &Options) -> (Arc<MemVfs>, Engine) {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), options.clone()).expect("opens");
    for n in 0..400 {
        let row = Row::default().write(1, n + 1, true, Some(n as u32)).encode();
        engine.apply(&[(&key(n), &row)]).expect("taken");
    }
    engine.close().expect("closes");
    drop(engine);
    let table = tables(&disk).remove(0);
    let file = disk.open(&table).expect("opens");
    let mut byte = [0];
    file.read_at(40, &mut byte).expect("reads");
    file.write_at(40, &[byte[0] ^ 4]).expect("writes");
    let engine = open(disk.clone(), options.clone()).expect("a damaged block is met when read");
    (disk, engine)
}

/// The engine fails reads of the block by name and serves the others; a scrub reports it once;
/// compaction leaves the table alone and goes on with the rest; writes go on.
#[test]
fn a_damaged_block_is_named_and_contained() {
    let (_disk, engine) = damaged_store(&tiny());
    let outcomes: Vec<_> = (0..400).map(|n| engine.get(&key(n))).collect();
    let (mut served, mut refused) = (0, 0);
    for outcome in &outcomes {
        match outcome {
            Ok(row) => served += u32::from(row.is_some()),
            Err(Error::Corruption(corruption)) => {
                assert!(corruption.file.extension().is_some_and(|extension| extension == "sst"));
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0 && served > 300, "{served} served, {refused} refused");
    assert_eq!(served + refused, 400);

    let report = engine.scrub().expect("the quarantine is written");
    assert_eq!(report.damaged.len(), 1);

    for n in 0..400 {
        let row = Row::default().write(1, n + 1000, true, Some(7)).encode();
        let position = engine.apply(&[(&key(n), &row)]).expect("taken");
        engine.wait_durable(position).expect("durable");
    }
    engine.flush().expect("flushes");
    while engine.step().expect("the damaged table is left out") {}
    assert!(engine.stats().poisoned.is_none());
}

/// Nothing that was quarantined vanishes silently: after a reopen the reads still fail by name.
#[test]
fn quarantine_survives_a_reopen() {
    let (disk, engine) = damaged_store(&tiny());
    engine.scrub().expect("the quarantine is written");
    engine.close().expect("closes");
    drop(engine);
    let engine = open(disk, tiny()).expect("reopens");
    let refused = (0..400).filter(|n| engine.get(&key(*n)).is_err()).count();
    assert!(refused > 0);
}

/// With threads: the compaction that meets the damage does not stop the engine.
#[test]
fn a_damaged_table_does_not_poison_the_threads() {
    let options = Options { compaction_threads: 1, ..tiny() };
    let (_disk, engine) = damaged_store(&options);
    for round in 0..20 {
        for n in 0..400 {
            let time = 1000 * (round + 1) + n;
            let row = Row::default().write(1, time, true, Some(7)).encode();
            let position = engine.apply(&[(&key(n), &row)]).expect("taken");
            engine.wait_durable(position).expect("durable");
        }
    }
    assert!(engine.stats().poisoned.is_none());
    engine.close().expect("closes");
}

/// A block that was given up takes nothing with it but its own records: every other key of its
/// table has the same state as before, what the block hid is seen again, the keys go on to be
/// written, compacted and reopened. Without a yes for it the block stays.
#[test]
fn a_block_that_is_given_up_takes_nothing_else_with_it() {
    let (disk, engine) = damaged_store(&tiny());
    let before: Vec<_> = (0..400).map(|n| engine.get(&key(n)).ok()).collect();
    let is_lost = |n: u64| before[n as usize].is_none();
    assert!((0..400).any(is_lost) && (0..400).any(|n| !is_lost(n)));
    assert_eq!(engine.discard(&|_| true, &|install| install().map(|()| true)).expect("done"), 0);

    engine.scrub().expect("the quarantine is written");
    let quarantined = engine.quarantined();
    assert_eq!(quarantined.len(), 1, "what is not known to be damaged is not given up");
    let always = |install: &mut dyn FnMut() -> crate::engine::Result<()>| install().map(|()| true);
    assert_eq!(engine.discard(&|_| false, &always).expect("kept"), 0);
    assert_eq!(engine.discard(&|_| true, &|_| Ok(false)).expect("not permitted"), 0);
    assert_eq!(engine.quarantined(), quarantined);
    assert_eq!(engine.discard(&|_| true, &always).expect("discarded"), 1);

    assert!(engine.quarantined().is_empty());
    for n in 0..400 {
        let row = engine.get(&key(n)).expect("readable");
        let expected = if is_lost(n) { None } else { before[n as usize].clone().flatten() };
        assert_eq!(row, expected, "key {n}");
    }
    let lost = (0..400).find(|n| is_lost(*n)).expect("one is");
    let row = Row::default().write(1, 5000, true, Some(7)).encode();
    engine.apply(&[(&key(lost), &row)]).expect("taken");
    engine.compact_all().expect("no table is left out");
    engine.close().expect("closes");
    drop(engine);
    let engine = open(disk, tiny()).expect("reopens");
    assert_eq!(engine.get(&key(lost)).expect("readable"), Some(row));
    assert_eq!(engine.scrub().expect("read").damaged, []);
}

/// A table of which no block is sound goes altogether, and what lay below it is seen again.
#[test]
fn a_table_without_a_sound_block_goes_and_uncovers_what_it_hid() {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), tiny()).expect("opens");
    let (old, new) = (
        Row::default().write(1, 1, true, Some(1)).encode(),
        Row::default().write(1, 2, true, Some(2)).encode(),
    );
    engine.apply(&[(&key(1), &old)]).expect("taken");
    engine.compact_all().expect("at the bottom");
    engine.apply(&[(&key(1), &new)]).expect("taken");
    engine.flush().expect("above it");
    engine.close().expect("closes");
    drop(engine);
    let newest = tables(&disk).into_iter().max().expect("two tables");
    let file = disk.open(&newest).expect("opens");
    let mut byte = [0];
    file.read_at(40, &mut byte).expect("reads");
    file.write_at(40, &[byte[0] ^ 4]).expect("writes");
    let engine = open(disk, tiny()).expect("reopens");
    engine.scrub().expect("the quarantine is written");
    assert!(engine.get(&key(1)).is_err(), "what is below it is not the row");
    let discarded = engine.discard(&|_| true, &|install| install().map(|()| true));
    assert_eq!(discarded.expect("discarded"), 1);
    assert_eq!(engine.get(&key(1)).expect("readable"), Some(old));
}

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
    // What may not pass the damaged table stays at level 0: how much of it writers bear is not
    // what this is about.
    let options = Options { compaction_threads: 1, level0_tables_stop: 1_000, ..tiny() };
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
